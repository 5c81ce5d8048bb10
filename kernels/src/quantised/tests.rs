use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::testing::*;

/// The formats of few bits, and candle's names for them.
const KINDS: [(BlockKind, GgmlDType); 8] = [
    (BlockKind::Q4_0, GgmlDType::Q4_0),
    (BlockKind::Q4_1, GgmlDType::Q4_1),
    (BlockKind::Q5_0, GgmlDType::Q5_0),
    (BlockKind::Q5_1, GgmlDType::Q5_1),
    (BlockKind::Q8_0, GgmlDType::Q8_0),
    (BlockKind::Q4K, GgmlDType::Q4K),
    (BlockKind::Q5K, GgmlDType::Q5K),
    (BlockKind::Q6K, GgmlDType::Q6K),
];

/// Random bytes, but for units and minima, which are made numbers around a hundredth.
fn random_blocks(kind: BlockKind, blocks: usize, seed: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut bytes: Vec<u8> = (0..blocks * kind.bytes()).map(|_| rng.random()).collect();
    for block in bytes.chunks_exact_mut(kind.bytes()) {
        let places = match kind {
            BlockKind::F16 | BlockKind::BF16 => continue,
            BlockKind::Q6K => vec![208],
            _ if kind.has_minimum() => vec![0, 2],
            _ => vec![0],
        };
        for at in places {
            let number = f16::from_f32(rng.random_range(-0.02..0.02));
            block[at..at + 2].copy_from_slice(&number.to_bits().to_le_bytes());
        }
    }
    bytes
}

fn random_layer(kind: BlockKind, shape: [usize; 2], seed: u64) -> QuantisedLinear {
    let bytes = random_blocks(kind, shape[0] * shape[1] / kind.weights(), seed);
    QuantisedLinear::from_blocks(kind, &bytes, shape, &Device::Cpu).unwrap()
}

/// `x` with every group rounded to 8 bits.
fn rounded(x: &Tensor) -> Tensor {
    let round = |group: &[f32]| -> Vec<f32> {
        let step = group.iter().fold(0f32, |a, b| a.max(b.abs())) / 127.0;
        group.iter().map(|value| (value / step).round() * step).collect()
    };
    let rows = x.to_vec2::<f32>().unwrap();
    let rows: Vec<f32> = rows.iter().flat_map(|row| row.chunks(GROUP).flat_map(round)).collect();
    Tensor::from_vec(rows, x.shape(), &Device::Cpu).unwrap()
}

/// The largest difference to the product with the same weight in f64, in parts of the largest weight.
fn error(layer: &QuantisedLinear, rows: usize) -> f64 {
    let input = layer.shape()[1];
    let x = random(&[rows, input], 1);
    let out = layer.forward(&x).unwrap();
    let f64 = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
    let weight = layer.weight().unwrap();
    let halves = matches!(layer.kind(), BlockKind::F16 | BlockKind::BF16);
    let x = if halves { x } else { rounded(&x) };
    let exact = f64(&x).matmul(&f64(&weight).t().unwrap()).unwrap();
    let largest = distance(&weight, &weight.zeros_like().unwrap()).max(1e-9);
    distance(&out, &exact) / (input as f64).sqrt() / largest
}

