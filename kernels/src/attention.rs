//! Scaled dot-product attention.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::autograd::{View, fusible, gradient, record};
use crate::composed;
use crate::matrix::{Matrix, Threads, multiply};
use crate::simd::{add, exp, max, sum, vectorised};

/// How many queries are worked on at a time.
const BLOCK: usize = 64;

/// How many tasks there should be at least where sequences share one.
const TASKS: usize = 16;

/// What [`attention`] does between the scores and their softmax.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOptions<'a> {
    /// Query `i` sees only keys `j <= i + (keys - queries)`: the last query sees every key.
    pub causal: bool,
    /// What the dot products are multiplied by, usually `1 / sqrt(dim)`; T5 uses 1.
    pub scale: f32,
    /// Added to the scores, `[heads, queries, keys]`; gets a gradient.
    pub bias: Option<&'a Tensor>,
    /// `[batch, keys]` as `u8`: 1 where the key may be attended, 0 where not.
    pub key_mask: Option<&'a Tensor>,
    /// `[heads]`: the score of one extra key whose value is zero, which lets a head attend to
    /// nothing; gets a gradient.
    pub sink: Option<&'a Tensor>,
}

/// Scaled dot-product attention with grouped key heads: `softmax(scale * q k^T + bias) v`
/// (Vaswani et al. 2017, <https://arxiv.org/abs/1706.03762>, equation 1).
///
/// `q` is `[batch, heads, queries, dim]`, `k` and `v` are `[batch, kv_heads, keys, dim]` where
/// `kv_heads` divides `heads`; query head `h` reads key head `h / (heads / kv_heads)`. The result is
/// `[batch, heads, queries, dim]`. A query that may attend to no key gives exactly zero and zero
/// gradients. `q`, `k`, `v`, the bias and the sink get gradients.
///
/// The fused kernel holds the scores of one block of queries at a time and recomputes them in backward
/// (as FlashAttention does, Dao et al. 2022, <https://arxiv.org/abs/2205.14135>). `q`, `k` and `v` may
/// have any strides.
///
/// # Errors
/// When the shapes do not fit together.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    check(q, k, v, options)?;
    let (bias, sink) = (options.bias, options.sink);
    let inputs: Vec<&Tensor> = [Some(q), Some(k), Some(v), bias, sink].into_iter().flatten().collect();
    if !fusible(&inputs) {
        return composed::attention(q, k, v, options);
    }
    let arguments = Arguments {
        q: q.clone(),
        k: k.clone(),
        v: v.clone(),
        bias: bias.map(Tensor::contiguous).transpose()?,
        sink: sink.map(Tensor::contiguous).transpose()?,
        plan: Plan::new(q, k, options)?,
    };
    let mut out = vec![0f32; q.elem_count()];
    let mut log_totals = vec![0f32; q.elem_count() / q.dim(3)?.max(1)];
    arguments.operands()?.forward(&mut out, &mut log_totals);
    record(&inputs, out, q.shape(), move |out, grad| {
        let out = View::of(out)?;
        let grad = View::of(grad)?;
        let gradients = arguments.operands()?.backward(&out, &log_totals, &grad);
        let Arguments { q, k, v, bias, sink, .. } = &arguments;
        let mut tensors =
            vec![gradient(gradients.q, q)?, gradient(gradients.k, k)?, gradient(gradients.v, v)?];
        if let Some(bias) = bias {
            tensors.push(gradient(gradients.bias, bias)?);
        }
        if let Some(sink) = sink {
            tensors.push(gradient(gradients.sink, sink)?);
        }
        Ok(tensors)
    })
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<()> {
    let (batch, heads, queries, dim) = q.dims4()?;
    let (k_batch, kv_heads, keys, k_dim) = k.dims4()?;
    if k.dims() != v.dims() || k_batch != batch || k_dim != dim || kv_heads == 0 || heads % kv_heads != 0 {
        bail!(
            "attention: q {:?}, k {:?} and v {:?} do not fit together; expected [batch, heads, queries, \
             dim] and twice [batch, kv_heads, keys, dim] where kv_heads divides heads",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    let expect = |name: &str, tensor: Option<&Tensor>, shape: &[usize]| match tensor {
        Some(tensor) if tensor.dims() != shape => {
            bail!("attention: {name} is {:?}, expected {shape:?}", tensor.dims())
        }
        _ => Ok(()),
    };
    expect("bias", options.bias, &[heads, queries, keys])?;
    expect("key_mask", options.key_mask, &[batch, keys])?;
    expect("sink", options.sink, &[heads])
}

/// What forward and backward work on.
struct Arguments {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Option<Tensor>,
    sink: Option<Tensor>,
    plan: Plan,
}

/// The sizes, and which keys each query sees.
struct Plan {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    dim: usize,
    causal: bool,
    scale: f32,
    /// `[batch, keys]`: zero or minus infinity, added to the scores.
    mask: Option<Vec<f32>>,
    /// For each sequence of the batch the number of keys up to its last visible one.
    visible: Vec<usize>,
}

impl Plan {
    fn new(q: &Tensor, k: &Tensor, options: &AttentionOptions) -> Result<Self> {
        let (batch, heads, queries, dim) = q.dims4()?;
        let (_, kv_heads, keys, _) = k.dims4()?;
        let (mut mask, mut visible) = (None, vec![keys; batch]);
        if let Some(key_mask) = options.key_mask {
            let seen = key_mask.flatten_all()?.to_vec1::<u8>()?;
            for (visible, seen) in visible.iter_mut().zip(seen.chunks(keys.max(1))) {
                *visible = seen.iter().rposition(|&seen| seen != 0).map_or(0, |last| last + 1);
            }
            mask = Some(seen.into_iter().map(|s| if s != 0 { 0.0 } else { f32::NEG_INFINITY }).collect());
        }
        let AttentionOptions { causal, scale, .. } = *options;
        Ok(Self { batch, heads, kv_heads, queries, keys, dim, causal, scale, mask, visible })
    }

    /// How many keys, counted from the first, `query` sees (unless masked).
    fn sight(&self, batch: usize, query: usize) -> usize {
        let visible = self.visible[batch];
        if self.causal { (query + self.keys + 1).saturating_sub(self.queries).min(visible) } else { visible }
    }
}

impl Arguments {
    fn operands(&self) -> Result<Operands<'_>> {
        Ok(Operands {
            plan: &self.plan,
            q: View::strided(&self.q)?,
            k: View::strided(&self.k)?,
            v: View::strided(&self.v)?,
            bias: self.bias.as_ref().map(View::of).transpose()?,
            sink: self.sink.as_ref().map(View::of).transpose()?,
        })
    }
}

struct Operands<'a> {
    plan: &'a Plan,
    q: View<'a>,
    k: View<'a>,
    v: View<'a>,
    bias: Option<View<'a>>,
    sink: Option<View<'a>>,
}

