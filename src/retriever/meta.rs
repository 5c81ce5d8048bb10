//! What an index directory's manifest says.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sidenote_index::{Bitmap, Spec};

use crate::artefact::{self, ArtefactError, Manifest};
use crate::corpus::Skipped;
use crate::encoder::Encoder;
use crate::{Error, Result};

pub(super) const KIND: &str = "corpus-index";
pub(super) const VERSION: u32 = 2;

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

/// How much there is of a corpus.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Number of documents.
    pub documents: usize,
    /// Number of chunks.
    pub chunks: usize,
    /// Number of tokens.
    pub tokens: usize,
    /// Bytes of text.
    pub text_bytes: usize,
}

/// The documents of a part that were deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dead {
    /// What the manifest's files call the bitmap of them.
    pub file: String,
    /// BLAKE3 hash of the bitmap.
    pub blake3: String,
    /// How much of the part they are.
    #[serde(flatten)]
    pub counts: Counts,
}

/// A part of an index: the documents of one build, one `add` or one `compact`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IndexPart {
    /// The chunk store.
    pub store: Piece,
    /// The vectors, row `c` being chunk `c` of the store.
    pub vectors: Piece,
    /// The kind of index that was built over the vectors.
    pub index: Spec,
    /// What it holds, deleted documents included.
    #[serde(flatten)]
    pub counts: Counts,
    /// What was deleted of it since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead: Option<Dead>,
    /// The effort of a search, where `index tune` has set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breadth: Option<usize>,
}

/// What the manifest of an index directory says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IndexMeta {
    /// What was asked for.
    pub settings: Settings,
    /// The parts, in the order of their documents' and chunks' numbers; at least one.
    pub parts: Vec<IndexPart>,
    /// Width of the vectors.
    pub dim: usize,
    /// What was left out of the corpus.
    pub skipped: Skipped,
    /// Hash over all documents, in order; `None` once documents were added or deleted.
    pub corpus: Option<String>,
}

/// The same in format version 1: one part, nothing deleted.
#[derive(Deserialize)]
struct Version1 {
    settings: Settings,
    store: Piece,
    vectors: Piece,
    index: Spec,
    dim: usize,
    #[serde(flatten)]
    counts: Counts,
    skipped: Skipped,
    corpus: String,
}

impl From<Version1> for IndexMeta {
    fn from(old: Version1) -> Self {
        let Version1 { settings, store, vectors, index, dim, counts, skipped, corpus } = old;
        let part = IndexPart { store, vectors, index, counts, dead: None, breadth: None };
        Self { settings, parts: vec![part], dim, skipped, corpus: Some(corpus) }
    }
}

impl Counts {
    fn with(self, f: impl Fn(usize, usize) -> usize, other: Self) -> Self {
        Self {
            documents: f(self.documents, other.documents),
            chunks: f(self.chunks, other.chunks),
            tokens: f(self.tokens, other.tokens),
            text_bytes: f(self.text_bytes, other.text_bytes),
        }
    }

    /// What is in both together.
    pub fn plus(self, other: Self) -> Self {
        // A manifest may say anything.
        self.with(usize::saturating_add, other)
    }

    /// What is left without `other`.
    pub fn minus(self, other: Self) -> Self {
        self.with(usize::saturating_sub, other)
    }
}

