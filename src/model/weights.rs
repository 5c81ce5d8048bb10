//! Named weights: read from a checkpoint or started from a seed, trainable or frozen.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor, Var};
use sidenote_kernels::{BlockKind, QuantisedLinear};

use super::attached::Attached;
use super::matrix::Matrix;
use super::normal::normal;
use super::place::Place;
use super::source::{self, Source, Stored};
use crate::adapter::Adapter;
use crate::error::{Error, Result};

/// How a weight starts when it is not read from a file.
#[derive(Debug, Clone)]
pub enum Start {
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
    /// All the same value.
    Constant(f32),
    /// Exactly these values, row-major.
    Values(Vec<f32>),
}

/// Hands out a model's weights by name, remembering each.
pub struct Weights {
    seed: u64,
    device: Device,
    dtype: DType,
    source: Option<Source>,
    /// Tensors of several weights that are not all handed out, with the number of those that are.
    shared: HashMap<String, (Tensor, usize)>,
    /// Ends of names of tensors that are no weights.
    ignored: Vec<&'static str>,
    trainable: bool,
    /// Whether matrices that the checkpoint has in blocks stay so where nothing is trained.
    keeps_blocks: bool,
    tensors: BTreeMap<Place, Matrix>,
    variables: Vec<(String, Var)>,
    attached: Option<Attached>,
}

impl Weights {
    /// Weights that start from `seed`. A weight's values depend on the seed and its name only.
    pub fn from_seed(seed: u64, device: &Device) -> Self {
        Self {
            seed,
            device: device.clone(),
            dtype: DType::F32,
            source: None,
            shared: HashMap::new(),
            ignored: Vec::new(),
            trainable: true,
            keeps_blocks: false,
            tensors: BTreeMap::new(),
            variables: Vec::new(),
            attached: None,
        }
    }

    /// Weights taken out of `source`, as f32.
    pub fn from_source(source: Source, device: &Device) -> Self {
        Self { source: Some(source), ..Self::from_seed(0, device) }
    }

    /// What weights handed out from now on are in, and so all that is computed with them; f32 unless it is said. Layers in
    /// bf16 are for GPUs.
    pub fn set_dtype(&mut self, dtype: DType) {
        self.dtype = dtype;
    }

    /// Whether weights handed out from now on are trained.
    pub fn set_trainable(&mut self, trainable: bool) {
        self.trainable = trainable;
    }

    /// Whether matrices handed out from now on stay in blocks, or in 16 bits a number, if the checkpoint has them so;
    /// for networks that are only run, since no gradient passes through them.
    pub fn keep_blocks(&mut self, keep: bool) {
        self.keeps_blocks = keep;
    }

    /// Attaches an adapter, which the layers made from now on ask for what they have of it.
    pub fn attach(&mut self, adapter: Adapter, trainable: bool, seed: u64) {
        self.attached = Some(Attached::new(adapter, trainable, seed, &self.device));
    }

    /// The adapter that is attached.
    pub fn attached(&mut self) -> Option<&mut Attached> {
        self.attached.as_mut()
    }

    /// Puts another matrix in the place of one that was handed out, as what this model has there.
    pub fn replace(&mut self, place: Place, matrix: Matrix) {
        self.tensors.insert(place, matrix);
    }

    /// From now on, weights start from the seed even if the rest was read from a checkpoint.
    pub fn start_fresh(&mut self, seed: u64) {
        self.source = None;
        self.seed = seed;
    }

    /// The weight at `place`, of this shape.
    pub fn get(&mut self, place: impl Into<Place>, shape: impl Into<Shape>, start: Start) -> Result<Tensor> {
        let (place, shape) = (place.into(), shape.into());
        let tensor = match &self.source {
            Some(_) => self.read(&place, shape.dims())?.to_device(&self.device)?,
            None => self.start(&place.to_string(), shape, start)?,
        };
        let tensor = tensor.to_dtype(self.dtype)?;
        let tensor = match &mut self.attached {
            Some(attached) if place.tensor.ends_with(".bias") => attached.bias(&place, tensor)?,
            _ => tensor,
        };
        let tensor = match self.trainable {
            true => {
                let variable = Var::from_tensor(&tensor)?;
                let tensor = variable.as_tensor().clone();
                self.variables.push((place.to_string(), variable));
                tensor
            }
            false => tensor,
        };
        self.tensors.insert(place, Matrix::Dense(tensor.clone()));
        Ok(tensor)
    }

    /// The matrix at `place`, of this shape.
    pub fn matrix(&mut self, place: &Place, shape: [usize; 2], start: Start) -> Result<Matrix> {
        // On a GPU only where there are kernels for them.
        let has_products = self.device.is_cpu() || cfg!(feature = "cuda");
        let may_be_blocks = self.keeps_blocks && !self.trainable && has_products;
        if may_be_blocks && place.is_whole() && self.source.is_some() {
            let stored = self.take(place, &shape)?;
            let kept = match &stored {
                Stored::Blocks(blocks) => block_kind(blocks.kind())
                    .map(|kind| QuantisedLinear::from_blocks(kind, blocks.bytes(), shape, &self.device)),
                Stored::Dense(tensor) => halves(tensor)?
                    .map(|(kind, bytes)| QuantisedLinear::from_blocks(kind, &bytes, shape, &self.device)),
            };
            let matrix = match kept {
                Some(weight) => Matrix::Quantised(Arc::new(weight?)),
                None => Matrix::Dense(stored.to_f32()?.to_device(&self.device)?),
            };
            self.tensors.insert(place.clone(), matrix.clone());
            return Ok(matrix);
        }
        Ok(Matrix::Dense(self.get(place, shape.to_vec(), start)?))
    }

