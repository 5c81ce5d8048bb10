//! A GPU, the tensors on it, and the launch of a kernel.

use std::sync::Arc;

use candle_core::{Error, Result, bail};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DeviceRepr, LaunchConfig, ValidAsZeroBits,
};
use cudarc::nvrtc::Ptx;

/// What a kernel stores numbers as.
pub trait Storage: DeviceRepr + ValidAsZeroBits + Clone + Default + 'static {
    /// As kernels' names end.
    const NAME: &'static str;
    /// How many fill 16 bytes.
    const WIDE: usize;
}

impl Storage for f32 {
    const NAME: &'static str = "f32";
    const WIDE: usize = 4;
}

impl Storage for half::bf16 {
    const NAME: &'static str = "bf16";
    const WIDE: usize = 8;
}

/// A GPU with our kernels loaded. Operations are queued in order; [`Device::download`] waits for them.
pub struct Device {
    pub(super) stream: Arc<CudaStream>,
    norm: Arc<CudaModule>,
    attention: Arc<CudaModule>,
    pointwise: Arc<CudaModule>,
}

/// Numbers on a GPU, by rows.
pub struct Tensor<T> {
    pub(super) data: CudaSlice<T>,
    shape: Vec<usize>,
}

impl<T> Tensor<T> {
    /// The sizes of the dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.shape
    }
}

/// The kernels of a source file.
#[derive(Clone, Copy)]
pub(super) enum Source {
    Norm,
    Attention,
    Pointwise,
}

impl Device {
    /// Opens the GPU with this number and loads the kernels.
    ///
    /// # Errors
    /// Without a driver or such a GPU, or when the driver refuses the kernels: it is too old for CUDA 13.0.
    pub fn new(ordinal: usize) -> Result<Self> {
        // SAFETY: only looks for the library.
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            bail!("cuda: no driver (libcuda) on this machine");
        }
        let context = CudaContext::new(ordinal).map_err(Error::wrap)?;
        let load = |image: &[u8]| context.load_module(Ptx::from_binary(image.to_vec())).map_err(Error::wrap);
        Ok(Self {
            stream: context.default_stream(),
            norm: load(include_bytes!(concat!(env!("OUT_DIR"), "/norm.fatbin")))?,
            attention: load(include_bytes!(concat!(env!("OUT_DIR"), "/attention.fatbin")))?,
            pointwise: load(include_bytes!(concat!(env!("OUT_DIR"), "/pointwise.fatbin")))?,
        })
    }

    /// The numbers, by rows, as a tensor of this shape.
    ///
    /// # Errors
    /// When their count does not fit the shape, or the GPU's memory does not suffice.
    pub fn upload<T: Storage>(&self, numbers: &[T], shape: &[usize]) -> Result<Tensor<T>> {
        if numbers.len() != shape.iter().product::<usize>() {
            bail!("cuda: {} numbers are not {shape:?}", numbers.len());
        }
        Ok(Tensor { data: self.upload_slice(numbers)?, shape: shape.to_vec() })
    }

    pub(super) fn upload_slice<T: DeviceRepr>(&self, numbers: &[T]) -> Result<CudaSlice<T>> {
        self.stream.clone_htod(numbers).map_err(Error::wrap)
    }

    /// The tensor's numbers, by rows.
    ///
    /// # Errors
    /// When an operation before failed.
    pub fn download<T: Storage>(&self, tensor: &Tensor<T>) -> Result<Vec<T>> {
        self.stream.clone_dtoh(&tensor.data).map_err(Error::wrap)
    }

    /// A tensor for an operation to write.
    pub(super) fn unwritten<T: Storage>(&self, shape: &[usize]) -> Result<Tensor<T>> {
        let count = shape.iter().product::<usize>().max(1);
        // SAFETY: any bits are numbers of `T`, and the operation that asked writes all of them.
        let data = unsafe { self.stream.alloc(count) }.map_err(Error::wrap)?;
        Ok(Tensor { data, shape: shape.to_vec() })
    }

    pub(super) fn kernel(&self, source: Source, name: &str) -> Result<CudaFunction> {
        let module = match source {
            Source::Norm => &self.norm,
            Source::Attention => &self.attention,
            Source::Pointwise => &self.pointwise,
        };
        module.load_function(name).map_err(Error::wrap)
    }
}

/// No tensor, as a kernel's argument.
pub(super) const NULL: u64 = 0;

/// Adds tensors or nothing to a launch: `push!(launch, Some(&a) or None)`.
macro_rules! push_optional {
    ($launch:ident, $tensor:expr) => {
        match $tensor {
            Some(tensor) => $launch.arg(&tensor.data),
            None => $launch.arg(&crate::cuda::device::NULL),
        };
    };
}
pub(super) use push_optional;

/// A grid of blocks of so many threads.
///
/// # Errors
/// When there are more rows of blocks than a grid has.
pub(super) fn grid(x: usize, y: usize, threads: u32) -> Result<LaunchConfig> {
    if x > i32::MAX as usize || y > 65_535 {
        bail!("cuda: a grid of {x} times {y} blocks is too large: make the batch smaller");
    }
    Ok(LaunchConfig { grid_dim: (x as u32, y as u32, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 })
}

/// A size as kernels take it.
///
/// # Errors
/// When it is too large for 32 bits.
pub(super) fn size(n: usize) -> Result<i32> {
    n.try_into().map_err(|_| Error::Msg(format!("cuda: a dimension of {n} is too large")))
}
