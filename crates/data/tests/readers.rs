//! Every reader on the seeds of its fuzz target and on any bytes.

#![allow(clippy::unwrap_used, reason = "a test's panic names the line")]

#[path = "../../../fuzz/seeds.rs"]
mod seeds;

use proptest::prelude::*;
use retort_data::Error;
use retort_data::import::{Format, Reader, Shape, count_rows};

/// The fuzz targets and what they read.
const TARGETS: [(&str, Reader); 12] = [
    ("jsonl", Reader::Table(Format::Jsonl)),
    ("csv", Reader::Table(Format::Csv { delimiter: ',' })),
    ("tsv", Reader::Table(Format::Tsv)),
    ("trec", Reader::Table(Format::ByContent)),
    ("parquet", Reader::Table(Format::Parquet)),
    ("judgements", Reader::Judgements),
    ("run", Reader::Run),
    ("triples", Reader::Triples),
    ("candidates", Reader::Candidates),
    ("manifest", Reader::Manifest),
    ("flagembedding", Reader::Examples(Shape::FlagEmbedding)),
    ("tevatron", Reader::Examples(Shape::Tevatron)),
];

/// How many rows there are, and where the first error is.
fn outcome(reader: Reader, bytes: &[u8]) -> Result<String, Error> {
    let (rows, first_error) = count_rows(reader, bytes);
    match first_error {
        None => Ok(format!("ok{rows}")),
        Some(Error::Row { line, .. }) => Ok(format!("ok{rows}row{line}")),
        Some(Error::File { .. }) => Ok(format!("ok{rows}file")),
        Some(other) => Err(other),
    }
}

#[test]
fn every_target_has_seeds_and_what_comes_of_them_is_in_their_names() {
    let names = TARGETS.map(|(target, _)| target.to_owned());
    assert_eq!(seeds::targets_of("retort_data"), names.into());
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
