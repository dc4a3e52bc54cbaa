//! A `config.json` that is being read: its keys by name, and what is refused of them.

use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::architecture::Architecture;
use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// So many layers and labels no model has; a file that claims more is not to be believed.
const MOST: usize = 1000;

/// A `config.json` that is being read.
pub(crate) struct ConfigFile {
    path: PathBuf,
    bytes: Vec<u8>,
    common: Common,
}

/// What the files of all architectures have.
#[derive(Deserialize)]
struct Common {
    model_type: Option<String>,
    num_labels: Option<usize>,
    id2label: Option<Map<String, Value>>,
}

impl ConfigFile {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        if !path.exists() {
            return Err(Error::MissingFile { path });
        }
        let bytes = fs::read(&path)?;
        match serde_json::from_slice(&bytes) {
            Ok(common) => Ok(Self {
                path,
                bytes,
                common,
            }),
            Err(source) => Err(Error::Config { path, source }),
        }
    }

    pub(crate) fn config(&self) -> Result<ModelConfig> {
        let model_type = self.common.model_type.as_deref().unwrap_or("bert");
        let Some(architecture) = Architecture::of(model_type) else {
            let supported = Architecture::ALL.map(Architecture::model_type).join(", ");
            return Err(self.unsupported("model_type", &model_type, &supported));
        };
        architecture.read(self)
    }

    /// An architecture's own keys. Others are let be.
    pub(crate) fn fields<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.bytes).map_err(|source| Error::Config {
            path: self.path.clone(),
            source,
        })
    }

    /// The key that says how many labels there are.
    pub(crate) fn key_of_labels(&self) -> &'static str {
        match self.common.id2label {
            Some(_) => "id2label",
            None => "num_labels",
        }
    }

    /// The labels' names in the order of their numbers; one where the file says nothing.
    pub(crate) fn labels(&self) -> Result<Vec<String>> {
        let Common {
            num_labels,
            id2label,
            ..
        } = &self.common;
        let Some(id2label) = id2label else {
            let count = num_labels.unwrap_or(1);
            self.refuse_count("num_labels", count)?;
            return Ok((0..count).map(|number| format!("LABEL_{number}")).collect());
        };
        let count = id2label.len();
        self.refuse_count("id2label", count)?;
        self.refuse_other("num_labels", num_labels.unwrap_or(count), count)?;
        let name = |number: usize| match id2label.get(&number.to_string()) {
            Some(Value::String(name)) => Ok(name.clone()),
            Some(other) => Ok(other.to_string()),
            None => {
                let got = format!("without the label {number}");
                Err(self.unsupported("id2label", &got, &"0, 1, 2 and so on"))
            }
        };
        (0..count).map(name).collect()
    }

    /// Refuses a value that would have something else computed.
    pub(crate) fn refuse_other<T: PartialEq + ToString + Copy>(
        &self,
        key: &'static str,
        got: T,
        supported: T,
    ) -> Result<()> {
        if got == supported {
            return Ok(());
        }
        Err(self.unsupported(key, &got, &supported))
    }

    /// Refuses sizes of nothing.
    pub(crate) fn refuse_empty(&self, sizes: &[(&'static str, usize)]) -> Result<()> {
        for &(key, size) in sizes {
            if size == 0 {
                return Err(self.unsupported(key, &size, &"1 or more"));
            }
        }
        Ok(())
    }

    /// Refuses a number of layers or labels that would fill the memory before anything is read.
    pub(crate) fn refuse_count(&self, key: &'static str, count: usize) -> Result<()> {
        if (1..=MOST).contains(&count) {
            return Ok(());
        }
        Err(self.unsupported(key, &count, &format!("1 to {MOST}")))
    }

    /// Refuses a width that the heads can't share.
    pub(crate) fn refuse_uneven(
        &self,
        (key, width): (&'static str, usize),
        (heads_key, heads): (&'static str, usize),
    ) -> Result<()> {
        self.refuse_empty(&[(key, width), (heads_key, heads)])?;
        if width.is_multiple_of(heads) {
            return Ok(());
        }
        let supported = format!("a multiple of {heads_key} ({heads})");
        Err(self.unsupported(key, &width, &supported))
    }

    /// Refuses dropout of everything, and numbers without meaning.
    pub(crate) fn refuse_improbable(&self, probabilities: &[(&'static str, f64)]) -> Result<()> {
        for &(key, probability) in probabilities {
            if !(0.0..1.0).contains(&probability) {
                return Err(self.unsupported(key, &probability, &"0 up to, but not, 1"));
            }
        }
        Ok(())
    }

    /// Refuses a padding token without an embedding: it is looked up like any other.
    pub(crate) fn refuse_padding(&self, pad_token_id: usize, vocab_size: usize) -> Result<()> {
        if pad_token_id < vocab_size {
            return Ok(());
        }
        let supported = format!("a number below vocab_size ({vocab_size})");
        Err(self.unsupported("pad_token_id", &pad_token_id, &supported))
    }

    pub(crate) fn unsupported(
        &self,
        key: &'static str,
        got: &dyn ToString,
        supported: &dyn ToString,
    ) -> Error {
        Error::Unsupported {
            path: self.path.clone(),
            key,
            got: got.to_string(),
            supported: supported.to_string(),
        }
    }
}
