//! The preflight, sent: each endpoint that nothing is known of is tried before it is asked a
//! question.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::send::{Answers, Attempted};
use super::settle::{Next, Tries};
use super::{Halt, Job, Started, close, unless};
use crate::dialect::{Dialect, Problem, Request, Texts};
use crate::job::{LabelSettings, Teacher};
use crate::ledger::{Key, Outcome, Record};
use crate::preflight::script::Script;
use crate::preflight::{Fault, Heard, Preflight, hint};
use crate::questions::Questions;
use crate::replica::Replica;
use crate::retry::LONGEST_PAUSE;
use crate::{Error, Result};

/// An endpoint that did not answer is not asked in this run while there are others.
const REST_OF_THE_RUN: Duration = Duration::from_hours(24 * 365);

/// Tries every endpoint of a job, whatever an earlier preflight found, and puts what this one finds
/// on record.
///
/// # Errors
/// Bad input, before anything is sent; an endpoint that fails or does not answer; the budget.
pub async fn preflight(settings: &LabelSettings) -> Result<Vec<Preflight>> {
    match tried(start(settings).await?, &[]).await? {
        Tried { gone: None, passed } => Ok(passed),
        Tried {
            gone: Some(problem),
            ..
        } => Err(Error::Gone { problem }),
    }
}

/// Tries the endpoints of a job that has something to ask, where no earlier preflight holds.
pub(crate) async fn try_endpoints(settings: &LabelSettings) -> Result<()> {
    let started = start(settings).await?;
    if !started.job.questions.asked.is_empty() {
        let known = started.job.passed.clone();
        tried(started, &known).await?;
    }
    Ok(())
}

async fn start(settings: &LabelSettings) -> Result<Started> {
    let teacher = Teacher::new(settings)?;
    let (teacher, questions) = Questions::read_apart(settings, teacher).await?;
    Started::new(settings, teacher, questions, false).await
}

/// Tries the endpoints that `known` says too little of, and ends the run.
async fn tried(started: Started, known: &[Preflight]) -> Result<Tried> {
    let Started {
        job,
        written,
        // The job is stopped when nobody holds this.
        stopping: _stopping,
        ..
    } = started;
    let tried = job.preflight(known, &job.stopped).await;
    let budget = Arc::clone(&job.budget);
    drop(job);
    close(written, &budget).await?;
    match tried {
        Ok(tried) => Ok(tried),
        Err(Halt::Because(error)) => Err(error),
        Err(Halt::Stopped) => Ok(Tried {
            passed: Vec::new(),
            gone: None,
        }),
    }
}

/// What came of a preflight that no endpoint failed.
pub(super) struct Tried {
    passed: Vec<Preflight>,
    /// Why the last of those endpoints did not answer that did not.
    gone: Option<String>,
}

/// Answers, or how it ended without.
type Hearing<T> = Result<T, Unheard>;

enum Unheard {
    Ended(Outcome, String),
    /// The request is none that the server takes.
    Rejected(String),
}

/// What is known of an endpoint, if it still says enough.
pub(super) fn held<'a>(
    passed: &'a [Preflight],
    replica: &Replica,
    script: &Script,
    settings: &LabelSettings,
) -> Option<&'a Preflight> {
    let least_mass = settings.teacher.least_mass;
    let holds =
        |one: &&Preflight| one.endpoint == replica.name() && one.holds(script.words, least_mass);
    passed.iter().find(holds)
}

/// The requests that try an endpoint.
pub(super) fn requests(script: &Script, dialect: &dyn Dialect) -> Result<Vec<Request>> {
    let mut requests = Vec::new();
    for texts in [&script.short[..], &script.long] {
        for texts in texts.chunks(dialect.questions_per_request()) {
            requests.push(dialect.request(&texts.iter().collect::<Vec<_>>())?);
        }
    }
    Ok(requests)
}

impl Job {
    /// Tries the endpoints that `known` says too little of, side by side, and puts what it finds on
    /// record.
    pub(super) async fn preflight(
        self: &Arc<Self>,
        known: &[Preflight],
        stopped: &watch::Receiver<bool>,
    ) -> Result<Tried, Halt> {
        let script = Arc::new(self.questions.script(&self.teacher));
        let replicas = &self.teacher.replicas;
        let held = |replica| held(known, replica, &script, &self.settings).cloned();
        let mut passed: Vec<Option<Preflight>> = replicas.iter().map(held).collect();
        let mut tasks = JoinSet::new();
        for place in (0..replicas.len()).filter(|place| passed[*place].is_none()) {
            let (job, script) = (Arc::clone(self), Arc::clone(&script));
            let mut stopped = stopped.clone();
            tasks.spawn(async move {
                let replica = &job.teacher.replicas[place];
                let tried = job.try_endpoint(replica, &script, &mut stopped).await;
                (place, tried)
            });
        }
        let (mut gone, mut is_new) = (None, false);
        while let Some(joined) = tasks.join_next().await {
            let (place, tried) = joined.map_err(|error| Error::Io(std::io::Error::other(error)))?;
            match tried? {
                Ok(preflight) => {
                    tracing::info!("{preflight}");
                    is_new = true;
                    passed[place] = Some(preflight);
                }
                Err(problem) => {
                    let endpoint = replicas[place].name();
                    tracing::warn!("{endpoint} did not answer and is left out: {problem}");
                    replicas[place].pause(REST_OF_THE_RUN);
                    gone = Some(format!("{endpoint}: {problem}"));
                }
            }
        }
        let passed: Vec<Preflight> = passed.into_iter().flatten().collect();
        if let (true, Some(problem)) = (passed.is_empty(), &gone) {
            let problem = problem.clone();
            return Err(Halt::Because(Error::Gone { problem }));
        }
        if is_new {
            let models: Vec<String> = passed.iter().filter_map(|one| one.model.clone()).collect();
            let record = Record::Preflight {
                recipe: self.recipe,
                model: models.last().cloned().unwrap_or_default(),
                passed: passed.clone(),
            };
            self.writer.write(vec![record], None).await?;
            for model in &models {
                self.note_model(model)?;
            }
        }
        Ok(Tried { passed, gone })
    }

