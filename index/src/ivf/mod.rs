//! An inverted file: rows in lists around centroids, and a search goes through the nearest lists
//! only (Sivic and Zisserman, 2003; Jégou, Douze and Schmid, 2011). For collections whose codes
//! are too many to scan and whose graph would be too large.
//!
//! A list is blocks of one-bit codes ([`crate::scan`]) relative to its centroid; what they leave
//! is scored exactly from the rows, which stay where they were. Lists are found by the same means
//! ([`coarse`]): the centroids have codes too, or a graph.
//!
//! Under every metric a row goes to the list whose centroid is at the least L2 distance. For inner
//! products of rows of very different lengths no centroid says much of what a list may hold, and
//! more lists have to be probed.

mod coarse;
mod kmeans;
mod search;

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::artefact::{ArtefactError, Manifest, Writer, read_manifest};
use crate::blocks::{BLOCK, CONFIDENCE};
use crate::mapped::{Mapped, as_bytes, write_numbers};
use crate::metric::{Metric, squared_distance};
use crate::pages::PageWriter;
use crate::planes;
use crate::rabitq::mean;
use crate::rotation::Rotation;
use crate::rows::Rows;
use crate::scan::{Candidate, Centre, Encoder, Found, Probe, Query, Shape};
use crate::scratch::Scratch;
use crate::simd::prefetch;
use crate::topk::Hit;
use coarse::Coarse;
pub(crate) use coarse::CoarseSpec;
use kmeans::Lists;
pub(crate) use search::{Member, search};

/// The mean of the rows `[dim]`.
const CENTRE: &str = "centre.f32";
/// Where each list begins and the last one ends, in blocks `[lists + 1]`.
const OFFSETS: &str = "offsets.u32";
/// Blocks of the rows' codes, by lists.
const CODES: &str = "codes.f32";
/// Which row is where `[blocks, 32]`.
const IDS: &str = "ids.u32";
/// All bits of each row, by the same places, and its factors: see [`planes`]. There only with more
/// bits than one.
const PLANES: &str = "planes.u64";

/// Where there is no row.
const NONE: u32 = u32::MAX;
/// Blocks that are encoded and written at a time.
const SEGMENT: usize = 512;
/// Encoding a row, and scanning a block, take a tenth of this where they are in memory.
const FROM_DISK: Duration = Duration::from_micros(50);

