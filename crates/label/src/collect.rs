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
mod probing;
mod writer;

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use retort_data::candidates::{self, Candidate};
use retort_data::collection::Collection;
use retort_data::label_set::text_digest;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::dialect::{self, Problem, Request, Texts};
use crate::job::{LabelSettings, OnChange, Teacher};
use crate::ledger::{Attempt, Batch, Entry, Found, Key, Ledger, Outcome, Record, Spent, now};
use crate::limits::{Bucket, Pass};
use crate::money::{Amount, Budget, Held, Usage};
use crate::preflight::{Finding, Script};
use crate::redact::{Counts, Redactor};
use crate::replica::{NoReply, Replica, Reply};
use crate::retry::{self, LONGEST_PAUSE};
use crate::{Error, Result};
use writer::{Writer, Written};

pub use plan::{Destination, Plan, plan};
pub use probing::probe;

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

/// Runs a labelling job. `again` asks those questions too that ended without an answer for a
/// reason of their own; `stop` ends the job early, by a signal of that name.
///
/// # Errors
/// Bad input, before anything is sent; a teacher that can't do the job or went away; the budget;
/// questions that got no answer. What was answered is in the ledger whatever happens.
pub async fn collect(
    settings: &LabelSettings,
    again: bool,
    mut report: impl FnMut(Progress),
    stop: impl Future<Output = &'static str>,
) -> Result<Collected> {
    let Started {
        job,
        written,
        stopping,
        mut collected,
    } = Started::new(settings, again)?;
    let job = Arc::new(job);
    let total = job.questions.asked.len();
    let (sender, mut events) = mpsc::channel(settings.teacher.concurrency);
    let mut workers = JoinSet::new();
    workers.spawn(begin(Arc::clone(&job), sender));

    let spent = job.budget.spent();
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
            Some(Event::Begin(sender)) => {
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
    match last_problem {
        None => Ok(collected),
        Some(last) => Err(unlabelled(&collected, last)),
    }
}

/// Why a job that ran to its end is not whole.
fn unlabelled(collected: &Collected, (outcome, problem): (Outcome, String)) -> Error {
    let asked = collected.ended.values().sum();
    let labelled = collected.ended.get(&Outcome::Ok).unwrap_or(&0);
    let passing = collected.ended.keys().any(|outcome| outcome.is_passing());
    Error::Unlabelled {
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
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A job that is ready to send.
struct Started {
    job: Job,
    written: Written,
    stopping: watch::Sender<bool>,
    collected: Collected,
}

impl Started {
    /// Reads the questions, opens the ledger and finds out which of them are to be asked.
    fn new(settings: &LabelSettings, again: bool) -> Result<Self> {
        let teacher = Teacher::new(settings)?;
        let mut questions = Questions::read(settings, &teacher)?;
        let mut ledger = Ledger::open(&settings.ledger)?;
        let recipe = ledger.recipe(&teacher.recipe_digest, &teacher.recipe)?;
        let aliases = questions.choose(again, |key| ledger.find(key))?;
        ledger.add_aliases(&aliases)?;
        let collected = Collected {
            questions: questions.all,
            known: questions.known,
            given_up: questions.given_up,
            ended: BTreeMap::new(),
            spent: ledger.spent()?,
        };
        let spent = Amount {
            micros: collected.spent.micros,
            tokens: collected.spent.tokens,
        };
        let model = ledger.last_model(recipe)?;
        let found = probing::findings(ledger.last_probe(&teacher.recipe_digest)?);
        let (writer, written) = Writer::start(ledger)?;
        let (stopping, stopped) = watch::channel(false);
        let of_settings = &settings.teacher;
        let job = Job {
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
            found,
            writer,
            stopped,
        };
        Ok(Self {
            job,
            written,
            stopping,
            collected,
        })
    }
}

/// What the questions of a job are made from, and which of them are to be asked.
struct Questions {
    collection: Collection,
    redactor: Redactor,
    candidates: Vec<Candidate>,
    source: PathBuf,
    recipe: [u8; 32],
    samples: u32,
    /// Place in `candidates`, and sample.
    asked: Vec<(u32, u32)>,
    /// Bytes of the longest document of all.
    longest: usize,
    all: usize,
    known: usize,
    given_up: usize,
}

/// A question on its way.
struct Asked {
    key: Key,
    query_id: String,
    document_ids: Vec<String>,
    sample: u32,
    text: String,
    texts: Texts,
    /// What was replaced in the query, and in the documents.
    redacted: [Counts; 2],
}

impl Questions {
    /// Reads the pairs; which of them to ask is still to be chosen.
    fn read(settings: &LabelSettings, teacher: &Teacher) -> Result<Self> {
        let (collection, source) = (&settings.collection, settings.candidates.clone());
        let collection = Collection::read(collection)?;
        let candidates = candidates::read(&source)?;
        let mut texts = Vec::with_capacity(candidates.len());
        for candidate in &candidates {
            let query = collection.query(&candidate.query_id, &source)?;
            texts.push((query, collection.document(&candidate.document_id, &source)?));
        }
        let texts = texts.into_iter();
        let texts = texts.flat_map(|(query, document)| [query.text.clone(), document.full_text()]);
        let redactor = Redactor::new(settings, texts)?;
        Ok(Self {
            redactor,
            collection,
            candidates,
            source,
            recipe: teacher.recipe_digest,
            samples: settings.teacher.samples,
            asked: Vec::new(),
            longest: 0,
            all: 0,
            known: 0,
            given_up: 0,
        })
    }

    /// Chooses the questions to ask: those that have not ended yet, each text once. Returns the
    /// pairs that share the texts of another.
    fn choose(
        &mut self,
        again: bool,
        find: impl Fn(&Key) -> Result<Option<Found>>,
    ) -> Result<Vec<(Key, String, Vec<String>)>> {
        let count = u32::try_from(self.candidates.len()).map_err(|_| Error::File {
            path: self.source.clone(),
            problem: "has more than 4 billion pairs: split it".to_owned(),
        })?;
        let mut chosen = HashSet::new();
        let mut aliases = Vec::new();
        for place in 0..count {
            for sample in 0..self.samples {
                self.all += 1;
                let asked = self.of(place, sample)?;
                let length = asked.texts.documents[0].len();
                self.longest = self.longest.max(length);
                let found = find(&asked.key)?;
                let is_other = |found: &Found| !found.is_of(&asked.query_id, &asked.document_ids);
                let is_alias = match &found {
                    Some(found) => is_other(found),
                    None => chosen.contains(&asked.key),
                };
                match found.map(|found| found.outcome) {
                    Some(Outcome::Ok) => self.known += 1,
                    Some(ended) if !ended.is_passing() && !again => self.given_up += 1,
                    _ if chosen.insert(asked.key) => self.asked.push((place, sample)),
                    _ => self.known += 1,
                }
                if is_alias {
                    aliases.push((asked.key, asked.query_id, asked.document_ids));
                }
            }
        }
        Ok(aliases)
    }

    /// What to ask an endpoint before it is asked these.
    fn script(&self, teacher: &Teacher) -> Script {
        Script::new(teacher.dialect.known(), self.longest, teacher.scale)
    }

    fn at(&self, place: usize) -> Result<Asked> {
        let (candidate, sample) = self.asked[place];
        self.of(candidate, sample)
    }

    fn of(&self, place: u32, sample: u32) -> Result<Asked> {
        let candidate = &self.candidates[place as usize];
        let query = self.collection.query(&candidate.query_id, &self.source)?;
        let document = self
            .collection
            .document(&candidate.document_id, &self.source)?;
        let mut redacted = self
            .redactor
            .redact(&[&query.text, &document.full_text()])?;
        let counts = [0, 1].map(|place: usize| std::mem::take(&mut redacted[place].counts));
        let mut redacted = redacted.into_iter().map(|one| one.text);
        let texts = Texts {
            query: redacted.next().unwrap_or_default(),
            documents: redacted.collect(),
        };
        let shown: Vec<&str> = texts.documents.iter().map(String::as_str).collect();
        Ok(Asked {
            key: Key::new(&self.recipe, sample, &texts.query, &shown),
            query_id: query.id.clone(),
            document_ids: vec![document.id.clone()],
            sample,
            text: text_digest(query, document),
            texts,
            redacted: counts,
        })
    }
}

/// What all workers share.
struct Job {
    settings: LabelSettings,
    teacher: Teacher,
    recipe: i64,
    questions: Questions,
    /// What was found at its endpoints before.
    found: Vec<Finding>,
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
    /// The preflight is over: the workers may begin, and report here.
    Begin(mpsc::Sender<Event>),
    /// Questions ended and are on disk: how, and why if without an answer.
    Ended(Vec<(Outcome, Option<String>)>),
    /// The job ends, for a reason unless that is known already.
    Stop(Option<Error>),
}

/// What comes before the workers.
async fn begin(job: Arc<Job>, events: mpsc::Sender<Event>) {
    let mut stopped = job.stopped.clone();
    let is_probing = job.settings.preflight && !job.questions.asked.is_empty();
    let probed = if is_probing {
        job.preflight(&mut stopped).await.map(|_| ())
    } else {
        Ok(())
    };
    let event = match probed {
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
struct Tries {
    /// Of the first of them: pauses differ from one to the other.
    key: Key,
    failed: u32,
    unreadable: u32,
}

impl Tries {
    fn of(key: Key) -> Self {
        Self {
            key,
            failed: 0,
            unreadable: 0,
        }
    }
}

/// A request that left and is over. Its attempt is still to be put on disk, then the reservation
/// is settled.
struct Sent<'a> {
    attempted: Attempted,
    attempt: Attempt,
    reservation: Reservation<'a>,
    /// Its place in flight, until that is done.
    pass: Pass<'a>,
}

/// How questions go on after an attempt that brought no answer.
enum Next {
    Again(Duration),
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
        let redacted = redacted(&asked);
        let mut tries = Tries::of(asked[0].key);
        loop {
            let replica = self.replica(&asked[0].query_id)?;
            let mut sent = self.send(replica, &request, asked.len(), stopped).await?;
            if sent.attempt.sent_bytes > 0 {
                sent.attempt.redacted.clone_from(&redacted);
            }
            let usage = sent.attempt.usage;
            let mut records = vec![Record::Attempt(sent.attempt)];
            let mut one_by_one = false;
            let next = match sent.attempted {
                Attempted::Answered(Answers { values, model }, reply) => {
                    let entries = (asked.iter().zip(values))
                        .map(|(asked, answer)| entry(asked, Ok(answer)))
                        .collect();
                    records.push(self.batch(entries, model.clone(), Some(reply)));
                    Ok(model)
                }
                Attempted::Without(problem, reply) => {
                    let next = self.after(problem, reply.as_ref(), replica, &mut tries);
                    if let Next::Ended(outcome, problem) = &next {
                        // One of them may be to blame.
                        one_by_one = asked.len() > 1 && *outcome != Outcome::Failed;
                        if !one_by_one {
                            let without = |asked| entry(asked, Err((*outcome, problem.clone())));
                            let entries = asked.iter().map(without).collect();
                            records.push(self.batch(entries, None, reply));
                        }
                    }
                    Err(next)
                }
            };
            self.writer.write(records).await?;
            sent.reservation.settle(usage);
            drop(sent.pass);

            match next {
                Ok(model) => {
                    if let Some(model) = model {
                        self.note_model(&model)?;
                    }
                    return self.noted(vec![(Outcome::Ok, None); asked.len()]);
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
                    return self.noted(vec![(outcome, Some(problem)); asked.len()]);
                }
                Err(Next::Halt(error)) => return Err(Halt::Because(error)),
            }
        }
    }

    /// Sends a request once, when the limits and the budget let it.
    async fn send<'a>(
        &'a self,
        replica: &'a Replica,
        request: &Request,
        questions: usize,
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
        let (attempted, attempt) = self.attempt(replica, &pass, request, questions).await;
        if let Some(bucket) = &self.tokens {
            bucket.settle(expected_tokens - attempt.usage.tokens() as f64);
        }
        Ok(Sent {
            attempted,
            attempt,
            reservation,
            pass,
        })
    }

    /// What to do after an attempt that brought no answer.
    fn after(
        &self,
        problem: Problem,
        reply: Option<&Reply>,
        replica: &Replica,
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
                let jitter = tries.key.jitter(tries.failed);
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
                Err(Held::ForGood) => {
                    let spent = self.budget.spent();
                    let (money, tokens) = (spent.micros as f64 / 1e6, spent.tokens);
                    let spent = format!(
                        "{money:.6} in money and {tokens} tokens are spent, and the next request \
                         could take {:.6} and {}",
                        worst.micros as f64 / 1e6,
                        worst.tokens
                    );
                    return Err(Halt::Because(Error::Budget { spent }));
                }
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
        let worst = worst_case(request, &self.settings);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a product of positive numbers far below 2^53"
        )]
        let times = |amount: u64| (amount as f64 * factor).ceil() as u64;
        Amount {
            micros: times(worst.micros),
            tokens: times(worst.tokens),
        }
    }

    /// Sends a request once.
    async fn attempt(
        &self,
        replica: &Replica,
        pass: &Pass<'_>,
        request: &Request,
        questions: usize,
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
                    usage = self.usage(request.most_tokens, 0, true);
                } else {
                    sent_bytes = 0;
                }
                Attempted::Without(Problem::Passing(problem), None)
            }
            Ok(mut reply) => {
                status = Some(reply.status);
                if let Some(key) = &self.teacher.key {
                    reply.body = key.removed_from_json(&reply.body);
                    reply.request_id = reply.request_id.map(|id| key.removed_from(&id));
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
            sent_bytes,
            redacted: Counts::new(),
            usage,
        };
        (attempted, attempt)
    }

    /// Reads a reply with status 200, and what it cost.
    fn read(
        &self,
        request: &Request,
        reply: Reply,
        questions: usize,
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

    fn usage(&self, (input, output): (u64, u64), cached: u64, estimated: bool) -> Usage {
        Usage {
            input_tokens: input,
            cached_tokens: cached,
            output_tokens: output,
            micros: self.settings.teacher.price.micros(input, cached, output),
            estimated,
        }
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
        let Some(before) = before.filter(|before| before != model) else {
            return Ok(());
        };
        let problem = format!("it calls its model {model:?} now, and {before:?} before");
        match self.settings.teacher.on_model_change {
            OnChange::Warn => {
                tracing::warn!("{problem}");
                Ok(())
            }
            OnChange::Stop => Err(Halt::Because(Error::Teacher {
                url: self.settings.teacher.endpoints.join(", "),
                problem: format!(
                    "{problem}: name one exact model in [teacher] model, or run again to go on \
                     with this one"
                ),
            })),
        }
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
fn worst_case(request: &Request, settings: &LabelSettings) -> Amount {
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
