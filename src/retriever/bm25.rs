//! Search by words: BM25 (Robertson & Zaragoza 2009; k1 = 1.2, b = 0.75) by tantivy.
//!
//! The word index of a corpus index is a cache: made by the first search that wants it, in
//! `bm25/<key>` beside the parts, where the key stands for the chunk stores that it is made of. It is
//! made in a scratch folder and moved into place, all its bytes are checked when it is opened, and it
//! is made again where anything is wrong. So it has no part in what a crash can leave of the index
//! itself; and since tantivy's files have random names, equal indexes stay equal byte by byte.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::fs;
use std::path::Path;

use serde_json::json;
use sidenote_index::{Hit, Lock};
use tantivy::indexer::NoMergePolicy;
use tantivy::query::{BooleanQuery, EnableScoring, Occur, Query, TermQuery};
use tantivy::schema::{FAST, IndexRecordOption, Schema, TextFieldIndexing, TextOptions};
use tantivy::tokenizer::{PreTokenizedString, Token};
use tantivy::{Index, IndexWriter, ReloadPolicy, Score, Searcher, TantivyDocument, TantivyError, Term};

use super::generation::remove;
use crate::artefact::{self, sync_dir};
use crate::sealed::seal;
use crate::{Error, Result};

/// The folder of word indexes inside an index directory.
const FOLDER: &str = "bm25";
const KIND: &str = "word-index";
/// Also raised when texts are cut into words in another way.
const VERSION: u32 = 1;
/// What a writer gathers in memory before it goes to disk.
const WRITER_BYTES: usize = 64 << 20;
/// Longer words are left out.
const LONGEST_WORD: usize = 64;

const WORDS: &str = "words";
const ID: &str = "id";

/// An index over the words of numbered texts.
pub struct Bm25 {
    searcher: Searcher,
}

impl Bm25 {
    /// Indexes `texts`, each under its number, in memory.
    ///
    /// # Errors
    /// What tantivy refuses.
    pub fn in_memory<T: AsRef<str>>(texts: impl Iterator<Item = (u32, T)>) -> Result<Self> {
        let index = Index::create_in_ram(schema());
        fill(&index, texts).and_then(|_| over(index)).map_err(fault)
    }

    /// The word index with this key in `dir`, made of `texts` where there is none that is whole. It
    /// is only in memory where `dir` cannot be written or somebody else is making it just now.
    pub(super) fn open<T: AsRef<str>, I: Iterator<Item = (u32, T)>>(
        dir: &Path,
        key: &str,
        texts: impl Fn() -> I,
    ) -> Result<Self> {
        let place = dir.join(FOLDER).join(key);
        if let Ok(found) = open_whole(&place) {
            return Ok(found);
        }
        match make(dir, key, texts()).and_then(|()| open_whole(&place)) {
            Ok(made) => Ok(made),
            Err(_) => Self::in_memory(texts()),
        }
    }

    /// The `k` best texts for the words of `query`, best first, equal scores by number, among those
    /// that are allowed. Texts without any of the words are not found.
    ///
    /// # Errors
    /// What tantivy refuses.
    pub fn search(&self, query: &str, k: usize, allow: &dyn Fn(u32) -> bool) -> Result<Vec<Hit>> {
        self.best(query, k, allow).map_err(fault)
    }

