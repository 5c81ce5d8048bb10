//! Which documents of a store are the same as another one.

use crate::corpus::Store;

/// Finds documents by id and by text. The same document may carry another id in another corpus
/// (a file renamed), and its neighbours would then be itself; so equal texts count as the same
/// document too.
pub(super) struct SameDocument {
    /// (hash of the id, document), sorted.
    ids: Vec<(u64, u32)>,
    /// (hash of the text, document), sorted.
    texts: Vec<(u64, u32)>,
}

impl SameDocument {
    pub fn of(store: &Store) -> Self {
        let table = |key: &dyn Fn(usize) -> u64| {
            let mut table: Vec<_> = (0..store.documents()).map(|d| (key(d), d as u32)).collect();
            table.sort_unstable();
            table
        };
        Self {
            ids: table(&|d| id_key(store.document(d).id)),
            texts: table(&|d| text_key(store.text_hash(d))),
        }
    }

    /// The documents with this id.
    pub fn by_id(&self, store: &Store, id: &str) -> Vec<u32> {
        let same_id = |&d: &u32| store.document(d as usize).id == id;
        with_key(&self.ids, id_key(id)).filter(same_id).collect()
    }

    /// The documents of `store` that are the same as document `d` of `other`: by id or by text.
    pub fn as_in(&self, store: &Store, other: &Store, d: usize) -> Vec<u32> {
        let mut same = self.by_id(store, other.document(d).id);
        let hash = other.text_hash(d);
        let same_text = |&d: &u32| store.text_hash(d as usize) == hash;
        same.extend(with_key(&self.texts, text_key(hash)).filter(same_text));
        same.sort_unstable();
        same.dedup();
        same
    }
}

fn with_key(table: &[(u64, u32)], key: u64) -> impl Iterator<Item = u32> {
    table[table.partition_point(|&(k, _)| k < key)..].iter().take_while(move |e| e.0 == key).map(|e| e.1)
}

fn id_key(id: &str) -> u64 {
    text_key(blake3::hash(id.as_bytes()).as_bytes())
}

fn text_key(hash: &[u8]) -> u64 {
    hash.iter().take(8).fold(0, |key, &byte| key << 8 | u64::from(byte))
}
