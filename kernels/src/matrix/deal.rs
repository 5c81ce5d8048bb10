//! How a product whose operands are packed is dealt out to threads.

use rayon::prelude::*;

/// Runs `pack` on each panel of `len` elements, with its number.
pub fn panels<N: Send>(
    threads: usize,
    packed: &mut [N],
    len: usize,
    pack: impl Fn((usize, &mut [N])) + Sync + Send,
) {
    match threads {
        0 | 1 => packed.chunks_exact_mut(len).enumerate().for_each(pack),
        _ => packed.par_chunks_exact_mut(len).enumerate().for_each(pack),
    }
}

/// How the rows of the left operand are cut.
#[derive(Clone, Copy)]
pub struct Rows {
    /// Those of a tile: cuts are at its multiples.
    pub tile: usize,
    /// Those that are packed at a time, at most.
    pub block: usize,
    /// About how many tasks a thread gets.
    pub tasks: usize,
}

/// Runs `work(first row, rows, first panel, panels)` so that each of `m` rows meets each of `panels` once; on one thread
/// block by block, on several by rows first: a block of rows is packed once for all its columns.
pub fn blocks(
    threads: usize,
    m: usize,
    panels: usize,
    Rows { tile, block, tasks }: Rows,
    work: impl Fn(usize, usize, usize, usize) + Sync,
) {
    if threads <= 1 {
        (0..m).step_by(block).for_each(|row| work(row, block.min(m - row), 0, panels));
        return;
    }
    let rows = m.div_ceil(tasks * threads).next_multiple_of(tile).min(block);
    let blocks = m.div_ceil(rows);
    let groups = (tasks * threads).div_ceil(blocks).min(panels.div_ceil(4)).max(1);
    let group = panels.div_ceil(groups);
    (0..blocks * groups).into_par_iter().for_each(|task| {
        let (row, panel) = (task / groups * rows, task % groups * group);
        if panel < panels {
            work(row, rows.min(m - row), panel, group.min(panels - panel));
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn each_row_meets_each_panel_once() {
        for threads in [1, 2, 3, 8] {
            for (m, panels) in [(1, 1), (13, 5), (14, 1), (113, 40), (500, 3)] {
                let met: Vec<AtomicU32> = (0..m * panels).map(|_| AtomicU32::new(0)).collect();
                blocks(
                    threads,
                    m,
                    panels,
                    Rows { tile: 14, block: 112, tasks: 8 },
                    |row, rows, panel, some| {
                        assert!(row % 14 == 0 && rows <= 112);
                        for at in (row..row + rows)
                            .flat_map(|row| (panel..panel + some).map(move |p| row * panels + p))
                        {
                            met[at].fetch_add(1, Ordering::Relaxed);
                        }
                    },
                );
                assert!(met.iter().all(|met| met.load(Ordering::Relaxed) == 1), "{threads}, {m}, {panels}");
            }
        }
    }
}
