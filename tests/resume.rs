//! Runs that were stopped and go on, through the binary, on a two-layer BERT.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{SmallJob, fail, retort, stdout, succeed};
use retort_data::label_set;
use serde_json::{Value, json};

/// Killed both within a checkpoint's interval and right after one, maybe while one is written.
#[test]
fn a_killed_run_that_is_resumed_ends_as_an_uninterrupted_one() {
    // With dropout one thread makes a step, without it all cores do; in f16 the loss has a scale.
    for setting in [
        "model.dropout=0.1",
        "model.dropout=0.0",
        "model.precision=f16",
    ] {
        let job = SmallJob::new();
        let train = |run: &str| {
            let mut command = job.train(run);
            command.args(["--set", setting]);
            command
        };
        succeed(&mut train("whole"));
        let metrics = |run: &str| {
            let text = std::fs::read_to_string(job.path(run).join("metrics.jsonl"));
            text.unwrap_or_default()
        };
        let steps = |run: &str| metrics(run).matches("\"loss\"").count();
        let all = steps("whole");
        assert!(all > 15, "{all} steps");

        let mut child = quiet(&mut train("killed"));
        let mut kept = Vec::new();
        for kill_after in [3, 10, 12] {
            let patience = Instant::now();
            while steps("killed") < kill_after {
                assert!(
                    patience.elapsed() < Duration::from_mins(5),
                    "no step {kill_after}"
                );
                assert!(
                    child.try_wait().unwrap().is_none(),
                    "ended before it was killed"
                );
                std::thread::sleep(Duration::from_millis(1));
            }
            child.kill().unwrap();
            child.wait().unwrap();
            let last = last_checkpoint(&job.path("killed"));
            assert!(kill_after < 10 || last > 0, "no checkpoint");
            kept.push(lines_up_to(&metrics("killed"), last));
            child = quiet(&mut resume(&job.path("killed")));
        }
        assert!(child.wait().unwrap().success());

        assert_eq!(steps("killed"), all);
        // What was made before a kill is not made again: each line has the time its step took.
        for kept in kept {
            assert!(metrics("killed").starts_with(&kept), "{kept}");
        }
        assert_same_end(&job.path("whole"), &job.path("killed"));
    }
}

/// Rounds of SIGKILL; more by `RETORT_KILL_ROUNDS=200 cargo nextest run kills_change`.
#[test]
fn kills_change_nothing_with_everything_on_that_has_a_state() {
    let rounds: usize = std::env::var("RETORT_KILL_ROUNDS").map_or(20, |n| n.parse().unwrap());
    let job = SmallJob::new();
    let train = |run: &str| {
        let mut command = job.train(run);
        for setting in [
            format!("schedule.epochs={}", rounds.max(4)),
            "schedule.accumulate=2".to_owned(),
            "schedule.decay=cosine".to_owned(),
            "optimizer.ema=0.9".to_owned(),
            "optimizer.layer_decay=0.8".to_owned(),
            "optimizer.head_factor=3.0".to_owned(),
            format!("evaluation.patience={}", 10 * rounds),
            "evaluation.keep=2".to_owned(),
        ] {
            command.args(["--set", &setting]);
        }
        command
    };
    succeed(&mut train("whole"));
    let killed = job.path("killed");
    let steps = || {
        let metrics = std::fs::read_to_string(killed.join("metrics.jsonl"));
        metrics.unwrap_or_default().matches("\"loss\"").count()
    };
    let mut chance = 1_u64;
    let mut draw = |below: u64| {
        // Knuth's generator: its high bits are random enough.
        chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (chance >> 33) % below
    };
    let mut kills = 0;
    for _ in 0..rounds {
        let mut child = quiet(&mut if killed.exists() {
            resume(&killed)
        } else {
            train("killed")
        });
        // As many steps as the last process had made, checkpoint or not, or some more.
        let target = steps() + usize::try_from(draw(7)).unwrap();
        let patience = Instant::now();
        while steps() < target && child.try_wait().unwrap().is_none() {
            assert!(patience.elapsed() < Duration::from_mins(5), "no {target}");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(draw(20)));
        if child.try_wait().unwrap().is_none() {
            kills += 1;
            child.kill().unwrap();
        }
        child.wait().unwrap();
    }
    assert!(kills > rounds / 2, "{kills} kills");
    succeed(&mut resume(&killed));
    assert_same_end(&job.path("whole"), &killed);
    let last = format!("{:06}", last_checkpoint(&killed));
    assert!(
        killed
            .join("steps")
            .join(last)
            .join("unaveraged.safetensors")
            .exists()
    );
}