impl IndexPart {
    /// What was deleted of it.
    pub fn dead(&self) -> Counts {
        self.dead.as_ref().map(|dead| dead.counts).unwrap_or_default()
    }
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
    /// The error for a piece in `dir` that is not the one the manifest means.
    pub(super) fn check(&self, dir: &Path, what: &str, found: &str) -> Result<()> {
        if self.identity == found {
            return Ok(());
        }
        Err(Error::Mismatch {
            what: format!("the manifest of {} and its {what}", dir.display()),
            left: format!("identity {}", self.identity),
            right: format!("identity {found} in {}", self.folder),
            hint: "build the index again or restore it from a copy".into(),
        })
    }

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
        Ok(Self::read_manifest(dir)?.1)
    }

    /// [`read`](Self::read), with the manifest that it is in.
    pub(super) fn read_manifest(dir: &Path) -> Result<(Manifest, Self)> {
        let manifest = artefact::open(dir, KIND, 1..=VERSION)?;
        let meta: Self = match manifest.format_version {
            1 => manifest.meta_as::<Version1>(dir)?.into(),
            _ => manifest.meta_as(dir)?,
        };
        if meta.parts.is_empty() {
            let why = "meta: an index without parts".into();
            return Err(ArtefactError::BadManifest { path: dir.join(artefact::MANIFEST), why }.into());
        }
        Ok((manifest, meta))
    }

    /// What can be found and read: all but what was deleted.
    pub fn live(&self) -> Counts {
        let all = self.parts.iter().fold(Counts::default(), |sum, part| sum.plus(part.counts));
        all.minus(self.dead())
    }

    /// What was deleted and still takes up space.
    pub fn dead(&self) -> Counts {
        self.parts.iter().fold(Counts::default(), |sum, part| sum.plus(part.dead()))
    }

    /// The effort of a search that `index tune` has set for parts of this kind; the most where they differ.
    pub(super) fn breadth_of(&self, index: Spec) -> Option<usize> {
        self.parts.iter().filter(|part| part.index == index).filter_map(|part| part.breadth).max()
    }

    /// The kinds of index over its parts' vectors, such as `"RaBitQ"` or `"RaBitQ, Flat"`.
    pub fn kinds(&self) -> String {
        let mut kinds: Vec<String> = self.parts.iter().map(|part| part.index.to_string()).collect();
        kinds.dedup();
        kinds.join(", ")
    }

    /// Hash over what searches depend on: stores, deletions, vectors and the encoder. How much
    /// effort a search takes (`index tune`) is not in it: the numbers of chunks stay.
    pub fn identity(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut add = |part: &str| {
            hasher.update(part.as_bytes());
            hasher.update(b"\n");
        };
        for part in &self.parts {
            add(&part.store.identity);
            add(&part.vectors.identity);
            part.dead.iter().for_each(|dead| add(&dead.blake3));
        }
        add(&self.settings.encoder.identity);
        hasher.finalize().to_hex()[..32].to_string()
    }

    /// Refuses another encoder than the one that the index in `dir` was built with.
    pub(super) fn check_encoder(&self, dir: &Path, encoder: &dyn Encoder) -> Result<()> {
        let built_with = &self.settings.encoder;
        if encoder.identity() == built_with.identity {
            return Ok(());
        }
        Err(Error::Mismatch {
            what: format!("the encoder and the index in {}", dir.display()),
            left: format!("encoder {:?} ({})", encoder.name(), encoder.identity()),
            right: format!("an index built with encoder {:?} ({})", built_with.name, built_with.identity),
            hint: "use that encoder, or build the index again".into(),
        })
    }

    /// The deleted documents of `part`.
    pub(super) fn read_dead(dir: &Path, manifest: &Manifest, part: &IndexPart) -> Result<Option<Bitmap>> {
        let Some(dead) = &part.dead else { return Ok(None) };
        let path = manifest.path(dir, &dead.file)?;
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let hash = blake3::hash(&bytes).to_hex().to_string();
        if hash != dead.blake3 {
            let why = format!("content hash {hash}, but the manifest says {}", dead.blake3);
            return Err(ArtefactError::Damaged { path, why }.into());
        }
        Ok(Some(Bitmap::from_bytes(&bytes, part.counts.documents)?))
    }

    /// The names of the folders that the index is in.
    pub(super) fn folders(&self) -> Vec<&str> {
        self.parts.iter().flat_map(|part| [&part.store.folder, &part.vectors.folder]).map(|s| &**s).collect()
    }
}
