//! Where a checkpoint keeps a weight: in a tensor of its own, turned over, or as some of the rows of a tensor.

use std::fmt;

use candle_core::Tensor;

/// Where a weight lies in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The tensor's name.
    pub tensor: String,
    /// Whether the tensor is `[in, out]`, as GPT-2 has its matrices; ours are `[out, in]`.
    pub transposed: bool,
    /// Which of the rows it is, where it is not all of them.
    pub rows: Option<Rows>,
}

/// Some rows of a tensor that holds several weights of equal size.
///
/// The rows are `groups` times `of` times as many as each has in a group: GPT-2 has all of q, then of k, then of
/// v (1 group); BLOOM has q, k and v of the first head, then of the next (as many groups as heads).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rows {
    /// How often the weights alternate.
    pub groups: usize,
    /// How many weights there are.
    pub of: usize,
    /// Which of them it is, from 0.
    pub index: usize,
}

impl Place {
    /// The place of `suffix` (`weight` or `bias`) of the same layer.
    pub fn join(&self, suffix: &str) -> Self {
        Self { tensor: format!("{}.{suffix}", self.tensor), ..self.clone() }
    }

    /// The shape of the whole tensor in which a weight of `shape` has its place.
    pub fn tensor_shape(&self, shape: &[usize]) -> Vec<usize> {
        let mut shape = shape.to_vec();
        if let (Some(rows), Some(first)) = (self.rows, shape.first_mut()) {
            *first *= rows.of;
        }
        if self.turned(shape.len()) {
            shape.reverse();
        }
        shape
    }

    /// The weight that has its place in `tensor`.
    pub fn read(&self, tensor: &Tensor) -> candle_core::Result<Tensor> {
        let tensor = if self.turned(tensor.rank()) { tensor.t()? } else { tensor.clone() };
        let Some(Rows { groups, of, index }) = self.rows else { return tensor.contiguous() };
        let (shape, mut own) = (tensor.dims(), tensor.dims().to_vec());
        own[0] /= of;
        let split = [&[groups, of, shape[0] / (groups * of)], &shape[1..]].concat();
        tensor.contiguous()?.reshape(split)?.narrow(1, index, 1)?.contiguous()?.reshape(own)
    }

    /// The tensor in which `weights` have their places, in the order of their indices.
    pub fn write(&self, weights: &[Tensor]) -> candle_core::Result<Tensor> {
        let tensor = match (self.rows, weights) {
            (Some(Rows { groups, of, .. }), [first, ..]) => {
                let shape = first.dims();
                let split = [&[groups, 1, shape[0] / groups], &shape[1..]].concat();
                let parts = weights.iter().map(|weight| weight.reshape(split.clone()));
                let whole = [&[shape[0] * of], &shape[1..]].concat();
                Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 1)?.reshape(whole)?
            }
            (_, [weight]) => weight.clone(),
            _ => candle_core::bail!("{self}: {} weights for one place", weights.len()),
        };
        if self.turned(tensor.rank()) { tensor.t()?.contiguous() } else { Ok(tensor) }
    }

    /// Whether the weight is the tensor as it is.
    pub fn is_whole(&self) -> bool {
        self.rows.is_none() && !self.transposed
    }

    fn turned(&self, rank: usize) -> bool {
        self.transposed && rank == 2
    }
}

impl From<&str> for Place {
    fn from(name: &str) -> Self {
        Self { tensor: name.to_string(), transposed: false, rows: None }
    }
}

impl From<&String> for Place {
    fn from(name: &String) -> Self {
        name.as_str().into()
    }
}

impl From<&Place> for Place {
    fn from(place: &Place) -> Self {
        place.clone()
    }
}

/// The tensor's name, and which of its weights: `h.0.attn.c_attn.weight[1]`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.tensor)?;
        self.rows.map_or(Ok(()), |rows| write!(f, "[{}]", rows.index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn place(transposed: bool, rows: Option<(usize, usize)>) -> Place {
        let rows = rows.map(|(groups, index)| Rows { groups, of: 3, index });
        Place { transposed, rows, ..Place::from("c_attn.weight") }
    }

    #[test]
    fn gpt2_has_q_then_k_then_v_turned_over() {
        // [in, 3 out] for 2 in and 2 out.
        let tensor = Tensor::new(&[[1f32, 2., 3., 4., 5., 6.], [7., 8., 9., 10., 11., 12.]], &Device::Cpu);
        let k = place(true, Some((1, 1)));
        assert_eq!(k.tensor_shape(&[2, 2]), [2, 6]);
        assert_eq!(k.read(&tensor.unwrap()).unwrap().to_vec2::<f32>().unwrap(), [[3., 9.], [4., 10.]]);
        assert_eq!(k.to_string(), "c_attn.weight[1]");
    }

    #[test]
    fn bloom_has_q_and_k_and_v_of_each_head() {
        let bias = Tensor::arange(0f32, 12., &Device::Cpu).unwrap();
        let v = place(false, Some((2, 2))).read(&bias).unwrap();
        assert_eq!(v.to_vec1::<f32>().unwrap(), [4., 5., 10., 11.]);
    }

    #[test]
    fn what_was_read_is_written_back() {
        for (groups, shape) in [(1, vec![5, 12]), (4, vec![12]), (2, vec![12])] {
            let transposed = shape.len() == 2;
            let tensor = Tensor::rand(0f32, 1., shape, &Device::Cpu).unwrap();
            let parts: Vec<Tensor> =
                (0..3).map(|i| place(transposed, Some((groups, i))).read(&tensor).unwrap()).collect();
            let back = place(transposed, Some((groups, 0))).write(&parts).unwrap();
            assert_eq!(back.dims(), tensor.dims());
            let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(flat(&back), flat(&tensor));
        }
        let whole = Tensor::rand(0f32, 1., (2, 3), &Device::Cpu).unwrap();
        let place = place(true, None);
        assert_eq!(place.write(&[place.read(&whole).unwrap()]).unwrap().dims(), [2, 3]);
        assert!(place.write(&[]).is_err());
    }
}
