//! The output layer and its loss in one operation.

use std::sync::Mutex;

use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use crate::autograd::{View, fusible, lock, on_gpu, record};
use crate::backward::gradient;
use crate::composed;
use crate::matrix::{Matrix, Precision, Threads, multiply};
use crate::parallel::for_pieces;
use crate::simd::{add, exp, max, sum, vectorised};

/// How many logits are held at a time where gradients are needed: 64 MiB.
const TILE: usize = 16 << 20;

/// How many rows go into a tile at most.
const ROWS: usize = 512;

/// How many columns of logits are worked on while they are in the processor's cache.
const COLUMNS: usize = 1024;

/// How many parts the vocabulary is cut into, at most: the tasks of a tile.
const PARTS: usize = 16;

/// What [`linear_cross_entropy`] adds to the plain loss.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropyOptions {
    /// Rows with this target count for nothing.
    pub ignore: Option<u32>,
    /// How much of the target is spread evenly over the whole vocabulary, 0 to 1 (Szegedy et al. 2016,
    /// <https://arxiv.org/abs/1512.00567>, section 7).
    pub label_smoothing: f32,
    /// Adds this times the square of the logarithm of the softmax's denominator, which keeps logits from
    /// drifting (Chowdhery et al. 2022, <https://arxiv.org/abs/2204.02311>, section 5).
    pub z_loss: f32,
}

impl CrossEntropyOptions {
    /// The plain loss over the rows whose target is not `target`.
    pub fn ignoring(target: u32) -> Self {
        Self { ignore: Some(target), ..Self::default() }
    }
}

/// The sum of `-log softmax(hidden weight^T)[target]` over the rows whose target counts.
///
/// `hidden` is `[tokens, dim]`, `weight` is `[vocabulary, dim]`, `targets` is `[tokens]` as `u32`;
/// the result is a scalar (in nats). `hidden` and `weight` get gradients.
///
/// The fused kernel never holds the logits of all tokens: it goes through them in tiles and, where
/// gradients will be needed, computes these at once while a tile's logits are at hand (as in Liger
/// Kernel, <https://arxiv.org/abs/2410.10989>, section 3.2).
///
/// # Errors
/// When the shapes do not fit together, a target that counts lies outside the vocabulary, or an option is
/// out of its range.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    options: &CrossEntropyOptions,
) -> Result<Tensor> {
    let (tokens, dim) = hidden.dims2()?;
    let (vocabulary, weight_dim) = weight.dims2()?;
    if weight_dim != dim || targets.dims() != [tokens] || targets.dtype() != DType::U32 {
        bail!(
            "linear_cross_entropy: hidden {:?}, weight {:?} and targets {:?} ({:?}) do not fit together; \
             expected [tokens, dim], [vocabulary, dim] and [tokens] as u32",
            hidden.dims(),
            weight.dims(),
            targets.dims(),
            targets.dtype()
        );
    }
    let CrossEntropyOptions { ignore, label_smoothing, z_loss } = *options;
    if !(0.0..=1.0).contains(&label_smoothing) || !z_loss.is_finite() {
        bail!(
            "linear_cross_entropy: label_smoothing {label_smoothing} and z_loss {z_loss}; expected 0 to 1, and \
             a finite number"
        );
    }
    on_gpu!(crate::gpu::takes(&[hidden, weight])
        => crate::gpu::linear_cross_entropy(hidden, weight, targets.to_vec1()?, *options));
    if !fusible(&[hidden, weight]) {
        return composed::linear_cross_entropy(hidden, weight, targets, options);
    }
    let targets = targets.to_vec1::<u32>()?;
    let kept = |target: u32| Some(target) != ignore;
    if let Some(row) = targets.iter().position(|&t| kept(t) && t as usize >= vocabulary) {
        bail!(
            "linear_cross_entropy: target {} of row {row} is outside the vocabulary of {vocabulary}",
            targets[row]
        );
    }

    let (hidden, weight) = (hidden.contiguous()?, weight.contiguous()?);
    let (hidden_in, weight_in, options) = (hidden.clone(), weight.clone(), *options);
    sum_of_losses([&hidden, &weight], move || run(&hidden_in, &weight_in, &targets, &options))
}

