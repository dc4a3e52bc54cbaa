//! From a question to its end: which replica to ask, what to do about an attempt that brought no
//! answer, and what goes on record.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use super::send::{Answers, Attempted};
use super::{Ended, Halt, Job, unless};
use crate::dialect::{Problem, Texts};
use crate::ledger::{Batch, Entry, Key, Outcome, Record, now};
use crate::questions::Asked;
use crate::redact::Counts;
use crate::replica::{Replica, Reply};
use crate::retry::{self, LONGEST_PAUSE};
use crate::{Error, Result};

/// Questions in a row that end without an answer, whatever was tried, before the teacher counts
/// as gone: one text may be bad, twenty are not.
const GIVE_UP_AFTER: usize = 20;
/// How often a reply that can't be read is asked for again.
const SECOND_READINGS: u32 = 1;

/// How long a replica that gives no reply at all is left alone while there are others.
const REST_OF_A_REPLICA: Duration = Duration::from_secs(15);

/// How often questions were asked in vain.
pub(super) struct Tries {
    /// Of the first of them: pauses differ from one to the other.
    key: Key,
    failed: u32,
    unreadable: u32,
}

impl Tries {
    pub(super) fn of(key: Key) -> Self {
        Self {
            key,
            failed: 0,
            unreadable: 0,
        }
    }
}

/// How questions go on after an attempt that brought no answer.
pub(super) enum Next {
    Again(Duration),
    Ended(Outcome, String),
    Halt(Error),
}

