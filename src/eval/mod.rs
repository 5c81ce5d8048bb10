//! Measuring models and encoders.

pub mod metrics;
pub mod overlap;
pub mod perplexity;
pub mod retrieval;
pub mod tasks;
