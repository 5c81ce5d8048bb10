//! Training: one loop for every kind of model.

mod checkpoint;
pub mod config;
pub mod copy;
mod log;
pub mod objective;
mod order;
mod run;
mod schedule;

pub use checkpoint::folder as checkpoint_folder;
pub use config::{Kind, TrainConfig};
pub use log::{Curve, plot};
pub use order::Order;
pub use run::{Outcome, run};
