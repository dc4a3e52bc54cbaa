//! Checkpoints: a folder a checkpoint, whole or absent, named by the steps behind it.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::learner::{FOR_TRAINING, Learner};
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
    /// Evaluations since.
    #[serde(default)]
    pub(crate) since_best: usize,
    /// Whether the model is an average, and the student beside it. Set when it is written.
    pub(crate) averaged: bool,
}

impl State {
    /// The same, where what it was measured on is no more what it will be: the next evaluation is the
    /// best.
    pub(crate) fn unmeasured(self) -> Self {
        Self {
            best_ndcg: -1.0,
            since_best: 0,
            ..self
        }
    }

    pub(crate) fn is_measured(&self) -> bool {
        self.best_ndcg >= 0.0
    }

    /// After one more evaluation.
    pub(crate) fn evaluated(before: Option<Self>, step: usize, ndcg: f64) -> Self {
        match before {
            Some(before) if ndcg <= before.best_ndcg => Self {
                step,
                since_best: before.since_best + 1,
                ..before
            },
            _ => Self {
                step,
                best_ndcg: ndcg,
                best_step: step,
                since_best: 0,
                averaged: false,
            },
        }
    }
}

/// The files of a model folder beside its weights: what a tokenizer needs, copied as they are.
const TOKENIZER_FILES: [&str; 4] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
];

const STATE: &str = "state.json";

/// Writes a checkpoint, then removes those that are neither among the last `keep` nor the best of
/// one of them.
pub(crate) fn save(
    run: &Path,
    base: &Path,
    learner: &Learner,
    state: State,
    keep: usize,
) -> Result<()> {
    let folder = folder(run, state.step);
    if folder.exists() {
        // It was measured again, on something else.
        let averaged = self::state(&folder)?.averaged;
        let state = to_json(&State { averaged, ..state });
        return Ok(retort_files::write_atomic(&folder.join(STATE), &state)?);
    }
    let state = State {
        averaged: learner.is_averaged(),
        ..state
    };
    retort_files::write_new_directory::<Error>(&folder, |folder| {
        learner.save(folder)?;
        let config = learner.kept().config().to_serving_json();
        fs::write(folder.join("config.json"), format!("{config:#}\n"))?;
        for name in TOKENIZER_FILES {
            if base.join(name).exists() {
                fs::copy(base.join(name), folder.join(name))?;
            }
        }
        fs::write(folder.join(STATE), to_json(&state))?;
        Ok(())
    })?;
    remove_old(run, keep)
}

fn remove_old(run: &Path, keep: usize) -> Result<()> {
    let mut steps = steps(run)?;
    let last = steps.split_off(steps.len().saturating_sub(keep));
    let mut best = BTreeSet::new();
    for step in last {
        best.insert(state(&folder(run, step))?.best_step);
    }
    for step in steps {
        let folder = folder(run, step);
        if !best.contains(&step) {
            fs::remove_dir_all(&folder)?;
            continue;
        }
        for name in FOR_TRAINING {
            // Up to three times the model's size, and only the last are resumed from.
            if folder.join(name).exists() {
                fs::remove_file(folder.join(name))?;
            }
        }
    }
    Ok(())
}

/// The last checkpoint: its folder and state. `None` before the first.
pub(crate) fn last(run: &Path) -> Result<Option<(PathBuf, State)>> {
    let Some(step) = steps(run)?.pop() else {
        return Ok(None);
    };
    let folder = folder(run, step);
    let state = state(&folder)?;
    Ok(Some((folder, state)))
}

/// The step of the last checkpoint, which a run that was stopped goes on from; none before the first.
pub fn last_step(run: &Path) -> Option<usize> {
    let (_, state) = last(run).ok().flatten()?;
    Some(state.step)
}

/// Removes what was being written, and what was not yet removed, when a process was killed.
pub(crate) fn tidy(run: &Path, keep: usize) -> Result<()> {
    for entry in fs::read_dir(run.join("steps"))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            fs::remove_dir_all(entry.path())?;
        }
    }
    remove_old(run, keep)
}

fn state(folder: &Path) -> Result<State> {
    read_json(&folder.join(STATE))
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

/// The settings a run was started with, some of them overridden by `section.key=value`.
///
/// # Errors
/// When the folder is not a run's, or its settings can't be read.
pub fn settings(run: &Path, overrides: &[String]) -> Result<TrainSettings> {
    let settings = settings_of(run, overrides)?;
    if run.join("steps").is_dir() {
        return Ok(settings);
    }
    Err(Error::Run {
        folder: run.to_owned(),
        problem:
            "is a learning curve's folder, and no run: retort eval --curve, as it was begun, goes \
                  on with it"
                .to_owned(),
    })
}

/// The same of a learning curve, too.
pub(crate) fn settings_of(folder: &Path, overrides: &[String]) -> Result<TrainSettings> {
    let path = folder.join(SETTINGS);
    if !path.exists() {
        return Err(Error::Run {
            folder: folder.to_owned(),
            problem: format!("is no run: it has no {SETTINGS}"),
        });
    }
    Ok(retort_data::settings::read(&path, overrides)?)
}

/// Where a run keeps its settings.
pub(crate) const SETTINGS: &str = "config.toml";

/// What is made of a run that has ended.
const OUTCOMES: [&str; 2] = ["verdict.json", "export"];

/// Removes what was made of a run when it ended: it goes on.
pub(crate) fn remove_outcomes(run: &Path) -> Result<()> {
    for name in OUTCOMES {
        let path = run.join(name);
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        } else if path.exists() {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Keeps other processes from a run as long as the file is open.
///
/// # Errors
/// When another has it.
pub(crate) fn lock(run: &Path) -> Result<File> {
    let path = run.join(".lock");
    let mut file = fs::OpenOptions::new();
    let file = file.create(true).truncate(false).write(true).open(path)?;
    let file = file.into_parts().0;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::Busy {
            folder: run.to_owned(),
        }),
        // A file system that has no locks keeps nobody.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// The numbers of a run's checkpoints, in their order.
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
    steps.sort_unstable();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluations_without_a_better_one_are_counted() {
        let mut state = None;
        let mut since = Vec::new();
        for (step, ndcg) in [0.3, 0.5, 0.5, 0.4, 0.6, 0.1].into_iter().enumerate() {
            let now = State::evaluated(state, step, ndcg);
            since.push((now.best_step, now.since_best));
            state = Some(now);
        }
        assert_eq!(since, [(0, 0), (1, 0), (1, 1), (1, 2), (4, 0), (4, 1)]);
    }

    #[test]
    fn the_last_are_kept_whole_and_the_best_of_each_as_a_model() {
        let run = tempfile::tempdir().unwrap();
        let steps = run.path().join("steps");
        let mut now = None;
        for (step, ndcg) in [0.9, 0.3, 0.95, 0.4, 0.5, 0.99].into_iter().enumerate() {
            let state = State::evaluated(now, step, ndcg);
            let folder = folder(run.path(), step);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(STATE), to_json(&state)).unwrap();
            for name in FOR_TRAINING {
                fs::write(folder.join(name), "").unwrap();
            }
            remove_old(run.path(), 2).unwrap();
            now = Some(state);
        }
        let kept = |step: usize| {
            let folder = folder(run.path(), step);
            (folder.exists(), folder.join(FOR_TRAINING[0]).exists())
        };
        // 4 and 5 are the last, and the best of 4 was 2: who goes back to 4 will need it.
        assert_eq!(fs::read_dir(&steps).unwrap().count(), 3);
        assert_eq!(
            [2, 4, 5].map(kept),
            [(true, false), (true, true), (true, true)]
        );
    }
}
