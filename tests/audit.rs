//! `retort labels audit` on the demo's labels.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::process::Command;

use common::{fail, retort, stdout, succeed};
use serde_json::Value;

fn audit(split: &str) -> Command {
    let mut command = retort();
    command.args(["labels", "audit", "training-data/shop/labels/train"]);
    command.args(["--collection", "training-data/shop", "--split", split]);
    command
}

#[test]
fn the_demos_labels_are_worth_what_their_readme_says() {
    let json = stdout(&succeed(audit("train").arg("--json")));
    let json: Value = serde_json::from_str(&json).unwrap();
    let agreement = &json["audit"]["agreement"];
    assert_eq!(
        (&agreement["pairs"], &agreement["queries"]),
        (&6000.into(), &300.into())
    );
    for (pointer, expected) in [
        ("/soft/pair_order/value", 0.905),
        ("/hard/pair_order/value", 0.805),
        ("/soft/auc/value", 0.911),
        ("/hard/auc/value", 0.827),
        ("/kappa/value", 0.635),
    ] {
        let found = agreement.pointer(pointer).unwrap().as_f64().unwrap();
        assert!((found - expected).abs() < 5e-4, "{pointer}: {found}");
    }
}

#[test]
fn labels_below_a_threshold_end_with_80_and_still_show_the_audit() {
    let with = |settings: &[&str]| {
        let mut command = audit("train");
        command.args(["--config", "configs/audit.toml"]);
        for setting in settings {
            command.args(["--set", setting]);
        }
        command
    };
    succeed(&mut with(&[]));
    let mut strict = with(&["audit.least_kappa=0.7", "audit.least_pair_order=0.9"]);
    let output = strict.output().unwrap();
    assert!(stdout(&output).contains("κ of grade and gain"));
    let said = fail(&mut strict, 80);
    assert!(
        said.contains("0.6349, least_kappa is 0.7") && !said.contains("least_pair_order"),
        "{said}"
    );
    for (setting, code, expected) in [
        ("audit.least_auc=1.1", 78, "least_auc must be from 0 to 1"),
        ("audit.relevant_grade=4", 78, "from 1 to 3"),
        ("audit.least_kapa=0.3", 65, "did you mean `least_kappa`?"),
    ] {
        let said = fail(&mut with(&[setting]), code);
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_split_without_the_labels_queries_is_refused() {
    let said = fail(&mut audit("dev"), 65);
    assert!(
        said.contains("dev.tsv") && said.contains("name their split"),
        "{said}"
    );
    let said = fail(&mut audit("holdout"), 65);
    assert!(said.contains("there are dev, test, train"), "{said}");
}
