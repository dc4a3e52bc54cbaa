//! What comes of any bytes that a teacher may send: for fuzz targets, and for the tests that replay
//! their seeds.

use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

use crate::Error;
use crate::batch::remote::{Line, Told};
use crate::dialect::anthropic::Anthropic;
use crate::dialect::chat::Chat;
use crate::dialect::generative::Generative;
use crate::dialect::rerank::{self, Rerank};
use crate::dialect::{Dialect, Problem, Texts, refusal};
use crate::prompt::Prompt;
use crate::retry::Advice;
use crate::{batch, import};

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Chat completions with the log-probabilities of the grades 0 to 3.
    Chat,
    /// Chat completions with one of these grades, written.
    Written,
    /// Chat completions with an order of four documents, written.
    Order,
    /// Anthropic's messages with one of these grades, written.
    Anthropic,
    /// Chat completions with one of these grades and reasons, as the first line says: `before` or
    /// `after` it, and `written` or by log-probabilities.
    Rationale,
    /// Generative scoring of three documents.
    Generative,
    /// vLLM's `/tokenize` of `no` and `yes`, a line for each.
    Tokenize,
    /// Scores of three documents in the dialect that the first line names.
    Rerank,
    /// A reply whose status, another than 200, is on the first line.
    Refusal,
    /// A line of what comes back with a batch of OpenAI's, Azure's or of `vllm run-batch`.
    BatchOpenAi,
    /// A line of what comes back with a batch of Anthropic's.
    BatchAnthropic,
    /// A line of judgements for `labels import`, of a reranker's scores or two grades.
    Imported,
    /// Headers, each on a line, that came on 6 November 1994, 08:49:37 GMT.
    Advice,
}

const GRADED: &str = "
answers = ['0', '1', '2', '3']
system = ''
user = '{{ query }} {{ document }}'";
const YES_NO: &str = "
answers = ['no', 'yes']
system = ''
user = '{{ query }} {{ document }}'";
const LISTWISE: &str = "
kind = 'listwise'
system = ''
user = '{{ query }}{% for document in documents %} [{{ loop.index }}] {{ document }}{% endfor %}'";

const URL: &str = "http://127.0.0.1/";

/// In a word, what the collector makes of it: `grade2`, `order2143`, `best1` of three documents,
/// `labels` for tokens that can be asked for, what is wrong, or the pause and whether to come again.
///
/// # Errors
/// What no bytes may lead to, such as an order that is none.
pub fn outcome(reader: Reader, bytes: &[u8]) -> Result<String, String> {
    let text = String::from_utf8_lossy(bytes);
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    match reader {
        Reader::Chat => answer(&chat(GRADED, true)?, &text, 1, 1),
        Reader::Written => answer(&chat(GRADED, false)?, &text, 1, 1),
        Reader::Order => answer(&chat(LISTWISE, false)?, &text, 1, 4),
        Reader::Anthropic => {
            let dialect = Anthropic {
                prompt: prompt(GRADED)?,
                model: String::new(),
                temperature: 0.0,
                extra: Map::new(),
            };
            answer(&dialect, &text, 1, 1)
        }
        Reader::Rationale => {
            let place = if first.contains("after") {
                "after"
            } else {
                "before"
            };
            let source = format!("rationale = '{place}'\n{GRADED}");
            answer(&chat(&source, !first.contains("written"))?, rest, 1, 1)
        }
        Reader::Generative => answer(&generative()?, &text, 3, 1),
        Reader::Tokenize => tokenize(first, rest),
        Reader::Rerank => answer(&reranker(first), rest, 3, 1),
        Reader::Refusal => {
            let status = first.trim().parse().unwrap_or(500);
            Ok(problem(&refusal(URL, status, rest)))
        }
        Reader::BatchOpenAi => Ok(line(batch::openai::read(&text))),
        Reader::BatchAnthropic => Ok(line(batch::anthropic::read(&text))),
        Reader::Imported => import::try_line(&text),
        Reader::Advice => advice(&text),
    }
}

/// What comes of a line of a batch.
fn line(line: Option<Line>) -> String {
    match line.map(|line| line.told) {
        None => "stray".to_owned(),
        Some(Told::Reply(200, _)) => "reply".to_owned(),
        Some(Told::Reply(status, body)) => problem(&refusal(URL, status, &body.to_string())),
        Some(Told::NotRun(_)) => "notrun".to_owned(),
        Some(Told::Lost(_)) => "lost".to_owned(),
    }
}

fn prompt(source: &str) -> Result<Prompt, String> {
    Prompt::parse(Path::new("prompt.toml"), source).map_err(|error| error.to_string())
}

fn chat(source: &str, log_probabilities: bool) -> Result<Chat, String> {
    Ok(Chat {
        prompt: prompt(source)?,
        model: String::new(),
        log_probabilities,
        temperature: 0.0,
        limit_field: "max_tokens".to_owned(),
        least_mass: 0.9,
        extra: Map::new(),
    })
}

fn generative() -> Result<Generative, String> {
    Ok(Generative {
        prompt: prompt(YES_NO)?,
        model: String::new(),
        documents_per_request: 3,
        extra: Map::new(),
        server: None,
    })
}

