//! The operations on a GPU against the CPU's in `f64`:
//! `cargo test -p sidenote-kernels --features cuda --release -- --ignored gpu`.
#![cfg(feature = "cuda")]

use candle_core::{DType, Device as Cpu, Result, Tensor as Host, Var};
use half::bf16;
use rand::{Rng, rng};
use sidenote_kernels::cuda::{self, Bias, Device, Masks, Storage, Tensor};
use sidenote_kernels::{
    Activation, Adafactor, AdafactorOptions, AdamW, AdamWOptions, AttentionOptions, BlockKind,
    CrossEntropyOptions, QuantisedLinear, RelativeBias,
};

/// Fresh numbers as a kernel stores them, on both sides.
fn random<T: Storage + From32>(device: &Device, shape: &[usize]) -> Result<(Tensor<T>, Var)> {
    let mut rng = rng();
    let numbers: Vec<T> =
        (0..shape.iter().product()).map(|_| T::from32(rng.random_range(-1.5f32..1.5))).collect();
    let host: Vec<f64> = numbers.iter().map(|x| x.to64()).collect();
    Ok((device.upload(&numbers, shape)?, Var::from_vec(host, shape, &Cpu::Cpu)?))
}

trait From32 {
    const LIMIT: f64;
    fn from32(x: f32) -> Self;
    fn to64(&self) -> f64;
}

impl From32 for f32 {
    const LIMIT: f64 = 1e-5;
    fn from32(x: f32) -> Self {
        x
    }
    fn to64(&self) -> f64 {
        f64::from(*self)
    }
}

impl From32 for bf16 {
    const LIMIT: f64 = 1e-2;
    fn from32(x: f32) -> Self {
        bf16::from_f32(x)
    }
    fn to64(&self) -> f64 {
        bf16::to_f64(*self)
    }
}

fn close<T: Storage + From32>(device: &Device, what: &str, found: &Tensor<T>, expected: &Host) -> Result<()> {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let found = device.download(found)?;
    let expected = expected.flatten_all()?.to_vec1::<f64>()?;
    let (mut error, mut norm) = (0.0, 1e-30);
    for (found, expected) in found.iter().zip(expected) {
        error += (found.to64() - expected).powi(2);
        norm += expected.powi(2);
    }
    let error = (error / norm).sqrt();
    assert!(error < T::LIMIT, "{what}: relative error {error:.1e}"); // also when it is not a number
    Ok(())
}