    fn best(
        &self,
        query: &str,
        k: usize,
        allow: &dyn Fn(u32) -> bool,
    ) -> std::result::Result<Vec<Hit>, TantivyError> {
        let words: BTreeSet<String> = words_in(query).collect();
        if words.is_empty() || k == 0 {
            return Ok(Vec::new());
        }
        let field = self.searcher.schema().get_field(WORDS)?;
        let clause = |word: String| -> (Occur, Box<dyn Query>) {
            let term = Term::from_field_text(field, &word);
            (Occur::Should, Box::new(TermQuery::new(term, IndexRecordOption::WithFreqs)))
        };
        let query = BooleanQuery::new(words.into_iter().map(clause).collect());
        let weight = query.weight(EnableScoring::enabled_from_searcher(&self.searcher))?;
        let mut all = Vec::new();
        for segment in self.searcher.segment_readers() {
            let ids = segment.fast_fields().u64(ID)?;
            let mut best: BinaryHeap<Reverse<Hit>> = BinaryHeap::new();
            // What cannot get above the returned score is skipped. Texts come in the order of their
            // numbers, so those with equal scores that are skipped have the higher ones.
            weight.for_each_pruning(Score::MIN, segment, &mut |text, score| {
                if let Some(id) = ids.first(text).map(|id| id as u32).filter(|&id| allow(id)) {
                    best.push(Reverse(Hit { id, score }));
                    if best.len() > k {
                        best.pop();
                    }
                }
                match best.peek() {
                    Some(Reverse(worst)) if best.len() == k => worst.score,
                    _ => Score::MIN,
                }
            })?;
            all.extend(best.into_iter().map(|Reverse(hit)| hit));
        }
        all.sort_unstable_by(|a, b| b.cmp(a));
        all.truncate(k);
        Ok(all)
    }
}

fn schema() -> Schema {
    let mut schema = Schema::builder();
    let indexing = TextFieldIndexing::default().set_index_option(IndexRecordOption::WithFreqs);
    schema.add_text_field(WORDS, TextOptions::default().set_indexing_options(indexing));
    schema.add_u64_field(ID, FAST);
    schema.build()
}

/// The words of a text, in lower case: what stands between white space and punctuation. They are
/// taken as they are, in whatever language; leaving out English endings gained 0.004 of nDCG@10 on
/// four collections.
fn words_in(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty() && word.len() <= LONGEST_WORD)
        .map(str::to_lowercase)
}

/// The words of a text as tantivy takes them.
fn tokens(text: &str) -> PreTokenizedString {
    let token = |(position, text)| Token { position, text, ..Token::default() };
    PreTokenizedString { text: String::new(), tokens: words_in(text).enumerate().map(token).collect() }
}

/// Indexes `texts`; how many they are.
fn fill<T: AsRef<str>>(
    index: &Index,
    texts: impl Iterator<Item = (u32, T)>,
) -> std::result::Result<u64, TantivyError> {
    let (words, number) = (index.schema().get_field(WORDS)?, index.schema().get_field(ID)?);
    // One thread and no merging: texts stay in the order of their numbers.
    let mut writer: IndexWriter = index.writer_with_num_threads(1, WRITER_BYTES)?;
    writer.set_merge_policy(Box::new(NoMergePolicy));
    let mut count = 0;
    for (id, text) in texts {
        let mut document = TantivyDocument::default();
        document.add_u64(number, id.into());
        document.add_pre_tokenized_text(words, tokens(text.as_ref()));
        writer.add_document(document)?;
        count += 1;
    }
    writer.commit()?;
    writer.wait_merging_threads()?;
    Ok(count)
}

fn over(index: Index) -> std::result::Result<Bm25, TantivyError> {
    let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
    Ok(Bm25 { searcher: reader.searcher() })
}

/// Opens the word index in `place` where every byte of it is as it was written.
fn open_whole(place: &Path) -> Result<Bm25> {
    let manifest = artefact::open(place, KIND, VERSION)?;
    if let Some(problem) = artefact::verify(place)?.into_iter().next() {
        return Err(problem.into());
    }
    let found = Index::open_in_dir(place).and_then(over).map_err(fault)?;
    if json!(found.searcher.num_docs()) != manifest.meta["texts"] {
        return Err(Error::file(place, "holds another number of texts than its manifest says"));
    }
    Ok(found)
}

