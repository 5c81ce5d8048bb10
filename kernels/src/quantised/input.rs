//! Inputs rounded to 8 bits, as llama.cpp does it, so that products are of integers.

use super::blocks::GROUP;
use crate::simd::vectorised;

/// Rows of inputs, each group of 32 rounded to 8 bits with a scale of its own.
#[derive(Debug)]
pub struct Input {
    /// Of one row, filled up with zeros.
    pub groups: usize,
    /// `[rows, groups * 32]`.
    pub values: Vec<i8>,
    /// `[rows, groups]`.
    pub facts: Vec<Facts>,
}

/// What goes with a group of rounded inputs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    pub scale: f32,
    /// The sum of the inputs as they are after rounding.
    pub total: f32,
    /// Of its first and second 16 integers.
    pub sums: [i32; 2],
}

impl Input {
    /// Rounds rows of `width` values and fills each up to `groups` groups.
    pub fn new(x: &[f32], width: usize, groups: usize) -> Self {
        let rows = x.len() / width.max(1);
        let mut input = Self {
            groups,
            values: vec![0; rows * groups * GROUP],
            facts: vec![Facts::default(); rows * groups],
        };
        if rows * groups > 0 {
            let out = input.values.chunks_exact_mut(groups * GROUP).zip(input.facts.chunks_exact_mut(groups));
            x.chunks_exact(width).zip(out).for_each(|(x, (values, facts))| round(x, values, facts));
        }
        input
    }
}

vectorised! {
    fn round(x: &[f32], values: &mut [i8], facts: &mut [Facts]) {
        let groups = values.as_chunks_mut::<GROUP>().0.iter_mut().zip(facts);
        for (x, (values, facts)) in x.chunks(GROUP).zip(groups) {
            let mut group = [0f32; GROUP];
            group[..x.len()].copy_from_slice(x);
            // As integers, the bits of numbers without their sign are in the order of the numbers, and NaN above all.
            let furthest = group.iter().fold(0u32, |a, b| a.max(b.to_bits() & 0x7fff_ffff));
            let furthest = f32::from_bits(furthest);
            if !furthest.is_finite() {
                // Whatever it is multiplied with, it shows.
                values.fill(0);
                *facts = Facts { scale: f32::NAN, total: f32::NAN, sums: [0, 0] };
                continue;
            }
            let inverse = if furthest > 0.0 { 127.0 / furthest } else { 0.0 };
            // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
            const ROUNDING: f32 = 12_582_912.0;
            let mut integers = [0i32; GROUP];
            for i in 0..GROUP {
                integers[i] = (group[i] * inverse + ROUNDING).to_bits() as i32 - ROUNDING.to_bits() as i32;
                values[i] = integers[i] as i8;
            }
            let (first, second) = integers.split_at(GROUP / 2);
            let sums = [first.iter().sum::<i32>(), second.iter().sum::<i32>()];
            let scale = furthest / 127.0;
            *facts = Facts { scale, total: scale * (sums[0] + sums[1]) as f32, sums };
        }
    }
}
