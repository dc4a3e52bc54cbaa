//! A new run's folder, or going on with one: from its last checkpoint, and with what it was started
//! with, but for what the user lets change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::path::Path;

use burn::tensor::Device;
use fs_err as fs;
use retort_model::{CrossEncoder, Error as ModelError};
use toml::{Table, Value};

use crate::checkpoint::{self, State};
use crate::dataset::Dataset;
use crate::inputs::{INPUTS, Inputs};
use crate::learner::Learner;
use crate::settings::TrainSettings;
use crate::train::Run;
use crate::{Error, Result};

/// Where training begins.
pub(crate) struct Start {
    pub(crate) learner: Learner,
    /// Of the last checkpoint, if there is one.
    pub(crate) state: Option<State>,
    /// What the run goes on with instead of what it was started with.
    pub(crate) changes: Vec<Change>,
    /// What keeps other processes from the run as long as it is there.
    pub(crate) lock: File,
}

/// What dev measures hang on: where one of these is another, a measure can't be held against one from
/// before.
const MEASURED: [&str; 8] = [
    "corpus",
    "data.collection",
    "data.max_tokens",
    "dev-candidates",
    "dev-gains",
    "evaluation.candidates",
    "evaluation.split",
    "queries",
];

/// A setting or an input of a run that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// A setting as `section.key`; of an input what it is, such as `labels`.
    pub key: String,
    /// The value that the run was started with; of an input, the digest.
    pub then: String,
    /// The value now.
    pub now: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: then {}, now {}", self.key, self.then, self.now)
    }
}

/// Makes the run's folder, or reads its last checkpoint.
pub(crate) fn start(
    run: &Run,
    inputs: &Inputs,
    dataset: &Dataset,
    device: &Device,
) -> Result<Start> {
    let is_new = !run.folder.join(checkpoint::SETTINGS).exists();
    let changes = if is_new {
        Vec::new()
    } else {
        allowed_changes(run, inputs)?
    };
    // A new run has no folder yet.
    let lock = (!is_new)
        .then(|| checkpoint::lock(run.folder))
        .transpose()?;
    let last = checkpoint::last(run.folder)?;
    let learner = if let Some((folder, state)) = &last {
        Learner::load(folder, state.averaged, run.settings, device, run.others)
            .map_err(|error| damaged(folder, error))?
    } else {
        let dropout = Some(run.settings.model.dropout);
        let base = CrossEncoder::load(run.base, run.head()?, dropout, device)?;
        Learner::new(run.untrained(base)?, run.settings, run.others)?
    };
    dataset.check(learner.student())?;
    if is_new {
        retort_files::write_new_directory::<Error>(run.folder, |folder| {
            write_origin(run, inputs, folder)?;
            Ok(fs::create_dir(folder.join("steps"))?)
        })?;
    } else {
        if !changes.is_empty() {
            checkpoint::remove_outcomes(run.folder)?;
            write_origin(run, inputs, run.folder)?;
        }
        checkpoint::tidy(run.folder, run.settings.evaluation.keep)?;
    }
    let is_other = |change: &Change| MEASURED.contains(&&*change.key);
    let is_measured_anew = changes.iter().any(is_other);
    let state = last.map(|(_, state)| {
        if is_measured_anew {
            state.unmeasured()
        } else {
            state
        }
    });
    Ok(Start {
        learner,
        state,
        changes,
        lock: lock.map_or_else(|| checkpoint::lock(run.folder), Ok)?,
    })
}

/// Refuses what differs from what a curve or a student of it was started with.
pub(crate) fn refuse_changes(run: &Run, inputs: &Inputs) -> Result<()> {
    let changes = changes(run, inputs)?;
    if changes.is_empty() {
        return Ok(());
    }
    Err(Error::Changed {
        folder: run.folder.to_owned(),
        changes,
        can_be_allowed: false,
    })
}

