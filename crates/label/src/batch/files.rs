//! Files for `vllm run-batch`, which reads requests and writes replies in OpenAI's format.
//!
//! ```text
//! FOLDER/NAME.input.jsonl    written by us; gone once its replies are in the ledger
//! FOLDER/NAME.output.jsonl   written by vLLM: truncated when it starts, in the order of requests
//! ```
//!
//! A batch has ended when its output has a line for each request, or when somebody removed its
//! input: what there is of the output counts then, and the rest is asked again. Where neither is
//! there, nothing has ended: the folder was moved, or is on a share that is not mounted.

use std::path::{Path, PathBuf};

use fs_err as fs;
use fs_err::PathExt;

use super::remote::{Ended, Search};
use crate::dialect::Problem;
use crate::ledger::OpenBatch;
use crate::{Error, Result};

pub(crate) struct BatchFiles {
    folder: PathBuf,
    name: String,
}

impl BatchFiles {
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let folder = std::path::absolute(folder)?;
        let name = folder.display().to_string();
        Ok(Self { folder, name })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Makes the folder, before a batch may be in it.
    pub(crate) fn prepare(&self) -> Result<()> {
        Ok(fs::create_dir_all(&self.folder)?)
    }

    pub(crate) fn create(&self, batch: &OpenBatch, lines: &[u8]) -> Result<String, Problem> {
        retort_files::write_atomic(&self.input(&batch.name), lines)
            .map_err(|error| Problem::Fatal(error.into()))?;
        Ok(batch.name.clone())
    }

    pub(crate) fn find(&self, batch: &OpenBatch) -> Result<Search> {
        // It was made before the batch left.
        if !self.folder.fs_err_try_exists()? {
            return Err(self.away("is not there"));
        }
        Ok(if self.has(&batch.name)? {
            Search::Found(batch.name.clone())
        } else {
            Search::Absent
        })
    }

    pub(crate) fn ended(&self, batch: &OpenBatch, name: &str) -> Result<Option<Ended>> {
        if !self.has(name)? {
            return Err(self.away(&format!(
                "has neither {name}.input.jsonl nor {name}.output.jsonl (an empty output gives the \
                 batch up)"
            )));
        }
        let is_removed = !self.input(name).fs_err_try_exists()?;
        let lines = self.replies(name)?.matches('\n').count();
        Ok((is_removed || lines >= batch.questions).then(|| Ended {
            how: if is_removed { "removed" } else { "completed" }.to_owned(),
            refused: None,
            files: vec![name.to_owned()],
            missing: None,
        }))
    }

    /// What the output holds. The input is removed, so that nobody runs it again; were we killed
    /// now, that alone says that the batch has ended.
    pub(crate) fn take(&self, name: &str) -> Result<String> {
        let replies = self.replies(name)?;
        let input = self.input(name);
        if input.fs_err_try_exists()? {
            fs::remove_file(input)?;
        }
        Ok(replies)
    }

    /// Whether there is anything of a batch.
    fn has(&self, name: &str) -> Result<bool> {
        Ok(self.input(name).fs_err_try_exists()? || self.output(name).fs_err_try_exists()?)
    }

    fn away(&self, problem: &str) -> Error {
        Error::File {
            path: self.folder.clone(),
            problem: format!(
                "{problem}, and a batch is out in it: put it back, or mount it, and run the same \
                 command again"
            ),
        }
    }

    fn replies(&self, name: &str) -> Result<String> {
        let output = self.output(name);
        if !output.fs_err_try_exists()? {
            return Ok(String::new());
        }
        Ok(String::from_utf8_lossy(&fs::read(output)?).into_owned())
    }

    fn input(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.input.jsonl"))
    }

    fn output(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.output.jsonl"))
    }
}
