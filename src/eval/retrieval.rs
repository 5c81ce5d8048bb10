//! How well an encoder retrieves: BEIR's datasets and measures (Thakur et al. 2021,
//! <https://arxiv.org/abs/2104.08663>), by exact search.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sidenote_index::Hit;

use crate::encoder::Encoder;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::retriever::bm25::Bm25;
use crate::retriever::{Ranking, fuse};

/// How deep the ranking goes.
const DEPTH: usize = 100;

/// Texts encoded between two steps of the progress bar, and queries searched at once.
const BATCH: usize = 512;

/// Relevance of documents by their id; above zero is relevant.
pub type Judgements = HashMap<String, f64>;

/// A retrieval dataset: passages, queries, and which passage answers which query.
pub struct Dataset {
    /// `(id, title and text)`
    passages: Vec<(String, String)>,
    /// `(id, text)` of the queries that have a relevant passage.
    queries: Vec<(String, String)>,
    judgements: HashMap<String, Judgements>,
}

#[derive(Deserialize)]
struct Record {
    #[serde(rename = "_id")]
    id: String,
    #[serde(default)]
    title: String,
    text: String,
}

impl Dataset {
    /// Reads a dataset in BEIR's layout: `corpus.jsonl`, `queries.jsonl`, `qrels/test.tsv`. Only
    /// queries with a relevant passage are kept.
    ///
    /// # Errors
    /// Names the file and line that cannot be used, or the query that is judged but not there.
    pub fn open(dir: &Path) -> Result<Self> {
        let passages = read_records(&dir.join("corpus.jsonl"))?;
        let qrels = dir.join("qrels").join("test.tsv");
        let mut judgements: HashMap<String, Judgements> = HashMap::new();
        for (number, line) in lines(&qrels)?.enumerate() {
            let line = line.map_err(Error::io(&qrels))?;
            if (number == 0 && line.starts_with("query-id")) || line.trim().is_empty() {
                continue;
            }
            let mut fields = line.split('\t');
            let (Some(query), Some(passage), Some(Ok(relevance))) =
                (fields.next(), fields.next(), fields.next().map(|score| score.trim().parse::<f64>()))
            else {
                let why = "not a query id, a passage id and a number with tabs between";
                return Err(Error::line(&qrels, number as u64 + 1, why));
            };
            judgements.entry(query.into()).or_default().insert(passage.into(), relevance);
        }
        judgements.retain(|_, judged| judged.values().any(|&relevance| relevance > 0.0));
        let path = dir.join("queries.jsonl");
        let mut queries = read_records(&path)?;
        queries.retain(|(id, _)| judgements.contains_key(id));
        let known: HashSet<&str> = queries.iter().map(|(id, _)| id.as_str()).collect();
        if let Some(lost) = judgements.keys().filter(|id| !known.contains(id.as_str())).min() {
            return Err(Error::file(
                path,
                format!("has no query {lost:?}, which {} judges", qrels.display()),
            ));
        }
        if passages.is_empty() || queries.is_empty() {
            return Err(Error::file(dir, "no passages, or no query with a relevant one"));
        }
        Ok(Self { passages, queries, judgements })
    }
}

fn lines(path: &Path) -> Result<impl Iterator<Item = std::io::Result<String>>> {
    Ok(BufReader::new(File::open(path).map_err(Error::io(path))?).lines())
}

