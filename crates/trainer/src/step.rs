//! One step of training: forward, the loss, backward, the update.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use retort_model::{Clip, Encoded, HostBert, Pass, Student};

use crate::batches::Step;
use crate::dataset::Example;
use crate::event::StepReport;
use crate::gradients::{NamedGradients, norm_in, norm_of};
use crate::learner::Learner;
use crate::loss::{self, Judged};
use crate::loss_scale::LossScale;
use crate::settings::TrainSettings;
use crate::vectors::to_host;
use crate::{Error, Result};

/// What a step is made with.
pub(crate) struct StepContext<'a> {
    pub(crate) settings: &'a TrainSettings,
    /// From 1.
    pub(crate) number: usize,
    /// Of the whole run.
    pub(crate) steps: usize,
    /// When the step before was made.
    pub(crate) since: Instant,
}

impl StepContext<'_> {
    /// One update: forward, the loss, backward; then AdamW. A GPU is asked what became of the step before
    /// together with this one's scores; `last` is then this one.
    pub(crate) fn make(
        &self,
        learner: Learner,
        step: &Step,
        learning_rate: f64,
        device: &Device,
        last: &mut Last,
    ) -> Result<Learner> {
        let whole = Documents::of(step);
        let Part {
            loss,
            constant_loss,
            teacher_loss,
            scores,
            computed_tokens,
            gradients,
        } = self
            .gradients(&learner, step, &whole, device, last)?
            .ok_or_else(|| self.not_finite("loss", f64::NAN, step))?;
        // Where nothing was asked of a GPU.
        last.end()?;
        if !loss.is_finite() {
            return Err(self.not_finite("loss", loss, step));
        }
        let scale = learner.loss_scale();
        let (learner, clip) = learner.update(gradients, learning_rate)?;
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
            gradient_norm: f64::NAN,
            loss_scale: scale.map(LossScale::factor),
            skipped: false,
            pairs: whole.pairs.len(),
            seconds: self.since.elapsed().as_secs_f64(),
            padding: 1.0 - tokens as f64 / computed_tokens as f64,
        };
        last.made = Some(Made {
            report,
            clip,
            may_skip: learner.loss_scale().is_some_and(LossScale::helps),
            queries: queries(step),
        });
        Ok(learner)
    }

    /// The loss and its gradients; `None` of a step without documents.
    fn gradients(
        &self,
        learner: &Learner,
        step: &Step,
        whole: &Documents,
        device: &Device,
        last: &mut Last,
    ) -> Result<Option<Part>> {
        match learner.student().host() {
            Some(host) => self.on_host(&host, step, whole, device),
            None => self.on_device(learner, step, whole, device, last),
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
                let (value, slopes) = self.loss_and_slopes(&pass.logits, &part.judged)?;
                let gradients = host.backward(&pass, &slopes);
                Ok(Part {
                    loss: value,
                    constant_loss: self.loss_of(&part.constant(), &part)?,
                    teacher_loss: self.loss_of(&part.judged.logits(), &part)?,
                    scores: pass.logits,
                    computed_tokens: inputs.iter().map(|input| input.len()).sum(),
                    gradients: BTreeMap::from([(
                        0,
                        NamedGradients::of_host(gradients, &device.clone().without_autodiff()),
                    )]),
                })
            }))
    }

    /// Where Burn computes: in shards side by side, of which each device has its share.
    fn on_device(
        &self,
        learner: &Learner,
        step: &Step,
        whole: &Documents,
        device: &Device,
        last: &mut Last,
    ) -> Result<Option<Part>> {
        let students = learner.students();
        // Dropout draws from one generator: in which order, two threads would leave to chance.
        let threads = if self.settings.model.dropout > 0.0 {
            // All GPUs of a process draw from one generator.
            device.seed(self.dropout_seed());
            students.len()
        } else {
            retort_model::parallelism(device).max(students.len())
        };
        let scale = learner.loss_scale().map_or(1.0, LossScale::factor);
        let parts = step.parts(self.settings.schedule.queries_per_step, threads);
        sum(parts.into_iter().flat_map(|shards| {
            let shards = shards.into_iter().map(|shard| whole.part(shard));
            let shards: Vec<(usize, Documents)> = shards.enumerate().collect();
            let ask = |(place, shard): &(usize, Documents)| {
                self.ask(&students, place % students.len(), shard)
            };
            let back = |(asked, scores): (Asked, Vec<f32>), (_, shard): &(usize, Documents)| {
                self.back(asked, &scores, scale, shard)
            };
            if *device == Device::flex().autodiff() {
                return retort_model::parallel_map(&shards, threads, |shard| {
                    let (asked, scores, _) = ask(shard)?.answered(None)?;
                    back((asked, scores), shard)
                });
            }
            // All GPUs are given their work before one is asked what came of it, from one thread.
            let asked: Vec<_> = shards.iter().map(ask).collect();
            let (mut clip, mut of_clip) = (last.clip(), None);
            let answered = asked.into_iter().map(|asked| {
                let (asked, scores, others) = asked?.answered(clip.take())?;
                of_clip = of_clip.take().or(others);
                Ok((asked, scores))
            });
            let answered: Vec<Result<_>> = answered.collect();
            // Not of one GPU while another owes its own.
            if answered.iter().all(Result::is_ok) {
                retort_model::answered();
            }
            if let Some(of_clip) = of_clip
                && let Err(error) = last.end_by(norm_in(&of_clip))
            {
                return vec![Err(error)];
            }
            let both = answered.into_iter().zip(&shards);
            let parts = both.map(|(answered, shard)| back(answered?, shard));
            parts.collect::<Vec<Result<Part>>>()
        }))
    }

    /// Forward in passes over pairs of like length.
    fn ask(&self, students: &[&Student], replica: usize, shard: &Documents) -> Result<Asked> {
        let student = students[replica].fork();
        let passes = student.buckets(&shard.lengths(), self.settings.schedule.tokens_per_pass);
        let mut computed_tokens = 0;
        let mut made = Vec::new();
        for pass in &passes {
            let inputs: Vec<&Encoded> = pass.iter().map(|place| shard.pairs[*place]).collect();
            let batch = student.batch(&inputs);
            computed_tokens += batch.tokens();
            made.push(student.pass(&batch));
        }
        Ok(Asked {
            made,
            places: passes.into_iter().flatten().collect(),
            // Here, while a GPU is at work.
            constant_loss: self.loss_of(&shard.constant(), shard)?,
            teacher_loss: self.loss_of(&shard.judged.logits(), shard)?,
            computed_tokens,
            student,
            replica,
        })
    }

    /// The loss of these scores, pass by pass, on the CPU, and backward.
    fn back(&self, asked: Asked, in_order: &[f32], scale: f64, shard: &Documents) -> Result<Part> {
        // The loss takes judgements in the order of the passes, which spares putting slopes there.
        let judged = shard.judged.part(asked.places.iter().copied());
        let (loss, mut slopes) = self.loss_and_slopes(in_order, &judged)?;
        for slope in &mut slopes {
            #[expect(clippy::cast_possible_truncation, reason = "a power of two")]
            let scale = scale as f32;
            *slope *= scale;
        }
        let gradients = NamedGradients::at(&asked.student, asked.made, &slopes);
        let mut scores = vec![0.0; asked.places.len()];
        for (place, score) in asked.places.into_iter().zip(in_order) {
            scores[place] = *score;
        }
        Ok(Part {
            loss,
            constant_loss: asked.constant_loss,
            teacher_loss: asked.teacher_loss,
            scores,
            computed_tokens: asked.computed_tokens,
            gradients: BTreeMap::from([(asked.replica, gradients.scaled_by(scale))]),
        })
    }

    /// Of these scores, and at them.
    fn loss_and_slopes(&self, scores: &[f32], judged: &Judged) -> Result<(f64, Vec<f32>)> {
        let tensor = Tensor::<1>::from_floats(scores, &Device::flex().autodiff()).require_grad();
        let loss = loss::weighted_sum(&tensor, judged, &self.settings.loss);
        let value = number(loss.clone().inner())?;
        let slopes = match tensor.grad(&loss.backward()) {
            Some(slopes) => to_host(slopes)?,
            // A loss that no score moves.
            None => vec![0.0; scores.len()],
        };
        Ok((value, slopes))
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
        Error::NotFinite {
            step: self.number,
            what,
            value,
            queries: queries(step),
        }
    }
}

