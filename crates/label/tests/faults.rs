//! The collector against a teacher that does everything a server can do wrong.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use common::{Act, Job, Seen, Server, completion, graded, rows};
use retort_label::ledger::{Ledger, Outcome, Reader};
use retort_label::{Collected, Error, LabelSettings, Progress, collect};
use serde_json::json;

async fn run(settings: &LabelSettings) -> Result<Collected, Error> {
    collect(settings, false, |_: Progress| (), std::future::pending()).await
}

fn reply(status: u16, headers: &str, body: &str) -> Act {
    Act::Reply(status, headers.to_owned(), body.to_owned())
}

const RETRIES: usize = 8;

/// How the pair with this document is scripted to end.
fn scripted_end(document: usize) -> Outcome {
    match document % 100 {
        7 => Outcome::Refused,
        17 | 27 => Outcome::Filtered,
        37 => Outcome::Truncated,
        47 | 57 | 67 => Outcome::Unparsable,
        77 => Outcome::Failed,
        _ => Outcome::Ok,
    }
}

fn faulty(seen: &Seen) -> Act {
    // Now and then the server is overrun, and says so in every way there is.
    if seen.number % 400 >= 380 {
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(2));
        let headers = match seen.number % 8 {
            0 => "retry-after: 1\r\n".to_owned(),
            1 => "retry-after: 0.3\r\n".to_owned(),
            2 => "retry-after-ms: 150\r\n".to_owned(),
            3 => format!("retry-after: {date}\r\n"),
            4 => "retry-after: 0\r\n".to_owned(),
            5 => "retry-after: soon\r\n".to_owned(),
            6 => "x-should-retry: true\r\n".to_owned(),
            _ => String::new(),
        };
        return reply(429, &headers, r#"{"error":{"code":"rate_limit_exceeded"}}"#);
    }
    match seen.document % 100 {
        7 => {
            let refusal = json!({"choices": [{"message": {"refusal": "I'd rather not"}}]});
            return reply(200, "", &refusal.to_string());
        }
        17 => {
            return reply(
                200,
                "",
                r#"{"choices":[{"finish_reason":"content_filter"}]}"#,
            );
        }
        27 => {
            return reply(
                400,
                "",
                r#"{"error":{"code":"content_filter","param":"prompt"}}"#,
            );
        }
        37 => return reply(400, "", r#"{"error":{"code":"context_length_exceeded"}}"#),
        47 => return reply(200, "", r#"{"choices":[{"message":{"content":"1"}}]}"#),
        57 => {
            let ignored = completion(&[("Sure", 0.9), ("1", 0.1)], (40, 1));
            return reply(200, "", &ignored.to_string());
        }
        67 => {
            let beyond = completion(&[("1", 1.0), (" 1", 1.0)], (40, 1));
            return reply(200, "", &beyond.to_string());
        }
        77 if seen.attempt <= RETRIES => return reply(503, "retry-after-ms: 10\r\n", "down"),
        _ => {}
    }
    // What passes: each of these is the first attempt's fate only.
    if seen.attempt == 0 {
        match seen.document % 50 {
            1 => return Act::Reset,
            2 => {
                return Act::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"choi".to_vec());
            }
            3 => {
                return Act::Raw(
                    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{\"choices\":[]}".to_vec(),
                );
            }
            4 => return reply(200, "", "<html><body>Bad gateway</body></html>"),
            5 => return reply(200, "", ""),
            6 => return Act::Raw(b"\x16\x03\x01 not HTTP".to_vec()),
            _ => {}
        }
        if seen.document % 500 == 8 {
            return Act::Stall(Duration::from_secs(5));
        }
        if seen.document % 1000 == 9 {
            return Act::Gigantic(9 << 20);
        }
    }
    // Bursts in which three requests of ten fail.
    if seen.number % 1000 < 500 && seen.number.wrapping_mul(0x9e37_79b9) >> 3 & 1023 < 307 {
        let status = [500, 502, 503, 504, 520, 529][seen.number % 6];
        return reply(status, "", "burst");
    }
    graded(seen.document)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pair_of_2000_is_labelled_or_ends_as_scripted() {
    let job = Job::new(2000);
    let server = Server::start(faulty);
    let settings = job.settings(
        &server,
        "concurrency = 64\nretries = 8\ntimeout_seconds = 2\n",
    );
    let error = run(&settings).await.unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Unlabelled {
                failed: 160,
                asked: 2000,
                ..
            }
        ),
        "{error}"
    );

    let ended: BTreeMap<usize, String> = rows(&job.ledger()).into_iter().collect();
    assert_eq!(ended.len(), job.pairs);
    for (document, outcome) in &ended {
        assert_eq!(
            *outcome,
            scripted_end(*document).to_string(),
            "document {document}"
        );
    }

    // What failed is asked again, what the texts are to blame for is not.
    let again = run(&settings).await.unwrap();
    assert_eq!((again.known, again.given_up), (1840, 140));
    assert_eq!(again.ended, BTreeMap::from([(Outcome::Ok, 20)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_without_a_judgement_is_not_sealed() {
    let job = Job::new(2);
    let server = Server::start(|_| reply(401, "", "bad key"));
    run(&job.settings(&server, "")).await.unwrap_err();
    let set = job.path("set");
    let error = retort_label::seal(&job.ledger(), None, None, &set).unwrap_err();
    assert!(error.to_string().contains("no judgement yet"), "{error}");
    assert!(!set.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_teacher_without_credit_or_key_stops_the_job_and_blames_no_pair() {
    for (status, body, said) in [
        (401, "bad key", "refused the request"),
        (402, "", "no credit"),
        (
            429,
            r#"{"error":{"code":"insufficient_quota"}}"#,
            "no credit",
        ),
        (404, "no such model", "can't do this job"),
        (307, "", "redirects are not followed"),
    ] {
        let job = Job::new(200);
        let server = Server::start(move |seen| match seen.number {
            0..50 => graded(seen.document),
            _ => reply(status, "location: http://127.0.0.1:1/\r\n", body),
        });
        let settings = job.settings(&server, "concurrency = 8\n");
        let error = run(&settings).await.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        let rows = rows(&job.ledger());
        assert_eq!(rows.len(), 50, "{status}");
        assert!(rows.iter().all(|(_, outcome)| outcome == "ok"));
        assert!(server.count() <= 50 + 8, "{} requests", server.count());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_pause_is_not_waited_for_and_a_gone_teacher_is_not_hammered() {
    let job = Job::new(100);
    let server = Server::start(|_| reply(429, "retry-after: 3600\r\n", "come back later"));
    let error = run(&job.settings(&server, "concurrency = 4\n"))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Gone { problem } if problem.contains("pause")),
        "{error}"
    );
    assert!(server.count() <= 4, "{} requests", server.count());

    let server = Server::start(|_| reply(500, "", "down"));
    let settings = job.settings(&server, "concurrency = 4\nretries = 0\n");
    let error = run(&settings).await.unwrap_err();
    assert!(
        matches!(&error, Error::Gone { problem } if problem.contains("down")),
        "{error}"
    );
    assert!(server.count() <= 24, "{} requests", server.count());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_changes_stops_the_job_once_and_is_on_record() {
    let job = Job::new(100);
    let server = Server::start(|seen| {
        let mut body = completion(&[("1", 0.7), ("0", 0.3)], (40, 1));
        if seen.number >= 30 {
            body["model"] = "scripted-2".into();
        }
        reply(200, "", &body.to_string())
    });
    let settings = job.settings(&server, "concurrency = 1\n");
    let error = run(&settings).await.unwrap_err().to_string();
    assert!(
        error.contains("\"scripted-2\" now") && error.contains("\"scripted-1\" before"),
        "{error}"
    );
    assert_eq!(rows(&job.ledger()).len(), 31);
    run(&settings).await.unwrap();
    assert_eq!(rows(&job.ledger()).len(), 100);
    let recipes = Reader::open(&job.ledger()).unwrap().recipes().unwrap();
    assert_eq!(recipes[0].models, ["scripted-1", "scripted-2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_question_is_bought_twice_and_a_new_pair_costs_one_request() {
    let job = Job::new(60);
    let server = Server::start(|seen| graded(seen.document));
    let settings = job.settings(&server, "concurrency = 8\n");
    run(&settings).await.unwrap();
    assert_eq!(server.count(), 60);
    let again = run(&settings).await.unwrap();
    assert_eq!((again.known, server.count()), (60, 60));

    let candidates = std::fs::read_to_string(job.path("candidates.jsonl")).unwrap();
    let more = format!(
        "{candidates}{}\n",
        json!({"query_id": "q0", "document_id": "d59", "source": "random"})
    );
    std::fs::write(job.path("candidates.jsonl"), more).unwrap();
    run(&settings).await.unwrap();
    assert_eq!(server.count(), 61);

    // Where and how fast it is asked does not make it another question; the prompt does.
    let slower = job.settings(
        &server,
        "concurrency = 1\nretries = 0\nallow_http = ['10.1.2.3']\n",
    );
    run(&slower).await.unwrap();
    assert_eq!(server.count(), 61);
    let prompt = "answers = ['0', '1']\n# a comment\nsystem = 'Grade.'\nuser = '{{ query }}: {{ document }}'";
    std::fs::write(job.path("prompt.toml"), prompt).unwrap();
    run(&settings).await.unwrap();
    assert_eq!(server.count(), 61);
    std::fs::write(job.path("prompt.toml"), prompt.replace("Grade", "Judge")).unwrap();
    run(&settings).await.unwrap();
    assert_eq!(server.count(), 122);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_budget_is_never_passed() {
    // The server bills twice what a request can be by its bytes; prices differ from the estimate
    // in both directions.
    for (billed, name) in [(40, "less"), (1000, "more")] {
        let job = Job::new(2000);
        let server = Server::start(move |seen| {
            let body = completion(
                &[("1", 0.7), ("0", 0.3)],
                (billed + seen.document as u64 % 7, 1),
            );
            reply(200, "", &body.to_string())
        });
        let more = "concurrency = 256\n[teacher.price]\ninput = 3.0\noutput = 15.0\n\
                    [budget]\nmoney = 0.1\n";
        let error = run(&job.settings(&server, more)).await.unwrap_err();
        assert!(matches!(error, Error::Budget { .. }), "{error}");
        let spent = Reader::open(&job.ledger()).unwrap().spent().unwrap();
        assert!(spent.micros <= 100_000, "{name}: {}", spent.micros);
        assert!(spent.micros > 90_000, "{name}: {}", spent.micros);
        let labelled = rows(&job.ledger()).len() as u64;
        assert_eq!(labelled, spent.requests, "{name}");

        // With a larger budget it goes on.
        let more = more.replace("0.1", "0.15");
        run(&job.settings(&server, &more)).await.unwrap_err();
        let spent = Reader::open(&job.ledger()).unwrap().spent().unwrap();
        assert!(
            (140_000..=150_000).contains(&spent.micros),
            "{name}: {}",
            spent.micros
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_when_the_job_is_stopped_is_kept() {
    let job = Job::new(100);
    let server = Server::start(|seen| {
        std::thread::sleep(Duration::from_millis(100));
        graded(seen.document)
    });
    let settings = job.settings(&server, "concurrency = 4\n");
    let stop = async {
        while server.count() < 6 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        "SIGTERM"
    };
    let error = collect(&settings, false, |_: Progress| (), stop)
        .await
        .unwrap_err();
    let Error::Interrupted { labelled, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(rows(&job.ledger()).len(), labelled);
    assert_eq!(server.count(), labelled);
    assert!((6..100).contains(&labelled), "{labelled}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_in_flight_at_a_kill_is_booked_once_and_at_its_worst() {
    let job = Job::new(200);
    let stalled = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&stalled);
    let server = Server::start(move |seen| {
        if seen.number < 100 {
            return graded(seen.document);
        }
        counted.fetch_add(1, Ordering::SeqCst);
        Act::Stall(Duration::from_mins(10))
    });
    let settings = job.settings(&server, "concurrency = 8\ntimeout_seconds = 600\n");
    let plan = retort_label::plan(&settings, false).unwrap();
    // All questions are about as long.
    let worst = plan.most_tokens as f64 / 200.0;
    let all_stalled = async {
        while stalled.load(Ordering::SeqCst) < 8 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        // It is dropped where it stands, like a killed one.
        () = all_stalled => {}
        _ = run(&settings) => panic!("it waits for replies that never come"),
    }
    let known = loop {
        // Its writer may still be at the last records.
        match Ledger::open(&job.ledger()) {
            Ok(ledger) => break ledger.spent().unwrap(),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert_eq!((known.requests, rows(&job.ledger()).len()), (101, 100));
    let booked = (known.tokens - 100 * 41) as f64;
    assert!(
        booked >= 8.0 * worst - 40.0,
        "{booked} booked, {worst} each"
    );
    assert!(
        booked <= 9.0 * worst + 40.0,
        "{booked} booked, {worst} each"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_writer_is_refused_by_name() {
    let job = Job::new(20);
    let server = Server::start(|seen| graded(seen.document));
    let settings = job.settings(&server, "");
    let first = retort_label::ledger::Ledger::open(&job.ledger()).unwrap();
    let error = run(&settings).await.unwrap_err().to_string();
    assert!(error.contains(&std::process::id().to_string()), "{error}");
    assert_eq!(server.count(), 0);
    drop(first);
    run(&settings).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pairs_with_the_same_texts_share_one_judgement() {
    let job = Job::new(40);
    let corpus = std::fs::read_to_string(job.path("corpus.jsonl")).unwrap();
    std::fs::write(
        job.path("corpus.jsonl"),
        corpus.replace("document 7 of", "document 3 of"),
    )
    .unwrap();
    let server = Server::start(|seen| graded(seen.document));
    let settings = job.settings(&server, "concurrency = 2\n");
    run(&settings).await.unwrap();
    assert_eq!(server.count(), 39);
    let set = job.path("set");
    retort_label::seal(
        &job.ledger(),
        None,
        Some(&job.path("candidates.jsonl")),
        &set,
    )
    .unwrap();
    let set = retort_data::label_set::read(&set).unwrap();
    let grade = |id: &str| {
        set.labels
            .iter()
            .find(|label| label.document_id == id)
            .unwrap()
            .grade
    };
    assert_eq!(set.labels.len(), 40);
    assert!((grade("d7") - grade("d3")).abs() < 1e-12);
    run(&settings).await.unwrap();
    assert_eq!(server.count(), 39);
}

/// What a reranker makes of the documents in a request.
fn reranked(seen: &Seen) -> Vec<serde_json::Value> {
    let texts = seen.body["texts"].as_array().unwrap();
    let number = |text: &serde_json::Value| -> f64 {
        let text = text.as_str().unwrap();
        text.split(' ').nth(1).unwrap().parse().unwrap()
    };
    let mut scores: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| json!({"index": index, "score": number(text) / 100.0 - 1.0}))
        .collect();
    // TEI sorts by score.
    scores.reverse();
    scores
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rerankers_reply_counts_when_each_document_is_in_it_once() {
    let job = Job::new(200);
    let server = Server::start(|seen| {
        let mut scores = reranked(seen);
        let is_bad = |text: &serde_json::Value| text.as_str().unwrap().starts_with("document 42 ");
        if seen.body["texts"].as_array().unwrap().iter().any(is_bad) {
            scores[0]["score"] = serde_json::Value::Null;
        } else if seen.attempt == 0 {
            match seen.document / 8 % 4 {
                0 => drop(scores.pop()),
                1 => scores.push(scores[0].clone()),
                2 => scores[0]["index"] = 99.into(),
                _ => {}
            }
        }
        reply(200, "", &serde_json::Value::from(scores).to_string())
    });
    let more = "concurrency = 4\ndialect = 'tei'\ndocuments_per_request = 8\n";
    let settings = job.settings(&server, more);
    let error = run(&settings).await.unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Unlabelled {
                failed: 1,
                asked: 200,
                outcome: Outcome::Unparsable,
                ..
            }
        ),
        "{error}"
    );
    let set = job.path("set");
    retort_label::seal(&job.ledger(), None, None, &set).unwrap();
    let set = retort_data::label_set::read(&set).unwrap();
    assert_eq!((set.labels.len(), set.manifest.top_grade), (199, 1));
    for label in set.labels {
        let number: f64 = label.document_id[1..].parse().unwrap();
        let sigmoid = 1.0 / (1.0 + (1.0 - number / 100.0).exp());
        assert!((label.grade - sigmoid).abs() < 1e-9, "{label:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_querys_pairs_go_to_one_replica_and_another_takes_over_from_one_that_is_gone() {
    let job = Job::new(400);
    let servers = [0, 1].map(|_| Server::start(|seen| graded(seen.document)));
    let endpoints = |urls: &[&str]| {
        let mut settings = job.settings(&servers[0], "concurrency = 2\n");
        settings.teacher.endpoints = urls.iter().map(ToString::to_string).collect();
        settings
    };
    run(&endpoints(&[&servers[0].url, &servers[1].url]))
        .await
        .unwrap();
    let counts = [servers[0].count(), servers[1].count()];
    assert_eq!(counts.iter().sum::<usize>(), 400);
    assert!(counts.iter().all(|count| *count > 60), "{counts:?}");

    let other = Job::new(40);
    let mut settings = other.settings(&servers[0], "concurrency = 2\n");
    settings
        .teacher
        .endpoints
        .push("http://127.0.0.1:9/v1".to_owned());
    run(&settings).await.unwrap();
    assert_eq!(rows(&other.ledger()).len(), 40);
}

/// A teacher that thinks: it bills what no byte of the request accounts for.
fn thinking(_: &Seen) -> Act {
    let body = completion(&[("1", 0.7), ("0", 0.3)], (40, 6000));
    reply(200, "", &body.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_teacher_bills_beyond_the_worst_case_is_known_to_later_runs() {
    let job = Job::new(40);
    let server = Server::start(thinking);
    let more = "concurrency = 1\n[budget]\ntokens = 20000\n";
    let mut settings = job.settings(&server, more);
    for _ in 0..3 {
        let error = run(&settings).await.unwrap_err();
        assert!(matches!(error, Error::Budget { .. }), "{error}");
        let spent = Reader::open(&job.ledger()).unwrap().spent().unwrap();
        assert_eq!((server.count(), spent.tokens), (3, 3 * 6040));
    }
    let plan = retort_label::plan(&settings, false).unwrap();
    assert!(plan.most_tokens >= 37 * 6000, "{}", plan.most_tokens);

    settings.ledger = job.path("merged.sqlite");
    retort_label::merge(&[job.ledger()], &settings.ledger).unwrap();
    run(&settings).await.unwrap_err();
    assert_eq!(server.count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_is_lost_counts_as_much_as_was_set_aside_for_it() {
    for lost in [
        "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{",
        "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>",
    ] {
        let job = Job::new(2);
        let server = Server::start(move |seen| match seen.number {
            0 => thinking(seen),
            _ => Act::Raw(lost.as_bytes().to_vec()),
        });
        let settings = job.settings(&server, "concurrency = 1\nretries = 0\n");
        run(&settings).await.unwrap_err();
        let spent = Reader::open(&job.ledger()).unwrap().spent().unwrap();
        assert_eq!((spent.requests, spent.tokens), (2, 2 * 6040));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_the_server_rejects_is_named_and_holds_up_no_other() {
    let job = Job::new(60);
    let server = Server::start(|seen| match seen.document {
        7 => reply(400, "", r#"{"error":{"message":"odd"}}"#),
        document => graded(document),
    });
    let settings = job.settings(&server, "concurrency = 4\n");
    // Asked for by itself it is still that document's fault: others were answered before.
    for asked_now in [60, 1] {
        let error = run(&settings).await.unwrap_err();
        assert!(
            matches!(&error, Error::Unlabelled { failed: 1, asked, problem, .. }
                if *asked == asked_now && problem.contains("query q0, document d7: 400")),
            "{error}"
        );
    }
    let failed: Vec<_> = rows(&job.ledger())
        .into_iter()
        .filter(|(_, outcome)| outcome != "ok")
        .collect();
    assert_eq!(failed, [(7, "failed".to_owned())]);

    // Of several documents in a request, one alone.
    let job = Job::new(60);
    let server = Server::start(|seen| {
        let is_odd = |text: &serde_json::Value| text.as_str().unwrap().starts_with("document 42 ");
        if seen.body["texts"].as_array().unwrap().iter().any(is_odd) {
            return reply(
                422,
                "",
                r#"{"error":"Tokenizer error","error_type":"Tokenizer"}"#,
            );
        }
        reply(
            200,
            "",
            &serde_json::Value::from(reranked(seen)).to_string(),
        )
    });
    let settings = job.settings(&server, "dialect = 'tei'\nscale = 'logit'\n");
    let error = run(&settings).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unlabelled { failed: 1, problem, .. } if problem.contains("document d42:")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_rejects_all_it_is_asked_stops_the_job() {
    for answered in [0, 30] {
        let job = Job::new(200);
        let server = Server::start(move |seen| match seen.number {
            number if number < answered => graded(seen.document),
            _ => reply(400, "", r#"{"error":{"message":"unknown field"}}"#),
        });
        let error = run(&job.settings(&server, "concurrency = 4\n"))
            .await
            .unwrap_err();
        assert!(
            matches!(&error, Error::Teacher { problem, .. } if problem.contains("unknown field")),
            "{error}"
        );
        let ok = rows(&job.ledger())
            .iter()
            .filter(|(_, one)| one == "ok")
            .count();
        assert_eq!(ok, answered);
        let most = answered + 4 + if answered == 0 { 0 } else { 20 };
        assert!(server.count() <= most, "{} requests", server.count());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_written_is_what_the_request_says_in_the_end() {
    let job = Job::new(20);
    let server = Server::start(|seen| graded(seen.document));
    let most = |more: &str| {
        let plan = retort_label::plan(&job.settings(&server, more), false).unwrap();
        plan.most_tokens
    };
    let plain = most("");
    let limit = |extra: &str| most(&format!("extra = {{ {extra} }}\n")) - plain;
    assert_eq!(limit("max_tokens = 4000"), 20 * 3999);
    assert_eq!(limit("max_completion_tokens = 4000, n = 2"), 20 * 7999);
    let other_field = "limit_field = 'n_predict'\nextra = { n_predict = 4000 }\n";
    assert_eq!(most(other_field) - plain, 20 * 3999);
    let anthropic = "dialect = 'anthropic'\nlog_probabilities = false\n";
    let thinks = format!("{anthropic}extra = {{ max_tokens = 4000 }}\n");
    assert_eq!(most(&thinks) - most(anthropic), 20 * (4000 - 8));
}

#[test]
fn what_is_wrong_with_a_jobs_files_names_the_setting_or_the_line() {
    let job = Job::new(20);
    let server = Server::start(|seen| graded(seen.document));
    let problem = |settings: &LabelSettings| {
        let error = retort_label::plan(settings, false).unwrap_err();
        error.to_string()
    };
    let settings = job.settings(&server, "");
    let nowhere = || job.path("nowhere");
    let mut other = settings.clone();
    other.collection = nowhere();
    assert!(
        problem(&other).starts_with("collection: "),
        "{}",
        problem(&other)
    );
    let mut other = settings.clone();
    other.candidates = nowhere();
    assert!(
        problem(&other).starts_with("candidates: "),
        "{}",
        problem(&other)
    );
    let mut other = settings.clone();
    other.prompt = Some(nowhere());
    assert!(
        problem(&other).starts_with("prompt: "),
        "{}",
        problem(&other)
    );
    let mut other = settings.clone();
    other.ledger = job.folder.path().to_owned();
    assert!(
        problem(&other).contains("is a folder, and a ledger is a file"),
        "{}",
        problem(&other)
    );
    let error = Ledger::open(job.folder.path()).err().unwrap().to_string();
    assert!(error.contains("is a folder"), "{error}");
    let beside = format!("{}.lock", job.folder.path().display());
    assert!(!std::path::Path::new(&beside).exists());

    let unknown = r#"{"query_id": "q0", "document_id": "d77", "source": "bm25"}"#;
    let candidates = std::fs::read_to_string(&settings.candidates).unwrap();
    std::fs::write(&settings.candidates, format!("\n{candidates}{unknown}\n")).unwrap();
    let said = "candidates.jsonl:22: names the document \"d77\"";
    assert!(problem(&settings).contains(said), "{}", problem(&settings));
}

#[tokio::test(flavor = "multi_thread")]
async fn azures_deployments_get_their_version_and_the_key_in_its_header() {
    let job = Job::new(20);
    let server = Server::start(|seen| {
        let head = &seen.headers;
        let path = "POST /v1/chat/completions?api-version=2024-10-21 HTTP/1.1";
        if head.starts_with(path) && head.contains("api-key: ab\r") && !head.contains("Bearer") {
            graded(seen.document)
        } else {
            reply(401, "", head)
        }
    });
    let mut settings = job.settings(&server, "[teacher.api_key]\ncommand = ['echo', 'ab']\n");
    settings.teacher.endpoints = vec![format!("{}?api-version=2024-10-21", server.url)];
    settings.teacher.api_key.header = Some("api-key".to_owned());
    run(&settings).await.unwrap();
    settings.teacher.api_key.header = Some("api key".to_owned());
    let error = run(&settings).await.unwrap_err().to_string();
    assert!(error.contains("\"api key\" is no header's name"), "{error}");
}
