//! Rows of input by strips of a packed weight.
//!
//! Sums of products within a group are of integers and so exact; groups are added up in their order. A row's result
//! therefore does not depend on which other rows it is computed with, nor on the number of threads.

use super::blocks::GROUP;
use super::input::Input;
use super::packed::{Packed, ROWS};

/// The vector instructions that products are made of. Nobody outside of this file can make one that this processor has not.
#[derive(Clone, Copy, Debug)]
pub struct Instructions(Kind);

#[derive(Clone, Copy, Debug)]
enum Kind {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Vnni,
}

impl Instructions {
    /// Those that this processor has, plain ones first and the best last.
    pub fn available() -> impl DoubleEndedIterator<Item = Self> {
        let mut all = vec![Self(Kind::Plain)];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                all.push(Self(Kind::Avx2));
            }
            if has!("avx512f") && has!("avx512bw") && has!("avx512vnni") {
                all.push(Self(Kind::Vnni));
            }
        }
        all.into_iter()
    }

    /// The best that this processor has.
    pub fn best() -> Self {
        static BEST: std::sync::OnceLock<Instructions> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| Self::available().next_back().unwrap_or(Self(Kind::Plain)))
    }
}

/// Calls `write(row of input, 16 results)` for all rows of input by one strip of the weight.
///
/// # Panics
/// When the input is not rounded in as many groups as the weight has, or there is no such strip.
pub fn strip(
    instructions: Instructions,
    weight: &Packed,
    strip: usize,
    x: &Input,
    mut write: impl FnMut(usize, &[f32; ROWS]),
) {
    assert!(x.groups == weight.groups && strip < weight.strips(), "the input fits the weight");
    let rows = x.facts.len() / x.groups.max(1);
    match instructions.0 {
        Kind::Plain => (0..rows).for_each(|row| write(row, &plain(weight, strip, x, row))),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has these instructions (see `Instructions`), and all sizes fit (asserted above).
        Kind::Avx2 => unsafe { super::avx2::strip(weight, strip, x, rows, &mut write) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Kind::Vnni => unsafe { super::vnni::strip(weight, strip, x, rows, &mut write) },
    }
}

fn plain(weight: &Packed, strip: usize, x: &Input, row: usize) -> [f32; ROWS] {
    let (scales, part) = (weight.kind.scales(), GROUP / weight.kind.scales());
    let mut out = [0f32; ROWS];
    for group in 0..weight.groups {
        let facts = x.facts[row * x.groups + group];
        let values = &x.values[(row * x.groups + group) * GROUP..][..GROUP];
        for (lane, out) in out.iter_mut().enumerate() {
            let mut sum = 0.0;
            for half in 0..scales {
                let total = if scales == 2 { facts.sums[half] } else { facts.sums[0] + facts.sums[1] };
                let mut dot = -weight.kind.offset() * total;
                for column in half * part..(half + 1) * part {
                    dot += i32::from(weight.code(strip, group, lane, column)) * i32::from(values[column]);
                }
                let (scale, minimum) = weight.scale(strip, group, half, lane);
                sum += dot as f32 * facts.scale * scale + minimum * facts.total;
            }
            *out += sum;
        }
    }
    out
}
