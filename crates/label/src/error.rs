use std::io;
use std::path::{Path, PathBuf};

use crate::ledger::Outcome;

/// What can go wrong between a question and a label set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] io::Error),

    /// The collection or the candidates.
    #[error(transparent)]
    Data(#[from] retort_data::Error),

    /// A file is not what it should be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and how to mend it.
        problem: String,
    },

    /// The ledger could not be read or written.
    #[error("{}: the ledger failed", path.display())]
    Ledger {
        /// The ledger.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },

    /// Another process writes the ledger.
    #[error("{}: another process ({by}) writes it: wait for it, or name another ledger", path.display())]
    Locked {
        /// The ledger.
        path: PathBuf,
        /// The other's process id.
        by: String,
    },

    /// Two ledgers have two answers to one question.
    #[error(
        "{}: {count} of its answers are not those of {}, the first on {query} {documents}: the \
         same was asked twice; nothing of this ledger was merged: leave one of the two out",
        path.display(),
        into.display()
    )]
    Conflict {
        /// The ledger that was to be merged.
        path: PathBuf,
        /// The ledger it was to be merged into.
        into: PathBuf,
        /// The query of the first such question.
        query: String,
        /// Its documents, as a JSON array.
        documents: String,
        /// Questions with two answers.
        count: u64,
    },

    /// A setting is missing, unknown or out of range.
    #[error("{0}")]
    Setting(String),

    /// The teacher refused the key.
    #[error("the teacher at {url} refused the request ({status}): {reply}")]
    Authentication {
        /// The endpoint.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What it answered, shortened.
        reply: String,
    },

    /// The teacher can't serve this job at all: wrong model, wrong request, no quota.
    #[error("the teacher at {url} can't do this job: {problem}")]
    Teacher {
        /// The endpoint.
        url: String,
        /// What it answered, and what to change.
        problem: String,
    },

    /// An endpoint did in the preflight what it must not do with a question.
    #[error(
        "the teacher at {url} failed the preflight: {problem}; {hint}; `preflight = false` asks it \
         all the same"
    )]
    Preflight {
        /// The endpoint.
        url: String,
        /// What was seen.
        problem: String,
        /// What to look at.
        hint: &'static str,
    },

    /// The teacher went away, or asked for a pause that is too long to wait for.
    #[error(
        "the teacher is gone: {problem}; what was labelled is kept: run the same command again to go on"
    )]
    Gone {
        /// What was seen last.
        problem: String,
    },

    /// The next request could pass the budget.
    #[error("the budget is used up: {spent}; what was labelled is kept: raise [budget] to go on")]
    Budget {
        /// What was spent, in words.
        spent: String,
    },

    /// Batches have not come back.
    #[error(
        "{questions} questions are with the teacher in batches: run `retort label --batch` again \
         to take in what has ended, or with --wait to wait for it"
    )]
    Pending {
        /// Questions in them.
        questions: usize,
    },

    /// Some questions got no judgement; the ledger says why for each.
    #[error(
        "{failed} of {asked} questions got no judgement (the last: {outcome}, {problem}); {hint}"
    )]
    Unlabelled {
        /// Questions without a judgement.
        failed: usize,
        /// Questions asked in this run.
        asked: usize,
        /// How the last one ended.
        outcome: Outcome,
        /// Why.
        problem: String,
        /// Whether asking again may help, in words.
        hint: &'static str,
        /// Whether some of them may end otherwise when asked again.
        passing: bool,
    },

    /// Labels or a teacher are worth less than the settings ask for.
    #[error("not good enough: {crossed}")]
    NotGoodEnough {
        /// The thresholds that are crossed, and by what.
        crossed: String,
    },

    /// The job was told to stop.
    #[error(
        "stopped by {signal} after {labelled} new judgements: run the same command again to go on"
    )]
    Interrupted {
        /// The signal's name.
        signal: &'static str,
        /// Judgements this run brought.
        labelled: usize,
    },
}

impl Error {
    /// Says which setting named the file that can't be read.
    pub(crate) fn of_setting(self, name: &str) -> Self {
        match self {
            Self::Io(error) | Self::Data(retort_data::Error::Io(error)) => {
                let problem = format!("{name}: {error}");
                Self::Io(io::Error::new(error.kind(), problem))
            }
            error => error,
        }
    }

    pub(crate) fn ledger(path: &Path, source: rusqlite::Error) -> Self {
        Self::Ledger {
            path: path.to_owned(),
            source,
        }
    }
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