#[test]
fn a_run_goes_on_with_something_else_only_where_that_is_allowed_by_name() {
    let job = SmallJob::new();
    succeed(&mut job.train("run"));
    let run = job.path("run");
    let steps = || last_checkpoint(&run);
    let before = steps();
    let longer = |more: &[&str]| {
        let mut command = resume(&run);
        command.args([
            "--set",
            "schedule.epochs=3",
            "--set",
            "evaluation.every_steps=4",
        ]);
        command.args(more);
        command
    };
    let said = fail(
        &mut longer(&["--allow-change", "evaluation.every_steps"]),
        65,
    );
    for expected in [
        "schedule.epochs: then 2, now 3",
        "go on all the same: --allow-change schedule.epochs\n",
    ] {
        assert!(said.contains(expected), "{said}");
    }
    assert!(!said.contains("every_steps"), "{said}");
    assert_eq!(steps(), before);

    // What was exported before is not what the longer run ends with.
    let stale = run.join("export/stale");
    std::fs::write(&stale, "").unwrap();
    let allowed = ["schedule.epochs", "evaluation.every_steps"];
    succeed(&mut longer(
        &allowed.map(|key| ["--allow-change", key]).concat(),
    ));
    assert!(!stale.exists() && run.join("export/model.safetensors").exists());
    assert_eq!(steps(), before / 2 * 3);
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let change = json!({"step": before, "changed": "schedule.epochs", "then": "2", "now": "3"});
    let is_change = |line: &str| serde_json::from_str::<Value>(line).unwrap() == change;
    assert!(metrics.lines().any(is_change), "{metrics}");
    // Now it is what the run is made with.
    succeed(&mut resume(&run));
    let said = fail(resume(&run).args(["--config", "configs/demo.toml"]), 65);
    assert!(said.contains("schedule.epochs: then 3, now 1"), "{said}");
    assert!(said.contains("data.labels: then "), "{said}");
}

#[test]
fn what_is_measured_on_something_else_is_not_held_against_what_was() {
    let job = SmallJob::new();
    succeed(&mut job.train("run"));
    let run = job.path("run");
    let state = || -> Value {
        let folder = format!("steps/{:06}", last_checkpoint(&run));
        let state = std::fs::read(run.join(folder).join("state.json")).unwrap();
        serde_json::from_slice(&state).unwrap()
    };
    let ended = state()["step"].clone();
    // One query with one document that is not relevant: the measure is 0.
    let text = std::fs::read_to_string(job.path("dev.jsonl")).unwrap();
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let one = json!({"query_id": first["query_id"], "document_id": "p0001", "source": "random"});
    std::fs::write(job.path("one.jsonl"), format!("{one}\n")).unwrap();
    let mut other = resume(&run);
    other.arg("--set").arg(format!(
        "evaluation.candidates={}",
        job.path("one.jsonl").display()
    ));
    other.args(["--allow-change", "evaluation.candidates"]);
    succeed(other.args(["--allow-change", "dev-candidates"]));
    let now = state();
    assert_eq!([&now["step"], &now["best_step"]], [&ended, &ended]);
    assert!(now["best_ndcg"].as_f64().unwrap().abs() < 1e-9, "{now}");
}

#[test]
fn a_run_that_another_process_trains_is_left_to_it() {
    let job = SmallJob::new();
    succeed(&mut job.train("run"));
    let lock = std::fs::File::open(job.path("run/.lock")).unwrap();
    lock.lock().unwrap();
    let said = fail(&mut resume(&job.path("run")), 75);
    assert!(
        said.contains("another process is training this run"),
        "{said}"
    );
    lock.unlock().unwrap();
    succeed(&mut resume(&job.path("run")));
}

#[test]
fn a_run_is_not_resumed_with_other_data() {
    let job = SmallJob::new();
    succeed(&mut job.train("run"));
    let labels = job.path("labels");
    let mut set = label_set::read(&labels).unwrap();
    set.labels.pop();
    std::fs::remove_dir_all(&labels).unwrap();
    common::seal(&labels, set);
    let said = fail(&mut resume(&job.path("run")), 65);
    assert!(said.contains("\n  labels: then sha256 "), "{said}");
    assert!(said.contains("--allow-change labels\n"), "{said}");
    succeed(resume(&job.path("run")).args(["--allow-change", "labels"]));
}

