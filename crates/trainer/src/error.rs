use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use crate::start::Change;

/// What can stop a training run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] io::Error),

    /// The collection or the judgements are not usable.
    #[error(transparent)]
    Data(#[from] retort_data::Error),

    /// The model is not usable, or the device failed.
    #[error(transparent)]
    Model(#[from] retort_model::Error),

    /// A setting is out of range, or settings contradict each other.
    #[error("{key}: {problem}")]
    Setting {
        /// The setting, as `section.key`.
        key: &'static str,
        /// What is wrong and what it may be.
        problem: String,
    },

    /// The loss or the gradient stopped being a number; the weights are those before this step.
    #[error(
        "step {step}: the {what} is {value}; nothing was updated. Lower optimizer.learning_rate, \
         or look at the queries of that step: {queries}"
    )]
    NotFinite {
        /// The step that would have been next.
        step: usize,
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The queries in the step's batch.
        queries: String,
    },

    /// The device has too little memory for the settings.
    #[error(
        "the device has too little memory: {said}. Lower schedule.queries_per_step, now \
         {queries_per_step}, and raise schedule.accumulate by as much, so that a step stays what it is; \
         then lower schedule.documents_per_query, data.max_tokens or schedule.tokens_per_pass"
    )]
    OutOfMemory {
        /// What the device said.
        said: String,
        /// The setting.
        queries_per_step: usize,
    },

    /// A run would go on with other settings or inputs than it was started with.
    #[error("{}", changed(folder, changes, *can_be_allowed))]
    Changed {
        /// The run's folder.
        folder: PathBuf,
        /// What differs, and may not.
        changes: Vec<Change>,
        /// Whether it may where the user says so: of a run, and not of a curve, whose students are to
        /// differ in nothing but their labels.
        can_be_allowed: bool,
    },

    /// Another process trains in a run's folder.
    #[error("{}: another process is training this run: wait for its end", folder.display())]
    Busy {
        /// The run's folder.
        folder: PathBuf,
    },

    /// A run's folder can't be gone on with.
    #[error("{}: {problem}", folder.display())]
    Run {
        /// The run's folder, or a file in it.
        folder: PathBuf,
        /// What is wrong and how to go on.
        problem: String,
    },
}

fn changed(folder: &Path, changes: &[Change], can_be_allowed: bool) -> String {
    let mut text = format!("{}: was started with something else", folder.display());
    for change in changes {
        let _ = write!(text, "\n  {change}");
    }
    if !can_be_allowed {
        return text + "\nput back what it was, or name a new folder";
    }
    text += "\nput back what it was, start a new run, or go on all the same:";
    for change in changes {
        let _ = write!(text, " --allow-change {}", change.key);
    }
    text
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
