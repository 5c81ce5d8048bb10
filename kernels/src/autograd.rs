//! The bridge between plain Rust over slices and candle's graph: read the slice of a tensor,
//! record a computed value together with its backward.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage,
    StorageRef, Tensor, bail,
};

/// Whether the fused kernels can take these tensors: `f32` in main memory.
pub fn fusible(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32)
}

/// `on_gpu!(takes => result)`: where the kernels of a GPU take the tensors, returns what they make of them.
macro_rules! on_gpu {
    ($takes:expr => $result:expr) => {
        #[cfg(feature = "candle-cuda")]
        if $takes {
            return $result;
        }
    };
}
pub(crate) use on_gpu;

/// The elements of a CPU tensor of `f32` from its first element to the end of its storage.
///
/// For a contiguous tensor use [`View::of`]; with [`View::strided`] mind [`View::stride`].
pub struct View<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
    end: usize,
}

impl<'a> View<'a> {
    /// A tensor that is contiguous.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        if !tensor.is_contiguous() {
            bail!("fused kernel: tensor {tensor:?} is not contiguous");
        }
        let mut view = Self::strided(tensor)?;
        view.end = view.layout.start_offset() + tensor.elem_count();
        Ok(view)
    }

    /// A tensor of any layout.
    pub fn strided(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let end = match &*storage {
            Storage::Cpu(CpuStorage::F32(values)) => values.len(),
            _ => bail!("fused kernel: tensor {tensor:?} is not f32 on the CPU"),
        };
        Ok(Self { storage, layout, end })
    }

    /// How far apart neighbours along each dimension lie.
    pub fn stride(&self) -> &'a [usize] {
        self.layout.stride()
    }
}

impl std::ops::Deref for View<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.layout.start_offset()..self.end],
            _ => &[], // excluded at construction
        }
    }
}

/// Puts `value`, computed from `inputs`, into the graph. `backward` receives the value and its gradient
/// (both contiguous) and returns the gradients of the inputs in order; None where there is none.
pub fn record(
    inputs: &[&Tensor],
    value: Vec<f32>,
    shape: impl Into<Shape>,
    backward: impl Fn(&Tensor, &Tensor) -> Result<Gradients> + Send + Sync + 'static,
) -> Result<Tensor> {
    record_storage(inputs, Storage::Cpu(CpuStorage::F32(value)), shape.into(), backward)
}

/// [`record`] of a value on any device, that of the inputs.
pub fn record_storage(
    inputs: &[&Tensor],
    value: Storage,
    shape: Shape,
    backward: impl Fn(&Tensor, &Tensor) -> Result<Gradients> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !inputs.iter().any(|input| input.track_op()) {
        return Ok(Tensor::from_storage(value, shape, BackpropOp::none(), false));
    }
    let value = Mutex::new(Some((value, shape)));
    let backward = Box::new(backward);
    match inputs {
        [a] => a.apply_op1(Op(Recorded { value, backward, bundle: None })),
        [a, b] => a.apply_op2(b, Op(Recorded { value, backward, bundle: None })),
        [a, b, c] => a.apply_op3(b, c, Op(Recorded { value, backward, bundle: None })),
        // candle knows no operations of more than three inputs: the others go into one.
        [a, b, rest @ ..] => {
            let bundle = Bundle::default();
            let token = match rest {
                [c, d] => c.apply_op2(d, Op(bundle.clone()))?,
                [c, d, e] => c.apply_op3(d, e, Op(bundle.clone()))?,
                _ => bail!("record takes 1 to 5 inputs, not {}", inputs.len()),
            };
            let bundle = token.track_op().then_some(bundle);
            a.apply_op3(b, &token, Op(Recorded { value, backward, bundle }))
        }
        [] => bail!("record takes 1 to 5 inputs, not none"),
    }
}

/// A copy of what a tensor holds, one element after the other.
pub fn copy_of(tensor: &Tensor) -> Result<Storage> {
    let tensor = tensor.force_contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    storage.try_clone(layout)
}

/// Of the inputs, in order; None where there is none.
pub type Gradients = Vec<Option<Tensor>>;
type Backward = dyn Fn(&Tensor, &Tensor) -> Result<Gradients> + Send + Sync;

/// A node of the graph with any number of arguments.
trait Node {
    const NAME: &'static str;

    /// On the device of the arguments, of which `cuda` is one if it is a GPU.
    fn value(&self, cuda: Option<&CudaStorage>) -> Result<(Storage, Shape)>;

