//! What training reads and what it is measured by: collections of queries and documents,
//! candidates worth judging, sealed label sets, and the measures that say what a ranking is worth.
//!
//! ```text
//! others' files ─import→ collection
//! collection ─candidates→ (query, document) pairs ─(retort-label)→ label set ─→ the trainer
//! ```
//!
//! A *collection* has the BEIR layout (`corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`). A
//! *label* is one teacher's judgement of one pair under one prompt: a probability for each grade,
//! of which the expected grade is the soft label.

mod error;
mod fields;
mod indexed;

pub mod agreement;
pub mod bm25;
pub mod candidates;
pub mod collection;
pub mod import;
pub mod jsonl;
pub mod label_set;
pub mod lines;
pub mod measure;
pub mod settings;
pub mod shop;
pub mod trec;

pub use error::{Error, Result};
