//! What a reader that learns is given.

/// The tokens that are read for a question.
pub struct Read {
    /// A text a passage; of an encoder-decoder the query alone where there are none.
    pub texts: Vec<Vec<u32>>,
    /// What comes after the passages, in a decoder's context.
    pub asked: Vec<u32>,
}
