//! Checkpoints: a folder a checkpoint, whole or absent, named by the steps behind it.

use std::path::{Path, PathBuf};

use fs_err as fs;
use retort_model::CrossEncoder;
use serde::{Deserialize, Serialize};

use crate::optimizer::AdamW;
use crate::settings::TrainSettings;
use crate::{Error, Result};

/// What a run knows of itself beside its weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// Steps made.
    pub(crate) step: usize,
    /// The best dev nDCG@10 so far.
    pub(crate) best_ndcg: f64,
    /// The step it was measured after.
    pub(crate) best_step: usize,
}

/// The files of a model folder beside its weights: what a tokenizer needs, copied as they are.
const TOKENIZER_FILES: [&str; 4] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
];

const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// Writes a checkpoint, then removes those that are neither the best nor this one.
pub(crate) fn save(
    run: &Path,
    base: &Path,
    student: &CrossEncoder,
    optimizer: &AdamW,
    state: State,
) -> Result<()> {
    let folder = folder(run, state.step);
    if folder.exists() {
        return Ok(());
    }
    retort_files::write_new_directory::<Error>(&folder, |folder| {
        student.save(&folder.join("model.safetensors"))?;
        let config = student.config().to_serving_json();
        fs::write(folder.join("config.json"), format!("{config:#}\n"))?;
        for name in TOKENIZER_FILES {
            if base.join(name).exists() {
                fs::copy(base.join(name), folder.join(name))?;
            }
        }
        optimizer.save(&folder.join(OPTIMIZER))?;
        fs::write(folder.join(STATE), to_json(&state))?;
        Ok(())
    })?;
    for step in steps(run)? {
        if step != state.step && step != state.best_step {
            fs::remove_dir_all(self::folder(run, step))?;
        }
    }
    let best_optimizer = self::folder(run, state.best_step).join(OPTIMIZER);
    if state.best_step != state.step && best_optimizer.exists() {
        // Twice the weights' size, and nothing resumes from any but the last checkpoint.
        fs::remove_file(best_optimizer)?;
    }
    Ok(())
}

/// The last checkpoint: its folder and state. `None` before the first.
pub(crate) fn last(run: &Path) -> Result<Option<(PathBuf, State)>> {
    let Some(step) = steps(run)?.into_iter().max() else {
        return Ok(None);
    };
    let folder = folder(run, step);
    let state = read_json(&folder.join(STATE))?;
    Ok(Some((folder, state)))
}

/// The optimiser of a checkpoint.
pub(crate) fn optimizer_file(folder: &Path) -> PathBuf {
    folder.join(OPTIMIZER)
}

/// The model folder of a run's best checkpoint, in the Hugging Face layout.
///
/// # Errors
/// When the run has no checkpoint yet.
pub fn best_model(run: &Path) -> Result<PathBuf> {
    let (_, state) = last(run)?.ok_or_else(|| Error::Run {
        folder: run.to_owned(),
        problem: "has no checkpoint: name a run's folder, such as checkpoints/demo-…".to_owned(),
    })?;
    Ok(folder(run, state.best_step))
}

/// The settings a run was started with.
///
/// # Errors
/// When the folder is not a run's, or its settings can't be read.
pub fn settings(run: &Path) -> Result<TrainSettings> {
    let path = run.join(SETTINGS);
    if !path.exists() {
        return Err(Error::Run {
            folder: run.to_owned(),
            problem: format!("is no run: it has no {SETTINGS}"),
        });
    }
    Ok(retort_data::settings::read(&path, &[])?)
}

/// Where a run keeps its settings.
pub(crate) const SETTINGS: &str = "config.toml";

/// The numbers of a run's checkpoints.
fn steps(run: &Path) -> Result<Vec<usize>> {
    let folder = run.join("steps");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut steps = Vec::new();
    for entry in fs::read_dir(folder)? {
        // Anything else is a checkpoint that was being written when its process was killed.
        if let Some(step) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        {
            steps.push(step);
        }
    }
    Ok(steps)
}

fn folder(run: &Path, step: usize) -> PathBuf {
    run.join("steps").join(format!("{step:06}"))
}

/// JSON as Retort writes it for people to read.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    // The types written here have no map with keys that are not strings, the one way to fail.
    let mut bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Reads what [`to_json`] wrote.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&fs::read(path)?).map_err(|error| Error::Run {
        folder: path.to_owned(),
        problem: error.to_string(),
    })
}
