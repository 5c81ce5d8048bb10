//! candle's tensors on a GPU: given to the kernels of [`crate::cuda`], whose results go into candle's graph. Each function
//! has the name and the arguments of the operation that calls it, which has checked the shapes.

mod attention;
mod cross_entropy;
mod embedding;
mod linear;
mod norm;
mod optimiser;
mod pointwise;
mod quantised;

use std::sync::{Arc, Mutex};

use candle_core::cuda::CudaDType;
use candle_core::cuda_backend::DeviceId;
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, Tensor, bail};
use cudarc::driver::DevicePtr;
use half::bf16;

use crate::autograd::{Gradients, lock, record_storage};
use crate::cuda;

pub use self::attention::{attention, takes_attention};
pub use self::cross_entropy::linear_cross_entropy;
pub use self::embedding::embedding;
pub use self::linear::linear;
pub use self::norm::{add_layer_norm, add_rms_norm, layer_norm, rms_norm};
pub use self::optimiser::{adafactor, adamw, norm};
pub use self::pointwise::{activate, dropout, gated, merge_heads, rotary, split_heads, takes_heads};
pub use self::quantised::Quantised;

/// What both candle and the kernels store.
pub trait Number: cuda::Storage + CudaDType {}

impl Number for f32 {}
impl Number for bf16 {}

/// `$work` with `$number` the type of the tensor's numbers, which [`takes`] has seen to be one of two.
macro_rules! by_dtype {
    ($tensor:expr, $number:ident => $work:expr) => {
        match $tensor.dtype() {
            candle_core::DType::F32 => {
                type $number = f32;
                $work
            }
            _ => {
                type $number = half::bf16;
                $work
            }
        }
    };
}
use by_dtype;

/// Whether the kernels can take these tensors: on one GPU, all in `f32` or all in `bf16`, and none empty.
pub fn takes(tensors: &[&Tensor]) -> bool {
    let Some(first) = tensors.first() else { return false };
    let fits = |tensor: &&Tensor| {
        tensor.dtype() == first.dtype()
            && tensor.elem_count() > 0
            && tensor.device().same_device(first.device())
    };
    first.device().is_cuda() && matches!(first.dtype(), DType::F32 | DType::BF16) && tensors.iter().all(fits)
}

/// A GPU as candle knows it, and as the kernels do.
#[derive(Clone)]
pub struct Gpu {
    candle: CudaDevice,
    kernels: Arc<cuda::Device>,
}

/// The GPUs whose kernels are loaded.
static LOADED: Mutex<Vec<(DeviceId, Arc<cuda::Device>)>> = Mutex::new(Vec::new());

impl Gpu {
    /// That of a tensor. Loads the kernels the first time.
    pub fn of(tensor: &Tensor) -> Result<Self> {
        Self::new(tensor.device())
    }

    pub fn new(device: &Device) -> Result<Self> {
        let candle = device.as_cuda_device()?.clone();
        let mut loaded = lock(&LOADED);
        let known = loaded.iter().find(|(id, _)| *id == candle.id()).map(|(_, kernels)| kernels.clone());
        let kernels = match known {
            Some(kernels) => kernels,
            None => {
                let kernels = Arc::new(cuda::Device::of(candle.cuda_stream())?);
                loaded.push((candle.id(), kernels.clone()));
                kernels
            }
        };
        Ok(Self { candle, kernels })
    }

    /// The tensor as a kernel reads it: its own memory where that is contiguous and begins at a multiple of 16 bytes, else
    /// a copy.
    pub fn lend<T: CudaDType>(&self, tensor: &Tensor) -> Result<cuda::Tensor<T>> {
        let tensor = tensor.detach().contiguous()?;
        match self.pointer::<T>(&tensor)? {
            pointer if pointer.is_multiple_of(16) => Ok(cuda::Tensor::lent(pointer, &tensor)),
            _ => {
                // `copy` would keep where it begins.
                let tensor = tensor.force_contiguous()?;
                Ok(cuda::Tensor::lent(self.pointer::<T>(&tensor)?, &tensor))
            }
        }
    }

    /// The tensor's own memory, for a kernel to change.
    pub fn lend_in_place<T: CudaDType>(&self, tensor: &Tensor) -> Result<cuda::Tensor<T>> {
        let pointer = self.pointer::<T>(tensor)?;
        if !tensor.is_contiguous() || !pointer.is_multiple_of(16) {
            bail!("cuda: a tensor of {:?} that cannot be changed in place", tensor.layout());
        }
        Ok(cuda::Tensor::lent(pointer, tensor))
    }

    /// The first tokens of `[batch, heads, room, dim]`, which lie there with the rest of the room between the heads, as that
    /// whole; None where they lie otherwise.
    fn lend_with_room<T: CudaDType>(&self, tensor: &Tensor) -> Result<Option<cuda::Tensor<T>>> {
        let (batch, heads, tokens, dim) = tensor.dims4()?;
        let &[of_batch, of_head, of_token, of_number] = tensor.stride() else { return Ok(None) };
        let between = if heads > 1 { of_head } else { of_batch };
        let room = if batch * heads > 1 { between / dim } else { tokens };
        let regular = of_number == 1
            && of_token == dim
            && room >= tokens
            && (heads == 1 || of_head == room * dim)
            && (batch == 1 || of_batch == heads * room * dim);
        let pointer = self.pointer::<T>(tensor)?;
        if !regular || !pointer.is_multiple_of(16) {
            return Ok(None);
        }
        Ok(Some(cuda::Tensor::lent(pointer, &tensor.detach()).with_room(&[batch, heads, room, dim])))
    }

    /// Where the tensor's first number lies.
    fn pointer<T: CudaDType>(&self, tensor: &Tensor) -> Result<u64> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("cuda: {tensor:?} is not on a GPU") };
        let stream = self.candle.cuda_stream();
        // Everything is queued in this stream, so that nothing needs to wait.
        let start = storage.as_cuda_slice::<T>()?.device_ptr(&stream).0;
        Ok(start + (layout.start_offset() * size_of::<T>()) as u64)
    }

    fn storage<T: CudaDType>(&self, result: cuda::Tensor<T>) -> Result<Storage> {
        let slice = result.into_slice()?;
        Ok(Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, self.candle.clone())))
    }

    /// A result as a tensor of this shape that asks for no gradient.
    pub fn tensor<T: CudaDType>(&self, result: cuda::Tensor<T>, shape: impl Into<Shape>) -> Result<Tensor> {
        Ok(Tensor::from_storage(self.storage(result)?, shape, BackpropOp::none(), false))
    }

    /// A result as the gradient of `input`, if it asks for one.
    pub fn gradient<T: CudaDType>(&self, result: cuda::Tensor<T>, input: &Tensor) -> Result<Option<Tensor>> {
        input.track_op().then(|| self.tensor(result, input.shape())).transpose()
    }

    /// [`crate::autograd::record`] of a result.
    pub fn record<T: CudaDType>(
        &self,
        inputs: &[&Tensor],
        result: cuda::Tensor<T>,
        shape: impl Into<Shape>,
        backward: impl Fn(&Tensor, &Tensor) -> Result<Gradients> + Send + Sync + 'static,
    ) -> Result<Tensor> {
        record_storage(inputs, self.storage(result)?, shape.into(), backward)
    }
}

/// The sizes of a tensor whose last dimension is `width`, as rows.
fn rows(tensor: &Tensor, width: usize) -> [usize; 2] {
    [tensor.elem_count() / width.max(1), width]
}
