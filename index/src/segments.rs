//! Several indexes searched as one.

use std::borrow::Cow;

use crate::topk::{Allow, Hit, TopK};
use crate::{Bitmap, Index, IndexError, Metric, ivf, parallel, single};

/// So many queries are worth several threads to join what the parts have found.
const MANY: usize = 256;

/// Which rows of a part may be found.
type Filter<'a> = Box<dyn Fn(usize, u32) -> bool + Sync + 'a>;

/// What a search gives.
type Found = Result<Vec<Vec<Hit>>, IndexError>;
/// Which rows may be found: called with part, the query's place in the batch, and the part's row.
type AllowInPart<'a> = Option<&'a (dyn Fn(usize, usize, u32) -> bool + Sync)>;

/// How parts are searched.
#[derive(Clone, Copy)]
pub(crate) enum How {
    /// As the part's kind does.
    ByKind,
    /// By comparing with every row.
    Exactly,
}

/// Several indexes of one dimension and metric, searched as one. Ids run on from one part to the
/// next: the first row of the second part has the number of rows of the first part as its id.
/// Rows that are dead keep their ids and are never found.
pub struct Segments {
    parts: Vec<Part>,
    dim: usize,
    metric: Metric,
    len: usize,
    live: usize,
}

/// The number of a part, and for each query its hits there, by the part's own ids.
pub(crate) type FoundInPart = (usize, Vec<Vec<Hit>>);

struct Part {
    index: Index,
    /// None where all rows are live, which leaves the search without a question to ask.
    dead: Option<Bitmap>,
    /// Rows that are not dead.
    live: usize,
    /// Id of the first row.
    first: usize,
    /// The number of the first part with the same lists, which it is searched together with; its own where there is none.
    group: usize,
}

impl Segments {
    /// Joins the indexes, each with the set of its dead rows where it has any.
    ///
    /// # Errors
    /// No part at all ([`Segments::empty`] is for that), parts that differ in dimension or metric,
    /// a set that is not over the rows of its part, more than `u32::MAX` rows together.
    pub fn new(parts: Vec<(Index, Option<Bitmap>)>) -> Result<Self, IndexError> {
        let Some((first, _)) = parts.first() else {
            return Err(IndexError::Parts { why: "there is no part, so no dimension and no metric".into() });
        };
        let mut all = Self::empty(first.dim(), first.metric());
        parts.into_iter().try_for_each(|(index, dead)| all.push(index, dead))?;
        Ok(all)
    }

    /// No rows, of vectors of `dim` numbers under `metric`.
    pub fn empty(dim: usize, metric: Metric) -> Self {
        Self { parts: Vec::new(), dim, metric, len: 0, live: 0 }
    }

    /// Joins one more index, whose rows come behind all others.
    ///
    /// # Errors
    /// As for [`new`](Segments::new).
    pub fn push(&mut self, index: Index, dead: Option<Bitmap>) -> Result<(), IndexError> {
        let number = self.parts.len();
        if (index.dim(), index.metric()) != (self.dim, self.metric) {
            let why = format!(
                "part {number} has dimension {} and metric {}, but the others {} and {}",
                index.dim(),
                index.metric(),
                self.dim,
                self.metric
            );
            return Err(IndexError::Parts { why });
        }
        let dead_count = match &dead {
            Some(dead) if dead.len() != index.len() => {
                let why =
                    format!("part {number} has {} rows, but {} bits for dead ones", index.len(), dead.len());
                return Err(IndexError::Parts { why });
            }
            Some(dead) => dead.count_ones(),
            None => 0,
        };
        if index.len() > u32::MAX as usize - self.len {
            return Err(IndexError::TooManyRows);
        }
        let (first, live) = (self.len, index.len() - dead_count);
        self.len += index.len();
        self.live += live;
        let shares_lists = |part: &Part| {
            part.index.lists().zip(index.lists()).is_some_and(|((a, ..), (b, ..))| a.shares_lists_with(b))
        };
        let group = self.parts.iter().position(shares_lists).unwrap_or(number);
        self.parts.push(Part { index, dead: dead.filter(|_| dead_count > 0), live, first, group });
        Ok(())
    }

    /// The indexes, in the order of their ids.
    pub fn parts(&self) -> impl Iterator<Item = &Index> {
        self.parts.iter().map(|part| &part.index)
    }

