//! The centroids of the lists, by k-means (Lloyd, 1982), and which row goes to which.
//!
//! Up to [`ONE_LEVEL`] lists, rows are compared with all centroids, in matrix products. More lists
//! are made in two levels: about as many cells as the root of their number, each then divided into
//! lists in proportion to its size; and a row is compared with the lists of the few nearest cells.
//!
//! Everything is relative to the mean of all rows, so that squares far from the origin do not eat
//! up what tells rows apart.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::metric::dot;
use crate::product::inner_products;
use crate::rows::Rows;

/// Lists that are trained, and that rows are compared with, at once.
const ONE_LEVEL: usize = 1024;
/// Rows for each list that centroids are trained on.
const SAMPLE: usize = 64;
/// Times that rows are assigned and centroids made their means.
const ROUNDS: usize = 8;
/// Rows that one product or task takes: fixed, so that threads have no say in the rounding.
const STRIP: usize = 256;
/// Cells whose lists a row is compared with. Of 400,000 rows in 4096 lists 96.4 in a hundred find the nearest of all
/// with 4, 99.1 with 8 and 99.9 with 16; with 4, searches lose .003 of their recall, with 8 less than .001.
const CELLS: usize = 8;

/// The lists, by their centroids.
pub(super) struct Lists {
    /// Less the centre; where there are cells, by cells.
    fine: Means,
    /// Cells, and where the lists of each begin and end.
    coarse: Option<(Means, Vec<usize>)>,
    /// The number of each list, where it is not its place in `fine`.
    numbers: Option<Vec<u32>>,
    centre: Vec<f32>,
}

