//! ModernBERT: the keys of transformers 4 and those of transformers 5, which renamed some.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Architecture, Names};
use crate::attention::Attention;
use crate::config::{ModelConfig, ModernBertConfig};
use crate::config_file::ConfigFile;
use crate::error::Result;
use crate::precision::Precision;

pub(super) const NAMES: Names = Names {
    prefix: "model.",
    encoder: &[
        ("encoder.words", "embeddings.tok_embeddings"),
        ("encoder.norm", "embeddings.norm"),
        (
            "encoder.stack.layers.*.attention_norm",
            "layers.*.attn_norm",
        ),
        ("encoder.stack.layers.*.joined", "layers.*.attn.Wqkv"),
        ("encoder.stack.layers.*.attended", "layers.*.attn.Wo"),
        ("encoder.stack.layers.*.inner_norm", "layers.*.mlp_norm"),
        ("encoder.stack.layers.*.inner", "layers.*.mlp.Wi"),
        ("encoder.stack.layers.*.outer", "layers.*.mlp.Wo"),
        ("encoder.stack.norm", "final_norm"),
    ],
    // Base models have the dense layer and its norm too, below the words they predict.
    head: &[
        ("head.dense", "head.dense"),
        ("head.norm", "head.norm"),
        ("head.classifier", "classifier"),
    ],
    other_heads: &["classifier.", "decoder."],
};

const GLOBAL: &str = "full_attention";
const LOCAL: &str = "sliding_attention";

/// The keys of `config.json`, with transformers' defaults.
#[derive(Deserialize)]
struct Fields {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "hundred_thousandth")]
    norm_eps: f64,
    norm_bias: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    classifier_bias: Option<bool>,
    #[serde(default)]
    embedding_dropout: f64,
    #[serde(default)]
    mlp_dropout: f64,
    #[serde(default)]
    attention_dropout: f64,
    #[serde(default)]
    classifier_dropout: f64,
    #[serde(default = "super::fiftieth")]
    initializer_range: f64,
    hidden_activation: Option<String>,
    classifier_activation: Option<String>,
    classifier_pooling: Option<String>,
    local_attention: Option<usize>,
    pad_token_id: Option<usize>,
    cls_token_id: Option<usize>,
    sep_token_id: Option<usize>,
    rope_scaling: Option<Value>,
    // Of transformers 4.
    global_attn_every_n_layers: Option<usize>,
    global_rope_theta: Option<f64>,
    local_rope_theta: Option<f64>,
    // Of transformers 5.
    layer_types: Option<Vec<String>>,
    rope_parameters: Option<RopeParameters>,
}

#[derive(Deserialize)]
struct RopeParameters {
    full_attention: Option<Rope>,
    sliding_attention: Option<Rope>,
}

#[derive(Deserialize)]
struct Rope {
    rope_type: Option<String>,
    rope_theta: Option<f64>,
}

pub(super) fn read(file: &ConfigFile) -> Result<ModelConfig> {
    let fields: Fields = file.fields()?;
    refuse_other_computations(file, &fields)?;
    file.refuse_count("num_hidden_layers", fields.num_hidden_layers)?;
    file.refuse_empty(&[
        ("vocab_size", fields.vocab_size),
        ("intermediate_size", fields.intermediate_size),
        ("max_position_embeddings", fields.max_position_embeddings),
    ])?;
    file.refuse_uneven(
        ("hidden_size", fields.hidden_size),
        ("num_attention_heads", fields.num_attention_heads),
    )?;
    let head_width = fields.hidden_size / fields.num_attention_heads;
    if !head_width.is_multiple_of(2) {
        let supported = "an even number for each of num_attention_heads";
        return Err(file.unsupported("hidden_size", &fields.hidden_size, &supported));
    }
    file.refuse_improbable(&[
        ("mlp_dropout", fields.mlp_dropout),
        ("attention_dropout", fields.attention_dropout),
        ("classifier_dropout", fields.classifier_dropout),
    ])?;
    let pad_token_id = fields.pad_token_id.unwrap_or(50283);
    file.refuse_padding(pad_token_id, fields.vocab_size)?;
    Ok(ModelConfig {
        architecture: Architecture::ModernBert,
        vocab_size: fields.vocab_size,
        embedding_size: fields.hidden_size,
        hidden_size: fields.hidden_size,
        num_hidden_layers: fields.num_hidden_layers,
        num_attention_heads: fields.num_attention_heads,
        intermediate_size: fields.intermediate_size,
        max_position_embeddings: fields.max_position_embeddings,
        type_vocab_size: 0,
        layer_norm_eps: fields.norm_eps,
        hidden_dropout_prob: fields.mlp_dropout,
        attention_probs_dropout_prob: fields.attention_dropout,
        classifier_dropout: Some(fields.classifier_dropout),
        initializer_range: fields.initializer_range,
        pad_token_id,
        labels: file.labels()?,
        modern: Some(modern(file, &fields)?),
        precision: Precision::default(),
        attention: Attention::default(),
    })
}

