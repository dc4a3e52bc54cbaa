//! DistilBERT: BERT without segments and pooler, under names of its own.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Architecture, Names};
use crate::attention::Attention;
use crate::config::ModelConfig;
use crate::config_file::ConfigFile;
use crate::error::Result;
use crate::precision::Precision;

pub(super) const NAMES: Names = Names {
    prefix: "distilbert.",
    encoder: &[
        ("encoder.words", "embeddings.word_embeddings"),
        ("encoder.positions", "embeddings.position_embeddings"),
        ("encoder.norm", "embeddings.LayerNorm"),
        (
            "encoder.stack.layers.*.query",
            "transformer.layer.*.attention.q_lin",
        ),
        (
            "encoder.stack.layers.*.key",
            "transformer.layer.*.attention.k_lin",
        ),
        (
            "encoder.stack.layers.*.value",
            "transformer.layer.*.attention.v_lin",
        ),
        (
            "encoder.stack.layers.*.attended",
            "transformer.layer.*.attention.out_lin",
        ),
        (
            "encoder.stack.layers.*.attended_norm",
            "transformer.layer.*.sa_layer_norm",
        ),
        (
            "encoder.stack.layers.*.inner",
            "transformer.layer.*.ffn.lin1",
        ),
        (
            "encoder.stack.layers.*.outer",
            "transformer.layer.*.ffn.lin2",
        ),
        (
            "encoder.stack.layers.*.outer_norm",
            "transformer.layer.*.output_layer_norm",
        ),
    ],
    head: &[
        ("head.dense", "pre_classifier"),
        ("head.classifier", "classifier"),
    ],
    other_heads: &[
        "classifier.",
        "pre_classifier.",
        "vocab_transform.",
        "vocab_layer_norm.",
        "vocab_projector.",
    ],
};

/// Fixed in transformers: no key names it.
const LAYER_NORM_EPS: f64 = 1e-12;

/// The keys of `config.json`, with transformers' defaults.
#[derive(Deserialize, Serialize)]
struct Fields {
    vocab_size: usize,
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: usize,
    max_position_embeddings: usize,
    #[serde(default = "tenth")]
    dropout: f64,
    #[serde(default = "tenth")]
    attention_dropout: f64,
    #[serde(default = "fifth")]
    seq_classif_dropout: f64,
    #[serde(default = "super::fiftieth")]
    initializer_range: f64,
    pad_token_id: Option<usize>,
    activation: Option<String>,
    #[serde(default)]
    sinusoidal_pos_embds: bool,
}

pub(super) fn read(file: &ConfigFile) -> Result<ModelConfig> {
    let fields: Fields = file.fields()?;
    let activation = fields.activation.as_deref().unwrap_or("gelu");
    file.refuse_other("activation", activation, "gelu")?;
    file.refuse_other("sinusoidal_pos_embds", fields.sinusoidal_pos_embds, false)?;
    file.refuse_count("n_layers", fields.n_layers)?;
    file.refuse_empty(&[
        ("vocab_size", fields.vocab_size),
        ("hidden_dim", fields.hidden_dim),
        ("max_position_embeddings", fields.max_position_embeddings),
    ])?;
    file.refuse_uneven(("dim", fields.dim), ("n_heads", fields.n_heads))?;
    file.refuse_improbable(&[
        ("dropout", fields.dropout),
        ("attention_dropout", fields.attention_dropout),
        ("seq_classif_dropout", fields.seq_classif_dropout),
    ])?;
    let pad_token_id = fields.pad_token_id.unwrap_or(0);
    file.refuse_padding(pad_token_id, fields.vocab_size)?;
    Ok(ModelConfig {
        architecture: Architecture::DistilBert,
        vocab_size: fields.vocab_size,
        embedding_size: fields.dim,
        hidden_size: fields.dim,
        num_hidden_layers: fields.n_layers,
        num_attention_heads: fields.n_heads,
        intermediate_size: fields.hidden_dim,
        max_position_embeddings: fields.max_position_embeddings,
        type_vocab_size: 0,
        layer_norm_eps: LAYER_NORM_EPS,
        hidden_dropout_prob: fields.dropout,
        attention_probs_dropout_prob: fields.attention_dropout,
        classifier_dropout: Some(fields.seq_classif_dropout),
        initializer_range: fields.initializer_range,
        pad_token_id,
        labels: file.labels()?,
        modern: None,
        precision: Precision::default(),
        attention: Attention::default(),
    })
}

pub(super) fn fields(config: &ModelConfig) -> Value {
    let dropout = config.hidden_dropout_prob;
    json!(Fields {
        vocab_size: config.vocab_size,
        dim: config.hidden_size,
        n_layers: config.num_hidden_layers,
        n_heads: config.num_attention_heads,
        hidden_dim: config.intermediate_size,
        max_position_embeddings: config.max_position_embeddings,
        dropout,
        attention_dropout: config.attention_probs_dropout_prob,
        seq_classif_dropout: config.classifier_dropout.unwrap_or(dropout),
        initializer_range: config.initializer_range,
        pad_token_id: Some(config.pad_token_id),
        activation: Some("gelu".to_owned()),
        sinusoidal_pos_embds: false,
    })
}

fn tenth() -> f64 {
    0.1
}

fn fifth() -> f64 {
    0.2
}
