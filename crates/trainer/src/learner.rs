//! What training changes: a student, its optimiser, the moving average of its weights, and the scale
//! of its loss.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use retort_model::{Clip, CrossEncoder, Head, Student};

use crate::Result;
use crate::checkpoint::{read_json, to_json};
use crate::gradients::NamedGradients;
use crate::loss_scale::LossScale;
use crate::optimizer::AdamW;
use crate::settings::TrainSettings;
use crate::vectors::blend;

/// A student that learns.
pub(crate) struct Learner {
    /// One for each device, alike; the first is what is measured and kept.
    replicas: Vec<Replica>,
    average: Option<Average>,
    /// Where half precision takes one.
    scale: Option<LossScale>,
}

/// The student on one of the devices, and its moments.
struct Replica {
    student: Student,
    optimizer: AdamW,
}

/// The moving average of a student's weights.
struct Average {
    student: Student,
    /// How much it keeps of itself at an update.
    share: f64,
}

const MODEL: &str = "model.safetensors";
/// The student, where the model is the average.
const UNAVERAGED: &str = "unaveraged.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
/// Where the loss is scaled.
const SCALE: &str = "loss_scale.json";

/// The files of a checkpoint that only training reads.
pub(crate) const FOR_TRAINING: [&str; 3] = [UNAVERAGED, OPTIMIZER, SCALE];

impl Learner {
    /// One that has learnt nothing yet, on the student's device and on `others`.
    pub(crate) fn new(
        student: CrossEncoder,
        settings: &TrainSettings,
        others: &[Device],
    ) -> Result<Self> {
        let student = Student::new(as_set(student, settings)?)?;
        let average = Average::of(settings, || Ok(student.clone()))?;
        let students = others.iter().map(|device| student.on(device));
        let students: Vec<Student> = students.collect();
        let replica = |student| Replica {
            student,
            optimizer: AdamW::new(&settings.optimizer),
        };
        Ok(Self {
            replicas: [student].into_iter().chain(students).map(replica).collect(),
            average,
            scale: LossScale::of(settings.model.precision),
        })
    }

    /// What gradients are taken of.
    pub(crate) fn student(&self) -> &Student {
        &self.replicas[0].student
    }

    /// The same, on each device.
    pub(crate) fn students(&self) -> Vec<&Student> {
        self.replicas
            .iter()
            .map(|replica| &replica.student)
            .collect()
    }

    /// What is evaluated, kept and exported: the average, where there is one.
    pub(crate) fn kept(&self) -> &Student {
        let average = self.average.as_ref();
        average.map_or(self.student(), |it| &it.student)
    }

    /// Whether that is an average, which is saved with the student beside it.
    pub(crate) fn is_averaged(&self) -> bool {
        self.average.is_some()
    }

    /// What the loss is multiplied with before the way back, where it is.
    pub(crate) fn loss_scale(&self) -> Option<LossScale> {
        self.scale
    }

    /// One update by the sum of what the replicas, by their numbers, found, and how that was clipped. Where its
    /// norm is not finite, the student is as it was, and the scale of the loss another; where a GPU has yet to
    /// say so, nothing is to be made of the rest.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn update(
        self,
        gradients: BTreeMap<usize, NamedGradients>,
        learning_rate: f64,
    ) -> Result<(Self, Clip)> {
        let devices = self.students().into_iter();
        let devices: Vec<Device> = devices.map(Student::device).collect();
        let sums = NamedGradients::all_reduced(gradients, &devices);
        // That of one of them, so that all make the same update.
        // A scale hangs on the norm, and so do other devices.
        let waits = self.scale.is_some() || sums.len() > 1;
        let clip = match sums.first() {
            Some(first) => first.clip(self.replicas[0].optimizer.most(), waits)?,
            None => Clip::Known {
                factor: f64::NAN,
                norm: f64::NAN,
            },
        };
        let mut scale = self.scale;
        if let Clip::Known { norm, .. } = clip {
            scale = scale.map(|scale| scale.after(norm.is_finite()));
            if !norm.is_finite() {
                return Ok((Self { scale, ..self }, clip));
            }
        }
        // All from this thread: operations from another are on a stream of their own, and Burn
        // 0.23.0-pre.1 mixes up what the two have in memory.
        let replicas = self.replicas.into_iter().zip(sums);
        let replicas: Vec<Replica> = replicas
            .map(|(replica, gradients)| replica.updated(gradients, &clip, learning_rate))
            .collect();
        let Replica { student, optimizer } = &replicas[0];
        let average = self
            .average
            .map(|average| average.towards(student, optimizer.steps()));
        let updated = Self {
            replicas,
            average,
            scale,
        };
        Ok((updated, clip))
    }

    /// With another scale, which the next steps go on from.
    #[cfg(test)]
    pub(crate) fn with_loss_scale(self, scale: LossScale) -> Self {
        Self {
            scale: Some(scale),
            ..self
        }
    }

    /// Writes weights, moments and the scale of the loss into a folder.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        self.kept().model()?.save(&folder.join(MODEL))?;
        if self.average.is_some() {
            self.student().model()?.save(&folder.join(UNAVERAGED))?;
        }
        if let Some(scale) = &self.scale {
            retort_files::write_atomic(&folder.join(SCALE), &to_json(scale))?;
        }
        self.replicas[0].optimizer.save(&folder.join(OPTIMIZER))
    }

    /// Reads what [`Learner::save`] wrote, of one that was averaged or not, onto a device with autodiff
    /// and onto `others`.
    pub(crate) fn load(
        folder: &Path,
        was_averaged: bool,
        settings: &TrainSettings,
        device: &Device,
        others: &[Device],
    ) -> Result<Self> {
        let dropout = Some(settings.model.dropout);
        let model = CrossEncoder::load(folder, Head::Required, dropout, device)?;
        let model = as_set(model, settings)?;
        let average = Average::of(settings, || Student::new(model.clone()))?;
        let model = if was_averaged {
            model.load_weights(&folder.join(UNAVERAGED))?
        } else {
            model
        };
        let file = folder.join(OPTIMIZER);
        let device = device.clone().without_autodiff();
        let optimizers = [&device].into_iter().chain(others);
        let optimizers =
            optimizers.map(|device| AdamW::load(&settings.optimizer, &file, &model, device));
        let optimizers: Vec<AdamW> = optimizers.collect::<Result<_>>()?;
        let student = Student::new(model)?;
        let students = others.iter().map(|device| student.on(device));
        let students: Vec<Student> = students.collect();
        let students = [student].into_iter().chain(students);
        let replicas = students.zip(optimizers);
        let replicas = replicas.map(|(student, optimizer)| Replica { student, optimizer });
        let replicas = replicas.collect();
        let scale = folder.join(SCALE);
        // A run may go on in another precision than it began with.
        let scale = match LossScale::of(settings.model.precision) {
            Some(_) if scale.exists() => Some(read_json(&scale)?),
            first => first,
        };
        Ok(Self {
            replicas,
            average,
            scale,
        })
    }
}