impl Lists {
    /// Trains the centroids of `lists` lists on a sample of the rows, whose mean is `centre`. The
    /// same rows and seed give the same lists on any number of threads. Where rows, or different
    /// ones, are fewer than lists, some centroids are the same and get no rows.
    ///
    /// Memory: the sample, of at most 64 × 1024 rows, and ids of 64 rows a list.
    pub fn train(rows: &Rows, centre: &[f32], lists: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut sample =
            rand::seq::index::sample(&mut rng, rows.len(), rows.len().min(SAMPLE * lists)).into_vec();
        sample.sort_unstable();
        let centre = centre.to_vec();
        if lists <= ONE_LEVEL {
            let points = gather(rows, &centre, &sample);
            let fine = Means::train(&points, rows.dim(), lists, &mut rng);
            return Self { fine, coarse: None, numbers: None, centre };
        }
        let cells = (lists as f64).sqrt() as usize;
        let few = rows.len().min(SAMPLE * cells);
        let few: Vec<usize> = (0..few).map(|i| sample[i * sample.len() / few]).collect();
        let coarse = Means::train(&gather(rows, &centre, &few), rows.dim(), cells, &mut rng);
        let cell_of: Vec<Vec<u32>> =
            sample.par_chunks(STRIP).map(|ids| coarse.nearest(&gather(rows, &centre, ids))).collect();
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); cells];
        for (id, cell) in sample.iter().zip(cell_of.into_iter().flatten()) {
            members[cell as usize].push(*id);
        }
        let shares = share_out(lists, &members.iter().map(Vec::len).collect::<Vec<_>>());
        let jobs: Vec<_> = members.into_iter().zip(&shares).map(|job| (job, rng.random::<u64>())).collect();
        let parts: Vec<Vec<f32>> = jobs
            .into_par_iter()
            .map(|((members, &share), seed)| {
                let points = gather(rows, &centre, &members);
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                Means::train(&points, rows.dim(), share, &mut rng).vectors
            })
            .collect();
        let fine = Means::new(parts.concat(), rows.dim());
        Self { fine, coarse: Some((coarse, bounds(&shares))), numbers: None, centre }
    }

    /// Lists that others have trained: their centroids, and the centre of these others.
    pub fn around(centroids: &Rows, centre: &[f32], seed: u64) -> Self {
        let (lists, dim) = (centroids.len(), centroids.dim());
        let numbers: Vec<usize> = (0..lists).collect();
        let points = gather(centroids, centre, &numbers);
        let centre = centre.to_vec();
        if lists <= ONE_LEVEL {
            return Self { fine: Means::new(points, dim), coarse: None, numbers: None, centre };
        }
        let coarse =
            Means::train(&points, dim, (lists as f64).sqrt() as usize, &mut ChaCha8Rng::seed_from_u64(seed));
        let mut members = vec![Vec::new(); coarse.len()];
        let cell_of: Vec<Vec<u32>> =
            points.par_chunks(STRIP * dim).map(|points| coarse.nearest(points)).collect();
        cell_of.into_iter().flatten().zip(0..).for_each(|(cell, list)| members[cell as usize].push(list));
        let bounds = bounds(&members.iter().map(Vec::len).collect::<Vec<_>>());
        let numbers = members.concat();
        let points =
            numbers.iter().flat_map(|&list: &u32| &points[list as usize * dim..][..dim]).copied().collect();
        Self { fine: Means::new(points, dim), coarse: Some((coarse, bounds)), numbers: Some(numbers), centre }
    }

    /// The centroids `[lists, dim]` of trained lists.
    pub fn centroids(&self) -> Vec<f32> {
        let centroids = self.fine.vectors.chunks_exact(self.fine.dim);
        centroids.flat_map(|list| list.iter().zip(&self.centre).map(|(x, c)| x + c)).collect()
    }

    /// The list of every row.
    pub fn assign(&self, rows: &Rows) -> Vec<u32> {
        // With two levels, rows of the same cell have to come together before there is a product.
        let strip = if self.coarse.is_some() { 16 * STRIP } else { STRIP };
        let strips: Vec<Vec<u32>> = (0..rows.len().div_ceil(strip))
            .into_par_iter()
            .map(|number| {
                let ids: Vec<usize> = (number * strip..rows.len().min((number + 1) * strip)).collect();
                let points = gather(rows, &self.centre, &ids);
                match &self.coarse {
                    None => self.fine.nearest(&points),
                    Some((coarse, bounds)) => self.nearest_by_cells(coarse, bounds, &points),
                }
            })
            .collect();
        let mut places = strips.concat();
        if let Some(numbers) = &self.numbers {
            places.iter_mut().for_each(|place| *place = numbers[*place as usize]);
        }
        places
    }

    fn nearest_by_cells(&self, coarse: &Means, bounds: &[usize], points: &[f32]) -> Vec<u32> {
        let dim = self.fine.dim;
        let mut members: Vec<Vec<u32>> = vec![Vec::new(); coarse.len()];
        for (strip, points) in points.chunks(STRIP * dim).enumerate() {
            let products = coarse.products(points);
            for (i, products) in products.chunks_exact(coarse.len()).enumerate() {
                let mut best = [(f32::NEG_INFINITY, 0); CELLS];
                for (cell, near) in coarse.nearness(products).enumerate() {
                    if near > best[CELLS - 1].0 {
                        best[CELLS - 1] = (near, cell);
                        best.sort_by(|a, b| b.0.total_cmp(&a.0));
                    }
                }
                let mut cells = best.map(|(_, cell)| cell);
                cells.sort_unstable();
                for (place, &cell) in cells.iter().enumerate() {
                    if place == 0 || cells[place - 1] != cell {
                        members[cell].push((strip * STRIP + i) as u32);
                    }
                }
            }
        }
        let mut best = vec![(f32::NEG_INFINITY, 0u32); points.len() / dim];
        for (cell, members) in members.iter().enumerate() {
            let lists = bounds[cell]..bounds[cell + 1];
            let own: Vec<f32> =
                members.iter().flat_map(|&i| &points[i as usize * dim..][..dim]).copied().collect();
            let mut products = vec![0.0; members.len() * lists.len()];
            let vectors = &self.fine.vectors[lists.start * dim..lists.end * dim];
            inner_products(&own, vectors, dim, &mut products);
            for (&i, products) in members.iter().zip(products.chunks_exact(lists.len())) {
                let best = &mut best[i as usize];
                for (list, product) in lists.clone().zip(products) {
                    let near = product - self.fine.halves[list];
                    if near > best.0 {
                        *best = (near, list as u32);
                    }
                }
            }
        }
        best.into_iter().map(|(_, list)| list).collect()
    }
}

