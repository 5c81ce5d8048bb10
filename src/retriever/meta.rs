//! What an index directory's manifest says.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sidenote_index::Spec;

use crate::artefact::{self, ArtefactError};
use crate::corpus::Skipped;
use crate::{Error, Result};

pub(super) const KIND: &str = "corpus-index";
pub(super) const VERSION: u32 = 1;

/// What was asked of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The corpus's files and folders, by name only: an index does not depend on where they lie.
    pub sources: Vec<String>,
    /// Identity of the tokenizer that the chunks are cut with.
    pub tokenizer: String,
    /// Tokens in a full chunk.
    pub chunk_tokens: usize,
    /// What made the vectors.
    pub encoder: EncoderMeta,
    /// The kind of index asked for; by the number of chunks where nothing was asked for.
    pub index: Option<Spec>,
    /// Seed of the kinds of index that use chance.
    pub seed: u64,
}

/// An encoder, as an index names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncoderMeta {
    /// What to load it by.
    pub name: String,
    /// What tells it from others.
    pub identity: String,
}

/// One of the artefacts inside an index directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Its folder's name.
    pub folder: String,
    /// Its identity.
    pub identity: String,
}

/// What the manifest of an index directory says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IndexMeta {
    /// What was asked for.
    pub settings: Settings,
    /// The chunk store.
    pub store: Piece,
    /// The vectors, row `c` being chunk `c`.
    pub vectors: Piece,
    /// The kind of index that was built.
    pub index: Spec,
    /// Width of the vectors.
    pub dim: usize,
    /// Number of documents.
    pub documents: usize,
    /// Number of chunks.
    pub chunks: usize,
    /// Number of tokens.
    pub tokens: usize,
    /// Bytes of text.
    pub text_bytes: usize,
    /// What was left out of the corpus.
    pub skipped: Skipped,
    /// Hash over all documents, in order.
    pub corpus: String,
}

impl Settings {
    /// Where `self` (what is there) and `other` (what is asked for now) differ, in words; the
    /// names that encoders go by make no difference.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let spec = |spec: Option<Spec>| spec.map_or("chosen by size".to_string(), |s| s.to_string());
        let encoder = |e: &EncoderMeta| format!("{:?} ({})", e.name, e.identity);
        let mut differences = Vec::new();
        let mut compare = |what: &str, same: bool, was: String, is: String| {
            if !same {
                differences.push(format!("{what} was {was} and is now {is}"));
            }
        };
        let sources = (self.sources.join(" "), other.sources.join(" "));
        compare("the corpus", self.sources == other.sources, sources.0, sources.1);
        let same = self.tokenizer == other.tokenizer;
        compare("the tokenizer", same, self.tokenizer.clone(), other.tokenizer.clone());
        let same = self.chunk_tokens == other.chunk_tokens;
        compare("--chunk-tokens", same, self.chunk_tokens.to_string(), other.chunk_tokens.to_string());
        let same = self.encoder.identity == other.encoder.identity;
        compare("the encoder", same, encoder(&self.encoder), encoder(&other.encoder));
        compare("--index", self.index == other.index, spec(self.index), spec(other.index));
        compare("--seed", self.seed == other.seed, self.seed.to_string(), other.seed.to_string());
        differences
    }
}

impl Piece {
    /// Its folder inside `dir`.
    pub(super) fn path(&self, dir: &Path) -> Result<PathBuf> {
        // A manifest may come from anywhere; its names must not lead out of the directory.
        let mut parts = Path::new(&self.folder).components();
        let plain = matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None));
        if !plain || self.folder.contains('\\') {
            let why = format!("folder name {:?} leads out of the directory", self.folder);
            return Err(ArtefactError::BadManifest { path: dir.join(artefact::MANIFEST), why }.into());
        }
        Ok(dir.join(&self.folder))
    }
}

impl IndexMeta {
    /// Reads the manifest of the index in `dir`; touches nothing else.
    pub fn read(dir: &Path) -> Result<Self> {
        Ok(artefact::open(dir, KIND, VERSION)?.meta_as(dir)?)
    }

    /// Hash over what searches depend on: the store, the vectors and the encoder.
    pub fn identity(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in [&self.store.identity, &self.vectors.identity, &self.settings.encoder.identity] {
            hasher.update(part.as_bytes());
            hasher.update(b"\n");
        }
        hasher.finalize().to_hex()[..32].to_string()
    }

    /// The error for a piece that is not the one the manifest means.
    pub(super) fn check_piece(&self, dir: &Path, what: &str, piece: &Piece, found: &str) -> Result<()> {
        if piece.identity == found {
            return Ok(());
        }
        Err(Error::Mismatch {
            what: format!("the manifest of {} and its {what}", dir.display()),
            left: format!("identity {}", piece.identity),
            right: format!("identity {found} in {}", piece.folder),
            hint: "build the index again or restore it from a copy".into(),
        })
    }
}
