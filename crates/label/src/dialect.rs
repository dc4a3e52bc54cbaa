//! How teachers are asked and how their replies are read: one module a wire format.
//!
//! A dialect turns questions into a request and a reply into answers, or says what is wrong with
//! it. It sends nothing and waits for nothing. A reply with status 200 is not taken at its word:
//! what does not hold exactly what was asked for is no answer.

pub(crate) mod anthropic;
pub(crate) mod chat;
pub(crate) mod generative;
pub(crate) mod ranking;
pub(crate) mod rationale;
pub(crate) mod rerank;

use std::fmt;

use serde_json::{Map, Value, json};

use crate::ledger::Outcome;
use crate::preflight::script::Known;
use crate::prompt::{Kind, Message, Prompt};
use crate::{Error, Result};

/// Tokens that a chat template may put around a message.
const TOKENS_AROUND_A_MESSAGE: u64 = 16;
/// Tokens for a written answer: some servers count the end of the turn.
const WRITTEN_TOKENS: u64 = 8;
/// Tokens for a document's place in a written order, `[12] > `.
const WRITTEN_TOKENS_A_PLACE: u64 = 8;

/// A question: one query and the documents it is asked about, in the order they are shown, as a
/// teacher may read them ([`crate::treatment`]).
#[derive(Clone, Debug)]
pub(crate) struct Texts {
    pub(crate) query: String,
    pub(crate) documents: Vec<String>,
    /// What a prompt can mark their bounds with.
    pub(crate) nonce: String,
}

impl Texts {
    /// As many documents, whatever they say: all that reading a written answer needs to know.
    pub(crate) fn unseen(documents: usize) -> Self {
        Self {
            query: String::new(),
            documents: vec![String::new(); documents],
            nonce: String::new(),
        }
    }

    /// The documents, as they are shown.
    pub(crate) fn shown(&self) -> Vec<&str> {
        self.documents.iter().map(String::as_str).collect()
    }
}

/// A request, ready to be sent.
pub(crate) struct Request {
    /// Below the endpoint.
    pub(crate) path: &'static str,
    pub(crate) body: Value,
    /// The most tokens that the prompt can be, and the most that can be written.
    pub(crate) most_tokens: (u64, u64),
}

impl Request {
    /// A request with the further fields of the settings, which win over the dialect's own.
    fn new(
        path: &'static str,
        mut body: Value,
        extra: &Map<String, Value>,
        most_tokens: (u64, u64),
    ) -> Self {
        for (name, value) in extra {
            body[name] = value.clone();
        }
        Self {
            path,
            body,
            most_tokens,
        }
    }

    /// What can be written at most is what the body says in the end, in whatever field: of several
    /// limits the highest, of several replies each.
    fn limited_by_body(mut self, limit_field: &str) -> Self {
        let limits = [limit_field, "max_tokens", "max_completion_tokens"];
        let limits = limits.iter().filter_map(|name| tokens(&self.body[*name]));
        let replies = tokens(&self.body["n"]).unwrap_or(1);
        if let Some(limit) = limits.max() {
            self.most_tokens.1 = limit * replies;
        }
        self
    }
}

/// The most tokens that messages can be: a token has at least one byte.
fn most_read(messages: &[Message]) -> u64 {
    let of_one = |message: &Message| message.content.len() as u64 + TOKENS_AROUND_A_MESSAGE;
    messages.iter().map(of_one).sum()
}

/// Tokens of the prompt, those of them that the server had at hand, and tokens written.
pub(crate) type Tokens = (u64, u64, u64);

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Problem {
    /// As good as no reply: asking again may help.
    Passing(String),
    /// The reply can't be read; another may.
    Unreadable(String),
    /// These texts get no answer.
    Final(Outcome, String),
    /// The request is not one that the server takes: it dislikes these texts, or whatever it is asked.
    Rejected(String),
    /// No question gets one.
    Fatal(Error),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Passing(problem) | Self::Unreadable(problem) | Self::Rejected(problem) => {
                f.write_str(problem)
            }
            Self::Final(outcome, problem) => write!(f, "{outcome}: {problem}"),
            Self::Fatal(error) => error.fmt(f),
        }
    }
}

