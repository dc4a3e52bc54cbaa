//! Model folders in and out: what is accepted, what is refused and in which words.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod common;

use std::path::Path;

use burn::tensor::Device;
use common::{
    Golden, Tensors, copy_with, family, folder_of, golden_folder, largest_difference, load,
    tensors, write_tensors,
};
use fs_err as fs;
use retort_model::{CrossEncoder, Error, Head, ModelConfig, PairTokenizer, score, weight_files};
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

#[test]
fn saving_what_was_loaded_gives_the_same_bytes() {
    for original in family() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let expected = fs::read(original.join("model.safetensors")).unwrap();
        let is_same = || fs::read(&path).unwrap() == expected;
        load(&original).unwrap().save(&path).unwrap();
        assert!(is_same(), "{}", original.display());

        let other = CrossEncoder::load(&original, Head::New { seed: 1 }, None, &Device::flex());
        let other = other.unwrap();
        other.save(&path).unwrap();
        assert!(!is_same(), "{}", original.display());
        let weights = original.join("model.safetensors");
        other.load_weights(&weights).unwrap().save(&path).unwrap();
        assert!(is_same(), "{}", original.display());
    }
}

#[test]
fn the_saved_names_are_those_of_hugging_face() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    load(&golden_folder()).unwrap().save(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    let tensors = tensors(&path);
    assert_eq!(tensors.len(), 5 + 2 * 16 + 2 + 2);
    assert_eq!(tensors["bert.pooler.dense.weight"].1, [32, 32]);
    assert_eq!(
        tensors["bert.encoder.layer.1.intermediate.dense.weight"].1,
        [64, 32]
    );
    assert_eq!(
        tensors["bert.encoder.layer.0.attention.self.query.bias"].1,
        [32]
    );
    assert_eq!(tensors["classifier.weight"].1, [1, 32]);
}

#[test]
fn a_folder_with_the_serving_config_scores_the_same() {
    for original in family() {
        let golden = Golden::of(&original);
        let folder = copy_with(&original, |_| {});
        let config = ModelConfig::read(folder.path()).unwrap().to_serving_json();
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let logits = score(&load(folder.path()).unwrap(), &golden.encoded(), 500).unwrap();
        assert!(largest_difference(&logits, &golden.logits) < 1e-5);
    }
}

#[test]
fn bare_and_legacy_names_and_buffers_are_read() {
    let golden = Golden::read();
    let folder = copy_with(&golden_folder(), |tensors| {
        *tensors = std::mem::take(tensors)
            .into_iter()
            .map(|(name, tensor)| {
                let name = name.strip_prefix("bert.").unwrap_or(&name);
                let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
                (name.replace("LayerNorm.bias", "LayerNorm.beta"), tensor)
            })
            .collect();
        let positions = (Dtype::I64, vec![1, 1], vec![0; 8]);
        tensors.insert("embeddings.position_ids".to_owned(), positions);
    });
    let logits = score(&load(folder.path()).unwrap(), &golden.encoded(), 500).unwrap();
    assert!(largest_difference(&logits, &golden.logits) < 1e-5);
}

#[test]
fn halves_become_singles() {
    let golden = Golden::read();
    for dtype in [Dtype::F16, Dtype::BF16] {
        let folder = copy_with(&golden_folder(), |tensors| {
            for (stored_as, _, bytes) in tensors.values_mut() {
                *stored_as = dtype;
                let (singles, _) = bytes.as_chunks();
                *bytes = singles
                    .iter()
                    .flat_map(|&single| half(f32::from_le_bytes(single), dtype))
                    .collect();
            }
        });
        let logits = score(&load(folder.path()).unwrap(), &golden.encoded(), 500).unwrap();
        assert!(
            largest_difference(&logits, &golden.logits) < 0.05,
            "{logits:?}"
        );
    }
}

#[test]
fn a_new_head_is_the_same_for_the_same_seed_only() {
    let pretraining = [
        "cls.predictions.bias",
        "vocab_projector.bias",
        "discriminator_predictions.dense.bias",
        "decoder.bias",
        "lm_head.bias",
        "lm_head.bias",
    ];
    for (original, other_head) in family().iter().zip(pretraining) {
        let golden = Golden::of(original);
        // What names of heads have in common: no layer and no embedding.
        let of_head = |name: &str| !name.contains("layer") && !name.contains("embeddings");
        let base = copy_with(original, |tensors| {
            tensors.retain(|name, _| !of_head(name) || name.contains("final_norm"));
            let bias = (Dtype::F32, vec![1], vec![0; 4]);
            tensors.insert(other_head.to_owned(), bias);
        });
        let logits = |seed| {
            let model = CrossEncoder::load(base.path(), Head::New { seed }, None, &Device::flex());
            score(&model.unwrap(), &golden.encoded(), 500).unwrap()
        };
        assert_eq!(logits(1), logits(1));
        assert_ne!(logits(1), logits(2));
        let error = load(base.path()).unwrap_err().to_string();
        assert!(error.contains("lacks the tensor"), "{error}");
        assert!(error.contains("this is a base model"), "{error}");
    }
}

