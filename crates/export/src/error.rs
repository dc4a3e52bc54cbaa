use std::io;
use std::path::PathBuf;

/// Why a serving directory could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] io::Error),

    /// The model in the directory is not usable, or the device failed.
    #[error(transparent)]
    Model(#[from] retort_model::Error),

    /// A file of the directory is not what servers expect.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and how to mend it.
        problem: String,
    },
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
