//! The bridge between plain Rust over slices and candle's graph: read the slice of a tensor,
//! record a computed value together with its backward.

use std::sync::Mutex;
use std::thread::{self, ThreadId};

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage, StorageRef, Tensor,
    bail,
};

/// Whether the fused kernels can take these tensors: `f32` in main memory.
pub fn fusible(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32)
}

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

/// `values` as the gradient of `input`: None where `input` asks for none.
pub fn gradient(values: Vec<f32>, input: &Tensor) -> Result<Option<Tensor>> {
    if !input.track_op() {
        return Ok(None);
    }
    Tensor::from_vec(values, input.shape(), input.device()).map(Some)
}

/// Puts `value`, computed from `inputs`, into the graph. `backward` receives the value and its gradient
/// (both contiguous) and returns the gradients of the inputs in order; None where there is none.
pub fn record(
    inputs: &[&Tensor],
    value: Vec<f32>,
    shape: impl Into<Shape>,
    backward: impl Fn(&Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    let shape = shape.into();
    if !inputs.iter().any(|input| input.track_op()) {
        return Tensor::from_vec(value, shape, inputs[0].device());
    }
    let op = |bundle: Option<Bundle>| Recorded {
        value: Mutex::new(Some((value, shape))),
        backward: Box::new(backward),
        bundle,
    };
    match inputs {
        [a] => a.apply_op1(op(None)),
        [a, b] => a.apply_op2(b, op(None)),
        [a, b, c] => a.apply_op3(b, c, op(None)),
        // candle knows no operations of more than three inputs: the others go into one.
        [a, b, rest @ ..] => {
            let bundle = Bundle::default();
            let token = match rest {
                [c, d] => c.apply_op2(d, bundle.clone())?,
                [c, d, e] => c.apply_op3(d, e, bundle.clone())?,
                _ => bail!("record takes 1 to 5 inputs, not {}", inputs.len()),
            };
            a.apply_op3(b, &token, op(Some(bundle)))
        }
        [] => bail!("record needs an input"),
    }
}

type Backward = dyn Fn(&Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync;

/// The node of a value that is computed already.
struct Recorded {
    value: Mutex<Option<(Vec<f32>, Shape)>>,
    backward: Box<Backward>,
    bundle: Option<Bundle>,
}

impl Recorded {
    const NAME: &'static str = "sidenote-kernel";

    fn value(&self) -> Result<(CpuStorage, Shape)> {
        match lock(&self.value).take() {
            Some((value, shape)) => Ok((CpuStorage::F32(value), shape)),
            None => bail!("{}: the value was taken twice", Self::NAME),
        }
    }

    /// The gradients of the node's arguments. candle panics where a tracked argument gets none.
    fn gradients(&self, args: &[&Tensor], value: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let mut gradients = (self.backward)(value, &grad.contiguous()?)?;
        if let Some(bundle) = &self.bundle {
            let rest = gradients.split_off(2);
            lock(&bundle.gradients).push((thread::current().id(), rest));
            gradients.push(None);
        }
        filled(args, gradients)
    }
}

/// Several tensors that enter an operation as one: a node whose value is a lone zero, and which hands
/// on the gradients that the operation's backward has left here. candle runs a backward pass on one
/// thread, the operation before its inputs; the thread's id keeps concurrent passes apart.
#[derive(Clone, Default)]
struct Bundle {
    gradients: std::sync::Arc<Mutex<Vec<(ThreadId, Vec<Option<Tensor>>)>>>,
}

impl Bundle {
    const NAME: &'static str = "sidenote-bundle";

    fn value(&self) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(1)))
    }

    fn gradients(&self, args: &[&Tensor]) -> Result<Vec<Option<Tensor>>> {
        let mut left = lock(&self.gradients);
        match left.iter().rposition(|(thread, _)| *thread == thread::current().id()) {
            Some(i) => filled(args, left.swap_remove(i).1),
            None => bail!("{}: no gradients were left here", Self::NAME),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn filled(args: &[&Tensor], gradients: Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> {
    let fill = |(arg, gradient): (&&Tensor, Option<Tensor>)| match gradient {
        None if arg.track_op() => arg.zeros_like().map(Some),
        gradient => Ok(gradient),
    };
    args.iter().zip(gradients).map(fill).collect()
}

impl CustomOp1 for Recorded {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.value()
    }

    fn bwd(&self, a: &Tensor, value: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut gradients = self.gradients(&[a], value, grad)?.into_iter();
        Ok(gradients.next().flatten())
    }
}

macro_rules! custom_op {
    ($op:ident, $trait:ident, ($($storage:ident $layout:ident),+), ($($arg:ident),+), $self:ident, $value:ident, $grad:ident, $gradients:expr) => {
        impl $trait for $op {
            fn name(&self) -> &'static str {
                Self::NAME
            }

            fn cpu_fwd(&self, $($storage: &CpuStorage, $layout: &Layout),+) -> Result<(CpuStorage, Shape)> {
                $(let _ = ($storage, $layout);)+
                self.value()
            }

            fn bwd(&$self, $($arg: &Tensor,)+ $value: &Tensor, $grad: &Tensor) -> Result<custom_op!(@out $($arg),+)> {
                let mut gradients = $gradients.into_iter();
                Ok(($(custom_op!(@next $arg gradients)),+))
            }
        }
    };
    (@out $($arg:ident),+) => { ($(custom_op!(@tensor $arg)),+) };
    (@tensor $arg:ident) => { Option<Tensor> };
    (@next $arg:ident $gradients:ident) => { $gradients.next().flatten() };
}

custom_op!(Recorded, CustomOp2, (s1 l1, s2 l2), (a, b), self, value, grad, self.gradients(&[a, b], value, grad)?);
custom_op!(Recorded, CustomOp3, (s1 l1, s2 l2, s3 l3), (a, b, c), self, value, grad, self.gradients(&[a, b, c], value, grad)?);
custom_op!(Bundle, CustomOp2, (s1 l1, s2 l2), (a, b), self, _value, _grad, self.gradients(&[a, b])?);
custom_op!(Bundle, CustomOp3, (s1 l1, s2 l2, s3 l3), (a, b, c), self, _value, _grad, self.gradients(&[a, b, c])?);
