//! `--device`: where a command has its model.

use std::str::FromStr;

use candle_core::Device;
use sidenote_kernels::LargeBlocks;

use crate::error::{Error, Result};

#[derive(Debug, clap::Args)]
pub struct DeviceArgs {
    /// Where the model is: cpu, cuda (the first GPU) or cuda:1 (the second, and so on).
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: Name,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Name {
    Cpu,
    Cuda(usize),
}

impl FromStr for Name {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let unknown = || "expected cpu, cuda, or cuda: and the number of a GPU, from 0".to_string();
        match name.split_once(':') {
            None if name == "cpu" => Ok(Self::Cpu),
            None if name == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) => number.parse().map(Self::Cuda).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

impl DeviceArgs {
    /// Opens it, and has the process keep large blocks of memory from now on, as models need them. To be done once: what two openings
    /// of a GPU give are two devices to candle.
    ///
    /// # Errors
    /// A program that was built without GPUs; no such GPU.
    pub fn open(&self) -> Result<Device> {
        LargeBlocks::start();
        match self.device {
            Name::Cpu => Ok(Device::Cpu),
            Name::Cuda(number) => gpu(number),
        }
    }
}

#[cfg(feature = "cuda")]
fn gpu(number: usize) -> Result<Device> {
    Device::new_cuda(number).map_err(|e| {
        let why =
            format!("cuda:{number} cannot be opened ({e}); nvidia-smi shows which GPUs there are, from 0");
        Error::setting("--device", why)
    })
}

#[cfg(not(feature = "cuda"))]
fn gpu(_: usize) -> Result<Device> {
    let why = "this program was built without GPUs; build it with `--features cuda` (kernels/README.md), or leave --device out";
    Err(Error::setting("--device", why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_their_names() {
        assert_eq!("cpu".parse(), Ok(Name::Cpu));
        assert_eq!("cuda".parse(), Ok(Name::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(Name::Cuda(3)));
        for wrong in ["", "gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cuda:1:1", "cpu:0", "cuda 1"] {
            assert!(wrong.parse::<Name>().unwrap_err().contains("cuda"), "{wrong}");
        }
    }
}
