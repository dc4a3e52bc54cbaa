//! `config.json` with Hugging Face's names.

use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// What a BERT model's `config.json` says, as far as it changes what is computed.
///
/// The fields have Hugging Face's names and meanings.
#[derive(Debug, Clone, PartialEq)]
pub struct BertConfig {
    /// Rows of the word embeddings.
    pub vocab_size: usize,
    /// Width of every hidden state.
    pub hidden_size: usize,
    /// Encoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads; they share `hidden_size` equally.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Longest input, in tokens.
    pub max_position_embeddings: usize,
    /// Segments: 2, the query's and the document's.
    pub type_vocab_size: usize,
    /// Added to the variance in every layer norm.
    pub layer_norm_eps: f64,
    /// Probability that training drops an element of a hidden state.
    pub hidden_dropout_prob: f64,
    /// Probability that training drops an attention weight.
    pub attention_probs_dropout_prob: f64,
    /// Standard deviation of weights drawn anew.
    pub initializer_range: f64,
    /// The token that fills short rows of a batch.
    pub pad_token_id: usize,
}

impl BertConfig {
    /// Reads `config.json` in `folder`.
    ///
    /// # Errors
    /// A missing or malformed file, or a model that is not the plain BERT encoder; the error names
    /// the key.
    pub fn read(folder: &Path) -> Result<Self> {
        File::read(folder)?.into_config()
    }

    /// Like [`BertConfig::read`], and refuses a classifier with other than one label.
    pub(crate) fn read_reranker(folder: &Path) -> Result<Self> {
        let file = File::read(folder)?;
        file.refuse_labels()?;
        file.into_config()
    }

    /// The `config.json` to serve a [`CrossEncoder`](crate::CrossEncoder) with: every key that
    /// transformers, sentence-transformers, text-embeddings-inference and vLLM ask for, without
    /// the `sentence_transformers` block.
    pub fn to_serving_json(&self) -> Value {
        json!({
            "architectures": ["BertForSequenceClassification"],
            "attention_probs_dropout_prob": self.attention_probs_dropout_prob,
            "classifier_dropout": null,
            "dtype": "float32",
            "hidden_act": "gelu",
            "hidden_dropout_prob": self.hidden_dropout_prob,
            "hidden_size": self.hidden_size,
            "id2label": { "0": "LABEL_0" },
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "label2id": { "LABEL_0": 0 },
            "layer_norm_eps": self.layer_norm_eps,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "bert",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "pad_token_id": self.pad_token_id,
            "position_embedding_type": "absolute",
            "torch_dtype": "float32",
            "transformers_version": LAYOUT_OF_TRANSFORMERS,
            "type_vocab_size": self.type_vocab_size,
            "use_cache": true,
            "vocab_size": self.vocab_size,
        })
    }
}

/// The transformers release whose `config.json` the serving one follows; readers only log it.
const LAYOUT_OF_TRANSFORMERS: &str = "4.57.1";

/// The file as it is read: defaults are those of transformers' `BertConfig`, other keys are let be.
#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
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
    #[serde(default = "fiftieth")]
    initializer_range: f64,
    pad_token_id: Option<usize>,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    num_labels: Option<usize>,
    id2label: Option<serde_json::Map<String, Value>>,
}

struct File {
    path: PathBuf,
    raw: Raw,
}

