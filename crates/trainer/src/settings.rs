use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::loss::LOSSES;
use crate::{Error, Result};

/// A training job (`configs/demo.toml`).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSettings {
    /// What runs are called: they land in `checkpoints/NAME-TIME`.
    pub name: String,
    /// Of everything random: the new head, the order of the data, dropout.
    pub seed: u64,
    /// What to learn from.
    pub data: DataSettings,
    /// What to start from.
    pub model: ModelSettings,
    /// What to minimise.
    #[serde(default)]
    pub loss: LossSettings,
    /// How to step.
    pub optimizer: OptimizerSettings,
    /// How far.
    pub schedule: ScheduleSettings,
    /// What to watch meanwhile.
    pub evaluation: EvaluationSettings,
    /// What to measure at the end.
    pub verdict: VerdictSettings,
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// The collection's folder, in BEIR layout.
    pub collection: PathBuf,
    /// The label set to learn from: a folder that `retort labels seal` wrote.
    pub labels: PathBuf,
    /// Of query, document and special tokens together; the longer text is cut first.
    pub max_tokens: usize,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// A folder, or a model's name on the Hugging Face Hub.
    pub init: String,
    /// A commit, branch or tag of that model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Which layers of it the student has, counted from 0; all where this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_layers: Option<Vec<usize>>,
    /// Of hidden states and attention, while training.
    pub dropout: f64,
}

/// `[loss]`: what is summed, each loss times its weight. One that is not named has no weight; without
/// the section, it is Margin-MSE plus a tenth of binary cross-entropy.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default = "LossSettings::none")]
pub struct LossSettings {
    /// The weight of [`margin_mse`](crate::loss::margin_mse).
    pub margin_mse: f64,
    /// The weight of [`bce`](crate::loss::bce), which pins the scale that margins and orders leave
    /// open.
    pub bce: f64,
    /// The weight of [`mse`](crate::loss::mse).
    pub mse: f64,
    /// The weight of [`ranknet`](crate::loss::ranknet).
    pub ranknet: f64,
    /// The weight of [`lambda_loss`](crate::loss::lambda_loss).
    pub lambda_loss: f64,
    /// The weight of [`listnet`](crate::loss::listnet).
    pub listnet: f64,
    /// The weight of [`kl`](crate::loss::kl).
    pub kl: f64,
    /// The weight of [`lce`](crate::loss::lce).
    pub lce: f64,
    /// The weight of [`adr_mse`](crate::loss::adr_mse).
    pub adr_mse: f64,
    /// What `listnet`, `kl` and `lce` divide scores by.
    pub temperature: f64,
    /// How much less a judgement weighs that its teacher was unsure of: `1 / (1 + uncertainty · v)`,
    /// with `v` the variance of the judged grade, the top grade being 1.
    pub uncertainty: f64,
}

impl LossSettings {
    /// No loss at all: something to give weights to.
    pub fn none() -> Self {
        Self {
            margin_mse: 0.0,
            bce: 0.0,
            mse: 0.0,
            ranknet: 0.0,
            lambda_loss: 0.0,
            listnet: 0.0,
            kl: 0.0,
            lce: 0.0,
            adr_mse: 0.0,
            temperature: 1.0,
            uncertainty: 0.0,
        }
    }

    /// A setting that is out of range, and its range.
    fn check(&self) -> Result<()> {
        for (key, weight, _) in LOSSES {
            in_range(key, weight(self), &(0.0..f64::INFINITY))?;
        }
        in_range("loss.temperature", self.temperature, &(0.01..100.0))?;
        in_range("loss.uncertainty", self.uncertainty, &(0.0..f64::INFINITY))?;
        if LOSSES.iter().all(|(_, weight, _)| weight(self) == 0.0) {
            let names = LOSSES.map(|(key, ..)| key.trim_start_matches("loss."));
            let problem = format!(
                "has no weight above 0, so there is nothing to learn: give one to {}",
                names.join(", ")
            );
            return Err(Error::Setting {
                key: "loss",
                problem,
            });
        }
        Ok(())
    }
}

impl Default for LossSettings {
    fn default() -> Self {
        Self {
            margin_mse: 1.0,
            bce: 0.1,
            ..Self::none()
        }
    }
}

/// `[optimizer]`: AdamW, with PyTorch's defaults.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSettings {
    /// At its peak, after the warm-up.
    pub learning_rate: f64,
    /// Not applied to biases and layer norms.
    #[serde(default = "OptimizerSettings::weight_decay")]
    pub weight_decay: f64,
    /// Decay of the mean and of the square of gradients.
    #[serde(default = "OptimizerSettings::betas")]
    pub betas: [f64; 2],
    /// Added to the root of the square.
    #[serde(default = "OptimizerSettings::epsilon")]
    pub epsilon: f64,
    /// Gradients are scaled down to this norm, taken over all parameters together.
    #[serde(default = "OptimizerSettings::max_grad_norm")]
    pub max_grad_norm: f64,
}

impl OptimizerSettings {
    fn weight_decay() -> f64 {
        0.01
    }

    fn betas() -> [f64; 2] {
        [0.9, 0.999]
    }

    fn epsilon() -> f64 {
        1e-8
    }

    fn max_grad_norm() -> f64 {
        1.0
    }
}

