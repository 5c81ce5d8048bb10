//! The 100 nearest of all rows of 384 numbers to 128 and to 1,024 queries.

use candle_core::Result;
use sidenote_kernels::cuda::{self, BinaryCodes, Device};

use super::{Timed, random, time};

const DIM: usize = 384;
const K: usize = 100;

pub fn measure(device: &Device, rows: usize) -> Result<Vec<Timed>> {
    let vectors = random(device, &[rows, DIM], 1.0)?;
    let (groups, stride) = (DIM / 4, DIM / 4 * 16 + 4 * (3 * 32 + 16));
    let mut blocks = vec![0u8; rows.div_ceil(32) * stride];
    for (n, block) in blocks.chunks_mut(stride).enumerate() {
        let signs = block[..groups * 16].iter_mut().zip(0u64..);
        signs.for_each(|(byte, i)| {
            *byte = ((n as u64 * 1543 + i).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
        });
        block[groups * 16 + 128..groups * 16 + 256]
            .chunks_mut(4)
            .for_each(|x| x.copy_from_slice(&1f32.to_le_bytes()));
    }
    let codes = BinaryCodes::new(device, &blocks, [rows, DIM, groups, stride])?;
    let mut results = vec![];
    for count in [128, 1024] {
        let queries = random(device, &[count, DIM], 0.9)?;
        let operations = 2.0 * (rows * count * DIM) as f64;
        let milliseconds = time(device, || cuda::top_k(device, &queries, &vectors, K).map(|_| ()))?;
        let bytes = 2.0 * (rows * DIM) as f64;
        results.push(Timed {
            name: format!("top {K} of {rows} for {count}"),
            milliseconds,
            bytes,
            operations,
        });
        let milliseconds =
            time(device, || codes.top_k(device, &queries, &queries, &vectors, K, 1000).map(|_| ()))?;
        let name = format!("RaBitQ top {K} of {rows} for {count}");
        results.push(Timed { name, milliseconds, bytes: blocks.len() as f64, operations });
    }
    Ok(results)
}