/// That a checkpoint can't be read, and what to do, unless it is the device that failed.
fn damaged(folder: &Path, error: Error) -> Error {
    if let Error::Model(
        ModelError::Device { .. } | ModelError::NoLibdevice | ModelError::OutOfMemory { .. },
    ) = error
    {
        return error;
    }
    Error::Run {
        folder: folder.to_owned(),
        problem: format!(
            "can't be gone on with: {error}. Remove it to go on from the checkpoint before it, if \
             evaluation.keep had more than one kept"
        ),
    }
}

/// What differs from what the run was started with, and may.
///
/// # Errors
/// Another difference.
fn allowed_changes(run: &Run, inputs: &Inputs) -> Result<Vec<Change>> {
    let changes = changes(run, inputs)?;
    let allowed = |change: &Change| run.allowed_changes.contains(&change.key);
    if changes.iter().all(allowed) {
        return Ok(changes);
    }
    Err(Error::Changed {
        folder: run.folder.to_owned(),
        changes: changes.into_iter().filter(|c| !allowed(c)).collect(),
        can_be_allowed: true,
    })
}

/// Writes what the run is made from.
pub(crate) fn write_origin(run: &Run, inputs: &Inputs, folder: &Path) -> Result<()> {
    let settings = toml::to_string(run.settings).map_err(|error| Error::Setting {
        key: "name",
        problem: error.to_string(),
    })?;
    retort_files::write_atomic(&folder.join(checkpoint::SETTINGS), settings.as_bytes())?;
    let inputs = checkpoint::to_json(inputs);
    Ok(retort_files::write_atomic(&folder.join(INPUTS), &inputs)?)
}

/// What differs from what the run was started with.
fn changes(run: &Run, inputs: &Inputs) -> Result<Vec<Change>> {
    let settings = checkpoint::settings_of(run.folder, &[])?;
    let started: Inputs = checkpoint::read_json(&run.folder.join(INPUTS))?;
    let mut changes = differences(&values(&settings), &values(run.settings));
    changes.extend(differences(&digests(&started), &digests(inputs)));
    Ok(changes)
}

fn differences(then: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<Change> {
    let value = |of: &BTreeMap<String, String>, key: &str| {
        of.get(key).map_or("not given", String::as_str).to_owned()
    };
    let keys: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    keys.into_iter()
        .filter(|key| then.get(*key) != now.get(*key))
        .map(|key| Change {
            key: key.clone(),
            then: value(then, key),
            now: value(now, key),
        })
        .collect()
}

/// Settings by `section.key`.
fn values(settings: &TrainSettings) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    // Settings that are no table have been refused when they were written.
    for (section, value) in Table::try_from(settings).unwrap_or_default() {
        match value {
            Value::Table(table) => values.extend(
                table
                    .into_iter()
                    .map(|(key, value)| (format!("{section}.{key}"), value.to_string())),
            ),
            value => {
                values.insert(section, value.to_string());
            }
        }
    }
    values
}

/// The beginnings of digests, by what can be named on a command line.
fn digests(inputs: &Inputs) -> BTreeMap<String, String> {
    let digest = |(role, digest): (&String, &String)| {
        let short = digest.get(..16).unwrap_or(digest);
        (role.replace(' ', "-"), format!("sha256 {short}…"))
    };
    inputs.sha256.iter().map(digest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_have_a_key_and_both_values() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/demo.toml");
        let demo = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
            values(&retort_data::settings::read(&path, &overrides).unwrap())
        };
        assert_eq!(differences(&demo(&[]), &demo(&[])), []);
        let changed = demo(&["seed=1", "optimizer.ema=0.5", "evaluation.patience=3"]);
        let said: Vec<String> = differences(&demo(&[]), &changed)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            said,
            [
                "evaluation.patience: then not given, now 3",
                "optimizer.ema: then 0.0, now 0.5",
                "seed: then 42, now 1",
            ]
        );
    }
}
