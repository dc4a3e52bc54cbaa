//! Training with fewer bits, through the binary, on a two-layer BERT.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::path::Path;

use common::{SmallJob, fail, stderr, succeed};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// What a run's metrics have of its steps.
fn steps(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines
        .filter(|line: &Value| line.get("loss").is_some())
        .collect()
}

/// The losses, in the mean over each twenty steps.
fn smooth(steps: &[Value]) -> Vec<f64> {
    let losses: Vec<f64> = steps.iter().map(|s| s["loss"].as_f64().unwrap()).collect();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    losses.windows(20).map(mean).collect()
}

#[test]
fn two_hundred_steps_with_fewer_bits_learn_what_those_with_32_do() {
    let job = SmallJob::new();
    let train = |precision: &str| {
        let mut command = job.train(precision);
        for setting in [
            &format!("model.precision={precision}"),
            "model.dropout=0.0",
            "schedule.epochs=17",
            "evaluation.every_steps=100",
        ] {
            command.args(["--set", setting]);
        }
        let said = stderr(&succeed(&mut command));
        assert!(said.contains(&format!("training in {precision}")), "{said}");
        steps(&job.path(precision))
    };
    let of_all = train("f32");
    assert!(of_all.len() >= 200, "{} steps", of_all.len());
    assert!(of_all.iter().all(|step| step.get("loss_scale").is_none()));
    let of_all = smooth(&of_all);
    for precision in ["bf16", "f16"] {
        let made = train(precision);
        let is_half = precision == "f16";
        for step in &made {
            assert_eq!(step.get("loss_scale").is_some(), is_half, "{step}");
            let is_skipped = step.get("skipped").is_some();
            assert_eq!(is_skipped, step["gradient_norm"].is_null(), "{step}");
        }
        let few = smooth(&made);
        let differences = few
            .iter()
            .zip(&of_all)
            .map(|(few, all)| (few / all - 1.0).abs());
        let worst = differences.fold(0.0, f64::max);
        println!("{precision}: off by up to {worst:.1e}");
        assert_eq!(few.len(), of_all.len());
        assert!(worst < 0.05, "{precision}: off by {worst:e}");
        // What is kept has 32 bits all the same.
        let bytes = std::fs::read(job.path(precision).join("export/model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert!(
            tensors
                .iter()
                .all(|(_, tensor)| tensor.dtype() == Dtype::F32)
        );
    }
}

#[test]
fn what_a_device_does_not_compute_in_is_refused_before_anything_is_written() {
    let job = SmallJob::new();
    let mut train = job.train("run");
    let said = fail(train.args(["--set", "model.precision=tf32"]), 78);
    let expected = "model.precision: this device does not train in tf32: it is CUDA's alone: choose \
                    \"f32\"";
    assert!(said.contains(expected), "{said}");
    let mut train = job.train("run");
    let said = fail(train.args(["--set", "model.precision=fp16"]), 78);
    assert!(said.contains("`f32`, `tf32`, `bf16`, `f16`"), "{said}");
    let mut train = job.train("run");
    let said = fail(train.args(["--set", "model.attention=fused"]), 78);
    let expected = "model.attention: attention can't be fused here: the CPU has no such kernels: \
                    choose \"decomposed\", or a GPU";
    assert!(said.contains(expected), "{said}");
    assert!(!job.path("run").exists());
}
