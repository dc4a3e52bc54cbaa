//! Batches against an interface that does everything it can do wrong: what comes back, and what it
//! cost.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::batches::{
    ANTHROPIC, BatchServer, End, File, PAIRS, all_answered, answered, asked_again, assert_pending,
    completed, document, job, line, lines, of_messages, run, run_and, run_until_done,
};
use common::{Job, grades, rows};
use retort_label::ledger::{Outcome, Reader};
use retort_label::{Error, Format, LabelSettings, Progress, collect, collect_in_batches, plan};
use serde_json::{Value, json};

/// The probability that each document is relevant.
fn answers(ledger: &Path) -> Vec<(usize, f64)> {
    let mut out = Vec::new();
    retort_label::export(ledger, None, Format::Jsonl, &mut out).unwrap();
    let lines = String::from_utf8(out).unwrap();
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let answer = |line: Value| {
        let document = line["document_id"].as_str().unwrap()[1..].parse().unwrap();
        (document, line["probabilities"][1].as_f64().unwrap())
    };
    lines.map(answer).collect()
}

fn strays(ledger: &Path) -> usize {
    let db = rusqlite::Connection::open(ledger).unwrap();
    let count = "SELECT count(*) FROM batch_stray";
    db.query_row(count, [], |row| row.get(0)).unwrap()
}

struct Trap {
    name: &'static str,
    /// What comes back of the first batch.
    end: fn(&[Value]) -> End,
    /// The documents that are to be asked about again.
    lost: fn(usize) -> bool,
    strays: usize,
}

fn trap(name: &'static str, end: fn(&[Value]) -> End, lost: fn(usize) -> bool) -> Trap {
    Trap {
        name,
        end,
        lost,
        strays: 0,
    }
}

fn traps() -> Vec<Trap> {
    vec![
        trap(
            "completed, and nothing is: the output has no id",
            |requests| End {
                status: "completed",
                output: File::Null,
                errors: lines(requests, |_, one| line(one, 500, &json!({}), &Value::Null)),
            },
            |_| true,
        ),
        trap(
            "an id that is empty",
            |requests| End {
                status: "completed",
                output: lines(&requests[..30], |_, one| answered(one)),
                errors: File::Nameless,
            },
            |document| document >= 30,
        ),
        trap(
            "status 0",
            |requests| {
                completed(lines(requests, |document, one| match document % 4 {
                    0 => line(one, 0, &Value::Null, &Value::Null),
                    _ => answered(one),
                }))
            },
            |document| document % 4 == 0,
        ),
        trap(
            "lines are missing",
            |requests| completed(lines(&requests[5..35], |_, one| answered(one))),
            |document| !(5..35).contains(&document),
        ),
        trap(
            "lines come twice, with an error before or after the answer",
            |requests| {
                let lines = requests.iter().flat_map(|one| {
                    let error = json!({"code": "server_error"});
                    let error = line(one, 200, &Value::Null, &error);
                    match document(one) % 3 {
                        0 => vec![error, answered(one)],
                        1 => vec![answered(one), error],
                        _ => vec![answered(one), line(one, 200, &grades(96), &Value::Null)],
                    }
                });
                completed(File::Lines(lines.collect()))
            },
            |_| false,
        ),
        trap(
            "any order",
            |requests| {
                let reversed: Vec<Value> = requests.iter().rev().cloned().collect();
                completed(lines(&reversed, |_, one| answered(one)))
            },
            |_| false,
        ),
        trap(
            "expired, with answers",
            |requests| End {
                status: "expired",
                ..half(requests, "batch_expired")
            },
            |document| document >= 20,
        ),
        trap(
            "cancelled, with answers",
            |requests| End {
                status: "cancelled",
                ..half(requests, "batch_cancelled")
            },
            |document| document >= 20,
        ),
        Trap {
            name: "lines of something else",
            end: |requests| {
                let mut lines: Vec<String> = requests.iter().map(answered).collect();
                let other = json!({"custom_id": "0".repeat(64)});
                lines.insert(3, line(&other, 200, &grades(1), &Value::Null));
                lines.push("{\"custom_id\": \"cut o".to_owned());
                completed(File::Lines(lines))
            },
            lost: |_| false,
            strays: 2,
        },
    ]
}

