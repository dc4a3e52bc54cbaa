//! What is kept of each step and each evaluation.

use std::io::Write as _;
use std::path::Path;

use fs_err as fs;

use crate::Result;
use crate::checkpoint::State;

/// `metrics.jsonl`, which only grows; of a run that is gone on with, lines after its checkpoint
/// are dropped first, for they will be made again.
pub(crate) struct Metrics {
    file: fs::File,
}

impl Metrics {
    pub(crate) fn open(run: &Path, state: Option<&State>) -> Result<Self> {
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
        Ok(Self {
            file: fs::OpenOptions::new().append(true).open(&path)?,
        })
    }

    pub(crate) fn append(&mut self, line: &serde_json::Value) -> Result<()> {
        Ok(self.file.write_all(format!("{line}\n").as_bytes())?)
    }
}