    /// The gradients of the arguments, in order.
    fn gradients(&self, value: &Tensor, grad: &Tensor) -> Result<Gradients>;
}

/// A value that is computed already.
struct Recorded {
    value: Mutex<Option<(Storage, Shape)>>,
    backward: Box<Backward>,
    bundle: Option<Bundle>,
}

impl Node for Recorded {
    const NAME: &'static str = "sidenote-kernel";

    fn value(&self, _: Option<&CudaStorage>) -> Result<(Storage, Shape)> {
        match lock(&self.value).take() {
            Some(value) => Ok(value),
            None => bail!("{}: the value was taken twice", Self::NAME),
        }
    }

    fn gradients(&self, value: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let mut gradients = (self.backward)(value, &grad.contiguous()?)?;
        if let Some(bundle) = &self.bundle {
            let rest = gradients.split_off(2);
            lock(&bundle.0).push((thread::current().id(), rest));
            gradients.push(None);
        }
        Ok(gradients)
    }
}

/// Several tensors that enter an operation as one: a node whose value is a lone zero, and which hands
/// on the gradients that the operation's backward has left here. candle runs a backward pass on one
/// thread, the operation before its inputs; the thread's id keeps concurrent passes apart.
#[derive(Clone, Default)]
struct Bundle(Arc<Mutex<Vec<(ThreadId, Gradients)>>>);

impl Node for Bundle {
    const NAME: &'static str = "sidenote-bundle";

    fn value(&self, cuda: Option<&CudaStorage>) -> Result<(Storage, Shape)> {
        #[cfg(feature = "candle-cuda")]
        if let Some(argument) = cuda {
            let zero = argument.device.alloc_zeros::<f32>(1)?;
            let zero = CudaStorage::wrap_cuda_slice(zero, argument.device.clone());
            return Ok((Storage::Cuda(zero), Shape::from(1)));
        }
        let _ = cuda;
        Ok((Storage::Cpu(CpuStorage::F32(vec![0.0])), Shape::from(1)))
    }

    fn gradients(&self, _: &Tensor, _: &Tensor) -> Result<Gradients> {
        let mut left = lock(&self.0);
        match left.iter().rposition(|(thread, _)| *thread == thread::current().id()) {
            Some(i) => Ok(left.swap_remove(i).1),
            None => bail!("{}: no gradients were left here", Self::NAME),
        }
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A node as candle's custom operations of one, two and three arguments.
struct Op<N>(N);

impl<N: Node> Op<N> {
    fn on_cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.0.value(None)? {
            (Storage::Cpu(value), shape) => Ok((value, shape)),
            _ => bail!("{}: the inputs are in main memory, the value is not", N::NAME),
        }
    }

    fn on_cuda(&self, argument: &CudaStorage) -> Result<(CudaStorage, Shape)> {
        match self.0.value(Some(argument))? {
            (Storage::Cuda(value), shape) => Ok((value, shape)),
            _ => bail!("{}: the inputs are on a GPU, the value is not", N::NAME),
        }
    }

    /// candle panics where an argument that is tracked and no variable gets no gradient, so it gets zeros.
    fn gradients<const ARGS: usize>(
        &self,
        args: [&Tensor; ARGS],
        value: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; ARGS]> {
        let mut gradients = self.0.gradients(value, grad)?;
        gradients.resize(ARGS, None);
        let mut filled = [const { None }; ARGS];
        for ((filled, gradient), arg) in filled.iter_mut().zip(gradients).zip(args) {
            *filled = match gradient {
                None if arg.track_op() && !arg.is_variable() => Some(arg.zeros_like()?),
                gradient => gradient,
            };
        }
        Ok(filled)
    }
}

impl<N: Node> CustomOp1 for Op<N> {
    fn name(&self) -> &'static str {
        N::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, a: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda(a)
    }

    fn bwd(&self, a: &Tensor, value: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [a] = self.gradients([a], value, grad)?;
        Ok(a)
    }
}

impl<N: Node> CustomOp2 for Op<N> {
    fn name(&self) -> &'static str {
        N::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda(a)
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        value: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.gradients([a, b], value, grad)?;
        Ok((a, b))
    }
}

impl<N: Node> CustomOp3 for Op<N> {
    fn name(&self) -> &'static str {
        N::NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda(a)
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        value: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.gradients([a, b, c], value, grad)?;
        Ok((a, b, c))
    }
}
