//! `config.json` with Hugging Face's names.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::architecture::Architecture;
use crate::attention::Attention;
use crate::config_file::ConfigFile;
use crate::error::Result;
use crate::precision::Precision;

/// What a model's `config.json` says, as far as it changes what is computed.
///
/// The fields have the names and meanings of Hugging Face's BERT, whatever an architecture's own
/// file calls them.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which of the family.
    pub architecture: Architecture,
    /// Rows of the word embeddings.
    pub vocab_size: usize,
    /// Width of the embeddings: `hidden_size`, but in an ELECTRA that projects them to it.
    pub embedding_size: usize,
    /// Width of every hidden state.
    pub hidden_size: usize,
    /// Encoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads; they share `hidden_size` equally.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Positions, of which not every one is a token's: see [`ModelConfig::max_tokens`].
    pub max_position_embeddings: usize,
    /// Segment embeddings: 2, the query's and the document's; 0 where there are none.
    pub type_vocab_size: usize,
    /// Added to the variance in every layer norm.
    pub layer_norm_eps: f64,
    /// Probability that training drops an element of a hidden state.
    pub hidden_dropout_prob: f64,
    /// Probability that training drops an attention weight.
    pub attention_probs_dropout_prob: f64,
    /// The same of what the classifier reads, where it is not `hidden_dropout_prob`.
    pub classifier_dropout: Option<f64>,
    /// Standard deviation of weights drawn anew.
    pub initializer_range: f64,
    /// The token that fills short rows of a batch.
    pub pad_token_id: usize,
    /// What the classifier's outputs are called; a reranker has one.
    pub labels: Vec<String>,
    /// What only a ModernBERT has.
    pub modern: Option<ModernBertConfig>,
    /// What training computes in what, which no `config.json` says.
    pub precision: Precision,
    /// How training computes attention, which none says either.
    pub attention: Attention,
}

/// What a ModernBERT's `config.json` says beyond that of the others.
#[derive(Debug, Clone, PartialEq)]
pub struct ModernBertConfig {
    /// How far a token of a local layer sees, half of it to either side.
    pub local_attention: usize,
    /// Of so many layers the first sees all tokens, the others are local.
    pub global_attn_every_n_layers: usize,
    /// The base of the rotary embeddings' wavelengths where all tokens are seen.
    pub global_rope_theta: f64,
    /// The same in local layers.
    pub local_rope_theta: f64,
    /// Whether the classifier reads the mean of all tokens, and not the first.
    pub pools_mean: bool,
    /// The token before a text. Servers read it, the model does not.
    pub cls_token_id: usize,
    /// The token after a text. Servers read it, the model does not.
    pub sep_token_id: usize,
}

impl ModelConfig {
    /// Reads `config.json` in `folder`.
    ///
    /// # Errors
    /// A missing or malformed file, or a model that this crate does not compute; the error names
    /// the key.
    pub fn read(folder: &Path) -> Result<Self> {
        ConfigFile::read(folder)?.config()
    }

    /// Like [`ModelConfig::read`], and refuses a classifier with other than one label.
    pub(crate) fn read_reranker(folder: &Path) -> Result<Self> {
        let file = ConfigFile::read(folder)?;
        let config = file.config()?;
        if config.labels.len() == 1 {
            return Ok(config);
        }
        let got = format!("{} labels", config.labels.len());
        Err(file.unsupported(file.key_of_labels(), &got, &"1 label"))
    }

    /// Whether a folder says that it holds a whole cross-encoder: a classifier of one label.
    pub fn is_of_reranker(folder: &Path) -> bool {
        let text = fs_err::read_to_string(folder.join("config.json")).unwrap_or_default();
        let json: Value = serde_json::from_str(&text).unwrap_or_default();
        let classes = json["architectures"].as_array().into_iter().flatten();
        let mut classes = classes.filter_map(Value::as_str);
        classes.any(|class| class.ends_with("ForSequenceClassification"))
            && Self::read_reranker(folder).is_ok()
    }

    /// The longest input.
    pub fn max_tokens(&self) -> usize {
        let positions = self.max_position_embeddings;
        if self.counts_from_padding() {
            positions.saturating_sub(self.pad_token_id + 1)
        } else {
            positions
        }
    }

    /// How many layers are above the parameter of that Hugging Face name: all above the embeddings,
    /// none above the highest. `None` of the head's parameters.
    pub fn layers_above(&self, name: &str) -> Option<usize> {
        let names = self.architecture.names();
        names.layers_above(name, self.num_hidden_layers)
    }