/// Makes the word index with this key in `dir`, and removes others.
fn make<T: AsRef<str>>(dir: &Path, key: &str, texts: impl Iterator<Item = (u32, T)>) -> Result<()> {
    let folder = dir.join(FOLDER);
    fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let _lock = Lock::acquire(&folder)?;
    clear(&folder, None)?;
    let scratch = folder.join("new");
    fs::create_dir(&scratch).map_err(Error::io(&scratch))?;
    let texts =
        Index::create_in_dir(&scratch, schema()).and_then(|index| fill(&index, texts)).map_err(fault)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(&scratch).map_err(Error::io(&scratch))? {
        names.push(entry.map_err(Error::io(&scratch))?.file_name().to_string_lossy().into_owned());
    }
    // tantivy's locks come and go.
    let names: Vec<&str> = names.iter().map(String::as_str).filter(|name| !name.ends_with(".lock")).collect();
    seal(&scratch, KIND, VERSION, &json!({"texts": texts}), &names)?;
    let place = folder.join(key);
    fs::rename(&scratch, &place).map_err(Error::io(&place))?;
    Ok(sync_dir(&folder)?)
}

/// Removes the word indexes of an index directory other than the one with the key `keep`, unless
/// somebody is making one just now.
pub(super) fn sweep(dir: &Path, keep: &str) -> Result<()> {
    let folder = dir.join(FOLDER);
    match folder.is_dir() {
        true => match Lock::acquire(&folder) {
            Ok(_lock) => clear(&folder, Some(keep)),
            Err(_) => Ok(()),
        },
        false => Ok(()),
    }
}

