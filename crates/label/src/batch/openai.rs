//! OpenAI's files and batches, as Azure has them too: a file of requests goes up, a batch is made
//! of it, files of replies come down. The lines of both are those of `vllm run-batch`.

use serde_json::{Value, json};

use super::remote::{Caller, Ended, Line, Search, Sought, State, id};
use crate::Result;
use crate::dialect::{Problem, Request};
use crate::ledger::OpenBatch;

/// Batches on one page of the list: the most that is granted.
const PAGE: usize = 100;
/// How far the server's clock may be behind.
const CLOCK_SKEW_SECONDS: i64 = 3600;

pub(crate) struct OpenAiBatches<'a> {
    pub(crate) caller: Caller<'a>,
    /// What stands before `chat/completions` in a line.
    pub(crate) prefix: String,
}

impl OpenAiBatches<'_> {
    pub(crate) async fn submit(&self, batch: &OpenBatch, input: &[u8]) -> Result<String, Problem> {
        let (content_type, form) = form(&batch.name, input);
        let file = self.caller.upload("files", &content_type, &form).await?;
        let body = json!({
            "input_file_id": id(&file["id"])?,
            "endpoint": format!("{}chat/completions", self.prefix),
            "completion_window": "24h",
            // By these it is found again should its id never reach us.
            "metadata": {"retort": batch.name, "input_sha256": batch.input_sha256},
        })
        .to_string();
        let created = self.caller.create("batches", body.as_bytes()).await?;
        id(&created["id"])
    }

    pub(crate) async fn find(&self, sought: &Sought<'_>) -> Result<Search> {
        let since = seconds(&sought.batch.began_at) - CLOCK_SKEW_SECONDS;
        let mut after = String::new();
        loop {
            let page = self
                .caller
                .get(&format!("batches?limit={PAGE}{after}"))
                .await?;
            let batches = page["data"].as_array().map_or(&[][..], Vec::as_slice);
            for one in batches {
                if one["metadata"]["retort"] == *sought.batch.name {
                    let id = id(&one["id"]).map_err(|problem| self.caller.error(problem))?;
                    return Ok(Search::Found(id));
                }
            }
            let (Some(last), Some(true)) = (batches.last(), page["has_more"].as_bool()) else {
                return Ok(Search::Absent);
            };
            // The newest come first.
            if last["created_at"].as_i64().is_some_and(|at| at < since) {
                return Ok(Search::Absent);
            }
            let last = id(&last["id"]).map_err(|problem| self.caller.error(problem))?;
            after = format!("&after={last}");
        }
    }

    pub(crate) async fn state(&self, remote: &str) -> Result<State> {
        let batch = self.caller.get(&format!("batches/{remote}")).await?;
        let how = batch["status"].as_str().unwrap_or_default().to_owned();
        if !matches!(&*how, "completed" | "failed" | "expired" | "cancelled") {
            return Ok(State::Open);
        }
        // Whatever it ended as, some of it may be done; a file that is not there is null or "".
        let file = |name: &str| {
            id(&batch[name])
                .ok()
                .map(|id| format!("files/{id}/content"))
        };
        let (output, errors) = (file("output_file_id"), file("error_file_id"));
        let answered = batch["request_counts"]["completed"].as_u64().unwrap_or(0);
        if output.is_none() && answered > 0 {
            tracing::warn!("the batch {remote} is {how} and does not name its output yet");
            return Ok(State::Open);
        }
        let problems = batch["errors"]["data"].as_array();
        let refused = (how == "failed").then(|| {
            let problems = problems.into_iter().flatten().map(Value::to_string);
            problems.collect::<Vec<_>>().join("; ")
        });
        Ok(State::Ended(Ended {
            how,
            refused,
            files: output.into_iter().chain(errors).collect(),
        }))
    }
}

/// A request as a line of a batch's file.
pub(crate) fn line(custom_id: &str, prefix: &str, request: &Request) -> String {
    let url = format!("{prefix}{}", request.path);
    json!({"custom_id": custom_id, "method": "POST", "url": url, "body": request.body}).to_string()
}

/// Reads a line of an output or error file. A reply counts where its status is 200 and no error
/// stands beside it; a 4xx may come with or without an error, and some lines have the status 0.
pub(crate) fn read(line: &str) -> Option<Line> {
    let mut json: Value = serde_json::from_str(line).ok()?;
    let custom_id = json["custom_id"].as_str()?.to_owned();
    let taken = |json: &mut Value, path: &str| json.pointer_mut(path).map(Value::take);
    let error = taken(&mut json, "/error").unwrap_or_default();
    let body = taken(&mut json, "/response/body").unwrap_or_default();
    let response = &json["response"];
    let status = response["status_code"]
        .as_u64()
        .and_then(|status| u16::try_from(status).ok());
    let ended = match status {
        Some(200) if error.is_null() => Ok((200, body)),
        Some(status @ 300..600) if body.is_null() => Ok((status, json!({"error": error}))),
        Some(status @ 300..600) => Ok((status, body)),
        _ => Err(format!("status {}: {error}", status.unwrap_or(0))),
    };
    Some(Line {
        custom_id,
        request_id: response["request_id"].as_str().map(str::to_owned),
        ended,
    })
}

/// A file for the files interface: its content type and its body (RFC 7578).
fn form(name: &str, input: &[u8]) -> (String, Vec<u8>) {
    // The name is drawn at random: it stands in no text.
    let boundary = format!("retort-{name}");
    let head = format!(
        "--{boundary}\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n\
         --{boundary}\r\ncontent-disposition: form-data; name=\"file\"; \
         filename=\"retort-{name}.jsonl\"\r\ncontent-type: application/jsonl\r\n\r\n"
    );
    let mut body = head.into_bytes();
    body.extend_from_slice(input);
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={boundary}"), body)
}

/// Seconds since 1970 of a time in the ledger.
pub(crate) fn seconds(at: &str) -> i64 {
    at.parse::<jiff::Timestamp>()
        .map_or(0, jiff::Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reply_with_status_200_and_no_error_is_one() {
        let ended = |response: Value, error: Value| {
            let line = json!({"custom_id": "a", "response": response, "error": error});
            read(&line.to_string()).unwrap().ended
        };
        let status = |status: u16| json!({"status_code": status, "body": {"b": 1}});
        assert_eq!(ended(status(200), Value::Null), Ok((200, json!({"b": 1}))));
        assert!(ended(status(200), json!({"code": "x"})).is_err());
        assert_eq!(ended(status(400), Value::Null), Ok((400, json!({"b": 1}))));
        let of_vllm = ended(json!({"status_code": 400}), json!({"message": "too long"}));
        assert_eq!(
            of_vllm,
            Ok((400, json!({"error": {"message": "too long"}})))
        );
        assert!(ended(status(0), Value::Null).is_err());
        let expired = ended(Value::Null, json!({"code": "batch_expired"})).unwrap_err();
        assert!(expired.contains("batch_expired"), "{expired}");
        assert!(ended("cut".into(), Value::Null).is_err());
        for line in [
            "",
            "{}",
            "[1]",
            "{\"custom_id\": 3}",
            "{\"custom_id\": \"a\"",
        ] {
            assert!(read(line).is_none(), "{line}");
        }
    }
}
