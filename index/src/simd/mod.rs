//! Vector instructions, chosen when the program starts.
//!
//! Three operations carry a search: inner products and squared distances of vectors (`f32`, bf16 and
//! bytes with `f32`), and the estimates that a block of 32 one-bit codes gives (see
//! [`crate::blocks`]); one carries the building of a graph: inner products of many vectors of bytes.
//! Each is written once in
//! plain Rust (`scalar`), which says what it means, and again for AVX2, AVX-512 and NEON. **All of
//! them give the same bits**: sums are kept in the same 64 lanes and folded in the same order, and
//! products are rounded before they are added (no fused multiply-add), so that what a search finds
//! does not depend on the machine. The tests compare every set that the machine has with `scalar`.
//!
//! NEON has passed these tests under QEMU; no aarch64 machine was at hand to time it on:
//! `cargo test -p sidenote-index --lib --target aarch64-unknown-linux-gnu simd` with a cross linker and
//! `qemu-aarch64-static` as the runner.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

use std::sync::OnceLock;

/// Codes in a block.
pub(crate) const BLOCK: usize = 32;
/// Bytes that four dimensions take in a block of codes, and in a query's tables.
pub(crate) const GROUP_BYTES: usize = 16;
/// Groups of four dimensions come in multiples of this, so that 64 bytes are read at a time.
pub(crate) const GROUP_MULTIPLE: usize = 4;
/// Sums of bytes fit 16 bits for so many groups.
const GROUPS_IN_U16: usize = 256;
/// Vectors of bytes that lie side by side in a panel, this many numbers of one and then of the next.
pub(crate) const PANEL: usize = 16;
/// See [`PANEL`].
pub(crate) const PANEL_GROUP: usize = 4;
/// Lanes that sums over vectors are kept in.
const LANES: usize = 64;

/// What a query is to a block of codes: see [`estimates`].
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    /// What one step of the tables is worth.
    pub unit: f32,
    /// What a sum of zero stands for.
    pub shift: f32,
    /// The part of the score that is the query's own.
    pub base: f32,
}

/// A vector of bytes: the code c stands for `offset + step * c`.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a> {
    pub offset: f32,
    pub step: f32,
    pub codes: &'a [u8],
}

impl Bytes<'_> {
    /// What a code stands for: both operations are rounded, which all sets keep to.
    #[inline(always)]
    pub fn number(self, code: u8) -> f32 {
        self.offset + self.step * f32::from(code)
    }
}

/// The number whose upper half these bits are.
#[inline(always)]
pub(crate) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// What [`estimates`] takes and gives.
type Estimates = fn(&[u8], &[u8], &[f32], Scale, f32, &mut [f32; BLOCK]) -> u32;

/// One set of implementations.
#[derive(Clone, Copy)]
struct Set {
    name: &'static str,
    dot: fn(&[f32], &[f32]) -> f32,
    squared_distance: fn(&[f32], &[f32]) -> f32,
    dot_bf16: fn(&[u16], &[f32]) -> f32,
    squared_distance_bf16: fn(&[u16], &[f32]) -> f32,
    dot_bytes: fn(Bytes, &[f32]) -> f32,
    squared_distance_bytes: fn(Bytes, &[f32]) -> f32,
    estimates: Estimates,
    masked_sum: fn(&[u64], &[f32]) -> f32,
    byte_products: fn(&[&[i8]], &[i8], &mut [i32]),
}

fn sets() -> Vec<Set> {
    #[allow(unused_mut)]
    let mut sets = vec![scalar::SET];
    #[cfg(target_arch = "x86_64")]
    {
        sets.extend(avx2::set());
        sets.extend(avx512::set());
    }
    #[cfg(target_arch = "aarch64")]
    sets.extend(neon::set());
    sets
}

fn best() -> &'static Set {
    static BEST: OnceLock<Set> = OnceLock::new();
    BEST.get_or_init(|| sets().pop().unwrap_or(scalar::SET))
}

/// The vector instructions in use: `"scalar"`, `"avx2"`, `"avx512"` or `"neon"`.
pub fn instructions() -> &'static str {
    best().name
}

/// Inner product of two vectors of the same length.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    (best().dot)(a, b)
}

/// Squared Euclidean distance of two vectors of the same length.
pub(crate) fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    (best().squared_distance)(a, b)
}

/// Inner product of a vector of bf16 with one of `f32` of the same length: the bits that [`dot`] has
/// for the numbers they stand for. So for the three that follow.
pub(crate) fn dot_bf16(a: &[u16], b: &[f32]) -> f32 {
    (best().dot_bf16)(a, b)
}

/// Squared Euclidean distance of a vector of bf16 from one of `f32` of the same length.
pub(crate) fn squared_distance_bf16(a: &[u16], b: &[f32]) -> f32 {
    (best().squared_distance_bf16)(a, b)
}

