//! Everything before a tensor: collections of queries and documents, candidates worth judging,
//! teachers asked over HTTP, the judgements they gave, and the measures that say what a ranking
//! is worth.
//!
//! ```text
//! collection ─candidates→ (query, document) pairs ─collect→ judgements ─→ the trainer
//! ```
//!
//! A *collection* has the BEIR layout (`corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`). A
//! *judgement* is one teacher's answer about one pair under one prompt: a probability for each
//! grade, of which the expected grade is the soft label. A failed request is never a label.

mod error;
mod jsonl;

pub mod bm25;
pub mod candidates;
pub mod collect;
pub mod collection;
pub mod judgement;
pub mod measure;
pub mod prompt;
pub mod settings;
pub mod shop;
pub mod teacher;

pub use error::{Error, Result};
