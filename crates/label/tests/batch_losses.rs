//! Batches that are not where they were left: nothing is taken for lost that may come back, and what
//! is lost stands in nobody's way.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::path::{Path, PathBuf};

use common::batches::{
    ANTHROPIC, BatchServer, End, PAIRS, all_answered, answered, asked_again, assert_pending, job,
    lines, of_messages, run, run_until_done,
};
use common::{Job, rows};
use retort_label::ledger::Reader;
use retort_label::{Error, LabelSettings};
use serde_json::json;

/// What `vllm run-batch` makes of all inputs in a folder.
fn run_batches(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let input = entry.unwrap().path();
        let text = std::fs::read_to_string(&input).unwrap();
        let lines = text.lines();
        let lines = lines.map(|line| answered(&serde_json::from_str(line).unwrap()) + "\n");
        let output = input.to_string_lossy().replace(".input.", ".output.");
        std::fs::write(output, lines.collect::<String>()).unwrap();
    }
}

/// A job whose batches are files in the folder, 20 questions each.
fn job_of_files(server: &BatchServer) -> (Job, LabelSettings, PathBuf) {
    let job = Job::new(PAIRS);
    let folder = job.path("batches");
    let shown = folder.display().to_string();
    let more = format!("[teacher.batch]\nrequests = 20\nfolder = {shown:?}\n");
    let settings = toml::from_str(&job.toml(&server.url, &more)).unwrap();
    (job, settings, folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_away_takes_no_batch_with_it() {
    let server = BatchServer::start(|_, _| -> End { panic!("nothing is sent") });
    let (job, settings, folder) = job_of_files(&server);
    assert_pending(&run(&settings).await, PAIRS);
    std::fs::rename(&folder, job.path("elsewhere")).unwrap();
    let assert_away = |error: Error| {
        assert!(
            matches!(&error, Error::File { path, .. } if *path == folder),
            "{error}"
        );
        assert_eq!(rows(&job.ledger()), []);
    };
    assert_away(run(&settings).await.unwrap_err());
    // Where nothing is mounted, there may be a folder all the same.
    std::fs::create_dir(&folder).unwrap();
    assert_away(run(&settings).await.unwrap_err());
    std::fs::write(folder.join("of-something-else"), "").unwrap();
    assert_away(run(&settings).await.unwrap_err());
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::rename(job.path("elsewhere"), &folder).unwrap();
    run_batches(&folder);
    run(&settings).await.unwrap();
    let answers = rows(&job.ledger());
    assert!(answers.iter().all(|(_, outcome)| outcome == "ok"));
    assert_eq!(answers.len(), PAIRS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_away_holds_up_no_other_and_is_given_up_by_an_empty_output() {
    let server = BatchServer::start(|_, _| -> End { panic!("nothing is sent") });
    let (job, settings, folder) = job_of_files(&server);
    assert_pending(&run(&settings).await, PAIRS);
    let open = Reader::open(&job.ledger()).unwrap().open_batches().unwrap();
    let file = |kind: &str| folder.join(format!("{}.{kind}.jsonl", open[0].name));
    std::fs::remove_file(file("input")).unwrap();
    run_batches(&folder);
    let error = run(&settings).await.unwrap_err();
    assert!(error.to_string().contains(&open[0].name), "{error}");
    assert_eq!(rows(&job.ledger()).len(), PAIRS - 20);
    std::fs::write(file("output"), "").unwrap();
    let error = run(&settings).await.unwrap_err();
    assert!(
        matches!(error, Error::Unlabelled { passing: true, .. }),
        "{error}"
    );
    assert_pending(&run(&settings).await, 20);
}

/// Makes a day of the time that batches were not found for.
fn let_a_day_pass(ledger: &Path) {
    let db = rusqlite::Connection::open(ledger).unwrap();
    let sql = "UPDATE batch SET missing_at = '2026-01-01T00:00:00Z' WHERE missing_at IS NOT NULL";
    assert_eq!(db.execute(sql, []).unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_not_found_holds_up_no_other_and_is_lost_after_a_day() {
    for (dialect, path) in [
        ("", "batches/batch_0"),
        (ANTHROPIC, "messages/batches/batch_0"),
    ] {
        let of_chat = dialect.is_empty();
        let server = BatchServer::start(move |_, requests| {
            if of_chat {
                all_answered(requests)
            } else {
                of_messages(1, requests)
            }
        });
        let priced = "[teacher.price]\ninput = 3.0\noutput = 15.0\n";
        let more = format!("{dialect}{priced}[teacher.batch]\nrequests = 8\n");
        let (job, settings) = job(&server, &more);
        assert_pending(&run(&settings).await, PAIRS);
        // It is found again in time.
        server.lose(&[path]);
        assert_pending(&run(&settings).await, PAIRS);
        let_a_day_pass(&job.ledger());
        server.lose(&[]);
        assert_pending(&run(&settings).await, PAIRS);

        server.lose(&[path]);
        server.end();
        assert_pending(&run(&settings).await, 8);
        assert_eq!(rows(&job.ledger()).len(), PAIRS - 8);
        assert_pending(&run(&settings).await, 8);
        let spent = || Reader::open(&job.ledger()).unwrap().spent().unwrap().micros;
        let most = || {
            let db = rusqlite::Connection::open(job.ledger()).unwrap();
            let sql = "SELECT sum(most_micros) FROM batch WHERE ended_at IS NULL";
            db.query_row(sql, [], |row| row.get::<_, u64>(0)).unwrap()
        };
        let at_worst = spent() + most();
        let_a_day_pass(&job.ledger());
        let error = run(&settings).await.unwrap_err();
        assert!(
            matches!(error, Error::Unlabelled { passing: true, .. }),
            "{error}"
        );
        assert_eq!(spent(), at_worst);
        run_until_done(&settings).await.unwrap();
        let answers = rows(&job.ledger());
        assert!(answers.iter().all(|(_, outcome)| outcome == "ok"));
        assert_eq!(server.asked(), asked_again(|document| document < 8));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_that_are_not_found_are_waited_for_a_day_then_booked_and_asked_for_again() {
    for lost in [false, true] {
        let server = BatchServer::start(|_, requests| End {
            status: "expired",
            output: lines(&requests[..30], |_, one| answered(one)),
            errors: lines(&requests[30..], |_, one| {
                let error = json!({"code": "batch_expired"});
                json!({"custom_id": one["custom_id"], "error": error}).to_string()
            }),
        });
        let (job, settings) = job(&server, "[teacher.price]\ninput = 3.0\noutput = 15.0\n");
        run(&settings).await.unwrap_err();
        let worst = |condition: &str| {
            let db = rusqlite::Connection::open(job.ledger()).unwrap();
            let sum = "sum(3 * input_tokens + 15 * output_tokens)";
            let sql = format!("SELECT {sum} FROM batch_question WHERE {condition}");
            db.query_row(&sql, [], |row| row.get::<_, u64>(0)).unwrap()
        };
        let of_first = worst("CAST(substr(document_ids, 4) AS INTEGER) < 30");
        assert!(of_first < worst("true"));
        server.end();
        server.lose(&["files/output-0/content"]);
        assert_pending(&run(&settings).await, PAIRS);
        assert_eq!(rows(&job.ledger()), []);
        if lost {
            let_a_day_pass(&job.ledger());
            let error = run(&settings).await.unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::Unlabelled {
                        failed: PAIRS,
                        passing: true,
                        ..
                    }
                ),
                "{error}"
            );
        } else {
            server.lose(&[]);
            assert_pending(&run(&settings).await, PAIRS - 30);
        }
        // What was not run costs nothing, be the replies lost or not.
        let spent = Reader::open(&job.ledger()).unwrap().spent().unwrap().micros;
        let expected = if lost { of_first } else { 30 * (3 * 40 + 15) };
        assert_eq!(spent, expected);
    }
}
