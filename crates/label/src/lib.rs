//! Judgements: asked of teachers over HTTP, kept in a ledger that loses nothing and buys nothing
//! twice, and sealed into label sets.
//!
//! ```text
//! pairs ─questions→ collector ⇄ teacher
//!                       │
//!                    ledger (SQLite) ─seal→ label set
//! ```
//!
//! A reply counts once its judgement is on disk. Requests may be sent twice (a kill can fall
//! between a reply and the disk), judgements are on record once: their key is all that determines
//! them. What is in flight is bounded, and so is what a kill can cost.

mod apart;
mod audit;
mod batch;
mod collect;
mod debias;
mod dialect;
mod error;
mod export;
mod graph;
mod gullible;
mod import;
mod job;
mod limits;
mod merge;
mod preflight;
mod prepare;
mod prompt;
mod questions;
mod redact;
mod regression;
mod replica;
mod retry;
mod seal;
mod secret;
mod shard;
mod strength;
mod treatment;

pub mod ledger;
pub mod money;
#[doc(hidden)]
pub mod replies;

pub use audit::{
    Agreement, Audit, AuditFile, AuditSettings, Calibration, CalibrationBin, Estimate, KappaOf,
    Mass, Order, Unlisted, audit,
};
pub use batch::{BatchSettings, collect_in_batches};
pub use collect::{Collected, Destination, Plan, Progress, collect, plan, preflight};
pub use debias::{Change, Debias, Debiased, Method, Worth, debias};
pub use dialect::rerank::Scale;
pub use error::{Error, Result};
pub use export::{Format, export};
pub use gullible::{Moved, ProbeSettings, Probed, plan_probe, probe};
pub use import::import;
pub use job::{LabelSettings, OnChange, TeacherSettings, Wire};
pub use merge::{Merged, merge};
pub use preflight::{Preflight, Reading};
pub use redact::{Counts, RedactionSettings, Sensitive};
pub use seal::{PositionBias, Sealed, position_bias, seal};
pub use secret::KeySettings;
pub use shard::{Part, Shard};
