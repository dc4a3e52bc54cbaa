//! `retort label` against a scripted teacher on loopback, and the demo data it works on.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Teacher, completion, fail, retort, root, stdout, succeed};
use retort_data::judgement;

/// `retort label` on the first pairs of the demo's dev candidates.
fn label(folder: &Path, teacher: &Teacher, pairs: usize) -> Command {
    let candidates = folder.join("candidates.jsonl");
    let all = std::fs::read_to_string(root().join("training-data/shop/candidates/dev.jsonl"));
    let part: String = all.unwrap().split_inclusive('\n').take(pairs).collect();
    std::fs::write(&candidates, part).unwrap();
    let mut command = retort();
    command.args(["label", "--config", "configs/label.toml"]);
    for (key, value) in [
        ("candidates", candidates.display().to_string()),
        ("out", folder.join("labels.jsonl").display().to_string()),
        ("teacher.endpoint", teacher.url.clone()),
        ("teacher.retries", "2".to_owned()),
    ] {
        command.arg("--set").arg(format!("{key}={value}"));
    }
    command
}

fn grades() -> String {
    completion(&[("3", 0.5), ("2", 0.3), ("1", 0.15), ("0", 0.05)])
}

#[test]
fn labels_every_pair_once_and_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Teacher::start(|_, _| (200, "", grades()));
    succeed(&mut label(folder.path(), &teacher, 6));
    let labels = judgement::read(&folder.path().join("labels.jsonl")).unwrap();
    assert_eq!(labels.len(), 6);
    assert!((labels[0].grade - (1.5 + 0.6 + 0.15)).abs() < 1e-6);
    assert!((labels[0].mass - 1.0).abs() < 1e-6);

    // Six more candidates: the first six are not asked again.
    let said = stdout(&succeed(&mut label(folder.path(), &teacher, 12)));
    assert!(said.contains("12 pairs, 6 judged before, 6 now"), "{said}");
    assert_eq!(teacher.count(), 12);

    let request = teacher.requests.lock().unwrap()[0].clone();
    assert_eq!(request["max_tokens"], 1);
    assert_eq!(request["temperature"], 0);
    assert_eq!(request["logprobs"], true);
    let messages = request["messages"].as_array().unwrap();
    assert_eq!(messages[0]["role"], "system");
    assert!(
        messages.last().unwrap()["content"]
            .as_str()
            .unwrap()
            .contains("Search: ")
    );
}

#[test]
fn failures_that_pass_are_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Teacher::start(|number, _| match number {
        0 => (
            429,
            "retry-after-ms: 20\r\n",
            "{\"error\":\"slow down\"}".to_owned(),
        ),
        1 => (503, "", "busy".to_owned()),
        2 => (200, "", "<html>".to_owned()),
        _ => (200, "", grades()),
    });
    succeed(&mut label(folder.path(), &teacher, 4));
    assert_eq!(teacher.count(), 7);
    assert_eq!(
        judgement::read(&folder.path().join("labels.jsonl"))
            .unwrap()
            .len(),
        4
    );
}

#[test]
fn an_answer_that_is_no_grade_leaves_the_pair_unlabelled() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Teacher::start(|number, _| match number {
        1 => (200, "", completion(&[("Sure", 0.9), ("3", 0.1)])),
        _ => (200, "", grades()),
    });
    let said = fail(&mut label(folder.path(), &teacher, 4), 75);
    assert!(
        said.contains("1 of 4 pairs stayed unlabelled") && said.contains("Sure"),
        "{said}"
    );
    assert_eq!(
        judgement::read(&folder.path().join("labels.jsonl"))
            .unwrap()
            .len(),
        3
    );
    succeed(&mut label(folder.path(), &teacher, 4));
    assert_eq!(
        judgement::read(&folder.path().join("labels.jsonl"))
            .unwrap()
            .len(),
        4
    );
}

#[test]
fn a_refused_key_and_a_wrong_request_stop_at_once() {
    for (status, code) in [(401, 77), (404, 69)] {
        let folder = tempfile::tempdir().unwrap();
        let teacher = Teacher::start(move |_, _| (status, "", "no such thing".to_owned()));
        let said = fail(&mut label(folder.path(), &teacher, 20), code);
        assert!(said.contains("no such thing"), "{said}");
        assert!(teacher.count() <= 4, "{} requests", teacher.count());
    }
}

#[test]
fn a_teacher_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Teacher::start(|_, _| (200, "", grades()));
    let mut command = label(folder.path(), &teacher, 1);
    command.args([
        "--set",
        "teacher.endpoint=http://127.0.0.1:9/v1",
        "--set",
        "teacher.retries=0",
    ]);
    let said = fail(&mut command, 75);
    assert!(
        said.contains("127.0.0.1:9") && said.contains("refused"),
        "{said}"
    );
}

#[test]
fn the_committed_shop_is_what_the_generator_makes() {
    let folder = tempfile::tempdir().unwrap();
    let made = folder.path().join("shop");
    succeed(retort().args(["generate", "shop", "--out"]).arg(&made));
    let committed = root().join("training-data/shop");
    for split in ["train", "dev", "test"] {
        let mut draw = retort();
        draw.arg("candidates")
            .arg("--collection")
            .arg(&made)
            .args(["--split", split]);
        if split == "dev" {
            // Half as many, for dev is ranked again and again while training.
            draw.args(["--bm25", "5", "--trigrams", "3", "--random", "2"]);
        }
        succeed(
            draw.arg("--out")
                .arg(made.join(format!("candidates/{split}.jsonl"))),
        );
    }
    for name in [
        "corpus.jsonl",
        "queries.jsonl",
        "qrels/train.tsv",
        "qrels/dev.tsv",
        "qrels/test.tsv",
        "candidates/train.jsonl",
        "candidates/dev.jsonl",
        "candidates/test.jsonl",
    ] {
        let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
        assert!(read(&made) == read(&committed), "{name} differs");
    }
}

#[test]
fn the_committed_labels_are_of_the_candidates() {
    let shop = root().join("training-data/shop");
    for (split, least) in [("train", 6000), ("test", 1)] {
        let labels = judgement::read(&shop.join(format!("labels/{split}.jsonl"))).unwrap();
        let candidates =
            retort_data::candidates::read(&shop.join(format!("candidates/{split}.jsonl"))).unwrap();
        assert!(labels.len() >= least, "{split}: {}", labels.len());
        for label in labels {
            let judged = |candidate: &retort_data::candidates::Candidate| {
                candidate.query_id == label.query_id && candidate.document_id == label.document_id
            };
            assert!(candidates.iter().any(judged), "{label:?}");
        }
    }
}