impl Replica {
    fn updated(mut self, gradients: NamedGradients, clip: &Clip, learning_rate: f64) -> Self {
        let student = self
            .optimizer
            .update(self.student, gradients, clip, learning_rate);
        Self { student, ..self }
    }
}

/// A model that is trained as the settings have it.
fn as_set(model: CrossEncoder, settings: &TrainSettings) -> Result<CrossEncoder> {
    let model = model.with_precision(settings.model.precision);
    Ok(model.with_attention(settings.model.attention)?)
}

impl Average {
    /// One that begins with a student as it is, if the settings want any.
    fn of(
        settings: &TrainSettings,
        student: impl FnOnce() -> retort_model::Result<Student>,
    ) -> Result<Option<Self>> {
        let share = settings.optimizer.ema;
        if share > 0.0 {
            let student = student()?;
            return Ok(Some(Self { student, share }));
        }
        Ok(None)
    }

    /// Moved towards a student after so many updates.
    fn towards(self, student: &Student, updates: i32) -> Self {
        let updates = f64::from(updates);
        let share = self.share.min((1.0 + updates) / (10.0 + updates));
        let mix = |mean, weights| blend(mean, weights, share);
        Self {
            student: self.student.mixed(student, mix),
            share: self.share,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Param;
    use burn::tensor::Tensor;
    use retort_model::ParameterVisitor;

    use super::*;

    fn golden() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bert")
    }

    fn settings(overrides: &[&str]) -> TrainSettings {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/demo.toml");
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        retort_data::settings::read(&path, &overrides).unwrap()
    }

    fn new(settings: &TrainSettings) -> Learner {
        let device = Device::flex().autodiff();
        let student = CrossEncoder::load(&golden(), Head::Required, Some(0.0), &device);
        Learner::new(student.unwrap(), settings, &[]).unwrap()
    }

    /// An update by gradients that depend on the weights.
    fn updated(learner: Learner) -> Learner {
        let weights = weights(learner.student());
        let gradients = weights.into_iter().collect();
        let gradients = NamedGradients::of_host(gradients, &Device::flex());
        learner
            .update(BTreeMap::from([(0, gradients)]), 1e-2)
            .unwrap()
            .0
    }

    fn weights(student: &Student) -> BTreeMap<String, Vec<f32>> {
        let mut all = All(BTreeMap::new());
        student.model().unwrap().visit_parameters(&mut all);
        all.0
    }

    struct All(BTreeMap<String, Vec<f32>>);

    impl ParameterVisitor for All {
        fn visit<const N: usize>(&mut self, name: &str, parameter: &Param<Tensor<N>>) {
            let values = parameter.val().try_into_vec_as().unwrap();
            self.0.insert(name.to_owned(), values);
        }
    }

    #[test]
    fn the_average_follows_the_student() {
        let mut learner = new(&settings(&["optimizer.ema=0.2"]));
        let mut expected = weights(learner.student());
        assert!(expected == weights(learner.kept()));
        for update in 1..=4 {
            learner = updated(learner);
            // By then 2/11, 3/12, 4/13, 5/14: the second is above what was asked for.
            let share = f32::min(0.2, (1.0 + update as f32) / (10.0 + update as f32));
            for (name, values) in weights(learner.student()) {
                let means = expected.get_mut(&name).unwrap();
                for (mean, value) in means.iter_mut().zip(values) {
                    *mean = share * *mean + (1.0 - share) * value;
                }
            }
        }
        for (name, values) in weights(learner.kept()) {
            let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
            assert!(values.iter().zip(&expected[&name]).all(near), "{name}");
        }
        assert!(weights(learner.kept()) != weights(learner.student()));
    }

    #[test]
    fn what_is_saved_goes_on_as_what_was_not() {
        for ema in ["optimizer.ema=0.0", "optimizer.ema=0.5"] {
            let settings = settings(&[ema]);
            let folder = tempfile::tempdir().unwrap();
            fs_err::copy(
                golden().join("config.json"),
                folder.path().join("config.json"),
            )
            .unwrap();
            let learner = updated(updated(new(&settings)));
            learner.save(folder.path()).unwrap();
            let device = Device::flex().autodiff();
            let averaged = learner.is_averaged();
            let read = Learner::load(folder.path(), averaged, &settings, &device, &[]).unwrap();
            let (one, other) = (updated(learner), updated(read));
            assert!(weights(one.student()) == weights(other.student()));
            assert!(weights(one.kept()) == weights(other.kept()));

            // Nothing that is missing or no number is gone on from.
            let load = || Learner::load(folder.path(), averaged, &settings, &device, &[]);
            let refusal = || {
                load()
                    .err()
                    .map(|error| error.to_string())
                    .unwrap_or_default()
            };
            if averaged {
                fs_err::rename(folder.path().join(UNAVERAGED), folder.path().join("lost")).unwrap();
                assert!(refusal().contains(UNAVERAGED), "{}", refusal());
                fs_err::rename(folder.path().join("lost"), folder.path().join(UNAVERAGED)).unwrap();
            }
            let file = folder.path().join(OPTIMIZER);
            let mut bytes = fs_err::read(&file).unwrap();
            let end = bytes.len();
            bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
            fs_err::write(&file, bytes).unwrap();
            assert!(refusal().contains("no number"), "{}", refusal());
        }
    }

    #[test]
    fn the_scale_of_gradients_changes_nothing() {
        let settings = settings(&[]);
        let update = |factor: f32| {
            let learner = new(&settings);
            let gradients = weights(learner.student()).into_iter();
            let scaled = |(name, values): (String, Vec<f32>)| {
                (
                    name,
                    values.into_iter().map(|value| value * factor).collect(),
                )
            };
            let gradients =
                NamedGradients::of_host(gradients.map(scaled).collect(), &Device::flex());
            let (learner, clip) = learner
                .update(
                    BTreeMap::from([(0, gradients.scaled_by(factor.into()))]),
                    1e-2,
                )
                .unwrap();
            (
                weights(learner.student()),
                crate::gradients::norm_of(&clip).unwrap(),
            )
        };
        assert!(update(1.0) == update(65_536.0));
    }

    #[test]
    fn the_scale_of_the_loss_is_kept_where_it_is_needed() {
        let (full, half) = (settings(&[]), settings(&["model.precision=f16"]));
        let device = Device::flex().autodiff();
        let first = LossScale::of(half.model.precision);
        for (before, after) in [
            (&half, &half),
            (&half, &full),
            (&full, &half),
            (&full, &full),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let config = "config.json";
            fs_err::copy(golden().join(config), folder.path().join(config)).unwrap();
            let learner = updated(updated(new(before)));
            learner.save(folder.path()).unwrap();
            let read = Learner::load(folder.path(), false, after, &device, &[]).unwrap();
            let expected = match (before == &half, after == &half) {
                (true, true) => first.map(|scale| scale.after(true).after(true)),
                (false, true) => first,
                (_, false) => None,
            };
            assert_eq!(read.loss_scale(), expected);
            assert_eq!(folder.path().join(SCALE).exists(), before == &half);
        }
    }

    #[test]
    fn an_average_can_be_begun_and_given_up() {
        let (without, with) = (
            settings(&["optimizer.ema=0.0"]),
            settings(&["optimizer.ema=0.5"]),
        );
        let device = Device::flex().autodiff();
        for (before, after) in [(&without, &with), (&with, &without)] {
            let folder = tempfile::tempdir().unwrap();
            fs_err::copy(
                golden().join("config.json"),
                folder.path().join("config.json"),
            )
            .unwrap();
            let learner = updated(new(before));
            learner.save(folder.path()).unwrap();
            let averaged = learner.is_averaged();
            let read = Learner::load(folder.path(), averaged, after, &device, &[]).unwrap();
            assert!(weights(learner.student()) == weights(read.student()));
            assert_eq!(read.average.is_some(), after.optimizer.ema > 0.0);
        }
    }
}
