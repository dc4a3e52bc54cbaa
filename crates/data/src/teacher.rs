//! A teacher behind an OpenAI-compatible `/chat/completions`: OpenAI, vLLM, llama.cpp's server.
//!
//! It is asked for one token at temperature 0, and its answer is not that token but the
//! probability of each grade among the alternatives: the expected grade orders pairs far better
//! than the written digit (Zhuang et al., 2023, arXiv 2310.14122).

use std::time::Duration;

use reqwest::{Client, StatusCode, redirect};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::prompt::Prompt;
use crate::{Error, Result};

/// How to reach a teacher (`[teacher]` in a settings file).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherSettings {
    /// What the judgements call it: model and precision, say.
    pub name: String,
    /// The base URL, up to and with `/v1`.
    pub endpoint: String,
    /// The model's name in requests.
    pub model: String,
    /// The environment variable that holds the key; none is sent without it.
    #[serde(default)]
    pub api_key_env: Option<String>,
    /// Requests in flight.
    #[serde(default = "one")]
    pub concurrency: usize,
    /// How long one request may take.
    #[serde(default = "a_minute")]
    pub timeout_seconds: u64,
    /// How often a request that failed for a passing reason is sent again.
    #[serde(default = "five")]
    pub retries: u32,
    /// The least probability that the grades must have together: below it, the teacher was
    /// answering something else.
    #[serde(default = "nine_tenths")]
    pub least_mass: f64,
}

fn one() -> usize {
    1
}

fn five() -> u32 {
    5
}

fn a_minute() -> u64 {
    60
}

fn nine_tenths() -> f64 {
    0.9
}

/// A teacher's answer about one pair.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The probability of each grade, renormalised.
    pub probabilities: Vec<f64>,
    /// What the grades had of the whole before that.
    pub mass: f64,
}

/// Why a request brought no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Worth trying again, after the server's own delay if it named one.
    Transient {
        problem: String,
        retry_after: Option<Duration>,
    },
    /// This pair gets no label; others may.
    Invalid(String),
    /// No pair will get one.
    Fatal(Error),
}

/// A client of one endpoint and model.
pub struct Teacher {
    client: Client,
    url: String,
    settings: TeacherSettings,
    api_key: Option<String>,
}

/// Alternatives asked for: the most that OpenAI grants.
const TOP_LOGPROBS: usize = 20;

impl Teacher {
    /// Prepares a client; nothing is sent yet.
    ///
    /// # Errors
    /// A malformed endpoint, plain HTTP to a host that is not this machine while a key would be
    /// sent, or an unset key variable.
    pub fn new(settings: &TeacherSettings) -> Result<Self> {
        let setting = |problem: String| Error::Setting(format!("[teacher] {problem}"));
        let endpoint = reqwest::Url::parse(&settings.endpoint)
            .map_err(|error| setting(format!("endpoint {:?}: {error}", settings.endpoint)))?;
        let api_key = match &settings.api_key_env {
            None => None,
            Some(name) => Some(std::env::var(name).map_err(|_| {
                setting(format!(
                    "api_key_env: the environment has no variable {name}"
                ))
            })?),
        };
        let loopback = matches!(
            endpoint.host_str(),
            Some("localhost" | "127.0.0.1" | "[::1]")
        );
        if api_key.is_some() && endpoint.scheme() != "https" && !loopback {
            return Err(setting(
                "endpoint: a key is sent over https only".to_owned(),
            ));
        }
        if !(0.0..=1.0).contains(&settings.least_mass) {
            return Err(setting("least_mass must be from 0 to 1".to_owned()));
        }
        if settings.concurrency == 0 {
            return Err(setting("concurrency must be at least 1".to_owned()));
        }
        let client = Client::builder()
            .timeout(Duration::from_secs(settings.timeout_seconds))
            .connect_timeout(Duration::from_secs(10))
            // A redirect would take the key, and the texts, to a host nobody named.
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|error| setting(format!("the HTTP client: {error}")))?;
        let url = format!(
            "{}/chat/completions",
            settings.endpoint.trim_end_matches('/')
        );
        Ok(Self {
            client,
            url,
            settings: settings.clone(),
            api_key,
        })
    }

    /// Asks about one pair, once.
    pub(crate) async fn ask(
        &self,
        prompt: &Prompt,
        query: &str,
        document: &str,
    ) -> Result<Answer, Failure> {
        let messages = prompt.messages(query, document).map_err(Failure::Fatal)?;
        let body = json!({
            "model": self.settings.model,
            "messages": messages,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": true,
            "top_logprobs": TOP_LOGPROBS,
        });
        let mut request = self.client.post(&self.url).json(&body);
        if let Some(key) = &self.api_key {
            request = request.bearer_auth(key);
        }
        let transient = |error: reqwest::Error| Failure::Transient {
            problem: describe(&error),
            retry_after: None,
        };
        let response = request.send().await.map_err(transient)?;
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let text = response.text().await.map_err(transient)?;
        if !status.is_success() {
            return Err(self.refusal(status, retry_after, &text));
        }
        let reply = serde_json::from_str(&text).map_err(|_| Failure::Transient {
            problem: format!("{status} with a body that is not JSON: {}", shorten(&text)),
            retry_after: None,
        })?;
        read_answer(&reply, &prompt.answers, self.settings.least_mass)
    }

    fn refusal(&self, status: StatusCode, retry_after: Option<Duration>, text: &str) -> Failure {
        let (url, reply) = (self.url.clone(), shorten(text));
        match status.as_u16() {
            401 | 403 => Failure::Fatal(Error::Authentication {
                url,
                status: status.as_u16(),
                reply,
            }),
            402 => Failure::Fatal(Error::Teacher {
                url,
                problem: format!("no credit: {reply}"),
            }),
            429 if text.contains("insufficient_quota") => Failure::Fatal(Error::Teacher {
                url,
                problem: format!("no quota: {reply}"),
            }),
            408 | 409 | 429 | 500.. => Failure::Transient {
                problem: format!("{status}: {reply}"),
                retry_after,
            },
            _ => Failure::Fatal(Error::Teacher {
                url,
                problem: format!("{status}: {reply}"),
            }),
        }
    }
}

