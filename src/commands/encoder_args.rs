//! `--encoder`: what a command's vectors are made by.

use std::fs;

use anyhow::Context;

use crate::encoder::{self, Encoder};

#[derive(Debug, clap::Args)]
pub struct EncoderArgs {
    /// The encoder, where it is no longer where the index says.
    #[arg(long)]
    encoder: Option<String>,
}

impl EncoderArgs {
    /// Reads it; none where the index's own is to be taken from where it says.
    ///
    /// # Errors
    /// As for [`load_encoder`].
    pub fn load(&self) -> anyhow::Result<Option<Box<dyn Encoder>>> {
        self.encoder.as_deref().map(load_encoder).transpose()
    }
}

/// The encoder called `name`: a folder by its full path, so that an index finds it from anywhere, or a name on the hub.
///
/// # Errors
/// As for [`encoder::load`].
pub fn load_encoder(name: &str) -> anyhow::Result<Box<dyn Encoder>> {
    if name == "default" {
        return Ok(encoder::load(name)?);
    }
    let Ok(path) = fs::canonicalize(name) else {
        return encoder::load(name).with_context(|| format!("--encoder {name}"));
    };
    Ok(encoder::load(path.to_str().context("the encoder's path is not UTF-8")?)?)
}