/// Gradients in the order of the elements of what they belong to.
struct Gradients {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    bias: Vec<f32>,
    sink: Vec<f32>,
}

/// The part of the gradients that one task fills: those of one sequence and one key head with the
/// query heads that read it.
struct Share<'a> {
    batch: usize,
    kv_head: usize,
    q: &'a mut [f32],
    k: &'a mut [f32],
    v: &'a mut [f32],
    sink: &'a mut [f32],
}

/// Rows `first..` of one head of a tensor `[batch, heads, tokens, dim]`.
fn head<'a>(tensor: &'a View, batch: usize, head: usize, first: usize) -> Matrix<'a> {
    let stride = tensor.stride();
    let offset = batch * stride[0] + head * stride[1] + first * stride[2];
    Matrix::strided(&tensor[offset..], stride[2], stride[3])
}

impl Operands<'_> {
    /// Fills `out` and, for each query, the logarithm of the sum of its exponentials.
    fn forward(&self, out: &mut [f32], log_totals: &mut [f32]) {
        let Plan { heads, kv_heads, queries, keys, dim, .. } = *self.plan;
        if out.is_empty() || keys == 0 {
            return;
        }
        let sequences = out.par_chunks_mut(queries * dim).zip(log_totals.par_chunks_mut(queries));
        sequences.enumerate().for_each(|(i, (out, log_totals))| {
            let (batch, head) = (i / heads, i % heads);
            let blocks = out.par_chunks_mut(BLOCK * dim).zip(log_totals.par_chunks_mut(BLOCK));
            blocks.enumerate().for_each_init(Vec::new, |scores, (block, (out, log_totals))| {
                let kv_head = head / (heads / kv_heads);
                self.forward_block(batch, head, kv_head, block * BLOCK, scores, out, log_totals);
            });
        });
    }

    fn forward_block(
        &self,
        batch: usize,
        query_head: usize,
        kv_head: usize,
        first: usize,
        scores: &mut Vec<f32>,
        out: &mut [f32],
        log_totals: &mut [f32],
    ) {
        let dim = self.plan.dim;
        let rows = log_totals.len();
        let n = self.scores(batch, query_head, kv_head, first, rows, scores);
        if n == 0 {
            log_totals.fill(f32::INFINITY);
            return;
        }
        let sink = self.sink.as_ref().map_or(f32::NEG_INFINITY, |sink| sink[query_head]);
        let mut inverses = [0f32; BLOCK];
        for (i, row) in scores.chunks_exact_mut(n).enumerate() {
            (inverses[i], log_totals[i]) = exponentials(row, sink);
        }
        let v = head(&self.v, batch, kv_head, 0);
        multiply([rows, n, dim], 1.0, Matrix::rows(scores, n), v, out, dim, false, Threads::One);
        for (row, inverse) in out.chunks_exact_mut(dim).zip(inverses) {
            row.iter_mut().for_each(|x| *x *= inverse);
        }
    }

    /// The scores of `rows` queries from `first` on against the first `n` keys, where `n` is what the
    /// last of these queries sees; minus infinity where a query may not look. Returns `n`.
    fn scores(
        &self,
        batch: usize,
        query_head: usize,
        kv_head: usize,
        first: usize,
        rows: usize,
        scores: &mut Vec<f32>,
    ) -> usize {
        let Plan { queries, keys, dim, scale, .. } = *self.plan;
        let n = self.plan.sight(batch, first + rows - 1);
        scores.resize(rows * n, 0.0);
        if n == 0 {
            return 0;
        }
        let (q, k) = (head(&self.q, batch, query_head, first), head(&self.k, batch, kv_head, 0));
        multiply([rows, dim, n], scale, q, k.t(), scores, n, false, Threads::One);
        for (i, row) in scores.chunks_exact_mut(n).enumerate() {
            if let Some(bias) = &self.bias {
                add(row, &bias[(query_head * queries + first + i) * keys..][..n]);
            }
            if let Some(mask) = &self.plan.mask {
                add(row, &mask[batch * keys..][..n]);
            }
            row[self.plan.sight(batch, first + i).min(n)..].fill(f32::NEG_INFINITY);
        }
        n
    }

    fn backward(&self, out: &[f32], log_totals: &[f32], grad: &[f32]) -> Gradients {
        let Plan { batch, heads, kv_heads, queries, keys, dim, .. } = *self.plan;
        let group = heads / kv_heads;
        let mut dq = vec![0f32; batch * heads * queries * dim];
        let mut dk = vec![0f32; batch * kv_heads * keys * dim];
        let mut dv = vec![0f32; batch * kv_heads * keys * dim];
        let mut dsink = vec![0f32; batch * heads];
        if out.is_empty() || keys == 0 {
            let bias = vec![0f32; heads * queries * keys];
            return Gradients { q: dq, k: dk, v: dv, bias, sink: vec![0f32; heads] };
        }

        // Sequences whose gradients go into the same sum for the bias share a task. How they are
        // grouped depends on the sizes alone, so that the sums do not depend on the threads.
        let segments = if self.bias.is_some() { batch.min(TASKS.div_ceil(kv_heads)) } else { batch };
        let mut tasks: Vec<Vec<Share>> = (0..segments * kv_heads).map(|_| vec![]).collect();
        let shares = dq.chunks_mut(group * queries * dim).zip(dk.chunks_mut(keys * dim));
        let shares = shares.zip(dv.chunks_mut(keys * dim).zip(dsink.chunks_mut(group)));
        for (i, ((q, k), (v, sink))) in shares.enumerate() {
            let (batch_item, kv_head) = (i / kv_heads, i % kv_heads);
            let segment = batch_item * segments / batch;
            tasks[segment * kv_heads + kv_head].push(Share { batch: batch_item, kv_head, q, k, v, sink });
        }
        let plane = if self.bias.is_some() { queries * keys } else { 0 };
        let mut dbias = vec![0f32; segments * heads * plane];
        let mut rest = &mut dbias[..];
        let mut work = Vec::with_capacity(tasks.len());
        for shares in tasks {
            let (dbias, others) = std::mem::take(&mut rest).split_at_mut(group * plane);
            rest = others;
            work.push((shares, dbias));
        }
        work.into_par_iter().for_each_init(
            || (vec![], vec![]),
            |(p, dp), (shares, dbias)| {
                for share in shares {
                    self.backward_share(share, out, log_totals, grad, dbias, p, dp);
                }
            },
        );

        let (total, others) = dbias.split_at_mut(heads * plane);
        if plane > 0 {
            others.chunks(heads * plane).for_each(|segment| add(total, segment));
        }
        dbias.truncate(heads * plane);
        let mut sink = vec![0f32; heads];
        dsink.chunks(heads).for_each(|one| add(&mut sink, one));
        Gradients { q: dq, k: dk, v: dv, bias: dbias, sink }
    }

    fn backward_share(
        &self,
        share: Share,
        out: &[f32],
        log_totals: &[f32],
        grad: &[f32],
        dbias: &mut [f32],
        p: &mut Vec<f32>,
        dp: &mut Vec<f32>,
    ) {
        let Plan { heads, kv_heads, queries, keys, dim, scale, .. } = *self.plan;
        let group = heads / kv_heads;
        let Share { batch, kv_head, .. } = share;
        let (k, v) = (head(&self.k, batch, kv_head, 0), head(&self.v, batch, kv_head, 0));
        for member in 0..group {
            let query_head = kv_head * group + member;
            for first in (0..queries).step_by(BLOCK) {
                let rows = BLOCK.min(queries - first);
                let n = self.scores(batch, query_head, kv_head, first, rows, p);
                if n == 0 {
                    continue;
                }
                let at = (batch * heads + query_head) * queries + first;
                let (grad, out) = (&grad[at * dim..][..rows * dim], &out[at * dim..][..rows * dim]);
                let grad_rows = Matrix::rows(grad, dim);
                dp.resize(rows * n, 0.0);
                multiply([rows, dim, n], 1.0, grad_rows, v.t(), dp, n, false, Threads::One);
                for i in 0..rows {
                    let log_total = log_totals[at + i];
                    let along = dot(&grad[i * dim..][..dim], &out[i * dim..][..dim]);
                    score_gradients(&mut p[i * n..][..n], &mut dp[i * n..][..n], log_total, along);
                    if let Some(sink) = &self.sink {
                        share.sink[member] -= exp(sink[query_head] - log_total) * along;
                    }
                    if self.bias.is_some() {
                        add(&mut dbias[(member * queries + first + i) * keys..][..n], &dp[i * n..][..n]);
                    }
                }
                let (p, ds) = (Matrix::rows(p, n), Matrix::rows(dp, n));
                let q = head(&self.q, batch, query_head, first);
                let dq = &mut share.q[(member * queries + first) * dim..];
                multiply([n, rows, dim], 1.0, p.t(), grad_rows, share.v, dim, true, Threads::One);
                multiply([n, rows, dim], scale, ds.t(), q, share.k, dim, true, Threads::One);
                multiply([rows, n, dim], scale, ds, k, dq, dim, false, Threads::One);
            }
        }
    }
}

