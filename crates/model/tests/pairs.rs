//! Tokenising, batching and scoring.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod common;

use burn::tensor::Device;
use common::{Golden, folder_of, golden_folder, largest_difference, load};
use fs_err as fs;
use retort_model::{CrossEncoder, Encoded, Error, Head, PairTokenizer, score};
use serde_json::{Value, json};

#[test]
fn scoring_leaves_dropout_out_even_on_an_autodiff_device() {
    let golden = Golden::read();
    let device = Device::flex().autodiff();
    let model = CrossEncoder::load(&golden_folder(), Head::Required, Some(0.5), &device).unwrap();
    let logits = score(&model, &golden.encoded(), 1000).unwrap();
    assert!(largest_difference(&logits, &golden.logits) < 1e-5);

    let batch = golden.batch(&device);
    let dropped = common::floats(model.forward(&batch));
    assert!(
        largest_difference(&dropped, &golden.logits) > 1e-3,
        "training did not drop anything"
    );
}

#[test]
fn a_dropout_of_everything_is_refused() {
    let device = Device::flex();
    let error =
        CrossEncoder::load(&golden_folder(), Head::Required, Some(1.0), &device).unwrap_err();
    assert!(error.to_string().starts_with("dropout is 1: "), "{error}");
}

#[test]
fn inputs_that_the_model_cannot_read_are_refused() {
    let encoded = |ids: Vec<u32>| Encoded {
        token_type_ids: vec![0; ids.len()],
        input_ids: ids,
    };
    let error = score(&model(), &[encoded(vec![2]), encoded(vec![2; 65])], 1000).unwrap_err();
    assert!(
        matches!(
            error,
            Error::TooLong {
                index: 1,
                tokens: 65,
                positions: 64
            }
        ),
        "{error}"
    );
    let error = score(&model(), &[encoded(vec![2, 4000])], 1000).unwrap_err();
    assert!(
        matches!(
            error,
            Error::UnknownId {
                index: 0,
                id: 4000,
                ..
            }
        ),
        "{error}"
    );
    assert!(score(&model(), &[], 1000).unwrap().is_empty());
}

#[test]
fn roberta_reads_fewer_tokens_than_it_has_positions() {
    let model = load(&folder_of("family/roberta")).unwrap();
    let of_length = |length| Encoded {
        input_ids: vec![5; length],
        token_type_ids: vec![0; length],
    };
    score(&model, &[of_length(38)], 100).unwrap();
    let error = score(&model, &[of_length(39)], 100).unwrap_err();
    assert!(
        matches!(error, Error::TooLong { positions: 38, .. }),
        "{error}"
    );
}

#[test]
fn the_longer_text_is_cut_first_and_from_the_right() {
    let tokenizer = PairTokenizer::open(&golden_folder(), 10).unwrap();
    let whole = PairTokenizer::open(&golden_folder(), 64).unwrap();
    let ids = |tokenizer: &PairTokenizer, query, document| {
        tokenizer
            .encode_pairs(&[(query, document)])
            .unwrap()
            .remove(0)
            .input_ids
    };
    let short = ids(
        &tokenizer,
        "red shoes",
        "blue boots with white size for men and women",
    );
    let long = ids(
        &whole,
        "red shoes",
        "blue boots with white size for men and women",
    );
    assert_eq!(long.len(), 2 + 9 + 3);
    // Both words of the query, five of the document, and the last separator.
    assert_eq!(short[..9], long[..9]);
    assert_eq!(short[9], long[13]);

    // Both too long: half of the seven places each, and the odd one to the longer, however much
    // too long both are; to the second where they are alike.
    let segments = |query: &str, document: &str| {
        let pair = tokenizer
            .encode_pairs(&[(query, document)])
            .unwrap()
            .remove(0);
        pair.token_type_ids
    };
    let (longer, long) = (
        "red blue green black white steel tea cup knife red blue green black",
        "cup plate knife tea coffee beans kettle lamp desk chair cup",
    );
    assert_eq!(segments(long, long), [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]);
    assert_eq!(segments(long, longer), [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]);
    assert_eq!(segments(longer, long), [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
}

#[test]
fn what_the_file_says_of_truncation_and_padding_is_overridden() {
    let golden = Golden::read();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let mut file = tokenizer_json();
    file["truncation"] =
        json!({ "direction": "Left", "max_length": 6, "strategy": "OnlySecond", "stride": 0 });
    file["padding"] = json!({
        "strategy": { "Fixed": 128 }, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
    });
    fs::write(&path, file.to_string()).unwrap();
    let tokenizer = PairTokenizer::open(folder.path(), 64).unwrap();
    assert_eq!(
        tokenizer.encode_pairs(&golden.pairs()).unwrap(),
        golden.encoded()
    );
}

#[test]
fn a_tokenizer_without_segments_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = tokenizer_json();
    file["post_processor"] = Value::Null;
    fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    let error = PairTokenizer::open(folder.path(), 64)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("give it the post_processor of the model's own tokenizer"),
        "{error}"
    );
}

#[test]
fn a_model_that_reads_segments_is_given_a_tokenizer_that_marks_them() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, name: &str| {
        fs::copy(folder_of(from).join(name), folder.path().join(name)).unwrap();
    };
    copy("family/roberta", "tokenizer.json");
    copy("family/roberta", "config.json");
    PairTokenizer::open(folder.path(), 64).unwrap();
    copy("family/electra", "config.json");
    let error = PairTokenizer::open(folder.path(), 64).unwrap_err();
    assert!(error.to_string().contains("expected 0 … 1"), "{error}");
}

#[test]
fn no_room_for_two_texts_is_refused() {
    let error = PairTokenizer::open(&golden_folder(), 4)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("max_tokens is 4, but a pair of one-token texts takes 5"),
        "{error}"
    );
}

#[test]
fn empty_texts_and_unknown_characters_are_tokens_too() {
    let tokenizer = PairTokenizer::open(&golden_folder(), 64).unwrap();
    let encoded = tokenizer
        .encode_pairs(&[("", ""), ("😀", "鞋 red")])
        .unwrap();
    assert_eq!(encoded[0].len(), 3);
    assert_eq!(encoded[1].input_ids[1], 1);
    score(&model(), &encoded, 100).unwrap();
}

fn model() -> CrossEncoder {
    CrossEncoder::load(&golden_folder(), Head::Required, None, &Device::flex()).unwrap()
}

fn tokenizer_json() -> Value {
    serde_json::from_slice(&fs::read(golden_folder().join("tokenizer.json")).unwrap()).unwrap()
}