fn half(requests: &[Value], code: &str) -> End {
    let lost = |one: &Value| {
        json!({"custom_id": one["custom_id"], "response": null, "error": {"code": code}})
            .to_string()
    };
    End {
        status: "",
        output: lines(&requests[..20], |_, one| answered(one)),
        errors: lines(&requests[20..], |_, one| lost(one)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_comes_back_answers_are_kept_and_the_rest_is_asked_again() {
    for Trap {
        name,
        end,
        lost,
        strays: stray_lines,
    } in traps()
    {
        let server = BatchServer::start(move |number, requests| match number {
            0 => end(requests),
            _ => all_answered(requests),
        });
        let (job, settings) = job(&server, "");
        assert_pending(&run(&settings).await, PAIRS);
        assert_pending(&run(&settings).await, PAIRS);
        assert_eq!(server.count(), 1, "{name}");
        server.end();
        run_until_done(&settings).await.unwrap();
        let rows = rows(&job.ledger());
        assert_eq!(rows.len(), PAIRS, "{name}");
        assert!(rows.iter().all(|(_, outcome)| outcome == "ok"), "{name}");
        for (document, relevant) in answers(&job.ledger()) {
            let expected = 0.2 + 0.7 * document as f64 / 97.0;
            assert!((relevant - expected).abs() < 1e-5, "{name}: {document}");
        }
        assert_eq!(server.asked(), asked_again(lost), "{name}");
        assert_eq!(strays(&job.ledger()), stray_lines, "{name}");
        let done = run(&settings).await.unwrap();
        assert_eq!((done.known, done.pending), (PAIRS, 0), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_texts_are_to_blame_for_is_not_asked_again() {
    let server = BatchServer::start(|_, requests| {
        completed(lines(requests, |document, one| {
            let error = |code: &str| json!({"error": {"code": code}});
            match document % 10 {
                // A status without an error beside it, and an error without a body.
                3 => line(one, 400, &error("content_filter"), &Value::Null),
                4 => line(
                    one,
                    400,
                    &Value::Null,
                    &json!({"code": "context_length_exceeded"}),
                ),
                5 => line(one, 200, &json!({"choices": []}), &Value::Null),
                _ => answered(one),
            }
        }))
    });
    let (job, settings) = job(&server, "");
    run(&settings).await.unwrap_err();
    server.end();
    let error = run(&settings).await.unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Unlabelled {
                failed: 12,
                asked: PAIRS,
                passing: false,
                ..
            }
        ),
        "{error}"
    );
    for (document, outcome) in rows(&job.ledger()) {
        let expected = match document % 10 {
            3 => Outcome::Filtered,
            4 => Outcome::Truncated,
            5 => Outcome::Unparsable,
            _ => Outcome::Ok,
        };
        assert_eq!(outcome, expected.to_string(), "document {document}");
    }
    let done = run(&settings).await.unwrap();
    assert_eq!((done.given_up, server.count()), (12, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_rejected_for_another_reason_failed_if_others_are_answered() {
    for answers_others in [true, false] {
        let server = BatchServer::start(move |_, requests| {
            completed(lines(requests, |document, one| match document {
                0..39 if answers_others => answered(one),
                _ => line(one, 400, &json!({"error": {"message": "no"}}), &Value::Null),
            }))
        });
        let (job, settings) = job(&server, "[teacher.batch]\npoll_seconds = 0\n");
        server.end();
        let error = run_and(true, &settings).await.unwrap_err();
        assert!(error.to_string().contains(", document d"), "{error}");
        if answers_others {
            assert!(
                matches!(error, Error::Unlabelled { failed: 1, .. }),
                "{error}"
            );
            assert_eq!(rows(&job.ledger()).len(), PAIRS);
        } else {
            assert!(matches!(error, Error::Teacher { .. }), "{error}");
            assert_eq!(rows(&job.ledger()), []);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_was_not_taken_stops_the_job_and_blames_no_pair() {
    let server = BatchServer::start(|number, requests| match number {
        0 => End {
            status: "failed",
            output: File::Null,
            errors: File::Null,
        },
        _ => all_answered(requests),
    });
    let (job, settings) = job(&server, "");
    server.end();
    run(&settings).await.unwrap_err();
    let error = run(&settings).await.unwrap_err();
    assert!(
        matches!(&error, Error::Teacher { problem, .. } if problem.contains("token_limit_exceeded")),
        "{error}"
    );
    assert_eq!(rows(&job.ledger()), []);
    run_until_done(&settings).await.unwrap();
    assert_eq!(rows(&job.ledger()).len(), PAIRS);
}

#[tokio::test(flavor = "multi_thread")]
async fn message_batches_are_read_and_what_expired_is_asked_again() {
    let server = BatchServer::start(of_messages);
    let (job, settings) = job(&server, ANTHROPIC);
    server.end();
    run_until_done(&settings).await.unwrap();
    assert!(
        rows(&job.ledger())
            .iter()
            .all(|(_, outcome)| outcome == "ok")
    );
    assert_eq!(server.asked(), asked_again(|document| document % 5 == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_wait_one_command_does_it_in_as_many_batches_as_are_allowed() {
    let server = BatchServer::start(|number, requests| match number {
        2 => completed(lines(&requests[1..], |_, one| answered(one))),
        _ => all_answered(requests),
    });
    let more = "[teacher.batch]\nrequests = 7\nat_once = 2\npoll_seconds = 0\n";
    let (job, settings) = job(&server, more);
    server.end();
    let done = run_and(true, &settings).await.unwrap();
    assert_eq!(done.ended, BTreeMap::from([(Outcome::Ok, PAIRS)]));
    assert_eq!(rows(&job.ledger()).len(), PAIRS);
    assert_eq!(server.asked().values().sum::<usize>(), PAIRS + 1);
    assert_eq!(server.count(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_budget_counts_what_is_out_at_its_worst_and_at_the_price_of_batches() {
    let server = BatchServer::start(|_, requests| all_answered(requests));
    let priced = "[teacher.price]\ninput = 3.0\noutput = 15.0\nbatch = 0.5\n";
    let (_job, settings) = job(&server, priced);
    let settings = LabelSettings {
        in_batches: true,
        ..settings
    };
    let whole = plan(&settings, false).unwrap().most_micros;
    let budget = 2 * whole / 3;
    let money = budget as f64 / 1e6;
    let (job, settings) = job(&server, &format!("{priced}[budget]\nmoney = {money}\n"));
    let out = || {
        let db = rusqlite::Connection::open(job.ledger()).unwrap();
        let sum = "SELECT coalesce(sum(most_micros), 0) FROM batch WHERE ended_at IS NULL";
        db.query_row(sum, [], |row| row.get::<_, u64>(0)).unwrap()
    };
    let spent = || Reader::open(&job.ledger()).unwrap().spent().unwrap();
    let done = run(&settings).await;
    assert!(
        matches!(done, Err(Error::Pending { questions: 20..30 })),
        "{done:?}"
    );
    assert!((budget / 2..=budget).contains(&out()), "{}", out());
    server.end();
    // What came back cost less than its worst case: more fits.
    run(&settings).await.unwrap_err();
    assert!(out() > 0 && spent().micros + out() <= budget);
    run_until_done(&settings).await.unwrap();
    // 40 tokens in and one out, at half of 3 and 15 a million.
    let of_one = (40 * 3 + 15_u64).div_ceil(2);
    assert_eq!(spent().micros, PAIRS as u64 * of_one);

    let too_little = format!("{priced}[budget]\nmoney = 0.000001\n");
    let (_job, settings) = self::job(&server, &too_little);
    let error = run(&settings).await.unwrap_err();
    assert!(matches!(error, Error::Budget { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_batches_use_up_is_not_said_to_be_spent() {
    let server = BatchServer::start(|_, requests| all_answered(requests));
    let more = "[teacher.batch]\nrequests = 20\nat_once = 1\n";
    let (job, mut settings) = job(&server, more);
    assert_pending(&run(&settings).await, 20);
    let open = Reader::open(&job.ledger()).unwrap().open_batches().unwrap();
    let out = open[0].most_tokens;
    settings.budget.tokens = Some(out);
    let never = std::future::pending();
    let error = collect(&settings, false, |_: Progress| (), never)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Budget { .. }), "{error}");
    let said = format!("and 0 tokens are spent, 0.000000 and {out} are set aside");
    assert!(error.to_string().contains(&said), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_been_answered_is_booked_at_its_worst_and_what_was_not_run_is_not() {
    // Of four documents the first is answered, the second lost, the third missing, the fourth not run.
    let server = BatchServer::start(|_, requests| {
        let told = requests.iter().filter(|one| document(one) % 4 != 2);
        let line = |one: &Value| match document(one) % 4 {
            0 => answered(one),
            1 => line(one, 0, &Value::Null, &Value::Null),
            _ => json!({"custom_id": one["custom_id"], "error": {"code": "batch_expired"}})
                .to_string(),
        };
        completed(File::Lines(told.map(line).collect()))
    });
    let (job, settings) = job(&server, "[teacher.price]\ninput = 3.0\noutput = 15.0\n");
    run(&settings).await.unwrap_err();
    let db = rusqlite::Connection::open(job.ledger()).unwrap();
    let sql = "SELECT document_ids, 3 * input_tokens + 15 * output_tokens FROM batch_question";
    let mut select = db.prepare(sql).unwrap();
    let most = select
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    let most: Vec<(String, u64)> = most.map(Result::unwrap).collect();
    let expected: u64 = most
        .iter()
        .map(|(ids, most)| {
            let id: Vec<String> = serde_json::from_str(ids).unwrap();
            match id[0][1..].parse::<usize>().unwrap() % 4 {
                0 => 3 * 40 + 15,
                1 | 2 => *most,
                _ => 0,
            }
        })
        .sum();
    server.end();
    run(&settings).await.unwrap_err();
    let spent = Reader::open(&job.ledger()).unwrap().spent().unwrap();
    // A request for each line, and for the two files that went up.
    assert_eq!((spent.micros, spent.requests), (expected, PAIRS as u64 + 2));
    let hosts = Reader::open(&job.ledger()).unwrap().sent().unwrap();
    assert_eq!(hosts.len(), 1);
    assert!(server.url.contains(&hosts[0].host), "{hosts:?}");
    assert!(hosts[0].bytes > 100 * PAIRS as u64, "{hosts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_teacher_that_bills_more_than_it_can_have_been_sent_is_reserved_more_for() {
    let server = BatchServer::start(|number, requests| {
        completed(lines(requests, |document, one| {
            let mut body = grades(document);
            body["usage"]["completion_tokens"] = 5000.into();
            let status = if number == 0 { 200 } else { 0 };
            line(one, status, &body, &Value::Null)
        }))
    });
    let more = "[teacher.batch]\nrequests = 20\nat_once = 1\n[teacher.price]\noutput = 1.0\n";
    let (job, settings) = job(&server, more);
    server.end();
    let set_aside = || {
        let db = rusqlite::Connection::open(job.ledger()).unwrap();
        let sum = "SELECT sum(most_micros) FROM batch WHERE ended_at IS NULL";
        db.query_row(sum, [], |row| row.get::<_, u64>(0)).unwrap()
    };
    run(&settings).await.unwrap_err();
    assert_eq!(set_aside(), 20);
    run(&settings).await.unwrap_err();
    assert_eq!(set_aside(), 20 * 5000);
    // Of the second batch nobody knows what it came to.
    run(&settings).await.unwrap_err();
    let spent = Reader::open(&job.ledger()).unwrap().spent().unwrap();
    assert_eq!(spent.micros, 2 * 20 * 5000);
}

#[tokio::test(flavor = "multi_thread")]
async fn again_asks_all_that_ended_for_a_reason_of_their_own_however_many_batches_it_takes() {
    let server = BatchServer::start(|number, requests| {
        completed(lines(requests, |_, one| match number {
            0 => line(one, 200, &json!({"choices": []}), &Value::Null),
            _ => answered(one),
        }))
    });
    let (job, mut settings) = job(&server, "[teacher.batch]\npoll_seconds = 0\n");
    server.end();
    run_and(true, &settings).await.unwrap_err();
    assert!(
        rows(&job.ledger())
            .iter()
            .all(|(_, outcome)| outcome == "unparsable")
    );
    (
        settings.teacher.batch.requests,
        settings.teacher.batch.at_once,
    ) = (7, 1);
    let never = std::future::pending();
    let done = collect_in_batches(&settings, true, true, |_: Progress| (), never).await;
    assert_eq!(done.unwrap().ended, BTreeMap::from([(Outcome::Ok, PAIRS)]));
    assert_eq!(server.asked(), asked_again(|_| true));
}

fn files(folder: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.to_string_lossy().ends_with(suffix))
        .collect()
}

/// What `vllm run-batch` makes of the first so many requests of a file.
fn run_batch(input: &Path, requests: usize) {
    let text = std::fs::read_to_string(input).unwrap();
    let lines = text.lines().take(requests);
    let lines = lines.map(|line| answered(&serde_json::from_str(line).unwrap()) + "\n");
    let output = input.to_string_lossy().replace(".input.", ".output.");
    std::fs::write(output, lines.collect::<String>()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_for_run_batch_are_written_and_their_outputs_read() {
    let server = BatchServer::start(|_, _| -> End { panic!("nothing is sent") });
    let job = Job::new(PAIRS);
    let folder = job.path("batches");
    let more = format!(
        "[teacher.batch]\nrequests = 25\nfolder = {:?}\n",
        folder.display().to_string()
    );
    let settings: LabelSettings = toml::from_str(&job.toml(&server.url, &more)).unwrap();
    assert_pending(&run(&settings).await, PAIRS);
    let inputs = files(&folder, ".input.jsonl");
    assert_eq!(inputs.len(), 2);
    // Not done yet: a run of vLLM's may still be at it.
    for input in &inputs {
        run_batch(input, 10);
    }
    assert_pending(&run(&settings).await, PAIRS);
    // One is done; the other will never be, says whoever removed its input.
    run_batch(&inputs[0], PAIRS);
    std::fs::remove_file(&inputs[1]).unwrap();
    let first = std::fs::read_to_string(inputs[0].to_string_lossy().replace(".input.", ".output."));
    let left = PAIRS - first.unwrap().lines().count() - 10;
    assert_pending(&run(&settings).await, left);
    let again = files(&folder, ".input.jsonl");
    assert_eq!(again.len(), 1);
    run_batch(&again[0], PAIRS);
    run(&settings).await.unwrap();
    assert_eq!(files(&folder, ".input.jsonl"), Vec::<PathBuf>::new());
    let ledger = Reader::open(&job.ledger()).unwrap();
    assert!(ledger.spent().unwrap().tokens > 0);
    assert_eq!(ledger.sent().unwrap(), [], "nothing left the machine");
    assert!(
        rows(&job.ledger())
            .iter()
            .all(|(_, outcome)| outcome == "ok")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_fails_the_preflight_is_sent_no_batch() {
    // It knows of no chat completions.
    let server = BatchServer::start(|_, requests| all_answered(requests));
    let (job, mut settings) = job(&server, "");
    settings.preflight = true;
    let error = run(&settings).await.unwrap_err();
    assert!(matches!(error, Error::Teacher { .. }), "{error}");
    assert_eq!(server.count(), 0);
    // Files are written without an endpoint.
    settings.teacher.batch.folder = Some(job.path("batches"));
    assert_pending(&run(&settings).await, PAIRS);
}
