//! One request: when the limits and the budget let it leave, what comes back, and what it cost.

use std::sync::PoisonError;

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Halt, Job, unless};
use crate::Result;
use crate::dialect::{self, Problem, Request, Texts};
use crate::ledger::{Attempt, Record, now};
use crate::limits::Pass;
use crate::money::{Amount, Held, Settled, Usage};
use crate::redact::Counts;
use crate::replica::{NoReply, Replica, Reply};

/// A request that left and is over. Its attempt is still to be put on record ([`Job::record`]).
pub(super) struct Sent<'a> {
    pub(super) attempted: Attempted,
    pub(super) attempt: Attempt,
    pub(super) reservation: Reservation<'a>,
    /// Its place in flight, until it is on record.
    pub(super) pass: Pass<'a>,
}

/// What became of one attempt.
pub(super) enum Attempted {
    /// The reply holds an answer for each question.
    Answered(Answers, Reply),
    /// There is no answer, but perhaps a reply.
    Without(Problem, Option<Reply>),
}

pub(super) struct Answers {
    pub(super) values: Vec<Value>,
    pub(super) model: Option<String>,
}

impl Job {
    /// Sends a request once, when the limits and the budget let it.
    pub(super) async fn send<'a>(
        &'a self,
        replica: &'a Replica,
        request: &Request,
        questions: &[&Texts],
        stopped: &mut watch::Receiver<bool>,
    ) -> Result<Sent<'a>, Halt> {
        let pass = unless(stopped, replica.gate.enter()).await?;
        unless(stopped, replica.wait_for_pause()).await?;
        let mut reservation = self.reserve(request, stopped).await?;
        let expected_tokens = expected_tokens(request);
        if let Some(bucket) = &self.requests {
            unless(stopped, bucket.take(1.0)).await?;
        }
        if let Some(bucket) = &self.tokens {
            unless(stopped, bucket.take(expected_tokens)).await?;
        }
        reservation.was_sent = true;
        let worst = reservation.worst;
        let (attempted, attempt) = self
            .attempt(replica, &pass, request, worst, questions)
            .await;
        if let Some(bucket) = &self.tokens {
            bucket.settle(unused(expected_tokens, &attempt.usage));
        }
        Ok(Sent {
            attempted,
            attempt,
            reservation,
            pass,
        })
    }

    /// Puts what came of a request on record, and settles it.
    pub(super) async fn record(
        &self,
        mut records: Vec<Record>,
        reservation: Reservation<'_>,
        usage: Usage,
    ) -> Result<()> {
        let factor = self.factor();
        if factor > reservation.factor {
            // This run, or another of its time, learnt that since: the next run should know.
            records.push(Record::Overbilled {
                recipe: self.recipe,
                factor,
            });
        }
        let settled = reservation.settled(usage);
        self.writer.write(records, Some(settled)).await?;
        self.settled.notify_waiters();
        Ok(())
    }

    /// Sets the worst case of a request aside, and sees that it is on record.
    async fn reserve(
        &self,
        request: &Request,
        stopped: &mut watch::Receiver<bool>,
    ) -> Result<Reservation<'_>, Halt> {
        let factor = self.factor();
        let worst = self.settings.teacher.price.worst(request.most_tokens);
        let worst = worst.times(factor);
        let is_on_record = loop {
            let settled = self.settled.notified();
            match self.budget.reserve(worst) {
                Ok(is_on_record) => break is_on_record,
                Err(Held::ForNow) => unless(stopped, settled).await?,
                Err(Held::ForGood) => return Err(Halt::Because(self.budget.used_up(worst))),
            }
        };
        let reservation = Reservation {
            job: self,
            worst,
            factor,
            was_sent: false,
        };
        if !is_on_record {
            self.writer.write(Vec::new(), None).await?;
        }
        Ok(reservation)
    }

    fn factor(&self) -> f64 {
        *self.factor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn attempt(
        &self,
        replica: &Replica,
        pass: &Pass<'_>,
        request: &Request,
        worst: Amount,
        questions: &[&Texts],
    ) -> (Attempted, Attempt) {
        let at = now();
        let body = request.body.to_string();
        let mut sent_bytes = body.len() as u64;
        let started = Instant::now();
        let replied = replica.post(request.path, body).await;
        let latency = started.elapsed();
        let mut status = None;
        let mut usage = Usage::default();
        let attempted = match replied {
            Err(no_reply) => {
                let (problem, was_sent) = match no_reply {
                    NoReply::NotSent(problem) => (problem, false),
                    NoReply::Lost(problem) => (problem, true),
                    NoReply::TooLong => ("a reply of more than 8 MiB".to_owned(), true),
                };
                pass.too_much();
                if was_sent {
                    // It may have been answered, and billed.
                    usage = Usage::at_worst(request.most_tokens, worst);
                } else {
                    sent_bytes = 0;
                }
                Attempted::Without(Problem::Passing(problem), None)
            }
            Ok(reply) => {
                status = Some(reply.status);
                if reply.status == 200 {
                    pass.went_well();
                    usage = Usage::at_worst(request.most_tokens, worst);
                    self.read(request, reply, questions, &mut usage)
                } else {
                    let problem = dialect::refusal(replica.name(), reply.status, &reply.body);
                    let problem = match (problem, reply.advice.again) {
                        (Problem::Fatal(error), Some(true)) => Problem::Passing(error.to_string()),
                        (problem, _) => problem,
                    };
                    if matches!(problem, Problem::Passing(_)) {
                        pass.too_much();
                    }
                    Attempted::Without(problem, Some(reply))
                }
            }
        };
        let problem = match &attempted {
            Attempted::Answered(..) => None,
            Attempted::Without(problem, _) => Some(problem.to_string()),
        };
        let attempt = Attempt {
            at,
            endpoint: replica.name().to_owned(),
            status,
            problem,
            latency_ms: u64::try_from(latency.as_millis()).unwrap_or(u64::MAX),
            sent_bytes,
            redacted: Counts::new(),
            usage,
        };
        (attempted, attempt)
    }

    /// Reads a reply with status 200, and what it cost if it says so.
    fn read(
        &self,
        request: &Request,
        reply: Reply,
        questions: &[&Texts],
        usage: &mut Usage,
    ) -> Attempted {
        let Ok(json) = serde_json::from_str::<Value>(&reply.body) else {
            let shown = dialect::shortened(&reply.body);
            let problem = Problem::Passing(format!("200 with a body that is not JSON: {shown}"));
            return Attempted::Without(problem, Some(reply));
        };
        let dialect = &self.teacher.dialect;
        if let Some(used) = dialect.usage(&json) {
            *usage = self.settings.teacher.price.usage(used);
            self.learn(request, usage);
        }
        match dialect.read(&json, questions) {
            Ok(values) => {
                let model = dialect.model(&json);
                Attempted::Answered(Answers { values, model }, reply)
            }
            Err(problem) => Attempted::Without(problem, Some(reply)),
        }
    }

    /// A teacher that bills more than it can have been sent (it thinks, or counts otherwise) is
    /// reserved more for from now on.
    fn learn(&self, request: &Request, usage: &Usage) {
        let worst = self.settings.teacher.price.worst(request.most_tokens);
        let mut factor = self.factor.lock().unwrap_or_else(PoisonError::into_inner);
        *factor = factor.max(usage.over(worst));
    }
}

