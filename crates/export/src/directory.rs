use std::fmt::Write;
use std::path::Path;

use fs_err as fs;
use retort_model::{Architecture, CrossEncoder, Head, ModelConfig};
use serde_json::{Value, json};

use crate::scorer::{ACTIVATION, SIGMOID};
use crate::{Error, Result};

/// What a serving directory is made from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// A model folder in the Hugging Face layout, head included.
    pub model: &'a Path,
    /// Of query, document and special tokens together: what the model was trained with.
    pub max_tokens: usize,
    /// A line for the model card: the run it comes from.
    pub origin: &'a str,
}

/// Writes a serving directory:
///
/// ```text
/// config.json                 with one label, and sigmoid as the activation
/// model.safetensors           f32, Hugging Face names, BERT's pooler included
/// tokenizer.json              its own truncation and padding off: servers set theirs
/// tokenizer_config.json       model_max_length
/// special_tokens_map.json     vocab.txt, if the model has it
/// sentence_bert_config.json   max_seq_length and do_lower_case, which vLLM and TEI read
/// README.md                   SHA256SUMS
/// ```
///
/// # Errors
/// When `out` exists, the model is not a whole one-logit cross-encoder, or its tokenizer lacks a
/// file. `out` is then absent.
pub fn export(source: &Source, out: &Path) -> Result<()> {
    retort_files::refuse_existing(out)?;
    let config = ModelConfig::read(source.model)?;
    let positions = config.max_tokens();
    if source.max_tokens > positions {
        return Err(Error::File {
            path: source.model.join("config.json"),
            problem: format!(
                "has {positions} positions, fewer than the {} tokens to be served",
                source.max_tokens
            ),
        });
    }
    // Loading is the check: every tensor there, none else, all of the right shape and finite.
    let model = CrossEncoder::load(
        source.model,
        Head::Required,
        None,
        &burn::tensor::Device::flex(),
    )?;
    let tokenizer = read_json(&source.model.join("tokenizer.json"))?;
    let tokenizer_config = tokenizer_config(source, &config, &tokenizer)?;
    retort_files::write_new_directory(out, |out| {
        model.save(&out.join("model.safetensors"))?;
        write_json(&out.join("config.json"), &config_json(&config))?;
        write_json(&out.join("tokenizer.json"), &untruncated(tokenizer))?;
        write_json(&out.join("tokenizer_config.json"), &tokenizer_config)?;
        for name in ["special_tokens_map.json", "vocab.txt"] {
            let from = source.model.join(name);
            if from.exists() {
                fs::copy(&from, out.join(name))?;
            }
        }
        // About lower-casing before the tokenizer, which does its own: vLLM reads the length only
        // where both keys stand.
        let sentence_bert = json!({"max_seq_length": source.max_tokens, "do_lower_case": false});
        write_json(&out.join("sentence_bert_config.json"), &sentence_bert)?;
        fs::write(out.join("README.md"), model_card(source))?;
        let sums = sums(out)?;
        fs::write(out.join("SHA256SUMS"), sums)?;
        Ok(())
    })
}

fn config_json(config: &ModelConfig) -> Value {
    let mut json = config.to_serving_json();
    // In config.json, because it is the one place that vLLM reads it from.
    json["sentence_transformers"] = json!({"version": "5.1.2", ACTIVATION: SIGMOID});
    json
}

/// A shipped tokenizer may cut at 128 and pad to 128, as all-MiniLM-L6-v2's does.
fn untruncated(mut tokenizer: Value) -> Value {
    tokenizer["truncation"] = Value::Null;
    tokenizer["padding"] = Value::Null;
    tokenizer
}

fn tokenizer_config(source: &Source, model: &ModelConfig, tokenizer: &Value) -> Result<Value> {
    let path = source.model.join("tokenizer_config.json");
    let mut config = if path.exists() {
        read_json(&path)?
    } else {
        json!({})
    };
    let Some(fields) = config.as_object_mut() else {
        return Err(Error::File {
            path,
            problem: "is not a JSON object".to_owned(),
        });
    };
    // Some shipped files hold the limits of a tokenizer call too, which would cut again.
    for stray in [
        "max_length",
        "pad_to_multiple_of",
        "stride",
        "truncation_strategy",
        "truncation_side",
        "padding_side",
        "pad_token_type_id",
        "name_or_path",
    ] {
        fields.remove(stray);
    }
    fields.insert("model_max_length".to_owned(), source.max_tokens.into());
    let class = match fields.get("tokenizer_class").and_then(Value::as_str) {
        _ if model.architecture == Architecture::Bert => "BertTokenizer".to_owned(),
        // Of transformers 5, which older releases do not know; its name before then.
        None | Some("TokenizersBackend") => "PreTrainedTokenizerFast".to_owned(),
        Some(class) => class.to_owned(),
    };
    fields.insert("tokenizer_class".to_owned(), class.into());
    if tokenizer["model"]["type"] == "WordPiece" {
        let lower_case = tokenizer["normalizer"]["lowercase"].as_bool();
        let lower_case = lower_case.unwrap_or(false);
        fields.insert("do_lower_case".to_owned(), lower_case.into());
    }
    if !model.reads_segments() {
        // Where segments come with the tokens, a server hands them to a model that may refuse them.
        let inputs = json!(["input_ids", "attention_mask"]);
        fields.insert("model_input_names".to_owned(), inputs);
    }
    Ok(config)
}

fn model_card(source: &Source) -> String {
    let Source {
        max_tokens, origin, ..
    } = source;
    format!(
        "---\nlibrary_name: sentence-transformers\npipeline_tag: text-ranking\n---\n\n\
         # A cross-encoder reranker\n\n\
         Trained with Retort: {origin}.\n\n\
         It reads a query and a document together, up to {max_tokens} tokens with the longer text \
         cut first, and gives one logit; servers answer with its sigmoid.\n\n\
         ```python\n\
         from sentence_transformers import CrossEncoder\n\n\
         scores = CrossEncoder(\"this/folder\").predict([(\"a query\", \"a document\")])\n\
         ```\n"
    )
}

/// `sha256sum --check`'s format, files by name.
fn sums(folder: &Path) -> Result<String> {
    let mut names: Vec<String> = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    let mut sums = String::new();
    for name in names {
        let digest = retort_files::sha256_file(&folder.join(&name))?;
        // Writing to a string can't fail.
        let _ = writeln!(sums, "{digest}  {name}");
    }
    Ok(sums)
}

pub(crate) fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_slice(&fs::read(path)?).map_err(|error| Error::File {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    Ok(fs::write(path, format!("{value:#}\n"))?)
}
