//! OpenAI's files and batches, as Azure has them too: a file of requests goes up, a batch is made
//! of it, files of replies come down. The lines of both are those of `vllm run-batch`.

use serde_json::{Value, json};

use super::remote::{Caller, Ended, Line, Search, Sought, Told, error, id, seconds};
use crate::Result;
use crate::dialect::{Problem, Request};
use crate::ledger::{OpenBatch, now};

/// Batches on one page of the list: the most that is granted; and pages that are read.
const PAGE: usize = 100;
const PAGES: usize = 1000;
/// How far the server's clock may be behind.
const CLOCK_SKEW_SECONDS: i64 = 3600;
/// How long after its end a batch may still be without the names of its files.
const SECONDS_TO_NAME_FILES: i64 = 3600;

pub(crate) struct OpenAiBatches<'a> {
    pub(crate) caller: Caller<'a>,
    /// What stands before `chat/completions` in a line.
    pub(crate) prefix: String,
}

impl OpenAiBatches<'_> {
    /// Sends the file; returns the body that makes a batch of it.
    pub(crate) async fn upload(
        &self,
        batch: &OpenBatch,
        lines: &[String],
    ) -> Result<Vec<u8>, Problem> {
        let (content_type, form) = form(&batch.name, &body(lines));
        let file = self.caller.upload("files", &content_type, &form).await?;
        let body = json!({
            "input_file_id": id(&file["id"])?,
            "endpoint": format!("{}chat/completions", self.prefix),
            "completion_window": "24h",
            // By this it is found again should its id never reach us.
            "metadata": {"retort": batch.name},
        });
        Ok(body.to_string().into_bytes())
    }

    pub(crate) async fn create(&self, body: Vec<u8>) -> Result<String, Problem> {
        id(&self.caller.create("batches", body).await?["id"])
    }

    pub(crate) async fn find(&self, sought: &Sought<'_>) -> Result<Search> {
        let mut after = String::new();
        for _ in 0..PAGES {
            let path = format!("batches?limit={PAGE}{after}");
            let page = self.caller.get(&path).await?;
            let batches = page["data"].as_array().map_or(&[][..], Vec::as_slice);
            for one in batches {
                if one["metadata"]["retort"] == *sought.batch.name {
                    return Ok(Search::Found(self.id(&one["id"])?));
                }
            }
            let (Some(last), Some(true)) = (batches.last(), page["has_more"].as_bool()) else {
                break;
            };
            // The newest come first.
            let made = last["created_at"].as_i64();
            if made.is_some_and(|made| made < sought.left - CLOCK_SKEW_SECONDS) {
                break;
            }
            after = format!("&after={}", self.id(&last["id"])?);
        }
        Ok(Search::Absent)
    }

    pub(crate) async fn ended(&self, remote: &str) -> Result<Option<Ended>> {
        let path = format!("batches/{remote}");
        let Some(batch) = self.caller.find(&path).await? else {
            return Ok(Some(Ended::missing(path)));
        };
        Ok(ended(&batch, seconds(&now())))
    }

    fn id(&self, value: &Value) -> Result<String> {
        id(value).map_err(|problem| error(self.caller.replica.name(), problem))
    }
}

/// How a batch ended, if it has. Whatever it ended as, some of it may be done; a file that is not
/// there is null or "".
fn ended(batch: &Value, now: i64) -> Option<Ended> {
    let how = batch["status"].as_str().unwrap_or_default();
    if !matches!(how, "completed" | "failed" | "expired" | "cancelled") {
        return None;
    }
    let file = |name: &str| Some(format!("files/{}/content", id(&batch[name]).ok()?));
    let output = file("output_file_id");
    let answered = batch["request_counts"]["completed"].as_u64().unwrap_or(0);
    let at = batch[format!("{how}_at")].as_i64().unwrap_or(0);
    if output.is_none() && answered > 0 && now - at < SECONDS_TO_NAME_FILES {
        return None;
    }
    let problems = batch["errors"]["data"].as_array();
    let refused = (how == "failed").then(|| {
        let problems = problems.into_iter().flatten().map(Value::to_string);
        problems.collect::<Vec<_>>().join("; ")
    });
    Some(Ended {
        how: how.to_owned(),
        refused,
        files: output.into_iter().chain(file("error_file_id")).collect(),
        missing: None,
    })
}