/// Puts a loss into the graph that `run` computes with the gradients of its inputs, contiguous tensors; those of an input that
/// asks for none are `None`. The first backward pass takes the gradients; another has them computed again.
pub(crate) fn sum_of_losses<const N: usize>(
    inputs: [&Tensor; N],
    run: impl Fn() -> Result<(f64, [Option<Vec<f32>>; N])> + Send + Sync + 'static,
) -> Result<Tensor> {
    let (loss, gradients) = run()?;
    let kept = Mutex::new(Some(gradients));
    let owned = inputs.map(Tensor::clone);
    record(&inputs, vec![loss as f32], (), move |_, grad| {
        let factor = grad.to_scalar::<f32>()?;
        let gradients = lock(&kept).take();
        let gradients = match gradients {
            Some(gradients) => gradients,
            None => run()?.1,
        };
        let scaled = |(values, input): (Option<Vec<f32>>, &Tensor)| match values {
            Some(mut values) => {
                if factor != 1.0 {
                    for_pieces(&mut values, 1, |_, values| scale(values, factor, 0.0));
                }
                gradient(values, input)
            }
            None => Ok(None),
        };
        gradients.into_iter().zip(&owned).map(scaled).collect()
    })
}

/// The sum of the losses, and the gradients of `hidden` and `weight`.
fn run(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &[u32],
    options: &CrossEntropyOptions,
) -> Result<(f64, [Option<Vec<f32>>; 2])> {
    let (vocabulary, dim) = weight.dims2()?;
    // Only the rows that count.
    let rows: Vec<usize> = (0..targets.len()).filter(|&row| Some(targets[row]) != options.ignore).collect();
    let zeros = |like: &Tensor| like.track_op().then(|| vec![0f32; like.elem_count()]);
    let (mut dhidden, mut dweight) = (zeros(hidden), zeros(weight));
    let (hidden, weight) = (View::of(hidden)?, View::of(weight)?);
    let problem = Problem { dim, vocabulary, weight: &weight, options, precision: Precision::current() };
    let tile = (TILE / vocabulary.max(1)).clamp(1, ROWS);
    let (mut loss, mut logits) = (0f64, vec![]);
    for rows in rows.chunks(tile) {
        let tile = Tile {
            hidden: rows.iter().flat_map(|&row| &hidden[row * dim..][..dim]).copied().collect(),
            targets: rows.iter().map(|&row| targets[row] as usize).collect(),
        };
        if dhidden.is_none() && dweight.is_none() {
            loss += problem.losses(&tile, None).iter().map(|row| row.loss).sum::<f64>();
            continue;
        }
        logits.resize(rows.len() * vocabulary, 0.0);
        let losses = problem.losses(&tile, Some(&mut logits));
        loss += losses.iter().map(|row| row.loss).sum::<f64>();
        let sums = problem.gradients(&tile, &losses, &mut logits, dweight.as_deref_mut(), dhidden.is_some());
        if let Some(dhidden) = &mut dhidden {
            for (i, &row) in rows.iter().enumerate() {
                dhidden[row * dim..][..dim].copy_from_slice(&sums[i * dim..][..dim]);
            }
        }
    }
    Ok((loss, [dhidden, dweight]))
}

struct Problem<'a> {
    dim: usize,
    vocabulary: usize,
    weight: &'a [f32],
    options: &'a CrossEntropyOptions,
    /// That of the thread that asked.
    precision: Precision,
}

/// The rows that are worked on at a time.
struct Tile {
    /// `[rows, dim]`.
    hidden: Vec<f32>,
    targets: Vec<usize>,
}

/// What a row's logits come to: over some columns, and then over all.
#[derive(Clone, Copy)]
struct Part {
    highest: f32,
    /// Of `exp(logit - highest)`.
    total: f32,
    /// Of the logits.
    sum: f32,
}