fn read_records(path: &Path) -> Result<Vec<(String, String)>> {
    let mut records = Vec::new();
    let mut seen = HashSet::new();
    for (number, line) in lines(path)?.enumerate() {
        let fault = |why: String| Error::line(path, number as u64 + 1, why);
        let line = line.map_err(|e| fault(e.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        let record: Record = serde_json::from_str(&line).map_err(|e| fault(e.to_string()))?;
        if !seen.insert(record.id.clone()) {
            return Err(fault(format!("the id {:?} is there twice", record.id)));
        }
        let text = format!("{} {}", record.title, record.text);
        records.push((record.id, text.trim().to_string()));
    }
    Ok(records)
}

/// BEIR's measures of one ranking, or their means over queries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Scores {
    /// Normalised discounted cumulative gain of the first ten, gain = relevance, discount
    /// `log2(rank + 1)` (Järvelin & Kekäläinen 2002).
    pub ndcg_at_10: f64,
    /// Share of the relevant passages among the first ten.
    pub recall_at_10: f64,
    /// Share of the relevant passages among the first hundred.
    pub recall_at_100: f64,
    /// One over the rank of the first relevant passage, zero where it is not among the first ten.
    pub mrr_at_10: f64,
}

impl Scores {
    /// Scores one ranking of passage ids, best first, against `judged`, which has something
    /// relevant.
    pub fn of(ranking: &[&str], judged: &Judgements) -> Self {
        let relevance = |id: &&str| judged.get(*id).copied().unwrap_or(0.0).max(0.0);
        let gains: Vec<f64> = ranking.iter().map(relevance).collect();
        let mut ideal: Vec<f64> = judged.values().copied().filter(|&gain| gain > 0.0).collect();
        ideal.sort_by(|a, b| b.total_cmp(a));
        let discounted = |gains: &[f64]| -> f64 {
            gains.iter().take(10).zip(2u32..).map(|(gain, place)| gain / f64::from(place).log2()).sum()
        };
        let found = |k: usize| gains.iter().take(k).filter(|&&gain| gain > 0.0).count() as f64;
        Self {
            ndcg_at_10: discounted(&gains) / discounted(&ideal),
            recall_at_10: found(10) / ideal.len() as f64,
            recall_at_100: found(100) / ideal.len() as f64,
            mrr_at_10: gains
                .iter()
                .take(10)
                .position(|&gain| gain > 0.0)
                .map_or(0.0, |i| 1.0 / (i + 1) as f64),
        }
    }

    fn mean(scores: &[Self]) -> Self {
        let mean = |measure: fn(&Self) -> f64| scores.iter().map(measure).sum::<f64>() / scores.len() as f64;
        Self {
            ndcg_at_10: mean(|s| s.ndcg_at_10),
            recall_at_10: mean(|s| s.recall_at_10),
            recall_at_100: mean(|s| s.recall_at_100),
            mrr_at_10: mean(|s| s.mrr_at_10),
        }
    }
}

/// What an encoder achieves on a dataset.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The encoder's name.
    pub encoder: String,
    /// The encoder's identity.
    pub identity: String,
    /// Width of the vectors.
    pub dim: usize,
    /// Passages searched.
    pub passages: usize,
    /// Queries scored.
    pub queries: usize,
    /// Means over the queries.
    #[serde(flatten)]
    pub scores: Scores,
    /// Passages encoded a second.
    pub passages_per_second: f64,
    /// What ranks the passages.
    pub ranking: Ranking,
    /// Queries encoded and answered by exact search a second, in batches.
    pub queries_per_second: f64,
}

/// Encodes the passages, ranks them for each query (ties in the corpus's order), and scores the
/// rankings. As in BEIR, a passage with the query's own id is left out.
pub fn evaluate(
    encoder: &dyn Encoder,
    dataset: &Dataset,
    ranking: Ranking,
    progress: Progress,
) -> Result<Report> {
    let started = Instant::now();
    let vectors = encode(|texts| encoder.encode(texts), &dataset.passages, "passages", progress)?;
    let passages_per_second = dataset.passages.len() as f64 / started.elapsed().as_secs_f64();
    let shape = (dataset.passages.len(), encoder.dim());
    let vectors = Tensor::from_vec(vectors, shape, &Device::Cpu)?.t()?;
    let words = match ranking {
        Ranking::Vectors => None,
        _ => Some(Bm25::in_memory((0..).zip(dataset.passages.iter().map(|(_, text)| text)))?),
    };
    let started = Instant::now();
    let mut scores = Vec::with_capacity(dataset.queries.len());
    for queries in dataset.queries.chunks(BATCH) {
        let encoded = encode(|texts| encoder.encode_queries(texts), queries, "queries", Progress::Silent)?;
        let encoded = Tensor::from_vec(encoded, (queries.len(), encoder.dim()), &Device::Cpu)?;
        let similarities = encoded.matmul(&vectors)?.to_vec2::<f32>()?;
        let score = |((id, text), row): (&(String, String), &Vec<f32>)| -> Result<Scores> {
            let others = |i: usize| dataset.passages[i].0 != *id;
            let mut near = rank(row, DEPTH + 1);
            near.retain(|&i| others(i));
            near.truncate(DEPTH);
            let ranking: Vec<usize> = match &words {
                None => near,
                Some(words) => {
                    let found = words.search(text, DEPTH, &|i| others(i as usize))?;
                    let near = near.iter().map(|&i| Hit { id: i as u32, score: row[i] }).collect();
                    let hits = match ranking {
                        Ranking::Hybrid => fuse(&[near, found], DEPTH),
                        _ => found,
                    };
                    hits.into_iter().map(|hit| hit.id as usize).collect()
                }
            };
            let ids: Vec<&str> = ranking.iter().map(|&i| dataset.passages[i].0.as_str()).collect();
            Ok(Scores::of(&ids, &dataset.judgements[id]))
        };
        let of_batch: Result<Vec<_>> = queries.par_iter().zip(&similarities).map(score).collect();
        scores.extend(of_batch?);
    }
    let queries_per_second = dataset.queries.len() as f64 / started.elapsed().as_secs_f64();
    Ok(Report {
        encoder: encoder.name().into(),
        identity: encoder.identity().into(),
        dim: encoder.dim(),
        passages: dataset.passages.len(),
        queries: dataset.queries.len(),
        scores: Scores::mean(&scores),
        passages_per_second,
        ranking,
        queries_per_second,
    })
}

