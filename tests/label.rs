//! `retort label` against a scripted teacher on loopback, and the demo data it works on.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Teacher, completion, fail, retort, root, stderr, stdout, succeed};
use retort_data::label_set::{self, LabelSet};

/// `retort label` on the first pairs of the demo's dev candidates, without a preflight.
fn label(folder: &Path, teacher: &Teacher, pairs: usize) -> Command {
    let candidates = folder.join("candidates.jsonl");
    let all = std::fs::read_to_string(root().join("training-data/shop/candidates/dev.jsonl"));
    let part: String = all.unwrap().split_inclusive('\n').take(pairs).collect();
    std::fs::write(&candidates, part).unwrap();
    let mut command = retort();
    command.args(["label", "--config", "configs/label.toml"]);
    for (key, value) in [
        ("candidates", candidates.display().to_string()),
        ("ledger", folder.join("ledger.sqlite").display().to_string()),
        ("teacher.endpoints", format!("[{:?}]", teacher.url)),
        ("teacher.retries", "2".to_owned()),
        ("preflight", "false".to_owned()),
    ] {
        command.arg("--set").arg(format!("{key}={value}"));
    }
    command
}

/// Seals what the job has so far.
fn sealed(folder: &Path, name: &str) -> LabelSet {
    let mut command = retort();
    command.args(["labels", "seal"]);
    command.arg(folder.join("ledger.sqlite"));
    succeed(command.arg("--out").arg(folder.join(name)));
    label_set::read(&folder.join(name)).unwrap()
}

fn grades() -> String {
    completion(&[("3", 0.5), ("2", 0.3), ("1", 0.15), ("0", 0.05)])
}

#[test]
fn labels_every_pair_once_and_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Teacher::start(|_, _| (200, "", grades()));
    let said = stdout(&succeed(label(folder.path(), &teacher, 6).arg("--dry-run")));
    assert!(
        said.contains("6 would be asked of http://127.0.0.1") && said.contains("Search: "),
        "{said}"
    );
    assert_eq!(teacher.count(), 0);

    succeed(&mut label(folder.path(), &teacher, 6));
    let set = sealed(folder.path(), "six");
    assert_eq!(set.labels.len(), 6);
    assert!((set.labels[0].grade - (1.5 + 0.6 + 0.15)).abs() < 1e-5);
    assert!((set.labels[0].mass - 1.0).abs() < 1e-6);
    assert_eq!(set.manifest.top_grade, 3);

    // Six more candidates: the first six are not asked again.
    let said = stdout(&succeed(&mut label(folder.path(), &teacher, 12)));
    assert!(
        said.contains("12 questions, 6 answered before, 0 given up before, 6 asked now"),
        "{said}"
    );
    assert_eq!(teacher.count(), 12);
    assert_eq!(sealed(folder.path(), "twelve").labels.len(), 12);

    let mut status = retort();
    status
        .args(["labels", "status"])
        .arg(folder.path().join("ledger.sqlite"));
    let said = stdout(&succeed(&mut status));
    assert!(
        said.contains("12 ok")
            && said.contains("sent to 127.0.0.1:")
            && said.contains(": 12 requests, ")
            && said.contains("replaced before: nothing"),
        "{said}"
    );

    let request = teacher.requests.lock().unwrap()[0].clone();
    assert_eq!(request["max_tokens"], 1);
    assert_eq!(request["temperature"], 0.0);
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
fn an_answer_that_is_no_grade_leaves_the_pair_without_a_label() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Teacher::start(|number, _| match number {
        // The first pair, and once more.
        0 | 1 => (200, "", completion(&[("Sure", 0.9), ("3", 0.1)])),
        _ => (200, "", grades()),
    });
    let one_by_one = |again: &[&str]| {
        let mut command = label(folder.path(), &teacher, 4);
        command.args(["--set", "teacher.concurrency=1"]).args(again);
        command
    };
    let said = fail(&mut one_by_one(&[]), 1);
    assert!(
        said.contains("1 of 4 questions got no judgement (the last: unparsable")
            && said.contains("Sure"),
        "{said}"
    );
    assert_eq!(sealed(folder.path(), "three").labels.len(), 3);

    // A set of named pairs is whole or not at all.
    let mut seal = retort();
    seal.args(["labels", "seal"])
        .arg(folder.path().join("ledger.sqlite"));
    seal.arg("--out").arg(folder.path().join("four"));
    seal.arg("--candidates")
        .arg(folder.path().join("candidates.jsonl"));
    let said = fail(&mut seal, 65);
    assert!(
        said.contains("has no judgement of 1 of the pairs"),
        "{said}"
    );
    assert!(!folder.path().join("four").exists());

    succeed(&mut one_by_one(&[]));
    assert_eq!(teacher.count(), 5);
    succeed(&mut one_by_one(&["--again"]));
    succeed(&mut seal);
    assert_eq!(
        label_set::read(&folder.path().join("four"))
            .unwrap()
            .labels
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
        "teacher.endpoints=[\"http://127.0.0.1:9/v1\"]",
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
fn an_answer_that_is_no_single_token_is_a_setting_out_of_range() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Teacher::start(|_, _| {
        let tokens = r#"{"tokens": [9, 4], "count": 2, "max_model_len": 4096}"#;
        (200, "", tokens.to_owned())
    });
    let mut command = label(folder.path(), &teacher, 4);
    command.args(["--set", "teacher.dialect=generative-scoring"]);
    command.args(["--set", "prompt=prompts/yes-no.toml"]);
    let said = fail(&mut command, 78);
    assert!(
        said.contains("\"no\"") && said.contains("must be one token"),
        "{said}"
    );
    assert!(!folder.path().join("ledger.sqlite").exists());
}

