use std::io;
use std::path::PathBuf;

/// What can go wrong between a file or a teacher and a judgement.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] io::Error),

    /// One line of a file is not what it should be.
    #[error("{}:{line}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong and how to mend it.
        problem: String,
    },

    /// A file as a whole is not what it should be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and how to mend it.
        problem: String,
    },

    /// A setting is unknown, misspelt or out of range.
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

    /// Some pairs stayed unlabelled after every retry; what was labelled is kept.
    #[error(
        "{failed} of {asked} pairs stayed unlabelled (last: {last}); \
         what was labelled is kept: run the same command again to go on"
    )]
    Unlabelled {
        /// Pairs without a label.
        failed: usize,
        /// Pairs asked for in this run.
        asked: usize,
        /// The last failure seen.
        last: String,
    },

    /// The job was interrupted; what was labelled is kept.
    #[error("interrupted after {labelled} new labels: run the same command again to go on")]
    Interrupted {
        /// Labels written by this run.
        labelled: usize,
    },

    /// The search index failed.
    #[error("the BM25 index failed")]
    Index(#[from] tantivy::TantivyError),
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
