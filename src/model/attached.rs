//! An adapter on its way into a model: its tensors are handed to the layers that ask for them.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor, Var};

use super::normal::normal;
use super::place::Place;
use crate::adapter::{Adapter, Change, Method, PROMPT};
use crate::error::{Error, Result};

/// See [the module](self).
pub struct Attached {
    adapter: Adapter,
    trainable: bool,
    seed: u64,
    device: Device,
    /// Tensors handed out, by name; layers that are one tensor in the checkpoint share theirs.
    handed: BTreeMap<String, Tensor>,
    variables: Vec<(String, Var)>,
    /// The learnt tensors that somebody asked for.
    asked: BTreeSet<String>,
    /// The linear layers that asked, and their sizes.
    layers: Vec<(String, usize, usize)>,
    /// Whether the checkpoint has some of them turned over.
    transposed: bool,
}

impl Attached {
    pub fn new(adapter: Adapter, trainable: bool, seed: u64, device: &Device) -> Self {
        Self {
            adapter,
            trainable,
            seed,
            device: device.clone(),
            handed: BTreeMap::new(),
            variables: Vec::new(),
            asked: BTreeSet::new(),
            layers: Vec::new(),
            transposed: false,
        }
    }

    /// Whether what it does is put into the weights themselves.
    pub fn merges(&self) -> bool {
        !self.trainable
    }

    /// What is done to the linear layer at `place`, whose weight is `[output, input]`; of a layer that is some rows of a
    /// tensor, what is done to all of them.
    pub fn change(&mut self, place: &Place, input: usize, output: usize) -> Result<Option<Change>> {
        let module = &place.tensor;
        // The output head is read as a matrix by the losses, which know no adapter.
        if module.ends_with("lm_head") {
            return Ok(None);
        }
        self.transposed |= place.transposed;
        let output = output * place.rows.map_or(1, |rows| rows.of);
        if self.layers.last().is_none_or(|(last, ..)| last != module) {
            self.layers.push((module.clone(), input, output));
        }
        let mut tensors = Vec::new();
        for part in self.adapter.parts(module, input, output) {
            tensors.push(self.hand(&part.name, &part.shape, part.mean, part.deviation)?);
        }
        let change = self.adapter.method.change(&tensors);
        let fits = match &change {
            Some(Change::LowRank { a, b, .. }) => {
                a.dims().get(1) == Some(&input) && b.dims() == [output, a.dims()[0]]
            }
            Some(Change::ScaleInput(l)) => l.dims() == [1, input],
            Some(Change::ScaleOutput(l)) => l.dims() == [output, 1],
            None => true,
        };
        match fits {
            true => Ok(change),
            false => {
                Err(self.fault(format!("{module}: is of another size than the model's, [{output}, {input}]")))
            }
        }
    }

    /// The bias at `place`, which is `own` in the model itself.
    pub fn bias(&mut self, place: &Place, own: Tensor) -> Result<Tensor> {
        let trained = self.trainable && matches!(self.adapter.method, Method::BitFit(_));
        let value = match self.adapter.tensor(&place.tensor) {
            Some(learnt) => {
                let expected = place.tensor_shape(own.dims());
                if learnt.dims() != expected {
                    let why =
                        format!("{}: is {:?}, but {expected:?} in the model", place.tensor, learnt.dims());
                    return Err(self.fault(why));
                }
                self.asked.insert(place.tensor.clone());
                place.read(learnt)?.to_device(&self.device)?
            }
            None => own,
        };
        if !trained {
            return Ok(value);
        }
        let variable = Var::from_tensor(&value)?;
        let value = variable.as_tensor().clone();
        self.variables.push((place.to_string(), variable));
        Ok(value)
    }

    /// The embeddings of tokens before the text, `[tokens, d]`, for a method that has some.
    pub fn prompt(&mut self, d: usize) -> Result<Option<Tensor>> {
        let Method::Prompt(prompt) = &self.adapter.method else { return Ok(None) };
        let tokens = prompt.tokens;
        // As wide as PEFT's.
        let embeddings = self.hand(PROMPT, &[tokens, d], 0.0, 1.0)?;
        match embeddings.dims() {
            [rows, width] if *rows >= tokens && *width == d => Ok(Some(embeddings.narrow(0, 0, tokens)?)),
            other => Err(self.fault(format!("{PROMPT}: is {other:?}, but [{tokens}, {d}] fits the model"))),
        }
    }

