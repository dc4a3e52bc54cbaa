//! The preflight, sent: each endpoint that nothing is known of answers for itself before it is
//! asked a question.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Answers, Attempted, Halt, Job, Next, Started, Tries, unless};
use crate::dialect::{Dialect, Request, Texts};
use crate::job::LabelSettings;
use crate::ledger::{Key, Outcome, Probe, Record};
use crate::preflight::{Fault, Finding, Heard, Script, hint};
use crate::replica::Replica;
use crate::retry::LONGEST_PAUSE;
use crate::{Error, Result};

/// An endpoint that did not answer is not asked in this run while there are others.
const REST_OF_THE_RUN: Duration = Duration::from_hours(24 * 365);

/// Probes every endpoint of a job, whatever an earlier preflight found, and puts what it finds on
/// record.
///
/// # Errors
/// Bad input, before anything is sent; an endpoint that fails a probe or does not answer; the
/// budget.
pub async fn probe(settings: &LabelSettings) -> Result<Vec<Finding>> {
    let Started {
        mut job,
        written,
        // The job is stopped when nobody holds this.
        stopping: _stopping,
        ..
    } = Started::new(settings, false)?;
    job.found.clear();
    let mut stopped = job.stopped.clone();
    let probed = job.preflight(&mut stopped).await;
    drop(job);
    written.await_end().await?.close()?;
    match probed {
        Ok(probed) => match probed.gone {
            None => Ok(probed.found),
            Some(problem) => Err(Error::Gone { problem }),
        },
        Err(Halt::Because(error)) => Err(error),
        Err(Halt::Stopped) => Ok(Vec::new()),
    }
}

/// What came of a preflight that no endpoint failed.
pub(super) struct Probed {
    pub(super) found: Vec<Finding>,
    /// What the last of those endpoints that did not answer had for a reason.
    pub(super) gone: Option<String>,
}

/// Answers, or how a probe ended without.
type Probing<T> = Result<T, (Outcome, String)>;

/// What an earlier preflight found.
pub(super) fn findings(found: Option<Value>) -> Vec<Finding> {
    // Those of another version, perhaps: the endpoints are probed again then.
    found
        .and_then(|found| serde_json::from_value(found).ok())
        .unwrap_or_default()
}

/// What is known of an endpoint, if it still says enough.
pub(super) fn held<'a>(
    found: &'a [Finding],
    replica: &Replica,
    script: &Script,
    settings: &LabelSettings,
) -> Option<&'a Finding> {
    let least_mass = settings.teacher.least_mass;
    found.iter().find(|one| {
        one.endpoint == replica.name() && one.holds(script.document_bytes(), least_mass)
    })
}

/// The requests that probe an endpoint.
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
    /// Probes the endpoints that nothing is known of, and puts what it finds on record.
    pub(super) async fn preflight(
        &self,
        stopped: &mut watch::Receiver<bool>,
    ) -> Result<Probed, Halt> {
        let script = self.questions.script(&self.teacher);
        let (mut found, mut gone, mut is_new) = (Vec::new(), None, false);
        for replica in &self.teacher.replicas {
            if let Some(known) = held(&self.found, replica, &script, &self.settings) {
                found.push(known.clone());
                continue;
            }
            match self.probe(replica, &script, stopped).await? {
                Ok(finding) => {
                    tracing::info!("{finding}");
                    is_new = true;
                    found.push(finding);
                }
                Err(problem) => {
                    let endpoint = replica.name();
                    tracing::warn!("{endpoint} did not answer and is left out: {problem}");
                    replica.pause(REST_OF_THE_RUN);
                    gone = Some(problem);
                }
            }
        }
        if let (true, Some(problem)) = (found.is_empty(), &gone) {
            let problem = problem.clone();
            return Err(Halt::Because(Error::Gone { problem }));
        }
        if is_new {
            let models: Vec<&String> = found.iter().filter_map(|one| one.model.as_ref()).collect();
            let probe = Probe {
                recipe: self.recipe,
                model: models.last().map(ToString::to_string).unwrap_or_default(),
                found: json!(found),
            };
            self.writer.write(vec![Record::Probe(probe)]).await?;
            for model in models {
                self.note_model(model)?;
            }
        }
        Ok(Probed { found, gone })
    }

    /// What an endpoint's answers say, or why none came.
    async fn probe(
        &self,
        replica: &Replica,
        script: &Script,
        stopped: &mut watch::Receiver<bool>,
    ) -> Result<Result<Finding, String>, Halt> {
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
            Err((Outcome::Failed, problem)) => return Ok(Err(problem)),
            Err((outcome, problem)) => return Err(unanswered(outcome, problem)),
        };
        let long = match self.hear(replica, &script.long, stopped).await? {
            Ok(long) => Some(long),
            Err((Outcome::Failed, problem)) => return Ok(Err(problem)),
            // It is not cut in silence: such a pair will end as what it is.
            Err((Outcome::Truncated, _)) => None,
            Err((outcome, problem)) => return Err(unanswered(outcome, problem)),
        };
        let finding = script.judge(replica.name(), &short, long.as_deref());
        finding.map(Ok).map_err(failed)
    }

    /// The answers about texts, in as many requests as they take.
    async fn hear(
        &self,
        replica: &Replica,
        texts: &[Texts],
        stopped: &mut watch::Receiver<bool>,
    ) -> Result<Probing<Vec<Heard>>, Halt> {
        let mut heard = Vec::new();
        for texts in texts.chunks(self.teacher.dialect.questions_per_request()) {
            match self.hear_once(replica, texts, stopped).await? {
                Ok(more) => heard.extend(more),
                Err(ended) => return Ok(Err(ended)),
            }
        }
        Ok(Ok(heard))
    }

    /// The answers to one request, sent again where questions would be.
    async fn hear_once(
        &self,
        replica: &Replica,
        texts: &[Texts],
        stopped: &mut watch::Receiver<bool>,
    ) -> Result<Probing<Vec<Heard>>, Halt> {
        let texts: Vec<&Texts> = texts.iter().collect();
        let request = self.teacher.dialect.request(&texts)?;
        let key = Key::new(&self.teacher.recipe_digest, 0, &texts[0].query, &[]);
        let mut tries = Tries::of(key);
        loop {
            let pause = replica.pause_left();
            if pause > LONGEST_PAUSE {
                let problem = format!("it asks for a pause of {} s", pause.as_secs());
                return Ok(Err((Outcome::Failed, problem)));
            }
            let sent = self.send(replica, &request, texts.len(), stopped).await?;
            let usage = sent.attempt.usage;
            let next = match sent.attempted {
                Attempted::Answered(answers, _) => Ok(answers),
                Attempted::Without(problem, reply) => {
                    Err(self.after(problem, reply.as_ref(), replica, &mut tries))
                }
            };
            let attempt = Record::Attempt(sent.attempt);
            self.writer.write(vec![attempt]).await?;
            sent.reservation.settle(usage);
            drop(sent.pass);
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
                Err(Next::Ended(outcome, problem)) => return Ok(Err((outcome, problem))),
                Err(Next::Halt(error)) => return Err(Halt::Because(error)),
            }
        }
    }
}
