//! A GPU, the tensors on it, and the launch of a kernel.

use std::sync::Arc;

use candle_core::{Error, Result, bail};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, CudaView, DevicePtr, DeviceRepr,
    LaunchArgs, LaunchConfig, PushKernelArg, ValidAsZeroBits,
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
    data: Data<T>,
    shape: Vec<usize>,
}

enum Data<T> {
    Own(CudaSlice<T>),
    /// Where the numbers begin, and the tensor whose memory it is.
    #[cfg(feature = "candle-cuda")]
    Lent {
        pointer: u64,
        _of: candle_core::Tensor,
    },
}

impl<T> Tensor<T> {
    pub(super) fn new(data: CudaSlice<T>, shape: Vec<usize>) -> Self {
        Self { data: Data::Own(data), shape }
    }

    /// The numbers of a tensor of candle's that begin at `pointer`, by rows.
    #[cfg(feature = "candle-cuda")]
    pub(crate) fn lent(pointer: u64, of: &candle_core::Tensor) -> Self {
        Self { data: Data::Lent { pointer, _of: of.clone() }, shape: of.dims().to_vec() }
    }

    /// The sizes of the dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.shape
    }

    /// The same numbers in another shape.
    #[cfg(feature = "candle-cuda")]
    pub(crate) fn reshaped(self, shape: &[usize]) -> Self {
        debug_assert_eq!(self.shape.iter().product::<usize>(), shape.iter().product::<usize>());
        Self { shape: shape.to_vec(), ..self }
    }

    /// Numbers of which only those before the room that is left are read, as the whole that they lie in.
    #[cfg(feature = "candle-cuda")]
    pub(crate) fn with_room(self, shape: &[usize]) -> Self {
        Self { shape: shape.to_vec(), ..self }
    }

    /// The memory, which an operation's result owns.
    #[cfg(feature = "candle-cuda")]
    pub(crate) fn into_slice(self) -> Result<CudaSlice<T>> {
        match self.data {
            Data::Own(slice) => Ok(slice),
            Data::Lent { .. } => bail!("cuda: a result that is an input"),
        }
    }

    /// Where the numbers from the place `first` on lie, as a kernel's argument.
    pub(super) fn from(&self, device: &Device, first: usize) -> u64 {
        let start = match &self.data {
            Data::Own(slice) => slice.device_ptr(&device.stream).0,
            #[cfg(feature = "candle-cuda")]
            Data::Lent { pointer, .. } => *pointer,
        };
        start + (first * size_of::<T>()) as u64
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
        // SAFETY: only looks for the library, which a program that is linked to it has.
        #[cfg(not(feature = "candle-cuda"))]
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            bail!("cuda: no driver (libcuda) on this machine");
        }
        let context = CudaContext::new(ordinal).map_err(Error::wrap)?;
        Self::of(context.default_stream())
    }

    /// Loads the kernels for operations queued in this stream.
    ///
    /// # Errors
    /// When the driver refuses the kernels.
    pub(crate) fn of(stream: Arc<CudaStream>) -> Result<Self> {
        let load = |image: &[u8]| {
            stream.context().load_module(Ptx::from_binary(image.to_vec())).map_err(Error::wrap)
        };
        let modules = IMAGES.iter().map(|image| load(image)).collect::<Result<_>>()?;
        Ok(Self { stream, modules })
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
    pub fn upload<T: DeviceRepr>(&self, numbers: &[T], shape: &[usize]) -> Result<Tensor<T>> {
        if numbers.len() != shape.iter().product::<usize>() {
            bail!("cuda: {} numbers are not {shape:?}", numbers.len());
        }
        Ok(Tensor::new(self.upload_slice(numbers)?, shape.to_vec()))
    }

    pub(super) fn upload_slice<T: DeviceRepr>(&self, numbers: &[T]) -> Result<CudaSlice<T>> {
        self.stream.clone_htod(numbers).map_err(Error::wrap)
    }

    /// The tensor's numbers, by rows.
    ///
    /// # Errors
    /// When an operation before failed.
    pub fn download<T: Storage>(&self, tensor: &Tensor<T>) -> Result<Vec<T>> {
        match &tensor.data {
            Data::Own(slice) => self.stream.clone_dtoh(slice).map_err(Error::wrap),
            #[cfg(feature = "candle-cuda")]
            Data::Lent { .. } => bail!("cuda: only results are downloaded"),
        }
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
    pub(crate) fn unwritten<T: Storage>(&self, shape: &[usize]) -> Result<Tensor<T>> {
        let count = shape.iter().product::<usize>().max(1);
        Ok(Tensor::new(self.unwritten_slice(count)?, shape.to_vec()))
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
        Ok(Tensor::new(data, shape.to_vec()))
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
        match &self.data {
            Data::Own(slice) => _ = launch.arg(slice),
            #[cfg(feature = "candle-cuda")]
            Data::Lent { pointer, .. } => _ = launch.arg(pointer),
        }
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