/// Divides the rows among `lists` lists and encodes them. The lists are those of the index of the same
/// kind in `lists_of`, or trained on these rows.
///
/// Memory: what the training of centroids takes (see [`Lists::train`]), and 12 bytes a row.
pub(crate) fn build(
    rows: &Rows,
    (spec, bits): (CoarseSpec, usize),
    seed: u64,
    lists_of: Option<&Path>,
    writer: &mut Writer,
    scratch: &Scratch,
) -> Result<(), ArtefactError> {
    let (dim, metric) = (rows.dim(), rows.metric());
    let rotation = Rotation::new(dim, seed);
    let encoder = Encoder { rows, rotation: &rotation, bits };
    let (centre, centroids, lists) = match lists_of {
        Some(dir) => {
            let manifest = read_manifest(dir)?;
            for name in [CENTRE].iter().chain(Coarse::names(spec)) {
                let to = writer.path(name);
                std::fs::copy(manifest.path(dir, name)?, &to).map_err(ArtefactError::io(&to))?;
            }
            let centre = open_centre(dir, &manifest, dim)?;
            let centroids = Coarse::open(dir, &manifest, spec, dim, metric, seed)?.into_centroids();
            let lists = Lists::around(&centroids, &centre, seed);
            (centre, centroids, lists)
        }
        None => {
            let centre = mean(rows);
            writer.write(CENTRE, as_bytes(&centre))?;
            let lists = Lists::train(rows, &centre, spec.lists, seed);
            let centroids = lists.centroids();
            let centroids =
                Coarse::build(&centroids, spec, metric, &centre, &rotation, seed, writer, scratch)?;
            (centre, centroids, lists)
        }
    };

    let (order, starts) = by_list(&lists.assign(rows), spec.lists);
    let mut offsets = vec![0u32];
    let mut blocks: Vec<(usize, Range<usize>)> = Vec::new();
    for (list, ends) in starts.windows(2).enumerate() {
        let firsts = (ends[0]..ends[1]).step_by(BLOCK);
        blocks.extend(firsts.map(|first| (list, first..ends[1].min(first + BLOCK))));
        offsets.push(blocks.len() as u32);
    }
    writer.write(OFFSETS, as_bytes(&offsets))?;

    let (codes_path, ids_path) = (writer.path(CODES), writer.path(IDS));
    let create = |path: &Path| File::create(path).map(PageWriter::new).map_err(ArtefactError::io(path));
    let (mut codes_file, mut ids_file) = (create(&codes_path)?, create(&ids_path)?);
    let planes_path = (bits > 1).then(|| writer.path(PLANES));
    let mut planes_file = planes_path.as_deref().map(create).transpose()?;
    let mut from_disk = false;
    for segment in blocks.chunks(SEGMENT) {
        let start = Instant::now();
        if from_disk {
            let places = segment[0].1.start..segment[segment.len() - 1].1.end;
            rows.will_need(order[places].iter().map(|&id| id as usize));
        }
        let encoded: Vec<(Vec<f32>, Vec<u64>)> = segment
            .par_iter()
            .map(|(list, places)| {
                let centroid = centroids.row(*list);
                let turned = turn(&rotation, centroid, &centre);
                let ids = order[places.clone()].iter().map(|&id| id as usize);
                let centre = Centre { vector: centroid, turned: Some(&turned) };
                encoder.encode(ids, centre, f32::NEG_INFINITY)
            })
            .collect();
        from_disk = start.elapsed() > FROM_DISK * (segment.len() * BLOCK) as u32;
        for ((block, row_planes), (_, places)) in encoded.iter().zip(segment) {
            let mut ids = [NONE; BLOCK];
            ids[..places.len()].copy_from_slice(&order[places.clone()]);
            write_numbers(&mut codes_file, block).map_err(ArtefactError::io(&codes_path))?;
            write_numbers(&mut ids_file, &ids).map_err(ArtefactError::io(&ids_path))?;
            if let (Some(file), Some(path)) = (&mut planes_file, &planes_path) {
                let vacant = vec![0u64; (BLOCK - places.len()) * plane_words(rows.dim(), bits)];
                write_numbers(file, row_planes)
                    .and_then(|()| write_numbers(file, &vacant))
                    .map_err(ArtefactError::io(path))?;
            }
        }
    }
    if let (Some(file), Some(path)) = (&mut planes_file, &planes_path) {
        file.flush().map_err(ArtefactError::io(path))?;
    }
    codes_file.flush().map_err(ArtefactError::io(&codes_path))?;
    ids_file.flush().map_err(ArtefactError::io(&ids_path))
}

/// Words that a row takes in [`PLANES`].
fn plane_words(dim: usize, bits: usize) -> usize {
    planes::words(dim, bits) + 1
}

/// The rows in the order of their lists, then of their ids; and where each list begins in it, and
/// the last one ends.
fn by_list(list_of: &[u32], lists: usize) -> (Vec<u32>, Vec<usize>) {
    let mut starts = vec![0; lists + 1];
    list_of.iter().for_each(|&list| starts[list as usize + 1] += 1);
    for list in 0..lists {
        starts[list + 1] += starts[list];
    }
    let mut next = starts.clone();
    let mut order = vec![0; list_of.len()];
    for (id, &list) in list_of.iter().enumerate() {
        order[next[list as usize]] = id as u32;
        next[list as usize] += 1;
    }
    (order, starts)
}

/// A vector less the centre, rotated.
fn turn(rotation: &Rotation, vector: &[f32], centre: &[f32]) -> Vec<f32> {
    let mut turned: Vec<f32> = vector.iter().zip(centre).map(|(x, c)| x - c).collect();
    rotation.apply(&mut turned);
    turned
}

fn open_centre(dir: &Path, manifest: &Manifest, dim: usize) -> Result<Vec<f32>, ArtefactError> {
    Ok(Mapped::<f32>::open(&manifest.path(dir, CENTRE)?, dim)?.as_slice().to_vec())
}

