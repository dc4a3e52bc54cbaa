//! `retort labels debias` on the demo's labels.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{fail, retort, root, stdout, succeed};
use retort_data::label_set;
use serde_json::Value;

const SET: &str = "training-data/shop/labels/train";

fn debias(gold: &str, out: &Path) -> Command {
    let mut command = retort();
    command.args([
        "labels",
        "debias",
        SET,
        "--collection",
        "training-data/shop",
    ]);
    command.args(["--gold", gold]).arg("--out").arg(out);
    command
}

#[test]
fn the_demos_labels_get_better_by_their_gold_and_read_as_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("set");
    let json = stdout(&succeed(debias("train", &out).arg("--json")));
    let json: Value = serde_json::from_str(&json).unwrap();
    let debiased = &json["debiased"];
    assert_eq!(
        (&debiased["queries"], &debiased["pairs"]),
        (&300.into(), &6000.into())
    );
    let number = |pointer: &str| debiased.pointer(pointer).unwrap().as_f64().unwrap();
    // As the audit has it.
    assert!((number("/before/auc/value") - 0.911).abs() < 5e-4);
    assert!(number("/change/auc/low") > 0.0 && number("/change/calibration_error/high") < 0.0);

    let (parent, set) = (
        label_set::read(&root().join(SET)).unwrap(),
        label_set::read(&out).unwrap(),
    );
    assert_eq!(debiased["digest"], set.digest.as_str());
    assert_eq!(set.manifest.corrections[0]["of"], parent.digest.as_str());
    let mut audit = retort();
    audit.args(["labels", "audit"]).arg(&out);
    audit.args(["--collection", "training-data/shop", "--split", "train"]);
    let said = stdout(&succeed(&mut audit));
    assert!(said.contains("6000 labels of 300 queries"), "{said}");
}

#[test]
fn every_method_is_shown_and_one_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("set");
    let said = stdout(&succeed(debias("train", &out).args(["--method", "platt"])));
    for expected in [
        "before",
        "isotonic",
        "residual",
        "overlap",
        "platt after minus before",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let corrections = label_set::read(&out).unwrap().manifest.corrections;
    assert_eq!(corrections[0]["method"], "platt");

    let said = fail(&mut debias("train", &out), 65);
    assert!(said.contains("exists already"), "{said}");
    let other = folder.path().join("other");
    let said = fail(&mut debias("dev", &other), 65);
    assert!(
        said.contains("needs 100 labels and 10 such queries"),
        "{said}"
    );
    assert!(!other.exists());
    let said = stdout_of_usage(debias("train", &other).args(["--method", "magic"]));
    assert!(said.contains("residual, isotonic or platt"), "{said}");
}

fn stdout_of_usage(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    common::stderr(&output)
}
