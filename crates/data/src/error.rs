use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with a collection, a label set or what is made of them.
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

    /// The search index failed.
    #[error("the BM25 index failed")]
    Index(#[from] tantivy::TantivyError),
}

impl Error {
    /// [`Error::Row`].
    pub(crate) fn row(path: &Path, line: usize, problem: String) -> Self {
        Self::Row {
            path: path.to_owned(),
            line,
            problem,
        }
    }
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
