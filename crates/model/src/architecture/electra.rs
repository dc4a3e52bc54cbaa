//! ELECTRA: BERT with embeddings of a width of their own, and RoBERTa's head with another
//! activation.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Architecture, Names, bert};
use crate::config::ModelConfig;
use crate::config_file::ConfigFile;
use crate::error::Result;

pub(super) const NAMES: Names = Names {
    prefix: "electra.",
    encoder: bert::ENCODER,
    head: &[
        ("head.dense", "classifier.dense"),
        ("head.classifier", "classifier.out_proj"),
    ],
    other_heads: &[
        "classifier.",
        "discriminator_predictions.",
        "generator_predictions.",
        "generator_lm_head.",
    ],
};

/// The key that BERT lacks.
#[derive(Deserialize)]
struct Fields {
    embedding_size: usize,
}

pub(super) fn read(file: &ConfigFile) -> Result<ModelConfig> {
    let Fields { embedding_size } = file.fields()?;
    file.refuse_empty(&[("embedding_size", embedding_size)])?;
    Ok(ModelConfig {
        embedding_size,
        ..bert::read_as(file, Architecture::Electra, 0)?
    })
}

pub(super) fn fields(config: &ModelConfig) -> Value {
    let mut fields = bert::fields(config);
    fields["embedding_size"] = json!(config.embedding_size);
    fields
}
