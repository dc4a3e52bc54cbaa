//! The collector: asks a teacher every question that has no answer yet, as fast as the teacher
//! and the limits allow, and stops in a way that loses nothing.
//!
//! ```text
//! preflight ─▷ questions ─▷ workers (budget ▷ gate ▷ rate ▷ HTTP ▷ dialect) ─▷ writer (ledger)
//! ```
//!
//! A worker has one request in flight and takes its next question when its last one is on disk:
//! a kill costs at most as many requests as there are workers.

mod plan;
mod preflight;
mod send;
mod settle;
mod writer;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::apart::unless_stopped;
use crate::job::{LabelSettings, Teacher};
use crate::ledger::{Key, Ledger, Outcome, Record, Spent};
use crate::limits::Bucket;
use crate::money::Budget;
use crate::preflight::Preflight;
use crate::prepare::prepare;
use crate::questions::Questions;
use crate::shard::Whole;
use crate::{Error, Result};
use writer::{Writer, Written};

pub(crate) use plan::plan_of;
pub use plan::{Destination, Plan, plan};
pub use preflight::preflight;
pub(crate) use preflight::try_endpoints;

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
    /// Answers that batches brought to questions which had one by then: paid for, and not kept.
    pub bought_twice: usize,
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

/// Runs a labelling job. `report` is told before the first question, and when some have ended. `again`
/// asks those questions too that ended without an answer for a
/// reason of their own; `stop` ends the job early, by a signal of that name.
///
/// # Errors
/// Bad input, before anything is sent; a teacher that fails the preflight, can't do the job or went
/// away; the budget; questions that got no answer. What was answered is in the ledger whatever
/// happens.
pub async fn collect(
    settings: &LabelSettings,
    again: bool,
    report: impl FnMut(Progress),
    stop: impl Future<Output = &'static str>,
) -> Result<Collected> {
    tokio::pin!(stop);
    let teacher = Teacher::new(settings)?;
    let read = Questions::read_apart(settings, teacher);
    let (teacher, questions) = unless_stopped(&mut stop, read).await?;
    ask(settings, teacher, questions, again, report, stop).await
}