impl Job {
    /// The next questions, of one query and as many as a request holds; none when all are taken.
    pub(super) fn claim(&self) -> Result<Vec<Asked>> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let mut claimed: Vec<Asked> = Vec::new();
        while claimed.len() < self.teacher.dialect.questions_per_request()
            && *next < self.questions.asked.len()
        {
            let asked = self.questions.at(*next)?;
            if claimed
                .first()
                .is_some_and(|first| first.texts.query != asked.texts.query)
            {
                break;
            }
            claimed.push(asked);
            *next += 1;
        }
        Ok(claimed)
    }

    /// Asks questions until they have answers or there will be none, and puts that on disk.
    pub(super) async fn settle(
        &self,
        asked: Vec<Asked>,
        stopped: &mut watch::Receiver<bool>,
    ) -> Result<Ended, Halt> {
        let texts: Vec<&Texts> = asked.iter().map(|asked| &asked.texts).collect();
        let request = self.teacher.dialect.request(&texts)?;
        let redacted = redacted(&asked);
        let mut tries = Tries::of(asked[0].key);
        loop {
            let replica = self.replica(&asked[0].query_id)?;
            let mut sent = self.send(replica, &request, &texts, stopped).await?;
            if sent.attempt.sent_bytes > 0 {
                sent.attempt.redacted.clone_from(&redacted);
            }
            let usage = sent.attempt.usage;
            let mut records = vec![Record::Attempt(sent.attempt)];
            let (mut one_by_one, mut is_rejected) = (false, false);
            let next = match sent.attempted {
                Attempted::Answered(Answers { values, model }, reply) => {
                    let entries = (asked.iter().zip(values))
                        .map(|(asked, answer)| entry(asked, Ok(answer)))
                        .collect();
                    records.push(self.batch(entries, model.clone(), Some(reply)));
                    Ok(model)
                }
                Attempted::Without(problem, reply) => {
                    is_rejected = matches!(problem, Problem::Rejected(_));
                    // One of them may be to blame.
                    one_by_one = asked.len() > 1 && !matches!(problem, Problem::Passing(_));
                    let problem = match problem {
                        Problem::Rejected(problem) if !self.answers.load(Ordering::Relaxed) => {
                            Problem::Fatal(Error::Teacher {
                                url: replica.name().to_owned(),
                                problem: format!("{problem}; asked about {}", asked[0].in_words()),
                            })
                        }
                        // It answers others: these texts are to blame.
                        problem => problem,
                    };
                    let next = self.after(problem, reply.as_ref(), replica, &mut tries);
                    let has_others = self.teacher.replicas.len() > 1;
                    if has_others && reply.is_none() && matches!(next, Next::Again(_)) {
                        replica.pause(REST_OF_A_REPLICA);
                    }
                    if let (Next::Ended(outcome, problem), false) = (&next, one_by_one) {
                        let without = |asked| entry(asked, Err((*outcome, problem.clone())));
                        let entries = asked.iter().map(without).collect();
                        records.push(self.batch(entries, None, reply));
                    }
                    Err(next)
                }
            };
            self.record(records, sent.reservation, usage).await?;
            drop(sent.pass);

            match next {
                Ok(model) => {
                    if let Some(model) = model {
                        self.note_model(&model)?;
                    }
                    self.answers.store(true, Ordering::Relaxed);
                    self.in_vain.store(0, Ordering::Relaxed);
                    return Ok(vec![(Outcome::Ok, None); asked.len()]);
                }
                Err(Next::Again(pause)) => unless(stopped, tokio::time::sleep(pause)).await?,
                Err(Next::Ended(_, problem)) if one_by_one => {
                    tracing::debug!("{problem}; asking one by one");
                    let mut ended = Vec::new();
                    for one in asked {
                        ended.extend(Box::pin(self.settle(vec![one], stopped)).await?);
                    }
                    return Ok(ended);
                }
                Err(Next::Ended(outcome, problem)) => {
                    if self.is_in_vain(outcome, asked.len()) {
                        let problem = format!("{GIVE_UP_AFTER} questions in a row: {problem}");
                        let error = match outcome {
                            Outcome::Failed if !is_rejected => Error::Gone { problem },
                            _ => Error::Teacher {
                                url: self.settings.teacher.endpoints.join(", "),
                                problem,
                            },
                        };
                        return Err(Halt::Because(error));
                    }
                    let named =
                        |one: &Asked| (outcome, Some(format!("{}: {problem}", one.in_words())));
                    return Ok(asked.iter().map(named).collect());
                }
                Err(Next::Halt(error)) => return Err(Halt::Because(error)),
            }
        }
    }

    /// What to do after an attempt that brought no answer.
    pub(super) fn after(
        &self,
        problem: Problem,
        reply: Option<&Reply>,
        replica: &Replica,
        tries: &mut Tries,
    ) -> Next {
        let advice = reply.map(|reply| reply.advice).unwrap_or_default();
        match problem {
            Problem::Fatal(error) => Next::Halt(error),
            Problem::Unreadable(problem) if tries.unreadable < SECOND_READINGS => {
                tries.unreadable += 1;
                tracing::debug!("{problem}; asking again");
                Next::Again(Duration::ZERO)
            }
            Problem::Passing(problem)
                if tries.failed < self.settings.teacher.retries && advice.again != Some(false) =>
            {
                tries.failed += 1;
                if let Some(pause) = advice.after {
                    // It is the server's wish, so it holds for all that it is asked.
                    replica.pause(pause);
                }
                let jitter = tries.key.jitter(tries.failed);
                let pause = advice.after;
                let pause = pause.unwrap_or_else(|| retry::backoff(tries.failed, jitter));
                tracing::debug!("{problem}; trying again in {pause:?}");
                // A longer one is waited for elsewhere, or not at all (`Job::replica`).
                Next::Again(if pause > LONGEST_PAUSE {
                    Duration::ZERO
                } else {
                    pause
                })
            }
            Problem::Final(outcome, problem) => Next::Ended(outcome, problem),
            Problem::Unreadable(problem) => Next::Ended(Outcome::Unparsable, problem),
            Problem::Passing(problem) | Problem::Rejected(problem) => {
                Next::Ended(Outcome::Failed, problem)
            }
        }
    }

    /// The replica to ask: the one that this query's questions go to, unless it has its hands
    /// full and another has not; of two that are alike, a hash of the query decides, which keeps
    /// what the servers have read of it at hand (rendezvous hashing: Thaler and Ravishankar, 1998).
    fn replica(&self, query_id: &str) -> Result<&Replica, Halt> {
        let replicas = &self.teacher.replicas;
        let weight = |place: &usize| {
            let mut hasher = DefaultHasher::new();
            (query_id, place).hash(&mut hasher);
            hasher.finish()
        };
        let mut places: Vec<usize> = (0..replicas.len())
            .filter(|place| replicas[*place].pause_left() <= LONGEST_PAUSE)
            .collect();
        places.sort_unstable_by_key(weight);
        let free = |place: &&usize| {
            let replica = &replicas[**place];
            replica.pause_left().is_zero() && replica.gate.in_flight() < replica.gate.limit()
        };
        if let Some(place) = places.iter().rev().find(free).or(places.last()) {
            return Ok(&replicas[*place]);
        }
        let soonest = replicas.iter().map(Replica::pause_left).min();
        let seconds = soonest.unwrap_or_default().as_secs();
        Err(Halt::Because(Error::Gone {
            problem: format!("it asks for a pause of {seconds} s"),
        }))
    }

    fn batch(&self, entries: Vec<Entry>, model: Option<String>, reply: Option<Reply>) -> Record {
        let (reply, request_id) = match reply {
            Some(reply) => (Some(reply.body), reply.request_id),
            None => (None, None),
        };
        Record::Batch(Batch {
            recipe: self.recipe,
            model,
            entries,
            reply,
            request_id,
        })
    }

    /// Notices when the teacher calls its model otherwise than before.
    pub(super) fn note_model(&self, model: &str) -> Result<(), Halt> {
        let before = self
            .model
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(model.to_owned());
        Ok((self.settings.teacher).note_model(before.as_deref(), model)?)
    }

    /// Counts questions that ended without an answer; whether they are too many in a row.
    fn is_in_vain(&self, outcome: Outcome, count: usize) -> bool {
        if !matches!(outcome, Outcome::Failed | Outcome::Unparsable) {
            self.in_vain.store(0, Ordering::Relaxed);
            return false;
        }
        let before = self.in_vain.fetch_add(count, Ordering::Relaxed);
        before < GIVE_UP_AFTER && before + count >= GIVE_UP_AFTER
    }
}

/// What was replaced in the texts of one request, which has the query once.
fn redacted(asked: &[Asked]) -> Counts {
    let of_query = asked.first().map(|first| &first.redacted[0]);
    let of_documents = asked.iter().map(|one| &one.redacted[1]);
    let mut counts = Counts::new();
    for (kind, count) in of_query.into_iter().chain(of_documents).flatten() {
        *counts.entry(*kind).or_insert(0) += count;
    }
    counts
}

fn entry(asked: &Asked, ended: Result<Value, (Outcome, String)>) -> Entry {
    Entry {
        key: asked.key,
        query_id: asked.query_id.clone(),
        document_ids: asked.document_ids.clone(),
        sample: asked.sample,
        text: asked.text.clone(),
        ended,
        at: now(),
    }
}