vectorised! {
    /// Turns a row of scores into exponentials, shifted so that they are in range. Returns what makes
    /// their sum (with the sink's) one, and the logarithm of the sum of the unshifted ones. A row with
    /// nothing to see becomes zero, and the logarithm infinity, so that it is zero in backward too.
    fn exponentials(scores: &mut [f32], sink: f32) -> (f32, f32) {
        let highest = max(scores);
        let highest = if sink > highest { sink } else { highest };
        if highest == f32::NEG_INFINITY && !scores.iter().any(|score| score.is_nan()) {
            scores.fill(0.0);
            return (0.0, f32::INFINITY);
        }
        for score in scores.iter_mut() {
            *score = exp(*score - highest);
        }
        let total = sum(scores.len(), |i| scores[i]) + exp(sink - highest);
        (1.0 / total, highest + total.ln())
    }

    /// Turns a row of scores into probabilities `p`, and their gradients into those of the scores,
    /// `p * (dp - p . dp)`; the dot product is that of the output and its gradient.
    fn score_gradients(scores: &mut [f32], dp: &mut [f32], log_total: f32, along: f32) {
        for (score, dp) in scores.iter_mut().zip(dp) {
            let p = exp(*score - log_total);
            *score = p;
            *dp = p * (*dp - along);
        }
    }

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let b = &b[..a.len()];
        sum(a.len(), |i| a[i] * b[i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use candle_core::Device;

    /// Batch, heads, key heads, queries, keys, dim.
    const SHAPES: [[usize; 6]; 6] = [
        [1, 1, 1, 1, 1, 1],
        [2, 4, 2, 3, 5, 3],
        [2, 2, 1, 5, 2, 4],
        [3, 2, 2, 1, 7, 8],
        [2, 4, 4, 67, 67, 16],
        [2, 6, 3, 33, 130, 20],
    ];

    fn check_shape([batch, heads, kv_heads, queries, keys, dim]: [usize; 6]) {
        let inputs = [
            random(&[batch, heads, queries, dim], 1),
            random(&[batch, kv_heads, keys, dim], 2),
            random(&[batch, kv_heads, keys, dim], 3),
            random(&[heads, queries, keys], 4),
            random(&[heads], 5),
        ];
        // The first sequence may attend to nothing.
        let mask: Vec<u8> = (0..batch * keys).map(|i| u8::from(i >= keys && i % 3 != 1)).collect();
        let mask = Tensor::from_vec(mask, (batch, keys), &Device::Cpu).unwrap();
        for variant in 0..16 {
            let [causal, biased, masked, sunk] = [1, 2, 4, 8].map(|bit| variant & bit != 0);
            // The bias is the fourth input if there is one, the sink the last.
            let mut inputs = inputs.to_vec();
            if !sunk {
                inputs.pop();
            }
            if !biased {
                inputs.remove(3);
            }
            let op = |t: &[Tensor]| {
                let options = AttentionOptions {
                    causal,
                    scale: 0.7,
                    bias: biased.then(|| &t[3]),
                    key_mask: masked.then_some(&mask),
                    sink: if sunk { t.last() } else { None },
                };
                attention(&t[0], &t[1], &t[2], &options)
            };
            if queries * keys < 20 {
                assert_gradients_are_slopes(&inputs, op);
            }
            assert_matches_f64(&inputs, 1e-5, op);
            assert_same_on_any_number_of_threads(&inputs, op);
        }
    }

    #[test]
    fn attention_is_right() {
        SHAPES.into_iter().for_each(check_shape);
    }
}
