//! Replays the seeds of fuzz targets; a module of the tests that know what must come of them.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

/// Checks that of each seed comes what its name begins with, and that nothing panics or is ill-formed
/// (an error) when it is cut at any byte or one of its bytes is another.
pub(crate) fn replay<E: Debug>(target: &str, outcome: impl Fn(&[u8]) -> Result<String, E>) {
    let mut outcomes = BTreeSet::new();
    for (name, bytes) in seeds(target) {
        let outcome_of_seed = outcome(&bytes).unwrap();
        assert!(
            name.starts_with(&format!("{outcome_of_seed}-")),
            "{target}/{name} gives {outcome_of_seed}"
        );
        outcomes.insert(outcome_of_seed);
        for damaged in damaged(&bytes) {
            if let Err(error) = outcome(&damaged) {
                panic!("{target}/{name}, damaged: {error:?} of {damaged:?}");
            }
        }
    }
    assert!(
        outcomes.len() > 1,
        "{target} gives nothing but {outcomes:?}"
    );
}

/// The fuzz targets of a crate, by name; each is a binary of `fuzz/Cargo.toml`.
pub(crate) fn targets_of(krate: &str) -> BTreeSet<String> {
    let manifest = fs_err::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let mut targets = BTreeSet::new();
    for path in files(&fuzz().join("fuzz_targets")) {
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        if fs_err::read_to_string(&path).unwrap().contains(krate) {
            targets.insert(name.to_owned());
        }
    }
    targets
}

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let seed = |path: PathBuf| (name(&path), fs_err::read(&path).unwrap());
    let paths = files(&fuzz().join("corpus").join(target));
    paths.into_iter().map(seed).collect()
}

/// Bytes cut at every place, and with another byte at some places that are spread evenly.
fn damaged(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    const PLACES: usize = 200;
    let cut = (0..bytes.len()).map(|end| bytes[..end].to_vec());
    let places = (0..bytes.len()).step_by(bytes.len() / PLACES + 1);
    let changed = places.flat_map(|place| {
        [0x01, 0x10, 0x80, 0xff].map(|flipped| {
            let mut bytes = bytes.to_vec();
            bytes[place] ^= flipped;
            bytes
        })
    });
    cut.chain(changed)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs_err::read_dir(folder).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}
