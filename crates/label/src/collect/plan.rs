//! What a job would do.

use std::collections::HashSet;

use serde::Serialize;
use serde_json::Value;

use super::preflight::{held, requests};
use crate::Result;
use crate::apart::Kill;
use crate::job::{LabelSettings, Teacher};
use crate::ledger::Reader;
use crate::money::Amount;
use crate::questions::Questions;
use crate::redact::Counts;
use crate::shard::Whole;

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
    /// Requests of the preflight, before them.
    pub preflight_requests: usize,
    /// Tokens that all of these can't pass.
    pub most_tokens: u64,
    /// What they can't cost more than, in millionths of the currency.
    pub most_micros: u64,
    /// What is replaced in the texts of these questions, by kind.
    pub redacted: Counts,
    /// Where requests go.
    pub destinations: Vec<Destination>,
    /// The first question's request, as it would be sent.
    pub first_request: Option<Value>,
}

/// Where requests go.
#[derive(Clone, Debug, Serialize)]
pub struct Destination {
    /// The base URL.
    pub endpoint: String,
    /// Where that is and how texts travel there, in words.
    pub reach: &'static str,
}

/// Says what a job would do, and sends nothing.
///
/// # Errors
/// Bad input.
pub fn plan(settings: &LabelSettings, again: bool) -> Result<Plan> {
    let teacher = Teacher::new(settings)?;
    let questions = Questions::read(settings, &teacher, &Kill::default())?;
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
    let out = whole.or_out(match &ledger {
        Some(ledger) => ledger.in_batches()?,
        None => HashSet::new(),
    })?;
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
        preflight_requests: 0,
        most_tokens: 0,
        most_micros: 0,
        redacted: Counts::new(),
        destinations: Vec::new(),
        first_request: None,
    };
    let (passed, factor) = match &ledger {
        Some(ledger) => {
            let recipe = &teacher.recipe_digest;
            (ledger.last_preflights(recipe)?, ledger.factor(recipe)?)
        }
        None => (Vec::new(), 1.0),
    };
    let script = questions.script(teacher);
    let files = settings.teacher.batch.folder.as_ref();
    let files = files.filter(|_| settings.in_batches);
    plan.destinations.extend(files.map(|folder| Destination {
        endpoint: folder.display().to_string(),
        reach: "files on this machine",
    }));
    let replicas = teacher.replicas.iter().filter(|_| files.is_none());
    for replica in replicas {
        plan.destinations.push(Destination {
            endpoint: replica.name().to_owned(),
            reach: replica.reach(),
        });
        let is_tried = settings.preflight && plan.to_ask > 0;
        if is_tried && held(&passed, replica, &script, settings).is_none() {
            for request in requests(&script, &*teacher.dialect)? {
                plan.preflight_requests += 1;
                let worst = settings.teacher.price.worst(request.most_tokens);
                plan.add(worst.times(factor));
            }
        }
    }
    for place in 0..questions.asked.len() {
        let asked = questions.at(place)?;
        let request = teacher.dialect.request(&[&asked.texts])?;
        let worst = settings.price().worst(request.most_tokens);
        plan.add(worst.times(factor));
        for (kind, count) in asked.redacted.iter().flatten() {
            *plan.redacted.entry(*kind).or_insert(0) += count;
        }
        plan.first_request.get_or_insert(request.body);
    }
    Ok(plan)
}

impl Plan {
    fn add(&mut self, worst: Amount) {
        self.most_tokens += worst.tokens;
        self.most_micros += worst.micros;
    }
}
