//! The worked examples of a prompt.

use serde::{Deserialize, Serialize};

use super::Kind;
use crate::dialect::ranking;
use crate::dialect::rationale::Rationale;

/// A question with the answer it should get. It shows documents under the names that the
/// template has for them.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Example {
    pub(super) query: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    document: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    document_a: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    document_b: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    documents: Vec<String>,
    pub(super) answer: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rationale: Option<String>,
}

impl Example {
    /// What it shows.
    pub(super) fn shown(&self) -> Vec<&str> {
        let named = [&self.document, &self.document_a, &self.document_b];
        let named = named.into_iter().flatten();
        named.chain(&self.documents).map(String::as_str).collect()
    }

    /// What the teacher should answer.
    pub(super) fn reply(&self, rationale: Option<Rationale>) -> String {
        match (rationale, &self.rationale) {
            (Some(rationale), Some(reasons)) => rationale.shown(&self.answer, reasons.trim()),
            _ => self.answer.clone(),
        }
    }

    /// Why it is no example of a prompt, if it is none.
    pub(super) fn problem(
        &self,
        kind: Kind,
        answers: &[String],
        asks_why: Option<Rationale>,
    ) -> Option<String> {
        let Self {
            query,
            document,
            document_a,
            document_b,
            documents,
            answer,
            rationale,
        } = self;
        let fits = match kind {
            Kind::Graded => document.is_some() && self.shown().len() == 1,
            Kind::Pairwise => {
                document_a.is_some() && document_b.is_some() && self.shown().len() == 2
            }
            Kind::Listwise => documents.len() > 1 && self.shown().len() == documents.len(),
        };
        if !fits {
            let variables = kind.variables().join("` and `");
            return Some(format!(
                "the example for {query:?} must have `{variables}` alone"
            ));
        }
        let says_why = rationale.as_ref().map(|reasons| !reasons.trim().is_empty());
        if says_why != asks_why.map(|_| true) {
            return Some(match asks_why {
                Some(_) => format!(
                    "the example for {query:?} needs a `rationale`: without one it shows the \
                     teacher to give none"
                ),
                None => format!(
                    "the example for {query:?} has a `rationale`, and the prompt asks for none: \
                     `rationale = \"before\"` or \"after\" above the examples"
                ),
            });
        }
        if kind != Kind::Listwise {
            return (!answers.contains(answer)).then(|| {
                format!(
                    "the example for {query:?} answers {answer:?}, which `answers` does not have"
                )
            });
        }
        match ranking::read(answer, documents.len()) {
            Ok(read) if read.placed == documents.len() => None,
            _ => Some(format!(
                "the example for {query:?} answers {answer:?}, expected [2] > [1] and so on"
            )),
        }
    }
}
