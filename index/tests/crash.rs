//! A process that is killed at any moment, a disk that is full, a folder that cannot be written:
//! what was committed stays, and errors say what is wrong and where. Crashes at every single step
//! of a commit are in `src/collection/faults.rs`.

mod common;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{SPECS, clustered};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sidenote_index::artefact::{self, ArtefactError, verify};
use sidenote_index::{Builder, Collection, CollectionWriter, Index, IndexError, Metric, Spec};
use tempfile::tempdir;

const DIM: usize = 8;

/// What the child is to do, and where; without these variables it is a test that does nothing.
const TASK: &str = "SIDENOTE_TEST_TASK";
const FOLDER: &str = "SIDENOTE_TEST_FOLDER";

/// This program again, as a process of its own that does `task` in `dir`.
fn child(task: &str, dir: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "the_child", "--nocapture"]).env(TASK, task).env(FOLDER, dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn the_child() {
    let (Ok(task), Ok(dir)) = (env::var(TASK), env::var(FOLDER)) else { return };
    let dir = PathBuf::from(dir);
    match task.as_str() {
        "live" => live(&dir),
        "rebuild" => rebuild(&dir),
        "graph" => drop(build_graph(&dir)),
        "hold" => {
            let _writer = Collection::write(&dir).unwrap();
            println!("holding");
            std::thread::sleep(Duration::from_secs(600));
        }
        "fill" => fill(&dir),
        other => panic!("no task {other:?}"),
    }
}

type Content = BTreeMap<u64, Vec<f32>>;

fn row(id: u64, generation: u64) -> Vec<f32> {
    (0..DIM as u64).map(|i| ((id * 31 + i * 7 + generation * 3) % 97) as f32).collect()
}

/// What generation `generation` does: which ids it deletes and which it writes, and whether it
/// compacts. A function of its number alone, so that the content of each is known.
fn change_of(generation: u64) -> (Vec<u64>, Vec<u64>, bool) {
    let mut rng = ChaCha8Rng::seed_from_u64(generation);
    let deleted = (0..rng.random_range(0..40)).map(|_| rng.random_range(0..2000)).collect();
    let mut written: Vec<u64> = (0..rng.random_range(1..400)).map(|_| rng.random_range(0..2000)).collect();
    written.sort_unstable();
    written.dedup();
    (deleted, written, generation.is_multiple_of(5))
}

fn content_of(generation: u64) -> Content {
    let mut content = Content::new();
    for generation in 1..=generation {
        let (deleted, written, _) = change_of(generation);
        deleted.iter().for_each(|id| drop(content.remove(id)));
        content.extend(written.into_iter().map(|id| (id, row(id, generation))));
    }
    content
}

fn content(collection: &Collection) -> Content {
    collection.ids().map(|id| (id, collection.vector(id).unwrap().to_vec())).collect()
}

/// One generation after the other until somebody ends it, each told once it is committed.
fn live(dir: &Path) {
    let mut writer = Collection::write(dir).unwrap();
    loop {
        let generation = writer.committed().generation() + 1;
        let (deleted, written, compact) = change_of(generation);
        writer.delete(&deleted).unwrap();
        for ids in written.chunks(50) {
            let rows: Vec<f32> = ids.iter().flat_map(|&id| row(id, generation)).collect();
            writer.upsert(ids, &rows).unwrap();
        }
        let committed = if compact { writer.compact() } else { writer.commit() };
        assert_eq!(committed.unwrap(), generation);
        println!("finished {generation}");
    }
}

/// Lets a child finish `rounds` of its work and go on for a moment, and kills it; the rounds that
/// it has told of. On Unix this is SIGKILL: nothing of the program runs after it.
fn kill_after(mut child: Child, rounds: usize, delay: Duration) -> Vec<u64> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The test harness begins the first line.
    let told = |line: String| line.split_once("finished ")?.1.parse().ok();
    let mut told = lines.map_while(Result::ok).filter_map(told);
    let mut finished: Vec<u64> = told.by_ref().take(rounds).collect();
    assert_eq!(finished.len(), rounds, "the child ended by itself");
    std::thread::sleep(delay);
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    finished.extend(told);
    finished
}

