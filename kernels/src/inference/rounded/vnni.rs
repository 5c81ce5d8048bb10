//! Products of bytes with AVX-512 and its instructions for them (VNNI): unsigned inputs by signed weights, four to a sum.
//!
//! Sums are of integers and so exact in any order: up to 2^31 / (255 * 127) inputs, 66,000, fit into 32 bits.

use std::arch::x86_64::*;
use std::cell::Cell;

use rayon::prelude::*;

use super::{INPUTS, round};
use crate::buffer::with_buffer;
use crate::matrix::Threads;

/// Outputs of a panel: two vectors.
const COLUMNS: usize = 32;
/// Rows of a tile: 28 of the 32 vector registers hold its sums.
const ROWS: usize = 14;
/// Inputs that one instruction multiplies for each output.
const QUAD: usize = 4;
/// Rows that a task takes, so that they stay in the cache beside it.
const BLOCK: usize = 8 * ROWS;
/// What is added to an input's code, which makes it unsigned.
const OFFSET: i32 = 128;

thread_local! {
    static CODES: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Codes of four neighbouring inputs for each of 16 outputs.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([i8; 64]);

/// A weight `[output, input]` in panels of 32 outputs.
pub struct Panels {
    input: usize,
    output: usize,
    /// Of four inputs.
    quads: usize,
    /// `[panels, quads, 2]`.
    lines: Vec<Line>,
    /// Of each output, `[panels, 32]`, as are the others.
    scales: Vec<f32>,
    bias: Vec<f32>,
    /// What the inputs' offset adds to the sums, with the opposite sign.
    starts: Vec<i32>,
}

/// Whether this processor has the instructions.
pub fn available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni")
}

impl Panels {
    pub fn new(codes: &[i8], scales: &[f32], bias: Option<&[f32]>, input: usize, output: usize) -> Self {
        let (panels, quads) = (output.div_ceil(COLUMNS), input.div_ceil(QUAD));
        let padded = |values: &[f32]| {
            let mut values = values.to_vec();
            values.resize(panels * COLUMNS, 0.0);
            values
        };
        let mut made = Self {
            input,
            output,
            quads,
            lines: vec![Line([0; 64]); panels * quads * 2],
            scales: padded(scales),
            bias: padded(bias.unwrap_or_default()),
            starts: vec![0; panels * COLUMNS],
        };
        for (row, codes) in codes.chunks_exact(input).enumerate() {
            let (panel, half, lane) = (row / COLUMNS, row % COLUMNS / 16, row % 16);
            for (i, &code) in codes.iter().enumerate() {
                made.lines[(panel * quads + i / QUAD) * 2 + half].0[lane * QUAD + i % QUAD] = code;
                made.starts[row] -= OFFSET * i32::from(code);
            }
        }
        made
    }

    /// See [`super::RoundedLinear::forward`]; `scales` is room for a number a row.
    ///
    /// # Safety
    /// The instructions are [`available`]; `x` is `[rows, input]`, `out` `[rows, output]`, of as many rows as `scales` has.
    pub unsafe fn multiply(
        &self,
        x: &[f32],
        scales: &mut [f32],
        out: &mut [f32],
        accumulate: bool,
        threads: Threads,
    ) {
        let (rows, stride, panels) = (scales.len(), self.quads * QUAD, self.output.div_ceil(COLUMNS));
        with_buffer(&CODES, rows * stride, |codes| {
            for ((x, codes), scale) in
                x.chunks_exact(self.input).zip(codes.chunks_exact_mut(stride)).zip(&mut *scales)
            {
                // Of what is behind a row's end the weights are zero.
                *scale = round(x, INPUTS, &mut codes[..self.input], OFFSET);
            }
            let (codes, scales) = (&*codes, &*scales);
            let out = Output(out.as_mut_ptr());
            let blocks = rows.div_ceil(BLOCK);
            let threads = threads.count().min(panels);
            // Blocks of rows are dealt out first; where there are few, each is cut by outputs.
            let parts = if threads > 1 { (2 * threads).div_ceil(blocks.max(1)).min(panels) } else { 1 };
            let task = |task: usize| {
                let (first, part) = (task / parts * BLOCK, task % parts);
                let last = (first + BLOCK).min(rows);
                for panel in part * panels / parts..(part + 1) * panels / parts {
                    for row in (first..last).step_by(ROWS) {
                        let tile = TILES[ROWS.min(last - row) - 1];
                        // SAFETY: as promised by the caller, and no two tasks share a tile.
                        unsafe {
                            tile(
                                self,
                                panel,
                                &codes[row * stride..],
                                &scales[row..],
                                out.at(row, self.output),
                                accumulate,
                            )
                        };
                    }
                }
            };
            match threads {
                1 => (0..blocks).for_each(task),
                _ => (0..blocks * parts).into_par_iter().for_each(task),
            }
        });
    }
}

