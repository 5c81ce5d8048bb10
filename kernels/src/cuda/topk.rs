//! The rows nearest to queries, `cuda/topk.cu`.

use candle_core::{Result, bail};
use cudarc::driver::CudaSlice;
use half::bf16;

use super::device::{Device, Source, Storage, Tensor, grid, launch, size};
use super::matmul::{THREADS, TILE};

/// Rows of a slice, of which a block makes one list.
const SLICE: usize = 64 * TILE;
/// Slices at most, and entries of all lists: of more rows slices are larger.
const SLICES: usize = 512;
const ENTRIES: usize = 128 << 20;
/// How many a query can ask for.
const MOST: usize = 1024;
/// Vectors of a block of codes.
const BLOCK: usize = 32;

/// Row and score, best first.
pub type Best = Vec<(u32, f32)>;

/// A list of each query, on the device.
struct Lists {
    scores: Tensor<f32>,
    ids: CudaSlice<u32>,
}

fn check(queries: &[usize], dim: usize, rows: usize, k: usize) -> Result<usize> {
    let &[count, width] = queries else { bail!("top_k: queries are [queries, dim], not {queries:?}") };
    if width != dim || count * dim * rows == 0 || rows > u32::MAX as usize - 1 {
        bail!("top_k: queries of {queries:?} and {rows} rows of {dim}");
    }
    if !(1..=MOST).contains(&k) {
        bail!("top_k: {k} rows for each query; 1 to {MOST} can be had");
    }
    Ok(count)
}

/// Runs `scan(lists, slices, first slice, rows of a slice)` over all slices and merges what it finds.
fn search(
    device: &Device,
    [count, rows, k]: [usize; 3],
    scan: impl Fn(&Lists, usize, i32, i32) -> Result<()>,
) -> Result<Lists> {
    let most = (ENTRIES / (k * count)).clamp(1, SLICES);
    let slice = SLICE.max(rows.div_ceil(most).next_multiple_of(TILE));
    let slices = rows.div_ceil(slice);
    let lists = lists(device, slices * k * count)?;
    let slice_rows = size(slice)?;
    scan(&lists, 1, 0, slice_rows)?;
    if slices > 1 {
        scan(&lists, slices - 1, 1, slice_rows)?;
    }
    merge(device, &lists, [count, slices, k], k)
}

fn lists(device: &Device, entries: usize) -> Result<Lists> {
    Ok(Lists { scores: device.unwritten(&[entries])?, ids: device.unwritten_slice(entries)? })
}

/// The `k` best of `slices` lists of `length` for each of `count` queries.
fn merge(device: &Device, lists: &Lists, [count, slices, length]: [usize; 3], k: usize) -> Result<Lists> {
    let Lists { scores, ids } = lists;
    let best = self::lists(device, count * k)?;
    let (to, to_ids) = (&best.scores, &best.ids);
    let blocks = grid(count, 1, THREADS)?;
    let (count, slices, length, k) = (size(count)?, size(slices)?, size(length)?, size(k)?);
    // SAFETY: the arguments are the kernel's, and the lists have the sizes that it takes.
    unsafe {
        launch!(
            device,
            Source::Topk,
            "top_k_merge",
            blocks,
            scores,
            ids,
            to,
            to_ids,
            count,
            slices,
            length,
            k
        );
    }
    Ok(best)
}

fn download(device: &Device, best: &Lists, k: usize) -> Result<Vec<Best>> {
    let scores = device.download(&best.scores)?;
    let ids = device.download_slice(&best.ids)?;
    let hits = ids.chunks(k).zip(scores.chunks(k));
    Ok(hits
        .map(|(ids, scores)| {
            ids.iter().copied().zip(scores.iter().copied()).filter(|(id, _)| *id != u32::MAX).collect()
        })
        .collect())
}

/// The `k` rows with the largest inner products with each query: `queries` is `[queries, dim]`, `rows` `[rows, dim]`.
/// Exact, and of equal scores the first; fewer where there are fewer rows. The scores are never held.
///
/// # Errors
/// When the shapes do not fit together, or `k` is not 1 to 1,024.
pub fn top_k<T: Storage>(
    device: &Device,
    queries: &Tensor<T>,
    rows: &Tensor<T>,
    k: usize,
) -> Result<Vec<Best>> {
    let &[row_count, dim] = rows.dims() else { bail!("top_k: rows are [rows, dim], not {:?}", rows.dims()) };
    let count = check(queries.dims(), dim, row_count, k)?;
    let name = format!("top_k_scan_{}", T::NAME);
    let (n, all, width, kept) = (size(count)?, size(row_count)?, size(dim)?, size(k)?);
    let best = search(device, [count, row_count, k], |lists, slices, first, slice_rows| {
        let Lists { scores, ids } = lists;
        let blocks = grid(count.div_ceil(TILE), slices, THREADS)?;
        // SAFETY: the arguments are the kernel's, and the lists have a place for each slice.
        unsafe {
            launch!(
                device,
                Source::Topk,
                &name,
                blocks,
                queries,
                rows,
                scores,
                ids,
                n,
                all,
                width,
                kept,
                slice_rows,
                first
            );
        }
        Ok(())
    })?;
    download(device, &best, k)
}