#[test]
fn a_base_models_own_pooler_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let model = CrossEncoder::load(
        &golden_folder(),
        Head::New { seed: 1 },
        None,
        &Device::flex(),
    );
    model.unwrap().save(&path).unwrap();
    let (saved, golden) = (
        tensors(&path),
        tensors(&golden_folder().join("model.safetensors")),
    );
    assert_eq!(
        saved["bert.pooler.dense.weight"],
        golden["bert.pooler.dense.weight"]
    );
    assert_ne!(saved["classifier.weight"], golden["classifier.weight"]);
}

#[test]
fn weights_that_do_not_fit_are_refused_by_name() {
    let query = "bert.encoder.layer.0.attention.self.query.weight";
    for (change, message) in [
        (
            Box::new(|tensors: &mut Tensors| drop(tensors.remove(query)))
                as Box<dyn Fn(&mut Tensors)>,
            "lacks the tensor bert.encoder.layer.0.attention.self.query.weight of shape [32, 32]",
        ),
        (
            Box::new(|tensors| drop(tensors.insert("bert.extra".into(), tensors[query].clone()))),
            "holds 1 tensors that config.json does not describe, the first is bert.extra",
        ),
        (
            Box::new(|tensors| drop(tensors.insert(query[5..].into(), tensors[query].clone()))),
            "holds encoder.layer.0.attention.self.query.weight twice",
        ),
        (
            Box::new(|tensors| tensors.get_mut(query).unwrap().1 = vec![16, 64]),
            "query.weight has shape [16, 64], but config.json describes [32, 32]",
        ),
        (
            Box::new(|tensors| tensors.get_mut(query).unwrap().0 = Dtype::I32),
            "query.weight is stored as I32, expected F32, F16 or BF16",
        ),
        (
            Box::new(|tensors| {
                tensors.get_mut(query).unwrap().2[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
            }),
            "query.weight holds NaN at index 1",
        ),
    ] {
        let folder = copy_with(&golden_folder(), change);
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn weights_in_several_files_are_read_through_their_index() {
    for original in family() {
        let golden = Golden::of(&original);
        let folder = copy_with(&original, |_| {});
        let path = |name: &str| folder.path().join(name);
        let all = tensors(&path("model.safetensors"));
        fs::remove_file(path("model.safetensors")).unwrap();
        let mut shards = [Tensors::new(), Tensors::new(), Tensors::new()];
        let mut weight_map = serde_json::Map::new();
        for (place, (name, tensor)) in all.into_iter().enumerate() {
            let file = format!("model-0000{}-of-00003.safetensors", place % 3 + 1);
            weight_map.insert(name.clone(), file.into());
            shards[place % 3].insert(name, tensor);
        }
        for (place, shard) in shards.iter().enumerate() {
            let file = format!("model-0000{}-of-00003.safetensors", place + 1);
            write_tensors(&path(&file), shard);
        }
        let index = json!({ "metadata": { "total_size": 1 }, "weight_map": weight_map });
        fs::write(path("model.safetensors.index.json"), index.to_string()).unwrap();
        let logits = score(&load(folder.path()).unwrap(), &golden.encoded(), 500).unwrap();
        assert!(largest_difference(&logits, &golden.logits) < 1e-5);
        assert_eq!(weight_files(folder.path()).unwrap().len(), 4);
    }
}

#[test]
fn a_model_of_three_classes_is_no_reranker() {
    let error = load(&folder_of("family/bert-classes")).unwrap_err();
    let message = "id2label is 3 labels, but only 1 label is supported";
    assert!(error.to_string().contains(message), "{error}");
}

#[test]
fn files_that_are_not_there_are_named_with_what_to_do() {
    let folder = copy_with(&golden_folder(), |_| {});
    let path = |name| folder.path().join(name);

    fs::write(path("model.safetensors"), "cut short").unwrap();
    assert!(matches!(
        load(folder.path()).unwrap_err(),
        Error::Weights { .. }
    ));

    fs::rename(path("model.safetensors"), path("pytorch_model.bin")).unwrap();
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("pytorch_model.bin and no model.safetensors"),
        "{error}"
    );
    assert!(error.contains("save_pretrained"), "{error}");

    fs::rename(
        path("pytorch_model.bin"),
        path("model.safetensors.index.json"),
    )
    .unwrap();
    assert!(matches!(
        load(folder.path()).unwrap_err(),
        Error::Header { .. }
    ));

    fs::remove_file(path("model.safetensors.index.json")).unwrap();
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors is missing"), "{error}");

    let error = load(Path::new("/no/such/folder")).unwrap_err().to_string();
    assert!(
        error.contains("/no/such/folder/config.json is missing"),
        "{error}"
    );

    fs::remove_file(path("tokenizer.json")).unwrap();
    let error = PairTokenizer::open(folder.path(), 64)
        .unwrap_err()
        .to_string();
    assert!(error.contains("tokenizer.json is missing"), "{error}");
}

fn half(single: f32, dtype: Dtype) -> [u8; 2] {
    match dtype {
        Dtype::F16 => burn::tensor::f16::from_f32(single).to_le_bytes(),
        _ => burn::tensor::bf16::from_f32(single).to_le_bytes(),
    }
}
