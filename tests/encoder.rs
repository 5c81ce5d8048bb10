//! Encoders against the vectors of the Python libraries that they stand in for. The golden files
//! are made by scripts/golden_encoder.py.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::Deserialize;
use sidenote::encoder::{self, Encoder, TrainableEncoder};
use sidenote_index::Metric;

#[derive(Deserialize)]
struct Golden {
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    text: String,
    vector: Vec<f32>,
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/encoder").join(name)
}

fn load(folder: &Path) -> Box<dyn Encoder> {
    encoder::load(folder.to_str().unwrap()).unwrap()
}

/// Largest difference of any coordinate between `encoder`'s vectors and the golden ones.
fn largest_difference(encoder: &dyn Encoder, golden: &Path) -> f32 {
    difference(encoder.dim(), golden, |texts| encoder.encode(texts).unwrap())
}

fn difference(dim: usize, golden: &Path, encode: impl Fn(&[&str]) -> Vec<f32>) -> f32 {
    let golden: Golden = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
    assert!(golden.rows.len() >= 10);
    let texts: Vec<&str> = golden.rows.iter().map(|row| row.text.as_str()).collect();
    let vectors = encode(&texts);
    assert_eq!(vectors.len(), texts.len() * dim);
    let expected = golden.rows.iter().flat_map(|row| &row.vector);
    vectors.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn bert_gives_the_vectors_of_sentence_transformers() {
    for pooling in ["bert_mean", "bert_cls"] {
        let difference = largest_difference(&*load(&data(pooling)), &data(pooling).join("golden.json"));
        assert!(difference < 1e-5, "{pooling}: off by {difference:e}");
    }
}

#[test]
fn every_family_gives_the_vectors_of_transformers() {
    // Contriever, XLM-R, MPNet and nomic-bert have no file about pooling: means of hidden states as they are.
    for family in ["contriever", "xlm_roberta", "mpnet", "nomic"] {
        let encoder = load(&data(family));
        assert_eq!(encoder.metric(), Metric::InnerProduct, "{family}");
        let difference = largest_difference(&*encoder, &data(family).join("golden.json"));
        assert!(difference < 1e-4, "{family}: off by {difference:e}");
    }
}

#[test]
fn every_family_is_rounded_to_eight_bits() {
    for family in ["bert_mean", "contriever", "xlm_roberta", "mpnet", "nomic", "bge"] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("rounded");
        let made = encoder::quantise(data(family).to_str().unwrap(), &out).unwrap();
        assert!(made.bytes < made.f32_bytes * 7 / 10, "{family}: {} bytes of {}", made.bytes, made.f32_bytes);
        let (whole, rounded) = (load(&data(family)), load(&out));
        assert_ne!(whole.identity(), rounded.identity(), "{family}");
        assert_eq!((whole.metric(), whole.dim()), (rounded.metric(), rounded.dim()), "{family}");
        let texts = ["The moon moves around the Earth.", "a", "Two moons, and the text of them all"];
        let (exact, found) = (whole.encode(&texts).unwrap(), rounded.encode(&texts).unwrap());
        assert_ne!(exact, found, "{family}: nothing was rounded");
        for (a, b) in exact.chunks_exact(whole.dim()).zip(found.chunks_exact(whole.dim())) {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
            let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
            assert!(cosine > 0.999, "{family}: {cosine}");
        }
        // With what a text is encoded does not show in its vector.
        assert_eq!(rounded.encode(&texts[..1]).unwrap(), found[..whole.dim()], "{family}");
        // A row without its scale is no weight, and there is nothing to train in codes.
        if family == "bert_mean" {
            let broken = dir.path().join("broken");
            copy(&out, &broken);
            let bytes = fs::read(broken.join("model.safetensors")).unwrap();
            let scale = "encoder.layer.0.intermediate.dense.weight_scale";
            let other = scale.replace("scale", "scald");
            let at = bytes.windows(scale.len()).position(|bytes| bytes == scale.as_bytes()).unwrap();
            let bytes = [&bytes[..at], other.as_bytes(), &bytes[at + scale.len()..]].concat();
            fs::write(broken.join("model.safetensors"), bytes).unwrap();
            let why = encoder::load(broken.to_str().unwrap()).err().unwrap().to_string();
            assert!(why.contains("model.safetensors") && why.contains(scale), "{why}");
            let why = TrainableEncoder::load(out.to_str().unwrap(), &Device::Cpu).err().unwrap().to_string();
            assert!(why.contains("I8"), "{why}");
        }
        let again = dir.path().join("again");
        let why = encoder::quantise(out.to_str().unwrap(), &again).err().unwrap().to_string();
        assert!(why.contains("model.safetensors") && !again.exists(), "{why}");
        let why = encoder::quantise(data(family).to_str().unwrap(), &out).err().unwrap().to_string();
        assert!(why.contains("already exists"), "{why}");
    }
    for family in ["t5_dense", "model2vec"] {
        let out = tempfile::tempdir().unwrap().path().join("rounded");
        let why = encoder::quantise(data(family).to_str().unwrap(), &out).err().unwrap().to_string();
        assert!(why.contains("config.json") && why.contains("model_type") && !out.exists(), "{why}");
    }
}

