//! Compiles `cuda/*.cu` for the feature `cuda`: machine code for sm_80 and sm_90, and PTX for what comes after them.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, thread};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-changed=cuda");
    println!("cargo:rerun-if-env-changed=NVCC");
    let nvcc = env::var_os("NVCC").map_or_else(|| PathBuf::from("nvcc"), PathBuf::from);
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let entries = Path::new("cuda").read_dir().expect("the folder cuda is part of this crate");
    let mut sources: Vec<PathBuf> =
        entries.map(|entry| entry.expect("the folder cuda can be read").path()).collect();
    sources.retain(|source| source.extension().is_some_and(|extension| extension == "cu"));
    // The largest first, and as many at a time as cargo lets this script use.
    sources.sort_by_key(|source| Reverse(source.metadata().map_or(0, |metadata| metadata.len())));
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let next = Mutex::new(sources.into_iter());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(source) = { next.lock().expect("no compile fails with it").next() } {
                    let name = source.with_extension("fatbin");
                    compile(&nvcc, &source, &out.join(name.file_name().expect("a file")));
                }
            });
        }
    });
}

fn compile(nvcc: &Path, source: &Path, to: &Path) {
    let status = Command::new(nvcc)
        .args(["-std=c++17", "-O3", "-fatbin", "-Werror=all-warnings"])
        .args([
            "-gencode",
            "arch=compute_80,code=[sm_80,compute_80]",
            "-gencode",
            "arch=compute_90,code=sm_90",
        ])
        .arg("-o")
        .args([to, source])
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{}: nvcc ended with {status}", source.display()),
        Err(error) => panic!(
            "{}: {error}. The feature `cuda` needs nvcc 13.0: on PATH, or in NVCC, or \
             `export NVCC=$(scripts/fetch_nvcc.sh FOLDER)`",
            nvcc.display()
        ),
    }
}
