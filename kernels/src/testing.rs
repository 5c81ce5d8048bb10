//! How every operation is checked: the `f32` operation against the `f64` composed one, values and
//! gradients, and the latter's gradients against central differences.

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Uniform values in [-1, 1).
pub fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The largest absolute difference.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    if a.elem_count() == 0 {
        return 0.0;
    }
    let difference = (a.to_dtype(DType::F64).unwrap() - b.to_dtype(DType::F64).unwrap()).unwrap();
    let worst = difference.abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    let worst = worst.to_scalar::<f64>().unwrap();
    assert!(!worst.is_nan());
    worst
}

/// The value of `op` and the gradients of a random weighting of it with regard to every input, which must be the
/// same by [`crate::backward`] and by candle.
pub fn value_and_gradients(
    inputs: &[Tensor],
    dtype: DType,
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> (Tensor, Vec<Tensor>) {
    let vars: Vec<Var> =
        inputs.iter().map(|x| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let value = op(&tensors).unwrap();
    let loss = weighted(&value);
    let (grads, candles) = (crate::backward(&loss).unwrap(), loss.backward().unwrap());
    let gradients: Vec<Tensor> =
        vars.iter().map(|v| grads.get(v).expect("an input got no gradient").clone()).collect();
    for (gradient, var) in gradients.iter().zip(&vars) {
        let difference = distance(gradient, candles.get(var).expect("candle gives no gradient"));
        assert!(difference == 0.0, "candle's backward pass differs by {difference}");
    }
    (value, gradients)
}

fn weighted(value: &Tensor) -> Tensor {
    let weights = random(value.dims(), 99).to_dtype(value.dtype()).unwrap();
    (value * weights).unwrap().sum_all().unwrap()
}

/// Asserts that `op` in `f32` gives the values and gradients of `op` in `f64` (which is composed).
pub fn assert_matches_f64(inputs: &[Tensor], tolerance: f64, op: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let (value, gradients) = value_and_gradients(inputs, DType::F32, &op);
    let (exact, exact_gradients) = value_and_gradients(inputs, DType::F64, &op);
    let scale = |t: &Tensor| 1.0 + distance(t, &t.zeros_like().unwrap());
    let error = distance(&value, &exact) / scale(&exact);
    assert!(error <= tolerance, "value is off by {error:e}");
    for (i, (gradient, exact)) in gradients.iter().zip(&exact_gradients).enumerate() {
        let error = distance(gradient, exact) / scale(exact);
        assert!(error <= tolerance, "gradient of input {i} is off by {error:e}");
    }
}

/// Asserts that the gradients of `op` in `f64` are those that central differences give.
pub fn assert_gradients_are_slopes(inputs: &[Tensor], op: impl Fn(&[Tensor]) -> Result<Tensor>) {
    const STEP: f64 = 1e-5;
    let inputs: Vec<Tensor> = inputs.iter().map(|x| x.to_dtype(DType::F64).unwrap()).collect();
    let (_, gradients) = value_and_gradients(&inputs, DType::F64, &op);
    for (i, gradient) in gradients.iter().enumerate() {
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let values = inputs[i].flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for (j, &expected) in gradient.iter().enumerate() {
            let at = |offset: f64| {
                let mut moved = values.clone();
                moved[j] += offset;
                let mut inputs = inputs.clone();
                inputs[i] = Tensor::from_vec(moved, inputs[i].shape(), &Device::Cpu).unwrap();
                weighted(&op(&inputs).unwrap()).to_scalar::<f64>().unwrap()
            };
            let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            assert!(
                (slope - expected).abs() <= 1e-6 * (1.0 + slope.abs()),
                "input {i}, element {j}: gradient {expected}, slope {slope}"
            );
        }
    }
}

/// Asserts that `op` in `f32` gives the same bits, values and gradients, on 1 and on 5 threads.
pub fn assert_same_on_any_number_of_threads(
    inputs: &[Tensor],
    op: impl Fn(&[Tensor]) -> Result<Tensor> + Sync,
) {
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| value_and_gradients(inputs, DType::F32, &op))
    };
    let (one, many) = (on(1), on(5));
    let bits = |t: &Tensor| -> Vec<u32> {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    assert_eq!(bits(&one.0), bits(&many.0), "value");
    for (i, (a, b)) in one.1.iter().zip(&many.1).enumerate() {
        assert_eq!(bits(a), bits(b), "gradient of input {i}");
    }
}
