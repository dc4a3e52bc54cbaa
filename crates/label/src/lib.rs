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

mod collect;
mod dialect;
mod error;
mod job;
mod limits;
mod preflight;
mod prompt;
mod redact;
mod replica;
mod retry;
mod seal;
mod secret;

pub mod ledger;
pub mod money;

pub use collect::{Collected, Destination, Plan, Progress, collect, plan, probe};
pub use dialect::rerank::Scale;
pub use error::{Error, Result};
pub use job::{LabelSettings, OnChange, TeacherSettings, Wire};
pub use preflight::{Finding, Reading};
pub use redact::{Kind, RedactionSettings};
pub use seal::{Sealed, import, seal};
pub use secret::KeySettings;
