//! retriever.
