//! Redaction: what leads to a person or opens a door is replaced before a text is hashed or sent.
//!
//! ```text
//! text ─command→ text ─treatment→ text ─finders→ "write to <EMAIL_1> or <EMAIL_2>" ─→ key, request
//! ```
//!
//! Texts are treated first ([`crate::treatment`]): a character that nobody sees would hide an address
//! from a finder, and not from the teacher. Placeholders are numbered over the texts of a question,
//! the query's first: the same address has the same number in all of them, so that a teacher still
//! sees that they match. Redacting twice changes nothing.

mod command;
mod digits;
mod find;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::apart::Kill;
use crate::job::LabelSettings;
use crate::treatment::treated;
use crate::{Error, Result};

/// Of what the finders find: raise it when that changes, for redacted texts are part of keys.
const VERSION: u32 = 2;

/// How often the finders look at what is left between finds, at most: a number may stand free only
/// once its neighbour is gone. Texts take two or three looks.
const MOST_LOOKS: usize = 20;

/// What is replaced before a text is sent (`[redaction]`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RedactionSettings {
    /// What to look for.
    #[serde(default)]
    pub kinds: BTreeSet<Sensitive>,
    /// A program with its arguments that all texts go through first. It reads `{"text": …}` lines
    /// and answers each with such a line; whatever else it does ends the job.
    #[serde(default)]
    pub command: Option<Vec<String>>,
}

/// What is looked for, in this order: a later finder does not see what an earlier one found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sensitive {
    /// API keys and tokens of well-known shapes, JSON web tokens, private keys.
    Key,
    /// Mail addresses.
    Email,
    /// International bank account numbers that pass their check.
    Iban,
    /// Numbers of payment cards that pass their check.
    Card,
    /// IPv4 and IPv6 addresses.
    Ip,
    /// Telephone numbers that look like nothing else.
    Phone,
}

impl Sensitive {
    fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Email => "email",
            Self::Iban => "iban",
            Self::Card => "card",
            Self::Ip => "ip",
            Self::Phone => "phone",
        }
    }
}

/// How often something was replaced, by kind; under `command`, texts that the command changed.
pub type Counts = BTreeMap<&'static str, u64>;

/// The texts of a question as they may be hashed and sent.
pub(crate) struct Shown {
    pub(crate) query: String,
    pub(crate) documents: Vec<String>,
    /// What was replaced in the query, and in the documents.
    pub(crate) counts: [Counts; 2],
}

/// Replaces what must not be sent; without settings, nothing.
#[derive(Debug, Default)]
pub(crate) struct Redactor {
    settings: Option<RedactionSettings>,
    /// What the command made of each text, by its digest.
    filtered: HashMap<[u8; 32], String>,
}

impl RedactionSettings {
    /// What of it determines a judgement. A command's arguments are nobody's business: their
    /// digest tells commands apart.
    pub(crate) fn recipe(&self) -> Value {
        let mut recipe = json!({"version": VERSION, "kinds": self.kinds});
        if let Some(command) = &self.command {
            let digest = retort_files::sha256(json!(command).to_string().as_bytes());
            recipe["command"] = format!("sha256:{digest}").into();
        }
        recipe
    }

    /// What is wrong with it, if anything is.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        match &self.command {
            Some(command) if command.is_empty() => Some("command is empty"),
            None if self.kinds.is_empty() => Some("name at least one of `kinds`, or a `command`"),
            _ => None,
        }
    }
}

impl Redactor {
    /// Prepares for a job's texts, which go through its command, if there is one, all at once. The
    /// variable with the teacher's key is not in its environment. `kill` ends it.
    ///
    /// # Errors
    /// A command that does not answer each text with a text, and end well.
    pub(crate) fn new(
        settings: &LabelSettings,
        kill: &Kill,
        texts: impl FnOnce() -> Result<BTreeSet<String>>,
    ) -> Result<Self> {
        let hidden = settings.teacher.api_key.env.as_deref();
        match &settings.redaction {
            Some(redaction) => Self::of(redaction, hidden, kill, texts),
            None => Ok(Self::default()),
        }
    }

    fn of(
        settings: &RedactionSettings,
        hidden: Option<&str>,
        kill: &Kill,
        texts: impl FnOnce() -> Result<BTreeSet<String>>,
    ) -> Result<Self> {
        let mut filtered = HashMap::new();
        if let Some(command) = &settings.command {
            let texts = Arc::new(texts()?);
            let answers = command::filter(command, hidden, &texts, kill).map_err(|problem| {
                Error::Setting(format!("[redaction] command: {problem}; nothing was sent"))
            })?;
            filtered = texts.iter().map(|text| digest(text)).zip(answers).collect();
        }
        Ok(Self {
            settings: Some(settings.clone()),
            filtered,
        })
    }

