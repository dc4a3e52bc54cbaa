//! What came back with a batch, matched with what was in it.

use std::collections::HashMap;

use serde_json::Value;

use super::Job;
use super::remote::{Ended, Line};
use crate::dialect::{Problem, refusal};
use crate::ledger::{Attempt, Batch, Entry, OpenBatch, Outcome, Posed, Record, now};
use crate::{Error, Result};

/// What came of a batch.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) answers: usize,
    /// Why the job stops, if it does.
    pub(super) stop: Option<Error>,
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
        let missing = questions.len() - found.len();
        tracing::info!(
            "batch {remote}: {}, {} lines, {missing} missing, {doubled} doubled, {} of no question \
             of ours (kept in the ledger's batch_stray)",
            ended.how,
            found.len(),
            strays.len()
        );

        let endpoint = format!("{} batch {remote}", self.remote.name());
        let never_ran = ended.refused.is_some();
        let mut settled: Vec<(String, Settled)> = Vec::new();
        for (custom_id, posed) in &questions {
            match found.remove(custom_id) {
                None if never_ran => {}
                line => {
                    let one = self.settle(posed, line, &ended.how, &endpoint);
                    settled.push((custom_id.clone(), one));
                }
            }
        }
        // Lines of one model together: each change begins an epoch.
        settled.sort_by(|(_, one), (_, other)| one.model.cmp(&other.model));
        let mut taken = Taken::default();
        let mut factor = 1.0_f64;
        let mut model_before = self.ledger.last_model(self.recipe)?;
        let mut records = Vec::new();
        let mut ends = Vec::new();
        for (custom_id, one) in settled {
            factor = factor.max(one.factor);
            taken.answers += usize::from(matches!(one.end, Some((Outcome::Ok, _))));
            taken.stop = taken.stop.or(one.stop);
            if let Some(model) = one.model {
                let settings = &self.settings.teacher;
                let changed = settings.note_model(model_before.as_deref(), &model);
                taken.stop = taken.stop.or(changed.err());
                model_before = Some(model);
            }
            records.extend(one.records);
            ends.extend(one.end.map(|end| (custom_id, end)));
        }
        let name = self.remote.name();
        if let Some(problem) = ended.refused {
            taken.stop = taken.stop.or(Some(Error::Teacher {
                url: name.to_owned(),
                problem: format!("the batch {remote} was not taken: {problem}"),
            }));
        }
        self.ledger
            .end_batch(batch.id, &ended.how, factor, &records, &strays)?;
        self.ended.extend(ends);
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
    fn settle(&self, posed: &Posed, line: Option<Line>, how: &str, endpoint: &str) -> Settled {
        let price = &self.settings.teacher.price;
        let dialect = &self.teacher.dialect;
        let worst = price.usage(posed.most_tokens, 0, true);
        let mut usage = worst;
        let (mut status, mut request_id, mut reply, mut model) = (None, None, None, None);
        let mut factor = 1.0;
        let ended = match line {
            // It may have been answered, and billed.
            None => Err(Problem::Passing(format!(
                "the batch ({how}) came back without it"
            ))),
            Some(Line {
                ended: Err(problem),
                ..
            }) => {
                usage = price.usage((0, 0), 0, false);
                Err(Problem::Passing(format!("the batch ({how}): {problem}")))
            }
            Some(Line {
                ended: Ok((code, body)),
                request_id: id,
                ..
            }) => {
                (status, request_id, reply) = (Some(code), id, Some(body.to_string()));
                if code == 200 {
                    if let Some((input, cached, output)) = dialect.usage(&body) {
                        usage = price.usage((input, output), cached, false);
                        let over = |used: u64, most: u64| used as f64 / most.max(1) as f64;
                        factor = over(usage.tokens(), worst.tokens())
                            .max(over(usage.micros, worst.micros));
                    }
                    model = dialect.model(&body);
                    dialect.read(&body, 1).and_then(|answers| {
                        let none = || Problem::Unreadable("the reply has no answer".to_owned());
                        answers.into_iter().next().ok_or_else(none)
                    })
                } else {
                    usage = price.usage((0, 0), 0, false);
                    Err(refusal(
                        self.remote.name(),
                        code,
                        reply.as_deref().unwrap_or_default(),
                    ))
                }
            }
        };
        let mut records = vec![Record::Attempt(Attempt {
            at: now(),
            endpoint: endpoint.to_owned(),
            status,
            problem: ended.as_ref().err().map(ToString::to_string),
            latency_ms: 0,
            usage,
        })];
        let ended = match ended {
            Ok(answer) => Ok(answer),
            Err(Problem::Passing(problem)) => Err((Outcome::Failed, problem)),
            Err(Problem::Unreadable(problem)) => Err((Outcome::Unparsable, problem)),
            Err(Problem::Final(outcome, problem)) => Err((outcome, problem)),
            Err(Problem::Fatal(error)) => {
                return Settled {
                    records,
                    model,
                    factor,
                    end: None,
                    stop: Some(error),
                };
            }
        };
        let end = match &ended {
            Ok(_) => (Outcome::Ok, None),
            Err((outcome, problem)) => (*outcome, Some(problem.clone())),
        };
        records.push(Record::Batch(Batch {
            recipe: self.recipe,
            model: model.clone().filter(|_| ended.is_ok()),
            entries: vec![entry(posed, ended)],
            reply,
            request_id,
        }));
        Settled {
            records,
            model,
            factor,
            end: Some(end),
            stop: None,
        }
    }
}

/// What came of one line.
struct Settled {
    records: Vec<Record>,
    model: Option<String>,
    /// How much more than its worst case it was billed for.
    factor: f64,
    /// How its question ended, if it did.
    end: Option<(Outcome, Option<String>)>,
    /// Why no question of this job gets an answer.
    stop: Option<Error>,
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
