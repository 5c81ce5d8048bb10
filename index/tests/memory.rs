//! What a build takes of memory against what it says that it takes. A test of its own: nothing else
//! runs in this process.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::clustered;
use sidenote_index::{Builder, Bytes, IndexError, Metric, Spec};
use tempfile::tempdir;

const DIM: usize = 24;
/// Enough that 300 bytes a row would be more than all that does not depend on them.
const ROWS: usize = 400_000;

fn own_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}

/// The most of its own memory that the process has while `work` runs, beyond what it had before.
fn peak<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let (before, ended) = (own_memory(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = before;
            while !ended.load(Ordering::Relaxed) {
                most = most.max(own_memory());
                std::thread::sleep(Duration::from_millis(1));
            }
            most - before
        });
        let result = work();
        ended.store(true, Ordering::Relaxed);
        (result, watch.join().unwrap())
    })
}

fn needs(error: &IndexError) -> Bytes {
    match error {
        IndexError::Memory { needs, .. } => *needs,
        other => panic!("{other}"),
    }
}

/// Fails when candidates, links, or anything else of some hundred bytes a row is kept in memory.
#[test]
fn builds_keep_within_what_they_say_and_refuse_what_would_not() {
    let rows = clustered(1000, DIM, 40, 1);
    // Rows that differ, of which only a thousand are in memory.
    let block = |number: usize| -> Vec<f32> {
        rows.iter().enumerate().map(|(i, x)| x + ((i * 31 + number * 977) as f32 * 0.61).sin()).collect()
    };
    for spec in [
        Spec::Graph { degree: 32 },
        Spec::Ivf { lists: 64, graph: None, bits: 1 },
        Spec::Ivf { lists: 1500, graph: None, bits: 4 },
        Spec::Ivf { lists: 1500, graph: Some(32), bits: 1 },
        Spec::RaBitQ { bits: 4 },
        Spec::Flat,
    ] {
        let count = if matches!(spec, Spec::Graph { .. }) { 60_000 } else { ROWS };
        let dir = tempdir().unwrap();
        let error = Builder::create(dir.path(), DIM, Metric::L2, &spec, 1).unwrap().memory(Bytes(1)).err();
        let empty = needs(&error.unwrap());
        // One byte short: the rows that are too many are refused as they come.
        let mut builder =
            Builder::create(dir.path(), DIM, Metric::L2, &spec, 1).unwrap().memory(empty).unwrap();
        let refused = (0..count / 1000).find_map(|number| builder.add(&block(number)).err());
        assert_eq!(refused.is_none(), spec == Spec::Flat || matches!(spec, Spec::RaBitQ { .. }), "{spec}");
        if let Some(error) = &refused {
            let text = error.to_string();
            assert!(text.contains(&empty.to_string()) && text.contains(&needs(error).to_string()), "{text}");
        }
        let (needs, most) = peak(|| {
            let mut builder = Builder::create(dir.path(), DIM, Metric::L2, &spec, 1).unwrap();
            (0..count / 1000).for_each(|number| builder.add(&block(number)).unwrap());
            let builder = builder.memory(Bytes(1));
            let needs = needs(&builder.err().unwrap());
            let mut builder =
                Builder::create(dir.path(), DIM, Metric::L2, &spec, 1).unwrap().memory(needs).unwrap();
            (0..count / 1000).for_each(|number| builder.add(&block(number)).unwrap());
            builder.finish().unwrap();
            needs
        });
        println!("{spec}: {most} of {needs}, {} a row", most as f64 / count as f64);
        assert!(Bytes(most) <= needs, "{spec}: {most} bytes, but it said {}", needs.0);
    }
}

#[test]
fn a_bound_that_is_too_small_says_what_is_enough_and_what_else_there_is() {
    let dir = tempdir().unwrap();
    let spec = Spec::Graph { degree: 32 };
    let error = Builder::create(dir.path(), 384, Metric::Cosine, &spec, 1)
        .unwrap()
        .memory("48MiB".parse().unwrap())
        .err()
        .unwrap();
    let text = error.to_string();
    assert!(text.contains("QG32") && text.contains("48MiB") && text.contains("allow"), "{text}");
    assert!(text.contains("RaBitQ") || text.contains("IVF"), "{text}");
}
