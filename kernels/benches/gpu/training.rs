//! A whole step of training a decoder (rotary positions, RMS norms, SwiGLU) in bf16 with AdamW: forward, backward, clipping
//! and the update, of 2,048 tokens.

use candle_core::Result;
use half::bf16;
use sidenote_kernels::cuda::{self, AdamW, Attention, Device, Masks, Tensor, Variable};
use sidenote_kernels::{Activation, AdamWOptions, CrossEntropyOptions};

use super::{Timed, ids, random, time};

const BATCH: usize = 4;
const TOKENS: usize = 512;
const VOCABULARY: usize = 32_000;
const DIM: usize = 64;
const EPS: f32 = 1e-5;

/// Places of a layer's weights among its seven.
const NORM_1: usize = 0;
const QKV: usize = 1;
const OUT: usize = 2;
const NORM_2: usize = 3;
const GATE: usize = 4;
const UP: usize = 5;
const DOWN: usize = 6;
const EACH: usize = 7;

struct Decoder<'a> {
    device: &'a Device,
    width: usize,
    layers: usize,
    /// Those of the layers, then the table, the last norm and the output layer.
    variables: Vec<(Variable<bf16>, AdamW)>,
    angles: (Tensor<f32>, Tensor<f32>),
}

/// What backward needs of a layer.
struct Kept {
    x: Tensor<bf16>,
    normed: Tensor<bf16>,
    q: Tensor<bf16>,
    k: Tensor<bf16>,
    v: Tensor<bf16>,
    attention: Attention<bf16>,
    merged: Tensor<bf16>,
    middle: Tensor<bf16>,
    middle_normed: Tensor<bf16>,
    gate: Tensor<bf16>,
    up: Tensor<bf16>,
    gated: Tensor<bf16>,
}

/// Of the feed-forward layers: 8/3 of the width, in 64s.
fn inner(width: usize) -> usize {
    (width * 8 / 3).next_multiple_of(64)
}

impl<'a> Decoder<'a> {
    fn new(device: &'a Device, width: usize, layers: usize) -> Result<Self> {
        let inner = inner(width);
        let mut shapes = vec![];
        for _ in 0..layers {
            let layer: [&[usize]; EACH] = [
                &[width],
                &[3 * width, width],
                &[width, width],
                &[width],
                &[inner, width],
                &[inner, width],
                &[width, inner],
            ];
            shapes.extend(layer.map(<[usize]>::to_vec));
        }
        shapes.extend([vec![VOCABULARY, width], vec![width], vec![VOCABULARY, width]]);
        let variables = shapes
            .iter()
            .map(|shape| {
                let weight = random(device, shape, 0.04)?;
                let numbers: Vec<f32> = device.download(&weight)?.iter().map(|x| x.to_f32()).collect();
                let master = Some(device.upload(&numbers, shape)?);
                Ok((Variable { weight, master }, AdamW::new(device, shape)?))
            })
            .collect::<Result<_>>()?;
        let angle = |t: usize, c: usize| t as f32 * 10_000f32.powf(-(c as f32) / (DIM / 2) as f32);
        let angles: Vec<f32> = (0..TOKENS * DIM / 2).map(|i| angle(i / (DIM / 2), i % (DIM / 2))).collect();
        let table = |f: fn(f32) -> f32| {
            device.upload(&angles.iter().map(|&x| f(x)).collect::<Vec<_>>(), &[TOKENS, DIM / 2])
        };
        Ok(Self { device, width, layers, variables, angles: (table(f32::cos)?, table(f32::sin)?) })
    }

    fn weight(&self, layer: usize, place: usize) -> &Tensor<bf16> {
        &self.variables[layer * EACH + place].0.weight
    }

    fn norm(&self, x: &Tensor<bf16>, weight: &Tensor<bf16>) -> Result<Tensor<bf16>> {
        Ok(cuda::rms_norm(self.device, x, None, weight, EPS)?.out)
    }

    fn layer(&self, layer: usize, x: Tensor<bf16>) -> Result<(Tensor<bf16>, Kept)> {
        let (device, (cos, sin)) = (self.device, &self.angles);
        let heads = [BATCH, self.width / DIM, TOKENS, DIM];
        let weight = |place| self.weight(layer, place);
        let normed = self.norm(&x, weight(NORM_1))?;
        let qkv = cuda::linear(device, &normed, weight(QKV), None)?;
        let part = |n: usize| cuda::split_heads(device, &qkv, n * self.width, heads);
        let q = cuda::rotary(device, &part(0)?, cos, sin, false)?;
        let k = cuda::rotary(device, &part(1)?, cos, sin, false)?;
        let v = part(2)?;
        let masks = Masks { causal: true, ..Masks::default() };
        let attention = cuda::attention(device, &q, &k, &v, 0.125, &masks)?;
        let merged = device.zeros(x.dims())?;
        cuda::merge_heads(device, &attention.out, &merged, 0)?;
        let middle = cuda::linear(device, &merged, weight(OUT), Some(&x))?;
        let middle_normed = self.norm(&middle, weight(NORM_2))?;
        let gate = cuda::linear(device, &middle_normed, weight(GATE), None)?;
        let up = cuda::linear(device, &middle_normed, weight(UP), None)?;
        let gated = cuda::gated(device, &gate, Some(&up), Activation::Silu)?;
        let out = cuda::linear(device, &gated, weight(DOWN), Some(&middle))?;
        Ok((out, Kept { x, normed, q, k, v, attention, merged, middle, middle_normed, gate, up, gated }))
    }

