//! The small checkpoints of tests/data/models, which scripts/golden_t5.py makes.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::config::T5Config;

pub const CHECKPOINTS: [&str; 3] = ["t5_v1_0", "t5_v1_1", "t5_mt5"];

pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name)
}

pub fn golden(name: &str) -> Value {
    serde_json::from_slice(&fs::read(folder(name).join("golden.json")).unwrap()).unwrap()
}

pub fn config(name: &str) -> T5Config {
    let text = fs::read(folder(name).join("config.json")).unwrap();
    T5Config::from_json(&serde_json::from_slice(&text).unwrap()).unwrap()
}