#[test]
fn a_run_is_not_resumed_with_another_base_model() {
    let job = SmallJob::new();
    succeed(&mut job.train("run"));
    let mut resume = resume(&job.path("run"));
    for setting in [
        "model.init=tests/golden/family/electra",
        "data.max_tokens=32",
    ] {
        resume.args(["--set", setting]);
    }
    let said = fail(&mut resume, 65);
    for expected in [
        "model.init: then \"tests/golden/bert\", now \"tests/golden/family/electra\"",
        "base-weights: then sha256 ",
        "data.max_tokens: then 64, now 32",
    ] {
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn tensorboard_gets_a_file_from_each_process() {
    let job = SmallJob::new();
    let mut train = job.train("run");
    succeed(train.args(["--set", "evaluation.tensorboard=true"]));
    succeed(&mut resume(&job.path("run")));
    let names = std::fs::read_dir(job.path("run")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: Vec<String> = names.filter(|name| name.contains("tfevents")).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    let holds = |name: &String| {
        let bytes = std::fs::read(job.path("run").join(name)).unwrap();
        bytes.windows(11).any(|window| window == b"dev_ndcg@10")
    };
    // The second had nothing left to do.
    assert_eq!(files.iter().filter(|name| holds(name)).count(), 1);
}

#[test]
fn patience_ends_a_run_that_gets_no_better() {
    let job = SmallJob::new();
    let mut train = job.train("run");
    for setting in [
        "optimizer.learning_rate=0.0",
        "evaluation.patience=2",
        "evaluation.keep=2",
    ] {
        train.args(["--set", setting]);
    }
    let ended = succeed(train.arg("--json"));
    let summary: Value = serde_json::from_str(&stdout(&ended)).unwrap();
    assert_eq!(summary["steps"], 10);
    let said = common::stderr(&ended);
    assert!(
        said.contains("2 evaluations without a better one"),
        "{said}"
    );
    assert!(said.contains("no checkpoint is better on dev"), "{said}");
    let kept = |step: &str| {
        let folder = job.path("run/steps").join(step);
        let holds = |name: &str| folder.join(name).exists();
        (holds("model.safetensors"), holds("optimizer.safetensors"))
    };
    // The best, and the last two.
    assert_eq!(
        ["000000", "000005", "000010", "000015"].map(kept),
        [(true, false), (true, true), (true, true), (false, false)]
    );
    // It has ended, and says the same again; so it does from the checkpoint before.
    for lost in [None, Some("000010")] {
        if let Some(step) = lost {
            std::fs::remove_dir_all(job.path("run/steps").join(step)).unwrap();
        }
        let again = succeed(resume(&job.path("run")).arg("--json"));
        let again: Value = serde_json::from_str(&stdout(&again)).unwrap();
        assert_eq!(again["steps"], 10);
        assert_eq!(again["verdict"], summary["verdict"]);
        assert_eq!(kept("000010"), (true, true));
    }
}

fn resume(run: &Path) -> Command {
    let mut command = retort();
    command
        .args(["train", "--device", "cpu", "--resume"])
        .arg(run);
    command
}

/// Panics unless two runs ended with the same bytes, and nothing that a kill left behind.
fn assert_same_end(one: &Path, other: &Path) {
    let steps = last_checkpoint(one);
    assert_eq!(last_checkpoint(other), steps);
    let last = Path::new("steps").join(format!("{steps:06}"));
    for entry in std::fs::read_dir(one.join(&last)).unwrap() {
        let file = last.join(entry.unwrap().file_name());
        let bytes = |run: &Path| std::fs::read(run.join(&file)).unwrap();
        assert!(bytes(one) == bytes(other), "{} differs", file.display());
    }
    let made = |run: &Path| {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let line = |line: &str| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            line.as_object_mut().unwrap().remove("seconds");
            line
        };
        text.lines().map(line).collect::<Vec<Value>>()
    };
    assert_eq!(made(one), made(other));
    let text = |run: &Path| std::fs::read_to_string(run.join("verdict.json")).unwrap();
    assert_eq!(text(one), text(other));
    let names = |run: &Path| {
        let names = std::fs::read_dir(run.join("steps")).unwrap();
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        names.map(name).collect::<BTreeSet<_>>()
    };
    assert_eq!(names(one), names(other));
}

fn quiet(command: &mut Command) -> Child {
    command
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The steps behind a run's last checkpoint.
fn last_checkpoint(run: &Path) -> usize {
    let Ok(folders) = std::fs::read_dir(run.join("steps")) else {
        return 0;
    };
    folders
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .max()
        .unwrap_or(0)
}

/// The lines of a run's metrics about steps up to and with one.
fn lines_up_to(metrics: &str, step: usize) -> String {
    let made = |line: &&str| {
        // A kill may tear the last line.
        serde_json::from_str::<Value>(line)
            .is_ok_and(|line| line["step"].as_u64().unwrap() <= step as u64)
    };
    metrics.split_inclusive('\n').take_while(made).collect()
}
