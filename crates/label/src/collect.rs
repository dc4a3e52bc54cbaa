//! The collector: asks a teacher every question that has no answer yet, as fast as the teacher
//! and the limits allow, and stops in a way that loses nothing.
//!
//! ```text
//! questions ─▷ workers (budget ▷ gate ▷ rate ▷ HTTP ▷ dialect) ─▷ writer (ledger) ─▷ progress
//! ```
//!
//! A worker has one request in flight and takes its next question when its last one is on disk:
//! a kill costs at most as many requests as there are workers.

mod writer;

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::dialect::{self, Problem, Request, Texts};
use crate::job::{LabelSettings, Teacher};
use crate::ledger::{Attempt, Batch, Entry, Key, Ledger, Outcome, Reader, Record, Spent, now};
use crate::limits::{Bucket, Pass};
use crate::money::{Amount, Budget, Held, Usage};
use crate::prepare::prepare;
use crate::questions::{Asked, Questions};
use crate::replica::{NoReply, Replica, Reply};
use crate::retry::{self, LONGEST_PAUSE};
use crate::shard::Whole;
use crate::{Error, Result};
use writer::Writer;

/// Questions in a row that end without an answer, whatever was tried, before the teacher counts
/// as gone: one text may be bad, twenty are not.
const GIVE_UP_AFTER: usize = 20;
/// How often a reply that can't be read is asked for again.
const SECOND_READINGS: u32 = 1;

/// How long a replica that gives no reply at all is left alone while there are others.
const REST_OF_A_REPLICA: Duration = Duration::from_secs(15);

/// What a labelling job did.
#[derive(Clone, Debug, Serialize)]
pub struct Collected {
    /// Questions that the candidates make.
    pub questions: usize,
    /// Of them, those that had an answer before.
    pub known: usize,
    /// Of them, those that had ended without one before and were not asked again.
    pub given_up: usize,
    /// Of them, those that are in batches which have not come back.
    pub pending: usize,
    /// Questions asked now, by how they ended.
    pub ended: BTreeMap<Outcome, usize>,
    /// What the ledger came to, all its runs together.
    pub spent: Spent,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Questions that ended in this run.
    pub done: usize,
    /// Of them, those without an answer.
    pub failed: usize,
    /// Questions to ask in this run.
    pub total: usize,
    /// Tokens that the ledger came to.
    pub tokens: u64,
    /// Millionths of the currency that the ledger came to.
    pub micros: u64,
}

/// What a job would do (`--dry-run`).
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Questions that the candidates make.
    pub questions: usize,
    /// Of them, those that had an answer before.
    pub known: usize,
    /// Of them, those that had ended without one before and are not asked again.
    pub given_up: usize,
    /// Of them, those that are in batches which have not come back.
    pub pending: usize,
    /// Questions that would be asked.
    pub to_ask: usize,
    /// Tokens that they can't pass.
    pub most_tokens: u64,
    /// What they can't cost more than, in millionths of the currency.
    pub most_micros: u64,
    /// Where requests go.
    pub endpoints: Vec<String>,
    /// The first request, as it would be sent.
    pub first_request: Option<Value>,
}

/// Says what a job would do, and sends nothing.
///
/// # Errors
/// Bad input.
pub fn plan(settings: &LabelSettings, again: bool) -> Result<Plan> {
    let teacher = Teacher::new(settings)?;
    let questions = Questions::read(settings, &teacher)?;
    plan_of(settings, &teacher, questions, again)
}

