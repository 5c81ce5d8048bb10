//! Each operation in bf16 at the sizes of a large decoder: 8 sequences of 2,048 tokens, width 1,024.

use candle_core::Result;
use sidenote_kernels::cuda::{self, Bias, Device, Masks, Variable};
use sidenote_kernels::{Activation, AdamWOptions, BlockKind, CrossEntropyOptions};

use super::{Timed, ids, random, time};

const BATCH: usize = 8;
const TOKENS: usize = 2048;
const WIDTH: usize = 1024;
const HEADS: usize = 16;
const DIM: usize = 64;

struct Results<'a> {
    device: &'a Device,
    all: Vec<Timed>,
}

impl Results<'_> {
    fn add<T>(
        &mut self,
        name: &str,
        bytes: usize,
        operations: usize,
        mut run: impl FnMut() -> Result<T>,
    ) -> Result<()> {
        let milliseconds = time(self.device, || run().map(|_| ()))?;
        let (bytes, operations) = (bytes as f64, operations as f64);
        self.all.push(Timed { name: name.to_owned(), milliseconds, bytes, operations });
        Ok(())
    }
}

pub fn measure(device: &Device) -> Result<Vec<Timed>> {
    let mut results = Results { device, all: vec![] };
    pointwise(&mut results)?;
    products(&mut results)?;
    attention(&mut results)?;
    generation(&mut results)?;
    Ok(results.all)
}

fn pointwise(results: &mut Results) -> Result<()> {
    let device = results.device;
    let (rows, ffn) = (BATCH * TOKENS, 2816);
    let x = random(device, &[rows, WIDTH], 1.0)?;
    let grad = random(device, &[rows, WIDTH], 0.5)?;
    let weight = random(device, &[WIDTH], 1.0)?;
    let n = rows * WIDTH;
    results.add("rms_norm", 4 * n, 4 * n, || cuda::rms_norm(device, &x, None, &weight, 1e-5))?;
    results.add("rms_norm backward", 6 * n, 10 * n, || {
        cuda::rms_norm_backward(device, &x, &weight, &grad, None, 1e-5)
    })?;
    let (gate, up) = (random(device, &[rows, ffn], 1.0)?, random(device, &[rows, ffn], 1.0)?);
    let n = rows * ffn;
    let silu = Activation::Silu;
    results.add("swiglu", 6 * n, 20 * n, || cuda::gated(device, &gate, Some(&up), silu))?;
    results.add("swiglu backward", 10 * n, 20 * n, || {
        cuda::gated_backward(device, &gate, Some(&up), &gate, silu)
    })?;
    let table = random(device, &[50_304, WIDTH], 1.0)?;
    let tokens = ids(rows, 50_304);
    results.add("embedding", 4 * rows * WIDTH, 0, || cuda::embedding(device, &table, &tokens))?;
    let size = [32 << 20];
    let variable = Variable { weight: random(device, &size, 1.0)?, master: Some(device.zeros(&size)?) };
    let gradient = random(device, &size, 1.0)?;
    let mut state = cuda::AdamW::new(device, &size)?;
    let options = AdamWOptions::default();
    let moved = size[0] * (2 + 2 + 2 * 4 * 3);
    results.add("adamw", moved + 2 * size[0], 15 * size[0], || {
        let clip = cuda::clip(device, &[&gradient], Some(1.0))?;
        state.step(device, &variable, &gradient, &clip, &options, 1e-3)
    })
}

fn products(results: &mut Results) -> Result<()> {
    let device = results.device;
    let (rows, out, vocabulary) = (BATCH * TOKENS, 4096, 32_000);
    let (x, weight) = (random(device, &[rows, WIDTH], 1.0)?, random(device, &[out, WIDTH], 0.05)?);
    let grad = random(device, &[rows, out], 1.0)?;
    let (operations, moved) = (2 * rows * out * WIDTH, 2 * (rows * WIDTH + out * WIDTH + rows * out));
    results.add("linear", moved, operations, || cuda::linear(device, &x, &weight, None))?;
    results.add("linear backward", 2 * moved, 2 * operations, || {
        cuda::linear_backward(device, &x, &weight, &grad, None)
    })?;
    let weight = random(device, &[vocabulary, WIDTH], 0.05)?;
    let targets = ids(rows, vocabulary);
    let options = CrossEntropyOptions::default();
    let operations = 2 * rows * vocabulary * WIDTH;
    let moved = 2 * (rows + vocabulary) * WIDTH;
    results.add("linear_cross_entropy", moved, operations, || {
        cuda::linear_cross_entropy(device, &x, &weight, &targets, &options)
    })?;
    results.add("linear_cross_entropy forward and backward", 2 * moved, 3 * operations, || {
        let loss = cuda::linear_cross_entropy(device, &x, &weight, &targets, &options)?;
        cuda::linear_cross_entropy_backward(device, &x, &weight, &targets, &options, &loss, 1.0)
    })
}

