use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};

use retort_model::{Attention, Device, Precision};
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
    /// The label set to learn from: a folder that `retort labels seal` wrote. Without one, `gold` alone
    /// is learnt from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<PathBuf>,
    /// Of query, document and special tokens together; the longer text is cut first.
    pub max_tokens: usize,
    /// Learn from this many of the label set's queries, drawn by the seed; those of a smaller number
    /// are among those of a larger one. All where this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queries: Option<usize>,
    /// How much of the label set an epoch has: 0.5 for every second group of documents, drawn anew.
    #[serde(default = "DataSettings::whole")]
    pub share: f64,
    /// More label sets, on the same collection.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<AlsoSettings>,
    /// Gold gains beside them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gold: Option<GoldSettings>,
}

impl DataSettings {
    /// All label sets, and how much of each an epoch has.
    pub fn label_sets(&self) -> impl Iterator<Item = (&Path, f64)> {
        let first = self.labels.iter().map(|labels| (&**labels, self.share));
        let also = self.also.iter().map(|also| (&*also.labels, also.share));
        first.chain(also)
    }

    fn whole() -> f64 {
        1.0
    }

    /// Refuses settings about something that is not given, and nothing to learn from.
    fn check(&self) -> Result<()> {
        let first_set = "is about data.labels, which is not given: name a label set there";
        let candidates = "is about data.gold.candidates, which are not given: name them, or leave \
                          this out";
        let has_labels = self.labels.is_some();
        let gold = self.gold.as_ref();
        let has_candidates = gold.is_some_and(|gold| gold.candidates.is_some());
        let of_gold = |given: fn(&GoldSettings) -> bool| gold.is_some_and(given);
        let guarded = of_gold(|gold| gold.guard.is_some());
        for (key, is_given, has_all, problem) in [
            (
                "data.labels",
                gold.is_none() && self.also.is_empty(),
                has_labels,
                "is not given: name a label set, or learn from gold gains with [data.gold]",
            ),
            ("data.also", !self.also.is_empty(), has_labels, first_set),
            (
                "data.queries",
                self.queries.is_some(),
                has_labels,
                first_set,
            ),
            (
                "data.share",
                self.share < Self::whole(),
                has_labels,
                first_set,
            ),
            ("data.gold.guard", guarded, has_labels, first_set),
            ("data.gold.guard", guarded, has_candidates, candidates),
            (
                "data.gold.negatives",
                of_gold(|gold| gold.negatives.is_some()),
                has_candidates,
                candidates,
            ),
        ] {
            if is_given && !has_all {
                let problem = problem.to_owned();
                return Err(Error::Setting { key, problem });
            }
        }
        Ok(())
    }
}

/// `[[data.also]]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AlsoSettings {
    /// A label set.
    pub labels: PathBuf,
    /// How much of it an epoch has.
    #[serde(default = "DataSettings::whole")]
    pub share: f64,
}

/// `[data.gold]`: gold gains to learn from, as if a certain teacher had given them.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GoldSettings {
    /// Whose: a file name in the collection's `qrels/`.
    pub split: String,
    /// Documents of these queries, as `retort candidates` writes them, of which those without a gain
    /// are taken for irrelevant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidates: Option<PathBuf>,
    /// No more of them than this for a query: the first of the file, which are the hardest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negatives: Option<usize>,
    /// None of them of which a label set says more than this, as a share of its top grade, half of it
    /// unless given: nobody may have looked at them, and they are relevant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<f64>,
    /// How much of it an epoch has.
    #[serde(default = "DataSettings::whole")]
    pub share: f64,
}

impl GoldSettings {
    /// A guard that is not given.
    pub(crate) const GUARD: f64 = 0.5;
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
    /// What computes the score from the encoder's output.
    #[serde(default)]
    pub head: HeadChoice,
    /// Of hidden states and attention, while training.
    pub dropout: f64,
    /// What training computes in what.
    #[serde(default)]
    pub precision: Precision,
    /// How training computes attention.
    #[serde(default)]
    pub attention: Attention,
}