/// A row whose logits have all been seen.
struct Row {
    loss: f64,
    /// Logarithm of the softmax's denominator.
    log_total: f32,
    /// The highest logit of each block of columns.
    highest: Vec<f32>,
}

impl Problem<'_> {
    /// Runs `work(first column, columns)` over the blocks of the vocabulary's `part`.
    fn blocks(&self, part: usize) -> impl Iterator<Item = (usize, usize)> {
        let (from, to) = (part * self.part(), ((part + 1) * self.part()).min(self.vocabulary));
        (from..to).step_by(COLUMNS).map(move |column| (column, COLUMNS.min(to - column)))
    }

    /// How many columns a part has, whole blocks.
    fn part(&self) -> usize {
        self.vocabulary.div_ceil(COLUMNS).div_ceil(PARTS).max(1) * COLUMNS
    }

    fn weight(&self, (column, columns): (usize, usize)) -> Matrix<'_> {
        Matrix::rows(&self.weight[column * self.dim..][..columns * self.dim], self.dim)
    }

    /// A product on this thread, whose output has no gaps.
    fn multiply(&self, sizes: [usize; 3], a: Matrix, b: Matrix, out: &mut [f32], accumulate: bool) {
        self.precision.run(|| multiply(sizes, 1.0, a, b, out, sizes[2], accumulate, Threads::One));
    }

    /// The losses of a tile's rows. Leaves in `kept` the exponentials of the logits less the highest of
    /// their block: block by block, `[rows, columns]` each.
    fn losses(&self, tile: &Tile, kept: Option<&mut [f32]>) -> Vec<Row> {
        let rows = tile.targets.len();
        let hidden = Matrix::rows(&tile.hidden, self.dim);
        let work = |part: usize, mut kept: Option<&mut [f32]>| {
            let mut scratch = vec![];
            let mut parts = vec![];
            // Where a target lies in this part, its logit.
            let mut targets = vec![None; rows];
            for block in self.blocks(part) {
                let (column, columns) = block;
                let logits = match kept.take() {
                    Some(slice) => {
                        let (logits, rest) = slice.split_at_mut(rows * columns);
                        kept = Some(rest);
                        logits
                    }
                    None => {
                        scratch.resize(rows * columns, 0.0);
                        &mut scratch[..rows * columns]
                    }
                };
                let sizes = [rows, self.dim, columns];
                self.multiply(sizes, hidden, self.weight(block).t(), logits, false);
                for (row, logits) in logits.chunks_exact_mut(columns).enumerate() {
                    if let Some(at) = tile.targets[row].checked_sub(column).filter(|&at| at < columns) {
                        targets[row] = Some(logits[at]);
                    }
                    parts.push(exponentials(logits));
                }
            }
            (parts, targets)
        };
        let parts = self.vocabulary.div_ceil(self.part());
        let work: Vec<_> = match kept {
            Some(kept) => {
                let parts = kept.par_chunks_mut(rows * self.part());
                parts.enumerate().map(|(part, kept)| work(part, Some(kept))).collect()
            }
            None => (0..parts).into_par_iter().map(|part| work(part, None)).collect(),
        };
        let row = |row: usize| {
            let of_blocks = work.iter().flat_map(|(parts, _)| parts[row..].iter().step_by(rows));
            let at_target = work.iter().find_map(|(_, targets)| targets[row]).unwrap_or(f32::NAN);
            self.row(of_blocks.copied().collect(), at_target)
        };
        (0..rows).map(row).collect()
    }

    fn row(&self, parts: Vec<Part>, at_target: f32) -> Row {
        let highest = parts.iter().map(|part| part.highest).fold(f32::NEG_INFINITY, f32::max);
        let total: f64 =
            parts.iter().map(|part| f64::from(part.total) * f64::from(part.highest - highest).exp()).sum();
        let log_total = f64::from(highest) + total.ln();
        let CrossEntropyOptions { label_smoothing, z_loss, .. } = *self.options;
        let mut loss = log_total - f64::from(at_target);
        if label_smoothing != 0.0 {
            let mean = parts.iter().map(|part| f64::from(part.sum)).sum::<f64>() / self.vocabulary as f64;
            loss += f64::from(label_smoothing) * (f64::from(at_target) - mean);
        }
        loss += f64::from(z_loss) * log_total * log_total;
        Row { loss, log_total: log_total as f32, highest: parts.iter().map(|part| part.highest).collect() }
    }

    /// Adds a tile's share to `dweight` and returns the gradient of its rows of hidden states, `[rows, dim]`
    /// (if `wanted`). `kept` is what [`Self::losses`] left.
    fn gradients(
        &self,
        tile: &Tile,
        losses: &[Row],
        kept: &mut [f32],
        dweight: Option<&mut [f32]>,
        wanted: bool,
    ) -> Vec<f32> {
        let (rows, dim) = (tile.targets.len(), self.dim);
        let hidden = Matrix::rows(&tile.hidden, dim);
        let work = |part: usize, mut kept: &mut [f32], mut dweight: Option<&mut [f32]>| {
            let mut dhidden = vec![0f32; if wanted { rows * dim } else { 0 }];
            for (i, block) in self.blocks(part).enumerate() {
                let (column, columns) = block;
                let (dlogits, rest) = std::mem::take(&mut kept).split_at_mut(rows * columns);
                kept = rest;
                let number = part * (self.part() / COLUMNS) + i;
                for (row, dlogits) in dlogits.chunks_exact_mut(columns).enumerate() {
                    self.score_gradients(
                        &losses[row],
                        number,
                        tile.targets[row].wrapping_sub(column),
                        dlogits,
                    );
                }
                if let Some(slice) = dweight.take() {
                    let (block, rest) = slice.split_at_mut(columns * dim);
                    dweight = Some(rest);
                    let dlogits = Matrix::rows(dlogits, columns).t();
                    self.multiply([columns, rows, dim], dlogits, hidden, block, true);
                }
                if wanted {
                    let dlogits = Matrix::rows(dlogits, columns);
                    let sizes = [rows, columns, dim];
                    self.multiply(sizes, dlogits, self.weight(block), &mut dhidden, true);
                }
            }
            dhidden
        };
        let kept = kept.par_chunks_mut(rows * self.part()).enumerate();
        let dhidden: Vec<Vec<f32>> = match dweight {
            Some(dweight) if dim > 0 => kept
                .zip(dweight.par_chunks_mut(self.part() * dim))
                .map(|((part, kept), dweight)| work(part, kept, Some(dweight)))
                .collect(),
            _ => kept.map(|(part, kept)| work(part, kept, None)).collect(),
        };
        dhidden.into_iter().reduce(|mut total, part| (add(&mut total, &part), total).1).unwrap_or_default()
    }

    /// Turns what [`Self::losses`] left of one row and block into the gradient of the logits. The
    /// target, counted from the block's first column, may lie elsewhere.
    fn score_gradients(&self, row: &Row, block: usize, target: usize, kept: &mut [f32]) {
        let CrossEntropyOptions { label_smoothing, z_loss, .. } = *self.options;
        let factor = (row.highest[block] - row.log_total).exp() * (1.0 + 2.0 * z_loss * row.log_total);
        scale(kept, factor, label_smoothing / self.vocabulary as f32);
        if let Some(kept) = kept.get_mut(target) {
            *kept -= 1.0 - label_smoothing;
        }
    }
}