/// `[schedule]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleSettings {
    /// Passes over the judgements.
    pub epochs: usize,
    /// Documents of one query that are compared with one another in a step.
    pub documents_per_query: usize,
    /// Queries in a step: lower this first when memory runs out.
    pub queries_per_step: usize,
    /// The share of all steps over which the learning rate rises from 0; then it falls to 0.
    pub warmup: f64,
    /// Padded tokens in one forward pass: a step's pairs are sorted by length into as many passes
    /// as they need.
    pub tokens_per_pass: usize,
}

/// `[evaluation]`: on dev queries, while training.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationSettings {
    /// Whose gold gains: a file name in the collection's `qrels/`.
    pub split: String,
    /// What is ranked, as `retort candidates` writes it.
    pub candidates: PathBuf,
    /// Steps between two evaluations; a checkpoint follows each, and the best is kept.
    pub every_steps: usize,
}

/// `[verdict]`: on test queries, at the end.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VerdictSettings {
    /// Whose gold gains.
    pub split: String,
    /// What every system ranks.
    pub candidates: PathBuf,
    /// The teacher's judgements on those candidates, to measure the teacher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_labels: Option<PathBuf>,
    /// The least gain that counts as relevant for the reciprocal rank.
    #[serde(default = "VerdictSettings::relevant_gain")]
    pub relevant_gain: u8,
}

impl VerdictSettings {
    fn relevant_gain() -> u8 {
        1
    }
}

impl TrainSettings {
    /// Refuses what can't be trained with, before anything is read or written.
    ///
    /// # Errors
    /// The first setting that is out of range, and its range.
    pub fn check(&self) -> Result<()> {
        let Self {
            optimizer,
            schedule,
            ..
        } = self;
        let whole = [
            ("schedule.epochs", schedule.epochs, 1),
            (
                "schedule.documents_per_query",
                schedule.documents_per_query,
                2,
            ),
            ("schedule.queries_per_step", schedule.queries_per_step, 1),
            ("schedule.tokens_per_pass", schedule.tokens_per_pass, 1),
            ("evaluation.every_steps", self.evaluation.every_steps, 1),
        ];
        for (key, value, least) in whole {
            if value < least {
                let problem = format!("is {value}, must be at least {least}");
                return Err(Error::Setting { key, problem });
            }
        }
        let real = [
            ("model.dropout", self.model.dropout, 0.0..1.0),
            ("optimizer.learning_rate", optimizer.learning_rate, 0.0..1.0),
            ("optimizer.weight_decay", optimizer.weight_decay, 0.0..1.0),
            ("optimizer.betas", optimizer.betas[0], 0.0..1.0),
            ("optimizer.betas", optimizer.betas[1], 0.0..1.0),
            (
                "optimizer.epsilon",
                optimizer.epsilon,
                f64::MIN_POSITIVE..1.0,
            ),
            (
                "optimizer.max_grad_norm",
                optimizer.max_grad_norm,
                f64::MIN_POSITIVE..f64::INFINITY,
            ),
            ("schedule.warmup", schedule.warmup, 0.0..1.0),
        ];
        for (key, value, range) in real {
            in_range(key, value, &range)?;
        }
        self.loss.check()?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || self.name.starts_with('.') || !self.name.chars().all(plain) {
            let problem = format!("{:?} must be letters, digits, '-', '_' or '.'", self.name);
            return Err(Error::Setting {
                key: "name",
                problem,
            });
        }
        Ok(())
    }
}

fn in_range(key: &'static str, value: f64, range: &Range<f64>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let problem = format!(
        "is {value}, must be from {} to below {}",
        range.start, range.end
    );
    Err(Error::Setting { key, problem })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The demo's settings, with some overridden.
    fn demo(overrides: &[&str]) -> retort_data::Result<TrainSettings> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/demo.toml");
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        retort_data::settings::read(&path, &overrides)
    }

    fn problem(overrides: &[&str]) -> String {
        let settings = demo(overrides).unwrap();
        settings.check().unwrap_err().to_string()
    }

    #[test]
    fn a_loss_that_is_not_named_has_no_weight() {
        assert_eq!(demo(&[]).unwrap().loss, LossSettings::default());
        let listwise: LossSettings = toml::from_str("kl = 1.0\ntemperature = 2.0").unwrap();
        let expected = LossSettings {
            kl: 1.0,
            temperature: 2.0,
            ..LossSettings::none()
        };
        assert_eq!(listwise, expected);
    }

    #[test]
    fn an_unknown_loss_names_the_nearest() {
        let error = demo(&["loss.bce_weight=0.1"]).unwrap_err().to_string();
        assert!(error.contains("did you mean `bce`?"), "{error}");
    }

    #[test]
    fn a_sum_without_a_weight_is_refused() {
        let error = problem(&["loss.margin_mse=0.0", "loss.bce=0.0"]);
        let expected = "loss: has no weight above 0, so there is nothing to learn: give one to \
                        margin_mse, bce, mse, ranknet, lambda_loss, listnet, kl, lce, adr_mse";
        assert_eq!(error, expected);
    }

    #[test]
    fn losses_have_ranges() {
        for (setting, expected) in [
            ("loss.kl=-0.5", "loss.kl: is -0.5, must be from 0 to"),
            (
                "loss.temperature=0.0",
                "loss.temperature: is 0, must be from 0.01",
            ),
            ("loss.uncertainty=nan", "loss.uncertainty: is NaN"),
        ] {
            let error = problem(&[setting]);
            assert!(error.contains(expected), "{error}");
        }
    }
}