/// In halves, in several files, and both.
#[test]
fn weights_are_read_from_shards_and_in_half_precision() {
    use candle_core::{DType, Device, safetensors};
    for (family, dtype) in [
        ("bert_mean", DType::F32),
        ("contriever", DType::F16),
        ("t5_dense", DType::F32),
        ("t5_dense", DType::F16),
        ("bge", DType::BF16),
    ] {
        let dir = tempfile::tempdir().unwrap();
        copy(&data(family), dir.path());
        let whole = dir.path().join("model.safetensors");
        let tensors = safetensors::load(&whole, &Device::Cpu).unwrap();
        fs::remove_file(whole).unwrap();
        let mut shards = [std::collections::HashMap::new(), std::collections::HashMap::new()];
        let mut map = serde_json::Map::new();
        for (number, (name, tensor)) in tensors.into_iter().enumerate() {
            map.insert(name.clone(), format!("part-{}.safetensors", number % 2).into());
            shards[number % 2].insert(name, tensor.to_dtype(dtype).unwrap());
        }
        for (number, shard) in shards.iter().enumerate() {
            safetensors::save(shard, dir.path().join(format!("part-{number}.safetensors"))).unwrap();
        }
        let index = serde_json::json!({ "metadata": {}, "weight_map": map });
        fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        let encoder = load(dir.path());
        let texts = ["April", "the moon moves around the Earth in about 27 days"];
        let (found, expected) =
            (encoder.encode(&texts).unwrap(), load(&data(family)).encode(&texts).unwrap());
        let difference = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let bound = match dtype {
            DType::F32 => 1e-5,
            DType::F16 => 2e-2,
            _ => 1e-1,
        };
        assert!(difference < bound, "{family}: off by {difference:e}");
        // The identity follows the weights, not their files.
        assert_eq!(load(dir.path()).identity(), encoder.identity());
        let part = dir.path().join("part-1.safetensors");
        let changed: std::collections::HashMap<_, _> = safetensors::load(&part, &Device::Cpu)
            .unwrap()
            .into_iter()
            .map(|(name, tensor)| (name, (tensor * 1.5).unwrap()))
            .collect();
        safetensors::save(&changed, &part).unwrap();
        assert_ne!(load(dir.path()).identity(), encoder.identity());
    }
}

#[test]
fn prompts_go_before_queries_and_documents() {
    let encoder = load(&data("bge"));
    assert_eq!(encoder.metric(), Metric::Cosine);
    let documents = largest_difference(&*encoder, &data("bge/golden.json"));
    assert!(documents < 1e-4, "off by {documents:e}");
    let encode = |texts: &[&str]| encoder.encode_queries(texts).unwrap();
    let queries = difference(encoder.dim(), &data("bge/golden_queries.json"), encode);
    assert!(queries < 1e-4, "off by {queries:e}");
}

/// A T5 encoder, mean pooling, a Dense module (and Normalize): Sentence-T5's layout.
#[test]
fn t5_gives_the_vectors_of_sentence_transformers() {
    let encoder = load(&data("t5_dense"));
    assert_eq!(encoder.dim(), 13);
    let golden: Golden = serde_json::from_slice(&fs::read(data("t5_dense/golden.json")).unwrap()).unwrap();
    // A text without a token is a zero row here.
    let rows: Vec<&Row> = golden.rows.iter().filter(|row| !row.text.trim().is_empty()).collect();
    assert!(rows.len() >= 15);
    let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
    let vectors = encoder.encode(&texts).unwrap();
    let expected = rows.iter().flat_map(|row| &row.vector);
    let difference = vectors.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("t5_dense: largest difference {difference:e}");
    assert!(difference < 1e-5, "off by {difference:e}");
    let blank = encoder.encode(&["", "   "]).unwrap();
    assert!(blank.iter().all(|x| *x == 0.0));
}

