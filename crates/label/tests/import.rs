//! Judgements made elsewhere: what a ledger takes, and what it refuses by file and line.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use common::{Act, Job, Server, rows};
use retort_label::{Error, Format, LabelSettings, export, import};
use serde_json::{Value, json};

/// A job that takes two samples, of a teacher that nobody asks.
fn job() -> (Job, LabelSettings) {
    let server = Server::start(|_| Act::Reset);
    let job = Job::new(20);
    let settings = job.settings(&server, "samples = 2\ntemperature = 1.0\n");
    (job, settings)
}

/// A judgement of a document, with other fields than usual.
fn line(document: usize, fields: &Value) -> String {
    let mut line = json!({
        "query_id": "q0",
        "document_id": format!("d{document}"),
        "probabilities": [0.25, 0.75],
    });
    for (name, value) in fields.as_object().unwrap() {
        line[name] = value.clone();
    }
    line.to_string()
}

fn imported(job: &Job, settings: &LabelSettings, lines: &[String]) -> Result<usize, Error> {
    let file = job.path("made.jsonl");
    std::fs::write(&file, lines.join("\n") + "\n").unwrap();
    import(&file, settings)
}

#[test]
fn what_can_be_no_judgement_of_the_job_is_refused_by_its_line() {
    let (job, settings) = job();
    for (fields, expected) in [
        (
            json!({"mass": 7}),
            "made.jsonl:3: mass is 7, expected from 0 to 1",
        ),
        (
            json!({"mass": -0.1}),
            "made.jsonl:3: mass is -0.1, expected from 0 to 1",
        ),
        (
            json!({"mass": 0.5}),
            "made.jsonl:3: mass is 0.5, below the job's least_mass of 0.9",
        ),
        (
            json!({"at": "garbage"}),
            "made.jsonl:3: at is \"garbage\", expected a time",
        ),
        (
            json!({"at": "2026-11-21"}),
            "made.jsonl:3: at is \"2026-11-21\", expected a time",
        ),
        (
            json!({"sample": 2}),
            "made.jsonl:3: sample is 2, and [teacher] samples is 2: expected from 0 to 1",
        ),
        (
            json!({"sample": 9, "outcome": "refused"}),
            "made.jsonl:3: sample is 9",
        ),
        (
            json!({"document_id": "d99"}),
            "made.jsonl:3: names the document \"d99\"",
        ),
        (
            json!({"query_id": "q99"}),
            "made.jsonl:3: names the query \"q99\"",
        ),
        (
            json!({"document_id": "d0", "probabilities": [0.75, 0.25]}),
            "made.jsonl:3: is another answer to the question of line 1",
        ),
    ] {
        let lines = [
            line(0, &json!({})),
            line(1, &json!({})),
            line(2, &fields),
            line(3, &json!({})),
        ];
        let error = imported(&job, &settings, &lines).unwrap_err();
        assert!(error.to_string().contains(expected), "{fields}: {error}");
        assert!(matches!(error, Error::Data(_)), "{error}");
        assert!(!job.ledger().exists(), "{fields}");
    }
}

#[test]
fn what_agrees_is_taken_and_an_answer_wins_over_a_failure() {
    let (job, mut settings) = job();
    let failed = json!({"outcome": "failed", "probabilities": null, "problem": "no reply"});
    let lines = [
        line(0, &json!({})),
        line(0, &json!({})),
        line(0, &json!({"sample": 1, "probabilities": [0.75, 0.25]})),
        line(1, &failed),
        line(1, &json!({"mass": 0.95})),
        line(1, &failed),
        // What rounding adds to log-probabilities is in ledgers, and comes back from exports.
        line(2, &json!({"mass": 1.0005})),
    ];
    assert_eq!(imported(&job, &settings, &lines).unwrap(), 4);
    let documents = [0, 0, 1, 2];
    let mut found = rows(&job.ledger());
    found.sort();
    assert_eq!(found, documents.map(|document| (document, "ok".to_owned())));

    // Who expects less may take less.
    settings.teacher.least_mass = 0.5;
    let lines = [line(3, &json!({"mass": 0.5}))];
    assert_eq!(imported(&job, &settings, &lines).unwrap(), 1);
}

#[test]
fn times_are_kept_in_the_form_that_ledgers_compare_them_in() {
    let (job, settings) = job();
    let lines = [
        line(0, &json!({"at": "2026-11-21T00:30:00+01:00"})),
        line(1, &json!({"at": "2026-11-21T08:30:00.25Z"})),
    ];
    imported(&job, &settings, &lines).unwrap();
    let mut exported = Vec::new();
    export(&job.ledger(), None, Format::Jsonl, &mut exported).unwrap();
    let times: Vec<String> = (String::from_utf8(exported).unwrap().lines())
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["at"].to_string())
        .collect();
    let expected = ["\"2026-11-20T23:30:00Z\"", "\"2026-11-21T08:30:00Z\""];
    assert_eq!(times, expected);
}