#[test]
fn the_status_of_comparisons_tells_their_position_bias() {
    let folder = tempfile::tempdir().unwrap();
    // It prefers the first, whatever it is shown.
    let teacher = Teacher::start(|_, _| (200, "", completion(&[("A", 0.8), ("B", 0.2)])));
    let mut command = label(folder.path(), &teacher, 10);
    command.args(["--set", "prompt=prompts/shop-pairwise.toml"]);
    succeed(&mut command);
    let mut status = retort();
    status
        .args(["labels", "status"])
        .arg(folder.path().join("ledger.sqlite"));
    let said = stdout(&succeed(&mut status));
    assert!(
        said.contains("80.0 % for the document shown first") && said.contains("100.0 % came out"),
        "{said}"
    );
    // So it tells nothing apart.
    let set = sealed(folder.path(), "set");
    assert!(set.labels.len() == 10);
    assert!((set.labels.iter()).all(|label| (label.grade - 0.5).abs() < 1e-9));
}

#[test]
fn judgements_made_elsewhere_are_imported_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Teacher::start(|_, _| (200, "", grades()));
    drop(label(folder.path(), &teacher, 2));
    let candidates = std::fs::read_to_string(folder.path().join("candidates.jsonl")).unwrap();
    let rows = |second: &str| {
        let mut rows = String::new();
        for (candidate, probabilities) in candidates.lines().zip(["[0.1,0.2,0.3,0.4]", second]) {
            let candidate: serde_json::Value = serde_json::from_str(candidate).unwrap();
            let (query, document) = (&candidate["query_id"], &candidate["document_id"]);
            let row = [
                "{\"query_id\":",
                &query.to_string(),
                ",\"document_id\":",
                &document.to_string(),
                ",\"probabilities\":",
                probabilities,
                "}\n",
            ];
            rows += &row.concat();
        }
        std::fs::write(folder.path().join("made.jsonl"), rows).unwrap();
    };
    let mut import = retort();
    import
        .args(["labels", "import"])
        .arg(folder.path().join("made.jsonl"));
    import.arg("--set").arg(format!(
        "ledger={}",
        folder.path().join("ledger.sqlite").display()
    ));
    rows("[0.1,0.2,0.3]");
    let said = fail(&mut import, 65);
    assert!(said.contains("made.jsonl:2: has 3 probabilities"), "{said}");
    assert!(!folder.path().join("ledger.sqlite").exists());
    rows("[0,0,0,1]");
    let said = stdout(&succeed(&mut import));
    assert!(said.contains("2 judgements imported"), "{said}");
    let set = sealed(folder.path(), "set");
    assert!((set.labels.iter().map(|label| label.grade).sum::<f64>() - 5.0).abs() < 1e-9);
    // They are answers to the same questions: nothing is left to ask.
    succeed(&mut label(folder.path(), &teacher, 2));
    assert_eq!(teacher.count(), 0);
}

