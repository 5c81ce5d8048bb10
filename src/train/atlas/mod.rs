//! Atlas: a reader and its retriever learn together (Izacard et al. 2022, <https://arxiv.org/abs/2208.03299>).

mod context;
mod generations;
mod judge;
mod learner;
pub mod loss;
mod reader;
mod schedule;

pub use learner::AtlasLearner;
pub use schedule::RefreshSchedule;