/// What the formats define is what candle makes of them: bit for bit, whatever the bits are.
#[test]
fn blocks_hold_what_candle_reads() {
    for (seed, (kind, dtype)) in KINDS.into_iter().enumerate() {
        let shape = [37, 2 * kind.weights()];
        let bytes = random_blocks(kind, 2 * 37, seed as u64);
        let layer = QuantisedLinear::from_blocks(kind, &bytes, shape, &Device::Cpu).unwrap();
        let storage = QStorage::from_data((&bytes).into(), &Device::Cpu, dtype).unwrap();
        let theirs = QTensor::new(storage, (shape[0], shape[1])).unwrap().dequantize(&Device::Cpu).unwrap();
        assert_eq!(distance(&layer.weight().unwrap(), &theirs), 0.0, "{kind:?}");
        assert!(distance(&theirs, &theirs.zeros_like().unwrap()) > 0.1, "{kind:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn products_are_those_of_the_rounded_weight(rows in 1usize..40, input in 1usize..300, output in 1usize..150) {
        for bits in [Bits::Four, Bits::Eight] {
            let layer = QuantisedLinear::new(&random(&[output, input], 2), bits).unwrap();
            // A value that lies between two steps may be rounded either way.
            let error = error(&layer, rows);
            prop_assert!(error < 1e-3, "{bits:?}: off by {error}");
        }
    }

    #[test]
    fn products_are_those_of_the_blocks(rows in 1usize..20, blocks in 1usize..4, output in 1usize..70) {
        for (kind, _) in KINDS {
            let error = error(&random_layer(kind, [output, blocks * kind.weights()], 3), rows);
            prop_assert!(error < 1e-3, "{kind:?}: off by {error}");
        }
    }
}

#[test]
fn halves_are_what_they_are() {
    for kind in [BlockKind::F16, BlockKind::BF16] {
        let dense = random(&[70, 45], 1);
        let dtype = if kind == BlockKind::F16 { DType::F16 } else { DType::BF16 };
        let dense = dense.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
        let values = dense.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bits = values.iter().map(|x| match kind {
            BlockKind::F16 => f16::from_f32(*x).to_bits(),
            _ => half::bf16::from_f32(*x).to_bits(),
        });
        let bytes: Vec<u8> = bits.flat_map(u16::to_le_bytes).collect();
        let layer = QuantisedLinear::from_blocks(kind, &bytes, [70, 45], &Device::Cpu).unwrap();
        assert_eq!(layer.bytes(), bytes.len());
        assert_eq!(distance(&layer.weight().unwrap(), &dense), 0.0);
        for rows in [1, 7, 15, 16, 90] {
            let error = error(&layer, rows);
            assert!(error < 1e-6, "{kind:?}, {rows} rows: off by {error}");
        }
    }
}

/// Integers that fill their bits, so that sums that do not fit would show.
#[test]
fn every_kind_of_instructions_gives_the_same() {
    for (kind, _) in KINDS {
        let layer = random_layer(kind, [70, 3 * kind.weights()], 5);
        let input = layer.shape()[1];
        let Weight::Packed(weight) = &layer.weight else { panic!("{kind:?} is packed") };
        let x = random(&[15, input], 4).sign().unwrap();
        let x = View::of(&x).unwrap();
        let on = |instructions| {
            let mut out = vec![0f32; 15 * 70];
            multiply_packed(instructions, vec![(weight, &mut out)], &x);
            out
        };
        let mut available = Instructions::available();
        let plain = on(available.next().unwrap());
        let size = plain.iter().fold(0f32, |a, b| a.max(b.abs()));
        for instructions in available {
            for (plain, other) in plain.iter().zip(on(instructions)) {
                assert!((plain - other).abs() < 1e-5 * size, "{kind:?}, {instructions:?}: {plain} {other}");
            }
        }
    }
}

#[test]
fn rows_and_threads_do_not_show() {
    for (kind, _) in KINDS {
        let layer = random_layer(kind, [530, 2 * kind.weights()], 7);
        let x = random(&[29, layer.shape()[1]], 8);
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| layer.forward(&x).unwrap().to_vec2::<f32>().unwrap())
        };
        let all = on(1);
        assert_eq!(all, on(2), "{kind:?}");
        assert_eq!(all, on(5), "{kind:?}");
        for (row, expected) in all.iter().enumerate() {
            let one = layer.forward(&x.narrow(0, row, 1).unwrap()).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(&one[0], expected, "{kind:?}, row {row}");
        }
    }
}