    /// Keys and values of tokens before the text, `[tokens, numbers]`, for a method that has some.
    pub fn prefix(&mut self, numbers: usize) -> Result<Option<Tensor>> {
        let Method::Prefix(prefix) = &self.adapter.method else { return Ok(None) };
        let shape = [prefix.tokens, numbers];
        let prefix = self.hand(PROMPT, &shape, 0.0, 1.0)?;
        match prefix.dims() == shape {
            true => Ok(Some(prefix)),
            false => {
                Err(self.fault(format!("{PROMPT}: is {:?}, but {shape:?} fits the model", prefix.dims())))
            }
        }
    }

    /// The tensor `name`, as it was learnt or as it starts.
    fn hand(&mut self, name: &str, shape: &[usize], mean: f32, deviation: f32) -> Result<Tensor> {
        if let Some(tensor) = self.handed.get(name) {
            return Ok(tensor.clone());
        }
        let tensor = match self.adapter.tensor(name) {
            Some(learnt) => learnt.to_device(&self.device)?,
            None => {
                let n = shape.iter().product();
                let mut values = match deviation {
                    0.0 => vec![0.0; n],
                    deviation => normal(self.seed, name, n, deviation),
                };
                values.iter_mut().for_each(|value| *value += mean);
                Tensor::from_vec(values, shape, &self.device)?
            }
        };
        self.asked.insert(name.to_string());
        let tensor = match self.trainable {
            true => {
                let variable = Var::from_tensor(&tensor)?;
                let tensor = variable.as_tensor().clone();
                self.variables.push((name.to_string(), variable));
                tensor
            }
            false => tensor,
        };
        self.handed.insert(name.to_string(), tensor.clone());
        Ok(tensor)
    }

    /// Refuses an adapter with a tensor that no part of the model asked for, and one that has none for it.
    pub fn check_all_taken(&self) -> Result<()> {
        // The matrices of zeros that a file of BitFit's has.
        let nothing =
            |name: &str| matches!(self.adapter.method, Method::BitFit(_)) && name.contains(".lora_");
        if let Some(name) = self.adapter.names().find(|name| !self.asked.contains(*name) && !nothing(name)) {
            let why = format!("tensor {name} belongs to no layer of the model that adapters reach here");
            return Err(self.fault(why));
        }
        let unmatched = self.adapter.method.targets().iter().find(|target| {
            let of_it = |(layer, ..): &(String, usize, usize)| crate::adapter::names(target, layer);
            !self.layers.iter().any(of_it)
        });
        if let (Some(target), true) = (unmatched, self.adapter.path().is_none()) {
            let layers: BTreeSet<&str> =
                self.layers.iter().filter_map(|(layer, ..)| layer.rsplit('.').next()).collect();
            let why = format!("no layer of the model is called {target:?}; there are {layers:?}");
            return Err(Error::setting("adapter.targets", why));
        }
        if self.trainable && self.variables.is_empty() {
            let why = "there is nothing to train: the model has none of the layers or biases that the method changes";
            return Err(Error::setting("adapter", why));
        }
        Ok(())
    }

    /// The method.
    pub fn method(&self) -> &Method {
        &self.adapter.method
    }

    /// The linear layers of the model.
    pub fn layers(&self) -> &[(String, usize, usize)] {
        &self.layers
    }

    /// Whether the checkpoint has matrices turned over.
    pub fn transposed(&self) -> bool {
        self.transposed
    }

    /// The weights that are trained, by name.
    pub fn variables(&self) -> &[(String, Var)] {
        &self.variables
    }

    /// The tensors that layers have of it, by name.
    pub fn handed(&self) -> &BTreeMap<String, Tensor> {
        &self.handed
    }

    fn fault(&self, why: String) -> Error {
        match self.adapter.path() {
            Some(path) => Error::file(path, why),
            None => Error::setting("adapter", why),
        }
    }
}