    /// Whether it matters to the model which text of a pair a token is of.
    pub fn reads_segments(&self) -> bool {
        matches!(
            self.architecture,
            Architecture::Bert | Architecture::Electra
        )
    }

    /// Whether a text's first position is the one after the padding token's id, as in RoBERTa.
    pub(crate) fn counts_from_padding(&self) -> bool {
        matches!(
            self.architecture,
            Architecture::Roberta | Architecture::XlmRoberta
        )
    }

    /// The `config.json` to serve a [`CrossEncoder`](crate::CrossEncoder) with: every key that
    /// transformers, sentence-transformers, text-embeddings-inference and vLLM ask for, without
    /// the `sentence_transformers` block.
    pub fn to_serving_json(&self) -> Value {
        let number = |place: usize| place.to_string();
        let labels = || self.labels.iter().enumerate();
        let id2label: Map<String, Value> = labels()
            .map(|(place, label)| (number(place), json!(label)))
            .collect();
        let label2id: Map<String, Value> = labels()
            .map(|(place, label)| (label.clone(), json!(place)))
            .collect();
        let mut json = self.architecture.fields(self);
        json["architectures"] = json!([self.architecture.class()]);
        json["dtype"] = json!("float32");
        json["id2label"] = id2label.into();
        json["label2id"] = label2id.into();
        json["model_type"] = json!(self.architecture.model_type());
        json["torch_dtype"] = json!("float32");
        json["transformers_version"] = json!(LAYOUT_OF_TRANSFORMERS);
        json
    }
}

