//! Where batches go, and what comes back: three interfaces, one shape.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::anthropic::AnthropicBatches;
use super::files::BatchFiles;
use super::openai::OpenAiBatches;
use crate::dialect::{self, Problem, Request};
use crate::job::{LabelSettings, Teacher, Wire};
use crate::ledger::{OpenBatch, Posed};
use crate::replica::{NoReply, Replica, Reply};
use crate::retry::{self, LONGEST_PAUSE};
use crate::{Error, Result};

/// An interface that takes batches.
pub(crate) enum Remote<'a> {
    OpenAi(OpenAiBatches<'a>),
    Anthropic(AnthropicBatches<'a>),
    Files(BatchFiles),
}

/// A batch that has ended, however it did.
#[derive(Debug, PartialEq)]
pub(crate) struct Ended {
    /// The interface's word for it.
    pub(crate) how: String,
    /// Why it was not taken at all, if so.
    pub(crate) refused: Option<String>,
    /// The files that its lines are in.
    pub(crate) files: Vec<String>,
    /// The path of the batch or of a file of its, where nothing is found there.
    pub(crate) missing: Option<String>,
}

impl Ended {
    /// A batch that is not found.
    pub(crate) fn missing(path: String) -> Self {
        Self {
            how: "lost".to_owned(),
            refused: None,
            files: Vec::new(),
            missing: Some(path),
        }
    }
}

/// One line of what came back.
pub(crate) struct Line {
    pub(crate) custom_id: String,
    pub(crate) request_id: Option<String>,
    pub(crate) told: Told,
}

/// What a line says.
#[derive(Debug, PartialEq)]
pub(crate) enum Told {
    /// A reply, with its status and body.
    Reply(u16, Value),
    /// The request was never run.
    NotRun(String),
    /// Who knows.
    Lost(String),
}

impl Line {
    /// Whether it is a reply that may hold an answer.
    pub(crate) fn is_reply(&self) -> bool {
        matches!(self.told, Told::Reply(200, _))
    }
}

/// What became of a batch that may have arrived.
pub(crate) enum Search {
    /// It did, and bears this name.
    Found(String),
    Absent,
    /// Nobody can tell yet.
    Unclear,
}

/// What tells a batch from others.
pub(crate) struct Sought<'a> {
    pub(crate) batch: &'a OpenBatch,
    /// When it left, in seconds since 1970.
    pub(crate) left: i64,
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
        let batch = &of_teacher.batch;
        let setting = |problem: &str| Err(Error::Setting(format!("[teacher.batch] {problem}")));
        if batch.requests == 0 || batch.at_once == 0 {
            return setting("requests and at_once must be at least 1");
        }
        let caller = || match &*teacher.replicas {
            [replica] => Ok(Caller {
                replica,
                retries: of_teacher.retries,
            }),
            _ => Err(Error::Setting(
                "[teacher] endpoints: batches go to one endpoint: name one alone".to_owned(),
            )),
        };
        match (of_teacher.dialect, &batch.folder) {
            (Wire::Chat, Some(folder)) => Ok(Self::Files(BatchFiles::new(folder)?)),
            (Wire::Chat, None) => Ok(Self::OpenAi(OpenAiBatches {
                caller: caller()?,
                prefix: batch.prefix.clone(),
            })),
            (Wire::Anthropic, None) => Ok(Self::Anthropic(AnthropicBatches { caller: caller()? })),
            (_, Some(_)) => setting("folder: files for `vllm run-batch` are of the chat dialect"),
            (_, None) => setting("only the dialects chat and anthropic have batches"),
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

    /// Whether what is sent leaves for another place.
    pub(crate) fn is_far(&self) -> bool {
        !matches!(self, Self::Files(_))
    }

    /// A request as a line of a batch.
    pub(crate) fn line(&self, custom_id: &str, request: &Request) -> String {
        match self {
            Self::OpenAi(openai) => super::openai::line(custom_id, &openai.prefix, request),
            Self::Anthropic(_) => super::anthropic::line(custom_id, request),
            Self::Files(_) => super::openai::line(custom_id, "/v1/", request),
        }
    }

    /// Sends what must be there before a batch is made; returns what it is made from.
    pub(crate) async fn upload(
        &self,
        batch: &OpenBatch,
        lines: &[String],
    ) -> Result<Vec<u8>, Problem> {
        match self {
            Self::OpenAi(openai) => openai.upload(batch, lines).await,
            Self::Anthropic(_) => Ok(super::anthropic::body(lines)),
            Self::Files(files) => {
                files.prepare().map_err(Problem::Fatal)?;
                Ok(super::openai::body(lines))
            }
        }
    }

    /// Makes a batch; returns the interface's name for it.
    pub(crate) async fn create(&self, batch: &OpenBatch, body: Vec<u8>) -> Result<String, Problem> {
        match self {
            Self::OpenAi(openai) => openai.create(body).await,
            Self::Anthropic(anthropic) => anthropic.create(body).await,
            Self::Files(files) => files.create(batch, &body),
        }
    }

    /// Looks for a batch that may have arrived.
    pub(crate) async fn find(&self, sought: &Sought<'_>) -> Result<Search> {
        match self {
            Self::OpenAi(openai) => openai.find(sought).await,
            Self::Anthropic(anthropic) => anthropic.find(sought).await,
            Self::Files(files) => files.find(sought.batch),
        }
    }

    /// How a batch ended, if it has.
    pub(crate) async fn ended(&self, batch: &OpenBatch, remote: &str) -> Result<Option<Ended>> {
        match self {
            Self::OpenAi(openai) => openai.ended(remote).await,
            Self::Anthropic(anthropic) => anthropic.ended(remote).await,
            Self::Files(files) => files.ended(batch, remote),
        }
    }

    /// All lines of a batch that has ended, of those files that are found.
    pub(crate) async fn results(&self, ended: &mut Ended) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for file in &ended.files {
            let text = match self {
                Self::OpenAi(OpenAiBatches { caller, .. })
                | Self::Anthropic(AnthropicBatches { caller }) => caller.download(file).await?,
                Self::Files(files) => Some(files.take(file)?),
            };
            let Some(text) = text else {
                ended.missing = Some(file.clone());
                continue;
            };
            let text = text.lines().filter(|line| !line.trim().is_empty());
            lines.extend(text.map(str::to_owned));
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
    pub(crate) retries: u32,
}

impl Caller<'_> {
    /// What a path holds, as JSON.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        let reply = self.ask(async || self.replica.get(path).await).await;
        let json = reply.and_then(|reply| json(&self.accepted(reply)?));
        json.map_err(|problem| error(self.replica.name(), problem))
    }

    /// What a path holds that was there before, as JSON; nothing where it is not found.
    pub(crate) async fn find(&self, path: &str) -> Result<Option<Value>> {
        let reply = self.ask(async || self.replica.get(path).await).await;
        let found = reply.and_then(|reply| self.found(reply));
        let json = found.and_then(|body| body.as_deref().map(json).transpose());
        json.map_err(|problem| error(self.replica.name(), problem))
    }

    /// A file, whole; nothing where it is not found.
    pub(crate) async fn download(&self, path: &str) -> Result<Option<String>> {
        let reply = self.ask(async || self.replica.download(path).await).await;
        let text = reply.and_then(|reply| self.found(reply));
        text.map_err(|problem| error(self.replica.name(), problem))
    }

    fn found(&self, reply: Reply) -> Result<Option<String>, Problem> {
        match reply.status {
            404 | 410 => Ok(None),
            _ => self.accepted(reply).map(Some),
        }
    }

    /// Posts, and again where that fails and passes: for what may be there twice.
    pub(crate) async fn upload(
        &self,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> Result<Value, Problem> {
        let send = async || self.replica.upload(path, content_type, body.to_vec()).await;
        json(&self.accepted(self.ask(send).await?)?)
    }

    /// Posts once: for what must not be there twice.
    pub(crate) async fn create(&self, path: &str, body: Vec<u8>) -> Result<Value, Problem> {
        let reply = self.replica.upload(path, "application/json", body).await;
        let reply = reply.map_err(|no_reply| Problem::Passing(in_words(no_reply)))?;
        json(&self.accepted(reply)?)
    }

    /// Sends until there is a reply that will not be another one a while later.
    async fn ask(&self, send: impl AsyncFn() -> Result<Reply, NoReply>) -> Result<Reply, Problem> {
        let mut failed = 0;
        loop {
            let (problem, pause) = match send().await {
                Err(no_reply) => (in_words(no_reply), None),
                Ok(reply) => match self.refusal(&reply) {
                    Some(Problem::Passing(problem)) => (problem, reply.advice.after),
                    _ => return Ok(reply),
                },
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

    /// A reply's body, if that is what was asked for.
    fn accepted(&self, reply: Reply) -> Result<String, Problem> {
        match self.refusal(&reply) {
            Some(problem) => Err(problem),
            None => Ok(reply.body),
        }
    }

    fn refusal(&self, reply: &Reply) -> Option<Problem> {
        match reply.status {
            200..300 => None,
            status => Some(dialect::refusal(self.replica.name(), status, &reply.body)),
        }
    }
}

fn in_words(no_reply: NoReply) -> String {
    match no_reply {
        NoReply::NotSent(problem) | NoReply::Lost(problem) => problem,
        NoReply::TooLong => "a reply of too many bytes".to_owned(),
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
        (1..=512).contains(&text.len()) && text.chars().all(of_ids)
    };
    match value.as_str().filter(is_id) {
        Some(id) => Ok(id.to_owned()),
        None => Err(Problem::Passing(format!("expected an id, not {value}"))),
    }
}

/// Seconds since 1970 of a time, RFC 3339; 0 where it is none.
pub(crate) fn seconds(at: &str) -> i64 {
    at.parse::<jiff::Timestamp>()
        .map_or(0, jiff::Timestamp::as_second)
}
