//! Kinds of judgement besides the plain grade, from the question to the label set: teachers derive
//! their answers from a known order, and the sealed labels must find it again.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::path::Path;

use common::{Act, Job, Server, completion};
use retort_data::label_set::{self, LabelSet};
use retort_label::{Collected, Error, LabelSettings, Progress, collect};
use serde_json::Value;

async fn run(settings: &LabelSettings) -> Result<Collected, Error> {
    collect(settings, false, |_: Progress| (), std::future::pending()).await
}

fn reply(body: &Value) -> Act {
    Act::Reply(200, String::new(), body.to_string())
}

fn sealed(job: &Job, name: &str) -> LabelSet {
    let candidates = job.path("candidates.jsonl");
    let set = job.path(name);
    retort_label::seal(&job.ledger(), None, Some(&candidates), &set).unwrap();
    label_set::read(&set).unwrap()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// How relevant a document is, by its number: each query's twenty are spread evenly over ±2.85, in
/// an order that has nothing to do with the order of the candidates.
fn relevance(document: usize) -> f64 {
    (document * 7 % 20) as f64 * 0.3 - 2.85
}

#[tokio::test(flavor = "multi_thread")]
async fn yes_and_no_are_two_grades_however_they_are_spelt() {
    let job = Job::new(40);
    let prompt = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../prompts/yes-no.toml");
    std::fs::copy(prompt, job.path("prompt.toml")).unwrap();
    let server = Server::start(|seen| {
        let p = sigmoid(relevance(seen.document));
        let said = [("Yes", 0.7 * p), (" yes", 0.3 * p), ("No", 1.0 - p)];
        reply(&completion(&said, (40, 1)))
    });
    run(&job.settings(&server, "")).await.unwrap();
    let set = sealed(&job, "set");
    assert_eq!((set.labels.len(), set.manifest.top_grade), (40, 1));
    for label in set.labels {
        let p = sigmoid(relevance(label.document_id[1..].parse().unwrap()));
        assert!((label.grade - p).abs() < 2e-6, "{label:?}");
    }
}
