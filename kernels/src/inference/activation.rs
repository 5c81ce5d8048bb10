//! Activation functions in place.

use crate::Activation;
use crate::simd::{exp, sigmoid, vectorised};

impl Activation {
    /// Applies it to every number, in place.
    pub fn apply(self, x: &mut [f32]) {
        match self {
            Self::Gelu => gelu(x),
            Self::GeluTanh => gelu_tanh(x),
            Self::Relu => x.iter_mut().for_each(|x| *x = x.max(0.0)),
            Self::Silu => silu(x),
        }
    }
}

vectorised! {
    fn gelu(x: &mut [f32]) {
        for x in x {
            *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
        }
    }

    fn gelu_tanh(x: &mut [f32]) {
        const ROOT: f32 = 0.797_884_6; // sqrt(2 / pi)
        for x in x {
            let inner = ROOT * (*x + 0.044_715 * *x * *x * *x);
            // (1 + tanh(y)) / 2 = 1 / (1 + e^-2y)
            *x /= 1.0 + exp(-2.0 * inner);
        }
    }

    fn silu(x: &mut [f32]) {
        for x in x {
            *x *= sigmoid(*x);
        }
    }
}

/// The error function to within 5e-7: an odd rational approximation on [-4, 4], beyond which f32
/// knows only plus and minus one. Coefficients as in Eigen's `generic_fast_erf_float`.
#[inline(always)]
fn erf(x: f32) -> f32 {
    const P: [f32; 7] = [
        -2.726_142_3e-10,
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906_3e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ];
    const Q: [f32; 5] = [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2];
    let x = if x < -4.0 { -4.0 } else { x };
    let x = if x > 4.0 { 4.0 } else { x };
    let y = x * x;
    let p = (((((P[0] * y + P[1]) * y + P[2]) * y + P[3]) * y + P[4]) * y + P[5]) * y + P[6];
    let q = (((Q[0] * y + Q[1]) * y + Q[2]) * y + Q[3]) * y + Q[4];
    x * p / q
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_right_at_known_points() {
        // Abramowitz & Stegun, table 7.1.
        for (x, value) in [
            (0.0, 0.0),
            (0.1, 0.112_462_916_0),
            (0.5, 0.520_499_877_8),
            (1.0, 0.842_700_792_9),
            (1.5, 0.966_105_146_5),
            (2.0, 0.995_322_265_0),
            (3.0, 0.999_977_909_5),
            (9.0, 1.0),
        ] {
            for sign in [1.0, -1.0] {
                let error = (f64::from(erf(sign * x)) - f64::from(sign) * value).abs();
                assert!(error < 5e-7, "erf({x}) is off by {error:e}");
            }
        }
    }

    #[test]
    fn activations_are_right() {
        let points: Vec<f32> = (-90..90).map(|i| i as f32 / 7.0).collect();
        let check = |activation: Activation, exact: fn(f64) -> f64| {
            let mut values = points.clone();
            activation.apply(&mut values);
            for (&x, &y) in points.iter().zip(&values) {
                let error = (f64::from(y) - exact(f64::from(x))).abs();
                assert!(error < 1e-6 * (1.0 + f64::from(x).abs()), "{activation:?}({x}) is off by {error:e}");
            }
        };
        let tanh = |x: f64| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        };
        check(Activation::GeluTanh, tanh);
        check(Activation::Relu, |x| x.max(0.0));
        check(Activation::Silu, |x| x / (1.0 + (-x).exp()));
        // The exact form is within 5e-4 of its approximation, and its erf is tested above.
        let mut values = points.clone();
        Activation::Gelu.apply(&mut values);
        assert!(points.iter().zip(&values).all(|(&x, &y)| (f64::from(y) - tanh(f64::from(x))).abs() < 5e-4));
    }
}
