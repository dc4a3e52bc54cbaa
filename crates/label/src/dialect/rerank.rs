//! Rerankers as teachers: one request scores many documents of a query.
//!
//! | server | request | scores | order |
//! |---|---|---|---|
//! | TEI `/rerank` | `query`, `texts` | `[{index, score}]`, logits as asked for | sorted |
//! | Cohere `/v2/rerank` | `query`, `documents` | `results[{index, relevance_score}]`, 0 to 1 | sorted |
//! | Jina `/v1/rerank`; vLLM's as well | the same | the same, 0 to 1; vLLM logits as asked for | sorted |
//! | Voyage `/v1/rerank` | the same | `data[{index, relevance_score}]`, 0 to 1 | sorted |
//! | vLLM `/score` | `queries`, `documents` | `data[{index, score}]`, logits as asked for | as sent |
//! | llama.cpp `/v1/rerank` | as Jina's | `results[{index, relevance_score}]`, logits | as sent |
//!
//! Scores are matched by index, never by place, and a reply counts only if it has each index once.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Dialect, Problem, Request, Texts, Tokens, shortened};
use crate::Result;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Server {
    /// Text Embeddings Inference.
    Tei,
    /// Cohere, and LiteLLM in its name.
    Cohere,
    /// Jina.
    Jina,
    /// vLLM's `/rerank`.
    VllmRerank,
    /// vLLM's `/score`.
    VllmScore,
    /// Voyage.
    Voyage,
    /// llama.cpp with `--embedding --pooling rank`.
    LlamaRerank,
}

/// What a score is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// Any number; its sigmoid is a probability.
    Logit,
    /// From 0 to 1.
    Probability,
}

impl Server {
    /// What its scores are, if it does as it is asked.
    pub(crate) fn scale(self) -> Scale {
        match self {
            Self::Tei | Self::VllmRerank | Self::VllmScore | Self::LlamaRerank => Scale::Logit,
            Self::Cohere | Self::Jina | Self::Voyage => Scale::Probability,
        }
    }

    /// Below the endpoint.
    fn path(self) -> &'static str {
        match self {
            Self::VllmScore => "score",
            _ => "rerank",
        }
    }
}

/// Tokens that a cross-encoder puts around its two texts.
const TOKENS_AROUND_A_PAIR: u64 = 8;

/// A reranker.
pub(crate) struct Rerank {
    pub(crate) server: Server,
    pub(crate) model: String,
    pub(crate) scale: Scale,
    /// Documents in one request.
    pub(crate) documents_per_request: usize,
    /// Further fields of the request.
    pub(crate) extra: Map<String, Value>,
}

impl Dialect for Rerank {
    fn questions_per_request(&self) -> usize {
        self.documents_per_request
    }

    fn request(&self, questions: &[&Texts]) -> Result<Request> {
        let query = &questions[0].query;
        let documents: Vec<&String> = questions.iter().flat_map(|one| &one.documents).collect();
        let (model, count) = (&self.model, documents.len());
        let mut body = match self.server {
            // A server that cuts what is too long would judge another text.
            Server::Tei => json!({
                "query": query, "texts": documents, "raw_scores": true, "truncate": false,
            }),
            Server::Cohere | Server::LlamaRerank => json!({
                "model": model, "query": query, "documents": documents, "top_n": count,
            }),
            Server::Jina => json!({
                "model": model, "query": query, "documents": documents, "top_n": count,
                "return_documents": false,
            }),
            Server::VllmRerank => json!({
                "model": model, "query": query, "documents": documents, "top_n": count,
                "use_activation": false,
            }),
            Server::VllmScore => json!({
                "model": model, "queries": query, "documents": documents,
                "use_activation": false,
            }),
            Server::Voyage => json!({
                "model": model, "query": query, "documents": documents, "top_k": count,
                "truncation": false,
            }),
        };
        for (name, value) in &self.extra {
            body[name] = value.clone();
        }
        let most_read = documents
            .iter()
            .map(|document| (query.len() + document.len()) as u64 + TOKENS_AROUND_A_PAIR)
            .sum();
        Ok(Request {
            path: self.server.path(),
            body,
            most_tokens: (most_read, 0),
        })
    }

