//! The operations on a GPU against the CPU's in `f64`:
//! `cargo test -p sidenote-kernels --features cuda --release -- --ignored gpu`.
#![cfg(feature = "cuda")]

use candle_core::{Device as Cpu, Result, Tensor as Host, Var};
use half::bf16;
use rand::{Rng, rng};
use sidenote_kernels::cuda::{self, Bias, Device, Masks, Storage, Tensor};
use sidenote_kernels::{Activation, AttentionOptions, RelativeBias};

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
    let host_mask = Host::from_vec(mask.clone(), (batch * chunks, keys), &Cpu::Cpu)?;
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
        keys: masked.then_some(&mask),
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
