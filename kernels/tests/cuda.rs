//! The operations on a GPU against the CPU's in `f64`:
//! `cargo test -p sidenote-kernels --features cuda --release -- --ignored gpu`.
#![cfg(feature = "cuda")]

use candle_core::{DType, Device as Cpu, Result, Tensor as Host, Var};
use half::bf16;
use rand::{Rng, rng};
use sidenote_kernels::cuda::{self, Device, Masks, Storage, Tensor};
use sidenote_kernels::{Activation, AttentionOptions};

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

#[test]
#[ignore = "needs a GPU"]
fn gpu_attention() -> Result<()> {
    let device = Device::new(0)?;
    for (dim, queries, keys, causal, window, masked, sunk) in [
        (64, 200, 200, true, None, false, false),
        (64, 130, 257, true, Some(50), true, false),
        (32, 65, 31, false, None, true, true),
        (128, 77, 90, true, None, false, true),
    ] {
        let (batch, heads, key_heads) = (2, 4, 2);
        let (q, host_q) = random::<bf16>(&device, &[batch, heads, queries, dim])?;
        let (k, host_k) = random::<bf16>(&device, &[batch, key_heads, keys, dim])?;
        let (v, host_v) = random::<bf16>(&device, &[batch, key_heads, keys, dim])?;
        let (grad, host_grad) = random::<bf16>(&device, &[batch, heads, queries, dim])?;
        let (sink, host_sink) = random::<f32>(&device, &[heads])?;
        let mut rng = rng();
        let mask: Vec<u8> = (0..batch * keys).map(|_| u8::from(rng.random_bool(0.7))).collect();
        let host_mask = Host::from_vec(mask.clone(), (batch, keys), &Cpu::Cpu)?;
        let scale = (dim as f32).powf(-0.5);
        let options = AttentionOptions {
            causal,
            window,
            key_mask: masked.then_some(&host_mask),
            sink: sunk.then_some(host_sink.as_tensor()),
            ..AttentionOptions::scaled(scale)
        };
        let out = sidenote_kernels::attention(&host_q, &host_k, &host_v, &options)?;
        let grads = (&out * host_grad.as_tensor())?.sum_all()?.backward()?;
        let masks = Masks {
            causal,
            window,
            offset: keys as i32 - queries as i32,
            keys: masked.then_some(&mask),
            sink: sunk.then_some(&sink),
        };
        let found = cuda::attention(&device, &q, &k, &v, scale, &masks)?;
        close(&device, "attention", &found.out, &out)?;
        let found = cuda::attention_backward(&device, &q, &k, &v, scale, &masks, &found, &grad)?;
        close(&device, "attention dq", &found.q, grads.get(&host_q).unwrap())?;
        close(&device, "attention dk", &found.k, grads.get(&host_k).unwrap())?;
        close(&device, "attention dv", &found.v, grads.get(&host_v).unwrap())?;
        if let Some(found) = found.sink {
            let expected = grads.get(&host_sink).unwrap().to_dtype(DType::F64)?.to_vec1::<f64>()?;
            for (found, expected) in device.download(&found)?.iter().zip(expected) {
                assert!(
                    (f64::from(*found) - expected).abs() < 2e-2 * (1.0 + expected.abs()),
                    "{found}, {expected}"
                );
            }
        }
    }
    Ok(())
}
