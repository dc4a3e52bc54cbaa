//! The audit's numbers against those of scikit-learn, SciPy and `trec_eval`
//! (`tests/golden/audit/make.py`).

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::collections::BTreeMap;
use std::path::Path;

use fs_err as fs;
use retort_data::collection::Qrels;
use retort_data::label_set::{FORMAT, Label, LabelSet, Manifest};
use retort_label::{Audit, AuditSettings, Error, Estimate};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Golden {
    top_grade: usize,
    labels: Vec<Row>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Row {
    query_id: String,
    document_id: String,
    probabilities: Vec<f64>,
    grade: f64,
    mass: f64,
}

#[derive(Deserialize)]
struct Case {
    settings: AuditSettings,
    qrels: BTreeMap<String, BTreeMap<String, u8>>,
    expected: Value,
}

impl Golden {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let text = fs::read_to_string(root.join("tests/golden/audit/golden.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn set(&self) -> LabelSet {
        let label = |row: &Row| Label {
            query_id: row.query_id.clone(),
            document_id: row.document_id.clone(),
            grade: row.grade,
            probabilities: row.probabilities.clone(),
            mass: row.mass,
            samples: 1,
            text: String::new(),
            at: String::new(),
        };
        LabelSet {
            manifest: Manifest {
                preflights: Vec::new(),
                format: FORMAT.to_owned(),
                top_grade: self.top_grade,
                recipe: json!({}),
                models: Vec::new(),
                corrections: Vec::new(),
                rows: self.labels.len(),
                shards: Vec::new(),
                sealed_by: String::new(),
                sealed_at: String::new(),
            },
            digest: String::new(),
            labels: self.labels.iter().map(label).collect(),
        }
    }
}

#[test]
fn every_number_is_that_of_the_reference() {
    let golden = Golden::read();
    let set = golden.set();
    for case in &golden.cases {
        let audit = Audit::of(&set, &case.qrels, &case.settings).unwrap();
        let found = serde_json::to_value(&audit).unwrap();
        let (agreement, expected) = (&found["agreement"], &case.expected);
        for name in [
            "pairs",
            "queries",
            "relevant_grade",
            "relevant_gain",
            "kappa_of",
        ] {
            assert_eq!(agreement[name], expected[name], "{name}");
        }
        let missing =
            agreement["unlisted"].as_u64().unwrap() + agreement["skipped"].as_u64().unwrap();
        assert_eq!(expected["unlisted"], missing);
        assert_eq!(found["likeliest"], expected["likeliest"]);

        let close = |name: &str, found: &Value, expected: &Value| {
            let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
            assert!(
                (found - expected).abs() < 1e-9,
                "{name}: {found}, expected {expected}"
            );
        };
        for (place, name) in ["least", "first_percentile", "median"].iter().enumerate() {
            close(name, &found["mass"][name], &expected["mass"][place]);
        }
        let estimate = |name: &str, found: &Value, expected: &Value| {
            close(name, &found["value"], expected);
            let end = |name: &str| found[name].as_f64().unwrap();
            let value = end("value");
            // The error of calibration is a sum of absolute values: resampling raises it.
            let low = if name == "calibration_error" {
                0.0
            } else {
                end("low")
            };
            assert!(low <= value && value <= end("high") && end("high") - end("low") < 0.3);
        };
        for order in ["soft", "hard"] {
            for name in ["auc", "auc_pooled", "pair_order", "ndcg", "tau"] {
                estimate(name, &agreement[order][name], &expected[order][name]);
            }
        }
        estimate("kappa", &agreement["kappa"], &expected["kappa"]);
        estimate(
            "calibration_error",
            &agreement["calibration"]["error"],
            &expected["calibration_error"],
        );
    }
}

/// Sets one threshold.
type Set = fn(&mut AuditSettings, f64);

#[test]
fn each_threshold_is_met_up_to_its_number_and_crossed_beyond() {
    let golden = Golden::read();
    let (labels, qrels) = (golden.set(), &golden.cases[0].qrels);
    let audit = Audit::of(&labels, qrels, &AuditSettings::default()).unwrap();
    audit.check(&AuditSettings::default()).unwrap();
    let agreement = audit.agreement.as_ref().unwrap();
    let thresholds: [(&str, Option<Estimate>, Set); 3] = [
        ("least_kappa", agreement.kappa, |settings, least| {
            settings.least_kappa = Some(least);
        }),
        ("least_auc", agreement.soft.auc, |settings, least| {
            settings.least_auc = Some(least);
        }),
        (
            "least_pair_order",
            agreement.soft.pair_order,
            |settings, least| {
                settings.least_pair_order = Some(least);
            },
        ),
    ];
    for (name, estimate, set) in thresholds {
        let value = estimate.unwrap().value;
        let mut settings = AuditSettings::default();
        set(&mut settings, value);
        audit.check(&settings).unwrap();
        set(&mut settings, value + 1e-6);
        let error = audit.check(&settings).unwrap_err();
        assert!(
            matches!(&error, Error::NotGoodEnough { crossed } if crossed.contains(name)),
            "{error}"
        );
        // What can't be told is not good enough.
        let nothing = Audit::of(&labels, &Qrels::new(), &settings).unwrap();
        assert!(nothing.agreement.is_none());
        let error = nothing.check(&settings).unwrap_err().to_string();
        assert!(error.contains("can't be told"), "{error}");
    }
}