/// Older T5 repositories have a SentencePiece model alone. Fails when it gives other tokens than `tokenizer.json`, or is no
/// part of the identity.
#[test]
fn t5_is_read_with_a_sentencepiece_model_alone() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
    let dir = tempfile::tempdir().unwrap();
    copy(&models.join("t5_v1_0"), dir.path());
    let whole = load(dir.path());
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let alone = load(dir.path());
    let texts = ["The moon moves around the Earth.", "a", "Two moons, and the text of them all"];
    assert_eq!(alone.encode(&texts).unwrap(), whole.encode(&texts).unwrap());
    assert_ne!(alone.identity(), whole.identity());
    // A field that nobody reads.
    let mut model = fs::read(dir.path().join("spiece.model")).unwrap();
    model.extend([0x78, 0]);
    fs::write(dir.path().join("spiece.model"), model).unwrap();
    let other = load(dir.path());
    assert_eq!(other.encode(&texts).unwrap(), whole.encode(&texts).unwrap());
    assert_ne!(other.identity(), alone.identity());
    fs::write(dir.path().join("spiece.model"), "no model").unwrap();
    assert!(complaint(dir.path()).contains("spiece.model"));
    fs::remove_file(dir.path().join("spiece.model")).unwrap();
    assert!(complaint(dir.path()).contains("tokenizer.json"));

    let encoder = load(&models.join("t5_v1_1"));
    assert_eq!(encoder.dim(), 26);
    let vectors = encoder.encode(&texts[..2]).unwrap();
    assert!(vectors.iter().all(|x| x.is_finite()));
    assert_ne!(vectors[..26], vectors[26..]);
}

#[test]
fn static_tables_give_the_vectors_of_model2vec() {
    let difference = largest_difference(&*load(&data("model2vec")), &data("model2vec/golden.json"));
    assert!(difference < 1e-5, "off by {difference:e}");
}

#[test]
fn real_models_give_the_vectors_of_sentence_transformers() {
    for (variable, golden) in
        [("SIDENOTE_MINILM", "minilm_golden.json"), ("SIDENOTE_MPNET", "mpnet_golden.json")]
    {
        let Some(folder) = std::env::var_os(variable) else {
            println!("skipped: {variable} does not name a folder (scripts/fetch_models.sh fetches one)");
            continue;
        };
        let difference = largest_difference(&*load(Path::new(&folder)), &data(golden));
        println!("{golden}: largest difference {difference:e}");
        assert!(difference < 1e-4, "{golden}: off by {difference:e}");
    }
}

#[test]
fn a_vector_does_not_depend_on_its_batch() {
    let encoder = load(&data("bert_mean"));
    let texts = ["April", "", "the moon moves around the Earth in about 27 days and more", "a b c"];
    let together = encoder.encode(&texts).unwrap();
    let dim = encoder.dim();
    for (text, row) in texts.iter().zip(together.chunks_exact(dim)) {
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        for alone in [encoder.encode(&[text]).unwrap(), one.install(|| encoder.encode(&[text]).unwrap())] {
            assert!(alone.iter().zip(row).all(|(a, b)| (a - b).abs() < 1e-5), "{text:?}");
        }
        let length: f32 = row.iter().map(|x| x * x).sum();
        assert!((length - if text.is_empty() { 0.0 } else { 1.0 }).abs() < 1e-5, "{text:?}: {length}");
    }
}

/// A copy of the golden folder in which `file` holds `content`, or is gone.
fn damaged(file: &str, content: Option<&[u8]>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&data("bert_mean"), dir.path());
    match content {
        Some(content) => fs::write(dir.path().join(file), content).unwrap(),
        None => fs::remove_file(dir.path().join(file)).unwrap(),
    }
    dir
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

fn complaint(folder: &Path) -> String {
    encoder::load(folder.to_str().unwrap()).err().expect("loaded a damaged encoder").to_string()
}