/// Inner product of a vector of bytes with one of `f32` of the same length.
pub(crate) fn dot_bytes(a: Bytes, b: &[f32]) -> f32 {
    (best().dot_bytes)(a, b)
}

/// Squared Euclidean distance of a vector of bytes from one of `f32` of the same length.
pub(crate) fn squared_distance_bytes(a: Bytes, b: &[f32]) -> f32 {
    (best().squared_distance_bytes)(a, b)
}

/// Estimates of 32 scores from a block of codes.
///
/// `codes` and `tables` are `[groups, 16]`: byte `j` of group `g` holds four bits of code `j` (low)
/// and of code `j + 16` (high), and byte `p` of the tables is what the pattern `p` adds. With `sum`
/// the sum of a code's 4-bit look-ups over all groups, code `i` gets
///
/// ```text
/// out[i] = base + factors[i] + factors[32 + i] * (unit * sum + shift)
/// ```
///
/// Returns a bit for each estimate that is at least `least`, or is NaN.
pub(crate) fn estimates(
    codes: &[u8],
    tables: &[u8],
    factors: &[f32],
    scale: Scale,
    least: f32,
    out: &mut [f32; BLOCK],
) -> u32 {
    (best().estimates)(codes, tables, factors, scale, least, out)
}

/// The sum of those numbers whose bits are set; `bits` holds one for each number, lowest first.
pub(crate) fn masked_sum(bits: &[u64], numbers: &[f32]) -> f32 {
    (best().masked_sum)(bits, numbers)
}

/// Inner products of vectors of bytes with all vectors of some panels.
///
/// `rows` are vectors of the same length, a multiple of [`PANEL_GROUP`]; `panels` is
/// `[panels, length / PANEL_GROUP, PANEL, PANEL_GROUP]`; `out` is `[rows, panels * PANEL]`. Numbers are
/// at least -127.
///
/// # Panics
/// If a slice has another length than its shape.
pub(crate) fn byte_products(rows: &[&[i8]], panels: &[i8], out: &mut [i32]) {
    let Some(first) = rows.first() else { return };
    let dim = first.len();
    assert!(dim.is_multiple_of(PANEL_GROUP) && rows.iter().all(|row| row.len() == dim));
    assert!(dim > 0 && panels.len().is_multiple_of(PANEL * dim));
    assert_eq!(out.len(), rows.len() * panels.len() / dim);
    (best().byte_products)(rows, panels, out)
}

