//! Whether a store's tables fit together.

use super::ChunkStore;
use super::block::{CHUNK, COLUMNS, HASH, ID, SECTION, SOURCE, TEXT, TITLE, TOKEN, text_hash};

/// How many problems are reported; a damaged table can give one a row.
const MOST: usize = 20;

/// See [`ChunkStore::check`].
pub(super) fn check(store: &ChunkStore) -> Vec<String> {
    let mut problems = Vec::new();
    check_ends(store, &mut problems);
    for d in 0..store.documents() {
        if problems.len() >= MOST {
            problems.push("more problems are not listed".into());
            break;
        }
        if let Err(why) = check_document(store, d) {
            problems.push(format!("document {d}: {why}"));
        }
    }
    let vocab = store.tokenizer().vocab_size();
    if let Some(at) = store.tokens.iter().position(|&t| t as usize >= vocab) {
        let token = store.tokens[at];
        problems.push(format!("token {at}: id {token} is outside the tokenizer's {vocab}"));
    }
    problems
}

/// The table must begin at 0 everywhere and end where the data ends.
fn check_ends(store: &ChunkStore, problems: &mut Vec<String>) {
    let (first, last) = (store.row(0), store.row(store.documents()));
    let fields = store.fields.len();
    let ends = [store.tokens.len(), store.chunks(), store.text.len(), fields, fields, fields, fields];
    for column in 0..COLUMNS {
        let begins_at_zero = store.documents() == 0 || column > ID || first[column] == 0;
        if !begins_at_zero || last[column] != ends[column] as u64 {
            problems.push(format!("document table, column {column}: does not cover the data"));
        }
    }
}

fn check_document(store: &ChunkStore, d: usize) -> Result<(), String> {
    let (row, next) = (store.row(d), store.row(d + 1));
    let marks = [row[ID], row[TITLE], row[SECTION], row[SOURCE], next[ID]];
    let ascending = marks.is_sorted() && [TOKEN, CHUNK, TEXT].iter().all(|&c| row[c] <= next[c]);
    let last = store.row(store.documents());
    if !ascending || (0..COLUMNS).any(|c| next[c] > last[c]) {
        return Err("its table row is out of order".into());
    }
    let text = bytes(&store.text, row[TEXT], next[TEXT]).ok_or("its text lies outside the data")?;
    let text = std::str::from_utf8(text).map_err(|e| format!("its text is not UTF-8: {e}"))?;
    for marks in marks.windows(2) {
        let field = bytes(&store.fields, marks[0], marks[1]).ok_or("its fields lie outside the data")?;
        std::str::from_utf8(field).map_err(|e| format!("its fields are not UTF-8: {e}"))?;
    }
    if text_hash(text) != store.hashes[d * HASH..(d + 1) * HASH] {
        return Err("its text does not have the hash that is noted".into());
    }
    let (tokens, chunks) = (next[TOKEN] - row[TOKEN], next[CHUNK] - row[CHUNK]);
    if chunks != tokens.div_ceil(store.chunk_size() as u64) {
        return Err(format!("{chunks} chunks for {tokens} tokens of {} a chunk", store.chunk_size()));
    }
    let mut end = 0;
    for c in row[CHUNK] as usize..next[CHUNK] as usize {
        let (Some(&of), Some(&start)) = (store.chunks.get(2 * c), store.chunks.get(2 * c + 1)) else {
            return Err(format!("chunk {c} lies outside the data"));
        };
        if of as usize != d {
            return Err(format!("chunk {c} says that it is of document {of}"));
        }
        let start = start as usize;
        let first = c as u64 == row[CHUNK];
        if (first && start != 0) || start < end || !text.is_char_boundary(start) {
            return Err(format!("chunk {c} begins at byte {start}: the chunks do not tile the text"));
        }
        end = start;
    }
    Ok(())
}

fn bytes(all: &[u8], from: u64, to: u64) -> Option<&[u8]> {
    all.get(usize::try_from(from).ok()?..usize::try_from(to).ok()?)
}