#[test]
fn damaged_folders_are_refused_by_file_and_tensor() {
    for file in ["config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"] {
        assert!(complaint(damaged(file, None).path()).contains(file), "missing {file}");
        assert!(complaint(damaged(file, Some(b"{")).path()).contains(file), "broken {file}");
    }
    let config = fs::read_to_string(data("bert_mean/config.json")).unwrap();
    for (old, new, word) in [
        (
            "\"intermediate_size\": 100",
            "\"intermediate_size\": 99",
            "encoder.layer.0.intermediate.dense.weight",
        ),
        ("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4", "encoder.layer.3"),
        ("\"num_attention_heads\": 6", "\"num_attention_heads\": 7", "num_attention_heads"),
        ("\"num_attention_heads\": 6", "\"num_attention_heads\": 0", "num_attention_heads"),
        ("\"model_type\": \"bert\"", "\"model_type\": \"albert\"", "albert"),
        ("\"hidden_act\": \"gelu\"", "\"hidden_act\": \"swish\"", "swish"),
        ("\"max_position_embeddings\": 70", "\"max_position_embeddings\": 2", "max_position_embeddings"),
        ("\"vocab_size\": ", "\"vocab_size\": 1", "word_embeddings"),
    ] {
        assert!(config.contains(old), "{old}");
        let dir = damaged("config.json", Some(config.replace(old, new).as_bytes()));
        let why = complaint(dir.path());
        assert!(why.contains(word), "{new}: {why}");
    }
    let dense = br#"[{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformer"},
        {"idx":1,"name":"1","path":"2_Dense","type":"sentence_transformers.models.Dense"}]"#;
    assert!(complaint(damaged("modules.json", Some(dense)).path()).contains("Dense"));
    assert!(complaint(Path::new("no-such-folder")).contains("no-such-folder"));
}

#[test]
fn a_table_that_does_not_fit_its_tokenizer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    copy(&data("model2vec"), dir.path());
    fs::copy(data("bert_cls/model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    assert!(complaint(dir.path()).contains("\"embeddings\" is missing"));
    copy(&data("model2vec"), dir.path());
    let tokenizer = fs::read_to_string(dir.path().join("tokenizer.json")).unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_str(&tokenizer).unwrap();
    tokenizer["model"]["vocab"]["onemore"] = 9999.into();
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let why = complaint(dir.path());
    assert!(why.contains("embeddings") && why.contains("[10000, 11]"), "{why}");
}

#[test]
fn distilling_and_measuring_work_on_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let program = env!("CARGO_BIN_EXE_sidenote");
        let output =
            std::process::Command::new(program).args(arguments).current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    fs::write(
        dir.path().join("corpus.jsonl"),
        "{\"_id\": \"1\", \"text\": \"the moon\"}\n{\"_id\": \"2\", \"text\": \"a line\"}\n",
    )
    .unwrap();
    fs::write(dir.path().join("queries.jsonl"), "{\"_id\": \"q\", \"text\": \"moon\"}\n").unwrap();
    fs::create_dir(dir.path().join("qrels")).unwrap();
    fs::write(dir.path().join("qrels/test.tsv"), "q\t1\t1\n").unwrap();
    let source = data("bert_mean");
    let made = run(&[
        "--json",
        "encoder",
        "distill",
        source.to_str().unwrap(),
        "--dim",
        "10",
        "--corpus",
        "corpus.jsonl",
        "--out",
        "made",
    ]);
    assert_eq!(made["dim"], 10);
    let report = run(&["--json", "eval", "retrieval", "made", "."]);
    assert_eq!(report["identity"], made["identity"]);
    assert_eq!(report["ndcg_at_10"], 1.0);
}

#[test]
fn identity_follows_the_files_that_decide_the_vectors() {
    let original = load(&data("bert_mean"));
    let same = damaged("golden.json", Some(b"{}"));
    assert_eq!(load(same.path()).identity(), original.identity());
    let limit = damaged("sentence_bert_config.json", Some(b"{\"max_seq_length\": 20}"));
    assert_ne!(load(limit.path()).identity(), original.identity());
    assert_ne!(load(&data("bert_cls")).identity(), original.identity());
}

#[test]
fn the_default_encoder_is_in_the_program_and_knows_what_is_near() {
    let encoder = encoder::load("default").unwrap();
    assert_eq!(encoder.name(), "default");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/encoder");
    assert_eq!(load(&folder).identity(), encoder.identity());
    let texts = [
        "The king lives in a castle.",
        "A monarch and his palace",
        "Boiling point of water",
        "",
        "\u{1F600}",
    ];
    let rows = encoder.encode(&texts).unwrap();
    let row = |i: usize| &rows[i * encoder.dim()..][..encoder.dim()];
    let dot = |i: usize, j: usize| row(i).iter().zip(row(j)).map(|(a, b)| a * b).sum::<f32>();
    assert!(dot(0, 1) > dot(0, 2) + 0.1, "{} {}", dot(0, 1), dot(0, 2));
    (0..3).for_each(|i| assert!((dot(i, i) - 1.0).abs() < 1e-5));
    assert!(row(3).iter().chain(row(4)).all(|&x| x == 0.0), "texts without a known token");
}
