use std::path::Path;

use burn::tensor::Device;
use retort_model::{CrossEncoder, Head, PairTokenizer, Student};
use serde::Serialize;
use serde_json::Value;

use crate::directory::read_json;
use crate::{Error, Result};

/// The key of the activation in config.json's `sentence_transformers` block.
pub(crate) const ACTIVATION: &str = "activation_fn";
/// What an export declares.
pub(crate) const SIGMOID: &str = "torch.nn.modules.activation.Sigmoid";
const IDENTITY: &str = "torch.nn.modules.linear.Identity";

/// A serving directory, ready to score pairs as any server of it should.
pub struct Scorer {
    model: Student,
    tokenizer: PairTokenizer,
    activation: Activation,
}

#[derive(Clone, Copy)]
enum Activation {
    Sigmoid,
    Identity,
}

/// What a pair is worth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    /// The model's output.
    pub logit: f32,
    /// The same through the activation that the directory declares.
    pub score: f32,
}

/// Padded tokens in one forward pass.
const TOKENS_PER_PASS: usize = 4096;

impl Scorer {
    /// Loads a serving directory onto a device.
    ///
    /// # Errors
    /// A missing or malformed file, a tensor that is not as it should be, an activation other than
    /// sigmoid and identity.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let model = CrossEncoder::load(folder, Head::Required, None, device)?;
        let config = read_json(&folder.join("config.json"))?;
        let path = folder.join("tokenizer_config.json");
        let longest = read_json(&path)?["model_max_length"].as_u64();
        let longest = longest
            .and_then(|longest| usize::try_from(longest).ok())
            .ok_or_else(|| {
                let problem = "model_max_length is not a whole number of tokens".to_owned();
                Error::File { path, problem }
            })?;
        // A tokenizer without a limit of its own says so with a huge number.
        let longest = longest.min(model.config().max_tokens());
        Ok(Self {
            tokenizer: PairTokenizer::open(folder, longest)?,
            activation: Activation::of(&config, &folder.join("config.json"))?,
            model: Student::for_scores(model)?,
        })
    }

    /// Scores pairs of query and document, in their order.
    ///
    /// # Errors
    /// A text the tokenizer refuses, or a device that fails.
    pub fn score(&self, pairs: &[(&str, &str)]) -> Result<Vec<Score>> {
        let encoded = self.tokenizer.encode_pairs(pairs)?;
        let logits = self.model.score(&encoded, TOKENS_PER_PASS)?;
        let score = |logit: f32| match self.activation {
            Activation::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
            Activation::Identity => logit,
        };
        Ok(logits
            .into_iter()
            .map(|logit| Score {
                logit,
                score: score(logit),
            })
            .collect())
    }
}

impl Activation {
    /// Sigmoid where the directory says nothing, as for every server.
    fn of(config: &Value, path: &Path) -> Result<Self> {
        match config["sentence_transformers"][ACTIVATION].as_str() {
            None | Some(SIGMOID) => Ok(Self::Sigmoid),
            Some(IDENTITY) => Ok(Self::Identity),
            Some(other) => Err(Error::File {
                path: path.to_owned(),
                problem: format!("the activation {other} is neither sigmoid nor identity"),
            }),
        }
    }
}
