//! A GPU, the tensors on it, and the launch of a kernel.

use std::sync::Arc;

use candle_core::{Error, Result, bail};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, CudaView, DeviceRepr, LaunchArgs,
    LaunchConfig, PushKernelArg, ValidAsZeroBits,
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
    /// In the order of [`Source`].
    modules: Vec<Arc<CudaModule>>,
}

/// Numbers on a GPU, by rows.
pub struct Tensor<T> {
    pub(super) data: CudaSlice<T>,
    pub(super) shape: Vec<usize>,
}

impl<T> Tensor<T> {
    /// The sizes of the dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.shape
    }
}

/// Names the source files, whose kernels are compiled into the binary.
macro_rules! sources {
    ($($source:ident $file:literal)*) => {
        /// The kernels of a source file.
        #[derive(Clone, Copy)]
        pub(super) enum Source {
            $($source),*
        }

        const IMAGES: &[&[u8]] = &[$(include_bytes!(concat!(env!("OUT_DIR"), "/", $file, ".fatbin"))),*];
    };
}

sources! {
    Norm "norm"
    Attention "attention"
    AttentionF32 "attention_f32"
    CrossEntropy "cross_entropy"
    Decode "decode"
    Embedding "embedding"
    Matmul "matmul"
    Optimiser "optimiser"
    Pointwise "pointwise"
    Quantised "quantised"
    Topk "topk"
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
        let modules = IMAGES.iter().map(|image| load(image)).collect::<Result<_>>()?;
        Ok(Self { stream: context.default_stream(), modules })
    }

    /// The GPU's name.
    ///
    /// # Errors
    /// When the driver does not say.
    pub fn name(&self) -> Result<String> {
        self.stream.context().name().map_err(Error::wrap)
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

    pub(super) fn download_slice<T: DeviceRepr>(&self, slice: &CudaSlice<T>) -> Result<Vec<T>> {
        self.stream.clone_dtoh(slice).map_err(Error::wrap)
    }

    /// Waits until all operations so far are done.
    ///
    /// # Errors
    /// When one of them failed.
    pub fn wait(&self) -> Result<()> {
        self.stream.synchronize().map_err(Error::wrap)
    }

    /// A tensor for an operation to write.
    pub(super) fn unwritten<T: Storage>(&self, shape: &[usize]) -> Result<Tensor<T>> {
        let count = shape.iter().product::<usize>().max(1);
        Ok(Tensor { data: self.unwritten_slice(count)?, shape: shape.to_vec() })
    }

    pub(super) fn unwritten_slice<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        count: usize,
    ) -> Result<CudaSlice<T>> {
        // SAFETY: any bits are numbers of `T`, and the operation that asked writes all of them.
        unsafe { self.stream.alloc(count) }.map_err(Error::wrap)
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// When the GPU's memory does not suffice.
    pub fn zeros<T: Storage>(&self, shape: &[usize]) -> Result<Tensor<T>> {
        let data = self.stream.alloc_zeros(shape.iter().product::<usize>().max(1)).map_err(Error::wrap)?;
        Ok(Tensor { data, shape: shape.to_vec() })
    }

    pub(super) fn kernel(&self, source: Source, name: &str) -> Result<CudaFunction> {
        self.modules[source as usize].load_function(name).map_err(Error::wrap)
    }
}

/// No tensor, as a kernel's argument.
static NULL: u64 = 0;

/// What a kernel takes.
pub(super) trait Argument {
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>);
}

impl<T> Argument for Tensor<T> {
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>) {
        launch.arg(&self.data);
    }
}

impl<T> Argument for CudaSlice<T> {
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>) {
        launch.arg(self);
    }
}

impl<T> Argument for CudaView<'_, T> {
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>) {
        launch.arg(self);
    }
}

impl<A: Argument> Argument for &A {
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>) {
        (**self).push(launch);
    }
}

/// Nothing is a null pointer.
impl<A: Argument> Argument for Option<A> {
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>) {
        match self {
            Some(argument) => argument.push(launch),
            None => _ = launch.arg(&NULL),
        }
    }
}

/// Numbers, and structs of them.
macro_rules! plain_arguments {
    ($($kind:ty),*) => {
        $(impl crate::cuda::device::Argument for $kind {
            fn push<'a>(&'a self, launch: &mut cudarc::driver::LaunchArgs<'a>) {
                cudarc::driver::PushKernelArg::arg(launch, self);
            }
        })*
    };
}
pub(super) use plain_arguments;

plain_arguments!(i32, u32, u64, f32);

/// Queues a kernel: `launch!(device, Source, name, grid, arguments...)`, which are variables. To be within `unsafe`: the
/// arguments must be the kernel's, and what they point to as large as it takes them to be.
macro_rules! launch {
    ($device:expr, $source:expr, $name:expr, $grid:expr, $($argument:expr),* $(,)?) => {{
        let function = $device.kernel($source, $name)?;
        let mut launch = $device.stream.launch_builder(&function);
        $(crate::cuda::device::Argument::push(&$argument, &mut launch);)*
        launch.launch($grid).map_err(candle_core::Error::wrap)?
    }};
}
pub(super) use launch;

/// A grid of blocks of so many threads.
///
/// # Errors
/// When there are more rows of blocks than a grid has.
pub(super) fn grid(x: usize, y: usize, threads: u32) -> Result<LaunchConfig> {
    grid3([x, y, 1], threads)
}

/// [`grid`] of three dimensions.
pub(super) fn grid3([x, y, z]: [usize; 3], threads: u32) -> Result<LaunchConfig> {
    if x > i32::MAX as usize || y > 65_535 || z > 65_535 {
        bail!("cuda: a grid of {x} times {y} times {z} blocks is too large: make the batch smaller");
    }
    let grid_dim = (x as u32, y as u32, z as u32);
    Ok(LaunchConfig { grid_dim, block_dim: (threads, 1, 1), shared_mem_bytes: 0 })
}

/// A size as kernels take it.
///
/// # Errors
/// When it is too large for 32 bits.
pub(super) fn size(n: usize) -> Result<i32> {
    n.try_into().map_err(|_| Error::Msg(format!("cuda: a dimension of {n} is too large")))
}
