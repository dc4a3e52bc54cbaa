//! Batches that are not where they were left: nothing is taken for lost that may come back, and what
//! is lost stands in nobody's way.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::path::{Path, PathBuf};

use common::batches::{BatchServer, End, PAIRS, answered, assert_pending, run};
use common::{Job, rows};
use retort_label::ledger::Reader;
use retort_label::{Error, LabelSettings};

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
