//! An index, or shards that are searched as one.

use std::borrow::Cow;
use std::path::Path;

use sidenote_index::{Hit, Index, IndexError, Metric, Segments, Spec};

pub enum Searchable {
    One(Box<Index>),
    Shards(Segments),
}

impl Searchable {
    /// The index in `dir`, or those in `dir/0`, `dir/1` and so on.
    pub fn open(dir: &Path) -> Result<Self, IndexError> {
        if !dir.join("0").exists() {
            return Ok(Self::One(Box::new(Index::open(dir)?)));
        }
        let folders =
            (0..).map(|number: usize| dir.join(number.to_string())).take_while(|folder| folder.exists());
        let parts = folders.map(|folder| Ok((Index::open(&folder)?, None)));
        Ok(Self::Shards(Segments::new(parts.collect::<Result<_, IndexError>>()?)?))
    }

    fn first(&self) -> &Index {
        match self {
            Self::One(index) => index,
            Self::Shards(shards) => shards.parts().next().expect("there is a part 0"),
        }
    }

    pub fn spec(&self) -> Spec {
        self.first().spec()
    }

    pub fn metric(&self) -> Metric {
        self.first().metric()
    }

    pub fn dim(&self) -> usize {
        self.first().dim()
    }

    pub fn len(&self) -> usize {
        match self {
            Self::One(index) => index.len(),
            Self::Shards(shards) => shards.len(),
        }
    }

    pub fn vector(&self, id: u32) -> Option<Cow<'_, [f32]>> {
        match self {
            Self::One(index) => index.vector(id),
            Self::Shards(shards) => shards.vector(id),
        }
    }

    pub fn set_breadth(&mut self, breadth: Option<usize>) {
        match self {
            Self::One(index) => index.set_breadth(breadth),
            Self::Shards(shards) => {
                (0..shards.parts().count()).for_each(|part| shards.set_breadth(part, breadth));
            }
        }
    }

    pub fn search(&self, query: &[f32], k: usize) -> Result<Vec<Hit>, IndexError> {
        match self {
            Self::One(index) => index.search(query, k, None),
            Self::Shards(shards) => shards.search(query, k, None),
        }
    }

    pub fn search_batch(&self, queries: &[f32], k: usize) -> Result<Vec<Vec<Hit>>, IndexError> {
        match self {
            Self::One(index) => index.search_batch(queries, k, None),
            Self::Shards(shards) => shards.search_batch(queries, k, None),
        }
    }
}