#[test]
fn shards_are_merged_and_what_is_exported_can_be_imported() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let teacher = Teacher::start(|number, _| match number {
        0 | 1 => (200, "", completion(&[("Sure", 0.9), ("3", 0.1)])),
        _ => (200, "", grades()),
    });
    let labels = |arguments: &[&str], ledger: &str| {
        let mut command = retort();
        command.arg("labels").args(arguments).arg(path(ledger));
        command
    };
    // Two queries of the demo's dev split, which fall to different parts.
    for part in ["0/2", "1/2"] {
        let mut command = label(folder.path(), &teacher, 20);
        command.args(["--shard", part, "--set", "teacher.concurrency=1"]);
        let _ = command.output().unwrap();
    }
    assert_eq!(teacher.count(), 21);
    let mut merge = labels(&["merge", "--into"], "ledger.sqlite");
    merge.args([path("ledger-0-of-2.sqlite"), path("ledger-1-of-2.sqlite")]);
    let said = stdout(&succeed(&mut merge));
    assert!(
        said.contains("20 new judgements, 21 new requests"),
        "{said}"
    );
    let said = stdout(&succeed(&mut merge));
    assert!(said.contains("0 new judgements, 0 new requests"), "{said}");

    let export = |ledger: &str, format: &str| {
        let mut export = labels(&["export", "--format", format], ledger);
        stdout(&succeed(&mut export))
    };
    let exported = export("ledger.sqlite", "jsonl");
    assert_eq!(exported.lines().count(), 20);
    let row: serde_json::Value = serde_json::from_str(exported.lines().last().unwrap()).unwrap();
    assert_eq!(row["outcome"], "ok", "{row}");
    assert!(
        (row["grade"].as_f64().unwrap() - 2.25).abs() < 1e-5,
        "{row}"
    );
    assert_eq!(row["probabilities"].as_array().unwrap().len(), 4);
    assert_eq!(exported.matches("\"outcome\":\"unparsable\"").count(), 1);

    let mut to_file = labels(&["export", "--out"], "exported.jsonl");
    succeed(to_file.arg(path("ledger.sqlite")));
    assert_eq!(
        std::fs::read_to_string(path("exported.jsonl")).unwrap(),
        exported
    );
    let mut import = labels(&["import"], "exported.jsonl");
    let copy = format!("ledger={}", path("copy.sqlite").display());
    succeed(import.args(["--set", &copy]));
    assert_eq!(export("copy.sqlite", "jsonl"), exported);

    let csv = export("ledger.sqlite", "csv");
    assert_eq!(csv.lines().count(), 21);
    assert!(
        csv.starts_with("query_id,document_id,document_ids,sample,outcome,grade,"),
        "{csv}"
    );
    assert!(csv.contains(",,0,ok,2.2"), "{csv}");
    assert!(
        csv.contains(",,0,unparsable,,,,,,,\"the grades [\"\"0\"\", "),
        "{csv}"
    );
    let qrels = export("ledger.sqlite", "trec-qrels");
    assert_eq!(qrels.lines().count(), 19);
    for line in qrels.lines() {
        let columns: Vec<&str> = line.split(' ').collect();
        assert!(matches!(columns[..], [_, "0", _, "2"]), "{line}");
    }
}

#[test]
fn a_shard_that_no_query_falls_to_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Teacher::start(|_, _| (500, "", String::new()));
    let is_told = |part: &str| {
        let mut command = label(folder.path(), &teacher, 1);
        let output = succeed(command.args(["--shard", part, "--dry-run"]));
        stderr(&output).contains(&format!("no query falls to shard {part}"))
    };
    let told = ["0/2", "1/2"].into_iter().filter(|part| is_told(part));
    assert_eq!(told.count(), 1);
}