/// A list that a query probes.
struct Near {
    list: u32,
    /// That of its centroid.
    score: f32,
    /// Between query and centroid.
    distance: f32,
}

/// The lists of an index, mapped from disk.
pub(crate) struct Ivf {
    /// Those that have the same have the same centre, centroids, rotation and bits: a query is prepared once for them.
    lists: String,
    centre: Vec<f32>,
    coarse: Coarse,
    offsets: Mapped<u32>,
    codes: Mapped<f32>,
    ids: Mapped<u32>,
    planes: Option<Mapped<u64>>,
    bits: usize,
    rotation: Rotation,
    shape: Shape,
}

impl Ivf {
    /// Maps the lists. What the files say of ids and places is checked where it is used.
    pub fn open(
        dir: &Path,
        manifest: &Manifest,
        dim: usize,
        metric: Metric,
        (spec, bits): (CoarseSpec, usize),
        seed: u64,
    ) -> Result<Self, ArtefactError> {
        let shape = Shape::new(dim);
        let offsets = Mapped::<u32>::open(&manifest.path(dir, OFFSETS)?, spec.lists + 1)?;
        let blocks = offsets.as_slice()[spec.lists] as usize;
        let planes = match bits > 1 {
            true => {
                let len = blocks.saturating_mul(BLOCK * plane_words(dim, bits));
                Some(Mapped::open(&manifest.path(dir, PLANES)?, len)?)
            }
            false => None,
        };
        let hashes = [CENTRE].iter().chain(Coarse::names(spec)).filter_map(|name| manifest.files.get(*name));
        Ok(Self {
            lists: hashes.fold(format!("{seed} {bits}"), |all, file| all + " " + &file.blake3),
            centre: open_centre(dir, manifest, dim)?,
            coarse: Coarse::open(dir, manifest, spec, dim, metric, seed)?,
            offsets,
            codes: Mapped::open(&manifest.path(dir, CODES)?, blocks.saturating_mul(shape.block))?,
            ids: Mapped::open(&manifest.path(dir, IDS)?, blocks.saturating_mul(BLOCK))?,
            planes,
            bits,
            rotation: Rotation::new(dim, seed),
            shape,
        })
    }

    /// Lists probed where nobody has said: for a recall@10 of about 0.95 on text.
    pub fn default_breadth(&self) -> usize {
        (self.coarse.len() / 16).max(8)
    }

    /// Whether the two divide their rows among the same lists, so that a query's lists in one are its lists in the other.
    pub fn shares_lists_with(&self, other: &Self) -> bool {
        self.lists == other.lists
    }

    /// The exact scores of those candidates that can be among the `k` nearest.
    fn decide(&self, rows: &Rows, query: &Query, k: usize, found: Found) -> Vec<Hit> {
        let Some(planes) = &self.planes else {
            return found.decide(rows, query.given, k, usize::MAX, None);
        };
        let words = plane_words(rows.dim(), self.bits);
        let refine = |candidate: &Candidate| {
            let Some(place) = self.place(candidate) else { return f32::INFINITY };
            let row = &planes.as_slice()[place * words..][..words];
            let (estimate, error) = planes::estimate(row, self.bits, &query.rotated, query.total);
            let centroid = self.coarse.centroid(candidate.list);
            let distance = squared_distance(query.given, centroid).sqrt();
            let shift = f32::from_bits(row[words - 1] as u32);
            candidate.add + shift + estimate + CONFIDENCE * distance * error
        };
        found.decide(rows, query.given, k, usize::MAX, Some(&refine))
    }

    /// Where a candidate is in its list: none where damage has put it elsewhere.
    fn place(&self, candidate: &Candidate) -> Option<usize> {
        let blocks = self.blocks(candidate.list as usize);
        let (start, end) = (blocks.start * BLOCK, blocks.end * BLOCK);
        let place = self.ids.as_slice().get(start..end)?.binary_search(&candidate.id).ok()?;
        Some(start + place)
    }