fn norms<T: Storage + From32>(device: &Device) -> Result<()> {
    for (rows, width) in [(1, 8), (77, 333), (130, 1024), (3, 4096)] {
        let (x, host_x) = random::<T>(device, &[rows, width])?;
        let (weight, host_weight) = random::<T>(device, &[width])?;
        let (bias, host_bias) = random::<T>(device, &[width])?;
        let (grad, host_grad) = random::<T>(device, &[rows, width])?;

        let out = sidenote_kernels::layer_norm(&host_x, &host_weight, &host_bias, 1e-5)?;
        let grads = (&out * host_grad.as_tensor())?.sum_all()?.backward()?;
        close(device, "layer_norm", &cuda::layer_norm(device, &x, None, &weight, &bias, 1e-5)?.out, &out)?;
        let found = cuda::layer_norm_backward(device, &x, &weight, &grad, None, 1e-5)?;
        close(device, "layer_norm dx", &found.x, grads.get(&host_x).unwrap())?;
        close(device, "layer_norm dweight", &found.weight, grads.get(&host_weight).unwrap())?;
        close(device, "layer_norm dbias", &found.bias.unwrap(), grads.get(&host_bias).unwrap())?;

        let out = sidenote_kernels::rms_norm(&host_x, &host_weight, 1e-5)?;
        let grads = (&out * host_grad.as_tensor())?.sum_all()?.backward()?;
        close(device, "rms_norm", &cuda::rms_norm(device, &x, None, &weight, 1e-5)?.out, &out)?;
        let found = cuda::rms_norm_backward(device, &x, &weight, &grad, None, 1e-5)?;
        close(device, "rms_norm dx", &found.x, grads.get(&host_x).unwrap())?;
        close(device, "rms_norm dweight", &found.weight, grads.get(&host_weight).unwrap())?;
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_norms() -> Result<()> {
    let device = Device::new(0)?;
    norms::<f32>(&device)?;
    norms::<bf16>(&device)
}

fn gates<T: Storage + From32>(device: &Device) -> Result<()> {
    for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
        let shape = [37, 411];
        let (x, host_x) = random::<T>(device, &shape)?;
        let (up, host_up) = random::<T>(device, &shape)?;
        let (grad, host_grad) = random::<T>(device, &shape)?;
        let out = sidenote_kernels::gated(&host_x, &host_up, activation)?;
        let grads = (&out * host_grad.as_tensor())?.sum_all()?.backward()?;
        close(device, "gated", &cuda::gated(device, &x, Some(&up), activation)?, &out)?;
        let (dx, dup) = cuda::gated_backward(device, &x, Some(&up), &grad, activation)?;
        close(device, "gated dx", &dx, grads.get(&host_x).unwrap())?;
        close(device, "gated dup", &dup.unwrap(), grads.get(&host_up).unwrap())?;
    }
    let (x, host_x) = random::<T>(device, &[2, 3, 19, 24])?;
    let (cos, host_cos) = random::<f32>(device, &[19, 10])?;
    let (sin, host_sin) = random::<f32>(device, &[19, 10])?;
    let out = sidenote_kernels::rotary(&host_x, &host_cos, &host_sin)?;
    close(device, "rotary", &cuda::rotary(device, &x, &cos, &sin, false)?, &out)
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_gates_and_rotary() -> Result<()> {
    let device = Device::new(0)?;
    gates::<f32>(&device)?;
    gates::<bf16>(&device)
}

/// Attention, or RETRO's in chunks of `m`, with masks and biases drawn at random.
fn attention<T: Storage + From32>(device: &Device, dim: usize, retro: bool) -> Result<()> {
    let mut rng = rng();
    let (batch, key_heads) = (rng.random_range(1..3), rng.random_range(1..3));
    let heads = key_heads * rng.random_range(1..4);
    let (queries, keys) = (rng.random_range(1..200), rng.random_range(1..260));
    let chunks = if retro { rng.random_range(1..4) } else { 1 };
    let tokens = if retro { chunks * queries + rng.random_range(0..queries) } else { queries };
    let causal = !retro && rng.random_bool(0.5);
    let window = (causal && rng.random_bool(0.5)).then(|| rng.random_range(1..100));
    let (masked, sunk, biased) = (rng.random_bool(0.5), rng.random_bool(0.5), rng.random_range(0..3));

    let (q, host_q) = random::<T>(device, &[batch, heads, tokens, dim])?;
    let (k, host_k) = random::<T>(device, &[batch * chunks, key_heads, keys, dim])?;
    let (v, host_v) = random::<T>(device, &[batch * chunks, key_heads, keys, dim])?;
    let (grad, host_grad) = random::<T>(device, &[batch, heads, tokens, dim])?;
    let (sink, host_sink) = random::<f32>(device, &[heads])?;
    let (bias, host_bias) = random::<f32>(device, &[heads, queries, keys])?;
    let (table, host_table) = random::<f32>(device, &[heads, 40])?;
    let buckets: Vec<u32> = (0..queries * keys).map(|_| rng.random_range(0..40)).collect();
    let host_buckets = Host::from_vec(buckets.clone(), (queries, keys), &Cpu::Cpu)?;
    let mask: Vec<u8> = (0..batch * chunks * keys).map(|_| u8::from(rng.random_bool(0.7))).collect();
    let key_mask = device.upload(&mask, &[batch * chunks, keys])?;
    let host_mask = Host::from_vec(mask, (batch * chunks, keys), &Cpu::Cpu)?;
    let scale = (dim as f32).powf(-0.5);
    let options = AttentionOptions {
        causal,
        window,
        key_mask: masked.then_some(&host_mask),
        bias: (biased == 1).then_some(host_bias.as_tensor()),
        relative: (biased == 2).then_some(RelativeBias { table: &host_table, buckets: &host_buckets }),
        sink: sunk.then_some(host_sink.as_tensor()),
        ..AttentionOptions::scaled(scale)
    };
    let masks = Masks {
        causal,
        window,
        offset: keys as i32 - queries as i32,
        keys: masked.then_some(&key_mask),
        bias: match biased {
            1 => Some(Bias::Each(&bias)),
            2 => Some(Bias::Relative { table: &table, buckets: &buckets }),
            _ => None,
        },
        sink: sunk.then_some(&sink),
    };
    let what = |of: &str| format!("attention {of}: {:?} on {:?}, {options:?}", q.dims(), k.dims());
    let (out, found, gradients) = if retro {
        let out = sidenote_kernels::chunked_cross_attention(&host_q, &host_k, &host_v, queries, &options)?;
        let found = cuda::chunked_cross_attention(device, &q, &k, &v, queries, scale, &masks)?;
        let gradients = cuda::chunked_cross_attention_backward(
            device, &q, &k, &v, queries, scale, &masks, &found, &grad,
        )?;
        (out, found, gradients)
    } else {
        let out = sidenote_kernels::attention(&host_q, &host_k, &host_v, &options)?;
        let found = cuda::attention(device, &q, &k, &v, scale, &masks)?;
        let gradients = cuda::attention_backward(device, &q, &k, &v, scale, &masks, &found, &grad)?;
        (out, found, gradients)
    };
    let grads = (&out * host_grad.as_tensor())?.sum_all()?.backward()?;
    close(device, &what("out"), &found.out, &out)?;
    close(device, &what("dq"), &gradients.q, grads.get(&host_q).unwrap())?;
    close(device, &what("dk"), &gradients.k, grads.get(&host_k).unwrap())?;
    close(device, &what("dv"), &gradients.v, grads.get(&host_v).unwrap())?;
    // These are `f32`, added up from numbers in `T`.
    let sums =
        [(gradients.bias, if biased == 1 { &host_bias } else { &host_table }), (gradients.sink, &host_sink)];
    for (found, host) in sums {
        let Some(found) = found else { continue };
        let expected = grads.get(host).unwrap().flatten_all()?.to_vec1::<f64>()?;
        for (found, expected) in device.download(&found)?.iter().zip(expected) {
            let off = (f64::from(*found) - expected).abs();
            assert!(off < 2.0 * T::LIMIT * (1.0 + expected.abs()), "{}: {found}, {expected}", what("sums"));
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_attention() -> Result<()> {
    let device = Device::new(0)?;
    for _ in 0..6 {
        for dim in [32, 64, 128] {
            for retro in [false, true] {
                attention::<f32>(&device, dim, retro)?;
                attention::<bf16>(&device, dim, retro)?;
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_attention_takes_no_sums_of_other_sizes() -> Result<()> {
    let device = Device::new(0)?;
    let (q, _) = random::<f32>(&device, &[1, 2, 5, 32])?;
    let masks = Masks::default();
    let mut result = cuda::attention(&device, &q, &q, &q, 1.0, &masks)?;
    result.log_sum = device.upload(&[0f32; 8], &[1, 2, 4])?;
    let refused = cuda::attention_backward(&device, &q, &q, &q, 1.0, &masks, &result, &q);
    assert!(refused.is_err_and(|error| error.to_string().contains("sums [1, 2, 4]")));
    Ok(())
}

fn decoding<T: Storage + From32>(device: &Device, dim: usize) -> Result<()> {
    let mut rng = rng();
    let (batch, key_heads, group) = (rng.random_range(1..4), rng.random_range(1..3), rng.random_range(1..7));
    let window = rng.random_bool(0.5).then(|| rng.random_range(1..400));
    let room = 1300;
    let mut cache = cuda::KvCache::<T>::new(device, batch, key_heads, room, dim)?;
    let (mut keys, mut values) = (vec![], vec![]);
    let scale = (dim as f32).powf(-0.5);
    for tokens in [1, rng.random_range(1..1000), 1, 3] {
        let shape = [batch, key_heads, tokens, dim];
        let ((k, host_k), (v, host_v)) = (random::<T>(device, &shape)?, random::<T>(device, &shape)?);
        cache.extend(device, &k, &v)?;
        keys.push(host_k.as_tensor().clone());
        values.push(host_v.as_tensor().clone());
        let (q, host_q) = random::<T>(device, &[batch, key_heads * group, tokens, dim])?;
        let options = AttentionOptions { causal: true, window, ..AttentionOptions::scaled(scale) };
        let (keys, values) = (Host::cat(&keys, 2)?, Host::cat(&values, 2)?);
        let out = sidenote_kernels::attention(&host_q, &keys, &values, &options)?;
        let masks = Masks { causal: true, window, ..Masks::default() };
        let what = format!("decode: {:?} on {} of {key_heads}, {window:?}", q.dims(), cache.tokens());
        close(device, &what, &cache.attention(device, &q, scale, &masks)?, &out)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_decoding() -> Result<()> {
    let device = Device::new(0)?;
    for dim in [32, 64, 128] {
        decoding::<f32>(&device, dim)?;
        decoding::<bf16>(&device, dim)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_embedding() -> Result<()> {
    let device = Device::new(0)?;
    let (table, host_table) = random::<f32>(&device, &[37, 77])?;
    let ids: Vec<u32> = (0..200).map(|_| rng().random_range(0..30)).collect();
    let (grad, host_grad) = random::<f32>(&device, &[200, 77])?;
    let out = host_table.index_select(&Host::new(&ids[..], &Cpu::Cpu)?, 0)?;
    let grads = (&out * host_grad.as_tensor())?.sum_all()?.backward()?;
    close(&device, "embedding", &cuda::embedding(&device, &table, &ids)?, &out)?;
    let found = cuda::embedding_backward(&device, 37, &ids, &grad)?;
    close(&device, "embedding dtable", &found, grads.get(&host_table).unwrap())
}

/// Forward and backward of a linear layer, and the loss behind one.
fn products<T: Storage + From32>(device: &Device) -> Result<()> {
    for _ in 0..6 {
        let mut rng = rng();
        let (rows, columns, inner) =
            (rng.random_range(1..300), rng.random_range(1..700), rng.random_range(1..300));
        let (x, host_x) = random::<T>(device, &[rows, inner])?;
        let (weight, host_weight) = random::<T>(device, &[columns, inner])?;
        let (residual, host_residual) = random::<T>(device, &[rows, columns])?;
        let (grad, host_grad) = random::<T>(device, &[rows, columns])?;
        let out = (host_x.matmul(&host_weight.t()?)? + host_residual.as_tensor())?;
        let grads = (&out * host_grad.as_tensor())?.sum_all()?.backward()?;
        let what = format!("linear {rows} x {columns} x {inner}");
        close(device, &what, &cuda::linear(device, &x, &weight, Some(&residual))?, &out)?;
        let (dx, dweight) = cuda::linear_backward(device, &x, &weight, &grad, None)?;
        close(device, &what, &dx, grads.get(&host_x).unwrap())?;
        close(device, &what, &dweight, grads.get(&host_weight).unwrap())?;

        let options = CrossEntropyOptions {
            ignore: rng.random_bool(0.5).then_some(3),
            label_smoothing: 0.1,
            z_loss: 1e-2,
        };
        let targets: Vec<u32> = (0..rows).map(|_| rng.random_range(0..columns as u32)).collect();
        let host_targets = Host::from_vec(targets.clone(), rows, &Cpu::Cpu)?;
        let loss = sidenote_kernels::linear_cross_entropy(&host_x, &host_weight, &host_targets, &options)?;
        let grads = (&loss * 0.25)?.backward()?;
        let found = cuda::linear_cross_entropy(device, &x, &weight, &targets, &options)?;
        let loss = loss.to_scalar::<f64>()?;
        let off = (f64::from(device.download(&found.loss)?[0]) - loss).abs();
        assert!(off <= 1e-5 * loss.abs() + 1e-5, "loss of {rows} x {columns} x {inner}: off by {off}");
        let (dhidden, dweight) =
            cuda::linear_cross_entropy_backward(device, &x, &weight, &targets, &options, &found, 0.25)?;
        close(device, "dhidden", &dhidden, grads.get(&host_x).unwrap())?;
        close(device, "dweight", &dweight, grads.get(&host_weight).unwrap())?;
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_products_and_loss() -> Result<()> {
    let device = Device::new(0)?;
    products::<f32>(&device)?;
    products::<bf16>(&device)
}

/// Three steps of each optimiser beside the CPU's, with clipping, of a matrix, a stack of them and a vector.
#[test]
#[ignore = "needs a GPU"]
fn gpu_optimisers() -> Result<()> {
    let device = Device::new(0)?;
    for adafactor in [false, true] {
        let shapes: [&[usize]; 3] = [&[130, 77], &[2, 65, 300], &[1001]];
        let mut variables = vec![];
        let mut named = vec![];
        for (n, shape) in shapes.iter().enumerate() {
            let (weight, host) = random::<f32>(&device, shape)?;
            variables.push(cuda::Variable { weight, master: None });
            named.push((n.to_string(), Var::from_tensor(&host)?));
        }
        let mut host_adamw = AdamW::new(named.clone(), AdamWOptions::default());
        let mut host_adafactor = Adafactor::new(named.clone(), AdafactorOptions::default());
        let new_adamw = |shape: &&[usize]| cuda::AdamW::new(&device, shape);
        let mut adamw = shapes.iter().map(new_adamw).collect::<Result<Vec<_>>>()?;
        let new_adafactor = |shape: &&[usize]| cuda::Adafactor::new(&device, shape);
        let mut factored = shapes.iter().map(new_adafactor).collect::<Result<Vec<_>>>()?;
        for _ in 0..3 {
            let mut gradients = vec![];
            let mut sum = Host::zeros((), DType::F64, &Cpu::Cpu)?;
            for (shape, (_, var)) in shapes.iter().zip(&named) {
                let (gradient, host) = random::<f32>(&device, shape)?;
                sum = (sum + (var.as_tensor() * host.as_tensor())?.sum_all()?)?;
                gradients.push(gradient);
            }
            let store = sum.backward()?;
            let clip = cuda::clip(&device, &gradients.iter().collect::<Vec<_>>(), Some(3.0))?;
            let stats = if adafactor {
                host_adafactor.step(&store, 0.01, Some(3.0))?
            } else {
                host_adamw.step(&store, 0.01, Some(3.0))?
            };
            for n in 0..shapes.len() {
                let (variable, gradient) = (&variables[n], &gradients[n]);
                if adafactor {
                    factored[n].step(
                        &device,
                        variable,
                        gradient,
                        &clip,
                        &AdafactorOptions::default(),
                        0.01,
                    )?;
                } else {
                    adamw[n].step(&device, variable, gradient, &clip, &AdamWOptions::default(), 0.01)?;
                }
            }
            let (norm, skipped) = clip.norm(&device)?;
            assert!((f64::from(norm) - stats.grad_norm).abs() < 1e-5 * stats.grad_norm && !skipped);
        }
        for (variable, (_, host)) in variables.iter().zip(&named) {
            close(&device, "optimiser", &variable.weight, host)?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_dropout_and_heads() -> Result<()> {
    let device = Device::new(0)?;
    let (x, host) = random::<f32>(&device, &[6 * 37, 96])?;
    let expected = sidenote_kernels::dropout(&host.to_dtype(DType::F32)?, 0.3, 77)?.to_dtype(DType::F64)?;
    close(&device, "dropout", &cuda::dropout(&device, &x, 0.3, 77)?, &expected)?;
    let heads = cuda::split_heads(&device, &x, 32, [6, 2, 37, 24])?;
    let expected = host.narrow(1, 32, 48)?.reshape((6, 37, 2, 24))?.transpose(1, 2)?.contiguous()?;
    close(&device, "split_heads", &heads, &expected)?;
    let (to, _) = random::<f32>(&device, &[6 * 37, 96])?;
    cuda::merge_heads(&device, &heads, &to, 32)?;
    let found = cuda::split_heads(&device, &to, 32, [6, 2, 37, 24])?;
    close(&device, "merge_heads", &found, &expected)
}

/// Few and many rows, against the CPU's reading of the same blocks.
fn quantised<T: Storage + From32>(device: &Device) -> Result<()> {
    use BlockKind::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    for kind in [Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4K, Q5K, Q6K] {
        for rows in [1, 7, 150] {
            let mut rng = rng();
            let most = 20 * 32 / kind.weights();
            let (output, blocks) = (rng.random_range(1..300), rng.random_range(1..=most));
            let mut bytes = vec![];
            for _ in 0..output * blocks {
                let mut block: Vec<u8> = (0..kind.bytes()).map(|_| rng.random()).collect();
                let mut put = |at: usize, most: f32| {
                    let x = half::f16::from_f32(rng.random_range(-most..most));
                    block[at..at + 2].copy_from_slice(&x.to_le_bytes());
                };
                put(if kind == Q6K { 208 } else { 0 }, if kind.weights() == 32 { 0.1 } else { 0.01 });
                if matches!(kind, Q4_1 | Q5_1 | Q4K | Q5K) {
                    put(2, if kind.weights() == 32 { 1.0 } else { 0.01 });
                }
                bytes.extend(block);
            }
            let shape = [output, blocks * kind.weights()];
            let host = QuantisedLinear::from_blocks(kind, &bytes, shape, &Cpu::Cpu)?.weight()?;
            let host = host.to_dtype(DType::F64)?;
            let weight = cuda::QuantisedLinear::from_blocks(device, kind, &bytes, shape)?;
            let (x, host_x) = random::<T>(device, &[rows, shape[1]])?;
            let what = format!("{kind:?} {rows} x {shape:?}");
            close(device, &what, &weight.forward(device, &x)?, &host_x.matmul(&host.t()?)?)?;
            let ids: Vec<u32> = (0..9).map(|_| rng.random_range(0..output as u32)).collect();
            let expected = host.index_select(&Host::new(&ids[..], &Cpu::Cpu)?, 0)?;
            close(device, &what, &weight.rows::<T>(device, &ids)?, &expected)?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_quantised() -> Result<()> {
    let device = Device::new(0)?;
    quantised::<f32>(&device)?;
    quantised::<bf16>(&device)
}

fn top_k<T: Storage + From32>(device: &Device) -> Result<()> {
    for (count, rows, k) in [(1, 5, 9), (130, 30_001, 100), (40, 9_000, 1024)] {
        let dim = rng().random_range(8..200);
        let (queries, host_queries) = random::<T>(device, &[count, dim])?;
        let (vectors, host_vectors) = random::<T>(device, &[rows, dim])?;
        let scores = host_queries.matmul(&host_vectors.t()?)?.to_vec2::<f64>()?;
        let found = cuda::top_k(device, &queries, &vectors, k)?;
        // Rows of 32 and the factors; rows themselves decide, so that signs may be any.
        let (groups, stride) = (dim.div_ceil(4), dim.div_ceil(4) * 16 + 256);
        let codes = vec![0u8; rows.div_ceil(32) * stride];
        let codes = cuda::BinaryCodes::new(device, &codes, [rows, dim, groups, stride])?;
        let turned = random::<bf16>(device, &[count, dim])?.0;
        let coded = codes.top_k(device, &turned, &queries, &vectors, k.min(7), 1024)?;
        for (q, scores) in scores.iter().enumerate() {
            let mut order: Vec<usize> = (0..rows).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            let judge = |found: &[(u32, f32)], order: &[usize]| {
                assert_eq!(found.len(), order.len());
                for (&(id, score), &row) in found.iter().zip(order) {
                    let off = (f64::from(score) - scores[id as usize]).abs();
                    assert!(
                        off < 1e-3 && f64::from(score) > scores[row] - 1e-3,
                        "query {q}: {id} has {score}"
                    );
                }
            };
            judge(&found[q], &order[..k.min(rows)]);
            // All codes are alike: of equal estimates the first 1,024 rows are candidates.
            order.retain(|&row| row < 1024);
            judge(&coded[q], &order[..k.min(7).min(rows)]);
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_top_k() -> Result<()> {
    let device = Device::new(0)?;
    top_k::<f32>(&device)?;
    top_k::<bf16>(&device)
}