    /// What an endpoint's answers say, or why none came.
    async fn try_endpoint(
        &self,
        replica: &Replica,
        script: &Script,
        stopped: &mut watch::Receiver<bool>,
    ) -> Result<Result<Preflight, String>, Halt> {
        let failed = |Fault { problem, hint }: Fault| {
            Halt::Because(Error::Preflight {
                url: replica.name().to_owned(),
                problem,
                hint,
            })
        };
        let unanswered = |outcome: Outcome, problem: String| {
            failed(Fault {
                problem: format!("{outcome}: {problem}"),
                hint: hint(self.teacher.scale),
            })
        };
        let short = match self.hear(replica, &script.short, stopped).await? {
            Ok(short) => short,
            Err(Unheard::Ended(Outcome::Failed, problem)) => return Ok(Err(problem)),
            Err(Unheard::Ended(outcome, problem)) => return Err(unanswered(outcome, problem)),
            Err(Unheard::Rejected(problem)) => {
                return Err(Halt::Because(Error::Teacher {
                    url: replica.name().to_owned(),
                    problem,
                }));
            }
        };
        self.answers.store(true, Ordering::Relaxed);
        let long = match self.hear(replica, &script.long, stopped).await? {
            Ok(long) => Some(long),
            Err(Unheard::Ended(Outcome::Failed, problem)) => {
                let words = script.words;
                return Ok(Err(format!("asked about {words} words: {problem}")));
            }
            // It is not cut in silence: such a question will end as what it is. But for the length,
            // what is rejected here was answered before.
            Err(Unheard::Ended(Outcome::Truncated, _) | Unheard::Rejected(_)) => None,
            Err(Unheard::Ended(outcome, problem)) => return Err(unanswered(outcome, problem)),
        };
        let passed = script.judge(replica.name(), &short, long.as_deref());
        passed.map(Ok).map_err(failed)
    }

    /// The answers about texts, in as many requests as they take.
    async fn hear(
        &self,
        replica: &Replica,
        texts: &[Texts],
        stopped: &mut watch::Receiver<bool>,
    ) -> Result<Hearing<Vec<Heard>>, Halt> {
        let mut heard = Vec::new();
        for texts in texts.chunks(self.teacher.dialect.questions_per_request()) {
            match self.hear_once(replica, texts, stopped).await? {
                Ok(more) => heard.extend(more),
                Err(ended) => return Ok(Err(ended)),
            }
        }
        Ok(Ok(heard))
    }

    /// The answers to one request, which is sent again where a question would be.
    async fn hear_once(
        &self,
        replica: &Replica,
        texts: &[Texts],
        stopped: &mut watch::Receiver<bool>,
    ) -> Result<Hearing<Vec<Heard>>, Halt> {
        let texts: Vec<&Texts> = texts.iter().collect();
        let request = self.teacher.dialect.request(&texts)?;
        let key = Key::new(&self.teacher.recipe_digest, 0, &texts[0].query, &[]);
        let mut tries = Tries::of(key);
        loop {
            let pause = replica.pause_left();
            if pause > LONGEST_PAUSE {
                let problem = format!("it asks for a pause of {} s", pause.as_secs());
                return Ok(Err(Unheard::Ended(Outcome::Failed, problem)));
            }
            let sent = self.send(replica, &request, &texts, stopped).await?;
            let usage = sent.attempt.usage;
            let mut rejected = None;
            let next = match sent.attempted {
                Attempted::Answered(answers, _) => Ok(answers),
                Attempted::Without(problem, reply) => {
                    if let Problem::Rejected(problem) = &problem {
                        rejected = Some(problem.clone());
                    }
                    Err(self.after(problem, reply.as_ref(), replica, &mut tries))
                }
            };
            let attempt = Record::Attempt(sent.attempt);
            self.record(vec![attempt], sent.reservation, usage).await?;
            drop(sent.pass);
            if let Some(problem) = rejected {
                return Ok(Err(Unheard::Rejected(problem)));
            }
            match next {
                Ok(Answers { values, model }) => {
                    let tokens = usage.input_tokens as f64 / texts.len() as f64;
                    let heard = |answer| Heard {
                        answer,
                        tokens: (!usage.estimated).then_some(tokens),
                        model: model.clone(),
                    };
                    return Ok(Ok(values.into_iter().map(heard).collect()));
                }
                Err(Next::Again(pause)) => unless(stopped, tokio::time::sleep(pause)).await?,
                Err(Next::Ended(outcome, problem)) => {
                    return Ok(Err(Unheard::Ended(outcome, problem)));
                }
                Err(Next::Halt(error)) => return Err(Halt::Because(error)),
            }
        }
    }
}
