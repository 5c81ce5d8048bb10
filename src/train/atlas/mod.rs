//! Atlas: a reader and its retriever learn together (Izacard et al. 2022, <https://arxiv.org/abs/2208.03299>).

mod context;
mod fusion;
mod generations;
mod judge;
mod learner;
pub mod loss;
mod read;
mod reader;

pub use learner::AtlasLearner;