/// A wire format with all that it needs to know.
pub(crate) trait Dialect: Send + Sync {
    /// Questions about one query that a request may hold.
    fn questions_per_request(&self) -> usize {
        1
    }

    /// The best answer there is, where answers are words.
    fn top_answer(&self) -> Option<&str> {
        None
    }

    /// What the prompt's examples say about a relevant and an irrelevant document.
    fn known(&self) -> Option<Known> {
        None
    }

    /// Whether what comes before the documents is read once for all questions of a request: then
    /// their nonce is of the query alone.
    fn shares_prefix(&self) -> bool {
        false
    }

    /// The request that asks these questions.
    ///
    /// # Errors
    /// A prompt that can't be rendered.
    fn request(&self, questions: &[&Texts]) -> Result<Request>;

    /// Reads a reply with status 200: an answer for each of the questions, or none.
    fn read(&self, reply: &Value, questions: &[&Texts]) -> Result<Vec<Value>, Problem>;

    /// What each server has to tell before it can be asked anything: paths and bodies.
    fn preliminaries(&self) -> Vec<(&'static str, Value)> {
        Vec::new()
    }

    /// Takes a server's replies to these.
    ///
    /// # Errors
    /// A server that can't be asked what is to be asked.
    fn prepare(&mut self, _url: &str, _replies: &[Value]) -> Result<()> {
        Ok(())
    }

    /// The model as the server names it.
    fn model(&self, reply: &Value) -> Option<String> {
        reply["model"].as_str().map(str::to_owned)
    }

    /// What the server says it used.
    fn usage(&self, reply: &Value) -> Option<Tokens> {
        let usage = &reply["usage"];
        let read = tokens(&usage["prompt_tokens"])?;
        let cached = &usage["prompt_tokens_details"]["cached_tokens"];
        let written = &usage["completion_tokens"];
        Some((
            read,
            tokens(cached).unwrap_or(0),
            tokens(written).unwrap_or(0),
        ))
    }
}

/// A number of tokens, if it can be one: sums of larger ones would overflow.
fn tokens(value: &Value) -> Option<u64> {
    value.as_u64().filter(|tokens| *tokens <= u32::MAX.into())
}

/// How servers say that a text is longer than they read: OpenAI and Azure, vLLM, llama.cpp, SGLang,
/// TEI, Anthropic, Cohere, Voyage, Groq, in their words for it.
const TOO_LONG: [&str; 10] = [
    "context length",
    "context size",
    "context limit",
    "context window",
    "maximum model length",
    "maximum allowed length",
    "must have less than",
    "too long",
    "too many tokens",
    "reduce the length",
];

