//! BERT, and what RoBERTa and ELECTRA have of it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Architecture, Names};
use crate::attention::Attention;
use crate::config::ModelConfig;
use crate::config_file::ConfigFile;
use crate::error::Result;
use crate::precision::Precision;

pub(super) const NAMES: Names = Names {
    prefix: "bert.",
    encoder: ENCODER,
    head: &[
        ("head.dense", "bert.pooler.dense"),
        ("head.classifier", "classifier"),
    ],
    other_heads: &["classifier.", "cls."],
};

pub(super) const ENCODER: &[(&str, &str)] = &[
    ("encoder.words", "embeddings.word_embeddings"),
    ("encoder.positions", "embeddings.position_embeddings"),
    ("encoder.segments", "embeddings.token_type_embeddings"),
    ("encoder.norm", "embeddings.LayerNorm"),
    // ELECTRA's alone.
    ("encoder.projection", "embeddings_project"),
    (
        "encoder.stack.layers.*.query",
        "encoder.layer.*.attention.self.query",
    ),
    (
        "encoder.stack.layers.*.key",
        "encoder.layer.*.attention.self.key",
    ),
    (
        "encoder.stack.layers.*.value",
        "encoder.layer.*.attention.self.value",
    ),
    (
        "encoder.stack.layers.*.attended",
        "encoder.layer.*.attention.output.dense",
    ),
    (
        "encoder.stack.layers.*.attended_norm",
        "encoder.layer.*.attention.output.LayerNorm",
    ),
    (
        "encoder.stack.layers.*.inner",
        "encoder.layer.*.intermediate.dense",
    ),
    (
        "encoder.stack.layers.*.outer",
        "encoder.layer.*.output.dense",
    ),
    (
        "encoder.stack.layers.*.outer_norm",
        "encoder.layer.*.output.LayerNorm",
    ),
];

/// The keys of `config.json`, with transformers' defaults.
#[derive(Deserialize, Serialize)]
struct Fields {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "tiny")]
    layer_norm_eps: f64,
    #[serde(default = "tenth")]
    hidden_dropout_prob: f64,
    #[serde(default = "tenth")]
    attention_probs_dropout_prob: f64,
    classifier_dropout: Option<f64>,
    #[serde(default = "super::fiftieth")]
    initializer_range: f64,
    pad_token_id: Option<usize>,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    use_cache: Option<bool>,
    #[serde(default, skip_serializing)]
    is_decoder: bool,
    #[serde(default, skip_serializing)]
    add_cross_attention: bool,
}

pub(super) fn read(file: &ConfigFile) -> Result<ModelConfig> {
    read_as(file, Architecture::Bert, 0)
}

/// Reads what has the keys of BERT, but for its padding token.
pub(super) fn read_as(
    file: &ConfigFile,
    architecture: Architecture,
    pad_token_id: usize,
) -> Result<ModelConfig> {
    let fields: Fields = file.fields()?;
    for (key, got, supported) in [
        ("hidden_act", &fields.hidden_act, "gelu"),
        (
            "position_embedding_type",
            &fields.position_embedding_type,
            "absolute",
        ),
    ] {
        file.refuse_other(key, got.as_deref().unwrap_or(supported), supported)?;
    }
    file.refuse_other("is_decoder", fields.is_decoder, false)?;
    file.refuse_other("add_cross_attention", fields.add_cross_attention, false)?;
    file.refuse_count("num_hidden_layers", fields.num_hidden_layers)?;
    file.refuse_empty(&[
        ("vocab_size", fields.vocab_size),
        ("intermediate_size", fields.intermediate_size),
        ("max_position_embeddings", fields.max_position_embeddings),
        ("type_vocab_size", fields.type_vocab_size),
    ])?;
    file.refuse_uneven(
        ("hidden_size", fields.hidden_size),
        ("num_attention_heads", fields.num_attention_heads),
    )?;
    file.refuse_improbable(&[
        ("hidden_dropout_prob", fields.hidden_dropout_prob),
        (
            "attention_probs_dropout_prob",
            fields.attention_probs_dropout_prob,
        ),
        (
            "classifier_dropout",
            fields.classifier_dropout.unwrap_or(0.0),
        ),
    ])?;
    let pad_token_id = fields.pad_token_id.unwrap_or(pad_token_id);
    file.refuse_padding(pad_token_id, fields.vocab_size)?;
    Ok(ModelConfig {
        architecture,
        vocab_size: fields.vocab_size,
        embedding_size: fields.hidden_size,
        hidden_size: fields.hidden_size,
        num_hidden_layers: fields.num_hidden_layers,
        num_attention_heads: fields.num_attention_heads,
        intermediate_size: fields.intermediate_size,
        max_position_embeddings: fields.max_position_embeddings,
        type_vocab_size: fields.type_vocab_size,
        layer_norm_eps: fields.layer_norm_eps,
        hidden_dropout_prob: fields.hidden_dropout_prob,
        attention_probs_dropout_prob: fields.attention_probs_dropout_prob,
        classifier_dropout: fields.classifier_dropout,
        initializer_range: fields.initializer_range,
        pad_token_id,
        labels: file.labels()?,
        modern: None,
        precision: Precision::default(),
        attention: Attention::default(),
    })
}

pub(super) fn fields(config: &ModelConfig) -> Value {
    json!(Fields {
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        intermediate_size: config.intermediate_size,
        max_position_embeddings: config.max_position_embeddings,
        type_vocab_size: config.type_vocab_size,
        layer_norm_eps: config.layer_norm_eps,
        hidden_dropout_prob: config.hidden_dropout_prob,
        attention_probs_dropout_prob: config.attention_probs_dropout_prob,
        classifier_dropout: config.classifier_dropout,
        initializer_range: config.initializer_range,
        pad_token_id: Some(config.pad_token_id),
        hidden_act: Some("gelu".to_owned()),
        position_embedding_type: Some("absolute".to_owned()),
        use_cache: Some(true),
        is_decoder: false,
        add_cross_attention: false,
    })
}

fn two() -> usize {
    2
}

fn tiny() -> f64 {
    1e-12
}

fn tenth() -> f64 {
    0.1
}
