//! Everything that can go wrong here, each kind with what to do about it.

use std::path::PathBuf;

use burn::tensor::TensorReadError;

use crate::attention::Attention;
use crate::guard::unanswered;
use crate::precision::Precision;

/// [`std::result::Result`] with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model folder could not be read, written or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),

    /// A file that every model folder has is not there.
    #[error(
        "{} is missing: a model folder holds config.json, model.safetensors and tokenizer.json",
        path.display()
    )]
    MissingFile {
        /// The file that was looked for.
        path: PathBuf,
    },

    /// `config.json` is not JSON, or lacks a key, or holds a value of another type.
    #[error("{} is not the config.json of a model of the BERT family", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What the parser met, with line and column.
        source: serde_json::Error,
    },

    /// `config.json` asks for a model that this crate does not compute.
    #[error("{}: {key} is {got}, but only {supported} is supported", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key at fault.
        key: &'static str,
        /// Its value.
        got: String,
        /// What it would have to be.
        supported: String,
    },

    /// A dropout that would drop everything, or a number of no meaning.
    #[error("dropout is {0}: give a probability from 0 up to, but not, 1")]
    Dropout(f64),

    /// Layers were to be kept that are not there, or not in their order.
    #[error("the layers {kept:?} of a model that has {layers} cannot be kept: {problem}")]
    Layers {
        /// What was asked for.
        kept: Vec<usize>,
        /// How many the model has.
        layers: usize,
        /// What to ask for instead.
        problem: &'static str,
    },

    /// The weights are pickled, which is code to run and not data to read.
    #[error(
        "{} holds {file} and no model.safetensors: convert it with \
         python -c \"from transformers import AutoModel as M; \
         M.from_pretrained('{}').save_pretrained('{}')\"",
        folder.display(), folder.display(), folder.display()
    )]
    PickledWeights {
        /// The model folder.
        folder: PathBuf,
        /// The pickle in it.
        file: String,
    },

    /// A weights file, or the index of several, contradicts itself or its own size.
    #[error("{}: {problem}: fetch or write it again", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },

    /// The header of a weights file, or the index of several, is not what it should be.
    #[error("{} does not say which tensors it holds: fetch or write it again", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What the parser met.
        source: serde_json::Error,
    },

    /// Weights could not be put into a file.
    #[error("{} cannot be written", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What the writer met.
        source: safetensors::SafeTensorError,
    },

    /// The model needs a tensor that the file lacks.
    #[error("{} lacks the tensor {name} of shape {expected:?}: {hint}", path.display())]
    MissingTensor {
        /// The weights file.
        path: PathBuf,
        /// The tensor, by its Hugging Face name.
        name: String,
        /// Its shape, linear weights as `[out, in]`.
        expected: Vec<usize>,
        /// What the file most likely is instead.
        hint: &'static str,
    },

    /// The file holds tensors that the model has no place for.
    #[error(
        "{} holds {} tensors that config.json does not describe, the first is {}: \
         the two files are not of one model",
        path.display(), names.len(), names.first().map_or("", String::as_str)
    )]
    ExtraTensors {
        /// The weights file.
        path: PathBuf,
        /// All of them, sorted.
        names: Vec<String>,
    },

    /// The file holds one parameter under two names.
    #[error(
        "{} holds {name} twice (with and without its prefix, or as gamma and weight): \
         remove one",
        path.display()
    )]
    DuplicateTensor {
        /// The weights file.
        path: PathBuf,
        /// The later of the names.
        name: String,
    },

    /// A tensor has another shape than `config.json` describes.
    #[error(
        "{}: {name} has shape {got:?}, but config.json describes {expected:?}: \
         the two files are not of one model",
        path.display()
    )]
    Shape {
        /// The weights file.
        path: PathBuf,
        /// The tensor, by its Hugging Face name.
        name: String,
        /// The shape that the configuration gives, linear weights as `[out, in]`.
        expected: Vec<usize>,
        /// The shape in the file.
        got: Vec<usize>,
    },

    /// A tensor is stored as something other than floating-point numbers of 16 or 32 bits.
    #[error("{}: {name} is stored as {got}, expected F32, F16 or BF16", path.display())]
    Dtype {
        /// The weights file.
        path: PathBuf,
        /// The tensor, by its Hugging Face name.
        name: String,
        /// The type in the file.
        got: String,
    },

    /// A tensor holds a NaN or an infinity.
    #[error(
        "{}: {name} holds {value} at index {index}: training has diverged or the file is damaged",
        path.display()
    )]
    NonFinite {
        /// The weights file, read or to be written.
        path: PathBuf,
        /// The tensor, by its Hugging Face name.
        name: String,
        /// Where, counted in the order of the file.
        index: usize,
        /// The value.
        value: f32,
    },

    /// `tokenizer.json` cannot be read.
    #[error("{} is not a tokenizer.json of the tokenizers library", path.display())]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// What the library met.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// `tokenizer.json` can be read, but does not make what a cross-encoder needs.
    #[error("{}: {problem}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        problem: String,
    },

    /// The tokenizer refused a text.
    #[error("a text cannot be tokenised")]
    Tokenize(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// An input is longer than the model has positions.
    #[error(
        "input {index} has {tokens} tokens, but the model has {positions} positions: \
         tokenise with max_tokens of at most {positions}"
    )]
    TooLong {
        /// The input's place in its list, from 0.
        index: usize,
        /// Its length.
        tokens: usize,
        /// The longest input of the model.
        positions: usize,
    },

    /// An input holds an id that the model has no embedding for.
    #[error(
        "input {index} holds the {what} {id}, but the model has {size} of them: \
         the tokenizer is not this model's"
    )]
    UnknownId {
        /// The input's place in its list, from 0.
        index: usize,
        /// `token id` or `segment id`.
        what: &'static str,
        /// The id.
        id: u32,
        /// How many the model has.
        size: usize,
    },

    /// The device, its driver or what is between failed.
    #[error("the device failed: {said}")]
    Device {
        /// What it said.
        said: String,
    },

    /// The device has too little memory.
    #[error("the device has too little memory: {said}")]
    OutOfMemory {
        /// What it said.
        said: String,
    },

    /// A part of CUDA that is not the driver's is not there.
    #[error(
        "CUDA's libdevice.10.bc was not found: install CUDA's toolkit, or `pip install nvidia-nvvm` and \
         set CUDA_PATH to the folder nvidia/cu13 that it makes"
    )]
    NoLibdevice,

    /// A device name that is none.
    #[error("{0:?} is no device: use auto, cpu, wgpu or cuda")]
    UnknownDevice(String),

    /// The chosen device is not in this build.
    #[error("this build has no {device} support: build again with --features {device}")]
    DeviceNotBuilt {
        /// The device, which is also the name of the Cargo feature.
        device: &'static str,
    },

    /// The device does not compute in that.
    #[error("this device does not train in {precision}: {hint}")]
    Precision {
        /// What was asked for.
        precision: Precision,
        /// What to choose instead.
        hint: &'static str,
    },

    /// Attention is not computed like that on the device, or with those settings.
    #[error("attention can't be {attention} here: {hint}")]
    Attention {
        /// What was asked for.
        attention: Attention,
        /// What to choose instead.
        hint: &'static str,
    },

    /// The chosen device is there, but can't be used.
    #[error(
        "the {device} device can't be opened ({said}): another program may have all of its memory, or \
         its driver be too old, or not fit the kernel since an update (then restart the machine); or \
         choose another device"
    )]
    DeviceNotOpened {
        /// The device.
        device: &'static str,
        /// What it or its driver said.
        said: String,
    },

    /// A driver of CUDA that is older than the GPU takes.
    #[error(
        "the GPU's driver is of CUDA {driver}, and {architecture} takes one of CUDA {least} or newer: update it, \
         or choose another device"
    )]
    OldDriver {
        /// The GPU's, as LLVM names it.
        architecture: String,
        /// The CUDA of the driver that is there.
        driver: String,
        /// The first that would do.
        least: &'static str,
    },

    /// Fewer devices are there than were asked for.
    #[error("{wanted} devices were asked for, and of the chosen kind there are {found}")]
    TooFewDevices {
        /// How many were asked for.
        wanted: usize,
        /// How many there are.
        found: usize,
    },

    /// The chosen device is in this build, but not in this machine.
    #[error("no {device} device was found: {hint}, or choose another device")]
    DeviceNotFound {
        /// The device.
        device: &'static str,
        /// What such a device needs.
        hint: &'static str,
    },
}

