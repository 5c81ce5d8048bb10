//! The operations of candle's tensors on a GPU against the CPU's in `f64`, values and gradients:
//! `cargo test -p sidenote-kernels --features candle-cuda --release -- --ignored gpu`, or without a GPU, behind
//! scripts/emulated_gpu.sh.
#![cfg(feature = "candle-cuda")]

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::{Rng, rng};
use sidenote_kernels::{
    Activation, Adafactor, AdafactorOptions, AdamW, AdamWOptions, AttentionOptions, Bits, BlockKind,
    CrossEntropyOptions, KvCache, QuantisedLinear, RelativeBias,
};

const BOTH: [DType; 2] = [DType::F32, DType::BF16];

fn gpu() -> Result<Device> {
    Device::new_cuda(0)
}

/// Fresh numbers that both dtypes have, in `f64`.
fn random(shape: &[usize]) -> Result<Tensor> {
    let mut rng = rng();
    let numbers: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.5f32..1.5)).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu)?.to_dtype(DType::BF16)?.to_dtype(DType::F64)
}

fn close(what: &str, dtype: DType, found: &Tensor, expected: &Tensor) -> Result<()> {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let numbers =
        |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let (mut error, mut norm) = (0.0, 1e-30);
    for (found, expected) in numbers(found)?.iter().zip(numbers(expected)?) {
        error += (found - expected).powi(2);
        norm += expected.powi(2);
    }
    let error = (error / norm).sqrt();
    let limit = if dtype == DType::F32 { 1e-5 } else { 1e-2 };
    assert!(error < limit, "{what} in {dtype:?}: relative error {error:.1e}"); // also when it is not a number
    Ok(())
}

