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

use super::{Dialect, Problem, Request, Texts, Tokens, shortened, tokens};
use crate::Result;

/// What a score is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// Any number; its sigmoid is a probability.
    Logit,
    /// From 0 to 1.
    Probability,
}

/// How a server is asked for scores and where it puts them.
#[derive(Debug)]
pub(crate) struct Format {
    /// Below the endpoint.
    path: &'static str,
    /// Whether it wants the model's name.
    names_model: bool,
    query: &'static str,
    documents: &'static str,
    /// The field that asks for all scores, where only the best come otherwise.
    count: Option<&'static str>,
    /// What it is asked for besides: logits, no documents sent back, and an error instead of a
    /// score where it would cut what is too long.
    fixed: &'static [(&'static str, bool)],
    /// The reply's field with the scores, if it is not the whole reply.
    list: Option<&'static str>,
    score: &'static str,
    /// What its scores are, if it does as it is asked.
    pub(crate) scale: Scale,
}

/// Text Embeddings Inference.
pub(crate) const TEI: Format = Format {
    names_model: false,
    documents: "texts",
    count: None,
    fixed: &[("raw_scores", true), ("truncate", false)],
    list: None,
    score: "score",
    scale: Scale::Logit,
    ..COHERE
};
/// Cohere, and LiteLLM in its name.
pub(crate) const COHERE: Format = Format {
    path: "rerank",
    names_model: true,
    query: "query",
    documents: "documents",
    count: Some("top_n"),
    fixed: &[],
    list: Some("results"),
    score: "relevance_score",
    scale: Scale::Probability,
};
/// Jina.
pub(crate) const JINA: Format = Format {
    fixed: &[("return_documents", false)],
    ..COHERE
};
/// Voyage.
pub(crate) const VOYAGE: Format = Format {
    count: Some("top_k"),
    fixed: &[("truncation", false)],
    list: Some("data"),
    ..COHERE
};
/// vLLM's `/rerank`.
pub(crate) const VLLM_RERANK: Format = Format {
    fixed: &[("use_activation", false)],
    scale: Scale::Logit,
    ..COHERE
};
/// vLLM's `/score`.
pub(crate) const VLLM_SCORE: Format = Format {
    path: "score",
    query: "queries",
    count: None,
    fixed: &[("use_activation", false)],
    list: Some("data"),
    score: "score",
    scale: Scale::Logit,
    ..COHERE
};
/// llama.cpp with `--embedding --pooling rank`.
pub(crate) const LLAMA_RERANK: Format = Format {
    scale: Scale::Logit,
    ..COHERE
};

/// Tokens that a cross-encoder puts around its two texts.
const TOKENS_AROUND_A_PAIR: u64 = 8;

/// A reranker.
pub(crate) struct Rerank {
    pub(crate) format: &'static Format,
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
        let format = self.format;
        let mut body = json!({format.query: query, format.documents: documents});
        if format.names_model {
            body["model"] = self.model.as_str().into();
        }
        if let Some(count) = format.count {
            body[count] = documents.len().into();
        }
        for (name, value) in format.fixed {
            body[name] = (*value).into();
        }
        let most_read = documents
            .iter()
            .map(|document| (query.len() + document.len()) as u64 + TOKENS_AROUND_A_PAIR)
            .sum();
        Ok(Request::new(format.path, body, &self.extra, (most_read, 0)))
    }

    fn read(&self, reply: &Value, questions: &[&Texts]) -> Result<Vec<Value>, Problem> {
        let Format { list, score, .. } = self.format;
        let scores = scores(reply, *list, score, self.scale, questions.len())?;
        Ok((scores.into_iter())
            .map(|score| json!({"score": score}))
            .collect())
    }

    fn usage(&self, reply: &Value) -> Option<Tokens> {
        let usage = &reply["usage"];
        let read = tokens(&usage["total_tokens"]).or_else(|| tokens(&usage["prompt_tokens"]))?;
        Some((read, 0, 0))
    }
}

/// The scores of so many documents: the reply, or its field `list`, has each index once, with a
/// score in the field `score_of`.
pub(crate) fn scores(
    reply: &Value,
    list: Option<&str>,
    score_of: &str,
    scale: Scale,
    documents: usize,
) -> Result<Vec<f64>, Problem> {
    let list = list.map_or(reply, |field| &reply[field]);
    let list = list.as_array().ok_or_else(|| {
        let shown = shortened(&reply.to_string());
        Problem::Unreadable(format!("the reply has no scores: {shown}"))
    })?;
    let mut scores = vec![None; documents];
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
                    documents - 1
                ))
            })?;
        let score = one[score_of].as_f64().filter(|score| score.is_finite());
        let score = score.ok_or_else(|| {
            let shown = &one[score_of];
            Problem::Unreadable(format!("{score_of} is {shown}, expected a number"))
        })?;
        if scale == Scale::Probability && !(0.0..=1.0).contains(&score) {
            return Err(Problem::Unreadable(format!(
                "{score_of} is {score}, expected one from 0 to 1; `scale = \"logit\"` is for a \
                 server that gives logits"
            )));
        }
        if place.replace(score).is_some() {
            let shown = &one["index"];
            return Err(Problem::Unreadable(format!(
                "the index {shown} comes twice"
            )));
        }
    }
    (scores.into_iter().enumerate())
        .map(|(index, score)| {
            score.ok_or_else(|| Problem::Unreadable(format!("the index {index} is missing")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rerank(format: &'static Format) -> Rerank {
        Rerank {
            format,
            model: "m".into(),
            scale: format.scale,
            documents_per_request: 3,
            extra: Map::new(),
        }
    }

    fn read(format: &'static Format, reply: &Value) -> Result<Vec<Value>, Problem> {
        let texts = Texts {
            query: "q".into(),
            documents: vec!["d".into()],
            nonce: "0".into(),
        };
        rerank(format).read(reply, &[&texts; 3])
    }

    #[test]
    fn scores_are_matched_by_index() {
        let sorted = json!([{"index": 2, "score": 3.0}, {"index": 0, "score": 1.0}, {"index": 1, "score": -2.0}]);
        let in_order = [
            json!({"score": 1.0}),
            json!({"score": -2.0}),
            json!({"score": 3.0}),
        ];
        assert_eq!(read(&TEI, &sorted).unwrap(), in_order);
        let of_vllm = json!({"data": sorted});
        assert_eq!(read(&VLLM_SCORE, &of_vllm).unwrap(), in_order);
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
            let problem = read(&COHERE, &reply).unwrap_err();
            assert!(
                problem.to_string().contains(expected),
                "{problem} lacks {expected}"
            );
        }
        assert!(read(&JINA, &json!({"error": "x"})).is_err());
    }
}