/// Rows less the centre, end to end.
fn gather(rows: &Rows, centre: &[f32], ids: &[usize]) -> Vec<f32> {
    ids.iter().flat_map(|&id| rows.row(id).iter().zip(centre).map(|(x, c)| x - c)).collect()
}

/// Where parts of these sizes begin, and the last one ends.
fn bounds(sizes: &[usize]) -> Vec<usize> {
    let ends = sizes.iter().scan(0, |end, size| {
        *end += size;
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

/// Divides `lists` in proportion to sizes; each part gets one at least.
fn share_out(lists: usize, sizes: &[usize]) -> Vec<usize> {
    let total = sizes.iter().sum::<usize>().max(1);
    let spare = lists - sizes.len();
    let mut before = 0;
    // What is due to all up to a part, less what those before it got: the sum comes out right.
    let due = |upto: usize| (spare as u128 * upto as u128 / total as u128) as usize;
    let mut shares: Vec<usize> = sizes
        .iter()
        .map(|size| {
            let share = 1 + due(before + size) - due(before);
            before += size;
            share
        })
        .collect();
    // Nothing to go by: without rows no list gets any.
    shares[0] += lists - shares.iter().sum::<usize>();
    shares
}

/// Points that others are assigned to.
struct Means {
    /// `[len, dim]`.
    vectors: Vec<f32>,
    /// Half the squared length of each.
    halves: Vec<f32>,
    dim: usize,
}

impl Means {
    fn new(vectors: Vec<f32>, dim: usize) -> Self {
        let halves = vectors.chunks_exact(dim).map(|vector| dot(vector, vector) / 2.0).collect();
        Self { vectors, halves, dim }
    }

    /// `count` means of points, by Lloyd's algorithm from random ones of them.
    fn train(points: &[f32], dim: usize, count: usize, rng: &mut ChaCha8Rng) -> Self {
        let n = points.len() / dim;
        if n == 0 {
            return Self::new(vec![0.0; count * dim], dim);
        }
        let point = |i: usize| &points[i * dim..][..dim];
        let first = rand::seq::index::sample(rng, n, count.min(n)).into_vec();
        let vectors = first.iter().cycle().take(count).flat_map(|&i| point(i)).copied().collect();
        let mut means = Self::new(vectors, dim);
        if n <= count {
            return means;
        }
        for _ in 0..ROUNDS {
            let nearest: Vec<Vec<u32>> =
                points.par_chunks(STRIP * dim).map(|points| means.nearest(points)).collect();
            let mut members: Vec<Vec<u32>> = vec![Vec::new(); count];
            for (i, mean) in nearest.into_iter().flatten().enumerate() {
                members[mean as usize].push(i as u32);
            }
            let mut vectors: Vec<Vec<f32>> = members
                .par_iter()
                .map(|members| {
                    let mut sums = vec![0.0f64; dim];
                    for &i in members {
                        sums.iter_mut().zip(point(i as usize)).for_each(|(sum, &x)| *sum += f64::from(x));
                    }
                    sums.iter().map(|sum| (sum / members.len().max(1) as f64) as f32).collect()
                })
                .collect();
            // Where nothing went, one of the points of the largest part starts anew: it takes
            // about half of the part with it.
            let mut sizes: Vec<usize> = members.iter().map(Vec::len).collect();
            for mean in 0..count {
                if sizes[mean] > 0 {
                    continue;
                }
                let Some(largest) = (0..count).max_by_key(|&other| (sizes[other], count - other)) else {
                    break;
                };
                let among = &members[largest];
                if sizes[largest] > 1 && !among.is_empty() {
                    vectors[mean] = point(among[rng.random_range(0..among.len())] as usize).to_vec();
                    sizes[mean] = sizes[largest] / 2;
                    sizes[largest] -= sizes[mean];
                }
            }
            means = Self::new(vectors.concat(), dim);
        }
        means
    }

    fn len(&self) -> usize {
        self.halves.len()
    }

    /// Inner products `[points, len]`.
    fn products(&self, points: &[f32]) -> Vec<f32> {
        let mut products = vec![0.0; points.len() / self.dim * self.len()];
        inner_products(points, &self.vectors, self.dim, &mut products);
        products
    }

    /// For the products of one point, what is largest for the nearest mean: half of what minus the
    /// squared distance is, but for the point's own square.
    fn nearness(&self, products: &[f32]) -> impl Iterator<Item = f32> {
        products.iter().zip(&self.halves).map(|(product, half)| product - half)
    }

    /// The nearest mean of each point, the first of those as near.
    fn nearest(&self, points: &[f32]) -> Vec<u32> {
        let products = self.products(points);
        let each = products.chunks_exact(self.len());
        each.map(|products| {
            let mut best = (f32::NEG_INFINITY, 0);
            for (mean, near) in self.nearness(products).enumerate() {
                if near > best.0 {
                    best = (near, mean as u32);
                }
            }
            best.1
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::Metric;
    use crate::mapped::write_numbers;

    const DIM: usize = 8;

    fn rows(points: &[f32]) -> Rows {
        let mut file = tempfile::tempfile().unwrap();
        write_numbers(&mut file, points).unwrap();
        file.flush().unwrap();
        Rows::of(&file, "test".as_ref(), points.len() / DIM, DIM, Metric::L2).unwrap()
    }

    fn clusters(n: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let near: Vec<f32> = (0..40 * DIM).map(|_| rng.random_range(-1.0..1.0)).collect();
        (0..n)
            .flat_map(|_| {
                let cluster = rng.random_range(0..40) * DIM;
                (0..DIM).map(|d| near[cluster + d] + rng.random_range(-0.2..0.2)).collect::<Vec<f32>>()
            })
            .collect()
    }

    /// The mean squared distance of a row to the centroid of its list.
    fn distortion(rows: &Rows, lists: &Lists) -> f64 {
        let centroids = lists.centroids();
        let each = lists.assign(rows).into_iter().enumerate().map(|(id, list)| {
            let centroid = &centroids[list as usize * DIM..][..DIM];
            f64::from(crate::metric::squared_distance(rows.row(id), centroid))
        });
        each.sum::<f64>() / rows.len() as f64
    }

    /// Fails without rounds, and where rows go to another list than the nearest.
    #[test]
    fn training_brings_rows_nearer_to_their_centroids() {
        let points = clusters(6000);
        let rows = rows(&points);
        let centre = crate::rabitq::mean(&rows);
        let trained = Lists::train(&rows, &centre, 40, 1);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let some = rand::seq::index::sample(&mut rng, rows.len(), 40).into_vec();
        let untrained = Lists {
            fine: Means::new(gather(&rows, &centre, &some), DIM),
            coarse: None,
            numbers: None,
            centre: centre.clone(),
        };
        let (after, before) = (distortion(&rows, &trained), distortion(&rows, &untrained));
        // Uniform noise of 0.2 each way has a variance of 0.04 / 3.
        let least = DIM as f64 * 0.04 / 3.0;
        assert!(after < 0.5 * before && after < 2.5 * least, "{after} after {before}, least {least}");
        let centroids = trained.centroids();
        for (id, list) in trained.assign(&rows).into_iter().enumerate() {
            let distance =
                |list: usize| crate::metric::squared_distance(rows.row(id), &centroids[list * DIM..][..DIM]);
            assert!((0..40).all(|other| distance(other) > distance(list as usize) - 1e-4));
        }
    }

    /// Two means that begin at the same place: half of these do.
    #[test]
    fn a_mean_that_nothing_is_near_starts_anew() {
        let points: Vec<f32> =
            (0..100 * DIM).map(|i| if (i / DIM).is_multiple_of(2) { 1.0 } else { -1.0 }).collect();
        for seed in 0..20 {
            let means = Means::train(&points, DIM, 2, &mut ChaCha8Rng::seed_from_u64(seed));
            let sum = means.vectors[0] + means.vectors[DIM];
            assert!(sum.abs() < 1e-5 && means.vectors[0].abs() > 0.99, "{seed}: {:?}", means.vectors);
        }
    }

    #[test]
    fn two_levels_are_nearly_as_good_as_one() {
        let points = clusters(20_000);
        let rows = rows(&points);
        let centre = crate::rabitq::mean(&rows);
        let one = distortion(&rows, &Lists::train(&rows, &centre, ONE_LEVEL, 1));
        let two = Lists::train(&rows, &centre, ONE_LEVEL + 1, 1);
        assert!(two.coarse.is_some() && two.centroids().len() == (ONE_LEVEL + 1) * DIM);
        let two = distortion(&rows, &two);
        assert!(two < 1.15 * one, "{two} with two levels, {one} with one");
    }

    /// Rows that are in no clusters, so that many lie between cells: fails where a row is compared with the lists of the
    /// nearest cell only.
    #[test]
    fn with_two_levels_rows_find_the_nearest_list() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let points: Vec<f32> = (0..20_000 * DIM).map(|_| rng.random_range(-1.0..1.0)).collect();
        let rows = rows(&points);
        let lists = Lists::train(&rows, &crate::rabitq::mean(&rows), ONE_LEVEL + 1, 1);
        let centroids = lists.centroids();
        let to = |id: usize, list: usize| {
            crate::metric::squared_distance(rows.row(id), &centroids[list * DIM..][..DIM])
        };
        let is_nearest = |&(id, list): &(usize, u32)| {
            let own = to(id, list as usize) - 1e-5;
            (0..=ONE_LEVEL).all(|other| own <= to(id, other))
        };
        let some = lists.assign(&rows).into_iter().enumerate().step_by(20).filter(is_nearest).count();
        assert!(some > 950, "{some} of 1000");
    }

    /// Fails where the lists that others have trained lose their numbers, or rows find others than the nearest.
    #[test]
    fn rows_find_the_nearest_of_lists_that_others_have_trained() {
        let points = clusters(20_000);
        let rows = rows(&points);
        for count in [50, ONE_LEVEL + 300] {
            let trained = Lists::train(&rows, &crate::rabitq::mean(&rows), count, 1);
            let centroids = self::rows(&trained.centroids());
            let others = Lists::around(&centroids, &trained.centre, 2);
            let to =
                |id: usize, list: usize| crate::metric::squared_distance(rows.row(id), centroids.row(list));
            let is_nearest = |&(id, list): &(usize, u32)| {
                let own = to(id, list as usize) - 1e-5;
                (0..count).all(|other| own <= to(id, other))
            };
            let some = others.assign(&rows).into_iter().enumerate().step_by(20).filter(is_nearest).count();
            assert!(some > 950, "{some} of 1000 with {count}");
        }
    }

    #[test]
    fn the_same_on_any_number_of_threads() {
        let points = clusters(5000);
        let rows = rows(&points);
        let centre = crate::rabitq::mean(&rows);
        for lists in [30, ONE_LEVEL + 200] {
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let lists = Lists::train(&rows, &centre, lists, 9);
                    (lists.centroids(), lists.assign(&rows))
                })
            };
            assert!(on(1) == on(3), "{lists}");
            assert!(Lists::train(&rows, &centre, lists, 10).centroids() != on(1).0, "{lists}");
        }
    }

    #[test]
    fn few_rows_rows_all_alike_and_none() {
        for n in [0, 1, 5, 3000] {
            for points in [clusters(n), vec![0.7; n * DIM]] {
                let rows = rows(&points);
                let centre = crate::rabitq::mean(&rows);
                for lists in [1, 16, ONE_LEVEL + 1] {
                    let trained = Lists::train(&rows, &centre, lists, 3);
                    assert_eq!(trained.centroids().len(), lists * DIM);
                    let assigned = trained.assign(&rows);
                    assert!(assigned.len() == n && assigned.iter().all(|list| (*list as usize) < lists));
                    if n > 0 && points[0] == 0.7 && points[1] == 0.7 {
                        assert!(assigned.iter().all(|list| *list == assigned[0]), "{n} {lists}");
                    }
                }
            }
        }
    }

    #[test]
    fn lists_are_shared_out_whole() {
        assert_eq!(share_out(10, &[1, 1, 2]), [2, 3, 5]);
        assert_eq!(share_out(5, &[0, 0]), [4, 1]);
        for lists in [7, 100, 1025] {
            let shares = share_out(lists, &[5, 0, 900, 1, 1, 30, 2]);
            assert!(shares.iter().sum::<usize>() == lists && shares.iter().all(|share| *share > 0));
        }
    }
}