/// What published models leave at its default, and what is not computed.
fn refuse_other_computations(file: &ConfigFile, fields: &Fields) -> Result<()> {
    for (key, got) in [
        ("hidden_activation", &fields.hidden_activation),
        ("classifier_activation", &fields.classifier_activation),
    ] {
        file.refuse_other(key, got.as_deref().unwrap_or("gelu"), "gelu")?;
    }
    for (key, got) in [
        ("norm_bias", fields.norm_bias),
        ("attention_bias", fields.attention_bias),
        ("mlp_bias", fields.mlp_bias),
        ("classifier_bias", fields.classifier_bias),
    ] {
        file.refuse_other(key, got.unwrap_or(false), false)?;
    }
    // One probability for all hidden states, as in the other architectures.
    let of_hidden = fields.mlp_dropout;
    file.refuse_other("embedding_dropout", fields.embedding_dropout, of_hidden)?;
    match &fields.rope_scaling {
        None => Ok(()),
        Some(other) => Err(file.unsupported("rope_scaling", other, &"null")),
    }
}

fn modern(file: &ConfigFile, fields: &Fields) -> Result<ModernBertConfig> {
    let pooling = fields.classifier_pooling.as_deref().unwrap_or("cls");
    if !["cls", "mean"].contains(&pooling) {
        return Err(file.unsupported("classifier_pooling", &pooling, &"cls or mean"));
    }
    let (global, local) = match &fields.rope_parameters {
        None => (None, None),
        Some(rope) => (
            rope.full_attention.as_ref(),
            rope.sliding_attention.as_ref(),
        ),
    };
    Ok(ModernBertConfig {
        local_attention: fields.local_attention.unwrap_or(128),
        global_attn_every_n_layers: every(file, fields)?,
        global_rope_theta: theta(
            file,
            ("global_rope_theta", fields.global_rope_theta),
            global,
            160_000.0,
        )?,
        local_rope_theta: theta(
            file,
            ("local_rope_theta", fields.local_rope_theta),
            local,
            10_000.0,
        )?,
        pools_mean: pooling == "mean",
        cls_token_id: fields.cls_token_id.unwrap_or(50281),
        sep_token_id: fields.sep_token_id.unwrap_or(50282),
    })
}

/// Of how many layers the first is global: the old key says it, the new one spells it out.
fn every(file: &ConfigFile, fields: &Fields) -> Result<usize> {
    let key = "global_attn_every_n_layers";
    let old = fields.global_attn_every_n_layers;
    file.refuse_empty(&[(key, old.unwrap_or(1))])?;
    let Some(types) = &fields.layer_types else {
        return Ok(old.unwrap_or(3));
    };
    let kinds: Vec<bool> = types.iter().map(|kind| kind == GLOBAL).collect();
    let is_known = types.iter().all(|kind| kind == GLOBAL || kind == LOCAL);
    match ModernBertConfig::every(&kinds) {
        Some(every) if is_known && types.len() == fields.num_hidden_layers => {
            file.refuse_other(key, old.unwrap_or(every), every)?;
            Ok(every)
        }
        _ => {
            let supported = format!("{GLOBAL} every so many layers from the first, else {LOCAL}");
            Err(file.unsupported("layer_types", &types.join(", "), &supported))
        }
    }
}

