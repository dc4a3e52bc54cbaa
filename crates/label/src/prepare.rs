//! What a teacher's servers are asked once, before any question: it shows them no text and costs
//! nothing, so it is not in the ledger.

use serde_json::Value;

use crate::dialect::{self, Problem, shortened};
use crate::job::Teacher;
use crate::replica::{NoReply, Replica};
use crate::retry::{self, LONGEST_PAUSE};
use crate::{Error, Result};

/// Asks every server what the dialect has to know of it.
///
/// # Errors
/// A server that is gone or refuses, or one that can't be asked what is to be asked.
pub(crate) async fn prepare(teacher: &mut Teacher, retries: u32) -> Result<()> {
    let requests = teacher.dialect.preliminaries();
    for replica in &teacher.replicas {
        let mut replies = Vec::with_capacity(requests.len());
        for (path, body) in &requests {
            replies.push(reply(replica, path, body, retries).await?);
        }
        if !replies.is_empty() {
            teacher.dialect.prepare(replica.name(), &replies)?;
        }
    }
    Ok(())
}

async fn reply(replica: &Replica, path: &str, body: &Value, retries: u32) -> Result<Value> {
    let mut failed = 0;
    loop {
        let (problem, pause) = match replica.post(path, body.to_string()).await {
            Err(NoReply::NotSent(problem) | NoReply::Lost(problem)) => (problem, None),
            Err(NoReply::TooLong) => ("a reply of more than 8 MiB".to_owned(), None),
            Ok(reply) => {
                let body = reply.body;
                if reply.status == 200 {
                    return serde_json::from_str(&body).map_err(|_| Error::Teacher {
                        url: replica.name().to_owned(),
                        problem: format!("{path}: expected JSON: {}", shortened(&body)),
                    });
                }
                match dialect::refusal(replica.name(), reply.status, &body) {
                    Problem::Fatal(error) => return Err(error),
                    Problem::Rejected(problem) => {
                        return Err(Error::Teacher {
                            url: replica.name().to_owned(),
                            problem,
                        });
                    }
                    problem => (problem.to_string(), reply.advice.after),
                }
            }
        };
        let pause = pause.unwrap_or_else(|| retry::backoff(failed + 1, 0.0));
        if failed == retries || pause > LONGEST_PAUSE {
            let problem = format!("{}{path}: {problem}", replica.name());
            return Err(Error::Gone { problem });
        }
        failed += 1;
        tokio::time::sleep(pause).await;
    }
}
