//! Crashes at every step of every change, in SQLite's manner: the program is stopped before its
//! n-th change to the file system, for every n, and what is on disk then must be the old
//! generation or the new one. Kills of a real process are in `tests/crash.rs`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::tempdir;

use super::{Collection, CollectionWriter};
use crate::artefact::{ArtefactError, MANIFEST, read_manifest, verify};
use crate::disk::Step;
use crate::{Builder, Index, IndexError, Metric, Spec};

pub(crate) type Log = Vec<(Step, PathBuf)>;

#[derive(Default)]
struct Recording {
    log: Log,
    crash_at: Option<usize>,
}

thread_local! {
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
}

/// Called by [`disk`](crate::disk) before each change. From the step of the crash on, everything
/// fails: code that clears up behind an error does nothing, as after a crash.
pub(crate) fn step(what: Step, path: &Path) -> io::Result<()> {
    RECORDING.with_borrow_mut(|recording| {
        let Some(recording) = recording else { return Ok(()) };
        if recording.crash_at.is_some_and(|n| recording.log.len() >= n) {
            return Err(io::Error::other("the crash that the test asked for"));
        }
        recording.log.push((what, path.into()));
        Ok(())
    })
}

/// Runs `work` up to its n-th step, or to its end; what it returned, and the steps that it made.
pub(crate) fn recorded<T>(crash_at: Option<usize>, work: impl FnOnce() -> T) -> (T, Log) {
    RECORDING.set(Some(Recording { log: Vec::new(), crash_at }));
    let returned = work();
    (returned, RECORDING.take().unwrap_or_default().log)
}

type Content = BTreeMap<u64, Vec<f32>>;

/// The generation and everything in it; none where there is no collection.
fn content(dir: &Path) -> Option<(u64, Content)> {
    match Collection::open(dir) {
        Ok(collection) => {
            let vectors = collection.ids().map(|id| (id, collection.vector(id).unwrap().to_vec()));
            Some((collection.generation(), vectors.collect()))
        }
        Err(IndexError::Artefact(ArtefactError::Missing { .. })) => None,
        Err(error) => panic!("{error}"),
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, target) = {
            let entry = entry.unwrap();
            (entry.path(), to.join(entry.file_name()))
        };
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(fs::copy(&path, &target).unwrap()),
        }
    }
}

/// Names of everything in a folder but the lock.
fn names(dir: &Path) -> Vec<String> {
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(name).filter(|name| name != "writer.lock").collect();
    names.sort();
    names
}

fn rows(ids: &[u64]) -> Vec<f32> {
    ids.iter().flat_map(|&id| [id as f32, 1.0]).collect()
}

fn create(dir: &Path) -> Result<CollectionWriter, IndexError> {
    Collection::create(dir, 2, Metric::L2, None, 7)
}

/// Three segments, of 40, 20 and 3 rows, with a dead row in the first.
fn start(dir: &Path) {
    let mut writer = create(dir).unwrap();
    for ids in [0..40, 100..120, 200..203] {
        let ids: Vec<u64> = ids.collect();
        writer.add(&ids, &rows(&ids)).unwrap();
        writer.commit().unwrap();
    }
    writer.delete(&[5]).unwrap();
    writer.commit().unwrap();
    assert_eq!(writer.committed().segments(), 3);
}

type Change = fn(&Path) -> Result<(), IndexError>;

fn changes() -> Vec<(&'static str, Change)> {
    fn written(
        dir: &Path,
        change: impl Fn(&mut CollectionWriter) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        let mut writer = Collection::write(dir)?;
        change(&mut writer)?;
        writer.commit().map(drop)
    }
    vec![
        ("add one row", |dir| written(dir, |w| w.add(&[50], &rows(&[50])))),
        ("add and join the small segments", |dir| {
            let ids: Vec<u64> = (300..325).collect();
            written(dir, |w| w.add(&ids, &rows(&ids)))
        }),
        ("delete here and there", |dir| written(dir, |w| w.delete(&[1, 2, 101]).map(drop))),
        ("delete a whole segment", |dir| {
            written(dir, |w| w.delete(&(100..120).collect::<Vec<_>>()).map(drop))
        }),
        ("delete all", |dir| written(dir, |w| w.delete(&(0..300).collect::<Vec<_>>()).map(drop))),
        ("replace", |dir| {
            written(dir, |w| w.upsert(&[3, 4, 5, 101, 400], &rows(&[9, 9, 9, 9, 9])).map(drop))
        }),
        ("compact", |dir| Collection::write(dir)?.compact().map(drop)),
    ]
}

