//! What came back with a batch, matched with what was in it.

use std::collections::HashMap;

use serde_json::Value;

use super::Job;
use super::remote::{Ended, Line, Told};
use crate::dialect::{Problem, Texts, in_words, refusal};
use crate::ledger::{Attempt, Batch, Entry, Found, OpenBatch, Outcome, Posed, Record, now};
use crate::money::Usage;
use crate::redact::Counts;
use crate::{Error, Result};

/// What came of a batch.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) answers: usize,
    /// Why the job stops, if it does.
    pub(super) stop: Option<Error>,
}

/// What came of one question.
struct Settled {
    attempt: Attempt,
    /// An answer, or why there is none.
    ended: Result<Value, Problem>,
    reply: Option<String>,
    request_id: Option<String>,
    model: Option<String>,
}

impl Job<'_> {
    /// Puts on record what came back with a batch.
    pub(super) fn take_in(
        &mut self,
        batch: &OpenBatch,
        remote: &str,
        ended: Ended,
        lines: Vec<String>,
    ) -> Result<Taken> {
        let questions = self.ledger.batch_questions(batch.id)?;
        let (mut found, strays, doubled) = self.matched(lines, &questions);
        tracing::info!(
            "batch {remote}: {}, {} lines, {} missing, {doubled} doubled, {} of no question of ours \
             (kept in the ledger's batch_stray)",
            ended.how,
            found.len(),
            questions.len() - found.len(),
            strays.len()
        );

        let mut settled: Vec<(&String, &Posed, Settled)> = Vec::new();
        for (custom_id, posed) in &questions {
            let line = found.remove(custom_id);
            // Of a batch that was not taken, nothing was run and no question is to blame.
            if line.is_some() || ended.refused.is_none() {
                let one = self.settle(batch, posed, line, &ended.how, remote);
                settled.push((custom_id, posed, one));
            }
        }
        // Lines of one model together: each change begins an epoch.
        settled.sort_by(|(a, _, one), (b, _, other)| (&one.model, a).cmp(&(&other.model, b)));

        let mut taken = Taken::default();
        let cannot = |problem| Error::Teacher {
            url: self.remote.name().to_owned(),
            problem,
        };
        let answers = settled.iter().any(|(.., one)| one.ended.is_ok())
            || self.ledger.has_answer(self.recipe)?;
        let mut factor = 1.0_f64;
        let mut model = self.ledger.last_model(self.recipe)?;
        let mut records = Vec::new();
        let mut ends = Vec::new();
        let mut bought_twice = 0;
        for (custom_id, posed, one) in settled {
            let worst = self.settings.price().worst(posed.most_tokens);
            factor = factor.max(one.attempt.usage.over(worst));
            records.push(Record::Attempt(one.attempt));
            let question = in_words(&posed.query_id, &posed.document_ids);
            let ended = match one.ended {
                Ok(answer) => Ok(answer),
                Err(Problem::Rejected(problem)) if !answers => {
                    let problem = format!("{problem}; asked about {question}");
                    taken.stop = taken.stop.or(Some(cannot(problem)));
                    continue;
                }
                // No question of this job gets an answer, this one is not to blame.
                Err(Problem::Fatal(error)) => {
                    taken.stop = taken.stop.or(Some(error));
                    continue;
                }
                Err(problem) => Err(end(problem)),
            };
            if let (Ok(_), Some(now)) = (&ended, &one.model) {
                let changed = self.settings.teacher.note_model(model.as_deref(), now);
                taken.stop = taken.stop.or(changed.err());
                model = Some(now.clone());
            }
            taken.answers += usize::from(ended.is_ok());
            let is_answer = |found: Found| found.outcome == Outcome::Ok;
            if self.ledger.find(&posed.key)?.is_some_and(is_answer) {
                // It came another way in the meantime, from a merge say, and stands.
                bought_twice += usize::from(ended.is_ok());
                continue;
            }
            let end = match &ended {
                Ok(_) => (Outcome::Ok, None),
                Err((outcome, problem)) => (*outcome, Some(format!("{question}: {problem}"))),
            };
            ends.push((custom_id.clone(), end));
            records.push(Record::Batch(Batch {
                recipe: self.recipe,
                model: one.model.filter(|_| ended.is_ok()),
                entries: vec![entry(posed, ended)],
                reply: one.reply,
                request_id: one.request_id,
            }));
        }
        if let Some(problem) = ended.refused {
            let problem = format!("the batch {remote} was not taken: {problem}");
            taken.stop = taken.stop.or(Some(cannot(problem)));
        }
        records.push(Record::Overbilled {
            recipe: self.recipe,
            factor,
        });
        self.ledger
            .end_batch(batch.id, &ended.how, &records, &strays)?;
        self.ended.extend(ends);
        if bought_twice > 0 {
            tracing::warn!(
                "batch {remote}: {bought_twice} of its answers are to questions that had one by \
                 then: paid for, and not kept"
            );
            self.bought_twice += bought_twice;
        }
        Ok(taken)
    }

    /// The lines that answer a question, one for each; those that answer none; and how many came
    /// again. Of several lines on a question the first reply counts.
    fn matched(
        &self,
        lines: Vec<String>,
        questions: &HashMap<String, Posed>,
    ) -> (HashMap<String, Line>, Vec<String>, usize) {
        let mut found: HashMap<String, Line> = HashMap::new();
        let (mut strays, mut doubled) = (Vec::new(), 0);
        for text in lines {
            let line = self.remote.read(&text);
            let Some(line) = line.filter(|line| questions.contains_key(&line.custom_id)) else {
                strays.push(text);
                continue;
            };
            let earlier = found.get(&line.custom_id);
            doubled += usize::from(earlier.is_some());
            if earlier.is_none_or(|earlier| line.is_reply() && !earlier.is_reply()) {
                found.insert(line.custom_id.clone(), line);
            }
        }
        (found, strays, doubled)
    }

    /// What a line comes to, or the want of one.
    fn settle(
        &self,
        batch: &OpenBatch,
        posed: &Posed,
        line: Option<Line>,
        how: &str,
        remote: &str,
    ) -> Settled {
        let price = self.settings.price();
        let dialect = &self.teacher.dialect;
        let nothing = price.usage((0, 0, 0));
        // Where nobody says, it may have been answered, and billed.
        let reserved = price.worst(posed.most_tokens).times(batch.reserved_factor);
        let worst = Usage::at_worst(posed.most_tokens, reserved);
        let (mut status, mut reply, mut model) = (None, None, None);
        let (told, request_id) = match line {
            Some(line) => (line.told, line.request_id),
            None => (
                Told::Lost("nothing came back on this question".into()),
                None,
            ),
        };
        let (ended, usage) = match told {
            Told::Lost(problem) => (Err(passing(how, &problem)), worst),
            Told::NotRun(problem) => (Err(passing(how, &problem)), nothing),
            Told::Reply(200, body) => {
                (status, reply) = (Some(200), Some(body.to_string()));
                model = dialect.model(&body);
                let used = dialect.usage(&body).map(|used| price.usage(used));
                let texts = Texts::unseen(posed.document_ids.len());
                let ended = dialect.read(&body, &[&texts]).and_then(|answers| {
                    let none = || Problem::Unreadable("the reply has no answer".to_owned());
                    answers.into_iter().next().ok_or_else(none)
                });
                (ended, used.unwrap_or(worst))
            }
            Told::Reply(code, body) => {
                let body = body.to_string();
                let problem = refusal(self.remote.name(), code, &body);
                (status, reply) = (Some(code), Some(body));
                (Err(problem), nothing)
            }
        };
        Settled {
            attempt: Attempt {
                at: now(),
                endpoint: format!("{} batch {remote}", self.remote.name()),
                status,
                problem: ended.as_ref().err().map(ToString::to_string),
                latency_ms: 0,
                // They are on record since the batch left.
                sent_bytes: 0,
                redacted: Counts::new(),
                usage,
            },
            ended,
            reply,
            request_id,
            model,
        }
    }
}

/// How a question ended that got no answer, where others did.
fn end(problem: Problem) -> (Outcome, String) {
    match problem {
        Problem::Unreadable(problem) => (Outcome::Unparsable, problem),
        Problem::Final(outcome, problem) => (outcome, problem),
        Problem::Passing(problem) | Problem::Rejected(problem) => (Outcome::Failed, problem),
        Problem::Fatal(error) => (Outcome::Failed, error.to_string()),
    }
}

fn passing(how: &str, problem: &str) -> Problem {
    Problem::Passing(format!("the batch ({how}): {problem}"))
}

fn entry(posed: &Posed, ended: Result<Value, (Outcome, String)>) -> Entry {
    Entry {
        key: posed.key,
        query_id: posed.query_id.clone(),
        document_ids: posed.document_ids.clone(),
        sample: posed.sample,
        text: posed.text.clone(),
        ended,
        at: now(),
    }
}
