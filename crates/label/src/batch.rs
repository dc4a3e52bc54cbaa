//! Labelling through a teacher's batch interface: cheaper, slower, and it survives us.
//!
//! ```text
//! questions ─▷ batch (ledger) ─▷ upload ─▷ … hours … ─▷ lines ─▷ judgements (ledger)
//! ```
//!
//! One command does whatever can be done now: it takes in what has ended, sends what nobody asked
//! yet, and says what is still out. A batch is on record before it leaves, under a name that the
//! interface is given as well; after a crash it is looked for there before anything is sent again.
//! What came back is matched by the questions' keys alone: lines are missing, doubled, reordered
//! or of something else, whatever the batch says it ended as.

pub(crate) mod anthropic;
mod files;
pub(crate) mod openai;
mod reconcile;
pub(crate) mod remote;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::apart::unless_stopped;
use crate::collect::{Collected, Progress, try_endpoints};
use crate::dialect::Problem;
use crate::job::{LabelSettings, Teacher};
use crate::ledger::{Attempt, Ledger, OpenBatch, Outcome, Posed, now};
use crate::money::{Amount, Budget, Usage};
use crate::questions::Questions;
use crate::redact::Counts;
use crate::shard::Whole;
use crate::{Error, Result};
use remote::{Remote, Search, Sought};

/// How batches are sent (`[teacher.batch]`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchSettings {
    /// Requests in one batch, at most.
    pub requests: usize,
    /// Batches that are out at once, at most.
    pub at_once: usize,
    /// How long to wait between two looks.
    pub poll_seconds: u64,
    /// What stands before `chat/completions` in the lines of a batch.
    pub prefix: String,
    /// Where files for `vllm run-batch` go; without it, batches go to the endpoint.
    pub folder: Option<PathBuf>,
}

impl Default for BatchSettings {
    fn default() -> Self {
        Self {
            requests: 10_000,
            at_once: 100,
            poll_seconds: 60,
            prefix: "/v1/".to_owned(),
            folder: None,
        }
    }
}

/// The most bytes in one batch: below what OpenAI (200 MB) and Anthropic (256 MB) take.
const MOST_BYTES: usize = 150 << 20;
/// How long a batch that the teacher does not find may be found again.
const SECONDS_TO_BE_FOUND: i64 = 24 * 3600;

/// Runs a labelling job through the teacher's batch interface, as far as it goes now: with `wait`
/// until all has come back, else until there is nothing to do but to wait. `again` and `stop` are
/// those of [`collect`](crate::collect()).
///
/// # Errors
/// [`Error::Pending`] while questions are with the teacher, else as `collect`. What was answered
/// is in the ledger whatever happens.
pub async fn collect_in_batches(
    settings: &LabelSettings,
    again: bool,
    wait: bool,
    mut report: impl FnMut(Progress),
    stop: impl Future<Output = &'static str>,
) -> Result<Collected> {
    tokio::pin!(stop);
    if settings.preflight && settings.teacher.batch.folder.is_none() {
        unless_stopped(&mut stop, try_endpoints(settings)).await?;
    }
    let settings = LabelSettings {
        in_batches: true,
        ..settings.clone()
    };
    let read = Questions::read_apart(&settings, Teacher::new(&settings)?);
    let (teacher, questions) = unless_stopped(&mut stop, read).await?;
    let remote = Remote::new(&settings, &teacher)?;
    let mut ledger = Ledger::open(&settings.ledger)?;
    let recipe = ledger.recipe(&teacher.recipe_digest, &teacher.recipe)?;
    let mut job = Job {
        whole: Whole::of(&settings)?,
        settings: &settings,
        teacher: &teacher,
        remote,
        ledger,
        recipe,
        questions,
        next: 0,
        in_vain: false,
        ended: BTreeMap::new(),
        bought_twice: 0,
    };
    job.choose(again)?;
    let before = job.questions.before(job.ledger.spent()?);
    let out = job.open()?;
    let out: usize = out.iter().map(|batch| batch.questions).sum();
    let total = job.questions.asked.len() + out;
    let done = tokio::select! {
        done = job.run(wait, total, &mut report) => done,
        // Wherever it is: nothing that was sent is lost, for it was on record before.
        signal = &mut stop => Err(Error::Interrupted { signal, labelled: 0 }),
    };
    job.end(before, done)
}