/// Fails when the manifest is swapped before the segment is moved, when old files are removed
/// before the swap, and when the sweep of what a crash left is taken out.
#[test]
fn a_crash_at_any_step_leaves_the_old_generation_or_the_new() {
    let template = tempdir().unwrap();
    start(template.path());
    let old = content(template.path());
    for (name, change) in changes() {
        let whole = tempdir().unwrap();
        copy(template.path(), whole.path());
        change(whole.path()).unwrap();
        let new = content(whole.path());
        assert_ne!(old, new, "{name} changes nothing");
        let (mut olds, mut news) = (0, 0);
        for n in 0.. {
            let dir = tempdir().unwrap();
            copy(template.path(), dir.path());
            let (result, log) = recorded(Some(n), || change(dir.path()));
            let found = content(dir.path());
            assert!(found == old || found == new, "{name}, step {n}: {found:?}");
            assert!(Collection::verify(dir.path()).unwrap().is_empty(), "{name}, step {n}");
            assert!(result.is_err() || found == new, "{name}, step {n}: committed, but not there");
            (olds, news) = (olds + usize::from(found == old), news + usize::from(found == new));
            if result.is_err() {
                if found == old {
                    change(dir.path()).unwrap();
                    assert!(content(dir.path()) == new, "{name}, step {n}: not to be done after the crash");
                } else {
                    drop(Collection::write(dir.path()).unwrap());
                }
                assert_eq!(
                    names(dir.path()),
                    names(whole.path()),
                    "{name}, step {n}: something is left over"
                );
            }
            if log.len() < n {
                assert!(result.is_ok());
                break;
            }
        }
        assert!(olds > 4 && news > 1, "{name}: {olds} old, {news} new");
    }
}

#[test]
fn a_crash_while_it_is_created_leaves_an_empty_collection_or_none() {
    let mut found = Vec::new();
    for n in 0.. {
        let dir = tempdir().unwrap();
        let path = dir.path().join("a/new/one");
        let (result, log) = recorded(Some(n), || create(&path).map(drop));
        let now = content(&path);
        assert!(now.as_ref().is_none_or(|now| *now == (0, Content::new())), "step {n}");
        if now.is_none() {
            drop(create(&path).unwrap());
        }
        assert!(Collection::verify(&path).unwrap().is_empty());
        found.push(now.is_some());
        if log.len() < n {
            assert!(result.is_ok());
            break;
        }
    }
    assert!(found.contains(&false) && found.is_sorted(), "{found:?}");
}

#[test]
fn a_crash_while_an_index_is_built_over_another_leaves_one_of_them_whole() {
    let build = |dir: &Path, spec, n| -> Result<String, IndexError> {
        let mut builder = Builder::create(dir, 2, Metric::L2, &spec, 1)?;
        builder.add(&rows(&(0..n).collect::<Vec<_>>()))?;
        Ok(builder.finish()?.identity())
    };
    for (old_spec, new_spec) in [
        (Spec::Flat, Spec::RaBitQ { bits: 1 }),
        (Spec::RaBitQ { bits: 1 }, Spec::Flat),
        (Spec::Flat, Spec::Flat),
    ] {
        let whole = tempdir().unwrap();
        let new = build(whole.path(), new_spec, 30).unwrap();
        let (mut olds, mut news) = (0, 0);
        for n in 0.. {
            let dir = tempdir().unwrap();
            let old = build(dir.path(), old_spec, 40).unwrap();
            let (result, log) = recorded(Some(n), || build(dir.path(), new_spec, 30));
            let found = Index::open(dir.path()).unwrap().identity().to_string();
            assert!(verify(dir.path()).unwrap().is_empty(), "step {n}");
            (olds, news) = (olds + usize::from(found == old), news + usize::from(found == new));
            assert_eq!(olds + news, n + 1, "step {n}: neither of them");
            if result.is_err() {
                build(dir.path(), new_spec, 30).unwrap();
                // What was of another kind and not yet removed has no name in common with the new.
                if found == old || old_spec == Spec::Flat {
                    assert_eq!(names(dir.path()), names(whole.path()), "step {n}: something is left over");
                }
            }
            if log.len() < n {
                break;
            }
        }
        assert!(olds > 3 && news > 1, "{olds} old, {news} new");
    }
}