/// Where the student's head comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadChoice {
    /// It is drawn by the seed, whatever the base model has.
    #[default]
    New,
    /// It is the base model's, which is a cross-encoder.
    Kept,
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

    /// Whether documents of a query are compared with one another.
    fn compares(&self) -> bool {
        let mut losses = LOSSES.iter();
        losses.any(|(key, weight, _)| weight(self) > 0.0 && !Self::ALONE.contains(key))
    }

    /// Whether documents are judged by themselves.
    pub(crate) fn judges_alone(&self) -> bool {
        let mut losses = LOSSES.iter();
        losses.any(|(key, weight, _)| weight(self) > 0.0 && Self::ALONE.contains(key))
    }

    const ALONE: [&str; 2] = ["loss.bce", "loss.mse"];

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
    /// The learning rate of a layer as a share of the next layer's; the embeddings are below the
    /// lowest, and the highest has the learning rate itself.
    #[serde(default = "OptimizerSettings::one")]
    pub layer_decay: f64,
    /// The head's learning rate over that of the highest layer: it is new, the layers are not.
    #[serde(default = "OptimizerSettings::one")]
    pub head_factor: f64,
    /// How much of itself a moving average of the weights keeps at each update; at update `t` no more
    /// than `(1 + t) / (10 + t)`, so that the beginning is soon forgotten. The average is what is
    /// evaluated and exported. 0 for none.
    #[serde(default)]
    pub ema: f64,
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

    fn one() -> f64 {
        1.0
    }
}

/// `[schedule]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleSettings {
    /// Passes over the judgements.
    pub epochs: usize,
    /// Documents of one query that are compared with one another in a step; 1 where no loss compares,
    /// for steps of pairs from as many queries as can be.
    pub documents_per_query: usize,
    /// How the documents of a query that has more of them are divided into groups of that size.
    #[serde(default)]
    pub sampling: Sampling,
    /// How many such groups of a query an epoch has at most; all where this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups_per_query: Option<usize>,
    /// Queries whose gradients are computed together: lower this first when memory runs out.
    pub queries_per_step: usize,
    /// How many times `queries_per_step` queries a step has: their gradients add up to those of one
    /// large step, in the memory of a small one.
    #[serde(default = "ScheduleSettings::one")]
    pub accumulate: usize,
    /// The share of all steps over which the learning rate rises from 0; then it falls to 0.
    pub warmup: f64,
    /// How it falls.
    #[serde(default)]
    pub decay: Decay,
    /// Tokens in one forward pass, before padding: a step's pairs are sorted by length into as many
    /// passes as they need.
    pub tokens_per_pass: usize,
}

impl ScheduleSettings {
    fn one() -> usize {
        1
    }

    /// Something for tests to start from.
    #[cfg(test)]
    pub(crate) fn of_tests() -> Self {
        Self {
            epochs: 1,
            documents_per_query: 10,
            sampling: Sampling::Random,
            groups_per_query: None,
            queries_per_step: 4,
            accumulate: 1,
            warmup: 0.1,
            decay: Decay::Linear,
            tokens_per_pass: 100,
        }
    }

    /// Queries whose gradients make up one update.
    pub(crate) fn queries_per_update(&self) -> usize {
        self.queries_per_step.saturating_mul(self.accumulate)
    }
}

/// How a query's documents are divided into groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampling {
    /// By chance.
    #[default]
    Random,
    /// So that each group spans what the teacher said of the query's documents: one of those that it
    /// likes most, one of the next, and so on, by chance within these.
    Stratified,
}

