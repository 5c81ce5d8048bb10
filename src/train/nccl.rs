//! Sums over GPUs, of one or many machines, by NVIDIA's NCCL. This is compiled and was never run: no machine with two GPUs
//! was at hand. What it must do is what [`Star`](super::group::Star) does, which is tested.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError};
use cudarc::nccl::result::NcclError;
use cudarc::nccl::{Comm, Id, ReduceOp};

use super::group::Group;
use crate::error::{Error, Result};

/// Bytes of what NCCL's processes know each other by.
const ID: usize = 128;

/// Processes with a GPU each.
pub struct Nccl {
    rank: usize,
    size: usize,
    comm: Comm,
    stream: Arc<CudaStream>,
    /// As many numbers as were summed at once so far.
    buffer: CudaSlice<f32>,
}

impl Nccl {
    /// Connects processes that have met already. Each takes the GPU of its machine that its rank says, counted round: give
    /// those of a machine ranks that follow each other.
    ///
    /// # Errors
    /// A machine without a GPU or without NCCL's library; processes that cannot reach each other.
    pub fn connect(met: &mut dyn Group) -> Result<Self> {
        // SAFETY: these load the libraries that are about to be used, whose initialisers are NVIDIA's own.
        let there =
            unsafe { cudarc::driver::sys::is_culib_present() && cudarc::nccl::sys::is_culib_present() };
        if !there {
            let why = "libcuda or libnccl is not found; install the driver and NCCL, or leave this out";
            return Err(Error::setting("--nccl", why));
        }
        let (rank, size) = (met.rank(), met.size());
        let gpus = CudaContext::device_count().map_err(driver)? as usize;
        if gpus == 0 {
            return Err(Error::setting("--nccl", "this machine has no GPU"));
        }
        let stream = CudaContext::new(rank % gpus).map_err(driver)?.default_stream();
        // The others send zeros, so that the sum is what the first one says.
        let mut bytes = [0f32; ID];
        if rank == 0 {
            let id = Id::new().map_err(nccl)?;
            bytes.iter_mut().zip(id.internal()).for_each(|(to, from)| *to = f32::from(*from));
        }
        met.sum(&mut bytes)?;
        let id = Id::uninit(bytes.map(|byte| byte as std::ffi::c_char));
        let comm = Comm::from_rank(stream.clone(), rank, size, id).map_err(nccl)?;
        let buffer = stream.alloc_zeros::<f32>(1).map_err(driver)?;
        Ok(Self { rank, size, comm, stream, buffer })
    }
}

impl Group for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn sum(&mut self, values: &mut [f32]) -> Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        if self.buffer.len() < values.len() {
            self.buffer = self.stream.alloc_zeros::<f32>(values.len()).map_err(driver)?;
        }
        let mut there = self.buffer.slice_mut(..values.len());
        self.stream.memcpy_htod(&*values, &mut there).map_err(driver)?;
        self.comm.all_reduce_in_place(&mut there, &ReduceOp::Sum).map_err(nccl)?;
        self.stream.memcpy_dtoh(&there, &mut *values).map_err(driver)?;
        self.stream.synchronize().map_err(driver)
    }
}

fn driver(e: DriverError) -> Error {
    Error::setting("--nccl", format!("CUDA: {e}"))
}

fn nccl(e: NcclError) -> Error {
    Error::setting("--nccl", format!("NCCL: {:?}", e.0))
}
