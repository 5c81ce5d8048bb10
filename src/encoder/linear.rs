//! The linear algebra of distillation: principal axes of a set of rows.

/// The `to` leading axes, `[from, to]` in column-major order (axis after axis, each of `from` numbers
/// and unit length), of the second moments of `rows` `[n, from]`. Rows are not centred: projecting
/// onto the axes then keeps inner products as well as `to` numbers can (Eckart-Young).
pub(super) fn principal_axes(rows: &[f32], from: usize, to: usize) -> Vec<f32> {
    let mut moments = vec![0f64; from * from];
    for row in rows.chunks_exact(from) {
        for i in 0..from {
            let x = f64::from(row[i]);
            for j in 0..=i {
                moments[i * from + j] += x * f64::from(row[j]);
            }
        }
    }
    for i in 0..from {
        for j in 0..i {
            moments[j * from + i] = moments[i * from + j];
        }
    }
    let (values, vectors) = symmetric_eigen(moments, from);
    let mut order: Vec<usize> = (0..from).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    order[..to].iter().flat_map(|&k| vectors[k * from..][..from].iter().map(|&x| x as f32)).collect()
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
    fn projection_keeps_the_inner_products_of_rows_in_a_plane() {
        // Rows a * u + b * w of five numbers lie in a plane; two axes lose nothing.
        let (u, w) = ([1.0, 2.0, 0.0, -1.0, 0.5], [0.0, 1.0, 3.0, 1.0, -2.0]);
        let rows: Vec<f32> = [(1.0, 0.0), (0.5, -1.0), (2.0, 0.3), (-1.0, 0.7)]
            .iter()
            .flat_map(|(a, b)| (0..5).map(move |i| a * u[i] + b * w[i]))
            .collect();
        let small = project(&rows, &principal_axes(&rows, 5, 2), 5);
        assert_eq!(small.len(), 4 * 2);
        let dot = |rows: &[f32], dim: usize, i: usize, j: usize| -> f32 {
            (0..dim).map(|k| rows[i * dim + k] * rows[j * dim + k]).sum()
        };
        for (i, j) in [(0, 0), (0, 1), (1, 2), (2, 3)] {
            assert!((dot(&rows, 5, i, j) - dot(&small, 2, i, j)).abs() < 1e-4);
        }
    }
}
