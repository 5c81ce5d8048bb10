//! Any bytes in the place of any file of an index or a collection; see the README beside this.

#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use sidenote_index::artefact::{MANIFEST, verify};
use sidenote_index::{Builder, Collection, Index, Metric, Spec};
use tempfile::tempdir;

const ROWS: usize = 150;
const DIM: usize = 5;

/// Everything below a folder, by its path there.
type Files = Vec<(PathBuf, Vec<u8>)>;

fn all_files(dir: &Path) -> Files {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut all = Files::new();
    for path in paths {
        let name = PathBuf::from(path.file_name().unwrap());
        match path.is_dir() {
            true => all.extend(all_files(&path).into_iter().map(|(below, bytes)| (name.join(below), bytes))),
            false => all.push((name, fs::read(path).unwrap())),
        }
    }
    all
}

/// An index of each kind, and last a collection.
fn samples() -> &'static [Files] {
    static SAMPLES: OnceLock<Vec<Files>> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let rows: Vec<f32> = (0..ROWS * DIM).map(|i| (i as f32 * 0.7).sin()).collect();
        let index = |spec| {
            let dir = tempdir().unwrap();
            let mut builder = Builder::create(dir.path(), DIM, Metric::L2, &spec, 1).unwrap();
            builder.add(&rows).unwrap();
            builder.finish().unwrap();
            all_files(dir.path())
        };
        let dir = tempdir().unwrap();
        let mut writer =
            Collection::create(dir.path(), DIM, Metric::Cosine, Some(Spec::RaBitQ { bits: 1 }), 1).unwrap();
        let ids: Vec<u64> = (0..ROWS as u64).collect();
        writer.add(&ids[..100], &rows[..100 * DIM]).unwrap();
        writer.commit().unwrap();
        writer.add(&ids[100..], &rows[100 * DIM..]).unwrap();
        writer.delete(&[3, 40]).unwrap();
        writer.commit().unwrap();
        drop(writer);
        let collection = all_files(dir.path());
        ["Flat", "RaBitQ", "RaBitQ4", "QG32", "HNSW4"]
            .map(|spec| index(spec.parse::<Spec>().unwrap()))
            .into_iter()
            .chain([collection])
            .collect()
    })
}

/// What becomes of a file's content.
fn changed(old: &[u8], how: u8, input: &[u8]) -> Vec<u8> {
    let mut new = old.to_vec();
    match how % 4 {
        0 => new = input.to_vec(),
        // Place and value, again and again.
        1 => {
            for piece in input.chunks_exact(3) {
                if !new.is_empty() {
                    let place = usize::from(u16::from_le_bytes([piece[0], piece[1]])) % new.len();
                    new[place] = piece[2];
                }
            }
        }
        2 => new.truncate(input.len()),
        _ => new.extend(input),
    }
    new
}

fn use_index(dir: &Path) {
    let Ok(index) = Index::open(dir) else { return };
    let queries = vec![0.5; 5 * index.dim()];
    let found = index.search_batch(&queries, 10, Some(&|_, id| id % 3 != 0)).unwrap();
    assert!(found.iter().flatten().all(|hit| index.vector(hit.id).is_some()));
    index.search(&queries[..index.dim()], 10, None).unwrap();
}

fn use_collection(dir: &Path) {
    let Ok(collection) = Collection::open(dir) else { return };
    let queries = vec![0.5; 5 * collection.dim()];
    collection.search_batch(&queries, 10, Some(&|_, id| id % 3 != 0)).unwrap();
    collection.search(&queries[..collection.dim()], 10, None).unwrap();
    assert!(collection.ids().count() <= ROWS);
    assert!((0..ROWS as u64).filter(|id| collection.vector(*id).is_some()).count() <= ROWS);
}

fuzz_target!(|data: &[u8]| {
    let [kind, file, how, input @ ..] = data else { return };
    let kind = usize::from(*kind) % samples().len();
    let sample = &samples()[kind];
    let (damaged, old) = &sample[usize::from(*file) % sample.len()];
    let new = changed(old, *how, input);
    let dir = tempdir().unwrap();
    for (name, content) in sample {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut content = if name == damaged { new.clone() } else { content.clone() };
        if name != damaged && name.ends_with(MANIFEST) && name.parent() == damaged.parent() {
            // The length is made to agree, so that what opens reads on.
            let text = String::from_utf8(content).unwrap();
            let (said, says) = (format!("\"bytes\": {},", old.len()), format!("\"bytes\": {},", new.len()));
            content = text.replace(&said, &says).into();
        }
        fs::write(path, content).unwrap();
    }
    if kind + 1 == samples().len() {
        let _ = Collection::verify(dir.path());
        use_collection(dir.path());
    } else {
        let _ = verify(dir.path());
        use_index(dir.path());
    }
});