vectorised! {
    /// The logarithm of the sum of the exponentials of `logits`; minus infinity of none.
    pub fn log_sum_exp(logits: &[f32]) -> f32 {
        let highest = max(logits);
        if highest == f32::NEG_INFINITY {
            return highest;
        }
        highest + sum(logits.len(), |i| exp(logits[i] - highest)).ln()
    }

    /// Turns logits into exponentials, less the highest among them.
    fn exponentials(logits: &mut [f32]) -> Part {
        let highest = max(logits);
        let all = sum(logits.len(), |i| logits[i]);
        for logit in logits.iter_mut() {
            *logit = exp(*logit - highest);
        }
        Part { highest, total: sum(logits.len(), |i| logits[i]), sum: all }
    }

    /// `x * factor - less`.
    pub(crate) fn scale(x: &mut [f32], factor: f32, less: f32) {
        for x in x {
            *x = *x * factor - less;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use candle_core::Device;

    fn targets(tokens: usize, vocabulary: usize) -> Tensor {
        let targets: Vec<u32> =
            (0..tokens).map(|i| if i % 5 == 3 { 1_000_000 } else { (i * 7 % vocabulary) as u32 }).collect();
        Tensor::new(targets, &Device::Cpu).unwrap()
    }

    #[test]
    fn linear_cross_entropy_is_right() {
        // The last vocabulary has several parts, and blocks that are cut off; the last rows, two tiles.
        for (tokens, dim, vocabulary) in
            [(1, 1, 1), (5, 3, 7), (131, 33, 259), (9, 5, 40_000), (1031, 2, 1025)]
        {
            for (label_smoothing, z_loss) in [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (1.0, 1e-3)] {
                let options = CrossEntropyOptions { ignore: Some(1_000_000), label_smoothing, z_loss };
                let targets = targets(tokens, vocabulary);
                let op = |t: &[Tensor]| linear_cross_entropy(&t[0], &t[1], &targets, &options);
                let inputs = [(random(&[tokens, dim], 1) * 3.0).unwrap(), random(&[vocabulary, dim], 2)];
                if tokens * vocabulary < 50 {
                    assert_gradients_are_slopes(&inputs, op);
                }
                assert_matches_f64(&inputs, 1e-5, op);
                assert_same_on_any_number_of_threads(&inputs, op);
            }
        }
    }

    #[test]
    fn a_sum_of_exponentials_is_right() {
        for n in [1, 15, 16, 100, 4097] {
            let logits: Vec<f32> = (0..n).map(|i| (i * 37 % 101) as f32 - 60.0).collect();
            let exact = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            assert!((f64::from(log_sum_exp(&logits)) - exact).abs() < 1e-5, "of {n}");
        }
        assert_eq!(log_sum_exp(&[]), f32::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 3]), f32::NEG_INFINITY);
    }

    /// Fails when the threads that work on a loss do not take its precision along. Eighths are exact in `bf16`, and a ten
    /// thousandth more is rounded away.
    #[test]
    fn threads_multiply_in_the_precision_of_the_loss() {
        let eighths = |rows: usize, seed: usize| -> Tensor {
            let values = (0..rows * 64).map(|i| ((i * 7919 + seed) % 33) as f32 / 8.0 - 2.0).collect();
            Tensor::from_vec(values, (rows, 64), &Device::Cpu).unwrap()
        };
        let (hidden, weight) = (eighths(64, 1), eighths(1100, 2));
        let more = (&weight * 1.0001).unwrap();
        let targets = targets(64, 1100);
        let loss = |weight: &Tensor, precision: Precision| {
            let options = CrossEntropyOptions::ignoring(1_000_000);
            let loss = || linear_cross_entropy(&hidden, weight, &targets, &options);
            precision.run(loss).unwrap().to_scalar::<f32>().unwrap()
        };
        let exact = loss(&weight, Precision::F32);
        assert_eq!(loss(&more, Precision::Bf16), exact);
        assert_ne!(loss(&more, Precision::F32), exact);
    }

    #[test]
    fn a_second_backward_pass_gives_the_same() {
        let vars =
            [random(&[37, 9], 1), random(&[50, 9], 2)].map(|x| candle_core::Var::from_tensor(&x).unwrap());
        let targets = targets(37, 50);
        let options = CrossEntropyOptions::ignoring(1_000_000);
        let loss = linear_cross_entropy(&vars[0], &vars[1], &targets, &options).unwrap();
        let (one, two) = (loss.backward().unwrap(), (loss * 2.0).unwrap().backward().unwrap());
        for var in &vars {
            let twice = (one.get(var).unwrap() * 2.0).unwrap();
            assert_eq!(distance(&twice, two.get(var).unwrap()), 0.0);
        }
    }
}
