//! A serving directory of every architecture scores as its model does.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::path::Path;

use burn::tensor::Device;
use fs_err as fs;
use retort_export::{Scorer, Source, export};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Golden {
    queries: Vec<String>,
    documents: Vec<String>,
    logits: Vec<f32>,
}

#[test]
fn every_architecture_is_exported_and_scored() {
    for (name, class, reads_segments) in [
        ("bert", "BertTokenizer", true),
        ("family/distilbert", "DistilBertTokenizer", false),
        ("family/electra", "ElectraTokenizer", true),
        ("family/modernbert", "PreTrainedTokenizerFast", false),
        ("family/roberta", "RobertaTokenizer", false),
        ("family/xlm-roberta", "XLMRobertaTokenizer", false),
    ] {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/golden")
            .join(name);
        let model = tempfile::tempdir().unwrap();
        for file in [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ] {
            fs::copy(golden.join(file), model.path().join(file)).unwrap();
        }
        let out = model.path().join("export");
        let source = Source {
            model: model.path(),
            max_tokens: 32,
            origin: "a test",
        };
        export(&source, &out).unwrap();

        let tokenizer: Value = read(&out.join("tokenizer_config.json"));
        assert_eq!(tokenizer["tokenizer_class"], class);
        assert_eq!(tokenizer["model_max_length"], 32);
        assert_eq!(tokenizer["model_input_names"].is_null(), reads_segments);

        let golden: Golden = read(&golden.join("golden.json"));
        let pairs: Vec<(&str, &str)> = golden
            .queries
            .iter()
            .zip(&golden.documents)
            .map(|(query, document)| (&**query, &**document))
            .collect();
        let scores = Scorer::open(&out, &Device::flex())
            .unwrap()
            .score(&pairs)
            .unwrap();
        for (score, expected) in scores.iter().zip(&golden.logits) {
            assert!(
                (score.logit - expected).abs() < 1e-5,
                "{name}: {score:?} {expected}"
            );
        }
        assert_eq!(scores.len(), golden.logits.len());
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}
