//! Redaction: what a teacher sees, and what that makes of keys.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Act, Job, Server, graded, rows, texts};
use retort_data::collection::Collection;
use retort_data::label_set::{self, LabelSet};
use retort_label::ledger::Reader;
use retort_label::{
    AuditSettings, Collected, Error, LabelSettings, ProbeSettings, Progress, collect,
    collect_in_batches, import, plan, probe,
};
use serde_json::json;

async fn run(settings: &LabelSettings) -> Result<Collected, Error> {
    collect(settings, false, |_: Progress| (), std::future::pending()).await
}

const SECRETS: [&str; 4] = [
    "jo.doe@example.com",
    "4111 1111 1111 1111",
    "+49 30 1234567",
    "Jane Doe",
];

/// Twenty pairs, some of whose texts hold what is nobody's business.
fn job() -> Job {
    let job = Job::new(20);
    let [mail, card, phone, name] = SECRETS;
    for (file, from, to) in [
        ("queries.jsonl", "query 0", format!("query 0 of {mail}")),
        (
            "corpus.jsonl",
            "document 3 of",
            format!("document 3 by {name}, {phone}, {mail}, paid by {card}, of"),
        ),
    ] {
        let text = std::fs::read_to_string(job.path(file)).unwrap();
        std::fs::write(job.path(file), text.replace(from, &to)).unwrap();
    }
    job
}

/// A server that keeps all that it is sent.
fn keeping() -> (Server, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    let server = Server::start(move |seen| -> Act {
        let body = format!("{}{}", seen.headers, seen.body);
        kept.lock().unwrap().push(body);
        graded(seen.document)
    });
    (server, seen)
}

const REDACTION: &str = "[redaction]\nkinds = ['phone', 'email', 'card']\n\
                         command = ['sed', 's/Jane Doe/<NAME>/g']\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_teacher_never_sees_what_is_redacted() {
    let job = job();
    let (server, seen) = keeping();
    let settings = job.settings(&server, &format!("concurrency = 4\n{REDACTION}"));
    let planned = plan(&settings, false).unwrap();
    // The query's address is sent with each of its twenty documents.
    let counts = [("card", 1), ("command", 1), ("email", 21), ("phone", 1)];
    assert_eq!(planned.redacted, BTreeMap::from(counts));

    run(&settings).await.unwrap();
    let seen = seen.lock().unwrap().join("\n");
    for secret in SECRETS {
        assert!(!seen.contains(secret), "{secret} was sent");
    }
    let said = "query 0 of <EMAIL_1>: document 3 by <NAME>, <PHONE_1>, <EMAIL_1>, paid by <CARD_1>";
    assert!(seen.contains(said), "{seen}");
    let length = |line: &str| {
        let line = line.to_ascii_lowercase();
        line.strip_prefix("content-length:")?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let bytes: u64 = seen.lines().filter_map(length).sum();
    drop(seen);

    // What left is on record, in numbers.
    let sent = Reader::open(&job.ledger()).unwrap().sent().unwrap();
    assert_eq!(sent.len(), 1);
    assert_eq!(format!("http://{}/v1", sent[0].host), server.url);
    assert_eq!((sent[0].requests, sent[0].tokens), (20, 20 * 40));
    assert_eq!(sent[0].bytes, bytes);
    let redacted: BTreeMap<String, u64> = counts.map(|(kind, count)| (kind.into(), count)).into();
    assert_eq!(sent[0].redacted, redacted);

    // It goes with the labels, whose digests are those of the texts that the collection has.
    let recipe = &sealed(&job, "set").manifest.recipe["redaction"];
    assert_eq!(recipe["kinds"], json!(["email", "card", "phone"]));
    assert!(recipe["command"].as_str().unwrap().starts_with("sha256:"));
}

