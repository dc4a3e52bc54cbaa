//! Model folders in and out: what is accepted, what is refused and in which words.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use common::{Golden, golden_folder, largest_difference};
use fs_err as fs;
use retort_model::{BertConfig, CrossEncoder, Error, Head, PairTokenizer, score};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

/// Name, type, shape and bytes of every tensor in a file.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

#[test]
fn saving_what_was_loaded_gives_the_same_tensors_and_then_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&golden_folder()).unwrap();
    let first = folder.path().join("first.safetensors");
    model.save(&first).unwrap();
    assert_eq!(
        tensors(&first),
        tensors(&golden_folder().join("model.safetensors"))
    );

    let second = folder.path().join("second.safetensors");
    let other = CrossEncoder::load(
        &golden_folder(),
        Head::New { seed: 1 },
        None,
        &Device::flex(),
    );
    other
        .unwrap()
        .load_weights(&first)
        .unwrap()
        .save(&second)
        .unwrap();
    assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
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
    let golden = Golden::read();
    let folder = copy_with(|_| {});
    let config = BertConfig::read(folder.path()).unwrap().to_serving_json();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let logits = score(&load(folder.path()).unwrap(), &golden.encoded(), 500).unwrap();
    assert!(largest_difference(&logits, &golden.logits) < 1e-5);
}

#[test]
fn bare_and_legacy_names_and_buffers_are_read() {
    let golden = Golden::read();
    let folder = copy_with(|tensors| {
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
        let folder = copy_with(|tensors| {
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
    let golden = Golden::read();
    let base = copy_with(|tensors| {
        tensors.retain(|name, _| !name.starts_with("classifier") && !name.contains("pooler"));
        tensors.insert(
            "cls.predictions.bias".to_owned(),
            (Dtype::F32, vec![1], vec![0; 4]),
        );
    });
    let logits = |seed| {
        let model = CrossEncoder::load(base.path(), Head::New { seed }, None, &Device::flex());
        score(&model.unwrap(), &golden.encoded(), 500).unwrap()
    };
    assert_eq!(logits(1), logits(1));
    assert_ne!(logits(1), logits(2));
    let error = load(base.path()).unwrap_err().to_string();
    assert!(
        error.contains("lacks the tensor bert.pooler.dense.weight"),
        "{error}"
    );
    assert!(error.contains("this is a base model"), "{error}");
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
        let folder = copy_with(change);
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn files_that_are_not_there_are_named_with_what_to_do() {
    let folder = copy_with(|_| {});
    let path = |name| folder.path().join(name);

    fs::write(path("model.safetensors"), "cut short").unwrap();
    assert!(matches!(
        load(folder.path()).unwrap_err(),
        Error::Safetensors { .. }
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
        Error::ShardedWeights { .. }
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

fn load(folder: &Path) -> retort_model::Result<CrossEncoder> {
    CrossEncoder::load(folder, Head::Required, None, &Device::flex())
}

/// A copy of the golden folder with its tensors changed.
fn copy_with(change: impl Fn(&mut Tensors)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(golden_folder().join(name), folder.path().join(name)).unwrap();
    }
    let mut tensors = tensors(&golden_folder().join("model.safetensors"));
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

fn tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |view: TensorView| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.iter()
        .map(|(name, view)| (name.to_owned(), tensor(view)))
        .collect()
}

fn half(single: f32, dtype: Dtype) -> [u8; 2] {
    match dtype {
        Dtype::F16 => burn::tensor::f16::from_f32(single).to_le_bytes(),
        _ => burn::tensor::bf16::from_f32(single).to_le_bytes(),
    }
}