#[test]
fn batches_in_files_are_pending_until_their_outputs_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Teacher::start(|_, _| (500, "", String::new()));
    let batches = folder.path().join("batches");
    let of_folder = format!("teacher.batch.folder={}", batches.display());
    let batch = || {
        let mut command = label(folder.path(), &teacher, 6);
        command.args(["--batch", "--set", &of_folder]);
        command
    };
    let said = fail(&mut batch(), 75);
    assert!(said.contains("6 questions are with the teacher"), "{said}");
    let mut status = retort();
    status.args(["labels", "status"]);
    let said = stdout(&succeed(status.arg(folder.path().join("ledger.sqlite"))));
    assert!(said.contains("is out: 6 questions"), "{said}");
    let most = said.split("up to ").nth(1).unwrap();
    let most: u64 = most.split(' ').next().unwrap().parse().unwrap();
    assert!(
        most > 100 && said.contains(" are set aside for it"),
        "{said}"
    );
    fail(&mut label(folder.path(), &teacher, 6), 75);

    let inputs = std::fs::read_dir(&batches).unwrap();
    let inputs: Vec<_> = inputs.map(|entry| entry.unwrap().path()).collect();
    let reply: serde_json::Value = serde_json::from_str(&grades()).unwrap();
    let mut output = String::new();
    for line in std::fs::read_to_string(&inputs[0]).unwrap().lines() {
        let request: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(request["url"], "/v1/chat/completions");
        let response = serde_json::json!({"status_code": 200, "body": reply});
        let line = serde_json::json!({
            "custom_id": request["custom_id"], "response": response, "error": null,
        });
        output += &line.to_string();
        output += "\n";
    }
    let path = inputs[0].display().to_string();
    std::fs::write(path.replace(".input.", ".output."), output).unwrap();
    let said = stdout(&succeed(&mut batch()));
    assert!(said.contains("6 asked now"), "{said}");
    // Nothing left, and nothing was in flight.
    let said = stdout(&succeed(&mut status));
    assert!(
        !said.contains("sent to") && !said.contains("in flight"),
        "{said}"
    );
    assert_eq!(sealed(folder.path(), "six").labels.len(), 6);
    assert_eq!(teacher.count(), 0);
}

#[cfg(unix)]
#[test]
fn a_signal_is_heeded_while_a_filter_has_the_texts() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Teacher::start(|_, _| (200, "", grades()));
    let began = folder.path().join("began");
    // What the command started itself holds its output open.
    let script = format!(
        "sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait",
        began.display()
    );
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let mut command = label(folder.path(), &teacher, 2);
        let redaction = format!("redaction.command=['sh', '-c', {script:?}]");
        command.args(["--set", &redaction]).stderr(Stdio::null());
        let mut job = command.spawn().unwrap();
        for _ in 0..6000 {
            if began.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let left = std::fs::read_to_string(&began).unwrap();
        std::fs::remove_file(&began).unwrap();
        let kill = |arguments: &[&str]| Command::new("kill").args(arguments).status().unwrap();
        assert!(kill(&[&format!("-{signal}"), &job.id().to_string()]).success());
        assert_eq!(job.wait().unwrap().code(), Some(code), "{signal}");
        assert!(kill(&[left.trim()]).success());
    }
    assert_eq!(teacher.count(), 0);
    assert!(!folder.path().join("ledger.sqlite").exists());
}