    fn read(&self, reply: &Value, questions: usize) -> Result<Vec<Value>, Problem> {
        let (list, score_of) = match self.server {
            Server::Tei => (reply, "score"),
            Server::VllmScore => (&reply["data"], "score"),
            Server::Voyage => (&reply["data"], "relevance_score"),
            _ => (&reply["results"], "relevance_score"),
        };
        let list = list.as_array().ok_or_else(|| {
            let shown = shortened(&reply.to_string());
            Problem::Unreadable(format!("the reply has no scores: {shown}"))
        })?;
        let mut scores = vec![None; questions];
        for one in list {
            let index = one["index"]
                .as_u64()
                .and_then(|index| usize::try_from(index).ok());
            let place = index
                .and_then(|index| scores.get_mut(index))
                .ok_or_else(|| {
                    let shown = &one["index"];
                    Problem::Unreadable(format!(
                        "the index {shown} is none of 0 to {}",
                        questions - 1
                    ))
                })?;
            let score = one[score_of].as_f64().filter(|score| score.is_finite());
            let score = score.ok_or_else(|| {
                let shown = &one[score_of];
                Problem::Unreadable(format!("{score_of} is {shown}, expected a number"))
            })?;
            if self.scale == Scale::Probability && !(0.0..=1.0).contains(&score) {
                return Err(Problem::Unreadable(format!(
                    "{score_of} is {score}, expected one from 0 to 1; `scale = \"logit\"` is for \
                     a server that gives logits"
                )));
            }
            if place.replace(score).is_some() {
                let shown = &one["index"];
                return Err(Problem::Unreadable(format!(
                    "the index {shown} comes twice"
                )));
            }
        }
        scores
            .into_iter()
            .enumerate()
            .map(|(index, score)| match score {
                Some(score) => Ok(json!({"score": score})),
                None => Err(Problem::Unreadable(format!("the index {index} is missing"))),
            })
            .collect()
    }

    fn usage(&self, reply: &Value) -> Option<Tokens> {
        let usage = &reply["usage"];
        let tokens = usage["total_tokens"].as_u64();
        let tokens = tokens.or_else(|| usage["prompt_tokens"].as_u64())?;
        Some((tokens, 0, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rerank(server: Server) -> Rerank {
        Rerank {
            server,
            model: "m".into(),
            scale: server.scale(),
            documents_per_request: 3,
            extra: Map::new(),
        }
    }

    #[test]
    fn scores_are_matched_by_index() {
        let sorted = json!([{"index": 2, "score": 3.0}, {"index": 0, "score": 1.0}, {"index": 1, "score": -2.0}]);
        let in_order = [
            json!({"score": 1.0}),
            json!({"score": -2.0}),
            json!({"score": 3.0}),
        ];
        assert_eq!(rerank(Server::Tei).read(&sorted, 3).unwrap(), in_order);
        let of_vllm = json!({"data": sorted});
        assert_eq!(
            rerank(Server::VllmScore).read(&of_vllm, 3).unwrap(),
            in_order
        );
    }

    #[test]
    fn a_reply_that_is_no_permutation_is_no_answer() {
        let one = |index: i64, score: f64| json!({"index": index, "relevance_score": score});
        let cases = [
            (vec![one(0, 0.5), one(1, 0.5)], "the index 2 is missing"),
            (vec![one(0, 0.5), one(1, 0.5), one(1, 0.4)], "comes twice"),
            (
                vec![one(0, 0.5), one(1, 0.5), one(3, 0.4)],
                "none of 0 to 2",
            ),
            (vec![one(-1, 0.5)], "none of 0 to 2"),
            (vec![one(0, f64::NAN)], "expected a number"),
            (vec![one(0, 3.5)], "from 0 to 1"),
        ];
        for (results, expected) in cases {
            let reply = json!({"results": results});
            let problem = rerank(Server::Cohere).read(&reply, 3).unwrap_err();
            assert!(
                problem.to_string().contains(expected),
                "{problem} lacks {expected}"
            );
        }
        assert!(
            rerank(Server::Jina)
                .read(&json!({"error": "x"}), 3)
                .is_err()
        );
    }
}