/// What the tests above cannot see, because a crash of the program loses nothing that it has
/// written: a power cut does. So everything that the new manifest names must have been synced
/// before it got its name, its name before the manifest did, the manifest before anything old is
/// removed. Fails when any one of the calls to `sync` or `sync_dir` is taken out.
#[test]
fn everything_is_synced_before_what_depends_on_it() {
    for (name, change) in changes() {
        let dir = tempdir().unwrap();
        start(dir.path());
        let before = names(dir.path());
        let (result, log) = recorded(None, || change(dir.path()));
        result.unwrap();
        check_order(dir.path(), &log, &before, name);
    }
    let dir = tempdir().unwrap();
    let path = dir.path().join("new");
    let (result, log) = recorded(None, || create(&path).map(drop));
    result.unwrap();
    check_order(&path, &log, &[], "create");
    let at = |wanted: (Step, &Path)| log.iter().position(|(step, path)| (*step, path.as_path()) == wanted);
    let (made, synced) = (at((Step::CreateDir, &path)), at((Step::SyncDir, dir.path())));
    assert!(made.is_some() && made < synced, "a new folder's own name is not synced");
}

fn check_order(dir: &Path, log: &Log, before: &[String], name: &str) {
    let after = |first: usize, wanted: Step, path: &Path| {
        let found = log[first..].iter().position(|(step, p)| *step == wanted && p == path);
        found.map(|place| first + place)
    };
    let manifest = dir.join(MANIFEST);
    let swap = after(0, Step::RenameTo, &manifest).expect("the manifest is swapped");
    assert!(after(swap + 1, Step::RenameTo, &manifest).is_none(), "{name}: swapped twice");
    let settled = after(swap, Step::SyncDir, dir).unwrap_or_else(|| panic!("{name}: the swap is not synced"));

    for (place, (step, path)) in log.iter().enumerate() {
        let is_file = path.extension().is_some();
        match step {
            // Nothing gets its final name before its content is on disk.
            Step::RenameFrom if is_file => {
                let synced = after(0, Step::Sync, path);
                assert!(synced.is_some_and(|synced| synced < place), "{name}: {path:?} renamed, not synced");
                let written = log[..place].iter().rposition(|(step, p)| *step == Step::Write && p == path);
                assert!(written < synced, "{name}: {path:?} written after it was synced");
            }
            // Names are on disk before the manifest that depends on them.
            Step::RenameTo if *path != manifest => {
                let synced = after(place, Step::SyncDir, path.parent().unwrap());
                assert!(
                    synced.is_some_and(|synced| synced < swap),
                    "{name}: the name {path:?} is not synced"
                );
            }
            Step::Remove => {
                let was_there = before.iter().any(|old| dir.join(old) == *path);
                assert!(!was_there || place > settled, "{name}: {path:?} removed before the swap is on disk");
            }
            _ => {}
        }
    }
    // All that the manifest names came about by such a rename, or was there.
    let named = read_manifest(dir).unwrap().files.into_values().map(|entry| entry.file);
    let folders = names(dir).into_iter().filter(|name| dir.join(name).is_dir());
    for new in named.chain(folders).filter(|file| !before.contains(file)) {
        assert!(after(0, Step::RenameTo, &dir.join(&new)).is_some(), "{name}: {new} came from nowhere");
    }
}