/// One-bit codes on a GPU (RaBitQ; Gao and Long 2024, <https://arxiv.org/abs/2405.12497>), in the blocks of
/// `sidenote-index`: for 32 vectors, by groups of four dimensions 16 bytes, whose byte `j` has the signs of vector `j` in
/// its low four bits and those of vector `j + 16` in its high four; then `add` and `scale` of each vector in `f32`, and what
/// else a block has.
pub struct BinaryCodes {
    blocks: CudaSlice<u8>,
    rows: usize,
    dim: usize,
    groups: usize,
    stride: usize,
}

impl BinaryCodes {
    /// Takes the blocks of `rows` vectors of `dim` numbers in `groups` groups, each of `stride` bytes.
    ///
    /// # Errors
    /// When the sizes do not fit together.
    pub fn new(device: &Device, bytes: &[u8], [rows, dim, groups, stride]: [usize; 4]) -> Result<Self> {
        if groups < dim.div_ceil(4) || stride < groups * 16 + 8 * BLOCK || stride % 4 != 0 {
            bail!("codes: blocks of {stride} bytes with {groups} groups for vectors of {dim}");
        }
        if rows == 0 || bytes.len() != rows.div_ceil(BLOCK) * stride {
            bail!("codes: {} bytes for {rows} vectors in blocks of {stride}", bytes.len());
        }
        Ok(Self { blocks: device.upload_slice(bytes)?, rows, dim, groups, stride })
    }

    /// The `k` rows with the largest inner products with each query, of the `breadth` whose codes promise most. `turned` is
    /// `[queries, dim]`, the queries less the centre and rotated, as the codes are; `queries` and `rows` are themselves.
    /// With `breadth` of all rows it is exact.
    ///
    /// # Errors
    /// When the shapes do not fit together, or `k` or `breadth` is not 1 to 1,024.
    pub fn top_k<T: Storage>(
        &self,
        device: &Device,
        turned: &Tensor<bf16>,
        queries: &Tensor<T>,
        rows: &Tensor<T>,
        k: usize,
        breadth: usize,
    ) -> Result<Vec<Best>> {
        let &[row_count, dim] = rows.dims() else {
            bail!("top_k: rows are [rows, dim], not {:?}", rows.dims())
        };
        let count = check(queries.dims(), dim, row_count, k)?;
        check(turned.dims(), self.dim, self.rows, breadth)?;
        if row_count != self.rows || turned.dims()[0] != count || k > breadth {
            bail!(
                "top_k: codes of {} rows, {row_count} rows, {count} queries of which {:?} are turned, {k} of {breadth}",
                self.rows,
                turned.dims()
            );
        }
        let blocks_of = &self.blocks;
        let (n, all, width, kept) = (size(count)?, size(row_count)?, size(self.dim)?, size(breadth)?);
        let (groups, stride) = (size(self.groups)?, size(self.stride)?);
        let found = search(device, [count, row_count, breadth], |lists, slices, first, slice_rows| {
            let Lists { scores, ids } = lists;
            let blocks = grid(count.div_ceil(TILE), slices, THREADS)?;
            // SAFETY: the arguments are the kernel's, and the lists have a place for each slice.
            unsafe {
                launch!(
                    device,
                    Source::Topk,
                    "rabitq_scan",
                    blocks,
                    turned,
                    blocks_of,
                    scores,
                    ids,
                    n,
                    all,
                    width,
                    kept,
                    slice_rows,
                    first,
                    groups,
                    stride
                );
            }
            Ok(())
        })?;
        let again = lists(device, count * breadth)?;
        let (candidates, scores, ids) = (&found.ids, &again.scores, &again.ids);
        let (blocks, width) = (grid(count, 1, THREADS)?, size(dim)?);
        let name = format!("top_k_rescore_{}", T::NAME);
        // SAFETY: as above; candidates are rows, or none.
        unsafe {
            launch!(
                device,
                Source::Topk,
                &name,
                blocks,
                queries,
                rows,
                candidates,
                scores,
                ids,
                n,
                width,
                kept
            );
        }
        let best = merge(device, &again, [count, 1, breadth], k)?;
        download(device, &best, k)
    }
}
