//! One step of training: forward, the loss, backward, the update.

use std::fmt::Write as _;
use std::ops::Range;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use retort_model::{Batch, CrossEncoder, Encoded, HostBert, length_buckets};

use crate::batches::Step;
use crate::dataset::Example;
use crate::event::StepReport;
use crate::gradients::NamedGradients;
use crate::learner::Learner;
use crate::loss::{self, Judged};
use crate::settings::TrainSettings;
use crate::{Error, Result};

/// What a step is made with.
pub(crate) struct StepContext<'a> {
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
        learner: Learner,
        step: &Step,
        learning_rate: f64,
        device: &Device,
    ) -> Result<(Learner, StepReport)> {
        let started = Instant::now();
        let whole = Documents::of(step);
        let Part {
            loss,
            constant_loss,
            teacher_loss,
            scores,
            computed_tokens,
            gradients,
        } = self
            .gradients(learner.student(), step, &whole, device)?
            .ok_or_else(|| self.not_finite("loss", f64::NAN, step))?;
        if !loss.is_finite() {
            return Err(self.not_finite("loss", loss, step));
        }
        let (learner, norm) = learner.update(gradients, learning_rate);
        if !norm.is_finite() {
            return Err(self.not_finite("gradient norm", norm, step));
        }
        let tokens: usize = whole.lengths().iter().sum();
        let report = StepReport {
            step: self.number,
            steps: self.steps,
            loss,
            constant_loss,
            teacher_loss,
            spread: whole.judged.spread(&scores),
            teacher_spread: whole.judged.spread(&whole.judged.logits()),
            learning_rate,
            gradient_norm: norm,
            pairs: whole.pairs.len(),
            seconds: started.elapsed().as_secs_f64(),
            padding: 1.0 - tokens as f64 / computed_tokens as f64,
        };
        Ok((learner, report))
    }

    /// The loss and its gradients; `None` of a step without documents.
    fn gradients(
        &self,
        student: &CrossEncoder,
        step: &Step,
        whole: &Documents,
        device: &Device,
    ) -> Result<Option<Part>> {
        match HostBert::of(student) {
            Some(host) => self.on_host(&host, step, whole, device),
            None => self.on_device(student, step, whole, device),
        }
    }

    /// Where the model has passes of its own.
    fn on_host(
        &self,
        host: &HostBert,
        step: &Step,
        whole: &Documents,
        device: &Device,
    ) -> Result<Option<Part>> {
        let schedule = &self.settings.schedule;
        let parts = step.parts(schedule.queries_per_step, 1);
        sum(parts
            .into_iter()
            .flatten()
            .enumerate()
            .map(|(place, places)| {
                let part = whole.part(places);
                let inputs = &part.pairs;
                let threads = retort_model::parallelism(device);
                let seed = self.dropout_seed() ^ ((place as u64) << 52);
                let pass = host.forward(inputs, threads, schedule.tokens_per_pass, seed);
                let scores =
                    Tensor::<1>::from_floats(pass.logits.as_slice(), device).require_grad();
                let loss = loss::weighted_sum(&scores, &part.judged, &self.settings.loss);
                let value = number(loss.clone())?;
                let slopes = match scores.grad(&loss.backward()) {
                    Some(slopes) => numbers(slopes)?,
                    // A loss that no score moves.
                    None => vec![0.0; inputs.len()],
                };
                let gradients = host.backward(&pass, &slopes);
                Ok(Part {
                    loss: value,
                    constant_loss: self.loss_of(&part.constant(), &part)?,
                    teacher_loss: self.loss_of(&part.judged.logits(), &part)?,
                    scores: pass.logits,
                    computed_tokens: inputs.iter().map(|input| input.len()).sum(),
                    gradients: NamedGradients::of_host(
                        gradients,
                        &device.clone().without_autodiff(),
                    ),
                })
            }))
    }

    /// Where Burn computes: in shards side by side, if that pays.
    fn on_device(
        &self,
        student: &CrossEncoder,
        step: &Step,
        whole: &Documents,
        device: &Device,
    ) -> Result<Option<Part>> {
        // Dropout draws from one generator: in which order, two threads would leave to chance.
        let threads = if self.settings.model.dropout > 0.0 {
            device.seed(self.dropout_seed());
            1
        } else {
            retort_model::parallelism(device)
        };
        let parts = step.parts(self.settings.schedule.queries_per_step, threads);
        sum(parts.into_iter().flat_map(|shards| {
            let shards: Vec<Documents> = shards.into_iter().map(|s| whole.part(s)).collect();
            retort_model::parallel_map(&shards, threads, |shard| {
                self.backward(&student.fork(), shard, device)
            })
        }))
    }

    /// Forward in passes over pairs of like length, the shard's part of the loss, and backward.
    fn backward(&self, student: &CrossEncoder, shard: &Documents, device: &Device) -> Result<Part> {
        let passes = length_buckets(&shard.lengths(), self.settings.schedule.tokens_per_pass);
        let mut computed_tokens = 0;
        let mut scores = Vec::new();
        for pass in &passes {
            let inputs: Vec<&Encoded> = pass.iter().map(|place| shard.pairs[*place]).collect();
            let batch = Batch::new(&inputs, student.config().pad_token_id, device);
            computed_tokens += batch.input_ids.dims().iter().product::<usize>();
            scores.push(student.forward(&batch));
        }
        // The loss takes judgements in the order of the passes, which spares putting scores back.
        let places = || passes.iter().flatten().copied();
        let judged = shard.judged.part(places());
        let scores = Tensor::cat(scores, 0);
        let loss = loss::weighted_sum(&scores, &judged, &self.settings.loss);
        let value = number(loss.clone())?;
        let gradients = NamedGradients::of(student, &loss.backward());
        let mut in_order = vec![0.0; shard.pairs.len()];
        for (place, score) in places().zip(numbers(scores)?) {
            in_order[place] = score;
        }
        Ok(Part {
            loss: value,
            constant_loss: self.loss_of(&shard.constant(), shard)?,
            teacher_loss: self.loss_of(&shard.judged.logits(), shard)?,
            scores: in_order,
            computed_tokens,
            gradients,
        })
    }

    /// A generator's state can't be saved; a seed a step can be given again.
    fn dropout_seed(&self) -> u64 {
        self.settings.seed ^ ((self.number as u64) << 20)
    }

    /// What these scores cost.
    fn loss_of(&self, scores: &[f32], documents: &Documents) -> Result<f64> {
        let scores = Tensor::<1>::from_floats(scores, &Device::flex());
        let settings = &self.settings.loss;
        number(loss::weighted_sum(&scores, &documents.judged, settings))
    }

    fn not_finite(&self, what: &'static str, value: f64, step: &Step) -> Error {
        let mut queries = String::new();
        for group in &step.groups {
            let _ = write!(queries, "{} ", group.query_id);
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
struct Documents<'a> {
    pairs: Vec<&'a Encoded>,
    judged: Judged,
    /// The one score for all documents of the step that is nearest to the teacher's.
    constant: f32,
}

impl<'a> Documents<'a> {
    fn of(step: &'a Step) -> Self {
        let judged = |(group, example): (usize, &Example)| (group, example.target);
        let judged = Judged::step(step.documents().map(judged));
        Self {
            pairs: step.documents().map(|(_, example)| &example.pair).collect(),
            constant: judged.constant(),
            judged,
        }
    }

    fn constant(&self) -> Vec<f32> {
        vec![self.constant; self.pairs.len()]
    }

    fn part(&self, places: Range<usize>) -> Self {
        Self {
            pairs: self.pairs[places.clone()].to_vec(),
            judged: self.judged.part(places),
            constant: self.constant,
        }
    }

    fn lengths(&self) -> Vec<usize> {
        self.pairs.iter().map(|pair| pair.len()).collect()
    }
}

/// What a step, or a shard of it, comes to.
struct Part {
    loss: f64,
    /// What one score for all documents costs.
    constant_loss: f64,
    /// What the teacher's scores cost.
    teacher_loss: f64,
    /// In the order of the documents.
    scores: Vec<f32>,
    computed_tokens: usize,
    gradients: NamedGradients,
}

impl Part {
    fn plus(mut self, other: Self) -> Self {
        self.scores.extend(other.scores);
        Self {
            loss: self.loss + other.loss,
            constant_loss: self.constant_loss + other.constant_loss,
            teacher_loss: self.teacher_loss + other.teacher_loss,
            scores: self.scores,
            computed_tokens: self.computed_tokens + other.computed_tokens,
            gradients: self.gradients.plus(other.gradients),
        }
    }
}

/// Of parts that are computed as they are asked for: no more is in memory than one and the sum.
fn sum(mut parts: impl Iterator<Item = Result<Part>>) -> Result<Option<Part>> {
    parts.try_fold(None, |sum: Option<Part>, part| {
        let part = part?;
        Ok(Some(match sum {
            None => part,
            Some(sum) => sum.plus(part),
        }))
    })
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::module::Param;
    use retort_model::{Head, PairTokenizer, ParameterMapper};

    use super::*;
    use crate::batches::Epoch;
    use crate::dataset::{Dataset, Part as SetPart};
    use crate::loss::Target;
    use crate::vectors::replace;

    /// Queries of one to five documents, of which some tie and some are doubtful.
    fn dataset(folder: &Path, queries: usize) -> Dataset {
        let words = [
            "the", "red", "drill", "of", "a", "bath", "towel", "in", "white",
        ];
        let words = |from: usize, count: usize| {
            let word = |place| words[(from + place * 7) % words.len()];
            (0..count).map(word).collect::<Vec<&str>>().join(" ")
        };
        let tokenizer = PairTokenizer::open(folder, 32).unwrap();
        let example = |query: usize, document: usize| {
            let texts = [words(query, 2), words(query + document, 1 + 3 * document)];
            let mut pairs = tokenizer.encode_pairs(&[(&texts[0], &texts[1])]).unwrap();
            let grade = ((query + 2 * document) % 4) as f32;
            let target = Target {
                logit: 2.0 * grade - 3.0,
                grade,
                doubt: (document % 3) as f32,
            };
            Example {
                pair: pairs.remove(0),
                target,
            }
        };
        let of_query = |query: usize| {
            let examples = (0..=query % 5).map(|document| example(query, document));
            (query.to_string(), examples.collect())
        };
        let made: Vec<_> = (0..queries).map(of_query).collect();
        let part = SetPart {
            queries: 0..queries,
            share: 1.0,
        };
        Dataset::of_tests(&made, vec![part])
    }

    fn settings(overrides: [&str; 2]) -> TrainSettings {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let overrides = [overrides[0], overrides[1], "loss.ranknet=1.0"].map(str::to_owned);
        retort_data::settings::read(&root.join("configs/demo.toml"), &overrides).unwrap()
    }

    fn first_step(dataset: &Dataset, settings: &TrainSettings) -> Step {
        let epoch = Epoch::of(dataset, &settings.schedule, 7, 0);
        epoch.step(dataset, &settings.schedule, 0).unwrap()
    }

    /// The first step's loss and gradients.
    fn first(dataset: &Dataset, student: &CrossEncoder, schedule: [&str; 2]) -> Part {
        let settings = settings(schedule);
        let step = first_step(dataset, &settings);
        let context = StepContext {
            settings: &settings,
            number: 1,
            steps: 1,
        };
        let whole = Documents::of(&step);
        let part = context.gradients(student, &step, &whole, &student.device());
        part.unwrap().unwrap()
    }

    #[test]
    fn a_loss_that_is_not_finite_stops_before_the_update_and_names_its_queries() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bert");
        let device = Device::flex().autodiff();
        let head = Head::New { seed: 1 };
        let student = CrossEncoder::load(&folder, head, Some(0.0), &device).unwrap();
        let student = student.map_parameters(&mut Poison);
        let settings = settings(["schedule.queries_per_step=3", "seed=7"]);
        let dataset = dataset(&folder, 3);
        let context = StepContext {
            settings: &settings,
            number: 12,
            steps: 20,
        };
        let step = first_step(&dataset, &settings);
        let learner = Learner::new(student, &settings);
        let error = context.make(learner, &step, 1e-3, &device).err().unwrap();
        let Error::NotFinite {
            step: 12,
            what: "loss",
            queries,
            ..
        } = &error
        else {
            panic!("{error}");
        };
        let mut queries: Vec<&str> = queries.split(' ').collect();
        queries.sort_unstable();
        assert_eq!(queries, ["0", "1", "2"]);
        assert!(error.to_string().contains("nothing was updated"), "{error}");
    }

    /// Lets logits be as large as numbers of 32 bits go, and then some.
    struct Poison;

    impl ParameterMapper for Poison {
        fn map<const N: usize>(
            &mut self,
            name: &str,
            parameter: Param<Tensor<N>>,
        ) -> Param<Tensor<N>> {
            if name == "classifier.weight" {
                replace(parameter, |weights| {
                    weights.mul_scalar(1e38).mul_scalar(1e38)
                })
            } else {
                parameter
            }
        }
    }

    /// By hand (BERT) and in Burn (ELECTRA).
    #[test]
    fn four_parts_of_eight_queries_are_a_step_of_thirty_two() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        for name in ["bert", "family/electra"] {
            let folder = golden.join(name);
            let device = Device::flex().autodiff();
            let head = Head::New { seed: 1 };
            let student = CrossEncoder::load(&folder, head, Some(0.0), &device).unwrap();
            let dataset = dataset(&folder, 32);
            let part = |schedule| first(&dataset, &student, schedule);
            let large = part(["schedule.queries_per_step=32", "schedule.accumulate=1"]);
            let small = part(["schedule.queries_per_step=8", "schedule.accumulate=4"]);
            assert!((large.loss - small.loss).abs() < 1e-5 * large.loss);
            assert!(large.gradients.norm() > 0.01);
            assert!(large.teacher_loss < large.constant_loss);
            assert!((large.constant_loss - small.constant_loss).abs() < 1e-5 * large.loss);
            let scores = large.scores.iter().zip(&small.scores);
            let pairs: usize = (0..dataset.queries()).map(|it| dataset.examples(it)).sum();
            assert_eq!(large.scores.len(), pairs);
            assert!(scores.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) < 1e-5);
            let tolerance = 1e-5 * large.gradients.norm();
            for (name, large) in &large.gradients.by_name {
                let small = numbers(small.gradients.by_name[name].clone()).unwrap();
                for (large, small) in numbers(large.clone()).unwrap().iter().zip(&small) {
                    let difference = f64::from((large - small).abs());
                    assert!(difference < tolerance, "{name}: {large} {small}");
                }
            }
        }
    }
}
