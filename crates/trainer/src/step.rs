//! One step of training: forward, the loss, backward, the update.

use std::fmt::Write as _;
use std::ops::Range;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use retort_model::{Batch, CrossEncoder, Encoded, HostBert, length_buckets};

use crate::batches::Step;
use crate::dataset::Dataset;
use crate::loss::{self, Judged};
use crate::optimizer::{AdamW, NamedGradients};
use crate::settings::TrainSettings;
use crate::train::StepReport;
use crate::{Error, Result};

/// What a step is made with.
pub(crate) struct StepContext<'a> {
    pub(crate) dataset: &'a Dataset,
    pub(crate) settings: &'a TrainSettings,
    /// From 1.
    pub(crate) number: usize,
    /// Of the whole run.
    pub(crate) steps: usize,
}

impl StepContext<'_> {
    /// One update: forward, the loss, backward; then AdamW.
    pub(crate) fn make(
        &self,
        student: CrossEncoder,
        optimizer: &mut AdamW,
        step: &Step,
        learning_rate: f64,
        device: &Device,
    ) -> Result<(CrossEncoder, StepReport)> {
        let started = Instant::now();
        let whole = Documents::of(step, self.dataset);
        let part = match HostBert::of(&student) {
            Some(host) => self.on_host(&host, &whole, device)?,
            None => self.on_device(&student, step, &whole, device)?,
        };
        let Part {
            loss,
            computed_tokens,
            gradients,
        } = part;
        if !loss.is_finite() {
            return Err(self.not_finite("loss", loss, step));
        }
        let (student, norm) = optimizer.step(student, gradients, learning_rate);
        if !norm.is_finite() {
            return Err(self.not_finite("gradient norm", norm, step));
        }
        let tokens: usize = whole.lengths(self.dataset).iter().sum();
        let report = StepReport {
            step: self.number,
            steps: self.steps,
            loss,
            learning_rate,
            gradient_norm: norm,
            pairs: whole.examples.len(),
            seconds: started.elapsed().as_secs_f64(),
            padding: 1.0 - tokens as f64 / computed_tokens as f64,
        };
        Ok((student, report))
    }

    /// Where the model has passes of its own.
    fn on_host(&self, host: &HostBert, whole: &Documents, device: &Device) -> Result<Part> {
        let examples = whole.examples.iter();
        let inputs: Vec<&Encoded> = examples
            .map(|example| &self.dataset.pairs[*example])
            .collect();
        let tokens_per_block = self.settings.schedule.tokens_per_pass;
        let threads = retort_model::parallelism(device);
        let seed = self.dropout_seed();
        let pass = host.forward(&inputs, threads, tokens_per_block, seed);
        let scores = Tensor::<1>::from_floats(pass.logits.as_slice(), device).require_grad();
        let loss = loss::weighted_sum(&scores, &whole.judged, &self.settings.loss);
        let value = number(loss.clone())?;
        let slopes = match scores.grad(&loss.backward()) {
            Some(slopes) => numbers(slopes)?,
            // A loss that no score moves.
            None => vec![0.0; inputs.len()],
        };
        let gradients = host.backward(&pass, &slopes);
        Ok(Part {
            loss: value,
            computed_tokens: inputs.iter().map(|input| input.len()).sum(),
            gradients: NamedGradients::of_host(gradients, &device.clone().without_autodiff()),
        })
    }

    /// Where Burn computes: in shards side by side, if that pays.
    fn on_device(
        &self,
        student: &CrossEncoder,
        step: &Step,
        whole: &Documents,
        device: &Device,
    ) -> Result<Part> {
        // Dropout draws from one generator: in which order, two threads would leave to chance.
        let threads = if self.settings.model.dropout > 0.0 {
            device.seed(self.dropout_seed());
            1
        } else {
            retort_model::parallelism(device)
        };
        let shards: Vec<Documents> = step
            .shards(threads)
            .into_iter()
            .map(|places| whole.part(places))
            .collect();
        let parts = retort_model::parallel_map(&shards, threads, |shard| {
            self.backward(&student.fork(), shard, device)
        });
        let mut sum = None::<Part>;
        for part in parts {
            let part = part?;
            sum = Some(match sum {
                None => part,
                Some(sum) => sum.plus(part),
            });
        }
        sum.ok_or_else(|| self.not_finite("loss", f64::NAN, step))
    }

    /// Forward in passes over pairs of like length, the shard's part of the loss, and backward.
    fn backward(&self, student: &CrossEncoder, shard: &Documents, device: &Device) -> Result<Part> {
        let passes = length_buckets(
            &shard.lengths(self.dataset),
            self.settings.schedule.tokens_per_pass,
        );
        let mut computed_tokens = 0;
        let mut scores = Vec::new();
        for pass in &passes {
            let inputs: Vec<&Encoded> = pass
                .iter()
                .map(|place| &self.dataset.pairs[shard.examples[*place]])
                .collect();
            let batch = Batch::new(&inputs, student.config().pad_token_id, device);
            computed_tokens += batch.input_ids.dims().iter().product::<usize>();
            scores.push(student.forward(&batch));
        }
        // The loss takes judgements in the order of the passes, which spares putting scores back.
        let judged = shard.judged.part(passes.iter().flatten().copied());
        let loss = loss::weighted_sum(&Tensor::cat(scores, 0), &judged, &self.settings.loss);
        let value = number(loss.clone())?;
        let gradients = NamedGradients::of(student, &loss.backward());
        Ok(Part {
            loss: value,
            computed_tokens,
            gradients,
        })
    }

    /// A generator's state can't be saved; a seed a step can be given again.
    fn dropout_seed(&self) -> u64 {
        self.settings.seed ^ ((self.number as u64) << 20)
    }

    fn not_finite(&self, what: &'static str, value: f64, step: &Step) -> Error {
        let mut queries = String::new();
        for group in &step.groups {
            let _ = write!(queries, "{} ", self.dataset.queries[group.query].id);
        }
        Error::NotFinite {
            step: self.number,
            what,
            value,
            queries: queries.trim_end().to_owned(),
        }
    }
}

