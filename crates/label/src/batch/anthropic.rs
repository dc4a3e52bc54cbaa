//! Anthropic's message batches. They take no name from us: one that may have arrived is told by
//! the questions in it, once it has ended.

use serde_json::{Value, json};

use super::remote::{Caller, Ended, Line, Search, Sought, Told, error, id, seconds};
use crate::Result;
use crate::dialect::{Problem, Request};

/// Batches on one page of the list: the most that is granted; and pages that are read.
const PAGE: usize = 1000;
const PAGES: usize = 100;
/// How far the server's clock may be behind.
const CLOCK_SKEW_SECONDS: i64 = 3600;
/// Where they are.
const PATH: &str = "messages/batches";

pub(crate) struct AnthropicBatches<'a> {
    pub(crate) caller: Caller<'a>,
}

impl AnthropicBatches<'_> {
    pub(crate) async fn create(&self, body: Vec<u8>) -> Result<String, Problem> {
        id(&self.caller.create(PATH, body).await?["id"])
    }

    pub(crate) async fn find(&self, sought: &Sought<'_>) -> Result<Search> {
        let mut search = Search::Absent;
        let mut after = String::new();
        for _ in 0..PAGES {
            let path = format!("{PATH}?limit={PAGE}{after}");
            let page = self.caller.get(&path).await?;
            let batches = page["data"].as_array().map_or(&[][..], Vec::as_slice);
            for one in batches {
                let made = seconds(one["created_at"].as_str().unwrap_or_default());
                if made < sought.left - CLOCK_SKEW_SECONDS {
                    // The newest come first.
                    return Ok(search);
                }
                let remote = self.id(&one["id"])?;
                if sought.known.contains(&remote) || !may_have(one, sought.questions.len()) {
                    continue;
                }
                if one["processing_status"] != "ended" {
                    tracing::info!("the batch {remote} may be ours: it can be told when it ends");
                    search = Search::Unclear;
                    continue;
                }
                let Some(lines) = self.caller.download(&results(&remote)).await? else {
                    search = Search::Unclear;
                    continue;
                };
                let is_ours = |line: Line| sought.questions.contains_key(&line.custom_id);
                if lines.lines().find_map(read).is_some_and(is_ours) {
                    return Ok(Search::Found(remote));
                }
            }
            let (Some(last), Some(true)) = (batches.last(), page["has_more"].as_bool()) else {
                break;
            };
            after = format!("&after_id={}", self.id(&last["id"])?);
        }
        Ok(search)
    }

    pub(crate) async fn ended(&self, remote: &str) -> Result<Option<Ended>> {
        let path = format!("{PATH}/{remote}");
        let Some(batch) = self.caller.find(&path).await? else {
            return Ok(Some(Ended::missing(path)));
        };
        Ok((batch["processing_status"] == "ended").then(|| Ended {
            how: "ended".to_owned(),
            refused: None,
            // The reply has an address of them, too; but no address in data is followed.
            files: vec![results(remote)],
            missing: None,
        }))
    }

    fn id(&self, value: &Value) -> Result<String> {
        id(value).map_err(|problem| error(self.caller.replica.name(), problem))
    }
}

fn results(remote: &str) -> String {
    format!("{PATH}/{remote}/results")
}

/// Whether a batch may have so many requests: the counts may not be there until it has ended. The
/// results of one that is archived are gone.
fn may_have(batch: &Value, requests: usize) -> bool {
    let counts = batch["request_counts"].as_object();
    let counts = counts.into_iter().flatten();
    let total: u64 = counts.filter_map(|(_, count)| count.as_u64()).sum();
    batch["archived_at"].is_null() && (total == 0 || total == requests as u64)
}

/// A request of a batch.
pub(crate) fn line(custom_id: &str, request: &Request) -> String {
    json!({"custom_id": custom_id, "params": request.body}).to_string()
}

/// Requests as they are sent.
pub(crate) fn body(lines: &[String]) -> Vec<u8> {
    format!("{{\"requests\":[{}]}}", lines.join(",")).into_bytes()
}

/// Reads a line of the results.
pub(crate) fn read(line: &str) -> Option<Line> {
    let mut json: Value = serde_json::from_str(line).ok()?;
    let custom_id = json["custom_id"].as_str()?.to_owned();
    let mut result = json["result"].take();
    let told = match result["type"].as_str().unwrap_or("no result") {
        "succeeded" => Told::Reply(200, result["message"].take()),
        "errored" => {
            let error = result["error"].take();
            Told::Reply(status(&error), error)
        }
        how @ ("expired" | "canceled") => Told::NotRun(how.to_owned()),
        how => Told::Lost(how.to_owned()),
    };
    Some(Line {
        custom_id,
        request_id: None,
        told,
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