impl File {
    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        if !path.exists() {
            return Err(Error::MissingFile { path });
        }
        let bytes = fs::read(&path)?;
        match serde_json::from_slice(&bytes) {
            Ok(raw) => Ok(Self { path, raw }),
            Err(source) => Err(Error::Config { path, source }),
        }
    }

    fn into_config(self) -> Result<BertConfig> {
        self.refuse_other_models()?;
        let raw = self.raw;
        Ok(BertConfig {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            intermediate_size: raw.intermediate_size,
            max_position_embeddings: raw.max_position_embeddings,
            type_vocab_size: raw.type_vocab_size,
            layer_norm_eps: raw.layer_norm_eps,
            hidden_dropout_prob: raw.hidden_dropout_prob,
            attention_probs_dropout_prob: raw.attention_probs_dropout_prob,
            initializer_range: raw.initializer_range,
            pad_token_id: raw.pad_token_id.unwrap_or(0),
        })
    }

    fn refuse_other_models(&self) -> Result<()> {
        let raw = &self.raw;
        for (key, got, supported) in [
            ("model_type", &raw.model_type, "bert"),
            ("hidden_act", &raw.hidden_act, "gelu"),
            (
                "position_embedding_type",
                &raw.position_embedding_type,
                "absolute",
            ),
        ] {
            let got = got.as_deref().unwrap_or(supported);
            if got != supported {
                return Err(self.unsupported(key, &got, &supported));
            }
        }
        if raw.is_decoder {
            return Err(self.unsupported("is_decoder", &true, &false));
        }
        for (key, size) in [
            ("vocab_size", raw.vocab_size),
            ("hidden_size", raw.hidden_size),
            ("num_hidden_layers", raw.num_hidden_layers),
            ("num_attention_heads", raw.num_attention_heads),
            ("intermediate_size", raw.intermediate_size),
            ("max_position_embeddings", raw.max_position_embeddings),
            ("type_vocab_size", raw.type_vocab_size),
        ] {
            if size == 0 {
                return Err(self.unsupported(key, &size, &"1 or more"));
            }
        }
        if !raw.hidden_size.is_multiple_of(raw.num_attention_heads) {
            let supported = format!(
                "a multiple of num_attention_heads ({})",
                raw.num_attention_heads
            );
            return Err(self.unsupported("hidden_size", &raw.hidden_size, &supported));
        }
        for (key, probability) in [
            ("hidden_dropout_prob", raw.hidden_dropout_prob),
            (
                "attention_probs_dropout_prob",
                raw.attention_probs_dropout_prob,
            ),
        ] {
            if !(0.0..1.0).contains(&probability) {
                return Err(self.unsupported(key, &probability, &"0 up to, but not, 1"));
            }
        }
        Ok(())
    }

    fn refuse_labels(&self) -> Result<()> {
        let labels = self.raw.id2label.as_ref().map(serde_json::Map::len);
        for (key, labels) in [("num_labels", self.raw.num_labels), ("id2label", labels)] {
            if let Some(labels) = labels
                && labels != 1
            {
                return Err(self.unsupported(key, &format!("{labels} labels"), &"1 label"));
            }
        }
        Ok(())
    }

    fn unsupported(
        &self,
        key: &'static str,
        got: &dyn ToString,
        supported: &dyn ToString,
    ) -> Error {
        Error::Unsupported {
            path: self.path.clone(),
            key,
            got: got.to_string(),
            supported: supported.to_string(),
        }
    }
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

fn fiftieth() -> f64 {
    0.02
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(changes: &Value) -> Result<BertConfig> {
        let mut config = json!({
            "model_type": "bert", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32,
            "id2label": { "0": "LABEL_0" }, "a_key_of_tomorrow": [1, 2],
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        BertConfig::read_reranker(folder.path())
    }

    #[test]
    fn absent_keys_get_the_defaults_of_transformers() {
        let config = read(&json!({})).unwrap();
        assert_eq!(config.type_vocab_size, 2);
        assert!((config.layer_norm_eps - 1e-12).abs() < 1e-20);
        assert_eq!(config.pad_token_id, 0);
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (changes, message) in [
            (
                json!({ "model_type": "roberta" }),
                "model_type is roberta, but only bert",
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
                json!({ "num_hidden_layers": 0 }),
                "num_hidden_layers is 0, but only 1 or more",
            ),
            (
                json!({ "hidden_dropout_prob": 1.0 }),
                "hidden_dropout_prob is 1, but only 0 up to",
            ),
            (
                json!({ "num_labels": 3 }),
                "num_labels is 3 labels, but only 1 label",
            ),
            (
                json!({ "id2label": { "0": "a", "1": "b" } }),
                "id2label is 2 labels, but only 1",
            ),
        ] {
            let error = read(&changes).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn a_missing_key_is_named_by_the_source() {
        let error = read(&json!({ "vocab_size": null })).unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error:?}");
    }

    #[test]
    fn the_serving_file_reads_back_as_the_same_model() {
        let config = read(&json!({ "pad_token_id": 3, "layer_norm_eps": 1e-5 })).unwrap();
        assert_eq!(read(&config.to_serving_json()).unwrap(), config);
    }
}
