//! A job in shards, and their ledgers put together again.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::path::{Path, PathBuf};

use common::{Job, Server, dump, graded};
use retort_data::collection::Collection;
use retort_data::label_set;
use retort_label::ledger::{
    Alias, Attempt, Batch, Entry, Key, Ledger, Outcome, Reader, Record, Spent,
};
use retort_label::money::{Amount, Usage};
use retort_label::{Error, LabelSettings, Merged, Progress, collect, merge, seal};
use serde_json::{Value, json};

async fn run(settings: &LabelSettings) {
    collect(settings, false, |_: Progress| (), std::future::pending())
        .await
        .unwrap();
}

fn spent(ledger: &Path) -> Spent {
    Reader::open(ledger).unwrap().spent().unwrap()
}

/// The shards of the label set that a ledger is sealed into, where every judgement came at once.
fn sealed(ledger: &Path, out: &Path) -> Vec<Vec<u8>> {
    let db = rusqlite::Connection::open(ledger).unwrap();
    let at_once = "UPDATE judgement SET at = '2026-11-21T00:00:00Z'";
    db.execute(at_once, []).unwrap();
    drop(db);
    seal(ledger, None, None, out).unwrap();
    let manifest = retort_data::label_set::read(out).unwrap().manifest;
    assert!(!manifest.shards.is_empty());
    let shards = manifest.shards.iter();
    shards
        .map(|shard| std::fs::read(out.join(&shard.file)).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shards_of_a_job_merged_are_the_job() {
    let job = Job::new(400);
    // The same question under two pairs of ids: it falls to one shard and is asked once.
    for (file, from, to) in [
        ("queries.jsonl", "\"query 7\"", "\"query 3\""),
        ("corpus.jsonl", "document 140 of", "document 60 of"),
    ] {
        let text = std::fs::read_to_string(job.path(file)).unwrap();
        assert!(text.contains(from));
        std::fs::write(job.path(file), text.replace(from, to)).unwrap();
    }
    let server = Server::start(|seen| graded(seen.document));
    let priced = "concurrency = 4\n[teacher.price]\ninput = 3.0\noutput = 15.0\n";
    let settings = job.settings(&server, priced);
    run(&settings).await;
    assert_eq!(server.count(), 399);
    let whole = job.path("whole.sqlite");
    std::fs::rename(job.ledger(), &whole).unwrap();

    let mut ledgers = Vec::new();
    for index in 0..5 {
        let of_shard = settings
            .clone()
            .for_shard(format!("{index}/5").parse().unwrap());
        run(&of_shard).await;
        ledgers.push(of_shard.ledger);
    }
    assert_eq!(server.count(), 2 * 399, "each question fell to one shard");
    let merged = merge(&ledgers, &job.ledger()).unwrap();
    assert_eq!((merged.judgements, merged.requests), (399, 399));
    assert_eq!(merged.spent, spent(&whole));
    assert_eq!(
        ledgers.iter().map(|one| spent(one).micros).sum::<u64>(),
        merged.spent.micros
    );

    let before = dump(&job.ledger());
    let again = merge(&ledgers, &job.ledger()).unwrap();
    assert_eq!((again.judgements, again.requests), (0, 0));
    assert!(before == dump(&job.ledger()), "merging again changed it");

    // Whatever the way, all comes once.
    let elsewhere = job.path("elsewhere.sqlite");
    merge(&ledgers[2..], &elsewhere).unwrap();
    merge(&[job.ledger(), ledgers[0].clone()], &elsewhere).unwrap();
    assert_eq!(spent(&elsewhere), merged.spent);

    // Nothing is left to ask, of the job or of its parts, be they as many as before or not.
    for settings in [
        settings.clone(),
        settings.clone().for_shard("1/5".parse().unwrap()),
        settings.clone().for_shard("0/2".parse().unwrap()),
    ] {
        run(&settings).await;
    }
    assert_eq!(server.count(), 2 * 399);

    let expected = sealed(&whole, &job.path("whole"));
    assert!(sealed(&job.ledger(), &job.path("merged")) == expected);
    assert!(sealed(&elsewhere, &job.path("elsewhere")) == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_that_redaction_makes_alike_fall_to_one_shard() {
    let job = Job::new(40);
    for (file, from, to) in [
        ("queries.jsonl", "\"query 0\"", "\"who is a@example.com\""),
        ("queries.jsonl", "\"query 1\"", "\"who is b@example.com\""),
        ("corpus.jsonl", "document 20 of", "document 0 of"),
    ] {
        let text = std::fs::read_to_string(job.path(file)).unwrap();
        assert!(text.contains(from));
        std::fs::write(job.path(file), text.replace(from, to)).unwrap();
    }
    let server = Server::start(|seen| graded(seen.document));
    let settings = job.settings(&server, "[redaction]\nkinds = ['email']\n");
    for (place, of) in [2, 3, 5, 7, 11].into_iter().enumerate() {
        let mut ledgers = Vec::new();
        for index in 0..of {
            let shard = format!("{index}/{of}").parse().unwrap();
            let of_shard = settings.clone().for_shard(shard);
            run(&of_shard).await;
            ledgers.push(of_shard.ledger);
        }
        assert_eq!(server.count(), 39 * (place + 1), "in {of} shards");
        let merged = merge(&ledgers, &job.path(&format!("{of}.sqlite"))).unwrap();
        assert_eq!(merged.judgements, 39);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_of_what_redaction_hides_is_merged_too() {
    let job = Job::new(40);
    let edit = |from: &str, to: &str| {
        let corpus = std::fs::read_to_string(job.path("corpus.jsonl")).unwrap();
        assert!(corpus.contains(from));
        std::fs::write(job.path("corpus.jsonl"), corpus.replace(from, to)).unwrap();
    };
    // The same question about two documents: one is judged, the other an alias.
    edit("document 4 of", "document 4 by a@x.org of");
    edit("document 5 of", "document 4 by b@x.org of");
    let server = Server::start(|seen| graded(seen.document));
    let settings = job.settings(&server, "[redaction]\nkinds = ['email']\n");
    // Asked by two parts, labelled again by them, and then by three that know of it from the whole.
    for (of, from, to) in [
        (2, ".org", ".net"),
        (2, ".net", ".com"),
        (3, ".com", ".edu"),
    ] {
        let mut ledgers = Vec::new();
        for index in 0..of {
            let shard = format!("{index}/{of}").parse().unwrap();
            let of_shard = settings.clone().for_shard(shard);
            run(&of_shard).await;
            ledgers.push(of_shard.ledger);
        }
        merge(&ledgers, &job.ledger()).unwrap();
        let before = dump(&job.ledger());
        merge(&ledgers, &job.ledger()).unwrap();
        assert!(before == dump(&job.ledger()), "merging again changed it");
        let set = job.path(&format!("labelled-at{from}"));
        seal(&job.ledger(), None, None, &set).unwrap();
        let set = label_set::read(&set).unwrap();
        assert_eq!((set.labels.len(), server.count()), (40, 39));
        let collection = Collection::read(job.folder.path()).unwrap();
        for label in &set.labels {
            label_set::subject(label, &collection, &job.ledger()).unwrap();
        }
        edit(from, to);
    }
}

/// A ledger with an entry for each of these documents.
fn ledger(path: &Path, answers: &[(&str, Result<Value, Outcome>)]) -> Ledger {
    let mut ledger = Ledger::open(path).unwrap();
    let recipe = ledger
        .recipe(&[1; 32], &json!({"kind": "graded", "grades": 2}))
        .unwrap();
    for (document, ended) in answers {
        let attempt = Attempt {
            at: "2026-11-21T00:00:00Z".into(),
            endpoint: "http://127.0.0.1/v1/".into(),
            status: Some(200),
            problem: None,
            latency_ms: 3,
            sent_bytes: 40,
            redacted: [("email", 1)].into(),
            usage: Usage {
                input_tokens: 10,
                micros: 5,
                ..Usage::default()
            },
        };
        let entry = Entry {
            key: Key::new(&[1; 32], 0, "q", &[document]),
            query_id: "q".into(),
            document_ids: vec![(*document).to_owned()],
            sample: 0,
            text: "sha256:0".into(),
            ended: ended.clone().map_err(|outcome| (outcome, "so".to_owned())),
            at: "2026-11-21T00:00:00Z".into(),
        };
        let batch = Batch {
            recipe,
            model: Some("m".into()),
            entries: vec![entry],
            reply: Some(format!("reply on {document}")),
            request_id: Some("r".into()),
        };
        let records = [Record::Attempt(attempt), Record::Batch(batch)];
        ledger.commit(&records).unwrap();
    }
    ledger
}

fn at_risk(ledger: &mut Ledger, micros: u64, tokens: u64) {
    let record = Record::AtRisk(Amount { micros, tokens });
    ledger.commit(&[record]).unwrap();
}

fn outcome(path: &Path, document: &str) -> Option<Outcome> {
    let key = Key::new(&[1; 32], 0, "q", &[document]);
    let found = Reader::open(path).unwrap().find(&key).unwrap();
    found.map(|found| found.outcome)
}

#[test]
fn all_that_a_ledger_holds_comes_along() {
    let folder = tempfile::tempdir().unwrap();
    let [source, into] = ["a.sqlite", "into.sqlite"].map(|name| folder.path().join(name));
    let mut made = ledger(
        &source,
        &[("d", Ok(json!(1))), ("e", Err(Outcome::Refused))],
    );
    let key = Key::new(&[1; 32], 0, "q", &["d"]);
    let alias = Alias {
        key,
        query_id: "q2".into(),
        document_ids: vec!["d2".into()],
        text: "sha256:1".into(),
    };
    made.add_aliases(&[alias]).unwrap();
    let recipe = made.recipe(&[1; 32], &Value::Null).unwrap();
    let preflight = Record::Preflight {
        recipe,
        model: "m".into(),
        passed: Vec::new(),
    };
    made.commit(&[preflight]).unwrap();
    made.close().unwrap();
    merge(std::slice::from_ref(&source), &into).unwrap();
    let (merged, made) = (dump(&into), dump(&source));
    assert!(made.len() > 10, "{made:?}");
    assert_eq!(merged, made);
}

#[test]
fn an_answer_wins_over_a_failure_and_two_answers_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let made = |name: &str, answers: &[(&str, Result<Value, Outcome>)]| -> PathBuf {
        ledger(&path(name), answers).close().unwrap();
        path(name)
    };
    let failed = made("a", &[("d", Err(Outcome::Failed)), ("e", Ok(json!(1)))]);
    let answered = made("b", &[("d", Ok(json!(1))), ("e", Err(Outcome::Refused))]);
    for (into, order) in [("ab", [&failed, &answered]), ("ba", [&answered, &failed])] {
        let merged = merge(&order.map(Clone::clone), &path(into)).unwrap();
        assert_eq!(merged.requests, 4);
        for document in ["d", "e"] {
            assert_eq!(outcome(&path(into), document), Some(Outcome::Ok));
        }
    }

    let before = dump(&path("ab"));
    let others = [
        ("c", Ok(json!(1))),
        ("d", Ok(json!(2))),
        ("e", Ok(json!(2))),
    ];
    let other = made("c", &others);
    let error = merge(&[other], &path("ab")).unwrap_err();
    assert!(matches!(error, Error::Conflict { count: 2, .. }), "{error}");
    let said = error.to_string();
    for name in ["/c:", "/ab,", "q [\"d\"]", "2 of its answers"] {
        assert!(said.contains(name), "{said} lacks {name}");
    }
    assert!(before == dump(&path("ab")), "something was merged");
}

#[test]
fn a_killed_run_is_booked_once_wherever_it_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut killed = ledger(&path("a"), &[("d", Ok(json!(1)))]);
    at_risk(&mut killed, 200, 30);
    // A copy that goes on by itself has runs of its own, and knows of less that was in flight.
    std::fs::copy(path("a"), path("copy")).unwrap();
    std::fs::copy(path("a-wal"), path("copy-wal")).unwrap();
    at_risk(&mut killed, 500, 70);
    drop(killed); // As a kill does: the run has no end.
    let sources = [path("a")];
    let Merged { spent: first, .. } = merge(&sources, &path("into")).unwrap();
    assert_eq!((first.micros, first.tokens), (505, 80));
    ledger(&path("a"), &[]).close().unwrap();
    assert_eq!(spent(&path("a")), first);
    assert_eq!(merge(&sources, &path("into")).unwrap().spent, first);

    ledger(&path("a"), &[("e", Ok(json!(1)))]).close().unwrap();
    ledger(&path("copy"), &[("f", Ok(json!(1)))])
        .close()
        .unwrap();
    let both = merge(&[path("a"), path("copy")], &path("into")).unwrap();
    assert_eq!((both.spent.micros, both.judgements), (515, 2));
    // The other way round, the most that it may have cost counts too.
    merge(&[path("copy")], &path("round")).unwrap();
    let round = merge(&[path("a")], &path("round")).unwrap();
    assert_eq!(round.spent, both.spent);
}

#[test]
fn what_cannot_be_merged_stops_it_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    ledger(&path("good"), &[("d", Ok(json!(1)))])
        .close()
        .unwrap();
    ledger(&path("new"), &[]).close().unwrap();
    let db = rusqlite::Connection::open(path("new")).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let written = ledger(&path("written"), &[]);
    for (bad, said) in [
        ("new", "version 99"),
        ("missing", "missing"),
        ("written", "another process"),
    ] {
        let error = merge(&[path("good"), path(bad)], &path("into")).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert!(!path("into").exists());
    }
    drop(written);
    let error = merge(&[path("good")], &path("good"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("into itself"), "{error}");
}