    /// Number of rows, dead ones included: ids are less than this.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no rows, not even dead ones.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of rows that are not dead.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Numbers in a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// How nearness is measured.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// Whether `id` is a row that is not dead.
    pub fn is_live(&self, id: u32) -> bool {
        self.locate(id).is_some_and(|(part, row)| !part.is_dead(row))
    }

    /// Row `id` as it is stored, dead or not: see [`Index::vector`].
    pub fn vector(&self, id: u32) -> Option<Cow<'_, [f32]>> {
        self.locate(id).and_then(|(part, row)| part.index.vector(row))
    }

    /// Sets the [`breadth`](Index::breadth) of part `part` ([`parts`](Segments::parts) counts them
    /// from 0); where there is no such part, nothing.
    pub fn set_breadth(&mut self, part: usize, breadth: Option<usize>) {
        if let Some(part) = self.parts.get_mut(part) {
            part.index.set_breadth(breadth);
        }
    }

    /// The `k` nearest live rows to `query`: what [`Index::search`] promises, over all parts.
    ///
    /// # Errors
    /// As for [`Index::search`].
    pub fn search(
        &self,
        query: &[f32],
        k: usize,
        allow: Option<&(dyn Fn(u32) -> bool + Sync)>,
    ) -> Result<Vec<Hit>, IndexError> {
        single::search(query, self.dim, allow, |allow| self.search_batch(query, k, allow))
    }

    /// [`search`](Segments::search) for many queries `[queries, dim]`, row-major, on all threads
    /// of the current rayon pool: what [`Index::search_batch`] promises, over all parts.
    ///
    /// # Errors
    /// As for [`Index::search_batch`].
    pub fn search_batch(
        &self,
        queries: &[f32],
        k: usize,
        allow: Option<&(dyn Fn(usize, u32) -> bool + Sync)>,
    ) -> Result<Vec<Vec<Hit>>, IndexError> {
        self.search_by(How::ByKind, queries, k, allow)
    }

    /// [`search_batch`](Segments::search_batch) by comparing with every live row: see
    /// [`Index::search_exactly`].
    ///
    /// # Errors
    /// As for [`Index::search_batch`].
    pub fn search_exactly(
        &self,
        queries: &[f32],
        k: usize,
        allow: Option<&(dyn Fn(usize, u32) -> bool + Sync)>,
    ) -> Result<Vec<Vec<Hit>>, IndexError> {
        self.search_by(How::Exactly, queries, k, allow)
    }

    /// [`search_batch`](Segments::search_batch), in either way.
    fn search_by(&self, how: How, queries: &[f32], k: usize, allow: Allow) -> Found {
        let by_row = |part: usize, query: usize, row: u32| {
            allow.is_some_and(|allow| allow(query, self.parts[part].first as u32 + row))
        };
        let mut found = self.search_parts(how, queries, k, allow.is_some().then_some(&by_row))?;
        for (part, hits) in &mut found {
            let first = self.parts[*part].first as u32;
            hits.iter_mut().flatten().for_each(|hit| hit.id += first);
        }
        Ok(merge(found.into_iter().map(|(_, hits)| hits).collect(), queries.len() / self.dim, k))
    }

    /// The `k` nearest live rows of each query over all parts, and others: each part that has live
    /// rows, and for each query its hits with their rows in this part as ids. A part need not look
    /// for what scores less than the `k` that those before it have.
    pub(crate) fn search_parts(
        &self,
        how: How,
        queries: &[f32],
        k: usize,
        allow: AllowInPart,
    ) -> Result<Vec<FoundInPart>, IndexError> {
        self.check(queries)?;
        let mut all = Vec::new();
        let k = k.min(self.live);
        let mut best: Vec<TopK> = (0..queries.len() / self.dim).map(|_| TopK::new(k)).collect();
        // One after the other: each makes use of all threads where that pays.
        let mut waiting: Vec<usize> =
            (0..self.parts.len()).filter(|&number| self.parts[number].live > 0).collect();
        while let Some(&first) = waiting.first() {
            let group = |number: usize| match how {
                How::ByKind => self.parts[number].group,
                How::Exactly => number,
            };
            let (now, later): (Vec<usize>, Vec<usize>) =
                waiting.into_iter().partition(|&number| group(number) == group(first));
            waiting = later;
            let least: Vec<f32> = best.iter().map(TopK::threshold).collect();
            let found = self.search_some(how, &now, queries, k, &least, allow)?;
            if !waiting.is_empty() {
                for hits in &found {
                    let each = best.iter_mut().zip(hits);
                    each.for_each(|(best, hits)| hits.iter().for_each(|hit| best.push(*hit)));
                }
            }
            all.extend(now.into_iter().zip(found));
        }
        Ok(all)
    }

    /// The hits of a part, or of several that share their lists.
    fn search_some(
        &self,
        how: How,
        parts: &[usize],
        queries: &[f32],
        k: usize,
        least: &[f32],
        allow: AllowInPart,
    ) -> Result<Vec<Vec<Vec<Hit>>>, IndexError> {
        let filters: Vec<_> = parts.iter().map(|&number| self.filter(number, allow)).collect();
        let filters = filters.iter().map(Option::as_deref);
        let indexes = parts.iter().map(|&number| &self.parts[number].index);
        let each = indexes.zip(filters);
        let first = &self.parts[parts[0]].index;
        match how {
            How::ByKind if parts.len() > 1 => {
                let lists: Vec<_> = each.filter_map(|(index, allow)| Some((index.lists()?, allow))).collect();
                let breadth = lists.iter().map(|((_, _, breadth), _)| *breadth).max().unwrap_or(0);
                let member = |((ivf, rows, _), allow)| ivf::Member { ivf, rows, allow };
                let members: Vec<ivf::Member> = lists.into_iter().map(member).collect();
                Ok(ivf::search(&members, &first.prepare(queries)?, k, breadth, Some(least)))
            }
            How::ByKind => {
                each.map(|(index, allow)| index.search_above(queries, k, Some(least), allow)).collect()
            }
            How::Exactly => each.map(|(index, allow)| index.search_exactly(queries, k, allow)).collect(),
        }
    }

    /// Which rows of a part may be found; none where all may.
    fn filter<'a>(&'a self, number: usize, allow: AllowInPart<'a>) -> Option<Filter<'a>> {
        match (&self.parts[number].dead, allow) {
            (None, None) => None,
            (None, Some(allow)) => Some(Box::new(move |query, row| allow(number, query, row))),
            (Some(dead), None) => Some(Box::new(|_, row| !dead.get(row as usize))),
            (Some(dead), Some(allow)) => {
                Some(Box::new(move |query, row| !dead.get(row as usize) && allow(number, query, row)))
            }
        }
    }

    /// Part `number`, which there is.
    pub(crate) fn part(&self, number: usize) -> &Index {
        &self.parts[number].index
    }

    /// The dead rows of part `number`, which there is; none where all are live.
    pub(crate) fn dead(&self, number: usize) -> Option<&Bitmap> {
        self.parts[number].dead.as_ref()
    }

    /// Refuses what every part would refuse, for the case that there is none to ask.
    fn check(&self, queries: &[f32]) -> Result<(), IndexError> {
        let dim = self.dim;
        if !queries.len().is_multiple_of(dim) {
            return Err(IndexError::Length { what: "queries", found: queries.len(), dim, many: true });
        }
        if self.live > 0 {
            return Ok(());
        }
        for (number, query) in queries.chunks_exact(dim).enumerate() {
            if !self.metric.prepare(&mut query.to_vec()) {
                return Err(IndexError::NotFinite { what: "query", number });
            }
        }
        Ok(())
    }

    fn locate(&self, id: u32) -> Option<(&Part, u32)> {
        let id = id as usize;
        let part = &self.parts[self.parts.partition_point(|part| part.first <= id).checked_sub(1)?];
        let row = id - part.first;
        (row < part.index.len()).then_some((part, row as u32))
    }
}

impl Part {
    fn is_dead(&self, row: u32) -> bool {
        self.dead.as_ref().is_some_and(|dead| dead.get(row as usize))
    }
}

/// The `k` greatest of what each part has found for each of `queries` queries, greatest first.
pub(crate) fn merge<T: Copy + Ord + Send + Sync>(
    mut parts: Vec<Vec<Vec<T>>>,
    queries: usize,
    k: usize,
) -> Vec<Vec<T>> {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    parallel::map(queries, queries >= MANY, |query| {
        let mut all: Vec<T> = parts.iter().flat_map(|part| part[query].iter().copied()).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all.truncate(k);
        all
    })
}