    /// The gradient of the layer's input, and of its weights.
    fn layer_back(
        &self,
        layer: usize,
        kept: &Kept,
        grad: &Tensor<bf16>,
    ) -> Result<(Tensor<bf16>, Vec<Tensor<bf16>>)> {
        let (device, (cos, sin)) = (self.device, &self.angles);
        let weight = |place| self.weight(layer, place);
        let Kept { x, normed, q, k, v, attention, merged, middle, middle_normed, gate, up, gated } = kept;
        let (dgated, ddown) = cuda::linear_backward(device, gated, weight(DOWN), grad, None)?;
        let (dgate, dup_of) = cuda::gated_backward(device, gate, Some(up), &dgated, Activation::Silu)?;
        let dup_of = dup_of.expect("there is an `up`");
        let (dnormed, dgate) = cuda::linear_backward(device, middle_normed, weight(GATE), &dgate, None)?;
        let (dnormed, dup) =
            cuda::linear_backward(device, middle_normed, weight(UP), &dup_of, Some(&dnormed))?;
        let norm_2 = cuda::rms_norm_backward(device, middle, weight(NORM_2), &dnormed, Some(grad), EPS)?;
        let (dmerged, dout) = cuda::linear_backward(device, merged, weight(OUT), &norm_2.x, None)?;
        let dheads = cuda::split_heads(device, &dmerged, 0, [BATCH, self.width / DIM, TOKENS, DIM])?;
        let masks = Masks { causal: true, ..Masks::default() };
        let gradients = cuda::attention_backward(device, q, k, v, 0.125, &masks, attention, &dheads)?;
        let dqkv = device.zeros(&[BATCH * TOKENS, 3 * self.width])?;
        let dq = cuda::rotary(device, &gradients.q, cos, sin, true)?;
        let dk = cuda::rotary(device, &gradients.k, cos, sin, true)?;
        for (n, part) in [&dq, &dk, &gradients.v].into_iter().enumerate() {
            cuda::merge_heads(device, part, &dqkv, n * self.width)?;
        }
        let (dnormed, dqkv) = cuda::linear_backward(device, normed, weight(QKV), &dqkv, None)?;
        let norm_1 = cuda::rms_norm_backward(device, x, weight(NORM_1), &dnormed, Some(&norm_2.x), EPS)?;
        Ok((norm_1.x, vec![norm_1.weight, dqkv, dout, norm_2.weight, dgate, dup, ddown]))
    }

    fn step(&mut self, tokens: &[u32], targets: &[u32]) -> Result<Tensor<f32>> {
        let device = self.device;
        let last = self.layers * EACH;
        let mut x = cuda::embedding(device, &self.variables[last].0.weight, tokens)?;
        let mut kept = vec![];
        for layer in 0..self.layers {
            let (out, of_layer) = self.layer(layer, x)?;
            x = out;
            kept.push(of_layer);
        }
        let (norm, output) = (&self.variables[last + 1].0.weight, &self.variables[last + 2].0.weight);
        let hidden = self.norm(&x, norm)?;
        let options = CrossEntropyOptions::default();
        let loss = cuda::linear_cross_entropy(device, &hidden, output, targets, &options)?;
        let factor = 1.0 / targets.len() as f32;
        let (dhidden, doutput) =
            cuda::linear_cross_entropy_backward(device, &hidden, output, targets, &options, &loss, factor)?;
        let of_norm = cuda::rms_norm_backward(device, &x, norm, &dhidden, None, EPS)?;
        let mut grad = of_norm.x;
        let mut gradients = vec![];
        while let Some(of_layer) = kept.pop() {
            let (dx, of_weights) = self.layer_back(kept.len(), &of_layer, &grad)?;
            grad = dx;
            gradients.push(of_weights);
        }
        gradients.reverse();
        let mut gradients: Vec<Tensor<bf16>> = gradients.into_iter().flatten().collect();
        gradients.push(cuda::embedding_backward(device, VOCABULARY, tokens, &grad)?);
        gradients.extend([of_norm.weight, doutput]);
        let clip = cuda::clip(device, &gradients.iter().collect::<Vec<_>>(), Some(1.0))?;
        let options = AdamWOptions::default();
        for ((variable, state), gradient) in self.variables.iter_mut().zip(&gradients) {
            state.step(device, variable, gradient, &clip, &options, 3e-4)?;
        }
        Ok(loss.loss)
    }
}

pub fn measure(device: &Device) -> Result<Vec<Timed>> {
    let mut results = vec![];
    for (width, layers) in [(512, 8), (1024, 24)] {
        let mut decoder = Decoder::new(device, width, layers)?;
        let count = BATCH * TOKENS;
        let (tokens, targets) = (ids(count, VOCABULARY), ids(count + 1, VOCABULARY)[1..].to_vec());
        let first = device.download(&decoder.step(&tokens, &targets)?)?[0] / count as f32;
        let milliseconds = time(device, || decoder.step(&tokens, &targets).map(|_| ()))?;
        let last = device.download(&decoder.step(&tokens, &targets)?)?[0] / count as f32;
        // The same text again and again must become easy.
        assert!(last < first - 1.0, "a decoder of {width} does not learn: {first}, then {last}");
        let weights = layers * (4 * width * width + 3 * width * inner(width)) + VOCABULARY * width;
        let scores = layers * BATCH * TOKENS * TOKENS * width * 2; // causal: half of four
        results.push(Timed {
            name: format!("decoder d={width} L={layers}, step of {count} tokens"),
            milliseconds,
            bytes: 0.0,
            operations: 3.0 * (2 * weights * count + scores) as f64,
        });
    }
    Ok(results)
}
