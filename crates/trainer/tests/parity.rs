//! The loss, every gradient of it, and AdamW against what PyTorch computed
//! (`tests/golden/bert/make.py`).

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::{Device, Gradients, Tensor};
use fs_err as fs;
use retort_model::{
    Batch, CrossEncoder, Encoded, Head, PairTokenizer, ParameterVisitor, is_transposed,
};
use retort_trainer::loss::{self, Judged, Target};
use retort_trainer::{AdamW, LossSettings, NamedGradients, OptimizerSettings};
use safetensors::SafeTensors;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    queries: Vec<String>,
    documents: Vec<String>,
    groups: Vec<usize>,
    teacher_scores: Vec<f32>,
    bce_weight: f64,
    margin_mse: f32,
    bce: f32,
    loss: f32,
    gradient_norm: f64,
    adamw_losses: Vec<f32>,
    adamw_clipped_losses: Vec<f32>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bert")
}

impl Golden {
    fn read() -> Self {
        serde_json::from_slice(&fs::read(folder().join("golden.json")).unwrap()).unwrap()
    }

    fn batch(&self, device: &Device) -> Batch {
        let pairs: Vec<(&str, &str)> = self
            .queries
            .iter()
            .zip(&self.documents)
            .map(|(q, d)| (&**q, &**d))
            .collect();
        let encoded = PairTokenizer::open(&folder(), 64)
            .unwrap()
            .encode_pairs(&pairs)
            .unwrap();
        Batch::new(&encoded.iter().collect::<Vec<&Encoded>>(), 0, device)
    }

    fn judged(&self) -> Judged {
        let target = |logit: &f32| Target {
            logit: *logit,
            grade: 0.0,
            doubt: 0.0,
        };
        let targets = self.teacher_scores.iter().map(target);
        Judged::step(self.groups.iter().copied().zip(targets))
    }

    fn loss(&self, model: &CrossEncoder, batch: &Batch) -> Tensor<1> {
        let settings = LossSettings {
            margin_mse: 1.0,
            bce: self.bce_weight,
            ..LossSettings::none()
        };
        loss::weighted_sum(&model.forward(batch), &self.judged(), &settings)
    }
}

fn student(device: &Device) -> CrossEncoder {
    CrossEncoder::load(&folder(), Head::Required, Some(0.0), device).unwrap()
}

fn value(tensor: Tensor<1>) -> f32 {
    tensor.try_into_vec_as::<f32>().unwrap()[0]
}

fn assert_near(what: &str, got: f32, expected: f32, relative: f32) {
    let error = (got - expected).abs() / expected.abs();
    assert!(
        error < relative,
        "{what}: {got}, expected {expected}: off by {error:e}"
    );
}

#[test]
fn the_loss_and_its_parts_match_pytorch() {
    let golden = Golden::read();
    let device = Device::flex();
    let model = student(&device);
    let scores = model.forward(&golden.batch(&device));
    let margins = loss::margin_mse(scores.clone(), &golden.judged());
    assert_near("margin-mse", value(margins), golden.margin_mse, 1e-5);
    let bce = loss::bce(scores, &golden.judged());
    assert_near("bce", value(bce), golden.bce, 1e-5);
    let loss = value(golden.loss(&model, &golden.batch(&device)));
    assert_near("loss", loss, golden.loss, 1e-5);
}

#[test]
fn every_gradient_of_the_loss_matches_pytorch() {
    let golden = Golden::read();
    let device = Device::flex().autodiff();
    let model = student(&device);
    let gradients = golden.loss(&model, &golden.batch(&device)).backward();
    let bytes = fs::read(folder().join("gradients_loss.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let mut compare = Compare {
        gradients,
        expected,
        seen: 0,
        worst: 0.0,
    };
    model.visit_parameters(&mut compare);
    assert_eq!(compare.seen, compare.expected.len());
    println!("largest relative error of a gradient: {:e}", compare.worst);
}

#[test]
fn ten_steps_of_adamw_match_pytorch() {
    let golden = Golden::read();
    // So large a norm clips nothing.
    let runs = [
        (1e9, &golden.adamw_losses),
        (1.0, &golden.adamw_clipped_losses),
    ];
    for (max_grad_norm, expected) in runs {
        let device = Device::flex().autodiff();
        let batch = golden.batch(&device);
        let mut model = student(&device);
        let mut optimizer = AdamW::new(&OptimizerSettings {
            learning_rate: 1e-3,
            weight_decay: 0.01,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            max_grad_norm,
        });
        for (step, expected) in expected.iter().enumerate() {
            let loss = golden.loss(&model, &batch);
            assert_near(
                &format!("loss {step}"),
                value(loss.clone()),
                *expected,
                1e-4,
            );
            let gradients = NamedGradients::of(&model, &loss.backward());
            let norm;
            (model, norm) = optimizer.step(model, gradients, 1e-3);
            if step == 0 {
                let error = (norm - golden.gradient_norm).abs() / golden.gradient_norm;
                assert!(
                    error < 1e-5,
                    "norm {norm}, expected {}",
                    golden.gradient_norm
                );
            }
        }
    }
}

struct Compare<'a> {
    gradients: Gradients,
    expected: SafeTensors<'a>,
    seen: usize,
    worst: f32,
}

impl ParameterVisitor for Compare<'_> {
    fn visit<const N: usize>(&mut self, name: &str, parameter: &Param<Tensor<N>>) {
        self.seen += 1;
        let gradient = parameter.val().grad(&self.gradients).unwrap();
        let gradient = if is_transposed(name) {
            gradient.swap_dims(0, 1)
        } else {
            gradient
        };
        let expected = self.expected.tensor(name).unwrap();
        assert_eq!(gradient.dims().as_slice(), expected.shape(), "{name}");
        let got: Vec<f32> = gradient.try_into_vec_as().unwrap();
        let expected = expected
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|four| f32::from_le_bytes(*four));
        if name.ends_with("key.bias") {
            // Moves all scores of a row alike, which softmax does not see: 0 but for rounding.
            assert!(got.iter().all(|value| value.abs() < 1e-5), "{name}");
            return;
        }
        let (mut difference, mut length) = (0.0, 0.0);
        for (got, expected) in got.iter().zip(expected) {
            difference += (got - expected).powi(2);
            length += expected.powi(2);
        }
        let error: f32 = (difference / length).sqrt();
        assert!(error < 1e-4, "{name}: off by {error:e}");
        self.worst = self.worst.max(error);
    }
}