/// Where the output lies.
#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: tasks write to disjoint parts of it.
unsafe impl Sync for Output {}

impl Output {
    /// The beginning of a row.
    fn at(self, row: usize, width: usize) -> *mut f32 {
        self.0.wrapping_add(row * width)
    }
}

type Tile = unsafe fn(&Panels, usize, &[u8], &[f32], *mut f32, bool);

/// By the number of rows, from one on.
const TILES: [Tile; ROWS] = [
    tile::<1>, tile::<2>, tile::<3>, tile::<4>, tile::<5>, tile::<6>, tile::<7>, tile::<8>, tile::<9>,
    tile::<10>, tile::<11>, tile::<12>, tile::<13>, tile::<14>,
];

/// `N` rows of input by one panel.
///
/// # Safety
/// The instructions are [`available`]; there is such a panel, `codes` and `scales` begin with `N` rows, and so does what `out`
/// points to, which nobody else touches meanwhile.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn tile<const N: usize>(
    weight: &Panels,
    panel: usize,
    codes: &[u8],
    scales: &[f32],
    out: *mut f32,
    accumulate: bool,
) {
    let Panels { quads, output, .. } = *weight;
    let stride = quads * QUAD;
    debug_assert!(codes.len() >= N * stride && scales.len() >= N);
    let first = panel * COLUMNS;
    // SAFETY: a panel has `quads` pairs of lines and 32 of everything else; rows of codes are `quads` of four long; only outputs
    // that there are get written.
    unsafe {
        let starts = weight.starts.as_ptr().add(first).cast::<__m512i>();
        let starts = [_mm512_loadu_si512(starts), _mm512_loadu_si512(starts.add(1))];
        let mut sums = [starts; N];
        let lines = weight.lines.as_ptr().add(panel * quads * 2).cast::<__m512i>();
        let codes = codes.as_ptr().cast::<i32>();
        for quad in 0..quads {
            let (left, right) =
                (_mm512_load_si512(lines.add(2 * quad)), _mm512_load_si512(lines.add(2 * quad + 1)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let inputs = _mm512_set1_epi32(codes.add(row * quads + quad).read_unaligned());
                sums[0] = _mm512_dpbusd_epi32(sums[0], inputs, left);
                sums[1] = _mm512_dpbusd_epi32(sums[1], inputs, right);
            }
        }
        let numbers = |of: &Vec<f32>, half: usize| _mm512_loadu_ps(of.as_ptr().add(first + 16 * half));
        for half in 0..2 {
            let columns = output.saturating_sub(first + 16 * half).min(16);
            let mask = ((1u32 << columns) - 1) as __mmask16;
            let (scale, bias) = (numbers(&weight.scales, half), numbers(&weight.bias, half));
            for (row, sums) in sums.iter().enumerate() {
                let out = out.wrapping_add(row * output + first + 16 * half);
                let scale = _mm512_mul_ps(scale, _mm512_set1_ps(*scales.get_unchecked(row)));
                let value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[half]), scale, bias);
                let value = match accumulate {
                    true => _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, out)),
                    false => value,
                };
                _mm512_mask_storeu_ps(out, mask, value);
            }
        }
    }
}