    /// The texts of a question, as they may be hashed and sent.
    ///
    /// # Errors
    /// A text that the redactor was not prepared for.
    pub(crate) fn redact(&self, query: &str, documents: &[String]) -> Result<Shown> {
        let mut counts = [Counts::new(), Counts::new()];
        let Some(settings) = &self.settings else {
            return Ok(Shown {
                query: query.to_owned(),
                documents: documents.to_vec(),
                counts,
            });
        };
        let mut texts = Vec::with_capacity(1 + documents.len());
        for (place, text) in std::iter::once(query)
            .chain(documents.iter().map(String::as_str))
            .enumerate()
        {
            let filtered = self.filtered(settings, text)?;
            if filtered != text {
                *counts[place.min(1)].entry("command").or_insert(0) += 1;
            }
            texts.push(treated(filtered));
        }
        let mut numbers = Numbers::beside(&texts);
        let mut shown = texts.iter().enumerate().map(|(place, text)| {
            let mut shown = String::with_capacity(text.len());
            for part in parted(text, &settings.kinds) {
                match part.kind {
                    None => shown += part.text,
                    Some(kind) => {
                        shown += numbers.placeholder(kind, part.text);
                        *counts[place.min(1)].entry(kind.name()).or_insert(0) += 1;
                    }
                }
            }
            shown
        });
        let query = shown.next().unwrap_or_default();
        let documents = shown.collect();
        Ok(Shown {
            query,
            documents,
            counts,
        })
    }

    /// What the command made of a text.
    fn filtered<'a>(&'a self, settings: &RedactionSettings, text: &'a str) -> Result<&'a str> {
        if settings.command.is_none() {
            return Ok(text);
        }
        // It would go out unfiltered.
        let unknown = || Error::Setting("[redaction] command: it did not see a text".into());
        let filtered = self.filtered.get(&digest(text));
        filtered.map(String::as_str).ok_or_else(unknown)
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

/// Placeholders that were given out.
struct Numbers {
    placeholders: HashMap<(Sensitive, String), String>,
    last: HashMap<Sensitive, usize>,
    /// What looks like one in the texts themselves.
    taken: HashSet<String>,
}

impl Numbers {
    fn beside(texts: &[String]) -> Self {
        let all = texts.iter().flat_map(|text| text.split('<').skip(1));
        let looks = all.filter_map(|after| Some(after.split_once('>')?.0));
        Self {
            placeholders: HashMap::new(),
            last: HashMap::new(),
            taken: looks.map(|inside| format!("<{inside}>")).collect(),
        }
    }

    /// What stands for a value: the same for the same, and none that a text has of its own.
    fn placeholder(&mut self, kind: Sensitive, value: &str) -> &str {
        let last = self.last.entry(kind).or_insert(0);
        let taken = &self.taken;
        let fresh = || {
            loop {
                *last += 1;
                let placeholder = format!("<{}_{last}>", kind.name().to_uppercase());
                if !taken.contains(&placeholder) {
                    return placeholder;
                }
            }
        };
        let value = (kind, canonical(kind, value));
        self.placeholders.entry(value).or_insert_with(fresh)
    }
}

/// A value without what may differ from one writing of it to the next.
fn canonical(kind: Sensitive, value: &str) -> String {
    match kind {
        Sensitive::Key => value.to_owned(),
        Sensitive::Email => value.to_lowercase(),
        Sensitive::Iban | Sensitive::Card | Sensitive::Phone => value
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .map(|c| c.to_ascii_uppercase())
            .collect(),
        Sensitive::Ip => value
            .parse::<IpAddr>()
            .map_or_else(|_| value.to_owned(), |address| address.to_string()),
    }
}

/// A piece of a text, and what it is if it is to be replaced.
#[derive(Clone, Copy)]
struct Part<'a> {
    kind: Option<Sensitive>,
    text: &'a str,
}

/// A text in parts. What is left is looked at again until nothing more is found in it.
fn parted<'a>(text: &'a str, kinds: &BTreeSet<Sensitive>) -> Vec<Part<'a>> {
    let mut parts = vec![Part { kind: None, text }];
    for _ in 0..MOST_LOOKS {
        let before = parts.len();
        for kind in kinds {
            let split = |part: Part<'a>| match part.kind {
                None => split(part.text, *kind),
                Some(_) => vec![part],
            };
            parts = parts.into_iter().flat_map(split).collect();
        }
        if parts.len() == before {
            break;
        }
    }
    parts
}

fn split(text: &str, kind: Sensitive) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut from = 0;
    let mut push = |kind, text| parts.push(Part { kind, text });
    for span in find::find(kind, text) {
        push(None, &text[from..span.start]);
        push(Some(kind), &text[span.clone()]);
        from = span.end;
    }
    push(None, &text[from..]);
    parts.retain(|part| !part.text.is_empty());
    parts
}
