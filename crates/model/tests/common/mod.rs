//! The golden files, and how near two lists of numbers are.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use fs_err as fs;
use retort_model::{Batch, Encoded};
use serde::Deserialize;

#[derive(Deserialize)]
pub(crate) struct Golden {
    pub(crate) queries: Vec<String>,
    pub(crate) documents: Vec<String>,
    pub(crate) input_ids: Vec<Vec<u32>>,
    pub(crate) token_type_ids: Vec<Vec<u32>>,
    pub(crate) attention_mask: Vec<Vec<u32>>,
    pub(crate) logits: Vec<f32>,
    pub(crate) weights: Vec<f32>,
    pub(crate) texts: Vec<String>,
    pub(crate) embeddings: Vec<Vec<f32>>,
}

pub(crate) fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bert")
}

impl Golden {
    pub(crate) fn read() -> Self {
        serde_json::from_slice(&fs::read(golden_folder().join("golden.json")).unwrap()).unwrap()
    }

    pub(crate) fn pairs(&self) -> Vec<(&str, &str)> {
        self.queries
            .iter()
            .zip(&self.documents)
            .map(|(q, d)| (q.as_str(), d.as_str()))
            .collect()
    }

    /// The golden ids, without the padding.
    pub(crate) fn encoded(&self) -> Vec<Encoded> {
        let length = |row: usize| self.attention_mask[row].iter().sum::<u32>() as usize;
        (0..self.input_ids.len())
            .map(|row| Encoded {
                input_ids: self.input_ids[row][..length(row)].to_vec(),
                token_type_ids: self.token_type_ids[row][..length(row)].to_vec(),
            })
            .collect()
    }

    pub(crate) fn batch(&self, device: &Device) -> Batch {
        Batch::new(&self.encoded().iter().collect::<Vec<_>>(), 0, device)
    }
}

pub(crate) fn floats<const N: usize>(tensor: Tensor<N>) -> Vec<f32> {
    tensor.try_into_vec_as().unwrap()
}

pub(crate) fn largest_difference(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    got.iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// The length of the difference over the length of what is expected.
pub(crate) fn relative_error(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
    norm(&mut got.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied())
}