/// How a learning rate falls from its peak to 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// By the same at each step.
    #[default]
    Linear,
    /// As a cosine falls from 1 to −1: slowly at first and in the end.
    Cosine,
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
    /// Training ends after so many evaluations in a row that were not better than the best before;
    /// where this is absent, at its last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
    /// How many of the last checkpoints are kept, besides the best.
    #[serde(default = "EvaluationSettings::keep")]
    pub keep: usize,
    /// Whether what `metrics.jsonl` has is written for TensorBoard as well.
    #[serde(default)]
    pub tensorboard: bool,
}

impl EvaluationSettings {
    fn keep() -> usize {
        1
    }
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
            evaluation,
            ..
        } = self;
        for (key, value, least) in [
            ("data.queries", self.data.queries.unwrap_or(1), 1),
            ("schedule.epochs", schedule.epochs, 1),
            (
                "schedule.documents_per_query",
                schedule.documents_per_query,
                if self.loss.compares() { 2 } else { 1 },
            ),
            (
                "schedule.groups_per_query",
                schedule.groups_per_query.unwrap_or(1),
                1,
            ),
            ("schedule.queries_per_step", schedule.queries_per_step, 1),
            ("schedule.accumulate", schedule.accumulate, 1),
            ("schedule.tokens_per_pass", schedule.tokens_per_pass, 1),
            ("evaluation.every_steps", evaluation.every_steps, 1),
            ("evaluation.patience", evaluation.patience.unwrap_or(1), 1),
            ("evaluation.keep", evaluation.keep, 1),
            (
                "verdict.relevant_gain",
                self.verdict.relevant_gain.into(),
                1,
            ),
        ] {
            if value < least {
                let problem = format!("is {value}, must be at least {least}");
                return Err(Error::Setting { key, problem });
            }
        }
        for (key, share) in [
            ("model.dropout", self.model.dropout),
            ("optimizer.learning_rate", optimizer.learning_rate),
            ("optimizer.weight_decay", optimizer.weight_decay),
            ("optimizer.betas", optimizer.betas[0]),
            ("optimizer.betas", optimizer.betas[1]),
            ("optimizer.ema", optimizer.ema),
            ("schedule.warmup", schedule.warmup),
        ] {
            in_range(key, share, &(0.0..1.0))?;
        }
        for (key, value, highest) in [
            ("optimizer.epsilon", optimizer.epsilon, Bound::Excluded(1.0)),
            (
                "optimizer.max_grad_norm",
                optimizer.max_grad_norm,
                Bound::Excluded(f64::INFINITY),
            ),
            (
                "optimizer.layer_decay",
                optimizer.layer_decay,
                Bound::Included(1.0),
            ),
            (
                "optimizer.head_factor",
                optimizer.head_factor,
                Bound::Excluded(1000.0),
            ),
        ] {
            in_range(key, value, &(Bound::Excluded(0.0), highest))?;
        }
        self.loss.check()?;
        self.data.check()?;
        let gold = self.data.gold.as_ref();
        let mut shares = vec![("data.share", self.data.share)];
        shares.extend(
            self.data
                .also
                .iter()
                .map(|it| ("data.also.share", it.share)),
        );
        shares.extend(gold.map(|it| ("data.gold.share", it.share)));
        shares.extend(gold.and_then(|it| Some(("data.gold.guard", it.guard?))));
        for (key, share) in shares {
            in_range(key, share, &(Bound::Excluded(0.0), Bound::Included(1.0)))?;
        }
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

    /// Refuses a device that can't be trained on like this, before anything is read or written.
    ///
    /// # Errors
    /// The setting, and what to set instead.
    pub fn check_device(&self, device: &Device) -> Result<()> {
        let ModelSettings {
            precision,
            attention,
            dropout,
            ..
        } = &self.model;
        for (key, checked) in [
            ("model.precision", precision.check(device)),
            ("model.attention", attention.check(device, *dropout)),
        ] {
            checked.map_err(|error| Error::Setting {
                key,
                problem: error.to_string(),
            })?;
        }
        Ok(())
    }
}

