//! The collector: asks a teacher about every pair that has no judgement yet.
//!
//! A judgement counts once it is in the file. Whatever stops the job, the same command goes on
//! where it was.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use crate::candidates::{self, Candidate};
use crate::collection::Collection;
use crate::judgement::{Appender, Judgement, expected_grade, text_digest};
use crate::prompt::Prompt;
use crate::teacher::{Answer, Failure, Teacher, TeacherSettings};
use crate::{Error, Result};

/// A labelling job (`configs/label.toml`).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LabelSettings {
    /// The collection's folder.
    pub collection: PathBuf,
    /// The pairs to judge, as `retort candidates` writes them.
    pub candidates: PathBuf,
    /// Where the judgements go.
    pub out: PathBuf,
    /// The prompt file.
    pub prompt: PathBuf,
    /// Whom to ask.
    pub teacher: TeacherSettings,
}

/// What a labelling job did.
#[derive(Debug, Serialize)]
pub struct Collected {
    /// Pairs that the candidates name.
    pub pairs: usize,
    /// Of them, those that were judged before.
    pub known: usize,
    /// Of them, those judged now.
    pub labelled: usize,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Pairs done with, judged or failed.
    pub done: usize,
    /// Of them, failed.
    pub failed: usize,
    /// Pairs asked for in this run.
    pub total: usize,
}

/// Runs a labelling job; `stop` ends it early (everything labelled is kept).
///
/// # Errors
/// Bad input before anything is sent; a fatal answer of the teacher; pairs that stayed unlabelled.
pub async fn collect(
    settings: &LabelSettings,
    mut report: impl FnMut(Progress),
    stop: impl Future<Output = ()>,
) -> Result<Collected> {
    let prompt = Prompt::read(&settings.prompt)?;
    let teacher = Teacher::new(&settings.teacher)?;
    let collection = Collection::read(&settings.collection)?;
    let candidates = candidates::read(&settings.candidates)?;
    let (mut out, known) = Appender::open(&settings.out, &settings.teacher.name, &prompt.digest)?;
    let known: BTreeSet<Pair> = known.into_iter().map(Pair::judged).collect();
    let questions = questions(&candidates, &collection, &settings.candidates, known)?;

    let total = questions.len();
    let mut progress = Progress {
        done: 0,
        failed: 0,
        total,
    };
    let mut last_failure = String::new();
    let mut outcomes = ask_all(questions, prompt, teacher, &settings.teacher);
    tokio::pin!(stop);
    loop {
        let outcome = tokio::select! {
            outcome = outcomes.recv() => outcome,
            () = &mut stop => {
                keep_arrived(&mut outcomes, &mut out)?;
                return Err(Error::Interrupted { labelled: progress.done - progress.failed });
            }
        };
        match outcome {
            None => break,
            Some(Ok(judgement)) => out.append(&judgement)?,
            Some(Err(Failure::Fatal(error))) => {
                keep_arrived(&mut outcomes, &mut out)?;
                return Err(error);
            }
            Some(Err(Failure::Transient { problem, .. } | Failure::Invalid(problem))) => {
                tracing::warn!("unlabelled: {problem}");
                progress.failed += 1;
                last_failure = problem;
            }
        }
        progress.done += 1;
        report(progress);
    }
    out.sync()?;
    if progress.failed > 0 {
        return Err(Error::Unlabelled {
            failed: progress.failed,
            asked: total,
            last: last_failure,
        });
    }
    Ok(Collected {
        pairs: candidates.len(),
        known: candidates.len() - total,
        labelled: total,
    })
}

/// Stops the workers and writes what they had sent: it is paid for.
fn keep_arrived(outcomes: &mut mpsc::Receiver<Outcome>, out: &mut Appender) -> Result<()> {
    outcomes.close();
    while let Ok(outcome) = outcomes.try_recv() {
        if let Ok(judgement) = outcome {
            out.append(&judgement)?;
        }
    }
    out.sync()
}

/// What is judged, down to its words.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    query_id: String,
    document_id: String,
    text: String,
}

impl Pair {
    fn judged(judgement: Judgement) -> Self {
        let Judgement {
            query_id,
            document_id,
            text,
            ..
        } = judgement;
        Self {
            query_id,
            document_id,
            text,
        }
    }
}

struct Question {
    pair: Pair,
    query: String,
    document: String,
}

fn questions(
    candidates: &[Candidate],
    collection: &Collection,
    source: &Path,
    mut known: BTreeSet<Pair>,
) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for candidate in candidates {
        let query = collection.query(&candidate.query_id, source)?;
        let document = collection.document(&candidate.document_id, source)?;
        let pair = Pair {
            query_id: query.id.clone(),
            document_id: document.id.clone(),
            text: text_digest(query, document),
        };
        // A pair that the candidates name twice is asked once.
        if known.insert(pair.clone()) {
            let (query, document) = (query.text.clone(), document.full_text());
            questions.push(Question {
                pair,
                query,
                document,
            });
        }
    }
    // Popped from the end.
    questions.reverse();
    Ok(questions)
}

type Outcome = Result<Judgement, Failure>;

/// Workers that share one queue, so that pairs of one query are asked close together and a
/// server that keeps prefixes reads the rubric and the query once.
fn ask_all(
    questions: Vec<Question>,
    prompt: Prompt,
    teacher: Teacher,
    settings: &TeacherSettings,
) -> mpsc::Receiver<Outcome> {
    let (sender, receiver) = mpsc::channel(settings.concurrency);
    let shared = Arc::new((Mutex::new(questions), prompt, teacher, settings.clone()));
    let mut workers = JoinSet::new();
    for _ in 0..settings.concurrency {
        let (shared, sender) = (Arc::clone(&shared), sender.clone());
        workers.spawn(async move {
            let (queue, prompt, teacher, settings) = &*shared;
            loop {
                let Some(question) = queue.lock().await.pop() else {
                    return;
                };
                let answer = ask_with_retries(teacher, prompt, &question, settings.retries).await;
                let outcome =
                    answer.map(|answer| judgement(question, &answer, settings, &prompt.digest));
                if sender.send(outcome).await.is_err() {
                    return;
                }
            }
        });
    }
    workers.detach_all();
    receiver
}

async fn ask_with_retries(
    teacher: &Teacher,
    prompt: &Prompt,
    question: &Question,
    retries: u32,
) -> Result<Answer, Failure> {
    let mut attempt = 0;
    loop {
        match teacher
            .ask(prompt, &question.query, &question.document)
            .await
        {
            Err(Failure::Transient {
                problem,
                retry_after,
            }) if attempt < retries => {
                // Doubling from half a second to 8; a server that names its delay knows better.
                let backoff = Duration::from_millis(500 << attempt.min(4));
                let delay = retry_after.unwrap_or(backoff);
                tracing::debug!("{problem}; trying again in {delay:?}");
                tokio::time::sleep(delay).await;
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

fn judgement(
    question: Question,
    answer: &Answer,
    settings: &TeacherSettings,
    prompt: &str,
) -> Judgement {
    let probabilities: Vec<f64> = answer.probabilities.iter().copied().map(rounded).collect();
    let Pair {
        query_id,
        document_id,
        text,
    } = question.pair;
    Judgement {
        query_id,
        document_id,
        grade: rounded(expected_grade(&probabilities)),
        probabilities,
        mass: rounded(answer.mass),
        teacher: settings.name.clone(),
        prompt: prompt.to_owned(),
        text,
        at: jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string(),
    }
}

/// Six decimals: below what a quantised teacher's probabilities mean.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}