fn theta(
    file: &ConfigFile,
    (key, old): (&'static str, Option<f64>),
    new: Option<&Rope>,
    default: f64,
) -> Result<f64> {
    if let Some(kind) = new.and_then(|rope| rope.rope_type.as_deref()) {
        file.refuse_other("rope_parameters", kind, "default")?;
    }
    let new = new.and_then(|rope| rope.rope_theta);
    let theta = new.or(old).unwrap_or(default);
    file.refuse_other(key, old.unwrap_or(theta), theta)?;
    if theta > 0.0 {
        return Ok(theta);
    }
    Err(file.unsupported(key, &theta, &"a number above 0"))
}

impl ModernBertConfig {
    /// The `global_attn_every_n_layers` of layers of which those are global; none says it of
    /// layers without a pattern.
    pub(crate) fn every(are_global: &[bool]) -> Option<usize> {
        let second = are_global.iter().skip(1).position(|is_global| *is_global);
        let every = second.map_or(are_global.len(), |place| place + 1);
        let mut layers = are_global.iter().enumerate();
        (every > 0 && layers.all(|(layer, is_global)| *is_global == layer.is_multiple_of(every)))
            .then_some(every)
    }

    /// Whether a layer sees all tokens.
    pub(crate) fn is_global(&self, layer: usize) -> bool {
        layer.is_multiple_of(self.global_attn_every_n_layers)
    }
}

/// Under the old names and the new ones: text-embeddings-inference reads the old.
pub(super) fn fields(config: &ModelConfig) -> Value {
    let dropout = config.hidden_dropout_prob;
    let mut json = json!({
        "attention_bias": false,
        "attention_dropout": config.attention_probs_dropout_prob,
        "classifier_activation": "gelu",
        "classifier_bias": false,
        "classifier_dropout": config.classifier_dropout.unwrap_or(dropout),
        "decoder_bias": true,
        "embedding_dropout": dropout,
        "hidden_activation": "gelu",
        "hidden_size": config.hidden_size,
        "initializer_cutoff_factor": 2.0,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "mlp_bias": false,
        "mlp_dropout": dropout,
        "norm_bias": false,
        "norm_eps": config.layer_norm_eps,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_labels": config.labels.len(),
        "pad_token_id": config.pad_token_id,
        "vocab_size": config.vocab_size,
    });
    if let Some(modern) = &config.modern {
        let kind = |layer| {
            if modern.is_global(layer) {
                GLOBAL
            } else {
                LOCAL
            }
        };
        let kinds: Vec<&str> = (0..config.num_hidden_layers).map(kind).collect();
        let rope = |theta: f64| json!({ "rope_theta": theta, "rope_type": "default" });
        json["bos_token_id"] = json!(modern.cls_token_id);
        json["classifier_pooling"] = json!(if modern.pools_mean { "mean" } else { "cls" });
        json["cls_token_id"] = json!(modern.cls_token_id);
        json["eos_token_id"] = json!(modern.sep_token_id);
        json["global_attn_every_n_layers"] = json!(modern.global_attn_every_n_layers);
        json["global_rope_theta"] = json!(modern.global_rope_theta);
        json["layer_types"] = json!(kinds);
        json["local_attention"] = json!(modern.local_attention);
        json["local_rope_theta"] = json!(modern.local_rope_theta);
        json["rope_parameters"] = json!({
            GLOBAL: rope(modern.global_rope_theta),
            LOCAL: rope(modern.local_rope_theta),
        });
        json["sep_token_id"] = json!(modern.sep_token_id);
    }
    json
}

fn hundred_thousandth() -> f64 {
    1e-5
}