/// The value of `op` and the gradients of its inputs of these shapes, on the GPU in both dtypes.
fn check(what: &str, shapes: &[&[usize]], op: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
    let inputs = shapes.iter().map(|shape| random(shape)).collect::<Result<Vec<_>>>()?;
    let run = |device: &Device, dtype: DType, inputs: &[Tensor], weight: &Tensor| {
        let vars = inputs
            .iter()
            .map(|x| Var::from_tensor(&x.to_dtype(dtype)?.to_device(device)?))
            .collect::<Result<Vec<_>>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let out = op(&tensors)?;
        let on_device = weight.to_dtype(out.dtype())?.to_device(device)?;
        let grads = (&out * on_device)?.sum_all()?.backward()?;
        let grads = vars.iter().map(|var| grads.get(var).cloned()).collect::<Vec<_>>();
        Ok::<_, candle_core::Error>((out, grads))
    };
    let (gpu, weight) = (gpu()?, random(op(&inputs)?.dims())?);
    for dtype in BOTH {
        // Both are given the same numbers: what rounding them does is nobody's error, and large where much cancels.
        let rounded = |x: &Tensor| x.to_dtype(dtype)?.to_dtype(x.dtype());
        let inputs = inputs.iter().map(rounded).collect::<Result<Vec<_>>>()?;
        let weight = rounded(&weight)?;
        let (out, grads) = run(&Device::Cpu, DType::F64, &inputs, &weight)?;
        let (found, found_grads) = run(&gpu, dtype, &inputs, &weight)?;
        close(what, dtype, &found, &out)?;
        for (n, (found, expected)) in found_grads.iter().zip(&grads).enumerate() {
            let what = format!("{what}: gradient of input {n}");
            close(&what, dtype, found.as_ref().expect(&what), expected.as_ref().expect(&what))?;
        }
        // Nothing is recorded where no gradient is asked for.
        let device = |x: &Tensor| x.to_dtype(dtype)?.to_device(&gpu);
        let inputs = inputs.iter().map(device).collect::<Result<Vec<_>>>()?;
        let plain = op(&inputs)?;
        assert!(!plain.track_op());
        close(what, dtype, &plain, &out)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_candle_norms() -> Result<()> {
    use sidenote_kernels::{add_layer_norm, add_rms_norm, layer_norm, rms_norm};
    for shape in [&[3usize, 5, 24][..], &[70, 33]] {
        let width = &shape[shape.len() - 1..];
        check("rms_norm", &[shape, width], |t| rms_norm(&t[0], &t[1], 1e-5))?;
        check("layer_norm", &[shape, width, width], |t| layer_norm(&t[0], &t[1], &t[2], 1e-5))?;
        // Both results count.
        let both = |(sum, out): (Tensor, Tensor)| Tensor::cat(&[sum, out], 0);
        check("add_rms_norm", &[shape, shape, width], |t| both(add_rms_norm(&t[0], &t[1], &t[2], 1e-5)?))?;
        check("add_layer_norm", &[shape, shape, width, width], |t| {
            both(add_layer_norm(&t[0], &t[1], &t[2], &t[3], 1e-5)?)
        })?;
    }
    Ok(())
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_candle_pointwise() -> Result<()> {
    use sidenote_kernels::{activate, dropout, gated, merge_heads, split_heads};
    for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
        check("activate", &[&[3, 37]], |t| activate(&t[0], activation))?;
        check("gated", &[&[3, 37], &[3, 37]], |t| gated(&t[0], &t[1], activation))?;
    }
    // Parts of a tensor that begin where a kernel can read 16 bytes at once, and where it cannot.
    for width in [40, 37] {
        check("gated parts", &[&[6, width]], |t| {
            gated(&t[0].narrow(0, 1, 2)?, &t[0].narrow(0, 4, 2)?, Activation::Silu)
        })?;
    }
    check("dropout", &[&[5, 41]], |t| dropout(&t[0], 0.3, 77))?;
    check("split_heads", &[&[2, 7, 48]], |t| split_heads(&t[0], 3))?;
    check("split_heads", &[&[2, 7, 18]], |t| split_heads(&t[0], 3))?; // not of whole 16 bytes
    check("merge_heads", &[&[2, 3, 7, 16]], |t| merge_heads(&t[0]))?;
    // Not contiguous.
    check("merge_heads", &[&[2, 7, 3, 16]], |t| merge_heads(&t[0].transpose(1, 2)?))?;
    // Sequences share their angles, or have their own.
    rotary_of(random(&[7, 6])?)?;
    rotary_of(random(&[2, 7, 6])?)
}

fn rotary_of(angles: Tensor) -> Result<()> {
    use sidenote_kernels::{rotary, rotary_heads};
    let turned = |t: &Tensor| {
        let angles = angles.to_dtype(t.dtype())?.to_dtype(DType::F64)?;
        let on = |x: Tensor| {
            x.to_dtype(if t.dtype() == DType::F64 { DType::F64 } else { DType::F32 })?.to_device(t.device())
        };
        Ok::<_, candle_core::Error>((on(angles.cos()?)?, on(angles.sin()?)?))
    };
    check("rotary", &[&[2, 3, 7, 16]], |t| {
        let (cos, sin) = turned(&t[0])?;
        rotary(&t[0], &cos, &sin)
    })?;
    check("rotary_heads", &[&[2, 7, 48]], |t| {
        let (cos, sin) = turned(&t[0])?;
        rotary_heads(&t[0], 3, &cos, &sin)
    })
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_candle_linear() -> Result<()> {
    use sidenote_kernels::{embedding, gated_feed_forward, linear, linear_add, linear_cross_entropy};
    check("linear", &[&[2, 5, 33], &[18, 33]], |t| linear(&t[0], &t[1]))?;
    check("linear_add", &[&[2, 5, 33], &[18, 33], &[2, 5, 18]], |t| linear_add(&t[0], &t[1], &t[2]))?;
    check("gated_feed_forward", &[&[9, 16], &[40, 16], &[40, 16], &[16, 40], &[9, 16]], |t| {
        gated_feed_forward(&t[0], &t[1], &t[2], &t[3], &t[4], Activation::Silu)
    })?;
    let tokens = Tensor::new(&[[3u32, 0, 3], [16, 3, 5]], &Device::Cpu)?;
    check("embedding", &[&[17, 24]], |t| embedding(&t[0], &tokens.to_device(t[0].device())?))?;
    let targets = Tensor::new(&[3u32, 40, 7, 0, 3], &Device::Cpu)?;
    let options = CrossEntropyOptions { ignore: Some(7), label_smoothing: 0.1, z_loss: 1e-2 };
    check("linear_cross_entropy", &[&[5, 24], &[41, 24]], |t| {
        linear_cross_entropy(&t[0], &t[1], &targets.to_device(t[0].device())?, &options)
    })
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_candle_attention() -> Result<()> {
    attention_of(32)
}

/// Heads that are filled up to a width of the kernels, and one that is too wide for them.
#[test]
#[ignore = "needs a GPU"]
fn gpu_candle_attention_of_other_widths() -> Result<()> {
    [8, 48, 112, 144].into_iter().try_for_each(attention_of)
}

fn attention_of(dim: usize) -> Result<()> {
    use sidenote_kernels::{attention, chunked_cross_attention, fusion_in_decoder_attention};
    // So many heads, because a sink's gradient is one sum a head in which much cancels: of 4 it is more than 1e-2 off in bf16
    // once in a hundred times, whoever rounds the weights and the output.
    let (batch, heads, key_heads, queries, keys) = (2, 16, 8, 9, 21);
    let (q, k) = ([batch, heads, queries, dim], [batch, key_heads, keys, dim]);
    let mask: Vec<u8> = (0..batch * keys).map(|i| u8::from(i % 5 != 1)).collect();
    let mask = Tensor::from_vec(mask, (batch, keys), &Device::Cpu)?;
    let buckets: Vec<u32> = (0..queries * keys).map(|i| (i % 7) as u32).collect();
    let buckets = Tensor::from_vec(buckets, (queries, keys), &Device::Cpu)?;
    let scale = (dim as f32).powf(-0.5);
    let plain = AttentionOptions::scaled(scale);
    check("attention", &[&q, &k, &k], |t| attention(&t[0], &t[1], &t[2], &plain))?;
    check("attention with a window and a sink", &[&q, &k, &k, &[heads]], |t| {
        let options = AttentionOptions { causal: true, window: Some(6), sink: Some(&t[3]), ..plain };
        attention(&t[0], &t[1], &t[2], &options)
    })?;
    check("attention with bias and mask", &[&q, &k, &k, &[heads, queries, keys], &[heads]], |t| {
        let mask = mask.to_device(t[0].device())?;
        let options =
            AttentionOptions { bias: Some(&t[3]), sink: Some(&t[4]), key_mask: Some(&mask), ..plain };
        attention(&t[0], &t[1], &t[2], &options)
    })?;
    check("attention with a relative bias", &[&q, &k, &k, &[heads, 7]], |t| {
        let buckets = buckets.to_device(t[0].device())?;
        let relative = Some(RelativeBias { table: &t[3], buckets: &buckets });
        attention(&t[0], &t[1], &t[2], &AttentionOptions { relative, ..plain })
    })?;
    // So few queries that they would be decoded, were it for nothing else.
    let few = buckets.narrow(0, 0, 3)?;
    check("attention of few with a relative bias", &[&[batch, heads, 3, dim], &k, &k, &[heads, 7]], |t| {
        let buckets = few.to_device(t[0].device())?;
        let relative = Some(RelativeBias { table: &t[3], buckets: &buckets });
        attention(&t[0], &t[1], &t[2], &AttentionOptions { relative, causal: true, ..plain })
    })?;
    let neighbours = [batch * 2, key_heads, keys, dim];
    check("chunked attention of few", &[&[batch, heads, 5, dim], &neighbours, &neighbours], |t| {
        chunked_cross_attention(&t[0], &t[1], &t[2], 2, &plain)
    })?;
    check("chunked_cross_attention", &[&[batch, heads, 11, dim], &neighbours, &neighbours], |t| {
        chunked_cross_attention(&t[0], &t[1], &t[2], 4, &plain)
    })?;
    let passages = [batch, 3, 7, key_heads * dim];
    check("fusion_in_decoder_attention", &[&q, &passages, &passages], |t| {
        let mask = mask.to_device(t[0].device())?.reshape((batch, 3, 7))?;
        fusion_in_decoder_attention(&t[0], &t[1], &t[2], Some(&mask), scale)
    })
}

/// Steps of generation on a cache, after a prompt: plain, and with all that changes which keys are read and how.
#[test]
#[ignore = "needs a GPU"]
fn gpu_candle_decoding() -> Result<()> {
    let gpu = gpu()?;
    let cases = [
        (DType::F32, 2, 2, 32, false),
        (DType::BF16, 2, 1, 32, true),
        (DType::F32, 1, 1, 32, true),
        (DType::BF16, 2, 2, 80, false),
        (DType::F32, 2, 1, 16, true),
    ];
    for (dtype, batch, key_heads, dim, with_all) in cases {
        let (heads, window) = (key_heads * 2, with_all.then_some(9));
        let (mut cache, mut host_cache) = (KvCache::within(window), KvCache::within(window));
        let sink = random(&[heads])?;
        for tokens in [11, 1, 1, 2, 1] {
            let shape = [batch, key_heads, tokens, dim];
            let (q, k, v) = (random(&[batch, heads, tokens, dim])?, random(&shape)?, random(&shape)?);
            let (keys, values) = host_cache.extend(&k, &v)?;
            let held = keys.dim(2)?;
            let bias = random(&[heads, tokens, held])?;
            // The first sequence is padded.
            let mask: Vec<u8> = (0..batch * held).map(|i| u8::from(batch == 1 || i != 0 && i != 1)).collect();
            let mask = Tensor::from_vec(mask, (batch, held), &Device::Cpu)?;
            let run = |[q, k, v, bias, sink]: [&Tensor; 5], mask: &Tensor| {
                let plain = AttentionOptions { causal: true, ..AttentionOptions::scaled(0.2) };
                let options = AttentionOptions {
                    window,
                    bias: Some(bias),
                    sink: Some(sink),
                    key_mask: Some(mask),
                    ..plain
                };
                sidenote_kernels::attention(q, k, v, if with_all { &options } else { &plain })
            };
            let expected = run([&q, &keys, &values, &bias, &sink], &mask)?;
            let on = |x: &Tensor| x.to_dtype(dtype)?.to_device(&gpu);
            let (keys, values) = cache.extend(&on(&k)?, &on(&v)?)?;
            let found = run([&on(&q)?, &keys, &values, &on(&bias)?, &on(&sink)?], &mask.to_device(&gpu)?)?;
            close(&format!("{tokens} more of {batch} x {key_heads} x {dim}"), dtype, &found, &expected)?;
        }
    }
    Ok(())
}

/// Some steps of both optimisers, interrupted once.
#[test]
#[ignore = "needs a GPU"]
fn gpu_candle_optimisers() -> Result<()> {
    let gpu = gpu()?;
    let shapes: [&[usize]; 3] = [&[13, 7], &[2, 5, 6], &[11]];
    let starts = shapes.iter().map(|shape| random(shape)).collect::<Result<Vec<_>>>()?;
    let slopes = (0..4)
        .map(|_| shapes.iter().map(|shape| random(shape)).collect::<Result<Vec<_>>>())
        .collect::<Result<Vec<_>>>()?;
    for adafactor in [false, true] {
        let run = |device: &Device, dtype: DType| {
            let on = |x: &Tensor| x.to_dtype(dtype)?.to_device(device);
            let vars = starts.iter().map(|x| Var::from_tensor(&on(x)?)).collect::<Result<Vec<_>>>()?;
            let named: Vec<_> =
                vars.iter().enumerate().map(|(n, var)| (n.to_string(), var.clone())).collect();
            let mut adamw = AdamW::new(named.clone(), AdamWOptions::default());
            let mut factored = Adafactor::new(named.clone(), AdafactorOptions::default());
            let (mut state, mut of_factored) = (HashMap::new(), HashMap::new());
            let mut before = [vec![], vec![]];
            for (step, slopes) in slopes.iter().enumerate() {
                let mut sum = Tensor::zeros((), dtype, device)?;
                for (var, slope) in vars.iter().zip(slopes) {
                    sum = (sum + (var.as_tensor() * on(slope)?)?.sum_all()?)?;
                }
                let grads = sum.backward()?;
                if adafactor {
                    factored.step(&grads, 0.01, Some(2.0))?;
                } else {
                    adamw.step(&grads, 0.01, Some(2.0))?;
                }
                if step == 1 {
                    // Nor is a state changed by later steps.
                    (state, of_factored) = (adamw.state()?, factored.state()?);
                    before = [listed(&state)?, listed(&of_factored)?];
                    (adamw, factored) = (
                        AdamW::new(named.clone(), AdamWOptions::default()),
                        Adafactor::new(named.clone(), AdafactorOptions::default()),
                    );
                    adamw.load_state(&state)?;
                    factored.load_state(&of_factored)?;
                }
            }
            assert_eq!(before, [listed(&state)?, listed(&of_factored)?]);
            state.extend(of_factored);
            Ok::<_, candle_core::Error>((vars, state))
        };
        let (expected, expected_state) = run(&Device::Cpu, DType::F64)?;
        for dtype in BOTH {
            let (found, state) = run(&gpu, dtype)?;
            for (name, expected) in &expected_state {
                close(name, dtype, &state[name], expected)?;
            }
            for (n, (found, expected)) in found.iter().zip(&expected).enumerate() {
                close(&format!("variable {n}, Adafactor {adafactor}"), dtype, found, expected)?;
                assert!(found.to_vec_of_all()? != starts[n].to_vec_of_all()?);
            }
        }
    }
    Ok(())
}

/// The numbers of a state, in the order of their names.
fn listed(state: &HashMap<String, Tensor>) -> Result<Vec<(String, Vec<f64>)>> {
    let mut list = vec![];
    for (name, tensor) in state {
        list.push((name.clone(), tensor.to_vec_of_all()?));
    }
    list.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(list)
}

/// Steps of a fortieth of the distance between two numbers of `bf16` arrive, also when the run is interrupted on the way.
#[test]
#[ignore = "needs a GPU"]
fn gpu_candle_optimisers_keep_small_steps() -> Result<()> {
    let gpu = gpu()?;
    for (adafactor, shape) in [(false, &[3usize, 7][..]), (true, &[3, 7]), (true, &[5])] {
        let run = |interrupted: bool| {
            let var = Var::ones(shape, DType::BF16, &gpu)?;
            let named = || vec![("w".to_string(), var.clone())];
            let adam = || AdamW::new(named(), AdamWOptions { weight_decay: 0.0, ..Default::default() });
            let factor =
                || Adafactor::new(named(), AdafactorOptions { relative: false, ..Default::default() });
            let (mut adamw, mut factored) = (adam(), factor());
            let mut saved = (HashMap::new(), vec![]);
            for step in 0..60 {
                let grads = var.sum_all()?.backward()?;
                match adafactor {
                    true => factored.step(&grads, 1e-4, None)?,
                    false => adamw.step(&grads, 1e-4, None)?,
                };
                if step == 30 {
                    let state = if adafactor { factored.state()? } else { adamw.state()? };
                    saved = (state.clone(), listed(&state)?);
                }
                if interrupted && step == 30 {
                    let (state, of_factored) = (adamw.state()?, factored.state()?);
                    (adamw, factored) = (adam(), factor());
                    adamw.load_state(&state)?;
                    factored.load_state(&of_factored)?;
                }
            }
            assert_eq!(listed(&saved.0)?, saved.1, "a state is not changed by later steps");
            let state = if adafactor { factored.state()? } else { adamw.state()? };
            Ok::<_, candle_core::Error>((var, state["w.master"].clone()))
        };
        let (whole, master) = run(false)?;
        let expected = Tensor::full(1.0 - 60.0 * 1e-4, shape, &Device::Cpu)?;
        close("the copy in f32", DType::F32, &master, &expected)?;
        assert_eq!(
            whole.to_dtype(DType::F32)?.to_vec_of_all()?,
            master.to_dtype(DType::BF16)?.to_vec_of_all()?
        );
        let (resumed, of_resumed) = run(true)?;
        assert_eq!(whole.to_vec_of_all()?, resumed.to_vec_of_all()?);
        assert_eq!(master.to_vec_of_all()?, of_resumed.to_vec_of_all()?);
    }
    Ok(())
}

trait ToVec {
    fn to_vec_of_all(&self) -> Result<Vec<f64>>;
}

impl ToVec for Tensor {
    fn to_vec_of_all(&self) -> Result<Vec<f64>> {
        self.to_device(&Device::Cpu)?.flatten_all()?.to_dtype(DType::F64)?.to_vec1()
    }
}

/// Weights of few bits, rounded here or as a file has them, with few rows and many.
#[test]
#[ignore = "needs a GPU"]
fn gpu_candle_quantised() -> Result<()> {
    let gpu = gpu()?;
    let weight = random(&[19, 64])?.to_dtype(DType::F32)?;
    let mut layers = vec![];
    for bits in [Bits::Four, Bits::Eight] {
        let host = QuantisedLinear::new(&weight, bits)?;
        layers.push((QuantisedLinear::new(&weight.to_device(&gpu)?, bits)?, host));
    }
    let mut rng = rng();
    for kind in [BlockKind::F16, BlockKind::BF16, BlockKind::Q5_0] {
        let rows: Vec<u8> = match kind {
            BlockKind::F16 => weight
                .flatten_all()?
                .to_vec1::<f32>()?
                .iter()
                .flat_map(|x| half::f16::from_f32(*x).to_le_bytes())
                .collect(),
            BlockKind::BF16 => weight
                .flatten_all()?
                .to_vec1::<f32>()?
                .iter()
                .flat_map(|x| half::bf16::from_f32(*x).to_le_bytes())
                .collect(),
            _ => (0..19 * 2)
                .flat_map(|_| {
                    let scale = half::f16::from_f32(0.05).to_le_bytes();
                    let codes: Vec<u8> = (0..20).map(|_| rng.random()).collect();
                    scale.into_iter().chain(codes)
                })
                .collect(),
        };
        let of = |device| QuantisedLinear::from_blocks(kind, &rows, [19, 64], device);
        layers.push((of(&gpu)?, of(&Device::Cpu)?));
    }
    for (found, host) in &layers {
        assert_eq!((found.kind(), found.shape()), (host.kind(), host.shape()));
        assert_eq!(found.bytes(), 19 * 64 / found.kind().weights() * found.kind().bytes());
        let what = format!("{:?}", found.kind());
        let expected = host.weight()?.to_dtype(DType::F64)?;
        close(&what, DType::F32, &found.weight()?, &expected)?;
        for rows in [1, 30] {
            let x = random(&[rows, 64])?;
            let product = x.matmul(&expected.t()?)?;
            for dtype in BOTH {
                let on = x.to_dtype(dtype)?.to_device(&gpu)?;
                close(&what, dtype, &found.forward(&on)?, &product)?;
                let twice = found.forward_add(&on, &found.forward(&on)?)?;
                close(&what, dtype, &twice, &(&product * 2.0)?)?;
            }
        }
    }
    Ok(())
}