/// Says what asking these questions would do.
pub(crate) fn plan_of(
    settings: &LabelSettings,
    teacher: &Teacher,
    mut questions: Questions,
    again: bool,
) -> Result<Plan> {
    let ledger = if settings.ledger.exists() {
        Some(Reader::open(&settings.ledger)?)
    } else {
        None
    };
    let whole = Whole::of(settings)?;
    let out = match &ledger {
        Some(ledger) => ledger.in_batches()?,
        None => HashSet::new(),
    };
    questions.choose(again, &out, |key| match &ledger {
        Some(ledger) => whole.or_known(key, ledger.find(key)?),
        None => whole.or_known(key, None),
    })?;
    let mut plan = Plan {
        questions: questions.all,
        known: questions.known,
        given_up: questions.given_up,
        pending: questions.pending,
        to_ask: questions.asked.len(),
        most_tokens: 0,
        most_micros: 0,
        endpoints: settings.teacher.endpoints.clone(),
        first_request: None,
    };
    for place in 0..questions.asked.len() {
        let asked = questions.at(place)?;
        let request = teacher.dialect.request(&[&asked.texts])?;
        let worst = worst_case(&request, settings);
        plan.most_tokens += worst.tokens;
        plan.most_micros += worst.micros;
        plan.first_request.get_or_insert(request.body);
    }
    Ok(plan)
}

/// Runs a labelling job. `again` asks those questions too that ended without an answer for a
/// reason of their own; `stop` ends the job early, by a signal of that name.
///
/// # Errors
/// Bad input, before anything is sent; a teacher that can't do the job or went away; the budget;
/// questions that got no answer. What was answered is in the ledger whatever happens.
pub async fn collect(
    settings: &LabelSettings,
    again: bool,
    report: impl FnMut(Progress),
    stop: impl Future<Output = &'static str>,
) -> Result<Collected> {
    let teacher = Teacher::new(settings)?;
    let questions = Questions::read(settings, &teacher)?;
    ask(settings, teacher, questions, again, report, stop).await
}

/// [`collect`], of these questions.
#[expect(clippy::too_many_lines, reason = "a job from its beginning to its end")]
pub(crate) async fn ask(
    settings: &LabelSettings,
    mut teacher: Teacher,
    mut questions: Questions,
    again: bool,
    mut report: impl FnMut(Progress),
    stop: impl Future<Output = &'static str>,
) -> Result<Collected> {
    prepare(&mut teacher, settings.teacher.retries).await?;
    let mut ledger = Ledger::open(&settings.ledger)?;
    let recipe = ledger.recipe(&teacher.recipe_digest, &teacher.recipe)?;
    let whole = Whole::of(settings)?;
    let find = |key: &Key| whole.or_known(key, ledger.find(key)?);
    let aliases = questions.choose(again, &ledger.in_batches()?, find)?;
    ledger.add_aliases(&aliases)?;
    let total = questions.asked.len();
    let mut collected = questions.before(ledger.spent()?);
    // Batches that are out count at their worst.
    let spent = collected.spent.amount().plus(ledger.set_aside()?);
    let model = ledger.last_model(recipe)?;
    let (writer, written) = Writer::start(ledger)?;
    let (stopping, stopped) = watch::channel(false);
    let of_settings = &settings.teacher;
    let job = Arc::new(Job {
        budget: Budget::new(&settings.budget, spent),
        settled: Notify::new(),
        requests: of_settings.requests_per_minute.map(Bucket::per_minute),
        tokens: of_settings.tokens_per_minute.map(Bucket::per_minute),
        next: Mutex::new(0),
        in_vain: AtomicUsize::new(0),
        factor: Mutex::new(1.0),
        at_risk: tokio::sync::Mutex::new(Amount::default()),
        model: Mutex::new(model),
        settings: settings.clone(),
        teacher,
        recipe,
        questions,
        writer,
        stopped,
    });

    let (sender, mut events) = mpsc::channel(of_settings.concurrency);
    let mut workers = JoinSet::new();
    let places: usize = job.teacher.replicas.iter().map(|one| one.gate.most()).sum();
    for _ in 0..places.min(total) {
        workers.spawn(work(Arc::clone(&job), sender.clone()));
    }
    drop(sender);

    let mut progress = Progress {
        done: 0,
        failed: 0,
        total,
        tokens: spent.tokens,
        micros: spent.micros,
    };
    let mut last_problem = None;
    let mut end: Result<()> = Ok(());
    let mut deadline = None;
    tokio::pin!(stop);
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            signal = &mut stop, if deadline.is_none() => {
                let labelled = progress.done - progress.failed;
                end = Err(Error::Interrupted { signal, labelled });
                Some(Event::Stop(None))
            }
            () = sleep_until(deadline), if deadline.is_some() => None,
        };
        match event {
            None => break,
            Some(Event::Ended(ended)) => {
                for (outcome, problem) in ended {
                    *collected.ended.entry(outcome).or_insert(0) += 1;
                    progress.done += 1;
                    if let Some(problem) = problem {
                        tracing::warn!("{outcome}: {problem}");
                        progress.failed += 1;
                        last_problem = Some((outcome, problem));
                    }
                }
                let spent = job.budget.spent();
                (progress.tokens, progress.micros) = (spent.tokens, spent.micros);
                report(progress);
                if let Err(Error::Interrupted { labelled, .. }) = &mut end {
                    *labelled = progress.done - progress.failed;
                }
            }
            Some(Event::Stop(error)) => {
                // The first reason is the reason; the others are of those that were in flight.
                if let (Ok(()), Some(error)) = (&end, error) {
                    end = Err(error);
                }
                if deadline.is_none() {
                    deadline = Some(Instant::now() + Duration::from_secs(settings.drain_seconds));
                    // Workers that are gone need not be told.
                    let _ = stopping.send(true);
                }
            }
        }
    }
    // Past the deadline some are still at it; what they had in flight stays at risk.
    workers.shutdown().await;
    let all_settled = job.budget.reserved() == Amount::default();
    drop(job);
    let ledger = written.await_end().await?;
    collected.spent = ledger.spent()?;
    if all_settled {
        ledger.close()?;
    }
    end?;
    collected.unless_unlabelled(last_problem)
}

