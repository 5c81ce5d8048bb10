//! Marking documents as deleted.

use sidenote_index::Bitmap;

use super::meta::{Counts, Dead, IndexMeta};
use crate::corpus::Store;

/// Which documents of a store are deleted, while some more are.
pub(super) struct Tombstones<'a> {
    store: &'a Store,
    parts: Vec<(Bitmap, Counts)>,
}

impl<'a> Tombstones<'a> {
    /// Those of `store`, as the manifest that it was opened by counts them.
    pub fn of(store: &'a Store, meta: &IndexMeta) -> Self {
        let of_part = |(number, part): (usize, &super::IndexPart)| {
            let dead = store.dead(number).cloned().unwrap_or_else(|| Bitmap::new(part.counts.documents));
            (dead, part.dead())
        };
        Self { store, parts: meta.parts.iter().enumerate().map(of_part).collect() }
    }

    /// Marks document `d`; once only, however often it is told.
    pub fn add(&mut self, d: usize) {
        let (part, local) = self.store.locate_document(d);
        let (bits, counts) = &mut self.parts[part];
        if bits.set(local) {
            let chunks = self.store.chunks_of(d);
            *counts = counts.plus(Counts {
                documents: 1,
                chunks: chunks.len(),
                tokens: chunks.map(|c| self.store.chunk(c).tokens.len()).sum(),
                text_bytes: self.store.document(d).text.len(),
            });
        }
    }

    /// Brings the parts of `meta` up to date; parts of which nothing is left go, unless it would be
    /// all of them. What to commit with it.
    pub fn bury(self, meta: &mut IndexMeta) -> Vec<Option<Bitmap>> {
        let keep_one =
            self.parts.iter().zip(&meta.parts).all(|((_, dead), part)| is_gone(dead, &part.counts));
        let mut marked = Vec::new();
        let mut parts = std::mem::take(&mut meta.parts).into_iter();
        for (number, ((bits, counts), mut part)) in self.parts.into_iter().zip(parts.by_ref()).enumerate() {
            if is_gone(&counts, &part.counts) && !(keep_one && number == 0) {
                continue;
            }
            let any = counts.documents > 0;
            part.dead = any.then(|| Dead { file: String::new(), blake3: String::new(), counts });
            marked.push(any.then_some(bits));
            meta.parts.push(part);
        }
        marked
    }
}

fn is_gone(dead: &Counts, all: &Counts) -> bool {
    dead.documents == all.documents
}
