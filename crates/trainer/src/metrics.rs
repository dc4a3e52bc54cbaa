//! What is kept of each step and each evaluation.

use std::io::Write as _;
use std::path::Path;

use fs_err as fs;

use crate::Result;
use crate::checkpoint::State;
use crate::tensorboard::EventFile;

/// `metrics.jsonl`, which only grows; of a run that is gone on with, lines after its checkpoint
/// are dropped first, for they will be made again.
pub(crate) struct Metrics {
    file: fs::File,
    /// The same numbers for TensorBoard.
    events: Option<EventFile>,
}

impl Metrics {
    pub(crate) fn open(run: &Path, state: Option<&State>, tensorboard: bool) -> Result<Self> {
        let path = run.join("metrics.jsonl");
        let step_of = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            line["step"].as_u64()
        };
        let kept = match state {
            Some(state) if path.exists() => {
                let text = fs::read_to_string(&path)?;
                let lines = text
                    .lines()
                    .take_while(|line| step_of(line).is_some_and(|step| step <= state.step as u64));
                lines.fold(String::new(), |kept, line| kept + line + "\n")
            }
            _ => String::new(),
        };
        retort_files::write_atomic(&path, kept.as_bytes())?;
        let next_step = state.map_or(0, |state| state.step as u64 + 1);
        let events = tensorboard.then(|| EventFile::create(run, next_step));
        Ok(Self {
            events: events.transpose()?,
            file: fs::OpenOptions::new().append(true).open(&path)?,
        })
    }

    pub(crate) fn append(&mut self, line: &serde_json::Value) -> Result<()> {
        self.file.write_all(format!("{line}\n").as_bytes())?;
        if let Some(events) = &mut self.events {
            let numbers = line.as_object().into_iter().flatten();
            let numbers = numbers.filter(|(name, _)| *name != "step");
            let numbers = numbers.filter_map(|(name, value)| Some((&**name, value.as_f64()?)));
            events.scalars(line["step"].as_u64().unwrap_or_default(), numbers)?;
        }
        Ok(())
    }
}