impl Error {
    /// Of what a device said when it failed, in however many lines.
    pub(crate) fn of_device(said: &str) -> Self {
        // Each comes with notes on where it was not looked for.
        let is_told = |line: &&str| {
            !line.is_empty() && !line.starts_with("No backtrace") && !line.starts_with("Asked at")
        };
        let lines = || said.lines().map(str::trim).filter(is_told);
        let of_memory = |line: &&str| {
            let line = line.to_lowercase().replace(['_', '-'], " ");
            [
                "out of memory",
                "out of device memory",
                "can't allocate buffer",
            ]
            .iter()
            .any(|words| line.contains(words))
        };
        if said.contains("libdevice.10.bc was not found") {
            return Self::NoLibdevice;
        }
        match lines().find(of_memory) {
            Some(line) => Self::OutOfMemory {
                said: line.to_owned(),
            },
            None => Self::Device {
                said: lines()
                    .collect::<Vec<_>>()
                    .join(" ")
                    .replace(" Caused by: ", ": "),
            },
        }
    }
}

impl From<TensorReadError> for Error {
    fn from(error: TensorReadError) -> Self {
        // A panic of what serves the device is the cause, and the error may say no more than that there
        // was one.
        let mut said = unanswered().map_or(String::new(), |(panic, _)| format!("{panic}\n"));
        said += &error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            said = format!("{said}\n{error}");
            cause = error.source();
        }
        Self::of_device(&said)
    }
}
