//! RoBERTa and XLM-RoBERTa: BERT with other positions, no segments to speak of and another head.

use super::{Architecture, Names, bert};
use crate::config::ModelConfig;
use crate::config_file::ConfigFile;
use crate::error::Result;

pub(super) const NAMES: Names = Names {
    prefix: "roberta.",
    encoder: bert::ENCODER,
    head: &[
        ("head.dense", "classifier.dense"),
        ("head.classifier", "classifier.out_proj"),
    ],
    // Base models have a pooler, which rerankers do not.
    other_heads: &["classifier.", "lm_head.", "pooler."],
};

pub(super) fn read(file: &ConfigFile, architecture: Architecture) -> Result<ModelConfig> {
    let config = bert::read_as(file, architecture, 1)?;
    let least = config.pad_token_id + 1;
    if config.max_position_embeddings <= least {
        return Err(file.unsupported(
            "max_position_embeddings",
            &config.max_position_embeddings,
            &format!("more than pad_token_id + 1 ({least})"),
        ));
    }
    Ok(config)
}