fn encode(
    encoder: impl Fn(&[&str]) -> Result<Vec<f32>>,
    texts: &[(String, String)],
    what: &str,
    progress: Progress,
) -> Result<Vec<f32>> {
    let task = progress.task(&format!("encoding {what}"), texts.len() as u64, what);
    let mut rows = Vec::new();
    for batch in texts.chunks(BATCH) {
        if crate::interrupt::requested() {
            return Err(Error::Interrupted("nothing was measured".into()));
        }
        let batch: Vec<&str> = batch.iter().map(|(_, text)| text.as_str()).collect();
        rows.extend(encoder(&batch)?);
        task.advance(batch.len() as u64);
    }
    Ok(rows)
}

/// Positions of the `k` largest scores, largest first, ties by position.
fn rank(scores: &[f32], k: usize) -> Vec<usize> {
    let order = |&a: &usize, &b: &usize| scores[b].total_cmp(&scores[a]).then(a.cmp(&b));
    let mut places: Vec<usize> = (0..scores.len()).collect();
    if k < places.len() {
        places.select_nth_unstable_by(k, order);
        places.truncate(k);
    }
    places.sort_unstable_by(order);
    places
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn judged(pairs: &[(&str, f64)]) -> Judgements {
        pairs.iter().map(|(id, relevance)| (id.to_string(), *relevance)).collect()
    }

    #[test]
    fn scores_by_hand() {
        let judged = judged(&[("a", 2.0), ("b", 1.0), ("c", 1.0), ("d", 0.0), ("e", -1.0)]);
        // Gains 0, 2, 0, 1: DCG = 2/log2(3) + 1/log2(5); ideal = 2 + 1/log2(3) + 1/log2(4).
        let scores = Scores::of(&["d", "a", "e", "b"], &judged);
        let (log3, log5) = (3f64.log2(), 5f64.log2());
        let expected = (2.0 / log3 + 1.0 / log5) / (2.0 + 1.0 / log3 + 0.5);
        assert!((scores.ndcg_at_10 - expected).abs() < 1e-12);
        assert!((scores.ndcg_at_10 - 0.540_586).abs() < 1e-6, "{}", scores.ndcg_at_10);
        assert_eq!(scores.recall_at_10, 2.0 / 3.0);
        assert_eq!(scores.recall_at_100, 2.0 / 3.0);
        assert_eq!(scores.mrr_at_10, 0.5);
        let perfect = Scores::of(&["a", "c", "b"], &judged);
        assert_eq!(
            perfect,
            Scores { ndcg_at_10: 1.0, recall_at_10: 1.0, recall_at_100: 1.0, mrr_at_10: 1.0 }
        );
    }

    #[test]
    fn the_eleventh_place_counts_for_recall_at_100_only() {
        let ids: Vec<String> = (0..120).map(|i| i.to_string()).collect();
        let ranking: Vec<&str> = ids.iter().map(String::as_str).collect();
        let scores = Scores::of(&ranking, &judged(&[("10", 1.0), ("99", 1.0), ("100", 1.0)]));
        let expected =
            Scores { ndcg_at_10: 0.0, recall_at_10: 0.0, recall_at_100: 2.0 / 3.0, mrr_at_10: 0.0 };
        assert_eq!(scores, expected);
    }

    #[test]
    fn ranks_by_score_then_place() {
        assert_eq!(rank(&[0.5, 2.0, -1.0, 2.0, 0.7], 3), [1, 3, 4]);
        assert_eq!(rank(&[0.5, 2.0], 9), [1, 0]);
    }

    /// Encodes a text as how often each of its first three letters of the alphabet occurs.
    struct Letters;

    impl Encoder for Letters {
        fn dim(&self) -> usize {
            3
        }
        fn encode(&self, texts: &[&str]) -> Result<Vec<f32>> {
            let count = |text: &str, letter: char| text.chars().filter(|&c| c == letter).count() as f32;
            Ok(texts.iter().flat_map(|t| ['x', 'y', 'z'].map(|letter| count(t, letter))).collect())
        }
        fn name(&self) -> &str {
            "letters"
        }
        fn identity(&self) -> &str {
            "letters"
        }
    }

    fn write(dir: &Path, corpus: &str, queries: &str, qrels: &str) {
        fs::create_dir_all(dir.join("qrels")).unwrap();
        fs::write(dir.join("corpus.jsonl"), corpus).unwrap();
        fs::write(dir.join("queries.jsonl"), queries).unwrap();
        fs::write(dir.join("qrels/test.tsv"), qrels).unwrap();
    }

    const CORPUS: &str = r#"{"_id": "1", "title": "x", "text": "xx"}
{"_id": "2", "title": "", "text": "yy"}
{"_id": "3", "text": "zz"}
"#;
    const QUERIES: &str = r#"{"_id": "1", "text": "xxyz"}
{"_id": "q", "text": "yz"}
{"_id": "unjudged", "text": "z"}
"#;

    #[test]
    fn evaluates_a_small_dataset() {
        let dir = tempfile::tempdir().unwrap();
        // Query "1" would find passage "1" first, but that has its own id; then 2 and 3 tie.
        write(dir.path(), CORPUS, QUERIES, "query-id\tcorpus-id\tscore\n1\t3\t1\nq\t2\t1\nq\t1\t0\n");
        let dataset = Dataset::open(dir.path()).unwrap();
        let evaluate = |ranking| evaluate(&Letters, &dataset, ranking, Progress::Silent).unwrap();
        let report = evaluate(Ranking::Vectors);
        assert_eq!((report.passages, report.queries, report.dim), (3, 2, 3));
        assert_eq!(report.scores.mrr_at_10, (0.5 + 1.0) / 2.0);
        assert_eq!(report.scores.recall_at_10, 1.0);
        // No query has a word of a passage, so words find nothing and add nothing.
        assert_eq!(evaluate(Ranking::Words).scores, Scores::default());
        assert_eq!(evaluate(Ranking::Hybrid).scores, report.scores);
    }

    #[test]
    fn words_find_what_vectors_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = "{\"_id\": \"1\", \"text\": \"xx\"}\n{\"_id\": \"2\", \"text\": \"bees make honey\"}\n";
        let queries = "{\"_id\": \"q\", \"text\": \"honey x\"}\n";
        write(dir.path(), corpus, queries, "q\t2\t1\n");
        let dataset = Dataset::open(dir.path()).unwrap();
        let mrr = |ranking| evaluate(&Letters, &dataset, ranking, Progress::Silent).unwrap().scores.mrr_at_10;
        assert_eq!((mrr(Ranking::Vectors), mrr(Ranking::Words), mrr(Ranking::Hybrid)), (0.5, 1.0, 1.0));
    }

    #[test]
    fn names_the_line_at_fault() {
        let dir = tempfile::tempdir().unwrap();
        let complaint = |corpus: &str, queries: &str, qrels: &str| {
            write(dir.path(), corpus, queries, qrels);
            Dataset::open(dir.path()).err().expect("a bad dataset was read").to_string()
        };
        let good = "q\t2\t1\n";
        assert!(
            complaint("{\"_id\": \"1\", \"text\": \"x\"}\n{\"_id\": 2}\n", QUERIES, good)
                .contains("corpus.jsonl:2:")
        );
        assert!(complaint(&format!("{CORPUS}{CORPUS}"), QUERIES, good).contains("corpus.jsonl:4:"));
        assert!(complaint(CORPUS, QUERIES, "q\t2\t1\nq 3 1\n").contains("test.tsv:2:"));
        assert!(complaint(CORPUS, QUERIES, "lost\t2\t1\n").contains("\"lost\""));
        assert!(complaint(CORPUS, QUERIES, "q\t2\t0\n").contains("no query"));
        fs::remove_file(dir.path().join("corpus.jsonl")).unwrap();
        assert!(Dataset::open(dir.path()).err().unwrap().to_string().contains("corpus.jsonl"));
    }
}
