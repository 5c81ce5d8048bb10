//! Our kernels on a GPU: each operation, whole training steps, and top-k. `gpu FILE [ROWS]` writes what was measured as
//! JSON; benches/peers/gpu.py measures PyTorch in the same run and sets them side by side (scripts/gpu_folder.sh).
#![allow(missing_docs)]

mod operations;
mod topk;
mod training;

use std::time::Instant;

use candle_core::{Error, Result, bail};
use half::bf16;
use sidenote_kernels::cuda::{Device, Tensor};

/// What was measured.
pub struct Timed {
    /// As benches/peers/gpu.py calls it too.
    name: String,
    milliseconds: f64,
    /// The two floors: what must be moved, and multiplied and added.
    bytes: f64,
    operations: f64,
}

/// The median of five rounds of a twentieth of a second, after one to warm up.
pub fn time(device: &Device, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut round = |times: usize| {
        device.wait()?;
        let start = Instant::now();
        for _ in 0..times {
            run()?;
        }
        device.wait()?;
        Ok::<_, Error>(start.elapsed().as_secs_f64() * 1e3 / times as f64)
    };
    round(2)?;
    let times = (50.0 / round(2)?).clamp(1.0, 1000.0) as usize;
    let mut rounds = (0..5).map(|_| round(times)).collect::<Result<Vec<_>>>()?;
    rounds.sort_by(f64::total_cmp);
    Ok(rounds[2])
}

/// Numbers between -1 and 1, times `scale`.
pub fn random(device: &Device, shape: &[usize], scale: f32) -> Result<Tensor<bf16>> {
    let mut state = shape.iter().fold(88_172_645_463_325_252u64, |state, &n| state ^ n as u64);
    let count: usize = shape.iter().product();
    let mut numbers = Vec::with_capacity(count + 3);
    while numbers.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        for part in 0..4 {
            let x = f32::from((state >> (16 * part)) as i16) / 32768.0;
            numbers.push(bf16::from_f32(x * scale));
        }
    }
    numbers.truncate(count);
    device.upload(&numbers, shape)
}

pub fn ids(count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count as u64)
        .map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as u32 % vocabulary as u32)
        .collect()
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let (file, rows) = match &arguments[..] {
        [file] => (file, 10_000_000),
        [file, rows] => (file, rows.parse().map_err(Error::wrap)?),
        _ => bail!("usage: gpu FILE [ROWS of the search]"),
    };
    let device = Device::new(0)?;
    let parts = [
        ("kernels", operations::measure(&device)?),
        ("train", training::measure(&device)?),
        ("topk", topk::measure(&device, rows)?),
    ];
    let mut text = format!("{{\"device\": {:?}", device.name()?);
    for (part, results) in parts {
        let results: Vec<_> = results
            .iter()
            .map(|Timed { name, milliseconds, bytes, operations }| {
                format!(
                    "  {{\"name\": {name:?}, \"ms\": {milliseconds:.5}, \"bytes\": {bytes:.0}, \"operations\": \
                     {operations:.0}}}"
                )
            })
            .collect();
        text += &format!(",\n \"{part}\": [\n{}\n ]", results.join(",\n"));
    }
    text += "\n}\n";
    std::fs::write(file, text).map_err(Error::wrap)
}