#[test]
fn several_weights_at_once_are_each_alone() {
    let layers = [
        random_layer(BlockKind::Q4K, [70, 256], 1),
        random_layer(BlockKind::Q6K, [3, 256], 2),
        random_layer(BlockKind::Q8_0, [33, 256], 3),
    ];
    let x = random(&[2, 3, 256], 4);
    let together = QuantisedLinear::forward_each(&layers, &x).unwrap();
    for (layer, out) in layers.iter().zip(&together) {
        assert_eq!(distance(&layer.forward(&x).unwrap(), out), 0.0);
        let residual = random(out.dims(), 5);
        let sum = layer.forward_add(&x, &residual).unwrap();
        assert!(distance(&sum, &(out + residual).unwrap()) < 1e-6);
    }
    assert!(QuantisedLinear::forward_each(&layers, &random(&[2, 255], 4)).is_err());
}

#[test]
fn tables_give_their_rows() {
    let layer = random_layer(BlockKind::Q8_0, [50, 96], 1);
    let tokens = Tensor::new(&[[3u32, 49], [0, 3]], &Device::Cpu).unwrap();
    let rows = layer.rows(&tokens).unwrap();
    assert_eq!(rows.dims(), [2, 2, 96]);
    let expected = layer.weight().unwrap().index_select(&tokens.flatten_all().unwrap(), 0).unwrap();
    assert_eq!(distance(&rows.reshape((4, 96)).unwrap(), &expected), 0.0);
    let error = layer.rows(&Tensor::new(&[50u32], &Device::Cpu).unwrap()).unwrap_err().to_string();
    assert!(error.contains("token 50 at 0"), "{error}");
}

#[test]
fn weights_keep_their_places_and_lose_half_a_step_at_most() {
    let weight = random(&[5, 77], 1);
    for (bits, steps, a_group) in [(Bits::Four, 8.0, 18), (Bits::Eight, 127.0, 34)] {
        let layer = QuantisedLinear::new(&weight, bits).unwrap();
        // One step, if the furthest of a group is 1. At the upper end of 4 bits a whole step may be missing.
        let worst = if bits == Bits::Four { 1.0 } else { 0.5 };
        assert!(distance(&layer.weight().unwrap(), &weight) < worst * 1.01 / steps);
        assert_eq!(layer.bytes(), 16 * 3 * a_group);
    }
    let zeros = QuantisedLinear::new(&weight.zeros_like().unwrap(), Bits::Four).unwrap();
    let out = zeros.forward(&random(&[2, 77], 1)).unwrap();
    assert_eq!(distance(&out, &out.zeros_like().unwrap()), 0.0);
    assert!(zeros.forward(&random(&[2, 76], 1)).is_err());
    let bad = Tensor::new(&[[1f32, f32::NAN]], &Device::Cpu).unwrap();
    assert!(QuantisedLinear::new(&bad, Bits::Four).unwrap_err().to_string().contains("element 1"));
    // Weights so small that their scale has few bits in f16.
    let small = (weight * 1e-6).unwrap();
    let layer = QuantisedLinear::new(&small, Bits::Eight).unwrap();
    assert!(distance(&layer.weight().unwrap(), &small) <= 3e-8);
}

#[test]
fn a_wrong_number_of_bytes_is_refused() {
    let refused = |kind, bytes: usize, shape| {
        let bytes = vec![0; bytes];
        QuantisedLinear::from_blocks(kind, &bytes, shape, &Device::Cpu).unwrap_err().to_string()
    };
    assert!(refused(BlockKind::Q4_0, 17, [1, 32]).contains("17 bytes"));
    assert!(refused(BlockKind::Q4K, 144, [1, 128]).contains("whole blocks of 256"));
    assert!(refused(BlockKind::Q8_0, 0, [usize::MAX, 64]).contains("0 bytes"));
}

#[test]
fn a_nan_shows() {
    let layer = QuantisedLinear::new(&random(&[3, 64], 1), Bits::Eight).unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = vec![0.5f32; 64];
        x[40] = bad;
        let out = layer.forward(&Tensor::new(x, &Device::Cpu).unwrap()).unwrap().to_vec1::<f32>().unwrap();
        assert!(out.iter().all(|value| value.is_nan()));
    }
}
