//! From judgements to a student: losses, batches, the training loop, checkpoints, the verdict.
//!
//! A run is a folder:
//!
//! ```text
//! config.toml       the settings as they were resolved
//! inputs.json       digests of what the run was made from
//! metrics.jsonl     one line a step, one a dev evaluation
//! events.out.…      the same for TensorBoard, if that is asked for
//! steps/000150/     a checkpoint: a Hugging Face model folder, the optimiser, the state, the weights
//!                   that training goes on from where the model is their average, and in f16 the
//!                   scale of the loss
//! verdict.json      what the student is worth on the test queries
//! ```
//!
//! A run killed at any instant goes on from its last checkpoint and, on the CPU, ends with the
//! same weights as a run that was not.

mod batches;
mod checkpoint;
mod curve;
mod dataset;
mod error;
mod evaluation;
mod event;
mod gradients;
mod inputs;
mod learner;
pub mod loss;
mod loss_scale;
mod material;
mod metrics;
mod optimizer;
mod schedule;
mod sentinels;
mod settings;
mod start;
mod step;
mod tensorboard;
mod train;
mod vectors;
mod verdict;
mod warning;

pub use checkpoint::{best_model, last_step, settings};
pub use curve::{Curve, CurveEvent, CurvePoint, CurveSettings, Interval, TeacherLine, curve};
pub use error::{Error, Result};
pub use event::{Event, Outcome, StepReport};
pub use gradients::NamedGradients;
pub use optimizer::AdamW;
pub use settings::{
    AlsoSettings, DataSettings, Decay, EvaluationSettings, GoldSettings, HeadChoice, LossSettings,
    ModelSettings, OptimizerSettings, Sampling, ScheduleSettings, TrainSettings, VerdictSettings,
};
pub use start::Change;
pub use train::{Run, train};
pub use verdict::{System, Verdict};
pub use warning::Warning;