/// [`collect`], of these questions.
pub(crate) async fn ask(
    settings: &LabelSettings,
    teacher: Teacher,
    questions: Questions,
    again: bool,
    mut report: impl FnMut(Progress),
    stop: impl Future<Output = &'static str>,
) -> Result<Collected> {
    tokio::pin!(stop);
    let Started {
        job,
        written,
        stopping,
        mut collected,
    } = unless_stopped(&mut stop, Started::new(settings, teacher, questions, again)).await?;
    let budget = Arc::clone(&job.budget);
    let total = job.questions.asked.len();
    let (sender, mut events) = mpsc::channel(settings.teacher.concurrency);
    let mut workers = JoinSet::new();
    workers.spawn(begin(Arc::clone(&job), sender));

    let spent = budget.spent();
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
            Some(Event::Begin(sender)) => {
                report(progress);
                let places = job.teacher.replicas.iter().map(|one| one.gate.most());
                for _ in 0..places.sum::<usize>().min(total) {
                    workers.spawn(work(Arc::clone(&job), sender.clone()));
                }
            }
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
                let spent = budget.spent();
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
    workers.shutdown().await;
    drop(job);
    collected.spent = close(written, &budget).await?;
    end?;
    collected.unless_unlabelled(last_problem)
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Ends a run whose workers are gone; returns what the ledger came to.
async fn close(written: Written, budget: &Budget) -> Result<Spent> {
    let mut ledger = written.await_end().await?;
    let spent = ledger.spent()?;
    match budget.reserved() {
        none if none.is_zero() => ledger.close()?,
        // Past the deadline some were still at it: what they had in flight stays at risk.
        in_flight => ledger.commit(&[Record::AtRisk(in_flight)])?,
    }
    Ok(spent)
}

impl Collected {
    /// What a job did that ran to its end; an error if questions ended without an answer, the last
    /// of them in this way, or are still out.
    pub(crate) fn unless_unlabelled(self, last: Option<(Outcome, String)>) -> Result<Self> {
        let Some((outcome, problem)) = last else {
            return match self.pending {
                0 => Ok(self),
                questions => Err(Error::Pending { questions }),
            };
        };
        let asked: usize = self.ended.values().sum();
        let labelled = self.ended.get(&Outcome::Ok).unwrap_or(&0);
        let passing = self.ended.keys().any(|outcome| outcome.is_passing());
        Err(Error::Unlabelled {
            failed: asked - labelled,
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

/// A job that is ready to send.
struct Started {
    job: Arc<Job>,
    written: Written,
    /// The job is told to stop by this, or by its end.
    stopping: watch::Sender<bool>,
    collected: Collected,
}

impl Started {
    /// Opens the ledger and finds out which questions are to be asked.
    async fn new(
        settings: &LabelSettings,
        mut teacher: Teacher,
        mut questions: Questions,
        again: bool,
    ) -> Result<Self> {
        prepare(&mut teacher, settings.teacher.retries).await?;
        let mut ledger = Ledger::open(&settings.ledger)?;
        let recipe = ledger.recipe(&teacher.recipe_digest, &teacher.recipe)?;
        let whole = Whole::of(settings)?;
        let find = |key: &Key| whole.or_known(key, ledger.find(key)?);
        let out = whole.or_out(ledger.in_batches()?)?;
        let aliases = questions.choose(again, &out, find)?;
        ledger.add_aliases(&aliases)?;
        let collected = questions.before(ledger.spent()?);
        let model = ledger.last_model(recipe)?;
        let factor = ledger.factor(&teacher.recipe_digest)?;
        let passed = ledger.last_preflights(&teacher.recipe_digest)?;
        let answers = !passed.is_empty() || ledger.has_answer(recipe)?;
        let budget = Budget::new(&settings.budget, collected.spent.amount());
        let budget = Arc::new(budget.without(ledger.set_aside()?));
        let (writer, written) = Writer::start(ledger, Arc::clone(&budget))?;
        let (stopping, stopped) = watch::channel(false);
        let of_settings = &settings.teacher;
        let job = Job {
            budget,
            settled: Notify::new(),
            requests: of_settings.requests_per_minute.map(Bucket::per_minute),
            tokens: of_settings.tokens_per_minute.map(Bucket::per_minute),
            next: Mutex::new(0),
            in_vain: AtomicUsize::new(0),
            answers: AtomicBool::new(answers),
            factor: Mutex::new(factor),
            model: Mutex::new(model),
            settings: settings.clone(),
            teacher,
            recipe,
            questions,
            passed,
            writer,
            stopped,
        };
        Ok(Self {
            job: Arc::new(job),
            written,
            stopping,
            collected,
        })
    }
}

/// What all workers share.
struct Job {
    settings: LabelSettings,
    teacher: Teacher,
    recipe: i64,
    questions: Questions,
    /// What the last preflight of the recipe found.
    passed: Vec<Preflight>,
    /// The next of the questions to ask.
    next: Mutex<usize>,
    /// Questions in a row that ended without an answer.
    in_vain: AtomicUsize,
    /// The teacher has answered a question, in this run or another: it takes such requests.
    answers: AtomicBool,
    budget: Arc<Budget>,
    /// Something in flight was settled.
    settled: Notify,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    /// How much more than its worst case a request was ever billed for, in this run or another.
    factor: Mutex<f64>,
    /// The model that the replies name.
    model: Mutex<Option<String>>,
    writer: Writer,
    stopped: watch::Receiver<bool>,
}

enum Event {
    /// The preflight is over: the workers may begin, and report here.
    Begin(mpsc::Sender<Event>),
    /// Questions ended and are on disk.
    Ended(Ended),
    /// The job ends, for a reason unless that is known already.
    Stop(Option<Error>),
}

/// How questions ended, and why if without an answer.
type Ended = Vec<(Outcome, Option<String>)>;

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

/// What comes before the workers.
async fn begin(job: Arc<Job>, events: mpsc::Sender<Event>) {
    let passed = if job.settings.preflight && !job.questions.asked.is_empty() {
        job.preflight(&job.passed, &job.stopped).await.map(|_| ())
    } else {
        Ok(())
    };
    let event = match passed {
        Ok(()) => Event::Begin(events.clone()),
        Err(Halt::Stopped) => return,
        Err(Halt::Because(error)) => Event::Stop(Some(error)),
    };
    // An error means that nobody waits for it any more.
    let _ = events.send(event).await;
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