struct Job<'a> {
    settings: &'a LabelSettings,
    teacher: &'a Teacher,
    remote: Remote<'a>,
    ledger: Ledger,
    recipe: i64,
    whole: Whole,
    questions: Questions,
    /// The next of the questions to send.
    next: usize,
    /// The last batches that came back had no answer at all: the same would come of sending more.
    in_vain: bool,
    /// How questions ended in this run, by the id that their lines bear; and why, if without an
    /// answer.
    ended: BTreeMap<String, (Outcome, Option<String>)>,
    /// Answers to questions that had one.
    bought_twice: usize,
}

/// What a look at the batches that are out brought.
#[derive(Default)]
struct Looked {
    /// Batches that came back, or turn out never to have arrived.
    settled: usize,
    /// Batches that came back.
    came_back: usize,
    answers: usize,
}

impl Job<'_> {
    async fn run(
        &mut self,
        wait: bool,
        total: usize,
        report: &mut impl FnMut(Progress),
    ) -> Result<()> {
        loop {
            let looked = self.look().await?;
            if looked.came_back > 0 {
                self.in_vain = looked.answers == 0;
                report(self.progress(total)?);
            }
            if looked.settled > 0 {
                self.choose(false)?;
            }
            if !self.in_vain {
                self.submit().await?;
            }
            let out = self.open()?;
            if out.is_empty() {
                return Ok(());
            }
            if !wait {
                let questions = out.iter().map(|batch| batch.questions).sum();
                return Err(Error::Pending { questions });
            }
            let pause = self.settings.teacher.batch.poll_seconds;
            tokio::time::sleep(Duration::from_secs(pause)).await;
        }
    }

    /// The batches of this job's teacher that are out.
    fn open(&self) -> Result<Vec<OpenBatch>> {
        let mut open = self.ledger.open_batches()?;
        open.retain(|batch| batch.recipe == self.recipe);
        Ok(open)
    }

    /// Takes in what has ended.
    async fn look(&mut self) -> Result<Looked> {
        let mut looked = Looked::default();
        let mut stop = None;
        for batch in self.open()? {
            match self.look_at(&batch, &mut looked).await {
                Ok(problem) => stop = stop.or(problem),
                // It stays out.
                Err(Error::Gone { problem }) => tracing::warn!("batch {}: {problem}", batch.name),
                Err(error) => stop = stop.or(Some(error)),
            }
        }
        // All that has ended is taken in before the job stops.
        match stop {
            Some(error) => Err(error),
            None => Ok(looked),
        }
    }

    /// Takes a batch in if it has ended; returns why the job should stop, if it should.
    async fn look_at(&mut self, batch: &OpenBatch, looked: &mut Looked) -> Result<Option<Error>> {
        if batch.endpoint != self.remote.name() {
            return Err(Error::Setting(format!(
                "[teacher] endpoints: a batch is out at {}: take it in there first",
                batch.endpoint
            )));
        }
        let remote = match &batch.remote {
            Some(remote) => remote.clone(),
            None => match self.search(batch).await? {
                Search::Found(remote) => {
                    self.ledger.batch_arrived(batch.id, &remote)?;
                    remote
                }
                Search::Absent => {
                    self.ledger.forget_batch(batch.id)?;
                    looked.settled += 1;
                    return Ok(None);
                }
                Search::Unclear => return Ok(None),
            },
        };
        let Some(mut ended) = self.remote.ended(batch, &remote).await? else {
            if batch.missing_at.is_some() {
                self.ledger.batch_missing(batch.id, None)?;
            }
            return Ok(None);
        };
        let lines = self.remote.results(&mut ended).await?;
        if let Some(path) = &ended.missing
            && !self.is_lost(batch, path)?
        {
            return Ok(None);
        }
        let taken = self.take_in(batch, &remote, ended, lines)?;
        looked.settled += 1;
        looked.came_back += 1;
        looked.answers += taken.answers;
        Ok(taken.stop)
    }

    /// Whether a batch of which nothing is at that path has not been found for so long that it never
    /// will be. Until then it stays out: who asks with another key, say, does not find it either.
    fn is_lost(&mut self, batch: &OpenBatch, path: &str) -> Result<bool> {
        let now = now();
        if let Some(since) = &batch.missing_at {
            return Ok(remote::seconds(&now) - remote::seconds(since) >= SECONDS_TO_BE_FOUND);
        }
        self.ledger.batch_missing(batch.id, Some(&now))?;
        tracing::warn!(
            "batch {}: {path} is not found; it stays out, and is lost if that is so for a day",
            batch.name
        );
        Ok(false)
    }

    /// What became of a batch whose arrival nobody confirmed.
    async fn search(&self, batch: &OpenBatch) -> Result<Search> {
        let Some(left_at) = &batch.left_at else {
            return Ok(Search::Absent);
        };
        let sought = Sought {
            batch,
            left: remote::seconds(left_at),
            questions: &self.ledger.batch_questions(batch.id)?,
            known: &self.ledger.remote_batches()?,
        };
        let found = self.remote.find(&sought).await?;
        // Until the request's time is up it may be on its way.
        let age = remote::seconds(&now()) - sought.left;
        let is_late =
            u64::try_from(age).is_ok_and(|age| age > self.settings.teacher.timeout_seconds);
        Ok(match found {
            Search::Absent if !is_late => Search::Unclear,
            found => found,
        })
    }

    /// Chooses what is to be sent: what has not ended and is in no batch, and what was chosen
    /// before and is still to be sent.
    fn choose(&mut self, again: bool) -> Result<()> {
        let unsent = self.questions.asked.split_off(self.next);
        let (ledger, whole) = (&self.ledger, &self.whole);
        let find = |key: &_| whole.or_known(key, ledger.find(key)?);
        let out = whole.or_out(ledger.in_batches()?)?;
        let aliases = self.questions.choose(again, &out, find)?;
        self.ledger.add_aliases(&aliases)?;
        let asked = &mut self.questions.asked;
        let chosen: HashSet<usize> = asked.iter().copied().collect();
        asked.extend(unsent.into_iter().filter(|place| !chosen.contains(place)));
        self.next = 0;
        Ok(())
    }

    /// Sends what was chosen, as far as the budget and the number of batches allow.
    async fn submit(&mut self) -> Result<()> {
        let spent = self.ledger.spent()?.amount();
        let budget = Budget::new(&self.settings.budget, spent).without(self.ledger.set_aside()?);
        while self.next < self.questions.asked.len() {
            let out = self.ledger.open_batches()?.len();
            if out >= self.settings.teacher.batch.at_once {
                return Ok(());
            }
            match self.load(&budget)? {
                Load::Full(batch) => {
                    if !self.send(batch).await? {
                        return Ok(());
                    }
                }
                // What is out may turn out to cost less.
                Load::OverBudget(_) if out > 0 => return Ok(()),
                Load::OverBudget(worst) => return Err(budget.used_up(worst)),
            }
        }
        Ok(())
    }

    /// The next batch.
    fn load(&mut self, budget: &Budget) -> Result<Load> {
        let price = self.settings.price();
        let mut load = Batch {
            factor: self.ledger.factor(&self.teacher.recipe_digest)?,
            ..Batch::default()
        };
        while self.next < self.questions.asked.len()
            && load.lines.len() < self.settings.teacher.batch.requests
        {
            let asked = self.questions.at(self.next)?;
            let request = self.teacher.dialect.request(&[&asked.texts])?;
            let worst = price.worst(request.most_tokens).times(load.factor);
            let line = self.remote.line(&asked.key.hex(), &request);
            if load.bytes + line.len() > MOST_BYTES && !load.lines.is_empty() {
                break;
            }
            if budget.reserve(worst).is_err() {
                if load.lines.is_empty() {
                    return Ok(Load::OverBudget(worst));
                }
                break;
            }
            load.bytes += line.len();
            load.most = load.most.plus(worst);
            load.lines.push(line);
            for (kind, count) in asked.redacted.iter().flatten() {
                *load.redacted.entry(*kind).or_insert(0) += count;
            }
            load.posed.push(Posed {
                key: asked.key,
                query_id: asked.query_id,
                document_ids: asked.document_ids,
                sample: asked.sample,
                text: asked.text,
                most_tokens: request.most_tokens,
            });
            self.next += 1;
        }
        Ok(Load::Full(load))
    }

    /// Sends one batch, once; whether it is certain that it arrived.
    async fn send(&mut self, load: Batch) -> Result<bool> {
        let Batch {
            posed,
            lines,
            bytes,
            redacted,
            most,
            factor,
        } = load;
        let name = self.remote.name();
        let leaves = Attempt {
            at: now(),
            endpoint: name.to_owned(),
            status: None,
            problem: None,
            latency_ms: 0,
            sent_bytes: bytes as u64,
            redacted,
            usage: Usage::default(),
        };
        // Files stay here.
        let leaves = self.remote.is_far().then_some(leaves);
        let recipe = self.recipe;
        let batch = (self.ledger).begin_batch(recipe, name, most, factor, &posed, leaves)?;
        match self.deliver(&batch, &lines).await {
            Ok(remote) => {
                self.ledger.batch_arrived(batch.id, &remote)?;
                tracing::info!("batch {remote}: {} questions are out", batch.questions);
                Ok(true)
            }
            Err(Problem::Passing(problem)) => {
                tracing::warn!(
                    "batch {}: {problem}; whether it arrived is looked up before it is sent again",
                    batch.name
                );
                Ok(false)
            }
            Err(problem) => {
                self.ledger.forget_batch(batch.id)?;
                Err(remote::error(self.remote.name(), problem))
            }
        }
    }

    async fn deliver(&mut self, batch: &OpenBatch, lines: &[String]) -> Result<String, Problem> {
        let body = self.remote.upload(batch, lines).await?;
        self.ledger.batch_leaves(batch.id).map_err(Problem::Fatal)?;
        self.remote.create(batch, body).await
    }

    fn progress(&self, total: usize) -> Result<Progress> {
        let spent = self.ledger.spent()?;
        Ok(Progress {
            done: self.ended.len(),
            failed: self.failed(),
            total: total.max(self.ended.len()),
            tokens: spent.tokens,
            micros: spent.micros,
        })
    }

    fn failed(&self) -> usize {
        let ended = self.ended.values();
        ended.filter(|(outcome, _)| *outcome != Outcome::Ok).count()
    }

    /// What the job did, or why it stopped.
    fn end(self, before: Collected, done: Result<()>) -> Result<Collected> {
        let labelled = self.ended.len() - self.failed();
        let spent = self.ledger.spent()?;
        self.ledger.close()?;
        match done {
            Err(Error::Interrupted { signal, .. }) => {
                return Err(Error::Interrupted { signal, labelled });
            }
            done => done?,
        }
        let mut collected = Collected {
            // Those that the whole of which this is a part has out.
            pending: self.questions.pending,
            bought_twice: self.bought_twice,
            spent,
            ..before
        };
        let mut last = None;
        for (outcome, problem) in self.ended.into_values() {
            *collected.ended.entry(outcome).or_insert(0) += 1;
            last = problem.map(|problem| (outcome, problem)).or(last);
        }
        collected.unless_unlabelled(last)
    }
}

/// Questions that go together.
#[derive(Default)]
struct Batch {
    posed: Vec<Posed>,
    lines: Vec<String>,
    bytes: usize,
    /// What was replaced in their texts.
    redacted: Counts,
    /// What they can come to at most: their worst cases, so many times.
    most: Amount,
    factor: f64,
}

enum Load {
    Full(Batch),
    /// Not even one question fits: this much.
    OverBudget(Amount),
}
