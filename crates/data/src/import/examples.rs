//! Training files: a query with its positive and negative passages a line, as the trainers of
//! retrievers have them.

use std::collections::HashMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::columns::id_of;
use super::rows::Fields;
use crate::collection::{Document, Query};

/// Whose training files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `{"query", "pos": […], "neg": […], "pos_scores": […], "neg_scores": […]}`, scores optional.
    /// Texts have no ids: their digests become ids.
    FlagEmbedding,
    /// `{"query_id", "query", "positive_passages": [{"docid", "title", "text"}],
    /// "negative_passages": […]}`.
    Tevatron,
}

/// A query with passages.
#[derive(Debug, PartialEq)]
pub(super) struct Example {
    pub(super) query: Query,
    pub(super) passages: Vec<Passage>,
}

/// A passage of an example.
#[derive(Debug, PartialEq)]
pub(super) struct Passage {
    pub(super) document: Document,
    pub(super) is_positive: bool,
    pub(super) score: Option<f64>,
}

impl Shape {
    /// A row as an example, or what is wrong with it.
    pub(super) fn example(self, fields: Fields) -> Result<Example, String> {
        let row = Value::Object(fields);
        let example = match self {
            Self::FlagEmbedding => serde_json::from_value(row)
                .map_err(|error| format!("{error}; expected {{\"query\", \"pos\", \"neg\"}}"))
                .and_then(of_flag_embedding)?,
            Self::Tevatron => serde_json::from_value(row)
                .map(of_tevatron)
                .map_err(|error| {
                    format!(
                        "{error}; expected {{\"query_id\", \"query\", \"positive_passages\", \
                     \"negative_passages\"}}"
                    )
                })?,
        };
        let mut seen: HashMap<&str, &Passage> = HashMap::new();
        for passage in &example.passages {
            let Some(before) = seen.insert(&passage.document.id, passage) else {
                continue;
            };
            let text = shortened(&passage.document.text);
            if before.document != passage.document {
                let id = &passage.document.id;
                return Err(format!(
                    "the passage {id:?} has two texts, of which one begins {text:?}: keep one"
                ));
            }
            if before.is_positive != passage.is_positive {
                return Err(format!(
                    "a passage is both positive and negative: drop it from one list; it begins \
                     {text:?}"
                ));
            }
        }
        Ok(example)
    }
}

#[derive(Deserialize)]
struct FlagEmbedding {
    query: String,
    pos: Vec<String>,
    #[serde(default)]
    neg: Vec<String>,
    pos_scores: Option<Vec<Option<f64>>>,
    neg_scores: Option<Vec<Option<f64>>>,
}

fn of_flag_embedding(row: FlagEmbedding) -> Result<Example, String> {
    let mut passages = Vec::new();
    for (name, is_positive, texts, scores) in [
        ("pos", true, row.pos, row.pos_scores),
        ("neg", false, row.neg, row.neg_scores),
    ] {
        let scores = scores.unwrap_or_else(|| vec![None; texts.len()]);
        if scores.len() != texts.len() {
            return Err(format!(
                "`{name}` has {} texts and `{name}_scores` {} scores: give each text its score, or \
                 none",
                texts.len(),
                scores.len()
            ));
        }
        passages.extend(texts.into_iter().zip(scores).map(|(text, score)| Passage {
            document: Document {
                id: digest(&text),
                title: String::new(),
                text,
            },
            is_positive,
            score,
        }));
    }
    let query = Query {
        id: digest(&row.query),
        text: row.query,
    };
    Ok(Example { query, passages })
}

/// The beginning of a text, for a message.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// An id for a text without one.
fn digest(text: &str) -> String {
    retort_files::sha256(text.as_bytes())[..16].to_owned()
}

#[derive(Deserialize)]
struct Tevatron {
    #[serde(deserialize_with = "string_or_number")]
    query_id: String,
    query: String,
    positive_passages: Vec<TevatronPassage>,
    #[serde(default)]
    negative_passages: Vec<TevatronPassage>,
}

#[derive(Deserialize)]
struct TevatronPassage {
    #[serde(deserialize_with = "string_or_number")]
    docid: String,
    title: Option<String>,
    text: String,
}

fn of_tevatron(row: Tevatron) -> Example {
    let passages = |passages: Vec<TevatronPassage>, is_positive| {
        passages.into_iter().map(move |passage| Passage {
            document: Document {
                id: passage.docid,
                title: passage.title.unwrap_or_default(),
                text: passage.text,
            },
            is_positive,
            score: None,
        })
    };
    let positive = passages(row.positive_passages, true);
    let negative = passages(row.negative_passages, false);
    Example {
        query: Query {
            id: row.query_id,
            text: row.query,
        },
        passages: positive.chain(negative).collect(),
    }
}

fn string_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    id_of(&Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}