/// Rounds of SIGKILL; more by `RETORT_KILL_ROUNDS=200 cargo nextest run kills`.
#[test]
fn kills_lose_nothing_and_cost_no_more_than_was_in_flight() {
    let rounds: usize = std::env::var("RETORT_KILL_ROUNDS").map_or(20, |n| n.parse().unwrap());
    let concurrency = 4;
    let folder = tempfile::tempdir().unwrap();
    let pairs = (rounds * 25).min(6000);
    let candidates = folder.path().join("candidates.jsonl");
    let all = std::fs::read_to_string(root().join("training-data/shop/candidates/train.jsonl"));
    let part: String = all.unwrap().split_inclusive('\n').take(pairs).collect();
    std::fs::write(&candidates, part).unwrap();
    // What a pair is answered depends on the pair alone.
    let teacher = Teacher::start(|_, body| {
        std::thread::sleep(Duration::from_millis(15));
        let length = body["messages"].to_string().len() as f64;
        let p = 0.05 + 0.9 * (length % 89.0) / 89.0;
        (200, "", completion(&[("3", p), ("0", 1.0 - p)]))
    });
    let label = |ledger: &str| {
        let mut command = retort();
        command.args(["label", "--config", "configs/label.toml"]);
        for setting in [
            format!("candidates={}", candidates.display()),
            format!("ledger={}", folder.path().join(ledger).display()),
            format!("teacher.endpoints=[{:?}]", teacher.url),
            format!("teacher.concurrency={concurrency}"),
            "preflight=false".to_owned(),
        ] {
            command.arg("--set").arg(setting);
        }
        command.stderr(Stdio::null()).stdout(Stdio::null());
        command
    };
    let answers = |ledger: &str| -> BTreeMap<Vec<u8>, String> {
        let path = folder.path().join(ledger);
        let Ok(db) = rusqlite::Connection::open(path) else {
            return BTreeMap::new();
        };
        let Ok(mut select) = db.prepare("SELECT key, answer FROM judgement WHERE outcome = 'ok'")
        else {
            return BTreeMap::new();
        };
        let rows = select
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        rows.map(Result::unwrap).collect()
    };

    let mut before = BTreeMap::new();
    let mut kills = 0;
    for round in 0..rounds {
        let asked_before = teacher.count();
        let mut child = label("killed.sqlite").spawn().unwrap();
        // From before the ledger is open to well into the work; 37 and 251 share no factor.
        let patience = Duration::from_millis(20 + (round as u64 * 37) % 251);
        let started = Instant::now();
        while started.elapsed() < patience && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if child.try_wait().unwrap().is_none() {
            kills += 1;
            child.kill().unwrap();
        }
        child.wait().unwrap();
        // What the killed process had sent may still arrive, and is a call of this round.
        let mut arrived = usize::MAX;
        while arrived != teacher.count() {
            arrived = teacher.count();
            std::thread::sleep(Duration::from_millis(50));
        }
        let now = answers("killed.sqlite");
        for (key, answer) in &before {
            assert_eq!(
                now.get(key),
                Some(answer),
                "a row was lost in round {round}"
            );
        }
        let (asked, kept) = (teacher.count() - asked_before, now.len() - before.len());
        assert!(
            asked <= kept + concurrency,
            "round {round}: {asked} calls for {kept} rows"
        );
        before = now;
    }
    assert!(kills > rounds / 2, "{kills} kills");
    assert!(
        before.len() > rounds,
        "only {} rows were written between kills",
        before.len()
    );
    assert!(label("killed.sqlite").status().unwrap().success());
    let asked = teacher.count();
    assert!(label("whole.sqlite").status().unwrap().success());
    let whole = answers("whole.sqlite");
    assert_eq!(whole.len(), pairs);
    assert!(whole == answers("killed.sqlite"), "the sets differ");
    assert!(asked <= pairs + kills * concurrency, "{asked} calls");
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
        match split {
            // Half as many, for dev is ranked again and again while training.
            "dev" => draw.args(["--bm25", "5", "--trigrams", "3", "--random", "2"]),
            "test" => draw.args(["--bm25", "15", "--trigrams", "10", "--random", "5"]),
            _ => &mut draw,
        };
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
    for split in ["train", "test"] {
        let labels = label_set::read(&shop.join("labels").join(split)).unwrap();
        let candidates = shop.join(format!("candidates/{split}.jsonl"));
        let candidates = retort_data::candidates::read(&candidates).unwrap();
        let mut judged: Vec<_> = (labels.labels.into_iter())
            .map(|label| (label.query_id, label.document_id))
            .collect();
        let mut drawn: Vec<_> = (candidates.into_iter())
            .map(|candidate| (candidate.query_id, candidate.document_id))
            .collect();
        judged.sort();
        drawn.sort();
        assert!(
            judged == drawn,
            "{split}: {} judged, {} drawn",
            judged.len(),
            drawn.len()
        );
    }
}

#[test]
fn a_log_has_a_line_for_each_hundred_pairs_however_many_end_at_once_and_no_colours() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Teacher::start(|_, body| {
        let count = body["texts"].as_array().unwrap().len();
        let scores: Vec<_> = (0..count)
            .map(|index| serde_json::json!({"index": index, "score": 0.5}))
            .collect();
        (200, "", serde_json::json!(scores).to_string())
    });
    let mut command = label(folder.path(), &teacher, 250);
    for setting in [
        "teacher.dialect=tei",
        "teacher.concurrency=1",
        "teacher.documents_per_request=10",
    ] {
        command.args(["--set", setting]);
    }
    // Ten a query, five of the first: no request ends on a hundred.
    let candidates = folder.path().join("candidates.jsonl");
    let all = std::fs::read_to_string(&candidates).unwrap();
    let part: String = all.split_inclusive('\n').skip(5).collect();
    std::fs::write(&candidates, part).unwrap();
    let said = stderr(&succeed(&mut command));
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("pair ")).collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(lines[2].contains("pair 245/245"), "{said}");
    assert!(!said.contains('\u{1b}'), "{said}");
}
