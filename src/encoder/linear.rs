//! The linear algebra of distillation: whitening a set of weighted rows.

use rayon::prelude::*;

/// Subtracts from each of `rows` `[n, dim]` their mean under `weights` `[n]`, which sum to one.
pub(super) fn centre(rows: &mut [f32], dim: usize, weights: &[f64]) {
    let mut mean = vec![0f64; dim];
    for (row, weight) in rows.chunks_exact(dim).zip(weights) {
        mean.iter_mut().zip(row).for_each(|(sum, &x)| *sum += weight * f64::from(x));
    }
    for row in rows.chunks_exact_mut(dim) {
        row.iter_mut().zip(&mean).for_each(|(x, mean)| *x -= *mean as f32);
    }
}

/// The `to` leading principal axes of `rows` `[n, from]` under `weights` `[n]`, one after another,
/// each of `from` numbers and divided by the root of the rows' mean square along it: projected onto
/// them, the rows have moments proportional to the identity. Axes without extent are zero.
pub(super) fn whitening_axes(rows: &[f32], from: usize, weights: &[f64], to: usize) -> Vec<f32> {
    // Row i of the moments, all rows at once.
    let mut moments = vec![0f64; from * from];
    moments.par_chunks_exact_mut(from).enumerate().for_each(|(i, moment)| {
        for (row, weight) in rows.chunks_exact(from).zip(weights) {
            let x = weight * f64::from(row[i]);
            moment.iter_mut().zip(row).for_each(|(sum, &y)| *sum += x * f64::from(y));
        }
    });
    let total: f64 = weights.iter().sum();
    let (values, vectors) = symmetric_eigen(moments, from);
    let mut order: Vec<usize> = (0..from).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    let largest = order.first().map_or(0.0, |&k| values[k]);
    let axis = |&k: &usize| {
        let extent = if values[k] > 1e-9 * largest { (total / values[k]).sqrt() } else { 0.0 };
        vectors[k * from..][..from].iter().map(move |&x| (x * extent) as f32)
    };
    order[..to].iter().flat_map(axis).collect()
}

/// Rows `[n, from]` in the coordinates of `axes`: `[n, to]`.
pub(super) fn project(rows: &[f32], axes: &[f32], from: usize) -> Vec<f32> {
    let dot = |row: &[f32], axis: &[f32]| row.iter().zip(axis).map(|(a, b)| a * b).sum::<f32>();
    rows.chunks_exact(from).flat_map(|row| axes.chunks_exact(from).map(move |axis| dot(row, axis))).collect()
}

/// Eigenvalues and unit eigenvectors (row `k` belongs to value `k`) of a symmetric `[n, n]` matrix,
/// by Jacobi's rotations (Golub & Van Loan, Matrix Computations, section 8.5.3).
fn symmetric_eigen(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    const SWEEPS: usize = 30;
    let mut v = vec![0f64; n * n];
    (0..n).for_each(|i| v[i * n + i] = 1.0);
    let total: f64 = a.iter().map(|x| x * x).sum();
    for _ in 0..SWEEPS {
        let off: f64 =
            (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i * n + j].powi(2)).sum();
        if off <= 1e-22 * total {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                let apq = a[p * n + q];
                if apq == 0.0 {
                    continue;
                }
                let tau = (a[q * n + q] - a[p * n + p]) / (2.0 * apq);
                let t = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
                let c = 1.0 / (1.0 + t * t).sqrt();
                let s = t * c;
                rotate_rows(&mut a, n, p, q, c, s);
                for k in 0..n {
                    let (x, y) = (a[k * n + p], a[k * n + q]);
                    a[k * n + p] = c * x - s * y;
                    a[k * n + q] = s * x + c * y;
                }
                rotate_rows(&mut v, n, p, q, c, s);
            }
        }
    }
    ((0..n).map(|i| a[i * n + i]).collect(), v)
}

/// Turns rows `p < q` of an `[n, n]` matrix by the rotation with cosine `c` and sine `s`.
fn rotate_rows(matrix: &mut [f64], n: usize, p: usize, q: usize, c: f64, s: f64) {
    let (head, tail) = matrix.split_at_mut(q * n);
    for (x, y) in head[p * n..][..n].iter_mut().zip(&mut tail[..n]) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn eigen_of_a_known_matrix() {
        // Eigenvalues 2 - sqrt 2, 2, 2 + sqrt 2.
        let (mut values, vectors) = symmetric_eigen(vec![2., -1., 0., -1., 2., -1., 0., -1., 2.], 3);
        for k in 0..3 {
            let v = &vectors[k * 3..][..3];
            let av = [2. * v[0] - v[1], 2. * v[1] - v[0] - v[2], 2. * v[2] - v[1]];
            (0..3).for_each(|i| assert!((av[i] - values[k] * v[i]).abs() < 1e-12));
            assert!((v.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-12);
        }
        values.sort_by(f64::total_cmp);
        for (value, expected) in values.iter().zip([2.0 - 2f64.sqrt(), 2.0, 2.0 + 2f64.sqrt()]) {
            assert!((value - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn whitened_rows_have_identity_moments() {
        let (from, to) = (5, 3);
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let mut rows: Vec<f32> =
            (0..40 * from).map(|i| random.random::<f32>() * (1 + i % from) as f32).collect();
        let mut weights: Vec<f64> = (0..40).map(|_| random.random::<f64>()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= total);
        centre(&mut rows, from, &weights);
        let white = project(&rows, &whitening_axes(&rows, from, &weights, to), from);
        for a in 0..to {
            let column = |k: usize| white.iter().skip(k).step_by(to).map(|&x| f64::from(x));
            let mean: f64 = column(a).zip(&weights).map(|(x, weight)| x * weight).sum();
            assert!(mean.abs() < 1e-5, "mean {mean}");
            for b in 0..to {
                let moment: f64 = column(a).zip(column(b)).zip(&weights).map(|((x, y), w)| x * y * w).sum();
                assert!((moment - if a == b { 1.0 } else { 0.0 }).abs() < 1e-4, "{a} {b} {moment}");
            }
        }
    }

    #[test]
    fn axes_without_extent_are_zero() {
        let rows = [1.0, 2.0, 0.0, -1.0, -2.0, 0.0];
        let axes = whitening_axes(&rows, 3, &[0.5, 0.5], 2);
        assert!(axes[..3].iter().any(|&x| x != 0.0) && axes.iter().all(|x| x.is_finite()));
        assert_eq!(axes[3..], [0.0; 3]);
    }
}
