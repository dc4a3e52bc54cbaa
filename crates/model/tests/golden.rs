//! The model against what PyTorch computed (`tests/golden/bert/make.py`).

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod common;

use burn::module::Param;
use burn::tensor::{Device, Gradients, Tensor};
use common::{Golden, floats, golden_folder, relative_error};
use fs_err as fs;
use retort_model::{
    CrossEncoder, Head, PairTokenizer, ParameterVisitor, embed_all, is_transposed, score,
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
    let bytes = fs::read(golden_folder().join("gradients_weighted.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let mut compare = Compare {
        gradients,
        expected,
        seen: 0,
        worst: 0.0,
    };
    model.visit_parameters(&mut compare);
    println!("largest relative error of a gradient: {:e}", compare.worst);
    assert_eq!(compare.seen, compare.expected.len());
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
        let expected: Vec<f32> = expected
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        let got = floats(gradient);
        if name.ends_with("key.bias") {
            // Moves all scores of a row alike, which softmax does not see: 0 but for rounding.
            assert!(
                got.iter().chain(&expected).all(|value| value.abs() < 1e-6),
                "{name}"
            );
        } else {
            let error = relative_error(&got, &expected);
            assert!(error < 1e-4, "{name}: {error}");
            self.worst = self.worst.max(error);
        }
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