fn attention(results: &mut Results) -> Result<()> {
    let device = results.device;
    let shape = [BATCH, HEADS, TOKENS, DIM];
    let (q, k, v) =
        (random(device, &shape, 1.0)?, random(device, &shape, 0.9)?, random(device, &shape, 0.8)?);
    let grad = random(device, &shape, 0.7)?;
    let scale = 0.125;
    let heads = BATCH * HEADS;
    let pairs = TOKENS * TOKENS;
    let bias = device.zeros(&[HEADS, TOKENS, TOKENS])?;
    for (name, masks, part) in [
        ("attention", Masks::default(), 1.0),
        ("attention, causal", Masks { causal: true, ..Masks::default() }, 0.5),
        ("attention, window of 256", Masks { causal: true, window: Some(256), ..Masks::default() }, 0.117),
        ("attention, bias", Masks { bias: Some(Bias::Each(&bias)), ..Masks::default() }, 1.0),
    ] {
        let operations = (4.0 * part * (heads * pairs * DIM) as f64) as usize;
        let moved = 8 * heads * TOKENS * DIM;
        results.add(name, moved, operations, || cuda::attention(device, &q, &k, &v, scale, &masks))?;
        let result = cuda::attention(device, &q, &k, &v, scale, &masks)?;
        results.add(&format!("{name}, backward"), 2 * moved, operations / 2 * 5, || {
            cuda::attention_backward(device, &q, &k, &v, scale, &masks, &result, &grad)
        })?;
    }
    // RETRO: chunks of 64 read 2 neighbours of 128 tokens.
    let (m, keys, chunks) = (64, 256, TOKENS / 64);
    let shape = [BATCH * chunks, HEADS, keys, DIM];
    let (k, v) = (random(device, &shape, 1.0)?, random(device, &shape, 0.9)?);
    let masks = Masks::default();
    let operations = 4 * heads * TOKENS * keys * DIM;
    let moved = 4 * heads * TOKENS * DIM + 4 * BATCH * chunks * HEADS * keys * DIM;
    let forward = || cuda::chunked_cross_attention(device, &q, &k, &v, m, scale, &masks);
    results.add("chunked_cross_attention", moved, operations, forward)?;
    let result = forward()?;
    results.add("chunked_cross_attention, backward", 2 * moved, operations / 2 * 5, || {
        cuda::chunked_cross_attention_backward(device, &q, &k, &v, m, scale, &masks, &result, &grad)
    })
}

fn generation(results: &mut Results) -> Result<()> {
    let device = results.device;
    let (batch, key_heads, heads, tokens, dim) = (8, 8, 32, 4096, 128);
    let mut cache = cuda::KvCache::new(device, batch, key_heads, tokens, dim)?;
    let k = random(device, &[batch, key_heads, tokens, dim], 1.0)?;
    cache.extend(device, &k, &k)?;
    let q = random(device, &[batch, heads, 1, dim], 1.0)?;
    let masks = Masks { causal: true, ..Masks::default() };
    let moved = 4 * batch * key_heads * tokens * dim;
    let operations = 4 * batch * heads * tokens * dim;
    results.add("decode attention", moved, operations, || cache.attention(device, &q, 0.088, &masks))?;
    let (output, input) = (4096, 4096);
    for (kind, name) in [
        (BlockKind::Q8_0, "q8_0"),
        (BlockKind::Q4_0, "q4_0"),
        (BlockKind::Q4_1, "q4_1"),
        (BlockKind::Q4K, "q4_k"),
        (BlockKind::Q5K, "q5_k"),
        (BlockKind::Q6K, "q6_k"),
    ] {
        let bytes = vec![17u8; output * input / kind.weights() * kind.bytes()];
        let weight = cuda::QuantisedLinear::from_blocks(device, kind, &bytes, [output, input])?;
        for rows in [1, 512] {
            let x = random(device, &[rows, input], 1.0)?;
            let moved = bytes.len() + 2 * rows * (input + output);
            results.add(&format!("{name} linear, {rows} rows"), moved, 2 * rows * input * output, || {
                weight.forward(device, &x)
            })?;
        }
    }
    Ok(())
}