/// Reads the grades' probabilities out of a chat completion.
///
/// A grade may appear as several tokens (`"3"`, `" 3"`): their probabilities add up. Grades below
/// the listed alternatives count as 0; the mass says how much that can matter.
fn read_answer(reply: &Value, answers: &[String], least_mass: f64) -> Result<Answer, Failure> {
    let alternatives = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        .as_array()
        .ok_or_else(|| {
            Failure::Invalid(format!(
                "the reply has no log-probabilities: {}",
                shorten(&reply["choices"][0].to_string())
            ))
        })?;
    let mut probabilities = vec![0.0; answers.len()];
    for alternative in alternatives {
        let (Some(token), Some(logprob)) = (
            alternative["token"].as_str(),
            alternative["logprob"].as_f64(),
        ) else {
            continue;
        };
        // −9999 is OpenAI's "not among the alternatives"; no probability is above 1.
        if !(-1000.0..=1e-3).contains(&logprob) {
            continue;
        }
        if let Some(grade) = answers.iter().position(|answer| answer == token.trim()) {
            probabilities[grade] += logprob.exp();
        }
    }
    let mass: f64 = probabilities.iter().sum();
    if !(least_mass..=1.001).contains(&mass) {
        let seen: Vec<&str> = alternatives
            .iter()
            .take(5)
            .filter_map(|one| one["token"].as_str())
            .collect();
        return Err(Failure::Invalid(format!(
            "the grades {answers:?} have a probability of {mass:.3} together, expected \
             {least_mass} or more; the likeliest tokens were {seen:?}"
        )));
    }
    for probability in &mut probabilities {
        *probability /= mass;
    }
    Ok(Answer {
        probabilities,
        mass,
    })
}

/// The server's own delay: `retry-after-ms`, or `retry-after` in seconds.
fn retry_after(headers: &reqwest::header::HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let seconds = number("retry-after-ms")
        .map(|ms| ms / 1000.0)
        .or_else(|| number("retry-after"))?;
    (seconds > 0.0 && seconds <= 120.0).then(|| Duration::from_secs_f64(seconds))
}

/// An error with its causes: reqwest's own message stops at "error sending request".
fn describe(error: &reqwest::Error) -> String {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    message
}

fn shorten(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judgement::expected_grade;

    fn grades() -> Vec<String> {
        ["0", "1", "2", "3"].map(String::from).to_vec()
    }

    fn reply(alternatives: &[(&str, f64)]) -> Value {
        let list: Vec<Value> = alternatives
            .iter()
            .map(|(token, logprob)| json!({"token": token, "logprob": logprob}))
            .collect();
        json!({"choices": [{"logprobs": {"content": [{"top_logprobs": list}]}}]})
    }

    #[test]
    fn the_expected_grade_is_the_worked_one() {
        let logprobs = [("0", -3.1), ("1", -1.1), ("2", -0.8), ("3", -2.3)];
        let answer = read_answer(&reply(&logprobs), &grades(), 0.9).unwrap();
        assert!((expected_grade(&answer.probabilities) - 1.652_067_031).abs() < 1e-8);
        assert!((answer.mass - 0.927_508).abs() < 1e-6);
    }

    #[test]
    fn spellings_of_one_grade_add_up_and_sentinels_are_dropped() {
        let half = 0.5_f64.ln();
        let spelt = [("3", half), (" 3", half), ("0", -9999.0), ("x", f64::NAN)];
        let answer = read_answer(&reply(&spelt), &grades(), 0.9).unwrap();
        assert_eq!(answer.probabilities, [0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn an_answer_that_is_no_grade_is_no_label() {
        let low_mass = [
            ("0", -3.2),
            ("1", -1.2),
            ("2", -0.9),
            ("3", -2.4),
            ("Sure", -2.0),
        ];
        let failure = read_answer(&reply(&low_mass), &grades(), 0.9).unwrap_err();
        assert!(matches!(failure, Failure::Invalid(problem) if problem.contains("Sure")));
        let none = json!({"choices": [{"message": {"content": "3"}}]});
        assert!(matches!(
            read_answer(&none, &grades(), 0.9),
            Err(Failure::Invalid(_))
        ));
    }
}
