//! Many inner products at once.

/// Inner products of every vector of `a` `[m, dim]` with every vector of `b` `[n, dim]`, into
/// `out` `[m, n]`; all are row-major.
///
/// # Panics
/// If a slice has another length than its shape.
pub(crate) fn inner_products(a: &[f32], b: &[f32], dim: usize, out: &mut [f32]) {
    let (m, n) = (a.len() / dim, b.len() / dim);
    assert!(a.len() == m * dim && b.len() == n * dim && out.len() == m * n);
    // SAFETY: every index that the strides make lies inside the slice: out[i * n + j] for i < m,
    // j < n; a[i * dim + l] and b[j * dim + l] for l < dim. The lengths are asserted above, `out`
    // is borrowed mutably so it overlaps neither input, and it is not read (`read_dst` is false).
    unsafe {
        gemm::gemm(
            m,
            n,
            dim,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            1,
            dim as isize,
            b.as_ptr(),
            dim as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::dot;

    #[test]
    fn agrees_with_dot_at_odd_shapes() {
        for (m, n, dim) in [(1, 1, 1), (3, 5, 7), (17, 33, 20), (4, 100, 65)] {
            let a: Vec<f32> = (0..m * dim).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..n * dim).map(|i| (i as f32 * 0.91).cos()).collect();
            let mut out = vec![f32::NAN; m * n];
            inner_products(&a, &b, dim, &mut out);
            for i in 0..m {
                for j in 0..n {
                    let wanted = dot(&a[i * dim..][..dim], &b[j * dim..][..dim]);
                    assert!((out[i * n + j] - wanted).abs() < 1e-4, "({m}, {n}, {dim}) at ({i}, {j})");
                }
            }
        }
    }
}
