//! What a run is made from, by digest.

use std::collections::BTreeMap;
use std::path::PathBuf;

use retort_data::{collection, label_set};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::settings::TrainSettings;
use crate::train::Run;

/// Digests of what a run was made from.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Inputs {
    /// SHA-256 by role.
    pub(crate) sha256: BTreeMap<String, String>,
}

/// Where a run keeps them.
pub(crate) const INPUTS: &str = "inputs.json";

impl Inputs {
    pub(crate) fn read(run: &Run) -> Result<Self> {
        let TrainSettings {
            data,
            evaluation,
            verdict,
            ..
        } = run.settings;
        let qrels = |split: &str| data.collection.join("qrels").join(format!("{split}.tsv"));
        let mut files = vec![
            ("tokenizer", run.base.join("tokenizer.json")),
            ("corpus", collection::file(&data.collection, "corpus.jsonl")),
            (
                "queries",
                collection::file(&data.collection, "queries.jsonl"),
            ),
            ("dev gains", qrels(&evaluation.split)),
            ("test gains", qrels(&verdict.split)),
            ("base config", run.base.join("config.json")),
            ("dev candidates", evaluation.candidates.clone()),
            ("test candidates", verdict.candidates.clone()),
        ];
        if let Some(labels) = &verdict.teacher_labels {
            files.push(("test labels", labels.join(label_set::MANIFEST)));
        }
        let mut files: Vec<(String, PathBuf)> = (files.into_iter())
            .map(|(role, path)| (role.to_owned(), path))
            .collect();
        for (place, (labels, _)) in data.label_sets().enumerate() {
            let role = match place {
                0 => "labels".to_owned(),
                _ => format!("labels {}", place + 1),
            };
            files.push((role, labels.join(label_set::MANIFEST)));
        }
        if let Some(gold) = &data.gold {
            files.push(("gold gains".to_owned(), qrels(&gold.split)));
            let candidates = gold.candidates.clone();
            files.extend(candidates.map(|file| ("gold candidates".to_owned(), file)));
        }
        let mut sha256 = BTreeMap::new();
        for (role, path) in files {
            // What reads a missing file says more than that it is missing.
            if path.exists() {
                sha256.insert(role, retort_files::sha256_file(&path)?);
            }
        }
        for (place, path) in retort_model::weight_files(run.base)?.iter().enumerate() {
            // The first is all of them, or the index of the others.
            let role = match place {
                0 => "base weights".to_owned(),
                _ => format!("base weights {place}"),
            };
            sha256.insert(role, retort_files::sha256_file(path)?);
        }
        Ok(Self { sha256 })
    }
}