/// What a request has set aside. Given back if it was never sent; of one that was sent and never
/// settled (its worker was stopped in flight), nobody knows what it cost: it stays.
pub(super) struct Reservation<'a> {
    job: &'a Job,
    worst: Amount,
    /// What the worst case was multiplied by for that.
    factor: f64,
    was_sent: bool,
}

impl Reservation<'_> {
    /// What it comes to, for the ledger's writer to settle.
    fn settled(mut self, usage: Usage) -> Settled {
        self.was_sent = true;
        Settled {
            worst: self.worst,
            used: Amount {
                micros: usage.micros,
                tokens: usage.tokens(),
            },
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.was_sent {
            self.job.budget.give_back(self.worst);
            self.job.settled.notify_waiters();
        }
    }
}

/// What the token limit is charged before the reply says: a token of English has four bytes.
fn expected_tokens(request: &Request) -> f64 {
    let (read, written) = request.most_tokens;
    read as f64 / 4.0 + written as f64
}

/// How much less a request took than that. Where nobody says, what was expected stands: it is nearer
/// to the truth than the worst case, which has a token for each byte.
fn unused(expected_tokens: f64, usage: &Usage) -> f64 {
    if usage.estimated {
        0.0
    } else {
        expected_tokens - usage.tokens() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_on_tokens_is_settled_by_what_the_server_says_and_not_by_the_worst_case() {
        let request = Request {
            path: "",
            body: Value::Null,
            most_tokens: (4000, 8),
        };
        let expected = expected_tokens(&request);
        let reserved = Amount {
            micros: 0,
            tokens: 4008,
        };
        let unsaid = Usage::at_worst(request.most_tokens, reserved);
        assert!(unused(expected, &unsaid).abs() < 1e-9);
        let said = Usage {
            input_tokens: 900,
            ..Usage::default()
        };
        assert!((unused(expected, &said) - 108.0).abs() < 1e-9);
        assert!((unused(expected, &Usage::default()) - expected).abs() < 1e-9);
    }
}