/// The documents of a step, or of some of its groups.
struct Documents {
    /// Places in [`Dataset::pairs`].
    examples: Vec<usize>,
    judged: Judged,
}

impl Documents {
    fn of(step: &Step, dataset: &Dataset) -> Self {
        let judged = |(group, example): (usize, usize)| (group, dataset.targets[example]);
        Self {
            examples: step.documents().map(|(_, example)| example).collect(),
            judged: Judged::step(step.documents().map(judged)),
        }
    }

    fn part(&self, places: Range<usize>) -> Self {
        Self {
            examples: self.examples[places.clone()].to_vec(),
            judged: self.judged.part(places),
        }
    }

    fn lengths(&self, dataset: &Dataset) -> Vec<usize> {
        self.examples
            .iter()
            .map(|example| dataset.pairs[*example].len())
            .collect()
    }
}

/// What a step, or a shard of it, comes to.
struct Part {
    loss: f64,
    computed_tokens: usize,
    gradients: NamedGradients,
}

impl Part {
    fn plus(self, other: Self) -> Self {
        Self {
            loss: self.loss + other.loss,
            computed_tokens: self.computed_tokens + other.computed_tokens,
            gradients: self.gradients.plus(other.gradients),
        }
    }
}

fn number(tensor: Tensor<1>) -> Result<f64> {
    let first = numbers(tensor)?.first().copied();
    Ok(first.map_or(f64::NAN, f64::from))
}

fn numbers(tensor: Tensor<1>) -> Result<Vec<f32>> {
    tensor
        .try_into_vec_as()
        .map_err(|error| Error::Model(retort_model::Error::from(error)))
}
