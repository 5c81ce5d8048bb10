//! Whether the right pages were found (KILT, Petroni et al. 2021, <https://arxiv.org/abs/2009.02252>, section 5): what a page says
//! alone, or several only together, is an evidence set. `pages` are ids, best first, each once.

use std::collections::BTreeSet;

/// Of the first R pages the share that is evidence, R being the size of the evidence set: the best over `sets`, from 0 to 1.
pub fn r_precision(sets: &[BTreeSet<String>], pages: &[&str]) -> f64 {
    let of = |set: &BTreeSet<String>| {
        let found = pages.iter().take(set.len()).filter(|page| set.contains(**page)).count();
        found as f64 / set.len().max(1) as f64
    };
    sets.iter().map(of).fold(0.0, f64::max)
}

/// Of the different evidence sets the share that is found whole among the first `k` places, from 0 to 1. A set takes one place, that
/// of its last page; a page of none takes one too.
pub fn page_recall(sets: &[BTreeSet<String>], pages: &[&str], k: usize) -> f64 {
    let different: BTreeSet<&BTreeSet<String>> = sets.iter().collect();
    let mut missing: Vec<BTreeSet<&str>> =
        different.iter().map(|set| set.iter().map(String::as_str).collect()).collect();
    // What stands at each place: the number of a set of which not all is found yet, or whether it is one that is.
    let mut places: Vec<Result<bool, usize>> = Vec::new();
    for page in pages {
        let mut is_evidence = false;
        for (number, set) in missing.iter_mut().enumerate().filter(|(_, set)| set.contains(page)) {
            is_evidence = true;
            places.retain(|place| *place != Err(number));
            set.remove(page);
            places.push(if set.is_empty() { Ok(true) } else { Err(number) });
        }
        if !is_evidence {
            places.push(Ok(false));
        }
    }
    let whole = places.iter().take(k).filter(|place| **place == Ok(true)).count();
    whole as f64 / different.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(of: &[&[&str]]) -> Vec<BTreeSet<String>> {
        of.iter().map(|set| set.iter().map(|page| page.to_string()).collect()).collect()
    }

    /// By hand, after KILT's definitions.
    #[test]
    fn pages_are_scored_as_kilt_does_it() {
        // Of the first two pages one is in {a, b}; the first is not in {c}.
        let two = sets(&[&["a", "b"], &["c"]]);
        assert_eq!(r_precision(&two, &["a", "x", "b", "c"]), 0.5);
        assert_eq!(r_precision(&two, &["x", "a", "b", "c"]), 0.5);
        assert_eq!(r_precision(&two, &["x", "y", "a", "b"]), 0.0);
        assert_eq!(r_precision(&two, &["b", "a"]), 1.0);
        assert_eq!(r_precision(&two, &["c", "x"]), 1.0);
        assert_eq!(r_precision(&two, &["a"]), 0.5);
        assert_eq!((r_precision(&two, &[]), r_precision(&[], &["a"])), (0.0, 0.0));

        // Places: x, then {a, b} where b is, then c.
        let recalls = |pages: &[&str], of: &[BTreeSet<String>]| [1, 2, 3].map(|k| page_recall(of, pages, k));
        assert_eq!(recalls(&["a", "x", "b", "c"], &two), [0.0, 0.5, 1.0]);
        // {a, b} is the first place by itself, as b follows.
        assert_eq!(recalls(&["a", "b", "c"], &two), [0.5, 1.0, 1.0]);
        assert_eq!(recalls(&["a", "x", "y", "c"], &two), [0.0, 0.0, 0.0], "half a set is none");
        // The same set twice is one set; a page of two sets stands for both.
        assert_eq!(recalls(&["c", "x"], &sets(&[&["c"], &["c"], &["y"]])), [0.5, 0.5, 0.5]);
        assert_eq!(recalls(&["a", "b"], &sets(&[&["a"], &["a", "b"]])), [0.5, 1.0, 1.0]);
        assert_eq!((page_recall(&two, &[], 5), page_recall(&[], &["a"], 5)), (0.0, 0.0));
    }
}