impl Collected {
    /// What a job that came to its end did; an error if questions ended without an answer, the
    /// last of them in this way, or are still out.
    pub(crate) fn unless_unlabelled(self, last: Option<(Outcome, String)>) -> Result<Self> {
        let Some((outcome, problem)) = last else {
            return match self.pending {
                0 => Ok(self),
                questions => Err(Error::Pending { questions }),
            };
        };
        let asked: usize = self.ended.values().sum();
        let passing = self.ended.keys().any(|outcome| outcome.is_passing());
        Err(Error::Unlabelled {
            failed: asked - self.ended.get(&Outcome::Ok).unwrap_or(&0),
            asked,
            outcome,
            problem,
            hint: if passing {
                "run the same command again to ask those that failed"
            } else {
                "--again asks them once more"
            },
            passing,
        })
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// What all workers share.
struct Job {
    settings: LabelSettings,
    teacher: Teacher,
    recipe: i64,
    questions: Questions,
    /// The next of the questions to ask.
    next: Mutex<usize>,
    /// Questions in a row that ended without an answer.
    in_vain: AtomicUsize,
    budget: Budget,
    /// Something in flight was settled.
    settled: Notify,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    /// How much more than its worst case a request was ever billed for.
    factor: Mutex<f64>,
    /// What the ledger knows to be at risk.
    at_risk: tokio::sync::Mutex<Amount>,
    /// The model that the replies name.
    model: Mutex<Option<String>>,
    writer: Writer,
    stopped: watch::Receiver<bool>,
}

enum Event {
    /// Questions ended and are on disk: how, and why if without an answer.
    Ended(Vec<(Outcome, Option<String>)>),
    /// The job ends, for a reason unless that is known already.
    Stop(Option<Error>),
}

/// A worker: one question after the other.
async fn work(job: Arc<Job>, events: mpsc::Sender<Event>) {
    let mut stopped = job.stopped.clone();
    loop {
        if *stopped.borrow() {
            return;
        }
        let event = match job.claim() {
            Ok(asked) if asked.is_empty() => return,
            Ok(asked) => job.settle(asked, &mut stopped).await,
            Err(error) => Err(Halt::Because(error)),
        };
        let event = match event {
            Ok(ended) => Event::Ended(ended),
            Err(Halt::Stopped) => return,
            Err(Halt::Because(error)) => Event::Stop(Some(error)),
        };
        let is_end = matches!(event, Event::Stop(_));
        if events.send(event).await.is_err() || is_end {
            return;
        }
    }
}

/// Why a worker ends.
enum Halt {
    Stopped,
    Because(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Because(error)
    }
}

type Ended = Vec<(Outcome, Option<String>)>;

/// What became of one attempt.
enum Attempted {
    /// The reply holds an answer for each question.
    Answered(Answers, Reply),
    /// There is no answer, but perhaps a reply.
    Without(Problem, Option<Reply>),
}

struct Answers {
    values: Vec<Value>,
    model: Option<String>,
}

/// How often questions were asked in vain.
#[derive(Default)]
struct Tries {
    failed: u32,
    unreadable: u32,
}

/// How questions go on after an attempt that is on disk.
enum Next {
    /// They have answers, from a model of that name.
    Answered(Option<String>),
    Again(Duration),
    OneByOne,
    Ended(Outcome, String),
    Halt(Error),
}

impl Job {
    /// The next questions, of one query and as many as a request holds; none when all are taken.
    fn claim(&self) -> Result<Vec<Asked>> {
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
    async fn settle(
        &self,
        asked: Vec<Asked>,
        stopped: &mut watch::Receiver<bool>,
    ) -> Result<Ended, Halt> {
        let texts: Vec<&Texts> = asked.iter().map(|asked| &asked.texts).collect();
        let request = self.teacher.dialect.request(&texts)?;
        let mut tries = Tries::default();
        loop {
            let replica = self.replica(&asked[0].query_id)?;
            let pass = unless(stopped, replica.gate.enter()).await?;
            unless(stopped, replica.wait_for_pause()).await?;
            let mut reservation = self.reserve(&request, stopped).await?;
            let expected_tokens = expected_tokens(&request);
            if let Some(bucket) = &self.requests {
                unless(stopped, bucket.take(1.0)).await?;
            }
            if let Some(bucket) = &self.tokens {
                unless(stopped, bucket.take(expected_tokens)).await?;
            }
            reservation.was_sent = true;
            let (attempted, attempt) = self.attempt(replica, &pass, &request, &texts).await;
            let usage = attempt.usage;
            if let Some(bucket) = &self.tokens {
                bucket.settle(expected_tokens - usage.tokens() as f64);
            }

            let mut records = vec![Record::Attempt(attempt)];
            let next = match attempted {
                Attempted::Answered(Answers { values, model }, reply) => {
                    let entries = (asked.iter().zip(values))
                        .map(|(asked, answer)| entry(asked, Ok(answer)))
                        .collect();
                    records.push(self.batch(entries, model.clone(), Some(reply)));
                    Next::Answered(model)
                }
                Attempted::Without(problem, reply) => {
                    let next = self.after(problem, reply.as_ref(), replica, &asked, &mut tries);
                    if let Next::Ended(outcome, problem) = &next {
                        let without = |asked| entry(asked, Err((*outcome, problem.clone())));
                        let entries = asked.iter().map(without).collect();
                        records.push(self.batch(entries, None, reply));
                    }
                    next
                }
            };
            self.writer.write(records).await?;
            reservation.settle(usage);
            drop(pass);

            match next {
                Next::Answered(model) => {
                    if let Some(model) = model {
                        self.note_model(&model)?;
                    }
                    return self.noted(vec![(Outcome::Ok, None); asked.len()]);
                }
                Next::Again(pause) => unless(stopped, tokio::time::sleep(pause)).await?,
                Next::OneByOne => {
                    let mut ended = Vec::new();
                    for one in asked {
                        ended.extend(Box::pin(self.settle(vec![one], stopped)).await?);
                    }
                    return Ok(ended);
                }
                Next::Ended(outcome, problem) => {
                    return self.noted(vec![(outcome, Some(problem)); asked.len()]);
                }
                Next::Halt(error) => return Err(Halt::Because(error)),
            }
        }
    }

    /// What to do after an attempt that brought no answer.
    fn after(
        &self,
        problem: Problem,
        reply: Option<&Reply>,
        replica: &Replica,
        asked: &[Asked],
        tries: &mut Tries,
    ) -> Next {
        let advice = reply.map(|reply| reply.advice).unwrap_or_default();
        let (outcome, problem) = match problem {
            Problem::Fatal(error) => return Next::Halt(error),
            Problem::Unreadable(problem) if tries.unreadable < SECOND_READINGS => {
                tries.unreadable += 1;
                tracing::debug!("{problem}; asking again");
                return Next::Again(Duration::ZERO);
            }
            Problem::Passing(problem)
                if tries.failed < self.settings.teacher.retries && advice.again != Some(false) =>
            {
                tries.failed += 1;
                if let Some(pause) = advice.after {
                    // It is the server's wish, so it holds for all that it is asked.
                    replica.pause(pause);
                }
                if reply.is_none() && self.teacher.replicas.len() > 1 {
                    replica.pause(REST_OF_A_REPLICA);
                }
                let jitter = asked[0].key.jitter(tries.failed);
                let pause = advice.after;
                let pause = pause.unwrap_or_else(|| retry::backoff(tries.failed, jitter));
                tracing::debug!("{problem}; trying again in {pause:?}");
                // A longer one is waited for elsewhere, or not at all (`Job::replica`).
                return Next::Again(if pause > LONGEST_PAUSE {
                    Duration::ZERO
                } else {
                    pause
                });
            }
            Problem::Final(outcome, problem) => (outcome, problem),
            Problem::Unreadable(problem) => (Outcome::Unparsable, problem),
            Problem::Passing(problem) => (Outcome::Failed, problem),
        };
        if asked.len() > 1 && outcome != Outcome::Failed {
            // One of them may be to blame.
            tracing::debug!("{problem}; asking one by one");
            return Next::OneByOne;
        }
        Next::Ended(outcome, problem)
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

    /// Sets the worst case of a request aside, on disk if it is more than what is there.
    async fn reserve(
        &self,
        request: &Request,
        stopped: &mut watch::Receiver<bool>,
    ) -> Result<Reservation<'_>, Halt> {
        let worst = self.worst_case(request);
        let reserved = loop {
            let settled = self.settled.notified();
            match self.budget.reserve(worst) {
                Ok(reserved) => break reserved,
                Err(Held::ForNow) => unless(stopped, settled).await?,
                Err(Held::ForGood) => return Err(Halt::Because(self.budget.used_up(worst))),
            }
        };
        let reservation = Reservation {
            job: self,
            worst,
            was_sent: false,
        };
        let mut at_risk = self.at_risk.lock().await;
        if reserved.micros > at_risk.micros || reserved.tokens > at_risk.tokens {
            // With room to spare, so that this is seldom.
            let more = Amount {
                micros: at_risk.micros.max(2 * reserved.micros),
                tokens: at_risk.tokens.max(2 * reserved.tokens),
            };
            self.writer.put_at_risk(more).await?;
            *at_risk = more;
        }
        Ok(reservation)
    }

    fn worst_case(&self, request: &Request) -> Amount {
        let factor = *self.factor.lock().unwrap_or_else(PoisonError::into_inner);
        worst_case(request, &self.settings).times(factor)
    }

    /// Sends a request once.
    async fn attempt(
        &self,
        replica: &Replica,
        pass: &Pass<'_>,
        request: &Request,
        questions: &[&Texts],
    ) -> (Attempted, Attempt) {
        let at = now();
        let started = Instant::now();
        let replied = replica.post(request.path, &request.body).await;
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
                    usage = self.usage(request.most_tokens, 0, true);
                }
                Attempted::Without(Problem::Passing(problem), None)
            }
            Ok(mut reply) => {
                status = Some(reply.status);
                if let Some(key) = &self.teacher.key {
                    reply.body = key.removed_from(&reply.body);
                }
                if reply.status == 200 {
                    pass.went_well();
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
            usage,
        };
        (attempted, attempt)
    }

    /// Reads a reply with status 200, and what it cost.
    fn read(
        &self,
        request: &Request,
        reply: Reply,
        questions: &[&Texts],
        usage: &mut Usage,
    ) -> Attempted {
        *usage = self.usage(request.most_tokens, 0, true);
        let Ok(json) = serde_json::from_str::<Value>(&reply.body) else {
            let shown = dialect::shortened(&reply.body);
            let problem = Problem::Passing(format!("200 with a body that is not JSON: {shown}"));
            return Attempted::Without(problem, Some(reply));
        };
        let dialect = &self.teacher.dialect;
        if let Some((input, cached, output)) = dialect.usage(&json) {
            *usage = self.usage((input, output), cached, false);
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

    fn usage(&self, tokens: (u64, u64), cached: u64, estimated: bool) -> Usage {
        (self.settings.teacher.price).usage(tokens, cached, estimated)
    }

    /// A teacher that bills more than it can have been sent (it thinks, or counts otherwise) is
    /// reserved more for from now on.
    fn learn(&self, request: &Request, usage: &Usage) {
        let worst = worst_case(request, &self.settings);
        let over = |used: u64, worst: u64| used as f64 / worst.max(1) as f64;
        let over = over(usage.tokens(), worst.tokens).max(over(usage.micros, worst.micros));
        let mut factor = self.factor.lock().unwrap_or_else(PoisonError::into_inner);
        *factor = factor.max(over);
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
    fn note_model(&self, model: &str) -> Result<(), Halt> {
        let before = self
            .model
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(model.to_owned());
        Ok((self.settings.teacher).note_model(before.as_deref(), model)?)
    }

    /// Counts questions that ended in vain.
    fn noted(&self, ended: Ended) -> Result<Ended, Halt> {
        for (outcome, problem) in &ended {
            match (outcome, problem) {
                (Outcome::Failed | Outcome::Unparsable, Some(problem)) => {
                    let before = self.in_vain.fetch_add(1, Ordering::Relaxed);
                    if before + 1 == GIVE_UP_AFTER {
                        let problem = format!("{GIVE_UP_AFTER} questions in a row: {problem}");
                        let error = match outcome {
                            Outcome::Failed => Error::Gone { problem },
                            _ => Error::Teacher {
                                url: self.settings.teacher.endpoints.join(", "),
                                problem,
                            },
                        };
                        return Err(Halt::Because(error));
                    }
                }
                _ => self.in_vain.store(0, Ordering::Relaxed),
            }
        }
        Ok(ended)
    }
}

/// What a request has set aside. Given back if it was never sent; of one that was sent and never
/// settled (its worker was stopped in flight), nobody knows what it cost: it stays.
struct Reservation<'a> {
    job: &'a Job,
    worst: Amount,
    was_sent: bool,
}

impl Reservation<'_> {
    fn settle(mut self, usage: Usage) {
        self.was_sent = true;
        let used = Amount {
            micros: usage.micros,
            tokens: usage.tokens(),
        };
        self.job.budget.settle(self.worst, used);
        self.job.settled.notify_waiters();
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.was_sent {
            self.job.budget.settle(self.worst, Amount::default());
            self.job.settled.notify_waiters();
        }
    }
}

/// What a request can't cost more than, by the prices in the settings.
pub(crate) fn worst_case(request: &Request, settings: &LabelSettings) -> Amount {
    let (read, written) = request.most_tokens;
    Amount {
        micros: settings.teacher.price.micros(read, 0, written),
        tokens: read + written,
    }
}

/// What the token limit is charged before the reply says: a token of English has four bytes.
fn expected_tokens(request: &Request) -> f64 {
    let (read, written) = request.most_tokens;
    read as f64 / 4.0 + written as f64
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

/// Waits for something unless the job stops first.
async fn unless<T>(
    stopped: &mut watch::Receiver<bool>,
    wanted: impl Future<Output = T>,
) -> Result<T, Halt> {
    tokio::select! {
        // An error means that the job itself is gone.
        _ = stopped.wait_for(|stopped| *stopped) => Err(Halt::Stopped),
        got = wanted => Ok(got),
    }
}
