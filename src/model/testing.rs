//! What tests of several networks ask.

use candle_core::{Tensor, Var};
use sidenote_kernels::{self as kernels, Activations};

/// Fails unless `loss` and its gradients are the same when activations are computed again, and these are not kept: where a part
/// is run with something else than at first, left out, or its gradients are lost or added twice.
pub fn assert_alike_when_recomputed(name: &str, variables: &[(String, Var)], loss: impl Fn() -> Tensor) {
    let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let kept = loss();
    let wanted = kernels::backward(&kept).unwrap();
    let size = |x: &[f32]| x.iter().fold(0f32, |most, x| most.max(x.abs()));
    // Some gradients are 0 but for rounding, such as those of biases that softmax does not see.
    let gradients = variables.iter().filter_map(|(_, variable)| wanted.get(variable));
    let largest = gradients.map(|gradient| size(&values(gradient))).fold(0.0, f32::max);
    for blocks in [1, 2, 9] {
        Activations::Recomputed(blocks).run(|| {
            let again = loss();
            assert_eq!(values(&again), values(&kept), "{name} by {blocks}");
            let (few, all) = (again.sorted_nodes().len(), kept.sorted_nodes().len());
            assert!(2 * few < all, "{name} by {blocks}: {few} tensors are kept, of {all}");
            let found = kernels::backward(&again).unwrap();
            for (weight, variable) in variables {
                let (Some(a), Some(b)) = (wanted.get(variable), found.get(variable)) else {
                    assert!(
                        wanted.get(variable).is_none() && found.get(variable).is_none(),
                        "{name} {weight}"
                    );
                    continue;
                };
                let (a, b) = (values(a), values(b));
                let gap = size(&a.iter().zip(&b).map(|(a, b)| a - b).collect::<Vec<_>>());
                let most = 1e-5 * size(&a) + 1e-6 * largest;
                assert!(largest > 0.0 && gap <= most, "{name} {weight} by {blocks}: {gap:e}, not {most:e}");
            }
        });
    }
}
