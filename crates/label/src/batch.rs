//! Labelling through a teacher's batch interface: cheaper, slower, and it survives us.
//!
//! ```text
//! questions ─▷ intent (ledger) ─▷ upload ─▷ … hours … ─▷ lines ─▷ judgements (ledger)
//! ```
//!
//! One command does whatever can be done now: it takes in what has ended, sends what nobody asked
//! yet, and says what is still out. A batch is on record before it leaves, under a name that the
//! interface is given as well; after a crash it is looked for there before anything is sent again.
//! What came back is matched by the questions' keys alone: lines are missing, doubled, reordered
//! or of something else, whatever the batch says it ended as.

mod anthropic;
mod files;
mod openai;
mod reconcile;
mod remote;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::collect::{Collected, Progress, Questions, worst_case};
use crate::dialect::Problem;
use crate::job::{LabelSettings, Teacher};
use crate::ledger::{Intent, Ledger, OpenBatch, Outcome, Posed};
use crate::money::{Amount, Budget};
use crate::retry;
use crate::shard::Whole;
use crate::{Error, Result};
use remote::{Remote, Search, Sought, State};

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
    let settings = settings.clone().at_batch_price();
    let teacher = Teacher::new(&settings)?;
    let remote = Remote::new(&settings, &teacher)?;
    let questions = Questions::read(&settings, &teacher)?;
    let mut ledger = Ledger::open(&settings.ledger)?;
    let mut job = Job {
        recipe: ledger.recipe(&teacher.recipe_digest, &teacher.recipe)?,
        whole: Whole::of(&settings)?,
        settings: &settings,
        teacher: &teacher,
        remote,
        ledger,
        questions,
        next: 0,
        total: 0,
        before: None,
        ended: HashMap::new(),
    };
    let done = tokio::select! {
        done = job.run(again, wait, &mut report) => done,
        // Wherever it is: nothing that was sent is lost, for it was on record before.
        signal = stop => Err(Error::Interrupted { signal, labelled: 0 }),
    };
    job.end(done)
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
    /// Questions that had no answer when the job began.
    total: usize,
    /// What the job came upon, before it did anything.
    before: Option<Collected>,
    /// How questions ended in this run, and why if without an answer.
    ended: HashMap<String, (Outcome, Option<String>)>,
}

/// What a look at the batches that are out brought.
#[derive(Default)]
struct Brought {
    batches: usize,
    answers: usize,
}

