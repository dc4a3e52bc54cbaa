//! `retort doctor`, and the preflight of `retort label` as users meet it.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{SmallJob, Teacher, completion, fail, retort, root, stdout, succeed};
use serde_json::Value;

/// A command about the demo's job on a few pairs, asked of this teacher.
fn about(command: &str, folder: &Path, teacher: &Teacher) -> Command {
    let candidates = folder.join("candidates.jsonl");
    let all = std::fs::read_to_string(root().join("training-data/shop/candidates/dev.jsonl"));
    let part: String = all.unwrap().split_inclusive('\n').take(5).collect();
    std::fs::write(&candidates, part).unwrap();
    let mut retort = retort();
    retort.args([command, "--config", "configs/label.toml"]);
    for setting in [
        format!("candidates={}", candidates.display()),
        format!("ledger={}", folder.join("ledger.sqlite").display()),
        format!("teacher.endpoints=[{:?}]", teacher.url),
    ] {
        retort.arg("--set").arg(setting);
    }
    retort
}

/// Grades the best example of the demo's prompt above all else.
fn sane(_: usize, body: &Value) -> common::Reply {
    let asked = body["messages"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .to_string();
    let p = if asked.contains("Pawfell stainless steel dog bowl") {
        0.9
    } else {
        0.2
    };
    (200, "", completion(&[("3", p), ("0", 1.0 - p)]))
}

#[test]
fn doctor_says_what_there_is_and_tries_the_teacher_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Teacher::start(sane);
    let said = stdout(&succeed(&mut about("doctor", folder.path(), &teacher)));
    for expected in [
        "auto: ",
        "cpu: the CPU",
        "; trains in f32, bf16, f16; attention decomposed\n",
        "not there yet",
        "5 would be asked of http://127.0.0.1",
        "(this machine), after 3 requests of the preflight",
        "with no key",
        "relevant 2.70, irrelevant 0.60",
        "does not say whether it cuts",
    ] {
        assert!(said.contains(expected), "{said:?} lacks {expected:?}");
    }
    assert_eq!(teacher.count(), 3);
    let said = stdout(&succeed(
        about("doctor", folder.path(), &teacher).arg("--json"),
    ));
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["labelling"]["plan"]["preflight_requests"], 0);
    assert_eq!(said["preflight"][0]["reading"], "unknown");
    assert_eq!(said["ledger"]["spent"]["requests"], 3);
    assert_eq!(teacher.count(), 6);
    // The job itself has nothing to try any more.
    succeed(&mut about("label", folder.path(), &teacher));
    assert_eq!(teacher.count(), 11);
}

#[test]
fn a_server_that_does_otherwise_than_asked_is_found_out_before_the_first_question() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Teacher::start(|_, _| (200, "", completion(&[("Sure", 0.9), ("3", 0.1)])));
    for command in ["label", "doctor"] {
        let said = fail(&mut about(command, folder.path(), &teacher), 78);
        assert!(
            said.contains("failed the preflight") && said.contains("Sure"),
            "{said}"
        );
        assert!(said.contains("structured_outputs"), "{said}");
    }
    assert_eq!(teacher.count(), 4);
    let mut unchecked = about("label", folder.path(), &teacher);
    let said = fail(unchecked.args(["--set", "preflight=false"]), 1);
    assert!(said.contains("5 of 5 questions got no judgement"), "{said}");
}

#[test]
fn doctor_names_who_writes_the_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = Teacher::start(sane);
    let held = retort_label::ledger::Ledger::open(&folder.path().join("ledger.sqlite")).unwrap();
    let output = about("doctor", folder.path(), &teacher).output().unwrap();
    assert_eq!(output.status.code(), Some(75));
    let process = format!("process {} writes it", std::process::id());
    assert!(stdout(&output).contains(&process), "{}", stdout(&output));
    assert_eq!(teacher.count(), 0);
    drop(held);
}

#[test]
fn doctor_checks_a_training_job() {
    let mut doctor = retort();
    doctor.args(["doctor", "--config", "configs/demo.toml"]);
    let said = stdout(&succeed(&mut doctor));
    assert!(said.contains("6000 judgements"), "{said}");

    let job = SmallJob::new();
    let labels = format!("data.labels={}", job.path("nowhere").display());
    let said = fail(doctor.args(["--set", &labels]), 65);
    assert!(said.contains("nowhere"), "{said}");
    for setting in [
        "verdict.teacher_labels=nowhere",
        "data.gold={split=\"train\", candidates=\"nowhere.jsonl\"}",
    ] {
        let mut doctor = retort();
        doctor.args(["doctor", "--config", "configs/demo.toml", "--set", setting]);
        let said = fail(&mut doctor, 65);
        assert!(said.contains("nowhere"), "{said}");
    }
    // A base model that is a folder is read, and held against the settings and the device.
    for (setting, code, expected) in [
        ("data.max_tokens=65", 78, "64 positions"),
        ("model.keep_layers=[0, 2]", 78, "cannot be kept"),
        ("model.precision=\"tf32\"", 78, "does not train in tf32"),
        (
            "model.attention=\"fused\"",
            78,
            "attention can't be fused here",
        ),
        (
            "model.init=\"tests/golden/losses\"",
            65,
            "config.json is missing",
        ),
    ] {
        let mut doctor = retort();
        doctor.args(["doctor", "--device", "cpu", "--config", "configs/demo.toml"]);
        doctor.args([
            "--set",
            "model.init=tests/golden/bert",
            "--set",
            "data.max_tokens=64",
        ]);
        let said = fail(doctor.args(["--set", setting]), code);
        assert!(said.contains(expected), "{setting}: {said}");
    }
    let mut misspelt = retort();
    misspelt.args(["doctor", "--config", "configs/label.toml"]);
    let said = fail(misspelt.args(["--set", "teacher.modle=x"]), 78);
    assert!(said.contains("did you mean `model`?"), "{said}");
}