fn reranker(name: &str) -> Rerank {
    let format = match name.trim() {
        "cohere" => &rerank::COHERE,
        "jina" => &rerank::JINA,
        "voyage" => &rerank::VOYAGE,
        "vllm-rerank" => &rerank::VLLM_RERANK,
        "vllm-score" => &rerank::VLLM_SCORE,
        "llama-rerank" => &rerank::LLAMA_RERANK,
        _ => &rerank::TEI,
    };
    Rerank {
        format,
        model: String::new(),
        scale: format.scale,
        documents_per_request: 3,
        extra: Map::new(),
    }
}

/// What comes of a body with status 200.
fn answer(
    dialect: &dyn Dialect,
    body: &str,
    questions: usize,
    documents: usize,
) -> Result<String, String> {
    let Ok(reply) = serde_json::from_str::<Value>(body) else {
        return Ok("no-json".to_owned());
    };
    let texts = Texts {
        query: "a query".to_owned(),
        documents: vec!["a document".to_owned(); documents],
        nonce: String::new(),
    };
    dialect.model(&reply);
    if let Some((read, cached, written)) = dialect.usage(&reply) {
        let sum = read
            .checked_add(cached)
            .and_then(|sum| sum.checked_add(written));
        sum.ok_or("the tokens overflow")?;
    }
    match dialect.read(&reply, &vec![&texts; questions]) {
        Ok(answers) if answers.len() == questions => said(&answers, documents),
        Ok(answers) => Err(format!(
            "{} answers to {questions} questions",
            answers.len()
        )),
        Err(why) => Ok(problem(&why)),
    }
}

/// Answers that are whole, in a word.
fn said(answers: &[Value], documents: usize) -> Result<String, String> {
    let broken = || format!("{answers:?} can't be an answer");
    if let Some(ranking) = answers[0]["ranking"].as_array() {
        let places: Option<Vec<u64>> = ranking.iter().map(Value::as_u64).collect();
        let places = places.ok_or_else(broken)?;
        let is_there = |place: usize| places.contains(&(place as u64));
        if places.len() != documents || !(0..documents).all(is_there) {
            return Err(broken());
        }
        let places = places.iter().map(|place| (place + 1).to_string());
        return Ok(format!("order{}", places.collect::<String>()));
    }
    let mut scores = Vec::new();
    for answer in answers {
        if let Some(score) = answer["score"].as_f64() {
            scores.push(score);
            continue;
        }
        let list = answer["probabilities"].as_array().ok_or_else(broken)?;
        let list: Option<Vec<f64>> = list.iter().map(Value::as_f64).collect();
        let probabilities = list.ok_or_else(broken)?;
        let sum: f64 = probabilities.iter().sum();
        let are_shares = probabilities.iter().all(|p| (0.0..=1.0).contains(p));
        if !are_shares || (sum - 1.0).abs() > 1e-5 {
            return Err(broken());
        }
        if answers.len() == 1 {
            return Ok(format!("grade{}", best(&probabilities)));
        }
        scores.push(*probabilities.last().ok_or_else(broken)?);
    }
    if scores.iter().any(|score| !score.is_finite()) {
        return Err(broken());
    }
    Ok(format!("best{}", best(&scores)))
}

/// Where the highest number is.
fn best(numbers: &[f64]) -> usize {
    let numbers = numbers.iter().enumerate();
    let best = numbers.max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(place, _)| place)
}

fn problem(problem: &Problem) -> String {
    match problem {
        Problem::Passing(_) => "passing".to_owned(),
        Problem::Unreadable(_) => "unreadable".to_owned(),
        Problem::Final(outcome, _) => outcome.to_string(),
        Problem::Rejected(_) => "rejected".to_owned(),
        Problem::Fatal(Error::Authentication { .. }) => "key".to_owned(),
        Problem::Fatal(_) => "stop".to_owned(),
    }
}

/// What comes of the tokens of both answers.
fn tokenize(no: &str, yes: &str) -> Result<String, String> {
    let (Ok(no), Ok(yes)) = (serde_json::from_str(no), serde_json::from_str(yes)) else {
        return Ok("no-json".to_owned());
    };
    let mut dialect = generative()?;
    Ok(match dialect.prepare(URL, &[no, yes]) {
        Ok(()) => "labels".to_owned(),
        Err(Error::Setting(_)) => "no-labels".to_owned(),
        Err(_) => "stop".to_owned(),
    })
}

fn advice(lines: &str) -> Result<String, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in lines.lines().filter_map(|line| line.split_once(':')) {
        let name = HeaderName::from_bytes(name.as_bytes());
        let value = HeaderValue::from_bytes(value.as_bytes());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
    let Advice { again, after } = Advice::of(&headers, now);
    let again = match again {
        Some(true) => "again-",
        Some(false) => "never-",
        None => "",
    };
    match after {
        None => Ok(format!("{again}unsaid")),
        Some(pause) if pause.is_zero() || Instant::now().checked_add(pause).is_none() => {
            Err(format!("{pause:?} is no pause"))
        }
        Some(pause) => Ok(format!("{again}{}ms", pause.as_millis())),
    }
}
