//! Forward and backward in `f32` on the CPU, a block of queries at a time.

use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::plan::Plan;
use crate::autograd::View;
use crate::matrix::{Matrix, Threads, multiply};
use crate::parallel::Shared;
use crate::simd::{add, exp, max, sum, vectorised};
use crate::team::for_tasks;

/// How many queries are worked on at a time.
const BLOCK: usize = 64;

/// About how many products of a query and a key one task makes at least, where there is one query a sequence.
const GRAIN: usize = 1 << 14;

/// How many tasks there should be at least where sequences share one.
const TASKS: usize = 16;

/// What forward and backward work on.
pub struct Arguments {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub bias: Option<Tensor>,
    pub sink: Option<Tensor>,
    pub plan: Plan,
}

impl Arguments {
    pub fn operands(&self) -> Result<Operands<'_>> {
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

pub struct Operands<'a> {
    plan: &'a Plan,
    q: View<'a>,
    k: View<'a>,
    v: View<'a>,
    bias: Option<View<'a>>,
    sink: Option<View<'a>>,
}

/// Gradients in the order of the elements of what they belong to.
pub struct Gradients {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub bias: Vec<f32>,
    pub sink: Vec<f32>,
}

/// The part of the gradients that one task fills: those of one sequence and one key head with the
/// query heads that read it.
struct Share<'a> {
    batch: usize,
    kv_head: usize,
    /// One for each query head.
    q: Vec<&'a mut [f32]>,
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
    pub fn forward(&self, out: &mut [f32], log_totals: &mut [f32]) {
        let Plan { heads, kv_heads, tokens, chunks, shift, queries, keys, dim, .. } = *self.plan;
        if out.is_empty() || keys == 0 {
            return;
        }
        if tokens == 1 && chunks == 1 {
            return self.forward_single(out, log_totals);
        }
        let sequences = out.par_chunks_mut(tokens * dim).zip(log_totals.par_chunks_mut(tokens));
        sequences.enumerate().for_each(|(i, (out, log_totals))| {
            let (sequence, head) = (i / heads, i % heads);
            let out = out[shift * dim..].par_chunks_mut(queries * dim);
            let parts = out.zip(log_totals[shift..].par_chunks_mut(queries)).take(chunks);
            parts.enumerate().for_each(|(chunk, (out, log_totals))| {
                let blocks = out.par_chunks_mut(BLOCK * dim).zip(log_totals.par_chunks_mut(BLOCK));
                blocks.enumerate().for_each_init(Vec::new, |scores, (block, (out, log_totals))| {
                    let kv_head = head / (heads / kv_heads);
                    let batch = sequence * chunks + chunk;
                    self.forward_block(batch, head, kv_head, block * BLOCK, scores, out, log_totals);
                });
            });
        });
    }

    /// The same for one query a sequence, as generation has them: a task takes the query heads that share a key
    /// head.
    fn forward_single(&self, out: &mut [f32], log_totals: &mut [f32]) {
        let Plan { batch, heads, kv_heads, keys, dim, .. } = *self.plan;
        let group = heads / kv_heads;
        let (out, log_totals) = (Shared::new(out), Shared::new(log_totals));
        let some = (GRAIN / (group * keys * dim).max(1)).clamp(1, batch * kv_heads);
        for_tasks((batch * kv_heads).div_ceil(some), |task| {
            let mut scores = Vec::new();
            for i in task * some..(batch * kv_heads).min((task + 1) * some) {
                let (batch, kv_head) = (i / kv_heads, i % kv_heads);
                for head in kv_head * group..(kv_head + 1) * group {
                    let at = batch * heads + head;
                    // SAFETY: both buffers live as long as this call, and no two tasks have a head in common.
                    let (out, log_total) = unsafe { (out.part(at * dim, dim), log_totals.part(at, 1)) };
                    self.forward_block(batch, head, kv_head, 0, &mut scores, out, log_total);
                }
            }
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
        let span = self.plan.span(batch, first, rows);
        let (begin, n) = (span.start, span.len());
        if n == 0 {
            log_totals.fill(f32::INFINITY);
            return;
        }
        self.scores(batch, query_head, kv_head, first, rows, span, scores);
        let sink = self.sink.as_ref().map_or(f32::NEG_INFINITY, |sink| sink[query_head]);
        let mut inverses = [0f32; BLOCK];
        for (i, row) in scores.chunks_exact_mut(n).enumerate() {
            (inverses[i], log_totals[i]) = exponentials(row, sink);
        }
        match self.rows(&self.v, batch, kv_head).filter(|_| rows == 1) {
            Some((v, stride)) => mix(scores, &v[begin * stride..], stride, out),
            None => {
                let v = head(&self.v, batch, kv_head, begin);
                multiply([rows, n, dim], 1.0, Matrix::rows(scores, n), v, out, dim, false, Threads::One);
            }
        }
        for (row, inverse) in out.chunks_exact_mut(dim).zip(inverses) {
            row.iter_mut().for_each(|x| *x *= inverse);
        }
    }

    /// The scores of `rows` queries from `first` on against the keys of `span`, which is not empty; minus
    /// infinity where a query may not look.
    fn scores(
        &self,
        batch: usize,
        query_head: usize,
        kv_head: usize,
        first: usize,
        rows: usize,
        span: Range<usize>,
        scores: &mut Vec<f32>,
    ) {
        let Plan { chunks, queries, keys, dim, scale, .. } = *self.plan;
        let (begin, n) = (span.start, span.len());
        scores.resize(rows * n, 0.0);
        let token = self.plan.own(batch).0 + first;
        let (q, k) = (head(&self.q, batch / chunks, query_head, token), head(&self.k, batch, kv_head, begin));
        match (self.rows(&self.q, batch / chunks, query_head), self.rows(&self.k, batch, kv_head)) {
            (Some((q, down)), Some((k, stride))) if rows == 1 && dim > 0 => {
                dots(&q[token * down..][..dim], &k[begin * stride..], stride, scale, scores);
            }
            _ => multiply([rows, dim, n], scale, q, k.t(), scores, n, false, Threads::One),
        }
        for (i, row) in scores.chunks_exact_mut(n).enumerate() {
            let query = first + i;
            if let Some(bias) = &self.bias {
                add(row, &bias[(query_head * queries + query) * keys + begin..][..n]);
            }
            if let Some(mask) = &self.plan.mask {
                add(row, &mask[batch * keys + begin..][..n]);
            }
            row[self.plan.sight(batch, query).saturating_sub(begin).min(n)..].fill(f32::NEG_INFINITY);
            row[..self.plan.begin(batch, query).saturating_sub(begin).min(n)].fill(f32::NEG_INFINITY);
        }
    }

    /// One head's rows, and how far apart they begin, if the elements of each lie side by side.
    fn rows<'a>(&self, tensor: &'a View, batch: usize, head: usize) -> Option<(&'a [f32], usize)> {
        let stride = tensor.stride();
        (stride[3] == 1).then(|| (&tensor[batch * stride[0] + head * stride[1]..], stride[2]))
    }

    pub fn backward(&self, out: &[f32], log_totals: &[f32], grad: &[f32]) -> Gradients {
        let Plan { batch, heads, kv_heads, tokens, chunks, shift, queries, keys, dim, .. } = *self.plan;
        let group = heads / kv_heads;
        let mut dq = vec![0f32; grad.len()];
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
        let mut own: Vec<Vec<&mut [f32]>> = (0..batch * kv_heads).map(|_| vec![]).collect();
        for (i, dq) in dq.chunks_mut(tokens * dim).enumerate() {
            let (sequence, kv_head) = (i / heads, i % heads / group);
            for (chunk, dq) in dq[shift * dim..].chunks_mut(queries * dim).take(chunks).enumerate() {
                own[(sequence * chunks + chunk) * kv_heads + kv_head].push(dq);
            }
        }
        let shares = own.into_iter().zip(dk.chunks_mut(keys * dim));
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
        mut share: Share,
        out: &[f32],
        log_totals: &[f32],
        grad: &[f32],
        dbias: &mut [f32],
        p: &mut Vec<f32>,
        dp: &mut Vec<f32>,
    ) {
        let Plan { heads, kv_heads, tokens, chunks, queries, keys, dim, scale, .. } = *self.plan;
        let group = heads / kv_heads;
        let Share { batch, kv_head, .. } = share;
        let (own, of_own) = self.plan.own(batch);
        for member in 0..group {
            let query_head = kv_head * group + member;
            for first in (0..of_own).step_by(BLOCK) {
                let rows = BLOCK.min(of_own - first);
                let span = self.plan.span(batch, first, rows);
                let (begin, n) = (span.start, span.len());
                if n == 0 {
                    continue;
                }
                self.scores(batch, query_head, kv_head, first, rows, span, p);
                let (k, v) = (head(&self.k, batch, kv_head, begin), head(&self.v, batch, kv_head, begin));
                let at = (batch / chunks * heads + query_head) * tokens + own + first;
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
                        let at = (member * queries + first + i) * keys + begin;
                        add(&mut dbias[at..][..n], &dp[i * n..][..n]);
                    }
                }
                let (p, ds) = (Matrix::rows(p, n), Matrix::rows(dp, n));
                let q = head(&self.q, batch / chunks, query_head, own + first);
                let dq = &mut share.q[member][first * dim..];
                let (dk, dv) = (&mut share.k[begin * dim..], &mut share.v[begin * dim..]);
                multiply([n, rows, dim], 1.0, p.t(), grad_rows, dv, dim, true, Threads::One);
                multiply([n, rows, dim], scale, ds.t(), q, dk, dim, true, Threads::One);
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

    /// The scores of a single query, as generation has them, where packing operands would not pay.
    fn dots(q: &[f32], k: &[f32], stride: usize, scale: f32, scores: &mut [f32]) {
        for (i, score) in scores.iter_mut().enumerate() {
            let k = &k[i * stride..][..q.len()];
            *score = scale * sum(q.len(), |i| q[i] * k[i]);
        }
    }

    /// The sum of values by their weights, for a single query.
    fn mix(weights: &[f32], v: &[f32], stride: usize, out: &mut [f32]) {
        out.fill(0.0);
        let n = out.len();
        // Four at a time, so that the sums are read and written a quarter as often.
        let (fours, rest) = weights.as_chunks::<4>();
        for (i, weights) in fours.iter().enumerate() {
            let v = |j: usize| &v[(4 * i + j) * stride..][..n];
            let (a, b, c, d) = (v(0), v(1), v(2), v(3));
            for l in 0..n {
                out[l] += (weights[0] * a[l] + weights[1] * b[l]) + (weights[2] * c[l] + weights[3] * d[l]);
            }
        }
        for (i, weight) in (4 * fours.len()..).zip(rest) {
            for (out, v) in out.iter_mut().zip(&v[i * stride..][..n]) {
                *out += weight * v;
            }
        }
    }

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let b = &b[..a.len()];
        sum(a.len(), |i| a[i] * b[i])
    }
}