impl Job<'_> {
    async fn run(
        &mut self,
        again: bool,
        wait: bool,
        report: &mut impl FnMut(Progress),
    ) -> Result<()> {
        loop {
            let brought = self.look().await?;
            if brought.batches > 0 {
                self.report(report)?;
            }
            // Where nothing was answered, the same would come of sending it again at once.
            let in_vain = brought.batches > 0 && brought.answers == 0;
            if self.before.is_none() || (brought.batches > 0 && !in_vain) {
                self.choose(again && self.before.is_none())?;
            }
            if !in_vain {
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
            tokio::time::sleep(Duration::from_secs(
                self.settings.teacher.batch.poll_seconds,
            ))
            .await;
        }
    }

    /// The batches of this job's teacher that are out.
    fn open(&self) -> Result<Vec<OpenBatch>> {
        let mut open = self.ledger.open_batches()?;
        open.retain(|batch| batch.recipe == self.recipe);
        Ok(open)
    }

    /// Takes in what has ended.
    async fn look(&mut self) -> Result<Brought> {
        let mut brought = Brought::default();
        let mut stopped = None;
        for batch in self.open()? {
            if batch.endpoint != self.remote.name() {
                return Err(Error::Setting(format!(
                    "[teacher] endpoints: a batch is out at {}: take it in there first",
                    batch.endpoint
                )));
            }
            let Some(remote) = self.arrived(&batch).await? else {
                continue;
            };
            let State::Ended(ended) = self.remote.state(&batch, &remote).await? else {
                continue;
            };
            let lines = self.remote.results(&ended).await?;
            let taken = self.take_in(&batch, &remote, ended, lines)?;
            brought.batches += 1;
            brought.answers += taken.answers;
            // All that has ended is taken in before the job stops.
            stopped = stopped.or(taken.stop);
        }
        match stopped {
            Some(error) => Err(error),
            None => Ok(brought),
        }
    }

    /// What the teacher calls a batch. Where a run was killed between its intent and the teacher's
    /// word, this finds out whether the batch ever arrived.
    async fn arrived(&mut self, batch: &OpenBatch) -> Result<Option<String>> {
        if batch.remote.is_some() {
            return Ok(batch.remote.clone());
        }
        match self.search(batch).await? {
            Search::Found(remote) => {
                self.ledger.batch_arrived(batch.id, &remote)?;
                Ok(Some(remote))
            }
            Search::Absent => {
                self.ledger.forget_batch(batch.id)?;
                Ok(None)
            }
            Search::Unclear => Ok(None),
        }
    }

    async fn search(&self, batch: &OpenBatch) -> Result<Search> {
        let sought = Sought {
            batch,
            questions: &self.ledger.batch_questions(batch.id)?,
            known: &self.ledger.remote_batches()?,
        };
        self.remote.find(&sought).await
    }

    /// Chooses what is to be sent: what has not ended and is in no batch.
    fn choose(&mut self, again: bool) -> Result<()> {
        let (ledger, whole) = (&self.ledger, &self.whole);
        let out = ledger.in_batches()?;
        let find = |key: &_| whole.or_known(key, ledger.find(key)?);
        let aliases = self.questions.choose(again, &out, find)?;
        self.ledger.add_aliases(&aliases)?;
        self.next = 0;
        if self.before.is_none() {
            let before = self.questions.before(self.ledger.spent()?);
            self.total = self.questions.asked.len() + before.pending + self.ended.len();
            self.before = Some(before);
        }
        Ok(())
    }

    /// Sends what was chosen, as far as the budget and the number of batches allow.
    async fn submit(&mut self) -> Result<()> {
        let spent = self.ledger.spent()?;
        let spent = Amount {
            micros: spent.micros,
            tokens: spent.tokens,
        };
        let budget = Budget::new(&self.settings.budget, spent.plus(self.ledger.set_aside()?));
        while self.next < self.questions.asked.len() {
            let open = self.ledger.open_batches()?.len();
            if open >= self.settings.teacher.batch.at_once {
                return Ok(());
            }
            match self.load(&budget)? {
                Load::Full(posed, lines, most) => self.send(&posed, &lines, most).await?,
                // What is out may turn out to cost less.
                Load::OverBudget(_) if open > 0 => return Ok(()),
                Load::OverBudget(worst) => return Err(budget.used_up(worst)),
            }
        }
        Ok(())
    }

    /// The next batch.
    fn load(&mut self, budget: &Budget) -> Result<Load> {
        let factor = self.ledger.batch_factor(self.recipe)?;
        let (mut posed, mut lines) = (Vec::new(), Vec::new());
        let (mut most, mut bytes) = (Amount::default(), 0);
        while self.next < self.questions.asked.len()
            && lines.len() < self.settings.teacher.batch.requests
        {
            let asked = self.questions.at(self.next)?;
            let request = self.teacher.dialect.request(&[&asked.texts])?;
            let worst = worst_case(&request, self.settings).times(factor);
            let line = self.remote.line(&asked.key.hex(), &request);
            if bytes + line.len() > MOST_BYTES && !lines.is_empty() {
                break;
            }
            if budget.reserve(worst).is_err() {
                if lines.is_empty() {
                    return Ok(Load::OverBudget(worst));
                }
                break;
            }
            bytes += line.len();
            most = most.plus(worst);
            lines.push(line);
            posed.push(Posed {
                key: asked.key,
                query_id: asked.query_id,
                document_ids: asked.document_ids,
                sample: asked.sample,
                text: asked.text,
                most_tokens: request.most_tokens,
            });
            self.next += 1;
        }
        Ok(Load::Full(posed, lines, most))
    }

    /// Sends one batch, once.
    async fn send(&mut self, posed: &[Posed], lines: &[String], most: Amount) -> Result<()> {
        let input = self.remote.input(lines);
        let batch = self.ledger.intend(&Intent {
            recipe: self.recipe,
            endpoint: self.remote.name(),
            input_sha256: &retort_files::sha256(&input),
            most,
            questions: posed,
        })?;
        let mut failed = 0;
        loop {
            match self.remote.submit(&batch, &input).await {
                Ok(remote) => {
                    tracing::info!("batch {remote}: {} questions are out", posed.len());
                    return self.ledger.batch_arrived(batch.id, &remote);
                }
                Err(Problem::Passing(_)) if failed < self.settings.teacher.retries => {
                    failed += 1;
                    tokio::time::sleep(retry::backoff(failed, 0.5)).await;
                    // The word may be lost and the batch be there.
                    match self.search(&batch).await? {
                        Search::Found(remote) => {
                            return self.ledger.batch_arrived(batch.id, &remote);
                        }
                        Search::Unclear => return Ok(()),
                        Search::Absent => {}
                    }
                }
                // Whether it arrived is for the next run to find out.
                Err(problem @ Problem::Passing(_)) => {
                    return Err(remote::error(self.remote.name(), problem));
                }
                Err(problem) => {
                    self.ledger.forget_batch(batch.id)?;
                    return Err(remote::error(self.remote.name(), problem));
                }
            }
        }
    }

    fn report(&self, report: &mut impl FnMut(Progress)) -> Result<()> {
        let spent = self.ledger.spent()?;
        report(Progress {
            done: self.ended.len(),
            failed: self.failed(),
            total: self.total.max(self.ended.len()),
            tokens: spent.tokens,
            micros: spent.micros,
        });
        Ok(())
    }

    fn failed(&self) -> usize {
        let ended = self.ended.values();
        ended.filter(|(outcome, _)| *outcome != Outcome::Ok).count()
    }

    /// What the job did, or why it stopped.
    fn end(self, done: Result<()>) -> Result<Collected> {
        let failed = self.failed();
        let spent = self.ledger.spent()?;
        self.ledger.close()?;
        match done {
            Err(Error::Interrupted { signal, .. }) => {
                let labelled = self.ended.len() - failed;
                return Err(Error::Interrupted { signal, labelled });
            }
            done => done?,
        }
        let mut collected = self.before.unwrap_or_else(|| self.questions.before(spent));
        (collected.spent, collected.pending) = (spent, 0);
        let mut last = None;
        for (outcome, problem) in self.ended.into_values() {
            *collected.ended.entry(outcome).or_insert(0) += 1;
            last = last.or(problem.map(|problem| (outcome, problem)));
        }
        collected.unless_unlabelled(last)
    }
}

enum Load {
    /// Questions, their lines, and what they can come to at most.
    Full(Vec<Posed>, Vec<String>, Amount),
    /// Not even one question fits: this much.
    OverBudget(Amount),
}
