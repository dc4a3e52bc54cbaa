//! The golden files, and how near two lists of numbers are.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use fs_err as fs;
use retort_model::{Batch, CrossEncoder, Encoded, Head, ModelConfig, Result};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use tempfile::TempDir;

#[derive(Deserialize)]
pub(crate) struct Golden {
    #[serde(skip)]
    folder: PathBuf,
    pub(crate) queries: Vec<String>,
    pub(crate) documents: Vec<String>,
    pub(crate) input_ids: Vec<Vec<u32>>,
    pub(crate) token_type_ids: Vec<Vec<u32>>,
    pub(crate) attention_mask: Vec<Vec<u32>>,
    pub(crate) logits: Vec<f32>,
    pub(crate) weights: Vec<f32>,
    pub(crate) texts: Vec<String>,
    pub(crate) embeddings: Vec<Vec<f32>>,
    /// RoBERTa's alone: a text that holds the padding token.
    pub(crate) literal_padding: Option<LiteralPadding>,
    /// ModernBERT's alone: the logits where the classifier reads the mean.
    pub(crate) logits_of_mean: Option<Vec<f32>>,
}

#[derive(Deserialize)]
pub(crate) struct LiteralPadding {
    pub(crate) input_ids: Vec<u32>,
    pub(crate) logit: f32,
}

/// Name, type, shape and bytes of every tensor in a file.
pub(crate) type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Of BERT.
pub(crate) fn golden_folder() -> PathBuf {
    folder_of("bert")
}

pub(crate) fn folder_of(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name)
}

/// A reranker of every architecture.
pub(crate) fn family() -> [PathBuf; 6] {
    [
        "bert",
        "family/distilbert",
        "family/electra",
        "family/modernbert",
        "family/roberta",
        "family/xlm-roberta",
    ]
    .map(folder_of)
}

impl Golden {
    /// Of BERT.
    pub(crate) fn read() -> Self {
        Self::of(&golden_folder())
    }

    pub(crate) fn of(folder: &Path) -> Self {
        let file = fs::read(folder.join("golden.json")).unwrap();
        let golden: Self = serde_json::from_slice(&file).unwrap();
        Self {
            folder: folder.to_owned(),
            ..golden
        }
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
        let encoded = self.encoded();
        Batch::new(
            &encoded.iter().collect::<Vec<_>>(),
            &ModelConfig::read(&self.folder).unwrap(),
            device,
        )
    }
}

pub(crate) fn load(folder: &Path) -> Result<CrossEncoder> {
    CrossEncoder::load(folder, Head::Required, None, &Device::flex())
}

/// A copy of a model folder with its tensors changed.
pub(crate) fn copy_with(folder: &Path, change: impl Fn(&mut Tensors)) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(folder.join(name), copy.path().join(name)).unwrap();
    }
    let mut tensors = tensors(&folder.join("model.safetensors"));
    change(&mut tensors);
    write_tensors(&copy.path().join("model.safetensors"), &tensors);
    copy
}

pub(crate) fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

pub(crate) fn tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |view: TensorView| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.iter()
        .map(|(name, view)| (name.to_owned(), tensor(view)))
        .collect()
}

pub(crate) fn floats<const N: usize>(tensor: Tensor<N>) -> Vec<f32> {
    tensor.try_into_vec_as().unwrap()
}

pub(crate) fn largest_difference(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    // The maximum leaves NaN out.
    assert!(got.iter().all(|value| value.is_finite()), "{got:?}");
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
