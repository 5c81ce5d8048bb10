//! Searching inverted files: one, or several that share their lists, such as shards.
//!
//! Queries are taken some at a time, and go through the lists of one member after the other, so that what a member has is
//! read by all of them while it is in the caches.

use super::{Ivf, Near};
use crate::parallel;
use crate::rows::Rows;
use crate::scan::{Found, Query};
use crate::topk::{self, Allow, Hit, Least, TopK, share};

/// Queries that are on their way at once: what they have found so far takes some kilobytes each.
const QUERIES: usize = 256;
/// Where the lists probed have fewer rows than are looked for, so many times as many are.
const MORE: usize = 4;

/// An index that is searched together with others that share its lists.
pub(crate) struct Member<'a> {
    pub ivf: &'a Ivf,
    pub rows: &'a Rows,
    pub allow: Allow<'a>,
}

/// Of each member, and there for each prepared query, rows among which are the `k` nearest of all members, as far as they
/// are in the `breadth` nearest lists in which any member has rows; and of as many more lists as it takes to find `k`. Where it
/// is known what a score must reach, only rows that do, which may be fewer.
///
/// There is a member, and all share the lists of the first: these are looked for once.
pub(crate) fn search<'q>(
    members: &[Member],
    queries: &'q [f32],
    k: usize,
    breadth: usize,
    least: Least,
) -> Vec<Vec<Vec<Hit>>> {
    let (dim, count) = (members[0].rows.dim(), queries.len() / members[0].rows.dim());
    let k = k.min(members.iter().map(|member| member.rows.len()).sum());
    let mut by_member: Vec<Vec<Vec<Hit>>> = members.iter().map(|_| Vec::with_capacity(count)).collect();
    for first in (0..count).step_by(QUERIES) {
        let some = &queries[first * dim..count.min(first + QUERIES) * dim];
        let ask = |number: usize, query: &'q [f32]| {
            let number = first + number;
            Asked::new(members, query, number, breadth, topk::least_of(least, number))
        };
        let mut asked: Vec<Asked> =
            parallel::each_query(some, dim, || (), |(), number, query| ask(number, query));
        for member in members {
            parallel::each_mut(&mut asked, |asked| asked.probe(member, k));
        }
        parallel::each_mut(&mut asked, |asked| asked.decide(members, k));
        for asked in asked {
            by_member.iter_mut().zip(asked.hits).for_each(|(all, hits)| all.push(hits));
        }
    }
    by_member
}

/// A query on its way.
struct Asked<'a> {
    query: Query<'a>,
    /// Its place in the batch.
    number: usize,
    /// How many of the nearest lists are probed, and which these are.
    breadth: usize,
    lists: Vec<Near>,
    /// What its rows must score.
    least: f32,
    /// By members, as far as they have been probed, and then what has come of it.
    found: Vec<Found>,
    hits: Vec<Vec<Hit>>,
}

impl<'a> Asked<'a> {
    fn new(members: &[Member], query: &'a [f32], number: usize, breadth: usize, least: f32) -> Self {
        let first = &members[0];
        let all = first.ivf.coarse.len();
        let mut breadth = breadth.clamp(1, all);
        if members.iter().any(|member| member.allow.is_some()) {
            // The nearest of few allowed rows lie further off.
            let shares = members.iter().map(|member| member.share(number));
            let (allowed, asked) = shares.fold((0, 0), |sum, share| (sum.0 + share.0, sum.1 + share.1));
            breadth = (breadth * asked).checked_div(allowed).map_or(all, |breadth| breadth.min(all));
        }
        let query = first.ivf.prepare(first.rows.metric(), query);
        let lists = nearest(members, &query, breadth);
        Self { query, number, breadth, lists, least, found: Vec::new(), hits: Vec::new() }
    }

    /// Looks through the lists of the next member.
    fn probe(&mut self, member: &Member, k: usize) {
        let mut found = match self.found.last() {
            None => Found::above(k, self.least),
            Some(before) => Found::after(before),
        };
        let may = |id: u32| member.allow.is_none_or(|allow| allow(self.number, id));
        member.ivf.probe(member.rows, &self.query, &self.lists, &may, &mut found);
        self.found.push(found);
    }

    /// Scores what all members may have, exactly.
    fn decide(&mut self, members: &[Member], k: usize) {
        let all = members[0].ivf.coarse.len();
        loop {
            let mut best = TopK::new(k);
            let promised = self.found.last().map_or(self.least, Found::threshold);
            self.hits.clear();
            for (mut found, member) in self.found.drain(..).zip(members) {
                found.raise(promised.max(best.threshold()));
                let hits = member.ivf.decide(member.rows, &self.query, k.min(member.rows.len()), found);
                hits.iter().for_each(|hit| best.push(*hit));
                self.hits.push(hits);
            }
            let is_enough = self.hits.iter().map(Vec::len).sum::<usize>() >= k;
            if is_enough || self.breadth == all || self.least > f32::NEG_INFINITY {
                return;
            }
            self.breadth = (MORE * self.breadth).min(all);
            self.lists = nearest(members, &self.query, self.breadth);
            members.iter().for_each(|member| self.probe(member, k));
        }
    }
}

/// The lists that are nearest, of those in which any member has rows.
fn nearest(members: &[Member], query: &Query, count: usize) -> Vec<Near> {
    members[0].ivf.nearest(query, count, |list| members.iter().any(|member| member.ivf.has(list)))
}

impl Member<'_> {
    /// Of how many of its rows the query may find how many, about.
    fn share(&self, query: usize) -> (usize, usize) {
        let rows = self.rows.len();
        let (allowed, asked) = share(rows, |id| self.allow.is_none_or(|allow| allow(query, id)));
        ((allowed * rows).checked_div(asked).unwrap_or(0), rows)
    }
}
