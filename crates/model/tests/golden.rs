//! The model against what PyTorch computed (`tests/golden/bert/make.py`).

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod common;

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::{Device, Gradients, Tensor};
use common::{Golden, floats, golden_folder, relative_error};
use fs_err as fs;
use retort_model::{
    CrossEncoder, Encoded, Head, HostBert, PairTokenizer, ParameterVisitor, embed_all, is_transposed, score,
};
use safetensors::SafeTensors;

#[test]
fn the_tokenizer_gives_the_golden_ids() {
    let golden = Golden::read();
    let tokenizer = PairTokenizer::open(&golden_folder(), 64).unwrap();
    for (encoded, golden) in tokenizer
        .encode_pairs(&golden.pairs())
        .unwrap()
        .iter()
        .zip(golden.encoded())
    {
        assert_eq!(*encoded, golden);
    }
}

#[test]
fn logits_match_pytorch() {
    let golden = Golden::read();
    let model =
        CrossEncoder::load(&golden_folder(), Head::Required, None, &Device::flex()).unwrap();
    let logits = floats(model.forward(&golden.batch(&Device::flex())));
    println!(
        "largest difference of a logit: {:e}",
        common::largest_difference(&logits, &golden.logits)
    );
    assert!(
        common::largest_difference(&logits, &golden.logits) < 1e-5,
        "{logits:?}"
    );
    // In buckets of other composition and padding.
    let logits = score(&model, &golden.encoded(), 40).unwrap();
    assert!(
        common::largest_difference(&logits, &golden.logits) < 1e-5,
        "{logits:?}"
    );
}

#[test]
fn embeddings_match_pytorch() {
    let golden = Golden::read();
    let model =
        CrossEncoder::load(&golden_folder(), Head::Required, None, &Device::flex()).unwrap();
    let tokenizer = PairTokenizer::open(&golden_folder(), 64).unwrap();
    let texts: Vec<&str> = golden.texts.iter().map(String::as_str).collect();
    let embeddings = embed_all(&model, &tokenizer.encode_texts(&texts).unwrap(), 1000).unwrap();
    for (got, expected) in embeddings.iter().zip(&golden.embeddings) {
        assert!(
            common::largest_difference(got, expected) < 1e-5,
            "{got:?} {expected:?}"
        );
    }
}

#[test]
fn gradients_match_pytorch() {
    let golden = Golden::read();
    let device = Device::flex().autodiff();
    let model = CrossEncoder::load(&golden_folder(), Head::Required, Some(0.0), &device).unwrap();
    let weights = Tensor::<1>::from_floats(golden.weights.as_slice(), &device);
    let logits = model.forward(&golden.batch(&device));
    assert!(common::largest_difference(&floats(logits.clone()), &golden.logits) < 1e-5);
    let gradients = (logits * weights).sum().backward();
    let mut compare = Compare {
        gradients,
        expected: Expected::read(),
    };
    model.visit_parameters(&mut compare);
    compare.expected.end();
}

/// In one block and in several, on one thread and on more.
#[test]
fn the_passes_of_the_cpu_match_pytorch() {
    let golden = Golden::read();
    let device = Device::flex().autodiff();
    let model = CrossEncoder::load(&golden_folder(), Head::Required, Some(0.0), &device).unwrap();
    let host = HostBert::of(&model).unwrap();
    let encoded = golden.encoded();
    let inputs: Vec<&Encoded> = encoded.iter().collect();
    for (threads, tokens_per_block) in [(1, 1000), (1, 40), (3, 1)] {
        let pass = host.forward(&inputs, threads, tokens_per_block);
        let difference = common::largest_difference(&pass.logits, &golden.logits);
        assert!(difference < 1e-5, "{difference:e}");
        let mut expected = Expected::read();
        for (name, gradient) in host.backward(&pass, &golden.weights) {
            let shape = expected.shape(&name);
            let gradient = match shape[..] {
                [rows, columns] if is_transposed(&name) => (0..rows * columns)
                    .map(|place| gradient[place % columns * rows + place / columns])
                    .collect(),
                _ => gradient,
            };
            expected.compare(&name, &gradient);
        }
        expected.end();
    }
}

#[test]
fn the_passes_of_the_cpu_are_not_for_a_model_that_drops_out() {
    let device = Device::flex().autodiff();
    let model = CrossEncoder::load(&golden_folder(), Head::Required, Some(0.1), &device).unwrap();
    assert!(HostBert::of(&model).is_none());
}

/// The gradients that PyTorch computed.
struct Expected {
    by_name: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    worst: f32,
}

impl Expected {
    fn read() -> Self {
        let bytes = fs::read(golden_folder().join("gradients_weighted.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let numbers = |data: &[u8]| {
            let numbers = data.as_chunks().0.iter();
            numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        let tensors = file.iter().map(|(name, view)| {
            let tensor = (view.shape().to_vec(), numbers(view.data()));
            (name.to_owned(), tensor)
        });
        Self {
            by_name: tensors.collect(),
            worst: 0.0,
        }
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        self.by_name[name].0.clone()
    }

    fn compare(&mut self, name: &str, got: &[f32]) {
        let (_, expected) = self.by_name.remove(name).unwrap();
        if name.ends_with("key.bias") {
            // Moves all scores of a row alike, which softmax does not see: 0 but for rounding.
            assert!(
                got.iter().chain(&expected).all(|value| value.abs() < 1e-6),
                "{name}"
            );
        } else {
            let error = relative_error(got, &expected);
            assert!(error < 1e-4, "{name}: {error}");
            self.worst = self.worst.max(error);
        }
    }

    fn end(self) {
        println!("largest relative error of a gradient: {:e}", self.worst);
        assert!(self.by_name.is_empty(), "no gradient of some parameters");
    }
}

struct Compare {
    gradients: Gradients,
    expected: Expected,
}

impl ParameterVisitor for Compare {
    fn visit<const N: usize>(&mut self, name: &str, parameter: &Param<Tensor<N>>) {
        let gradient = parameter.val().grad(&self.gradients).unwrap();
        let gradient = if is_transposed(name) {
            gradient.swap_dims(0, 1)
        } else {
            gradient
        };
        assert_eq!(
            gradient.dims().as_slice(),
            self.expected.shape(name),
            "{name}"
        );
        self.expected.compare(name, &floats(gradient));
    }
}

/// GPU matrix products may use shorter mantissas: 1e-3 instead of 1e-5.
#[test]
#[cfg(feature = "wgpu")]
fn logits_match_pytorch_through_wgpu() {
    use retort_model::{DeviceChoice, choose};
    let Ok((device, why)) = choose(DeviceChoice::Wgpu) else {
        println!("skipped: no wgpu adapter");
        return;
    };
    println!("on {why}");
    let golden = Golden::read();
    let model = CrossEncoder::load(&golden_folder(), Head::Required, None, &device).unwrap();
    let logits = floats(model.forward(&golden.batch(&device)));
    assert!(
        common::largest_difference(&logits, &golden.logits) < 1e-3,
        "{logits:?}"
    );
}
