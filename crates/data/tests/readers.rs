//! Every reader on the seeds of its fuzz target, on damaged ones and on any bytes.

#![allow(clippy::unwrap_used, reason = "a test's panic names the line")]

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::Index;
use retort_data::Error;
use retort_data::import::{Format, Reader, Shape, count_rows};

/// The fuzz targets and what they read.
const TARGETS: [(&str, Reader); 10] = [
    ("jsonl", Reader::Table(Format::Jsonl)),
    ("csv", Reader::Table(Format::Csv { delimiter: ',' })),
    ("tsv", Reader::Table(Format::Tsv)),
    ("trec", Reader::Table(Format::ByContent)),
    ("parquet", Reader::Table(Format::Parquet)),
    ("judgements", Reader::Judgements),
    ("run", Reader::Run),
    ("triples", Reader::Triples),
    ("flagembedding", Reader::Examples(Shape::FlagEmbedding)),
    ("tevatron", Reader::Examples(Shape::Tevatron)),
];

/// The seeds of a target, by name.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let entries = fs_err::read_dir(fuzz.join("corpus").join(target)).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let seed = |path: &PathBuf| (name(path), fs_err::read(path).unwrap());
    paths.iter().map(seed).collect()
}

#[test]
fn what_comes_of_a_seed_is_in_its_name() {
    for (target, reader) in TARGETS {
        let (mut good, mut bad) = (0, 0);
        for (name, bytes) in seeds(target) {
            let outcome = match count_rows(reader, &bytes) {
                Ok(rows) => format!("ok{rows}"),
                Err(Error::Row { line, .. }) => format!("row{line}"),
                Err(Error::File { .. }) => "file".to_owned(),
                Err(other) => format!("{other:?}"),
            };
            let expected = name.split('-').next().unwrap();
            assert_eq!(outcome, expected, "{target}/{name}");
            *(if outcome.starts_with("ok") {
                &mut good
            } else {
                &mut bad
            }) += 1;
        }
        // A good Parquet file is written by a test of the import.
        let has_good = good > 0 || target == "parquet";
        assert!(
            has_good && bad > 0,
            "{target} has {good} good seeds, {bad} bad"
        );
    }
}

/// Replaces, inserts or cuts off at some place.
fn damage(bytes: &mut Vec<u8>, (at, kind, byte): (Index, u8, u8)) {
    let at = at.index(bytes.len() + 1);
    match kind {
        0 => bytes.truncate(at),
        1 => bytes.insert(at, byte),
        _ => {
            if let Some(there) = bytes.get_mut(at) {
                *there = byte;
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes: Vec<u8>) {
        for (_, reader) in TARGETS {
            let _ = count_rows(reader, &bytes);
        }
    }

    #[test]
    fn no_damage_to_a_seed_makes_its_reader_panic(
        (target, seed) in (0..TARGETS.len(), any::<Index>()),
        damages in prop::collection::vec((any::<Index>(), 0..8_u8, any::<u8>()), 1..4),
    ) {
        let (target, reader) = TARGETS[target];
        let mut seeds = seeds(target);
        let (_, mut bytes) = seeds.swap_remove(seed.index(seeds.len()));
        for one in damages {
            damage(&mut bytes, one);
        }
        let _ = count_rows(reader, &bytes);
    }
}
