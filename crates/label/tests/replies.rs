//! Every reader of a teacher's replies on the seeds of its fuzz target and on any bytes.

#![allow(clippy::unwrap_used, reason = "a test's panic names the line")]

#[path = "../../../fuzz/seeds.rs"]
mod seeds;

use proptest::prelude::*;
use retort_label::replies::{Reader, outcome};

/// The fuzz targets and what they read.
const TARGETS: [(&str, Reader); 13] = [
    ("reply_chat", Reader::Chat),
    ("reply_written", Reader::Written),
    ("reply_order", Reader::Order),
    ("reply_anthropic", Reader::Anthropic),
    ("reply_rationale", Reader::Rationale),
    ("reply_generative", Reader::Generative),
    ("reply_tokenize", Reader::Tokenize),
    ("reply_rerank", Reader::Rerank),
    ("reply_refusal", Reader::Refusal),
    ("reply_advice", Reader::Advice),
    ("batch_openai", Reader::BatchOpenAi),
    ("batch_anthropic", Reader::BatchAnthropic),
    ("imported", Reader::Imported),
];

#[test]
fn every_target_has_seeds_and_what_comes_of_them_is_in_their_names() {
    let names = TARGETS.map(|(target, _)| target.to_owned());
    assert_eq!(seeds::targets_of("retort_label"), names.into());
    for (target, reader) in TARGETS {
        seeds::replay(target, |bytes| outcome(reader, bytes));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        for (_, reader) in TARGETS {
            prop_assert!(outcome(reader, &bytes).is_ok());
        }
    }
}
