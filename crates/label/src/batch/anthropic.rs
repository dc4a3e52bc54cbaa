//! Anthropic's message batches. They take no name from us: one that may have arrived is told by
//! the questions in it, once it has ended.

use serde_json::{Value, json};

use super::openai::seconds;
use super::remote::{Caller, Ended, Line, Search, Sought, State, id};
use crate::Result;
use crate::dialect::{Problem, Request};

/// Batches on one page of the list: the most that is granted.
const PAGE: usize = 1000;
/// How far the server's clock may be behind.
const CLOCK_SKEW_SECONDS: i64 = 3600;
/// Where they are.
const PATH: &str = "messages/batches";

pub(crate) struct AnthropicBatches<'a> {
    pub(crate) caller: Caller<'a>,
}

impl AnthropicBatches<'_> {
    pub(crate) async fn submit(&self, input: &[u8]) -> Result<String, Problem> {
        id(&self.caller.create(PATH, input).await?["id"])
    }

    pub(crate) async fn find(&self, sought: &Sought<'_>) -> Result<Search> {
        let since = seconds(&sought.batch.began_at) - CLOCK_SKEW_SECONDS;
        let mut search = Search::Absent;
        let mut after = String::new();
        loop {
            let page = self
                .caller
                .get(&format!("{PATH}?limit={PAGE}{after}"))
                .await?;
            let batches = page["data"].as_array().map_or(&[][..], Vec::as_slice);
            for one in batches {
                if seconds(one["created_at"].as_str().unwrap_or_default()) < since {
                    // The newest come first.
                    return Ok(search);
                }
                let remote = id(&one["id"]).map_err(|problem| self.caller.error(problem))?;
                if sought.known.contains(&remote) || !may_be(one, sought.questions.len()) {
                    continue;
                }
                if one["processing_status"] != "ended" {
                    tracing::info!("the batch {remote} may be ours: it can be told when it ends");
                    search = Search::Unclear;
                    continue;
                }
                let lines = self.caller.download(&results(&remote)).await?;
                let is_ours = |line: Line| sought.questions.contains_key(&line.custom_id);
                if lines.lines().find_map(read).is_some_and(is_ours) {
                    return Ok(Search::Found(remote));
                }
            }
            let (Some(last), Some(true)) = (batches.last(), page["has_more"].as_bool()) else {
                return Ok(search);
            };
            let last = id(&last["id"]).map_err(|problem| self.caller.error(problem))?;
            after = format!("&after_id={last}");
        }
    }

    pub(crate) async fn state(&self, remote: &str) -> Result<State> {
        let batch = self.caller.get(&format!("{PATH}/{remote}")).await?;
        if batch["processing_status"] != "ended" {
            return Ok(State::Open);
        }
        Ok(State::Ended(Ended {
            how: "ended".to_owned(),
            refused: None,
            // The reply has an address of them, too; but no address in data is followed.
            files: vec![results(remote)],
        }))
    }
}

fn results(remote: &str) -> String {
    format!("{PATH}/{remote}/results")
}

/// Whether a batch may have so many requests: the counts may not be there until it has ended.
fn may_be(batch: &Value, requests: usize) -> bool {
    let counts = batch["request_counts"].as_object();
    let counts = counts.into_iter().flatten();
    let total: u64 = counts.filter_map(|(_, count)| count.as_u64()).sum();
    total == 0 || total == requests as u64
}

/// A request of a batch.
pub(crate) fn line(custom_id: &str, request: &Request) -> String {
    json!({"custom_id": custom_id, "params": request.body}).to_string()
}

/// Reads a line of the results.
pub(crate) fn read(line: &str) -> Option<Line> {
    let mut json: Value = serde_json::from_str(line).ok()?;
    let custom_id = json["custom_id"].as_str()?.to_owned();
    let how = json["result"]["type"]
        .as_str()
        .unwrap_or("no result")
        .to_owned();
    let mut taken = |path| json.pointer_mut(path).map(Value::take).unwrap_or_default();
    let ended = match &*how {
        "succeeded" => Ok((200, taken("/result/message"))),
        "errored" => {
            let error = taken("/result/error");
            Ok((status(&error), error))
        }
        _ => Err(how),
    };
    Some(Line {
        custom_id,
        request_id: None,
        ended,
    })
}

/// The status that an error would have had by itself.
fn status(error: &Value) -> u16 {
    match error["error"]["type"].as_str().unwrap_or_default() {
        "invalid_request_error" => 400,
        "authentication_error" => 401,
        "billing_error" => 402,
        "permission_error" => 403,
        "not_found_error" => 404,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "timeout_error" => 504,
        "overloaded_error" => 529,
        _ => 500,
    }
}