/// Fails when the manifest is swapped before what it names is in place, or when the lock of a
/// killed process stays.
#[test]
fn a_collection_killed_again_and_again_is_always_at_some_commit() {
    let dir = tempdir().unwrap();
    let spec = Some(Spec::RaBitQ { bits: 1 });
    drop(Collection::create(dir.path(), DIM, Metric::L2, spec, 3).unwrap());
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut reached = 0;
    for kill in 0..25 {
        let child = child("live", dir.path()).spawn().unwrap();
        let told = kill_after(child, kill % 3, Duration::from_micros(rng.random_range(0..40_000)));
        let collection = Collection::open(dir.path()).unwrap();
        let generation = collection.generation();
        assert!(generation >= reached && told.iter().all(|told| generation >= *told), "kill {kill}");
        assert!(content(&collection) == content_of(generation), "kill {kill}: not what {generation} wrote");
        let problems = Collection::verify(dir.path()).unwrap();
        assert!(problems.is_empty(), "kill {kill}: {problems:?}");
        reached = generation;
    }
    assert!(reached >= 24, "only {reached} generations");
    // What the kills left over goes with the next writer.
    let mut writer = Collection::write(dir.path()).unwrap();
    writer.compact().unwrap();
    let names =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut left: Vec<String> =
        names.filter(|name| name != "manifest.json" && name != "writer.lock").collect();
    left.retain(|name| !name.starts_with("segment-") && !name.starts_with("ids-"));
    assert!(left.is_empty(), "{left:?}");
}

fn build(dir: &Path, n: usize) -> Result<String, IndexError> {
    let mut builder = Builder::create(dir, DIM, Metric::L2, &Spec::RaBitQ { bits: 1 }, 1)?;
    for rows in clustered(n, DIM, 4, 1).chunks(DIM * 500) {
        builder.add(rows)?;
    }
    Ok(builder.finish()?.identity())
}

/// One index over the other until somebody ends it.
fn rebuild(dir: &Path) {
    for n in [3000, 2000].into_iter().cycle() {
        build(dir, n).unwrap();
        println!("finished {n}");
    }
}

#[test]
fn an_index_killed_while_it_is_built_over_another_is_one_of_them() {
    let (dir, other) = (tempdir().unwrap(), tempdir().unwrap());
    let (one, two) = (build(dir.path(), 2000).unwrap(), build(other.path(), 3000).unwrap());
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for kill in 0..15 {
        let child = child("rebuild", dir.path()).spawn().unwrap();
        kill_after(child, kill % 2, Duration::from_micros(rng.random_range(0..30_000)));
        let index = Index::open(dir.path()).unwrap();
        assert!([&one, &two].contains(&&index.identity().to_string()), "kill {kill}");
        assert!(verify(dir.path()).unwrap().is_empty(), "kill {kill}");
    }
}

const GRAPH_ROWS: usize = 20_000;

/// Goes on with the graph in `dir`; its identity.
fn build_graph(dir: &Path) -> String {
    let rows = clustered(GRAPH_ROWS, DIM, 40, 1);
    let mut builder = Builder::resume(dir, DIM, Metric::L2, &Spec::Graph { degree: 32 }, 1).unwrap();
    builder.add(&rows[builder.rows() * DIM..]).unwrap();
    builder.finish().unwrap().identity()
}

/// Killed once each phase has left its result, and a moment later. Fails when what is there is not
/// whole, or not made use of: a phase that is begun anew each time never gets to its end here.
#[test]
fn a_graph_killed_in_every_phase_is_resumed_to_the_same_bytes() {
    let (dir, whole) = (tempdir().unwrap(), tempdir().unwrap());
    let identity = build_graph(whole.path());
    // The middle of a scratch file's name says since when the system has been up.
    let left = |dir: &Path, name: &str| {
        let mut files =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        files.any(|file| file.starts_with(&format!("{name}.")) && file.ends_with(".scratch"))
    };
    let phases = ["rotated", "near-1", "first-choice-0", "first-links-0", "records", "candidates-0"];
    for (number, phase) in phases.into_iter().chain(["last-choice-0", "last-links-0"]).enumerate() {
        let mut child = child("graph", dir.path()).spawn().unwrap();
        while !left(dir.path(), phase) {
            assert!(child.try_wait().unwrap().is_none(), "ended before {phase} was there");
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_millis(number as u64 % 3 * 5));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Index::open(dir.path()).is_err() || number > 4, "{phase}");
        let builder = Builder::resume(dir.path(), DIM, Metric::L2, &Spec::Graph { degree: 32 }, 1).unwrap();
        assert_eq!(builder.rows(), GRAPH_ROWS, "{phase}");
    }
    assert_eq!(build_graph(dir.path()), identity);
    assert!(verify(dir.path()).unwrap().is_empty());
    let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.count(), 3, "something is left over");
}