fn in_range(key: &'static str, value: f64, range: &impl RangeBounds<f64>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let from = match range.start_bound() {
        Bound::Included(least) => format!("from {least}"),
        Bound::Excluded(below) => format!("above {below}"),
        Bound::Unbounded => String::new(),
    };
    let to = match range.end_bound() {
        Bound::Included(most) => format!("to {most}"),
        Bound::Excluded(above) => format!("to below {above}"),
        Bound::Unbounded => String::new(),
    };
    let problem = format!("is {value}, must be {from} {to}");
    Err(Error::Setting { key, problem })
}

#[cfg(test)]
mod tests {
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
    fn the_demo_is_trained_as_before_there_was_a_choice() {
        let TrainSettings {
            optimizer,
            schedule,
            evaluation,
            ..
        } = demo(&[]).unwrap();
        let factors = [optimizer.layer_decay, optimizer.head_factor, optimizer.ema];
        assert!(
            factors
                .iter()
                .zip([1.0, 1.0, 0.0])
                .all(|(a, b)| a.total_cmp(&b).is_eq())
        );
        assert_eq!((schedule.accumulate, schedule.decay), (1, Decay::Linear));
        assert_eq!((evaluation.patience, evaluation.keep), (None, 1));
    }

    #[test]
    fn pairs_can_be_alone_where_nothing_compares_them() {
        let alone = "schedule.documents_per_query=1";
        let settings = demo(&[alone, "loss={bce=1.0, mse=0.5}"]).unwrap();
        settings.check().unwrap();
        assert!(problem(&[alone, "loss={bce=1.0, kl=0.5}"]).contains("must be at least 2"));
    }

    #[test]
    fn gold_gains_can_be_learnt_from_alone() {
        let text = |data: &str| format!("collection = 'c'\nmax_tokens = 64\n{data}");
        let of = |data: &str| toml::from_str::<DataSettings>(&text(data)).unwrap();
        of("gold = {split = 'train'}").check().unwrap();
        let gold = |more: &str| format!("gold = {{split = 'train'{more}}}");
        for (data, expected) in [
            ("", "data.labels: is not given: name a label set"),
            ("also = [{labels = 'x'}]", "data.also: is about data.labels"),
            (
                &format!("queries = 3\n{}", gold("")),
                "data.queries: is about data.labels",
            ),
            (
                &format!("share = 0.5\n{}", gold("")),
                "data.share: is about data.labels",
            ),
            (
                &gold(", candidates = 'c', guard = 0.4"),
                "data.gold.guard: is about data.labels",
            ),
            (
                &format!("labels = 'l'\n{}", gold(", guard = 0.4")),
                "data.gold.guard: is about data.gold.candidates",
            ),
            (
                &gold(", negatives = 3"),
                "data.gold.negatives: is about data.gold.candidates",
            ),
        ] {
            let error = of(data).check().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn settings_have_ranges() {
        for (setting, expected) in [
            (
                "optimizer.layer_decay=1.5",
                "optimizer.layer_decay: is 1.5, must be above 0 to 1",
            ),
            (
                "optimizer.head_factor=0.0",
                "optimizer.head_factor: is 0, must be above 0 to below 1000",
            ),
            ("optimizer.ema=1.0", "optimizer.ema: is 1, must be from 0"),
            ("schedule.accumulate=0", "must be at least 1"),
            ("schedule.documents_per_query=1", "must be at least 2"),
            ("schedule.groups_per_query=0", "must be at least 1"),
            ("data.share=0.0", "data.share: is 0, must be above 0 to 1"),
            (
                "data.also=[{labels=\"x\", share=1.5}]",
                "data.also.share: is 1.5, must be",
            ),
            (
                "data.gold={split=\"train\", candidates=\"c\", guard=0.0}",
                "data.gold.guard: is 0, must be",
            ),
            ("evaluation.patience=0", "must be at least 1"),
            ("evaluation.keep=0", "must be at least 1"),
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
