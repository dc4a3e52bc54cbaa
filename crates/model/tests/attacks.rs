//! Weight files that are damaged, or made to do damage: each ends in an error that says what is
//! wrong with it, before anything of a size that it only claims is allocated.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod common;

use std::error::Error as _;
use std::path::Path;

use common::{copy_with, golden_folder, load};
use fs_err as fs;
use safetensors::Dtype;
use serde_json::json;
use tempfile::TempDir;

/// A tensor of 32 numbers that BERT has.
const NORM: &str = "bert.embeddings.LayerNorm.weight";

#[test]
fn headers_that_are_none_are_refused() {
    let good = tensor("F32", "[32]", "[0,128]");
    let many: Vec<String> = (0..10_001)
        .map(|number| format!(r#""{number}":{}"#, tensor("F32", "[0]", "[0,0]")))
        .collect();
    for (header, data, message) in [
        ("[]".to_owned(), 0, "invalid type: sequence"),
        ("{".to_owned(), 0, "EOF while parsing"),
        ("[".repeat(100_000), 0, "invalid type: sequence"),
        (
            one(&"[".repeat(100_000)),
            0,
            "does not say which tensors it holds",
        ),
        (
            format!(r#"{{"__metadata__":{}"#, "[".repeat(100_000)),
            0,
            "EOF while parsing",
        ),
        (
            format!(r#"{{"{NORM}":{good},"{NORM}":{good}}}"#),
            128,
            "bert.embeddings.LayerNorm.weight stands there twice",
        ),
        (
            format!("{{{}}}", many.join(",")),
            0,
            "more than 10000 tensors",
        ),
        (
            one(&tensor("F99", "[32]", "[0,128]")),
            128,
            "unknown variant `F99`",
        ),
        (
            one(&tensor("F32", "[-32]", "[0,128]")),
            128,
            "invalid value: integer `-32`",
        ),
        (
            one(&tensor("F32", "[32]", "[-128,0]")),
            128,
            "invalid value: integer `-128`",
        ),
        (
            one(&tensor("F32", "[32.5]", "[0,128]")),
            128,
            "invalid type: floating point `32.5`",
        ),
    ] {
        assert_refused(&file(header.as_bytes(), data), message);
    }
    assert_refused(&file(b"{\"\xff\xfe\": 1}", 0), "invalid unicode code point");
}

#[test]
fn headers_that_contradict_themselves_or_the_file_are_refused() {
    let two = |first: &str, second: &str| format!(r#"{{"a":{first},"b":{second}}}"#);
    let good = tensor("F32", "[32]", "[0,128]");
    for (header, data, message) in [
        (
            two(&good, &tensor("F32", "[32]", "[64,192]")),
            192,
            "b, F32 of [32], lies from 64 to 192, where it would have to begin at 128 and take 128",
        ),
        (
            two(&good, &tensor("F32", "[32]", "[132,260]")),
            260,
            "lies from 132 to 260, where it would have to begin at 128",
        ),
        (
            one(&tensor("F32", "[32]", "[128,0]")),
            128,
            "lies from 128 to 0",
        ),
        (
            one(&tensor("F32", "[31]", "[0,128]")),
            128,
            "take 124 bytes",
        ),
        (
            one(&tensor("F4", "[1]", "[0,1]")),
            1,
            "take an impossible number of bytes",
        ),
        (
            one(&tensor("F32", "[4294967296,4294967296]", "[0,128]")),
            128,
            "take an impossible number of bytes",
        ),
        (
            one(&tensor("F32", "[1099511627776]", "[0,4398046511104]")),
            128,
            "its tensors take 4398046511104 bytes, but 128 follow the header",
        ),
        (
            one(&good),
            127,
            "its tensors take 128 bytes, but 127 follow the header",
        ),
        (
            one(&good),
            129,
            "its tensors take 128 bytes, but 129 follow the header",
        ),
    ] {
        assert_refused(&file(header.as_bytes(), data), message);
    }
}

#[test]
fn headers_of_a_claimed_length_are_not_waited_for() {
    assert_refused(b"", "it has 0 bytes, not even a header");
    assert_refused(&[1; 7], "it has 7 bytes, not even a header");
    for claimed in [1, 17 << 20, 1 << 40, 1 << 63, u64::MAX] {
        let bytes = u64::to_le_bytes(claimed);
        let message = format!("its header is said to have {claimed} bytes, but 0 are the most");
        assert_refused(&bytes, &message);
    }
}

#[test]
fn tensors_that_the_model_cannot_take_are_refused() {
    let with = |value: f32| {
        let mut bytes = vec![0; 128];
        bytes[8..12].copy_from_slice(&value.to_le_bytes());
        (Dtype::F32, vec![32], bytes)
    };
    for (tensor, message) in [
        (with(f32::NAN), "holds NaN at index 2"),
        (with(f32::INFINITY), "holds inf at index 2"),
        (
            (Dtype::F32, vec![], vec![0; 4]),
            "has shape [], but config.json describes [32]",
        ),
        (
            (Dtype::F32, vec![0, 32], vec![]),
            "has shape [0, 32], but config.json describes [32]",
        ),
        (
            (Dtype::I32, vec![32], vec![0; 128]),
            "is stored as I32, expected F32, F16 or BF16",
        ),
    ] {
        let folder = copy_with(&golden_folder(), |tensors| {
            tensors.insert(NORM.to_owned(), tensor.clone());
        });
        assert_says(folder.path(), &format!("{NORM} {message}"));
    }
}

#[test]
fn an_index_that_leads_elsewhere_or_contradicts_its_files_is_refused() {
    let shard = "model-00001-of-00001.safetensors";
    let folder = sharded(shard);
    for elsewhere in [
        "../model-00001-of-00001.safetensors",
        "/etc/model-00001-of-00001.safetensors",
        "./model-00001-of-00001.safetensors",
        "sub/model-00001-of-00001.safetensors",
        "sub\\model-00001-of-00001.safetensors",
        "C:model-00001-of-00001.safetensors",
        "model-00001-of-00001.safetensors/",
        "..",
        "",
        "config.json",
        "\0.safetensors",
    ] {
        let index = json!({ "weight_map": { NORM: elsewhere } }).to_string();
        let message = format!("it puts {NORM} into {elsewhere:?}, which is no file beside it");
        assert_index_refused(&folder, &index, &message);
    }
    for (index, message) in [
        (
            json!({ "weight_map": { NORM: "model-00002-of-00002.safetensors" } }).to_string(),
            "model-00002-of-00002.safetensors is missing",
        ),
        (
            json!({ "weight_map": { NORM: shard } }).to_string(),
            "which model.safetensors.index.json does not put there",
        ),
        (
            with_all(&folder, shard, "bert.absent"),
            "it lacks bert.absent, which model.safetensors.index.json puts there",
        ),
        (
            format!(r#"{{"weight_map": {{"{NORM}": "{shard}", "{NORM}": "{shard}"}}}}"#),
            "bert.embeddings.LayerNorm.weight stands there twice",
        ),
        ("{}".to_owned(), "missing field `weight_map`"),
        (
            json!({ "weight_map": { NORM: 1 } }).to_string(),
            "invalid type: integer `1`",
        ),
        (
            " ".repeat((16 << 20) + 1),
            "it has 16777217 bytes, but 16777216 are the most",
        ),
    ] {
        assert_index_refused(&folder, &index, message);
    }
}

/// Wherever a file is cut off, and whichever sign of its header is another.
#[test]
fn no_damage_to_a_header_goes_unnoticed() {
    let folder = copy_with(&golden_folder(), |_| {});
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(whole.len() / 97) {
        fs::write(&path, &whole[..length]).unwrap();
        load(folder.path()).unwrap_err();
    }
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap());
    let header = 8 + usize::try_from(length).unwrap();
    for place in (0..header).step_by(11) {
        let mut damaged = whole.clone();
        damaged[place] ^= 0b101;
        fs::write(&path, &damaged).unwrap();
        load(folder.path()).unwrap_err();
    }
}

fn tensor(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
}

/// The header of one tensor.
fn one(tensor: &str) -> String {
    format!(r#"{{"{NORM}":{tensor}}}"#)
}

/// A weights file of that header and so many zeros.
fn file(header: &[u8], data: usize) -> Vec<u8> {
    let mut bytes = u64::to_le_bytes(header.len() as u64).to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// Loads BERT's golden folder with another weights file.
fn assert_refused(bytes: &[u8], message: &str) {
    let folder = tempfile::tempdir().unwrap();
    let config = golden_folder().join("config.json");
    fs::copy(config, folder.path().join("config.json")).unwrap();
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    assert_says(folder.path(), message);
}

/// BERT's golden folder with its weights in a shard.
fn sharded(shard: &str) -> TempDir {
    let folder = copy_with(&golden_folder(), |_| {});
    let whole = folder.path().join("model.safetensors");
    fs::rename(whole, folder.path().join(shard)).unwrap();
    folder
}

/// An index that puts all tensors into a shard, and one that is not there.
fn with_all(folder: &TempDir, shard: &str, absent: &str) -> String {
    let mut weight_map = serde_json::Map::new();
    for name in common::tensors(&folder.path().join(shard)).into_keys() {
        weight_map.insert(name, shard.into());
    }
    weight_map.insert(absent.to_owned(), shard.into());
    json!({ "weight_map": weight_map }).to_string()
}

fn assert_index_refused(folder: &TempDir, index: &str, message: &str) {
    let path = folder.path().join("model.safetensors.index.json");
    fs::write(path, index).unwrap();
    assert_says(folder.path(), message);
}

/// The error, with what caused it.
fn assert_says(folder: &Path, message: &str) {
    let error = load(folder).unwrap_err();
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    let said = format!("{error}: {cause}");
    assert!(said.contains(message), "{said}\nlacks {message}");
}
