//! A static encoder small enough to be written by a test.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Writes to `dir` a static encoder that knows the words of `topics`: texts are near that share
/// words, less near that share topics, and far otherwise.
pub fn write_encoder(dir: &Path, topics: &[&[&str]]) {
    fs::create_dir_all(dir).unwrap();
    let words: usize = topics.iter().map(|topic| topic.len()).sum();
    let dim = topics.len() + words;
    let mut vocab = HashMap::from([("[UNK]".to_string(), 0)]);
    let mut table = vec![0f32; dim];
    for (topic, words) in topics.iter().enumerate() {
        for word in *words {
            let mut row = vec![0f32; dim];
            row[topic] = 1.0;
            row[topics.len() + vocab.len() - 1] = 0.5;
            table.extend(row);
            vocab.insert(word.to_string(), vocab.len());
        }
    }
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(dir.join("config.json"), "{\"model_type\": \"model2vec\"}").unwrap();
    let bytes: Vec<u8> = table.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![words + 1, dim], &bytes).unwrap();
    safetensors::serialize_to_file([("embeddings", view)], None, &dir.join("model.safetensors")).unwrap();
}
