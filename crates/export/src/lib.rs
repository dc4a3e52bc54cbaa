//! Serving directories: a plain Hugging Face folder that sentence-transformers,
//! text-embeddings-inference and vLLM load as it is, and the reference scorer that says what they
//! should answer.

mod directory;
mod error;
mod scorer;

pub use directory::{Source, export};
pub use error::{Error, Result};
pub use scorer::{Score, Scorer};
