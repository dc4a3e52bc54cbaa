//! Every architecture on the CPU against what PyTorch computed (`tests/golden/{bert,family}/make.py`).
//! The trainer's `tests/parity.rs` has the same on a GPU.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod common;

use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Gradients, Tensor};
use common::{
    Golden, copy_with, family, floats, folder_of, largest_difference, load, relative_error,
};
use fs_err as fs;
use retort_model::{
    Classifier, CrossEncoder, Encoded, Head, HostBert, PairTokenizer, ParameterVisitor, classify,
    embed_all, is_transposed, score,
};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

#[test]
fn tokenizers_give_the_golden_ids() {
    for folder in family() {
        let golden = Golden::of(&folder);
        let tokenizer = PairTokenizer::open(&folder, 64).unwrap();
        let encoded = tokenizer.encode_pairs(&golden.pairs()).unwrap();
        assert_eq!(encoded, golden.encoded(), "{}", folder.display());
    }
}

#[test]
fn logits_match_pytorch() {
    for folder in family() {
        let golden = Golden::of(&folder);
        let model = load(&folder).unwrap();
        let logits = floats(model.forward(&golden.batch(&Device::flex())));
        assert_near(&folder, &logits, &golden.logits, 1e-5);
        // In buckets of other composition and padding.
        let logits = score(&model, &golden.encoded(), 40).unwrap();
        assert_near(&folder, &logits, &golden.logits, 1e-5);
    }
}

#[test]
fn embeddings_match_pytorch() {
    for folder in family() {
        let golden = Golden::of(&folder);
        let tokenizer = PairTokenizer::open(&folder, 64).unwrap();
        let texts: Vec<&str> = golden.texts.iter().map(String::as_str).collect();
        let encoded = tokenizer.encode_texts(&texts).unwrap();
        let embeddings = embed_all(&load(&folder).unwrap(), &encoded, 1000).unwrap();
        for (got, expected) in embeddings.iter().zip(&golden.embeddings) {
            assert_near(&folder, got, expected, 1e-5);
        }
    }
}

#[test]
fn gradients_match_pytorch() {
    for folder in family() {
        let golden = Golden::of(&folder);
        let device = Device::flex().autodiff();
        let model = CrossEncoder::load(&folder, Head::Required, Some(0.0), &device).unwrap();
        let weights = Tensor::<1>::from_floats(golden.weights.as_slice(), &device);
        let logits = model.forward(&golden.batch(&device));
        assert_near(&folder, &floats(logits.clone()), &golden.logits, 1e-5);
        let bytes = fs::read(folder.join("gradients_weighted.safetensors")).unwrap();
        let mut compare = Compare {
            gradients: (logits * weights).sum().backward(),
            expected: SafeTensors::deserialize(&bytes).unwrap(),
            seen: 0,
            worst: 0.0,
        };
        model.visit_parameters(&mut compare);
        println!("{}: {:e}", folder.display(), compare.worst);
        assert_eq!(compare.seen, compare.expected.len());
    }
}

/// In one block and in several, on one thread and on more.
#[test]
fn the_passes_of_the_cpu_match_pytorch() {
    let folder = folder_of("bert");
    let golden = Golden::of(&folder);
    let device = Device::flex().autodiff();
    let model = CrossEncoder::load(&folder, Head::Required, Some(0.0), &device).unwrap();
    let host = HostBert::of(&model).unwrap();
    let encoded = golden.encoded();
    let inputs: Vec<&Encoded> = encoded.iter().collect();
    let bytes = fs::read(folder.join("gradients_weighted.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    for (threads, tokens_per_block) in [(1, 1000), (1, 40), (3, 1)] {
        let pass = host.forward(&inputs, threads, tokens_per_block, 0);
        assert_near(&folder, &pass.logits, &golden.logits, 1e-5);
        let gradients = host.backward(&pass, &golden.weights);
        assert_eq!(gradients.len(), expected.len());
        for (name, gradient) in gradients {
            let expected = expected.tensor(&name).unwrap();
            let gradient: Vec<f32> = match *expected.shape() {
                [rows, columns] if is_transposed(&name) => (0..rows * columns)
                    .map(|place| gradient[place % columns * rows + place / columns])
                    .collect(),
                _ => gradient,
            };
            error_of_gradient(&name, &gradient, &expected);
        }
    }
}

#[test]
fn the_passes_of_the_cpu_are_for_bert() {
    let device = Device::flex().autodiff();
    let of = |folder: &str| {
        let model = CrossEncoder::load(&folder_of(folder), Head::Required, None, &device);
        HostBert::of(&model.unwrap())
    };
    assert!(of("bert").is_some());
    assert!(of("family/roberta").is_none());
}

/// A padding token that a text holds takes the position of padding, and no other does.
#[test]
fn padding_within_a_text_is_where_roberta_has_it() {
    for name in ["family/roberta", "family/xlm-roberta"] {
        let folder = folder_of(name);
        let literal = Golden::of(&folder).literal_padding.unwrap();
        let encoded = Encoded {
            token_type_ids: vec![0; literal.input_ids.len()],
            input_ids: literal.input_ids,
        };
        let logits = score(&load(&folder).unwrap(), &[encoded], 100).unwrap();
        assert_near(&folder, &logits, &[literal.logit], 1e-5);
    }
}

#[test]
fn a_modernbert_may_classify_the_mean() {
    let folder = folder_of("family/modernbert");
    let golden = Golden::of(&folder);
    let copy = copy_with(&folder, |_| {});
    let path = copy.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    let mean = config.replace(
        r#""classifier_pooling": "cls""#,
        r#""classifier_pooling": "mean""#,
    );
    assert_ne!(mean, config);
    fs::write(&path, mean).unwrap();
    let logits = score(&load(copy.path()).unwrap(), &golden.encoded(), 100).unwrap();
    assert_near(&folder, &logits, &golden.logits_of_mean.unwrap(), 1e-5);
}

#[test]
fn three_classes_have_a_logit_each() {
    let folder = folder_of("family/bert-classes");
    let golden = Golden::of(&folder);
    let model = Classifier::load(&folder, &Device::flex()).unwrap();
    assert_eq!(model.labels(), ["contradiction", "entailment", "neutral"]);
    let logits = classify(&model, &golden.encoded(), 40).unwrap();
    assert!(logits.iter().all(|logits| logits.len() == 3));
    assert_near(&folder, &logits.concat(), &golden.logits, 1e-5);
}

fn assert_near(folder: &Path, got: &[f32], expected: &[f32], tolerance: f32) {
    let difference = largest_difference(got, expected);
    assert!(
        difference < tolerance,
        "{}: off by {difference:e}: {got:?}, expected {expected:?}",
        folder.display()
    );
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
        let error = error_of_gradient(name, &floats(gradient), &expected);
        self.worst = self.worst.max(error);
    }
}

/// Relative, and refused where it is too large.
fn error_of_gradient(name: &str, got: &[f32], expected: &TensorView) -> f32 {
    let expected = expected.data().as_chunks().0.iter();
    let expected: Vec<f32> = expected.map(|bytes| f32::from_le_bytes(*bytes)).collect();
    if name.ends_with("key.bias") || name.ends_with("k_lin.bias") {
        // Moves all scores of a row alike, which softmax does not see: 0 but for rounding.
        assert!(
            got.iter().chain(&expected).all(|value| value.abs() < 1e-6),
            "{name}"
        );
        return 0.0;
    }
    let error = relative_error(got, &expected);
    assert!(error < 1e-4, "{name}: {error}");
    error
}