/// The transformers release whose `config.json` the serving one follows; readers only log it.
const LAYOUT_OF_TRANSFORMERS: &str = "4.57.1";

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;
    use crate::error::Error;

    fn bert() -> Value {
        json!({
            "model_type": "bert", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32,
            "id2label": { "0": "LABEL_0" }, "a_key_of_tomorrow": [1, 2],
        })
    }

    fn distilbert() -> Value {
        json!({
            "model_type": "distilbert", "vocab_size": 9, "dim": 8, "n_layers": 1, "n_heads": 2,
            "hidden_dim": 16, "max_position_embeddings": 32,
        })
    }

    fn modernbert() -> Value {
        with(
            bert(),
            &json!({ "model_type": "modernbert", "num_hidden_layers": 4, "pad_token_id": 3 }),
        )
    }

    fn with(mut config: Value, changes: &Value) -> Value {
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    }

    fn read(config: &Value) -> Result<ModelConfig> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        ModelConfig::read_reranker(folder.path())
    }

    /// Each change makes a file that is refused in those words.
    fn assert_refused(config: &Value, changes: &[(Value, &str)]) {
        for (change, message) in changes {
            let error = read(&with(config.clone(), change)).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        }
    }

    #[test]
    fn absent_keys_get_the_defaults_of_transformers() {
        let config = read(&bert()).unwrap();
        assert_eq!(config.type_vocab_size, 2);
        assert!((config.layer_norm_eps - 1e-12).abs() < 1e-20);
        assert_eq!((config.pad_token_id, config.max_tokens()), (0, 32));
        assert_eq!(config.labels, ["LABEL_0"]);

        let roberta = read(&with(bert(), &json!({ "model_type": "roberta" }))).unwrap();
        assert_eq!((roberta.pad_token_id, roberta.max_tokens()), (1, 30));

        let modern = read(&modernbert()).unwrap().modern.unwrap();
        let kinds = [0, 1, 2, 3].map(|layer| modern.is_global(layer));
        assert_eq!(kinds, [true, false, false, true]);
        assert_eq!(modern.local_attention, 128);
        assert!(!modern.pools_mean);
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        assert_refused(
            &bert(),
            &[
                (
                    json!({ "model_type": "deberta-v2" }),
                    "model_type is deberta-v2, but only bert, distilbert, electra, modernbert, roberta",
                ),
                (
                    json!({ "hidden_act": "gelu_new" }),
                    "hidden_act is gelu_new, but only gelu",
                ),
                (
                    json!({ "position_embedding_type": "relative_key" }),
                    "position_embedding_type is relative_key, but only absolute",
                ),
                (
                    json!({ "is_decoder": true }),
                    "is_decoder is true, but only false",
                ),
                (
                    json!({ "hidden_size": 9 }),
                    "hidden_size is 9, but only a multiple of",
                ),
                (
                    json!({ "num_attention_heads": 0 }),
                    "num_attention_heads is 0, but only 1 or more",
                ),
                (
                    json!({ "num_hidden_layers": 1_000_000_000_000u64 }),
                    "num_hidden_layers is 1000000000000, but only 1 to 1000",
                ),
                (
                    json!({ "hidden_dropout_prob": 1.0 }),
                    "hidden_dropout_prob is 1, but only 0 up to",
                ),
                (
                    json!({ "pad_token_id": 9 }),
                    "pad_token_id is 9, but only a number below vocab_size (9)",
                ),
                (
                    json!({ "id2label": null, "num_labels": 3 }),
                    "num_labels is 3 labels, but only 1 label",
                ),
                (
                    json!({ "num_labels": 3 }),
                    "num_labels is 3, but only 1 is supported",
                ),
                (
                    json!({ "id2label": { "0": "a", "1": "b" } }),
                    "id2label is 2 labels, but only 1",
                ),
                (
                    json!({ "id2label": { "1": "a" } }),
                    "id2label is without the label 0",
                ),
                (
                    json!({ "model_type": "xlm-roberta", "max_position_embeddings": 2 }),
                    "max_position_embeddings is 2, but only more than pad_token_id + 1 (2)",
                ),
                (
                    json!({ "model_type": "electra", "embedding_size": 0 }),
                    "embedding_size is 0, but only 1 or more",
                ),
            ],
        );
    }

    #[test]
    fn what_a_distilbert_does_not_compute_is_refused_by_name() {
        assert_refused(
            &distilbert(),
            &[
                (
                    json!({ "activation": "relu" }),
                    "activation is relu, but only gelu",
                ),
                (
                    json!({ "sinusoidal_pos_embds": true }),
                    "sinusoidal_pos_embds is true, but only false",
                ),
                (json!({ "dim": 7 }), "dim is 7, but only a multiple of"),
            ],
        );
    }

    #[test]
    fn what_a_modernbert_does_not_compute_is_refused_by_name() {
        let (global, local) = ("full_attention", "sliding_attention");
        assert_refused(
            &modernbert(),
            &[
                (
                    json!({ "norm_bias": true }),
                    "norm_bias is true, but only false",
                ),
                (
                    json!({ "hidden_activation": "silu" }),
                    "hidden_activation is silu, but only gelu",
                ),
                (
                    json!({ "classifier_pooling": "max" }),
                    "classifier_pooling is max, but only cls or mean",
                ),
                (
                    json!({ "layer_types": [global, local, global, local, local] }),
                    "layer_types is full_attention, sliding_attention, full_attention",
                ),
                (
                    json!({ "layer_types": [global, local, global, local],
                    "global_attn_every_n_layers": 3 }),
                    "global_attn_every_n_layers is 3, but only 2",
                ),
                (
                    json!({ "rope_scaling": { "rope_type": "yarn" } }),
                    "rope_scaling is",
                ),
                (
                    json!({ "rope_parameters": { local: { "rope_type": "linear" } } }),
                    "rope_parameters is linear, but only default",
                ),
                (
                    json!({ "rope_parameters": { local: { "rope_theta": 100.0 } },
                    "local_rope_theta": 10.0 }),
                    "local_rope_theta is 10, but only 100",
                ),
                (
                    json!({ "embedding_dropout": 0.1 }),
                    "embedding_dropout is 0.1, but only 0",
                ),
                (
                    json!({ "num_attention_heads": 8 }),
                    "hidden_size is 8, but only an even number",
                ),
            ],
        );
    }

    #[test]
    fn a_missing_key_is_named_by_the_source() {
        let error = read(&with(bert(), &json!({ "vocab_size": null }))).unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error:?}");
    }

    #[test]
    fn the_serving_file_reads_back_as_the_same_model() {
        let shared = json!({ "pad_token_id": 3, "layer_norm_eps": 1e-5, "embedding_size": 4 });
        for config in [
            with(bert(), &shared),
            with(
                bert(),
                &with(shared.clone(), &json!({ "model_type": "roberta" })),
            ),
            with(
                bert(),
                &with(shared.clone(), &json!({ "model_type": "xlm-roberta" })),
            ),
            with(
                bert(),
                &with(shared.clone(), &json!({ "model_type": "electra" })),
            ),
            with(
                distilbert(),
                &json!({ "dropout": 0.3, "id2label": { "0": "relevance" } }),
            ),
            with(
                modernbert(),
                &json!({ "classifier_pooling": "mean", "global_attn_every_n_layers": 2 }),
            ),
        ] {
            let config = read(&config).unwrap();
            assert_eq!(read(&config.to_serving_json()).unwrap(), config);
        }
    }
}