/// What a reply with another status than 200 means; `url` names the teacher in errors.
pub(crate) fn refusal(url: &str, status: u16, body: &str) -> Problem {
    let json: Value = serde_json::from_str(body).unwrap_or_default();
    let error = &json["error"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
    let code = format!("{} {}", text(&error["code"]), text(&error["type"]));
    let said = [error, &error["message"], &json["message"], &json["detail"]];
    let message = said.map(text).join(" ");
    let any = |haystack: &str, needles: &[&str]| needles.iter().any(|one| haystack.contains(one));
    let shown = shortened(body);
    let teacher = |problem: String| {
        Problem::Fatal(Error::Teacher {
            url: url.to_owned(),
            problem,
        })
    };

    let no_credit = any(&code, &["insufficient_quota", "billing_error"])
        || any(&message, &["credit balance", "spend limit"]);
    if status == 402 || no_credit {
        return teacher(format!("no credit left ({status}): {shown}"));
    }
    if status == 401 || status == 403 {
        return Problem::Fatal(Error::Authentication {
            url: url.to_owned(),
            status,
            reply: shown,
        });
    }
    if any(&code, &["content_filter", "contentfilter"]) {
        return Problem::Final(Outcome::Filtered, format!("{status}: {shown}"));
    }
    let too_long =
        any(&code, &["context_length_exceeded", "exceed_context_size"]) || any(&message, &TOO_LONG);
    // llama.cpp's reranker.
    let too_large = status == 500 && any(&message, &["too large to process"]);
    if (matches!(status, 400 | 422) && too_long) || status == 413 || too_large {
        return Problem::Final(Outcome::Truncated, format!("{status}: {shown}"));
    }
    if crate::retry::passes(status) {
        return Problem::Passing(format!("{status}: {shown}"));
    }
    if matches!(status, 400 | 422) {
        return Problem::Rejected(format!("{status}: {shown}"));
    }
    let hint = match status {
        300..400 => "; redirects are not followed: name the endpoint itself",
        404 => "; is the endpoint's path right, and the model's name?",
        _ => "",
    };
    teacher(format!("{status}: {shown}{hint}"))
}

/// The most tokens that an answer takes when it is written, with the reasons it may have.
fn most_written(prompt: &Prompt, question: &Texts) -> u64 {
    let of_rationale = prompt
        .rationale
        .map_or(0, |rationale| rationale.tokens.into());
    of_rationale
        + match prompt.kind {
            Kind::Graded | Kind::Pairwise => WRITTEN_TOKENS,
            Kind::Listwise => {
                WRITTEN_TOKENS + WRITTEN_TOKENS_A_PLACE * question.documents.len() as u64
            }
        }
}

/// The answer as it is written, and nothing beside it but the reasons that the prompt asks for;
/// `was_cut` says that the reply ended at the limit.
fn written_answer(
    written: &str,
    was_cut: bool,
    prompt: &Prompt,
    question: &Texts,
) -> Result<Value, Problem> {
    if prompt.kind == Kind::Listwise {
        let ranking::Read { ranking, placed } = ranking::read(written, question.documents.len())?;
        return Ok(json!({"ranking": ranking, "placed": placed}));
    }
    let (word, reasons) = match prompt.rationale {
        None => (written, None),
        Some(rationale) => rationale.split(written, was_cut)?,
    };
    let grade = grade_of(word, &prompt.answers)?;
    let mut probabilities = vec![0.0; prompt.answers.len()];
    probabilities[grade] = 1.0;
    Ok(graded(&probabilities, 1.0, reasons))
}

/// A grade as the ledger has it.
fn graded(probabilities: &[f64], mass: f64, reasons: Option<String>) -> Value {
    let mut answer = json!({"probabilities": probabilities, "mass": mass});
    if let Some(reasons) = reasons {
        answer["rationale"] = reasons.into();
    }
    answer
}

/// Which of the answers a word is.
fn grade_of(word: &str, answers: &[String]) -> Result<usize, Problem> {
    place_of(word, answers).ok_or_else(|| {
        let shown = shortened(word);
        Problem::Unreadable(format!("expected one of {answers:?}, not {shown:?}"))
    })
}

/// Which of the answers a word is, white space aside. Answers that are words of several letters are
/// told apart without regard to case, unless case is all that tells them apart.
fn place_of(word: &str, answers: &[String]) -> Option<usize> {
    let word = word.trim();
    let same = |answer: &String| answer == word;
    answers.iter().position(same).or_else(|| {
        let lower: Vec<String> = answers.iter().map(|one| one.to_lowercase()).collect();
        let are_words = answers.iter().all(|answer| answer.chars().nth(1).is_some());
        let are_distinct = (1..lower.len()).all(|place| !lower[..place].contains(&lower[place]));
        let word = word.to_lowercase();
        let place = lower.iter().position(|answer| *answer == word);
        place.filter(|_| are_words && are_distinct)
    })
}

/// Six decimals: below what a quantised teacher's probabilities mean.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

/// A question by its ids, for a message.
pub(crate) fn in_words(query_id: &str, document_ids: &[String]) -> String {
    format!("query {query_id}, document {}", document_ids.join(", "))
}

/// The beginning of a reply, for a message.
pub(crate) fn shortened(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_answers_in_any_case_that_leaves_them_distinct() {
        let place = |word: &str, answers: [&str; 2]| place_of(word, &answers.map(String::from));
        for word in ["yes", " Yes", "YES\n"] {
            assert_eq!(place(word, ["no", "yes"]), Some(1), "{word}");
            assert_eq!(place(word, ["No", "Yes"]), Some(1), "{word}");
        }
        for word in ["y", "yes.", "yes no", "ja", ""] {
            assert_eq!(place(word, ["no", "yes"]), None, "{word}");
        }
        assert_eq!(place("Yes", ["yes", "Yes"]), Some(1));
        assert_eq!(place("YES", ["yes", "Yes"]), None);
        // A lone letter may begin anything: "a" is an article.
        assert_eq!(place(" A", ["A", "B"]), Some(0));
        assert_eq!(place("a", ["A", "B"]), None);
    }

    #[test]
    fn refusals_are_told_apart() {
        let cases = [
            (
                429,
                r#"{"error":{"code":"rate_limit_exceeded"}}"#,
                "passing",
            ),
            (429, r#"{"error":{"code":"insufficient_quota"}}"#, "teacher"),
            (402, "", "teacher"),
            (
                400,
                r#"{"error":{"type":"invalid_request_error","message":"Your credit balance is too low"}}"#,
                "teacher",
            ),
            (401, "", "authentication"),
            (403, "", "authentication"),
            (
                404,
                r#"{"error":{"message":"The model x does not exist"}}"#,
                "teacher",
            ),
            (
                400,
                r#"{"error":{"code":"context_length_exceeded"}}"#,
                "truncated",
            ),
            (
                400,
                r#"{"object":"error","message":"This model's maximum context length is 4096 tokens"}"#,
                "truncated",
            ),
            (
                400,
                r#"{"error":{"code":400,"type":"exceed_context_size_error","n_ctx":8192}}"#,
                "truncated",
            ),
            (
                400,
                r#"{"error":{"code":"content_filter","param":"prompt"}}"#,
                "filtered",
            ),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens > 200000 maximum"}}"#,
                "truncated",
            ),
            (
                422,
                r#"{"error":"Input validation error: `inputs` must have less than 512 tokens. Given: 534","error_type":"Validation"}"#,
                "truncated",
            ),
            (
                400,
                r#"{"object":"error","message":"The input (61709 tokens) is longer than the model's context length (40960 tokens).","code":400}"#,
                "truncated",
            ),
            (
                400,
                r#"{"object":"error","message":"The decoder prompt (length 10127) is longer than the maximum model length of 8192."}"#,
                "truncated",
            ),
            (
                400,
                r#"{"message":"too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 6354"}"#,
                "truncated",
            ),
            (400, r#"{"error":{"message":"unknown field"}}"#, "rejected"),
            (422, r#"{"detail":[{"msg":"Field required"}]}"#, "rejected"),
            (405, "", "teacher"),
            (302, "", "teacher"),
            (
                500,
                r#"{"error":{"code":500,"message":"input is too large to process. increase the physical batch size"}}"#,
                "truncated",
            ),
            (500, "<html>", "passing"),
            (
                529,
                r#"{"type":"error","error":{"type":"overloaded_error"}}"#,
                "passing",
            ),
            (408, "", "passing"),
        ];
        for (status, body, expected) in cases {
            let found = match refusal("http://t/", status, body) {
                Problem::Passing(_) => "passing",
                Problem::Unreadable(_) => "unreadable",
                Problem::Final(Outcome::Filtered, _) => "filtered",
                Problem::Final(Outcome::Truncated, _) => "truncated",
                Problem::Final(..) => "other",
                Problem::Rejected(_) => "rejected",
                Problem::Fatal(Error::Teacher { .. }) => "teacher",
                Problem::Fatal(Error::Authentication { .. }) => "authentication",
                Problem::Fatal(_) => "fatal",
            };
            assert_eq!(found, expected, "{status} {body}");
        }
    }
}
