//! Training: one loop for every kind of model.

mod checkpoint;
pub mod config;
pub mod copy;
pub mod data;
mod log;
mod run;
mod schedule;

pub use config::{Kind, TrainConfig};
pub use log::{Curve, plot};
pub use run::{Outcome, run};