    /// The weight at `place` of the checkpoint, as f32.
    fn read(&mut self, place: &Place, shape: &[usize]) -> Result<Tensor> {
        let (tensor, taken) = match self.shared.remove(&place.tensor) {
            Some(shared) => shared,
            None => (self.take(place, shape)?.to_f32()?, 0),
        };
        let weight = place.read(&tensor)?;
        if let Some(rows) = place.rows
            && taken + 1 < rows.of
        {
            self.shared.insert(place.tensor.clone(), (tensor, taken + 1));
        }
        Ok(weight)
    }

    /// The whole tensor in which a weight of `shape` has its `place`.
    fn take(&mut self, place: &Place, shape: &[usize]) -> Result<Stored> {
        let name = &place.tensor;
        let Some(source) = &mut self.source else {
            return Err(Error::setting(name, "there is no checkpoint to take it from"));
        };
        let stored = match source.take(name)? {
            Some(stored) => Some(stored),
            // A network that was saved without its output head does not say whose part it is.
            None => name.split_once('.').map(|(_, own)| source.take(own)).transpose()?.flatten(),
        };
        let stored = stored
            .ok_or_else(|| source.fault(format!("{name}: this tensor is missing from the checkpoint")))?;
        let expected = place.tensor_shape(shape);
        if stored.shape() != expected {
            let shape = stored.shape();
            return Err(source.fault(format!(
                "{name}: the checkpoint has shape {shape:?}, but config.json asks for {expected:?}"
            )));
        }
        Ok(stored)
    }

    /// Tensors whose names end so are no weights: they may be left over.
    pub fn ignore(&mut self, ends: &[&'static str]) {
        self.ignored.extend(ends);
    }

    fn start(&self, name: &str, shape: Shape, start: Start) -> Result<Tensor> {
        let n = shape.elem_count();
        let values = match start {
            Start::Normal(deviation) => normal(self.seed, name, n, deviation),
            Start::Constant(value) => vec![value; n],
            Start::Values(values) => values,
        };
        Ok(Tensor::from_vec(values, shape, &self.device)?)
    }

    /// The device that the weights live on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Refuses a checkpoint with a tensor that no part of the model has asked for: the model is not what its
    /// configuration says.
    pub fn check_all_taken(&self) -> Result<()> {
        if let Some(attached) = &self.attached {
            attached.check_all_taken()?;
        }
        let Some(source) = &self.source else { return Ok(()) };
        let ignored = |name: &str| self.ignored.iter().any(|end| name.ends_with(end));
        match source.left().find(|name| !ignored(name)) {
            Some(name) => {
                let why = format!("tensor {name} belongs to no part of the model that config.json describes");
                Err(source.fault(why))
            }
            None => Ok(()),
        }
    }

    /// The checkpoint's tensors that no part of the model has asked for, by name.
    pub fn others(&self) -> Result<Vec<(String, Tensor)>> {
        let Some(source) = &self.source else { return Ok(Vec::new()) };
        let read = |name: &str| {
            Ok(match source.peek(name)? {
                Some(Stored::Dense(tensor)) => Some((name.to_string(), tensor)),
                Some(Stored::Blocks(blocks)) => Some((name.to_string(), blocks.dequantise()?)),
                None => None,
            })
        };
        source.left().filter_map(|name| read(name).transpose()).collect()
    }

    /// All weights handed out, and those among them that are trained.
    pub fn finish(self) -> (BTreeMap<Place, Matrix>, Vec<(String, Var)>) {
        (self.tensors, self.variables)
    }

    /// Takes the adapter off; what is trained of it stays among what is trained.
    pub fn detach(&mut self) -> Option<Attached> {
        let attached = self.attached.take()?;
        self.variables.extend(attached.variables().to_vec());
        Some(attached)
    }
}

/// The kernels' name of a block format, if they have it.
fn block_kind(kind: source::BlockKind) -> Option<BlockKind> {
    use source::BlockKind as Stored;
    Some(match kind {
        Stored::Q4_0 => BlockKind::Q4_0,
        Stored::Q4_1 => BlockKind::Q4_1,
        Stored::Q5_0 => BlockKind::Q5_0,
        Stored::Q5_1 => BlockKind::Q5_1,
        Stored::Q8_0 => BlockKind::Q8_0,
        Stored::Q4K => BlockKind::Q4K,
        Stored::Q5K => BlockKind::Q5K,
        Stored::Q6K => BlockKind::Q6K,
        _ => return None,
    })
}

/// The bytes of a tensor in 16 bits a number.
fn halves(tensor: &Tensor) -> Result<Option<(BlockKind, Vec<u8>)>> {
    let flat = tensor.flatten_all()?;
    Ok(match tensor.dtype() {
        DType::F16 => {
            let bytes = flat.to_vec1::<half::f16>()?.into_iter().flat_map(half::f16::to_le_bytes);
            Some((BlockKind::F16, bytes.collect()))
        }
        DType::BF16 => {
            let bytes = flat.to_vec1::<half::bf16>()?.into_iter().flat_map(half::bf16::to_le_bytes);
            Some((BlockKind::BF16, bytes.collect()))
        }
        _ => None,
    })
}