fn queries(step: &Step) -> String {
    let mut queries = String::new();
    for group in &step.groups {
        let _ = write!(queries, "{} ", group.query_id);
    }
    queries.trim_end().to_owned()
}

/// The last step, of which a GPU may have yet to say what became of it.
#[derive(Default)]
pub(crate) struct Last {
    made: Option<Made>,
    report: Option<StepReport>,
}

struct Made {
    report: StepReport,
    clip: Clip,
    /// A gradient that overflows, since the loss is scaled.
    may_skip: bool,
    queries: String,
}

impl Last {
    /// Whether who asks what became of it waits for a GPU.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.clip().is_some()
    }

    /// Waits for what became of it.
    ///
    /// # Errors
    /// A gradient that is not finite, by which nothing was updated, or a device that fails.
    pub(crate) fn end(&mut self) -> Result<()> {
        match &self.made {
            Some(made) => self.end_by(norm_of(&made.clip)?),
            None => Ok(()),
        }
    }

    /// What became of it, once.
    pub(crate) fn report(&mut self) -> Option<StepReport> {
        self.report.take()
    }

    /// What is to be read of it.
    fn clip(&self) -> Option<Tensor<1>> {
        match &self.made.as_ref()?.clip {
            Clip::There(both) => Some(both.clone()),
            Clip::Known { .. } => None,
        }
    }

    fn end_by(&mut self, norm: f64) -> Result<()> {
        let Some(made) = self.made.take() else {
            return Ok(());
        };
        let skipped = !norm.is_finite();
        if skipped && !made.may_skip {
            return Err(Error::NotFinite {
                step: made.report.step,
                what: "gradient norm",
                value: norm,
                queries: made.queries,
            });
        }
        self.report = Some(StepReport {
            gradient_norm: norm,
            skipped,
            ..made.report
        });
        Ok(())
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

/// A shard that a device is at work on.
struct Asked {
    made: Vec<Pass>,
    /// Which document's each logit is, pass by pass.
    places: Vec<usize>,
    constant_loss: f64,
    teacher_loss: f64,
    computed_tokens: usize,
    /// Whose parameters gradients are of.
    student: Student,
    replica: usize,
}

impl Asked {
    /// Waits for the scores, pass by pass, and for what else is asked for.
    fn answered(self, other: Option<Tensor<1>>) -> Result<(Self, Vec<f32>, Option<Vec<f32>>)> {
        let scores = self.made.iter().map(|pass| pass.logits.clone().inner());
        let mut read = retort_model::read(scores.chain(other))?;
        let other = read.split_off(self.made.len()).pop();
        Ok((self, read.concat(), other))
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
    /// By the number of the replica that found them.
    gradients: BTreeMap<usize, NamedGradients>,
}

impl Part {
    fn plus(mut self, other: Self) -> Self {
        self.scores.extend(other.scores);
        for (replica, gradients) in other.gradients {
            let sum = match self.gradients.remove(&replica) {
                None => gradients,
                Some(its) => its.plus(gradients),
            };
            self.gradients.insert(replica, sum);
        }
        Self {
            loss: self.loss + other.loss,
            constant_loss: self.constant_loss + other.constant_loss,
            teacher_loss: self.teacher_loss + other.teacher_loss,
            scores: self.scores,
            computed_tokens: self.computed_tokens + other.computed_tokens,
            gradients: self.gradients,
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
    let first = to_host(tensor)?.first().copied();
    Ok(first.map_or(f64::NAN, f64::from))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use burn::module::Param;
    use retort_model::{
        CrossEncoder, Head, PairTokenizer, ParameterMapper, ParameterVisitor, replace,
    };

    use super::*;
    use crate::batches::Epoch;
    use crate::dataset::{Dataset, Part as SetPart};
    use crate::loss::Target;

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
            since: Instant::now(),
        };
        let whole = Documents::of(&step);
        let learner = Learner::new(student.clone(), &settings, &[]).unwrap();
        let mut last = Last::default();
        let device = student.device();
        let part = context.gradients(&learner, &step, &whole, &device, &mut last);
        part.unwrap().unwrap()
    }

    #[test]
    fn a_loss_that_is_not_finite_stops_before_the_update_and_names_its_queries() {
        for precision in ["f32", "bf16", "f16"] {
            // As large as numbers of 32 bits go, and then some.
            let mut steps = Steps::of(precision, 1e38);
            let learner = steps.learner();
            let error = steps.make(learner).err().unwrap();
            steps.assert_stopped("loss", &error);
        }
    }

    #[test]
    fn a_gradient_that_overflows_halves_the_scale_and_is_skipped() {
        let mut steps = Steps::of("f16", 1.0);
        let planted = 2.0_f64.powi(40);
        let scale = LossScale::begin_with(planted);
        let mut learner = steps.learner().with_loss_scale(scale);
        let mut made = Vec::new();
        for _ in 0..100 {
            let report;
            (learner, report) = steps.make(learner).unwrap();
            made.push(report);
        }
        let skipped = made.iter().filter(|made| made.skipped).count();
        assert!(skipped > 10 && skipped < 50, "{skipped}");
        assert!(made[0].skipped && made[0].loss_scale == Some(planted));
        for pair in made.windows(2) {
            let [before, after] = pair else { continue };
            assert_eq!(before.skipped, !before.gradient_norm.is_finite());
            let share = if before.skipped { 0.5 } else { 1.0 };
            assert_eq!(after.loss_scale, before.loss_scale.map(|s| s * share));
            // The same queries each time: where nothing was updated, they cost the same again.
            assert_eq!(before.skipped, before.loss.total_cmp(&after.loss).is_eq());
        }
        let [first, .., last] = &made[..] else {
            panic!("no steps");
        };
        assert!(last.loss < 0.5 * first.loss, "{} {}", first.loss, last.loss);
        let mut finite = AllFinite(true);
        learner
            .student()
            .model()
            .unwrap()
            .visit_parameters(&mut finite);
        assert!(finite.0);
    }

    #[test]
    fn an_overflow_that_no_scale_prevents_stops_and_names_its_queries() {
        // Slopes of some 1e10 at the classifier, which half precision has no number for.
        let mut steps = Steps::of("f16", 1e5);
        let mut learner = steps.learner().with_loss_scale(LossScale::begin_with(4.0));
        for _ in 0..2 {
            let report;
            (learner, report) = steps.make(learner).unwrap();
            assert!(report.skipped && report.loss.is_finite());
        }
        // At a scale of 1.
        let error = steps.make(learner).err().unwrap();
        steps.assert_stopped("gradient norm", &error);
    }

    /// What a GPU finds of a step is heard of with the next one, and is that step's.
    #[test]
    fn what_became_of_a_step_is_told_with_the_next() {
        let mut steps = Steps::of("f32", 1.0);
        let mut last = Last::default();
        let learner = steps.learner();
        let mut learner = steps.begin(learner, &mut last).unwrap();
        assert!(last.report().is_none() && !last.is_asked_for());
        let there = |last: &mut Last, norm: f32| {
            let both = Tensor::from_floats([0.5, norm], &Device::flex());
            last.made.as_mut().unwrap().clip = Clip::There(both);
        };
        there(&mut last, 3.0);
        assert!(last.is_asked_for());
        learner = steps.begin(learner, &mut last).unwrap();
        let before = last.report().unwrap();
        assert_eq!((before.step, before.gradient_norm), (12, 3.0));
        assert!(!before.skipped && last.report().is_none());

        there(&mut last, f32::INFINITY);
        let error = steps.begin(learner, &mut last).err().unwrap();
        steps.number -= 1;
        steps.assert_stopped("gradient norm", &error);
        assert!(last.report().is_none());
    }

    /// And is told if the next one fails.
    #[test]
    fn what_became_of_a_step_is_told_though_the_next_one_fails() {
        let mut steps = Steps::of("f32", 1.0);
        let mut last = Last::default();
        let learner = steps.learner();
        steps.begin(learner, &mut last).unwrap();
        steps.factor = 1e38;
        let learner = steps.learner();
        let error = steps.begin(learner, &mut last).err().unwrap();
        steps.assert_stopped("loss", &error);
        assert_eq!(last.report().map(|before| before.step), Some(12));
    }

    /// Steps of the same three queries.
    struct Steps {
        settings: TrainSettings,
        step: Step,
        number: usize,
        factor: f64,
    }

    impl Steps {
        /// Of a student whose classifier is `factor²` times as large as it should be.
        fn of(precision: &str, factor: f64) -> Self {
            let precision = format!("model.precision={precision}");
            let settings = settings(["schedule.queries_per_step=3", &precision]);
            let dataset = dataset(&golden(), 3);
            Self {
                step: first_step(&dataset, &settings),
                settings,
                number: 11,
                factor,
            }
        }

        fn learner(&self) -> Learner {
            let device = Device::flex().autodiff();
            let head = Head::New { seed: 1 };
            let student = CrossEncoder::load(&golden(), head, Some(0.0), &device).unwrap();
            let student = student.map_parameters(&mut Enlarge(self.factor));
            Learner::new(student, &self.settings, &[]).unwrap()
        }

        fn make(&mut self, learner: Learner) -> Result<(Learner, StepReport)> {
            let mut last = Last::default();
            let learner = self.begin(learner, &mut last)?;
            last.end()?;
            Ok((learner, last.report().unwrap()))
        }

        fn begin(&mut self, learner: Learner, last: &mut Last) -> Result<Learner> {
            self.number += 1;
            let context = StepContext {
                settings: &self.settings,
                number: self.number,
                steps: 200,
                since: Instant::now(),
            };
            let device = Device::flex().autodiff();
            context.make(learner, &self.step, 1e-3, &device, last)
        }

        fn assert_stopped(&self, by: &str, error: &Error) {
            let Error::NotFinite {
                step,
                what,
                queries,
                ..
            } = error
            else {
                panic!("{error}");
            };
            assert_eq!((*step, *what), (self.number, by));
            let mut queries: Vec<&str> = queries.split(' ').collect();
            queries.sort_unstable();
            assert_eq!(queries, ["0", "1", "2"]);
            assert!(error.to_string().contains("nothing was updated"), "{error}");
        }
    }

    fn golden() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bert")
    }

    struct AllFinite(bool);

    impl ParameterVisitor for AllFinite {
        fn visit<const N: usize>(&mut self, _: &str, parameter: &Param<Tensor<N>>) {
            let values: Vec<f32> = parameter.val().try_into_vec_as().unwrap();
            self.0 &= values.iter().all(|value| value.is_finite());
        }
    }

    /// Multiplies the classifier's weights twice.
    struct Enlarge(f64);

    impl ParameterMapper for Enlarge {
        fn map<const N: usize>(
            &mut self,
            name: &str,
            parameter: Param<Tensor<N>>,
        ) -> Param<Tensor<N>> {
            if name == "classifier.weight" {
                replace(parameter, |weights| {
                    weights.mul_scalar(self.0).mul_scalar(self.0)
                })
            } else {
                parameter
            }
        }
    }

    /// Three devices, one of which has no query of the last part: the steps of one, and replicas that
    /// stay alike.
    #[test]
    fn steps_on_several_devices_are_those_on_one() {
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/family/electra");
        let dataset = dataset(&folder, 12);
        let mut settings = settings(["schedule.queries_per_step=5", "schedule.accumulate=2"]);
        // With Adam's own, a gradient of nearly 0 makes as large a step as any, in the direction of its
        // rounding.
        settings.optimizer.epsilon = 0.01;
        let device = Device::flex().autodiff();
        let head = Head::New { seed: 1 };
        let student = CrossEncoder::load(&folder, head, Some(0.0), &device).unwrap();
        let make = |others: &[Device]| {
            let mut learner = Learner::new(student.clone(), &settings, others).unwrap();
            let mut losses = Vec::new();
            for number in 1..=4 {
                let epoch = Epoch::of(&dataset, &settings.schedule, 7, number);
                // Ten queries, then the two that are left.
                let step = epoch
                    .step(&dataset, &settings.schedule, number % 2)
                    .unwrap();
                let context = StepContext {
                    settings: &settings,
                    number,
                    steps: 4,
                    since: Instant::now(),
                };
                let mut last = Last::default();
                learner = context
                    .make(learner, &step, 1e-3, &device, &mut last)
                    .unwrap();
                last.end().unwrap();
                losses.push(last.report().unwrap().loss);
            }
            let weights = learner.students().into_iter().map(|student| {
                let mut weights = Weights(Vec::new());
                student.model().unwrap().visit_parameters(&mut weights);
                weights.0
            });
            (losses, weights.collect::<Vec<_>>())
        };
        let (losses, weights) = make(&[]);
        let (of_three, replicas) = make(&[Device::flex(), Device::flex()]);
        for (one, three) in losses.iter().zip(&of_three) {
            assert!((one - three).abs() < 1e-5 * one, "{losses:?} {of_three:?}");
        }
        assert_eq!(replicas.len(), 3);
        assert!(replicas.iter().all(|replica| *replica == replicas[0]));
        let differences = weights[0].iter().zip(&replicas[0]);
        let worst = differences.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-6, "{worst}");
    }

    struct Weights(Vec<f32>);

    impl ParameterVisitor for Weights {
        fn visit<const N: usize>(&mut self, _: &str, parameter: &Param<Tensor<N>>) {
            self.0
                .extend(parameter.val().try_into_vec_as::<f32>().unwrap());
        }
    }

    /// In the CPU's own passes (BERT), by hand in Burn's operations (ELECTRA), and through its graph.
    #[test]
    fn four_parts_of_eight_queries_are_a_step_of_thirty_two() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        for name in ["bert", "family/electra", "family/modernbert"] {
            let folder = golden.join(name);
            let device = Device::flex().autodiff();
            let head = Head::New { seed: 1 };
            let student = CrossEncoder::load(&folder, head, Some(0.0), &device).unwrap();
            let dataset = dataset(&folder, 32);
            let part = |schedule| first(&dataset, &student, schedule);
            let mut large = part(["schedule.queries_per_step=32", "schedule.accumulate=1"]);
            let mut small = part(["schedule.queries_per_step=8", "schedule.accumulate=4"]);
            assert!((large.loss - small.loss).abs() < 1e-5 * large.loss);
            let sum = |of: &mut Part| of.gradients.remove(&0).unwrap();
            let (large_sum, small_sum) = (sum(&mut large), sum(&mut small).by_name());
            let norm = large_sum.norm().unwrap();
            assert!(norm > 0.01);
            assert!(large.teacher_loss < large.constant_loss);
            assert!((large.constant_loss - small.constant_loss).abs() < 1e-5 * large.loss);
            let scores = large.scores.iter().zip(&small.scores);
            let pairs: usize = (0..dataset.queries()).map(|it| dataset.examples(it)).sum();
            assert_eq!(large.scores.len(), pairs);
            assert!(scores.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) < 1e-5);
            let tolerance = 1e-5 * norm;
            for (name, large) in large_sum.by_name() {
                let small = to_host(small_sum[&name].clone()).unwrap();
                for (large, small) in to_host(large).unwrap().iter().zip(&small) {
                    let difference = f64::from((large - small).abs());
                    assert!(difference < tolerance, "{name}: {large} {small}");
                }
            }
        }
    }
}
