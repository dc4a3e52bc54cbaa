//! Where batches go, and what comes back: three interfaces, one shape.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::Value;

use super::anthropic::AnthropicBatches;
use super::files::BatchFiles;
use super::openai::OpenAiBatches;
use crate::dialect::{self, Problem, Request};
use crate::job::{LabelSettings, Teacher, Wire};
use crate::ledger::{OpenBatch, Posed};
use crate::replica::{NoReply, Replica, Reply};
use crate::retry::{self, LONGEST_PAUSE};
use crate::secret::Secret;
use crate::{Error, Result};

/// An interface that takes batches.
pub(crate) enum Remote<'a> {
    OpenAi(OpenAiBatches<'a>),
    Anthropic(AnthropicBatches<'a>),
    Files(BatchFiles),
}

/// How a batch stands.
pub(crate) enum State {
    Open,
    Ended(Ended),
}

/// A batch that has ended, however it did.
pub(crate) struct Ended {
    /// The interface's word for it.
    pub(crate) how: String,
    /// Why it was not taken at all, if so.
    pub(crate) refused: Option<String>,
    /// The files that its lines are in.
    pub(crate) files: Vec<String>,
}

/// One line of what came back.
pub(crate) struct Line {
    pub(crate) custom_id: String,
    pub(crate) request_id: Option<String>,
    /// Status and body of a reply, or why there is none.
    pub(crate) ended: Result<(u16, Value), String>,
}

impl Line {
    pub(crate) fn is_reply(&self) -> bool {
        matches!(self.ended, Ok((200, _)))
    }
}

/// What became of a batch that may have arrived.
pub(crate) enum Search {
    Found(String),
    Absent,
    /// One that can't be told from it is still open.
    Unclear,
}

/// What tells a batch from others.
pub(crate) struct Sought<'a> {
    pub(crate) batch: &'a OpenBatch,
    pub(crate) questions: &'a HashMap<String, Posed>,
    /// Batches that are something else.
    pub(crate) known: &'a HashSet<String>,
}

impl<'a> Remote<'a> {
    /// The interface that a job's teacher has.
    ///
    /// # Errors
    /// A dialect that has none, several endpoints.
    pub(crate) fn new(settings: &LabelSettings, teacher: &'a Teacher) -> Result<Self> {
        let of_teacher = &settings.teacher;
        let setting = |problem: &str| Err(Error::Setting(format!("[teacher.batch] {problem}")));
        if of_teacher.batch.requests == 0 || of_teacher.batch.at_once == 0 {
            return setting("requests and at_once must be at least 1");
        }
        if let Some(folder) = &of_teacher.batch.folder {
            return match of_teacher.dialect {
                Wire::Chat | Wire::VllmRerank | Wire::VllmScore => {
                    Ok(Self::Files(BatchFiles::new(folder)?))
                }
                _ => setting("folder: `vllm run-batch` speaks chat, vllm-rerank and vllm-score"),
            };
        }
        let [replica] = &*teacher.replicas else {
            return setting("a batch goes to one endpoint: name one alone");
        };
        let caller = Caller {
            replica,
            key: teacher.key.as_ref(),
            retries: of_teacher.retries,
        };
        match of_teacher.dialect {
            Wire::Chat => Ok(Self::OpenAi(OpenAiBatches {
                caller,
                prefix: of_teacher.batch.prefix.clone(),
            })),
            Wire::Anthropic => Ok(Self::Anthropic(AnthropicBatches { caller })),
            _ => setting("rerankers have no batch interface; `folder` writes files for vLLM"),
        }
    }

    /// Where batches go: it may be shown.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::OpenAi(OpenAiBatches { caller, .. })
            | Self::Anthropic(AnthropicBatches { caller }) => caller.replica.name(),
            Self::Files(files) => files.name(),
        }
    }

    /// A request as a line of a batch.
    pub(crate) fn line(&self, custom_id: &str, request: &Request) -> String {
        match self {
            Self::OpenAi(openai) => super::openai::line(custom_id, &openai.prefix, request),
            Self::Anthropic(_) => super::anthropic::line(custom_id, request),
            Self::Files(_) => super::openai::line(custom_id, "/v1/", request),
        }
    }

    /// Lines as they are sent.
    pub(crate) fn input(&self, lines: &[String]) -> Vec<u8> {
        let text = match self {
            Self::Anthropic(_) => format!("{{\"requests\":[{}]}}", lines.join(",")),
            Self::OpenAi(_) | Self::Files(_) => lines.join("\n") + "\n",
        };
        text.into_bytes()
    }

    /// Sends a batch; returns the interface's name for it.
    pub(crate) async fn submit(&self, batch: &OpenBatch, input: &[u8]) -> Result<String, Problem> {
        match self {
            Self::OpenAi(openai) => openai.submit(batch, input).await,
            Self::Anthropic(anthropic) => anthropic.submit(input).await,
            Self::Files(files) => files.submit(batch, input),
        }
    }

    /// Looks for a batch that may have arrived.
    pub(crate) async fn find(&self, sought: &Sought<'_>) -> Result<Search> {
        match self {
            Self::OpenAi(openai) => openai.find(sought).await,
            Self::Anthropic(anthropic) => anthropic.find(sought).await,
            Self::Files(files) => Ok(files.find(sought.batch)),
        }
    }

    /// How a batch stands.
    pub(crate) async fn state(&self, batch: &OpenBatch, remote: &str) -> Result<State> {
        match self {
            Self::OpenAi(openai) => openai.state(remote).await,
            Self::Anthropic(anthropic) => anthropic.state(remote).await,
            Self::Files(files) => files.state(batch, remote),
        }
    }

    /// All lines of a batch that has ended.
    pub(crate) async fn results(&self, ended: &Ended) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for file in &ended.files {
            let text = match self {
                Self::OpenAi(OpenAiBatches { caller, .. })
                | Self::Anthropic(AnthropicBatches { caller }) => caller.download(file).await?,
                Self::Files(files) => files.take(file)?,
            };
            lines.extend(
                text.lines()
                    .filter(|line| !line.trim().is_empty())
                    .map(str::to_owned),
            );
        }
        Ok(lines)
    }

    /// Reads a line; `None` where it is none.
    pub(crate) fn read(&self, line: &str) -> Option<Line> {
        match self {
            Self::Anthropic(_) => super::anthropic::read(line),
            Self::OpenAi(_) | Self::Files(_) => super::openai::read(line),
        }
    }
}