/// A request as a line of a batch's file.
pub(crate) fn line(custom_id: &str, prefix: &str, request: &Request) -> String {
    let url = format!("{prefix}{}", request.path);
    json!({"custom_id": custom_id, "method": "POST", "url": url, "body": request.body}).to_string()
}

/// Lines as a file.
pub(crate) fn body(lines: &[String]) -> Vec<u8> {
    (lines.join("\n") + "\n").into_bytes()
}

/// Reads a line of an output or error file. A reply counts where its status is 200 and no error
/// stands beside it; a 4xx may come with or without an error, and some lines have the status 0.
pub(crate) fn read(line: &str) -> Option<Line> {
    let mut json: Value = serde_json::from_str(line).ok()?;
    let custom_id = json["custom_id"].as_str()?.to_owned();
    let mut taken = |path| json.pointer_mut(path).map(Value::take).unwrap_or_default();
    let (error, body) = (taken("/error"), taken("/response/body"));
    let response = &json["response"];
    let status = response["status_code"].as_u64();
    let status = status.and_then(|status| u16::try_from(status).ok());
    let told = match status {
        Some(200) if error.is_null() => Told::Reply(200, body),
        Some(status @ 300..600) if body.is_null() => Told::Reply(status, json!({"error": error})),
        Some(status @ 300..600) => Told::Reply(status, body),
        None if response.is_null() && !error.is_null() => Told::NotRun(error.to_string()),
        status => Told::Lost(format!("status {}: {error}", status.unwrap_or(0))),
    };
    let request_id = response["request_id"].as_str().map(str::to_owned);
    Some(Line {
        custom_id,
        request_id,
        told,
    })
}

/// A file for the files interface: its content type and its body (RFC 7578).
fn form(name: &str, file: &[u8]) -> (String, Vec<u8>) {
    // The name is drawn at random: it stands in no text.
    let boundary = format!("retort-{name}");
    let head = format!(
        "--{boundary}\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n\
         --{boundary}\r\ncontent-disposition: form-data; name=\"file\"; \
         filename=\"retort-{name}.jsonl\"\r\ncontent-type: application/jsonl\r\n\r\n"
    );
    let mut body = head.into_bytes();
    body.extend_from_slice(file);
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={boundary}"), body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reply_with_status_200_and_no_error_is_one() {
        let told = |response: Value, error: Value| {
            let line = json!({"custom_id": "a", "response": response, "error": error});
            read(&line.to_string()).unwrap().told
        };
        let status = |status: u16| json!({"status_code": status, "body": {"b": 1}});
        let body = || json!({"b": 1});
        assert_eq!(told(status(200), Value::Null), Told::Reply(200, body()));
        assert_eq!(told(status(400), Value::Null), Told::Reply(400, body()));
        let of_vllm = told(json!({"status_code": 400}), json!({"message": "too long"}));
        let error = json!({"error": {"message": "too long"}});
        assert_eq!(of_vllm, Told::Reply(400, error));
        let lost = |told| matches!(told, Told::Lost(_));
        assert!(lost(told(status(200), json!({"code": "x"}))));
        assert!(lost(told(status(0), Value::Null)));
        assert!(lost(told("cut".into(), Value::Null)));
        assert!(lost(told(Value::Null, Value::Null)));
        let expired = told(Value::Null, json!({"code": "batch_expired"}));
        assert!(matches!(expired, Told::NotRun(why) if why.contains("batch_expired")));
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

    #[test]
    fn a_batch_that_does_not_name_its_output_yet_is_waited_for_a_while() {
        let batch = json!({
            "status": "completed",
            "completed_at": 1000,
            "output_file_id": null,
            "error_file_id": "",
            "request_counts": {"completed": 3},
        });
        assert_eq!(ended(&batch, 1060), None);
        assert_eq!(ended(&batch, 9000).unwrap().files, [""; 0]);
        let mut none_answered = batch;
        none_answered["request_counts"]["completed"] = 0.into();
        assert_eq!(ended(&none_answered, 1060).unwrap().how, "completed");
    }
}