    fn prepare<'a>(&self, metric: Metric, query: &'a [f32]) -> Query<'a> {
        Query::new(metric, query, &self.centre, &self.rotation, self.bits)
    }

    /// The blocks of a list: none where damage has put them elsewhere.
    fn blocks(&self, list: usize) -> Range<usize> {
        let offsets = self.offsets.as_slice();
        let blocks = self.ids.as_slice().len() / BLOCK;
        (offsets[list] as usize).min(blocks)..(offsets[list + 1] as usize).min(blocks)
    }

    /// Whether a list has rows.
    fn has(&self, list: u32) -> bool {
        !self.blocks(list as usize).is_empty()
    }

    /// The nearest `count` lists of those that `may`, nearest first.
    fn nearest(&self, query: &Query, count: usize, may: impl Fn(u32) -> bool) -> Vec<Near> {
        let near = |hit: Hit| Near {
            list: hit.id,
            score: hit.score,
            distance: squared_distance(query.given, self.coarse.centroid(hit.id)).sqrt(),
        };
        self.coarse.nearest(query, count, may).into_iter().map(near).collect()
    }

    /// Looks through lists.
    fn probe(
        &self,
        rows: &Rows,
        query: &Query,
        lists: &[Near],
        may: &impl Fn(u32) -> bool,
        found: &mut Found,
    ) {
        let (codes, ids) = (self.codes.as_slice(), self.ids.as_slice());
        let block_of = |number: usize| &codes[number * self.shape.block..][..self.shape.block];
        for (i, list) in lists.iter().enumerate() {
            if let Some(next) = lists.get(i + 1) {
                self.blocks(next.list as usize).take(1).for_each(|number| prefetch(block_of(number)));
            }
            let mut probe = Probe::new(&query.tables, list.score, list.distance);
            probe.list = list.list;
            let blocks = self.blocks(list.list as usize);
            let start = (i == 0).then(Instant::now);
            for number in blocks.clone() {
                let ids = &ids[number * BLOCK..][..BLOCK];
                found.look(self.shape, block_of(number), probe, rows.len(), |slot| ids[slot], may);
            }
            if start.is_some_and(|start| start.elapsed() > FROM_DISK * blocks.len() as u32) {
                // All of the rest at once, instead of waiting for one after the other.
                for list in &lists[1..] {
                    let blocks = self.blocks(list.list as usize);
                    self.codes.will_need(blocks.start * self.shape.block..blocks.end * self.shape.block);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, Index, Spec};

    const DIM: usize = 24;

    fn points(n: usize, seed: usize) -> Vec<f32> {
        (0..n * DIM)
            .map(|i| {
                let row = i / DIM + seed;
                (row % 37 * DIM + i % DIM) as f32 * 0.7
            })
            .enumerate()
            .map(|(i, near)| 5.0 + near.sin() + 0.5 * (((i + seed * DIM) % 99_991) as f32 * 1.37).sin())
            .collect()
    }

    fn build(dir: &Path, spec: Spec, metric: Metric, points: &[f32]) -> Index {
        let mut builder = Builder::create(dir, DIM, metric, &spec, 3).unwrap();
        builder.add(points).unwrap();
        builder.finish().unwrap();
        Index::open(dir).unwrap()
    }

    const METRICS: [Metric; 3] = [Metric::InnerProduct, Metric::Cosine, Metric::L2];

    fn recall(index: &Index, queries: &[f32], truth: &[Vec<Hit>]) -> f64 {
        let found = index.search_batch(queries, 10, None).unwrap();
        let right = found
            .iter()
            .zip(truth)
            .map(|(found, truth)| found.iter().filter(|hit| hit.score >= truth[9].score).count());
        right.sum::<usize>() as f64 / (10 * truth.len()) as f64
    }

    /// Fails where a list is left out, or codes are not relative to their own centroid.
    #[test]
    fn all_lists_find_what_a_scan_of_all_codes_finds_and_fewer_less() {
        let (rows, queries) = (points(5000, 0), points(100, 70_000));
        for metric in METRICS {
            let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
            let truth = build(dirs[0].path(), Spec::Flat, metric, &rows);
            let truth = truth.search_batch(&queries, 10, None).unwrap();
            let codes = build(dirs[1].path(), Spec::RaBitQ { bits: 1 }, metric, &rows);
            let mut lists =
                build(dirs[2].path(), Spec::Ivf { lists: 50, graph: None, bits: 1 }, metric, &rows);
            let recalls = [1, 10, 50, usize::MAX].map(|breadth| {
                lists.set_breadth(Some(breadth));
                recall(&lists, &queries, &truth)
            });
            assert!(recalls.is_sorted() && recalls[2] == recalls[3], "{metric}: {recalls:?}");
            assert!(recalls[0] < 0.95 && recalls[1] > recalls[0] + 0.02, "{metric}: {recalls:?}");
            let all = recall(&codes, &queries, &truth);
            assert!(recalls[2] > all - 0.01, "{metric}: {} where a scan has {all}", recalls[2]);
        }
    }

    /// Fails where the graph is over other rows than the centroids, or its walk ends too soon.
    #[test]
    fn a_graph_of_centroids_finds_the_lists_that_a_scan_finds() {
        let (rows, queries) = (points(6000, 0), points(60, 70_000));
        for metric in METRICS {
            let open = |degree| {
                let dir = tempfile::tempdir().unwrap();
                build(dir.path(), Spec::Ivf { lists: 900, graph: degree, bits: 1 }, metric, &rows);
                let manifest = crate::artefact::read_manifest(dir.path()).unwrap();
                let spec = CoarseSpec { lists: 900, degree };
                Ivf::open(dir.path(), &manifest, DIM, metric, (spec, 1), 3).unwrap()
            };
            let (scan, graph) = (open(None), open(Some(32)));
            let (mut same, mut all) = (0, 0);
            for query in queries.chunks_exact(DIM) {
                let lists =
                    |ivf: &Ivf| ivf.coarse.nearest(&ivf.prepare(metric, query), 20, |list| ivf.has(list));
                let (right, found) = (lists(&scan), lists(&graph));
                same += right.iter().filter(|list| found.contains(list)).count();
                all += right.len();
            }
            assert!(same as f64 > 0.97 * all as f64, "{metric}: {same} of {all}");
        }
    }

    /// Estimates from all bits are right on average and within their bounds, whatever the list.
    /// Fails when the part of the centroid is left out, or taken by the first bit only.
    #[test]
    fn more_bits_estimate_without_bias_and_find_the_same() {
        let (rows, queries) = (points(3000, 0), points(40, 70_000));
        for metric in METRICS {
            let (dir, one) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let index = build(dir.path(), Spec::Ivf { lists: 30, graph: None, bits: 6 }, metric, &rows);
            let manifest = crate::artefact::read_manifest(dir.path()).unwrap();
            let ivf =
                Ivf::open(dir.path(), &manifest, DIM, metric, (CoarseSpec { lists: 30, degree: None }, 6), 3)
                    .unwrap();
            let (mut sum, mut squares, mut deviations, mut beyond, mut count) = (0.0, 0.0, 0.0, 0, 0);
            for given in index.prepare(&queries).unwrap().chunks_exact(DIM) {
                let query = ivf.prepare(metric, given);
                for list in ivf.coarse.nearest(&query, 30, |_| true) {
                    let distance = squared_distance(given, ivf.coarse.centroid(list.id)).sqrt();
                    for number in ivf.blocks(list.id as usize) {
                        let adds = &ivf.codes.as_slice()[number * ivf.shape.block + ivf.shape.codes..];
                        for (slot, &id) in ivf.ids.as_slice()[number * BLOCK..][..BLOCK].iter().enumerate() {
                            if id == NONE {
                                continue;
                            }
                            let words = plane_words(DIM, 6);
                            let planes = ivf.planes.as_ref().unwrap().as_slice();
                            let row = &planes[(number * BLOCK + slot) * words..][..words];
                            let (part, error) = planes::estimate(row, 6, &query.rotated, query.total);
                            let shift = f32::from_bits(row[words - 1] as u32);
                            let estimate = list.score + adds[slot] + shift + part;
                            let off = estimate - metric.score(&index.vector(id).unwrap(), given);
                            sum += off;
                            squares += off * off;
                            deviations += error * error * distance * distance;
                            beyond += usize::from(off.abs() > CONFIDENCE * distance * error + 1e-4);
                            count += 1;
                        }
                    }
                }
            }
            let count = count as f32;
            assert_eq!(count as usize, 40 * 3000);
            let (bias, deviation, expected) =
                (sum / count, (squares / count).sqrt(), (deviations / count).sqrt());
            assert!(bias.abs() < 0.1 * expected, "{metric}: {bias} off, of {expected}");
            assert!(deviation < 1.3 * expected, "{metric}: {deviation}, of {expected}");
            assert!((beyond as f32) < 0.08 * count, "{metric}: {beyond} of {count} beyond their bounds");
            let other = build(one.path(), Spec::Ivf { lists: 30, graph: None, bits: 1 }, metric, &rows);
            let (a, b) = (index.search_batch(&queries, 10, None), other.search_batch(&queries, 10, None));
            let (a, b) = (a.unwrap(), b.unwrap());
            let same = a.iter().zip(&b).map(|(a, b)| a.iter().filter(|hit| b.contains(hit)).count());
            assert!(same.sum::<usize>() > 390, "{metric}");
        }
    }

    #[test]
    fn one_list_probed_gives_as_many_as_asked_for_all_the_same() {
        let rows = points(900, 0);
        let dir = tempfile::tempdir().unwrap();
        let mut index = build(dir.path(), Spec::Ivf { lists: 60, graph: None, bits: 1 }, Metric::L2, &rows);
        index.set_breadth(Some(1));
        for k in [1, 100, 899, 900] {
            let mut ids: Vec<u32> =
                index.search(&rows[..DIM], k, None).unwrap().iter().map(|hit| hit.id).collect();
            assert_eq!(ids[0], 0);
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), k);
        }
        let last = |id: u32| id > 890;
        assert_eq!(index.search(&rows[..DIM], 100, Some(&last)).unwrap().len(), 9);
    }

    #[test]
    fn fewer_rows_than_lists_and_rows_all_alike() {
        for metric in METRICS {
            for rows in [points(7, 0), points(1, 0).repeat(700), [points(5, 0), vec![0.0; 40 * DIM]].concat()]
            {
                let dir = tempfile::tempdir().unwrap();
                let index = build(dir.path(), Spec::Ivf { lists: 2000, graph: None, bits: 1 }, metric, &rows);
                let flat_dir = tempfile::tempdir().unwrap();
                let flat = build(flat_dir.path(), Spec::Flat, metric, &rows);
                for query in rows[..DIM].chunks(DIM).chain(points(3, 50).chunks(DIM)) {
                    let found = index.search(query, 5, None).unwrap();
                    assert_eq!(found, flat.search(query, 5, None).unwrap(), "{metric}");
                }
            }
        }
    }

    /// What damage can do to offsets and ids, worse than a changed byte does.
    #[test]
    fn offsets_and_ids_from_anywhere_lead_nowhere_else() {
        let rows = points(300, 0);
        let dir = tempfile::tempdir().unwrap();
        build(dir.path(), Spec::Ivf { lists: 10, graph: None, bits: 4 }, Metric::L2, &rows);
        let manifest = crate::artefact::read_manifest(dir.path()).unwrap();
        for (name, kept) in [(OFFSETS, 1), (IDS, 0)] {
            let path = manifest.path(dir.path(), name).unwrap();
            let whole = std::fs::read(&path).unwrap();
            for fill in [0u32, 3, 299, 300, 1 << 31, u32::MAX] {
                let mut bytes = whole.clone();
                let len = bytes.len() - 4 * kept;
                bytes[..len].chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&fill.to_le_bytes()));
                std::fs::write(&path, bytes).unwrap();
                let index = Index::open(dir.path()).unwrap();
                for k in [1, 10, 300] {
                    let found = index.search_batch(&rows[..9 * DIM], k, Some(&|_, id| id % 2 == 0)).unwrap();
                    assert!(found.iter().flatten().all(|hit| hit.id < 300 && hit.id % 2 == 0));
                }
            }
            std::fs::write(&path, whole).unwrap();
        }
    }
}
