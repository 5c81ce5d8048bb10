//! Training: one loop for every kind of model.

pub mod atlas;
mod checkpoint;
pub mod config;
mod contrastive;
pub mod copy;
mod epochs;
mod examples;
mod group;
mod inputs;
pub mod instance_gradients;
mod language;
mod log;
mod measurement;
mod mixture;
#[cfg(feature = "nccl")]
mod nccl;
pub mod objective;
mod optimiser;
mod order;
mod pairs;
mod queue;
mod retriever;
mod run;
mod schedule;
mod steps;
mod tensorboard;
mod trime;
mod tune;
mod tune_examples;
mod tune_splits;

pub use checkpoint::folder as checkpoint_folder;
pub use config::{Kind, Learn, MixBy, Mixing, SplitSection, TrainConfig, TuneLoss, TuneSection};
pub use contrastive::info_nce;
pub use group::{Alone, Group, Star};
pub use log::{Curve, plot};
#[cfg(feature = "nccl")]
pub use nccl::Nccl;
pub use order::Order;
pub use run::{run, run_in};
pub use steps::{Learner, Outcome};
