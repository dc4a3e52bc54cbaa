//! Collections through the binary: imported, and candidates drawn from them.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{fail, retort, root, stderr, stdout, succeed};
use serde_json::Value;

#[test]
fn the_demos_candidates_are_those_that_are_committed() {
    let folder = tempfile::tempdir().unwrap();
    let shop = root().join("training-data/shop");
    for (split, mix) in [
        ("train", [10, 6, 4]),
        ("dev", [5, 3, 2]),
        ("test", [15, 10, 5]),
    ] {
        let out = folder.path().join(split);
        let mut command = candidates(&shop, &out);
        command.args(["--split", split]);
        for (option, count) in ["--bm25", "--trigrams", "--random"].iter().zip(mix) {
            command.arg(option).arg(count.to_string());
        }
        succeed(&mut command);
        let committed = shop.join(format!("candidates/{split}.jsonl"));
        assert!(
            std::fs::read(out).unwrap() == std::fs::read(committed).unwrap(),
            "{split}"
        );
    }
}

fn candidates(collection: &Path, out: &Path) -> Command {
    let mut command = retort();
    command
        .arg("candidates")
        .arg("--collection")
        .arg(collection);
    command.arg("--out").arg(out);
    command
}

/// `retort import trec` of files in a folder.
fn import(folder: &Path, out: &str) -> Command {
    let mut command = retort();
    command.args(["import", "trec", "--split", "test"]);
    for option in ["corpus", "topics", "qrels", "run"] {
        command.arg(format!("--{option}")).arg(folder.join(option));
    }
    command.arg("--out").arg(folder.join(out));
    command
}

#[test]
fn imported_runs_become_candidates_that_say_where_they_are_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let documents = (0..30).map(|number| format!("d{number}\tthe text of {number}\n"));
    std::fs::write(path.join("corpus"), documents.collect::<String>()).unwrap();
    std::fs::write(path.join("topics"), "<top>\n<num>1\n<title> 7\n</top>\n").unwrap();
    std::fs::write(path.join("qrels"), "1 0 d3 1\n1 0 nowhere 1\n").unwrap();
    let places = (0..30).map(|number| format!("1 Q0 d{number} {number} {} x\n", -number));
    std::fs::write(path.join("run"), places.collect::<String>()).unwrap();

    let said = fail(&mut import(path, "out"), 65);
    assert!(
        said.contains("qrels:2: names the document \"nowhere\""),
        "{said}"
    );
    assert!(!path.join("out").exists());

    let done = succeed(import(path, "out").args(["--on-bad-row", "skip", "--json"]));
    assert!(
        stderr(&done).contains("qrels:2: names the document"),
        "{}",
        stderr(&done)
    );
    let summary: Value = serde_json::from_str(&stdout(&done)).unwrap();
    assert_eq!(summary["imported"]["bad_rows"], 1);
    assert_eq!(summary["imported"]["documents"], 30);

    let out = path.join("candidates.jsonl");
    let mut command = candidates(&path.join("out"), &out);
    command.args(["--split", "test", "--exclude-positives", "--per-run", "6"]);
    command.arg("--run").arg(path.join("out/runs/run.tsv"));
    succeed(&mut command);
    let rows: Vec<Value> = std::fs::read_to_string(out)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(rows.iter().all(|row| row["document_id"] != "d3"));
    let of_run: Vec<&Value> = rows
        .iter()
        .filter(|row| row["source"] == "run:run")
        .collect();
    assert_eq!(of_run.len(), 6);
    for row in of_run {
        let rank = row["rank"].as_u64().unwrap();
        assert_eq!(row["document_id"], format!("d{}", rank - 1));
    }
}

#[test]
fn shares_of_candidates_may_be_as_large_as_they_like_and_not_all_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pairs.jsonl");
    let shop = root().join("training-data/shop");
    let most = usize::MAX.to_string();
    let mut none = candidates(&shop, &out);
    none.args([
        "--split",
        "dev",
        "--bm25",
        "0",
        "--trigrams",
        "0",
        "--random",
        "0",
    ]);
    let said = fail(&mut none, 78);
    assert!(said.contains("no pair was drawn: let --bm25"), "{said}");
    assert!(!out.exists());

    let small = folder.path().join("small");
    std::fs::create_dir_all(small.join("qrels")).unwrap();
    for (name, text) in [
        (
            "corpus.jsonl",
            "{\"_id\": \"a\", \"text\": \"drill\"}\n{\"_id\": \"b\", \"text\": \"saw\"}\n",
        ),
        ("queries.jsonl", "{\"_id\": \"q\", \"text\": \"drill\"}\n"),
        ("qrels/empty.tsv", "query-id\tcorpus-id\tscore\n"),
    ] {
        std::fs::write(small.join(name), text).unwrap();
    }
    let said = fail(candidates(&small, &out).args(["--split", "empty"]), 78);
    assert!(said.contains("--split: empty has no query"), "{said}");
    let mut all = candidates(&small, &out);
    all.args([
        "--bm25",
        &most,
        "--trigrams",
        &most,
        "--random",
        &most,
        "--per-run",
        &most,
    ]);
    succeed(&mut all);
    assert_eq!(std::fs::read_to_string(&out).unwrap().lines().count(), 2);
}