/// Asks for numbers to be brought nearer, into the second cache. No more than a hint.
#[inline(always)]
pub(crate) fn prefetch<T>(numbers: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in numbers.chunks(64 / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that the program sees, and never faults; SSE is part of
        // x86_64.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = numbers;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: f32) -> Vec<f32> {
        (0..n).map(|i| ((i as f32 + seed) * 0.7312).sin() * 3.0).collect()
    }

    fn bytes(n: usize, seed: usize) -> Vec<u8> {
        (0..n).map(|i| (((i * 37 + seed) * 2654435761) >> 7) as u8).collect()
    }

    #[test]
    fn every_set_gives_the_bits_of_scalar() {
        let sets = sets();
        println!("sets: {:?}", sets.iter().map(|set| set.name).collect::<Vec<_>>());
        for n in (0..70).chain([127, 128, 129, 384, 768, 1000]) {
            let (a, b) = (numbers(n, 0.0), numbers(n, 9.0));
            let bits: Vec<u64> =
                (0..n.div_ceil(64)).map(|i| 0x9E3779B97F4A7C15u64.rotate_left(i as u32)).collect();
            for set in &sets {
                for (own, plain, what) in [
                    ((set.dot)(&a, &b), scalar::dot(&a, &b), "dot"),
                    ((set.squared_distance)(&a, &b), scalar::squared_distance(&a, &b), "distance"),
                    ((set.masked_sum)(&bits, &a), scalar::masked_sum(&bits, &a), "masked sum"),
                ] {
                    assert_eq!(
                        own.to_bits(),
                        plain.to_bits(),
                        "{what} of {} at {n}: {own} {plain}",
                        set.name
                    );
                }
            }
        }
    }

    /// Against [`dot`] and [`squared_distance`] of the numbers that the codes stand for. Fails with a
    /// fused multiply-add in the decoding, and when places beyond the last code count as the offset.
    #[test]
    fn every_set_reads_bf16_and_bytes_as_the_numbers_they_stand_for() {
        for n in (0..70).chain([127, 128, 129, 384, 768, 1000]) {
            let query = numbers(n, 9.0);
            let halves: Vec<u16> = numbers(n, 0.0).iter().map(|x| (x.to_bits() >> 16) as u16).collect();
            let codes = bytes(n, 5);
            let row = Bytes { offset: -1.2345, step: 0.01234, codes: &codes };
            let from_halves: Vec<f32> = halves.iter().copied().map(from_bf16).collect();
            let from_bytes: Vec<f32> = codes.iter().map(|&code| row.number(code)).collect();
            for set in &sets() {
                for (own, plain, what) in [
                    ((set.dot_bf16)(&halves, &query), scalar::dot(&from_halves, &query), "dot, bf16"),
                    (
                        (set.squared_distance_bf16)(&halves, &query),
                        scalar::squared_distance(&from_halves, &query),
                        "distance, bf16",
                    ),
                    ((set.dot_bytes)(row, &query), scalar::dot(&from_bytes, &query), "dot, bytes"),
                    (
                        (set.squared_distance_bytes)(row, &query),
                        scalar::squared_distance(&from_bytes, &query),
                        "distance, bytes",
                    ),
                ] {
                    assert_eq!(
                        own.to_bits(),
                        plain.to_bits(),
                        "{what} of {} at {n}: {own} {plain}",
                        set.name
                    );
                }
            }
        }
    }

    #[test]
    fn every_set_estimates_the_same() {
        for groups in [4, 8, 64, 96, 256, 260, 1024] {
            let codes = bytes(groups * GROUP_BYTES, 1);
            // The largest tables too: sums must not overflow their 16 bits.
            for tables in [bytes(groups * GROUP_BYTES, 2), vec![255; groups * GROUP_BYTES]] {
                let mut factors = numbers(2 * BLOCK, 5.0);
                factors[3] = f32::NAN;
                let scale = Scale { unit: 0.25, shift: -30.0, base: 1.5 };
                let mut plain = [0.0; BLOCK];
                let least = 40.0;
                let wanted = scalar::estimates(&codes, &tables, &factors, scale, least, &mut plain);
                assert!(wanted & 1 << 3 != 0, "NaN must be let through");
                for set in sets() {
                    let mut own = [0.0; BLOCK];
                    let found = (set.estimates)(&codes, &tables, &factors, scale, least, &mut own);
                    assert_eq!(found, wanted, "{} with {groups} groups", set.name);
                    assert_eq!(
                        own.map(f32::to_bits),
                        plain.map(f32::to_bits),
                        "{} with {groups} groups",
                        set.name
                    );
                }
            }
        }
    }

    #[test]
    fn every_set_multiplies_bytes_exactly() {
        for (dim, count, panels) in [(4, 1, 1), (8, 3, 2), (60, 9, 3), (64, 17, 5), (388, 8, 16)] {
            // The largest too: sums of two products must not overflow their 16 bits.
            for wild in [false, true] {
                let number = |i: usize| match wild {
                    true => [-127, 127][i % 2],
                    false => (bytes(1, i)[0] as i8).max(-127),
                };
                let rows: Vec<Vec<i8>> =
                    (0..count).map(|row| (0..dim).map(|i| number(row * dim + i)).collect()).collect();
                let rows: Vec<&[i8]> = rows.iter().map(Vec::as_slice).collect();
                let others: Vec<i8> = (0..panels * PANEL * dim).map(|i| number(i * 3 + 7)).collect();
                for set in sets() {
                    let mut out = vec![i32::MIN; count * panels * PANEL];
                    (set.byte_products)(&rows, &others, &mut out);
                    for (place, &found) in out.iter().enumerate() {
                        let (row, other) = (place / (panels * PANEL), place % (panels * PANEL));
                        let wanted: i32 = (0..dim)
                            .map(|i| {
                                let group = other / PANEL * dim / PANEL_GROUP + i / PANEL_GROUP;
                                let slot = group * PANEL + other % PANEL;
                                i32::from(rows[row][i])
                                    * i32::from(others[slot * PANEL_GROUP + i % PANEL_GROUP])
                            })
                            .sum();
                        assert_eq!(found, wanted, "{} at {dim}, {count}, {panels}: {place}", set.name);
                    }
                }
            }
        }
    }

    #[test]
    fn estimates_are_what_the_definition_says() {
        let groups = 8;
        let codes = bytes(groups * GROUP_BYTES, 3);
        let tables = bytes(groups * GROUP_BYTES, 4);
        let factors = numbers(2 * BLOCK, 1.0);
        let scale = Scale { unit: 0.5, shift: 2.0, base: -1.0 };
        let mut out = [0.0; BLOCK];
        let mask = estimates(&codes, &tables, &factors, scale, 10.0, &mut out);
        for i in 0..BLOCK {
            let sum: u32 = (0..groups)
                .map(|g| {
                    let byte = codes[g * 16 + i % 16];
                    let pattern = if i < 16 { byte & 15 } else { byte >> 4 };
                    u32::from(tables[g * 16 + usize::from(pattern)])
                })
                .sum();
            let wanted = -1.0 + factors[i] + factors[32 + i] * (0.5 * sum as f32 + 2.0);
            assert!((out[i] - wanted).abs() < 1e-3, "{i}: {} {wanted}", out[i]);
            assert_eq!(mask >> i & 1 == 1, out[i] >= 10.0);
        }
    }
}