#[test]
fn the_lock_of_another_process_holds_and_ends_with_it() {
    let dir = tempdir().unwrap();
    drop(Collection::create(dir.path(), DIM, Metric::L2, None, 3).unwrap());
    let mut holder = child("hold", dir.path()).spawn().unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.ends_with("holding")), "the child holds the lock");
    let error = Collection::write(dir.path()).err().unwrap();
    assert!(matches!(&error, IndexError::Locked { dir: d } if d == dir.path()), "{error}");
    assert!(Collection::open(dir.path()).unwrap().is_empty(), "readers need no lock");
    holder.kill().unwrap();
    holder.wait().unwrap();
    Collection::write(dir.path()).unwrap();
}

/// Adds and commits under a limit on the size of files (see below), then prints what came of it.
fn fill(dir: &Path) {
    let mut writer = Collection::write(dir).unwrap();
    let ids: Vec<u64> = (100..10_100).collect();
    let rows = clustered(ids.len(), DIM, 4, 1);
    let error = writer.add(&ids, &rows).unwrap_err();
    println!("\nadd: {error}");
    // None of the rows was taken; what fits still goes in.
    assert_eq!(writer.len(), 10);
    writer.add(&ids[..1000], &rows[..1000 * DIM]).unwrap();
    writer.commit().unwrap();
    // Pending rows fit, but not the segment of all.
    writer.add(&ids[1000..1700], &rows[1000 * DIM..1700 * DIM]).unwrap();
    writer.delete(&[0]).unwrap();
    let error = writer.compact().unwrap_err();
    println!("compact: {error}");
    assert_eq!(writer.len(), 1709, "the changes are kept");
    assert_eq!(writer.committed().len(), 1010);
}