/// What the job has, sealed; each label is about the texts that the collection has now.
fn sealed(job: &Job, name: &str) -> LabelSet {
    let set = job.path(name);
    let candidates = job.path("candidates.jsonl");
    retort_label::seal(&job.ledger(), None, Some(&candidates), &set).unwrap();
    let set = label_set::read(&set).unwrap();
    let collection = Collection::read(job.folder.path()).unwrap();
    for label in &set.labels {
        label_set::subject(label, &collection, &job.ledger()).unwrap();
    }
    set
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_has_once_is_counted_once() {
    let job = job();
    let server = Server::start(|seen| {
        let texts = texts(&seen.body).unwrap().iter().enumerate();
        let scores = texts.map(|(index, _)| json!({"index": index, "score": 1.5}));
        let scores: serde_json::Value = scores.collect();
        Act::Reply(200, String::new(), scores.to_string())
    });
    let reranker = format!("dialect = 'tei'\ndocuments_per_request = 10\n{REDACTION}");
    run(&job.settings(&server, &reranker)).await.unwrap();
    let sent = Reader::open(&job.ledger()).unwrap().sent().unwrap();
    // The query's address in two requests, and the third document's.
    assert_eq!((sent[0].requests, sent[0].redacted["email"]), (2, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_redacted_is_a_part_of_the_key() {
    let job = job();
    let (server, _) = keeping();
    let with = |kinds: &str| job.settings(&server, &format!("[redaction]\nkinds = {kinds}\n"));
    run(&with("['email', 'phone']")).await.unwrap();
    run(&with("['phone', 'email']")).await.unwrap();
    assert_eq!(server.count(), 20, "an order is no difference");

    // Who writes from another address asks the same question.
    let queries = std::fs::read_to_string(job.path("queries.jsonl")).unwrap();
    let queries = queries.replace("jo.doe@example.com", "jo.doe@example.org");
    std::fs::write(job.path("queries.jsonl"), &queries).unwrap();
    run(&with("['email', 'phone']")).await.unwrap();
    // In the third document, it was the query's before.
    assert_eq!(server.count(), 21);
    assert_eq!(sealed(&job, "edited").labels.len(), 20);
    run(&with("['email']")).await.unwrap();
    assert_eq!(server.count(), 41);

    // What was judged elsewhere is an answer to the same question.
    let other = self::job();
    let line = json!({"query_id": "q0", "document_id": "d3", "probabilities": [0.5, 0.5]});
    std::fs::write(other.path("made.jsonl"), format!("{line}\n")).unwrap();
    let settings = other.settings(&server, REDACTION);
    assert_eq!(import(&other.path("made.jsonl"), &settings).unwrap(), 1);
    assert_eq!(plan(&settings, false).unwrap().known, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_differ_in_what_is_redacted_share_a_judgement_and_keep_their_texts() {
    let job = Job::new(20);
    let corpus = std::fs::read_to_string(job.path("corpus.jsonl")).unwrap();
    let corpus = corpus
        .replace("document 4 of", "document 4 by a@x.org of")
        .replace("document 5 of", "document 4 by b@x.org of");
    std::fs::write(job.path("corpus.jsonl"), corpus).unwrap();
    let (server, _) = keeping();
    let settings = job.settings(&server, "[redaction]\nkinds = ['email']\n");
    run(&settings).await.unwrap();
    assert_eq!(server.count(), 19);
    let set = sealed(&job, "set");
    assert_eq!(set.labels.len(), 20);
    let grade = |id: &str| {
        let label = set.labels.iter().find(|label| label.document_id == id);
        label.unwrap().grade
    };
    assert!((grade("d4") - grade("d5")).abs() < 1e-12);

    // Either may be edited in what nobody sees.
    let corpus = std::fs::read_to_string(job.path("corpus.jsonl")).unwrap();
    let corpus = corpus
        .replace("a@x.org", "c@x.org")
        .replace("b@x.org", "a@x.org");
    std::fs::write(job.path("corpus.jsonl"), corpus).unwrap();
    run(&settings).await.unwrap();
    assert_eq!(server.count(), 19);
    assert_eq!(sealed(&job, "edited").labels.len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn comparisons_and_changed_documents_are_redacted_too() {
    let job = job();
    let prompt = "kind = 'pairwise'\nanswers = ['0', '1']\nsystem = 'Which?'\n\
                  user = '{{ query }}: {{ document_a }} or {{ document_b }}'";
    let (server, seen) = keeping();
    let settings = job.settings(&server, REDACTION);
    let choice = ProbeSettings {
        documents: 20,
        seed: 0,
    };
    let audit = AuditSettings::default();
    // It makes no difference here what the probe finds.
    let stop = std::future::pending();
    let _ = probe(&settings, &audit, choice, |_: Progress| (), stop).await;
    assert!(server.count() > 100, "{} requests", server.count());
    std::fs::write(job.path("prompt.toml"), prompt).unwrap();
    run(&settings).await.unwrap();
    let seen = seen.lock().unwrap().join("\n");
    assert!(seen.contains("<EMAIL_1>") && seen.contains(" or document 3 by <NAME>, <PHONE_1>"));
    for secret in SECRETS {
        assert!(!seen.contains(secret), "{secret} was sent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_fails_ends_the_job_before_anything_is_sent() {
    let job = job();
    let (server, seen) = keeping();
    for (redaction, expected) in [
        ("command = ['head', '-n', '1']\n", "answered 1 of 21 texts"),
        ("command = ['sh', '-c', 'cat; exit 1']\n", "exit status: 1"),
        ("", "at least one of `kinds`"),
        ("command = []\n", "is empty"),
    ] {
        let settings = job.settings(&server, &format!("[redaction]\n{redaction}"));
        let error = run(&settings).await.unwrap_err();
        assert!(matches!(error, Error::Setting(_)), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(seen.lock().unwrap().is_empty());
    assert!(!job.ledger().exists() || rows(&job.ledger()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_stopped_while_texts_are_filtered_ends_at_once_and_ends_the_filter() {
    let (server, seen) = keeping();
    for part in 0..4 {
        let job = job();
        let process = job.path("process");
        let slow = format!(
            "echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000",
            process.display()
        );
        let more = format!("[redaction]\ncommand = ['sh', '-c', {slow:?}]\n");
        let mut settings = job.settings(&server, &more);
        settings.teacher.batch.folder = Some(job.path("batches"));
        if part == 3 {
            settings = settings.for_shard("0/2".parse().unwrap());
        }
        let stop = async {
            while !process.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            "SIGTERM"
        };
        let report = |_: Progress| ();
        let error = match part {
            1 => collect_in_batches(&settings, false, true, report, stop)
                .await
                .err(),
            2 => {
                let choice = ProbeSettings {
                    documents: 5,
                    seed: 0,
                };
                let audit = AuditSettings::default();
                probe(&settings, &audit, choice, report, stop).await.err()
            }
            _ => collect(&settings, false, report, stop).await.err(),
        };
        let error = error.unwrap();
        let is_stopped = matches!(
            error,
            Error::Interrupted {
                signal: "SIGTERM",
                labelled: 0
            }
        );
        assert!(is_stopped, "{error}");
        let process = std::fs::read_to_string(process).unwrap();
        let lives = || {
            let mut kill = Command::new("kill");
            let kill = kill.args(["-0", process.trim()]).stderr(Stdio::null());
            kill.status().unwrap().success()
        };
        // A process that was killed is there until who started it has seen it.
        for _ in 0..1000 {
            if !lives() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!lives(), "the filter goes on");
        assert!(!settings.ledger.exists() && !job.path("batches").exists());
    }
    assert!(seen.lock().unwrap().is_empty());
}