/// A server that is asked about batches; what fails and passes is tried again.
pub(crate) struct Caller<'a> {
    pub(crate) replica: &'a Replica,
    pub(crate) key: Option<&'a Secret>,
    pub(crate) retries: u32,
}

impl Caller<'_> {
    /// What a path holds, as JSON.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        let body = self.ask(async || self.replica.get(path).await).await;
        let body = body.map_err(|problem| self.error(problem))?;
        json(&body).map_err(|problem| self.error(problem))
    }

    /// A file, whole.
    pub(crate) async fn download(&self, path: &str) -> Result<String> {
        let body = self.ask(async || self.replica.download(path).await).await;
        body.map_err(|problem| self.error(problem))
    }

    /// Posts, and again where that fails and passes: for what may be there twice.
    pub(crate) async fn upload(
        &self,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> Result<Value, Problem> {
        let send = async || self.replica.upload(path, content_type, body.to_vec()).await;
        json(&self.ask(send).await?)
    }

    /// Posts once: for what must not be there twice.
    pub(crate) async fn create(&self, path: &str, body: &[u8]) -> Result<Value, Problem> {
        let send = self.replica.upload(path, "application/json", body.to_vec());
        json(&self.read(send.await).map_err(|(problem, _)| problem)?)
    }

    async fn ask(&self, send: impl AsyncFn() -> Result<Reply, NoReply>) -> Result<String, Problem> {
        let mut failed = 0;
        loop {
            let (problem, pause) = match self.read(send().await) {
                Ok(body) => return Ok(body),
                Err((Problem::Passing(problem), pause)) => (problem, pause),
                Err((problem, _)) => return Err(problem),
            };
            let pause = pause.unwrap_or_else(|| retry::backoff(failed + 1, 0.5));
            if failed == self.retries || pause > LONGEST_PAUSE {
                return Err(Problem::Passing(problem));
            }
            failed += 1;
            tracing::debug!("{problem}; trying again in {pause:?}");
            tokio::time::sleep(pause).await;
        }
    }

    /// A reply's body; or what is wrong with it, and the pause that the server asks for.
    fn read(&self, replied: Result<Reply, NoReply>) -> Result<String, (Problem, Option<Duration>)> {
        let reply = replied.map_err(|no_reply| {
            let problem = match no_reply {
                NoReply::NotSent(problem) | NoReply::Lost(problem) => problem,
                NoReply::TooLong => "a reply of too many bytes".to_owned(),
            };
            (Problem::Passing(problem), None)
        })?;
        let body = match self.key {
            Some(key) => key.removed_from(&reply.body),
            None => reply.body,
        };
        match reply.status {
            200..300 => Ok(body),
            status => {
                let problem = dialect::refusal(self.replica.name(), status, &body);
                Err((problem, reply.advice.after))
            }
        }
    }

    /// A problem that has no end in sight, as an error.
    pub(crate) fn error(&self, problem: Problem) -> Error {
        error(self.replica.name(), problem)
    }
}

/// A problem that has no end in sight, as an error; `name` is whom it is with.
pub(crate) fn error(name: &str, problem: Problem) -> Error {
    match problem {
        Problem::Fatal(error) => error,
        Problem::Passing(problem) => Error::Gone {
            problem: format!("{name}: {problem}"),
        },
        problem => Error::Teacher {
            url: name.to_owned(),
            problem: problem.to_string(),
        },
    }
}

fn json(body: &str) -> Result<Value, Problem> {
    serde_json::from_str(body).map_err(|_| {
        let shown = dialect::shortened(body);
        Problem::Passing(format!("a body that is not JSON: {shown}"))
    })
}

/// A name that a server gave: it becomes part of a path.
pub(crate) fn id(value: &Value) -> Result<String, Problem> {
    let is_id = |text: &&str| {
        let of_ids = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        (1..=256).contains(&text.len()) && text.chars().all(of_ids)
    };
    match value.as_str().filter(is_id) {
        Some(id) => Ok(id.to_owned()),
        None => Err(Problem::Passing(format!("expected an id, not {value}"))),
    }
}