/// A limit on the size of files stops a write in the middle as a full disk does, and needs neither
/// a disk of our own nor rights.
#[cfg(unix)]
#[test]
fn a_disk_that_is_full_is_told_and_leaves_the_last_commit() {
    let dir = tempdir().unwrap();
    let mut writer = Collection::create(dir.path(), DIM, Metric::L2, Some(Spec::Flat), 3).unwrap();
    let first: Vec<u64> = (0..10).collect();
    writer.add(&first, &clustered(10, DIM, 1, 2)).unwrap();
    writer.commit().unwrap();
    drop(writer);
    let limited = child("fill", dir.path());
    let mut shell = Command::new("sh");
    // 40 kB, as `ulimit` counts in blocks of 512 bytes; the signal that would come first is ignored.
    shell.args(["-c", "trap '' XFSZ; ulimit -f 80; exec \"$0\" \"$@\""]).arg(limited.get_program());
    shell.args(limited.get_args()).envs(limited.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = shell.output().unwrap();
    let (said, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{complaint}");
    for (what, file) in [("add: ", "rows.f32"), ("compact: ", "vectors.f32.tmp")] {
        let line = said.lines().find(|line| line.starts_with(what)).unwrap_or_else(|| panic!("{said}"));
        assert!(line.contains(file), "{line}");
    }
    assert!(Collection::verify(dir.path()).unwrap().is_empty());
    let collection = Collection::open(dir.path()).unwrap();
    assert_eq!((collection.len(), collection.generation()), (1010, 2));
    // With room again it goes on.
    let mut writer = Collection::write(dir.path()).unwrap();
    writer.add(&[5000], &[1.0; DIM]).unwrap();
    writer.compact().unwrap();
    assert_eq!(writer.committed().len(), 1011);
}

/// `/dev/full` takes nothing: every write to it says that no space is left.
#[cfg(target_os = "linux")]
#[test]
fn no_space_left_for_any_file_of_an_index_is_told_with_its_name() {
    let rows = clustered(2000, DIM, 4, 1);
    for spec in SPECS {
        let whole = tempdir().unwrap();
        common::build(whole.path(), &rows, DIM, Metric::L2, spec);
        for name in artefact::read_manifest(whole.path()).unwrap().files.into_keys() {
            let dir = tempdir().unwrap();
            let path = dir.path().join(format!("{name}.tmp"));
            std::os::unix::fs::symlink("/dev/full", &path).unwrap();
            let built = (|| {
                let mut builder = Builder::create(dir.path(), DIM, Metric::L2, &spec, 1)?;
                builder.add(&rows)?;
                builder.finish()
            })();
            let error = built.expect_err("there was no space").to_string();
            assert!(error.contains(path.to_str().unwrap()), "{spec} {name}: {error}");
            assert!(error.contains("No space left"), "{spec} {name}: {error}");
            assert!(Index::open(dir.path()).is_err());
        }
    }
}

#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_written_is_told_by_name_and_can_be_read() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempdir().unwrap();
    let mut writer = Collection::create(dir.path(), DIM, Metric::L2, None, 3).unwrap();
    writer.add(&[1], &[1.0; DIM]).unwrap();
    writer.commit().unwrap();
    drop(writer);
    fs::remove_file(dir.path().join("writer.lock")).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
    type Write = fn(&Path) -> Result<(), IndexError>;
    let writes: [(&str, Write); 3] = [
        ("writer.lock", |dir| Collection::write(dir).map(drop)),
        ("new", |dir| Collection::create(&dir.join("new"), DIM, Metric::L2, None, 3).map(drop)),
        ("vectors.f32.tmp", |dir| build(dir, 10).map(drop)),
    ];
    // The superuser may write all the same, and is refused below; nobody else may.
    let probe = dir.path().join("probe");
    let is_refused = fs::write(&probe, b"").is_err();
    if is_refused {
        for (name, write) in writes {
            assert_refused(write(dir.path()), &dir.path().join(name));
        }
    } else {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let is_root = status.lines().any(|line| line.starts_with("Uid:\t0\t"));
        assert!(is_root, "a folder without the right to write was written, but not by the superuser");
        fs::remove_file(&probe).unwrap();
    }
    assert_eq!(Collection::open(dir.path()).unwrap().len(), 1);
    assert!(Collection::verify(dir.path()).unwrap().is_empty());
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();

    // A folder in which nobody can make anything, the superuser included.
    let nobodys = Path::new("/proc/self");
    if nobodys.is_dir() {
        for (name, write) in &writes[1..] {
            assert_refused(write(nobodys), &nobodys.join(name));
        }
    }
}

#[cfg(unix)]
fn assert_refused(written: Result<(), IndexError>, path: &Path) {
    let error = written.expect_err("written where nothing can be");
    assert!(
        matches!(&error, IndexError::Artefact(ArtefactError::Io { path: p, .. }) if p == path),
        "{error}"
    );
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

/// An error in the middle of a commit leaves a writer that can try again.
#[test]
fn a_commit_that_failed_can_be_made_again() {
    let dir = tempdir().unwrap();
    let mut writer: CollectionWriter = Collection::create(dir.path(), DIM, Metric::L2, None, 3).unwrap();
    writer.add(&[4, 2], &[row(4, 0), row(2, 0)].concat()).unwrap();
    // A folder where the commit wants to write the ids.
    let obstacle = dir.path().join("ids-000000.u64.tmp");
    fs::create_dir_all(obstacle.join("something")).unwrap();
    let blocked = dir.path().join("manifest.json.tmp");
    fs::create_dir_all(&blocked).unwrap();
    for _ in 0..2 {
        let error = writer.commit().unwrap_err();
        assert!(error.to_string().contains("manifest.json.tmp"), "{error}");
        assert_eq!((writer.len(), writer.committed().len()), (2, 0));
        assert!(Collection::open(dir.path()).unwrap().is_empty());
    }
    writer.delete(&[4]).unwrap();
    writer.add(&[3], &row(3, 0)).unwrap();
    fs::remove_dir(&blocked).unwrap();
    assert_eq!(writer.commit().unwrap(), 1);
    let wanted = Content::from([(2, row(2, 0)), (3, row(3, 0))]);
    assert_eq!(content(&Collection::open(dir.path()).unwrap()), wanted);
}