/// Removes the folders in `folder` other than `keep`.
fn clear(folder: &Path, keep: Option<&str>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && keep.is_none_or(|keep| entry.file_name() != keep) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// All that is wrong with the word indexes of an index directory.
pub(super) fn verify(dir: &Path, key: &str) -> Vec<String> {
    let place = dir.join(FOLDER).join(key);
    if !place.exists() {
        return Vec::new();
    }
    let hint = "the next search by words makes it again";
    let problems = match artefact::verify(&place) {
        Ok(problems) => problems.iter().map(|problem| format!("{problem} ({hint})")).collect::<Vec<_>>(),
        Err(e) => vec![format!("{e} ({hint})")],
    };
    match (problems.is_empty(), open_whole(&place)) {
        (true, Err(e)) => vec![format!("{e} ({hint})")],
        _ => problems,
    }
}

fn fault(error: TantivyError) -> Error {
    Error::setting("the word index", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artefact::MANIFEST;

    const TEXTS: [&str; 6] = [
        "The bees make honey.",
        "Honey, honey, honey: bees and honey!",
        "Über den Wolken",
        "A king lives in a castle.",
        "",
        "the bees make honey",
    ];

    fn numbered() -> impl Iterator<Item = (u32, &'static str)> {
        (10..).zip(TEXTS)
    }

    fn ids(hits: &[Hit]) -> Vec<u32> {
        hits.iter().map(|hit| hit.id).collect()
    }

    /// BM25 by its formula, over words in lower case.
    fn expected(query: &str) -> Vec<(u32, f32)> {
        let words = |text: &str| -> Vec<String> {
            let words = text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty());
            words.map(str::to_lowercase).collect()
        };
        let texts: Vec<Vec<String>> = TEXTS.iter().map(|text| words(text)).collect();
        let mean = texts.iter().map(Vec::len).sum::<usize>() as f32 / texts.len() as f32;
        let mut scores: Vec<(u32, f32)> = Vec::new();
        for (id, text) in (10..).zip(&texts) {
            let score: f32 = words(query)
                .iter()
                .map(|word| {
                    let holding = texts.iter().filter(|text| text.contains(word)).count() as f32;
                    let idf = (1.0 + (texts.len() as f32 - holding + 0.5) / (holding + 0.5)).ln();
                    let tf = text.iter().filter(|w| *w == word).count() as f32;
                    idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * text.len() as f32 / mean))
                })
                .sum();
            scores.extend((score > 0.0).then_some((id, score)));
        }
        scores.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        scores
    }

    #[test]
    fn scores_are_those_of_the_formula_and_ties_go_by_number() {
        let index = Bm25::in_memory(numbered()).unwrap();
        for query in ["honey", "bees make honey", "castle HONEY", "über", "the a in"] {
            let found = index.search(query, 9, &|_| true).unwrap();
            let wanted = expected(query);
            assert_eq!(ids(&found), wanted.iter().map(|w| w.0).collect::<Vec<_>>(), "{query}");
            for (hit, (_, score)) in found.iter().zip(wanted) {
                assert!((hit.score - score).abs() < 1e-4, "{query}: {} and {score}", hit.score);
            }
        }
        assert_eq!(ids(&index.search("make", 1, &|_| true).unwrap()), [10], "the first of two equal texts");
        assert!(index.search("", 5, &|_| true).unwrap().is_empty());
        assert!(index.search("?! unheard", 5, &|_| true).unwrap().is_empty());
        assert!(index.search("honey", 0, &|_| true).unwrap().is_empty());
    }

    #[test]
    fn what_is_not_allowed_makes_room_for_what_is() {
        let index =
            Bm25::in_memory((0..5000).map(|i| (i, format!("honey {}", "bees ".repeat(i as usize % 7)))));
        let index = index.unwrap();
        let all = index.search("honey bees", 5000, &|_| true).unwrap();
        assert_eq!(all.len(), 5000);
        let wanted: Vec<u32> = ids(&all).into_iter().filter(|id| id % 500 == 3).collect();
        assert_eq!(ids(&index.search("honey bees", 10, &|id| id % 500 == 3).unwrap()), wanted);
        assert_eq!(ids(&index.search("honey bees", 40, &|_| true).unwrap()), ids(&all[..40]));
    }

    #[test]
    fn what_is_kept_is_used_again_and_made_again_where_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let search = |key: &str, read: bool| {
            let index = Bm25::open(dir.path(), key, || {
                assert!(read, "made again");
                numbered()
            });
            ids(&index.unwrap().search("honey", 9, &|_| true).unwrap())
        };
        let found = search("one", true);
        assert_eq!(search("one", false), found);
        let place = dir.path().join(FOLDER).join("one");
        assert!(verify(dir.path(), "one").is_empty());
        let files: Vec<_> = artefact::read_manifest(&place).unwrap().files.into_keys().collect();
        assert!(files.len() > 3);
        for file in files.iter().map(String::as_str).chain([MANIFEST]) {
            // Made again under other names.
            let file = match place.join(file).exists() {
                true => file.to_string(),
                false => {
                    let extension = file.rsplit_once('.').unwrap().1;
                    let all = artefact::read_manifest(&place).unwrap().files.into_keys();
                    all.into_iter().find(|name| name.ends_with(extension)).unwrap()
                }
            };
            let bytes = fs::read(place.join(&file)).unwrap();
            for damage in [[&bytes[1..], &[7]].concat(), bytes[..bytes.len() / 2].to_vec()] {
                fs::write(place.join(&file), damage).unwrap();
                assert!(!verify(dir.path(), "one").is_empty(), "{file}");
                assert_eq!(search("one", true), found, "{file}");
                assert!(verify(dir.path(), "one").is_empty(), "{file}");
                if !place.join(&file).exists() {
                    break;
                }
            }
        }
        // Another generation's takes its place; one that is being made elsewhere is not waited for.
        assert_eq!(search("two", true), found);
        assert!(!place.exists() && dir.path().join(FOLDER).join("two").exists());
        let held = Lock::acquire(&dir.path().join(FOLDER)).unwrap();
        assert_eq!(search("three", true), found);
        assert!(!dir.path().join(FOLDER).join("three").exists());
        drop(held);
        sweep(dir.path(), "four").unwrap();
        assert!(!dir.path().join(FOLDER).join("two").exists());
    }
}
