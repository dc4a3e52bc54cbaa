//! What a ledger holds: questions and how they ended, requests and what they cost.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::json_array;
use crate::Result;
use crate::money::{Amount, Usage};
use crate::preflight::Preflight;
use crate::prompt::NONCE_DIGITS;
use crate::redact::Counts;

/// What identifies a judgement: SHA-256 over its recipe, sample number and texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub [u8; 32]);

impl Key {
    /// The key of a question about documents in an order, asked for the `sample`th time.
    pub fn new(recipe: &[u8; 32], sample: u32, query: &str, documents: &[&str]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"retort.judgement.v1");
        hasher.update(recipe);
        hasher.update(sample.to_le_bytes());
        for text in std::iter::once(&query).chain(documents) {
            // The lengths keep ("ab", "c") apart from ("a", "bc").
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        Self(hasher.finalize().into())
    }

    /// As 64 hexadecimal digits.
    pub(crate) fn hex(&self) -> String {
        retort_files::hex(&self.0)
    }

    /// The key's first digits, for a prompt to mark the bounds of the texts with.
    pub(crate) fn nonce(&self) -> String {
        retort_files::hex(&self.0[..NONCE_DIGITS / 2])
    }

    /// A number from 0 to 1 that differs from key to key and from turn to turn.
    pub(crate) fn jitter(&self, turn: u32) -> f64 {
        f64::from(self.0[turn as usize % self.0.len()]) / 255.0
    }
}

/// How a question ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// With a judgement.
    Ok,
    /// The teacher declined.
    Refused,
    /// A content filter stood in the way.
    Filtered,
    /// The texts are longer than the teacher reads.
    Truncated,
    /// Replies came, but none that could be read.
    Unparsable,
    /// No reply came, however often it was asked.
    Failed,
}

impl Outcome {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 6] = [
        Self::Ok,
        Self::Refused,
        Self::Filtered,
        Self::Truncated,
        Self::Unparsable,
        Self::Failed,
    ];

    /// Whether asking again might end otherwise: the network's fault, not the texts'.
    pub fn is_passing(self) -> bool {
        matches!(self, Self::Failed)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Filtered => "filtered",
            Self::Truncated => "truncated",
            Self::Unparsable => "unparsable",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Outcome {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|outcome| outcome.name() == name)
            .ok_or_else(|| format!("unknown outcome {name:?}"))
    }
}

/// One row of the ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What identifies it.
    pub key: Key,
    /// The query.
    pub query_id: String,
    /// The documents, in the order they were shown.
    pub document_ids: Vec<String>,
    /// Which of several questions about the same texts.
    pub sample: u32,
    /// For each document the digest of its text and the query's as the collection has them, a space
    /// between them.
    pub text: String,
    /// How it ended: an answer, or why there is none.
    pub ended: Result<Value, (Outcome, String)>,
    /// When, RFC 3339.
    pub at: String,
}

impl Entry {
    /// How it ended, as a word.
    pub fn outcome(&self) -> Outcome {
        match &self.ended {
            Ok(_) => Outcome::Ok,
            Err((outcome, _)) => *outcome,
        }
    }
}

/// What the ledger has under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// How the question ended.
    pub outcome: Outcome,
    pub(super) query_id: String,
    /// A JSON array.
    pub(super) document_ids: String,
    pub(super) text: String,
}

impl Found {
    /// Whether it was asked about this, and not about what is alike as far as a teacher sees it.
    pub fn is_of(&self, asked: &Alias) -> bool {
        self.query_id == asked.query_id
            && self.document_ids == json_array(&asked.document_ids)
            && self.text == asked.text
    }
}

/// What has the texts of a judgement, as far as a teacher sees them: another pair, or the same after
/// an edit of what redaction hides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The judgement's key.
    pub key: Key,
    /// The query.
    pub query_id: String,
    /// The documents, in the order they are shown.
    pub document_ids: Vec<String>,
    /// Digests of the texts, as an [`Entry`] has them.
    pub text: String,
}

/// Entries that came of one request, and its reply.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The recipe they were asked by.
    pub recipe: i64,
    /// The model, as the reply names it.
    pub model: Option<String>,
    /// The entries.
    pub entries: Vec<Entry>,
    /// The reply's body, if one came.
    pub reply: Option<String>,
    /// The server's name for the request.
    pub request_id: Option<String>,
}

/// One HTTP request.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// When, RFC 3339.
    pub at: String,
    /// Whom it went to: scheme, host and path.
    pub endpoint: String,
    /// The HTTP status, if a reply came.
    pub status: Option<u16>,
    /// What went wrong, if anything did.
    pub problem: Option<String>,
    /// How long it took.
    pub latency_ms: u64,
    /// Bytes of the body that was sent, or may have been.
    pub sent_bytes: u64,
    /// What was replaced in its texts before, by kind.
    pub redacted: Counts,
    /// What it used and cost.
    pub usage: Usage,
}

/// What the ledger's writer is told.
#[derive(Clone, Debug)]
pub enum Record {
    /// A request was sent.
    Attempt(Attempt),
    /// Questions ended.
    Batch(Batch),
    /// A preflight that no endpoint failed: the beginning of an epoch.
    Preflight {
        /// The recipe whose teacher was tried.
        recipe: i64,
        /// The model, as the replies name it; empty where they name none.
        model: String,
        /// What was found at each endpoint that answered.
        passed: Vec<Preflight>,
    },
    /// A request of a recipe was billed for so many times its worst case.
    Overbilled {
        /// The recipe.
        recipe: i64,
        /// As a multiple of the worst case.
        factor: f64,
    },
    /// What this run may have in flight from now on, before more is sent.
    AtRisk(Amount),
}

/// What all requests used and cost, those of killed runs at their worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Spent {
    /// Requests sent.
    pub requests: u64,
    /// Tokens in and out.
    pub tokens: u64,
    /// Millionths of the currency.
    pub micros: u64,
}

impl Spent {
    pub(crate) fn amount(self) -> Amount {
        Amount {
            micros: self.micros,
            tokens: self.tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_keeps_its_parts_apart() {
        let key = |query: &str, documents: &[&str]| Key::new(&[1; 32], 0, query, documents);
        assert_ne!(key("ab", &["c"]), key("a", &["bc"]));
        assert_ne!(key("a", &["b", "c"]), key("a", &["c", "b"]));
        assert_ne!(key("a", &["b"]), Key::new(&[2; 32], 0, "a", &["b"]));
        assert_ne!(key("a", &["b"]), Key::new(&[1; 32], 1, "a", &["b"]));
    }
}
