//! AdamW (Loshchilov and Hutter, 2019, arXiv 1711.05101), as PyTorch computes it, with the
//! gradient's norm clipped over all parameters together.

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use fs_err as fs;
use rayon::prelude::*;
use retort_model::{
    Adam, Bundle, Clip, CrossEncoder, Group, ModelConfig, Move, ParameterMapper, ParameterVisitor,
    Student, replace,
};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::gradients::{NamedGradients, norm_of};
use crate::settings::OptimizerSettings;
use crate::vectors::{CHUNK, from_host, host, to_host};
use crate::{Error, Result};

/// The optimiser and its moments, which live beside the parameters under the same names.
pub struct AdamW {
    settings: OptimizerSettings,
    steps: i32,
    moments: Vec<Moments>,
}

/// Running means of some parameters' gradients and of their squares.
struct Moments {
    mean: Bundle,
    square: Tensor<1>,
}

impl AdamW {
    /// An optimiser that has made no step.
    pub fn new(settings: &OptimizerSettings) -> Self {
        Self {
            settings: settings.clone(),
            steps: 0,
            moments: Vec::new(),
        }
    }

    /// One update of every parameter that has a gradient. Gives back the gradients' norm; where
    /// that is not finite, nothing was updated.
    ///
    /// # Errors
    /// A device that fails.
    pub fn step(
        &mut self,
        student: Student,
        gradients: NamedGradients,
        learning_rate: f64,
    ) -> Result<(Student, f64)> {
        let clip = gradients.clip(self.most(), false)?;
        let student = self.update(student, gradients, &clip, learning_rate);
        let norm = norm_of(&clip)?;
        if !norm.is_finite() {
            self.steps -= 1;
        }
        Ok((student, norm))
    }

    /// The update by gradients that are clipped so: none where their norm is not finite, whose step is
    /// counted all the same.
    pub(crate) fn update(
        &mut self,
        student: Student,
        gradients: NamedGradients,
        clip: &Clip,
        learning_rate: f64,
    ) -> Student {
        self.steps += 1;
        let gradient_scale = match clip {
            Clip::Known { norm, .. } if !norm.is_finite() => return student,
            Clip::Known { factor, .. } => *factor,
            // All are in groups, whose kernels look it up.
            Clip::There(_) => f64::NAN,
        };
        let [beta1, beta2] = self.settings.betas;
        let constants = Constants {
            learning_rate,
            gradient_scale,
            beta1,
            beta2,
            mean_correction: 1.0 - beta1.powi(self.steps),
            square_correction: 1.0 - beta2.powi(self.steps),
            epsilon: self.settings.epsilon,
            weight_decay: self.settings.weight_decay,
        };
        let mut update = Update {
            settings: &self.settings,
            config: student.config().clone(),
            constants,
            changes: BTreeMap::new(),
            moves: Vec::new(),
            moments: BTreeMap::new(),
        };
        let gradients = student.arranged(gradients.bundles);
        let moments = Moments::of(mem::take(&mut self.moments), &gradients);
        let first = |bundle: &Bundle| bundle.parameters.first().map(|(name, _)| name.clone());
        let firsts: Vec<String> = gradients.iter().filter_map(first).collect();
        for (gradient, moments) in gradients.into_iter().zip(moments) {
            update.prepare(gradient, moments);
        }
        let (moves, parameters): (Vec<Move>, Vec<Parameters>) =
            mem::take(&mut update.moves).into_iter().unzip();
        let (student, after) = student.moved(moves, clip);
        for (its, after) in parameters.into_iter().zip(after) {
            update.keep(its.with(after));
        }
        let student = student.map_parameters(&mut update);
        // In the order of the gradients, as the next step's are.
        let its = |name: &String| update.moments.remove(name);
        self.moments = firsts.iter().filter_map(its).collect();
        student
    }

    /// The norm that gradients are clipped to.
    pub(crate) fn most(&self) -> f64 {
        self.settings.max_grad_norm
    }

    /// Updates made.
    pub(crate) fn steps(&self) -> i32 {
        self.steps
    }

    /// Writes the moments and the number of steps.
    ///
    /// # Errors
    /// An I/O error, or a device that fails.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let mut stored = Vec::new();
        for moments in &self.moments {
            for (kind, values) in [("mean", &moments.mean.values), ("square", &moments.square)] {
                let values = to_host(values.clone())?;
                for (name, range) in &*moments.mean.parameters {
                    let its = values[range.clone()].iter().copied();
                    let bytes: Vec<u8> = its.flat_map(f32::to_le_bytes).collect();
                    stored.push((format!("{name}.{kind}"), bytes));
                }
            }
        }
        let broken = |error: safetensors::SafeTensorError| Error::Run {
            folder: path.to_owned(),
            problem: error.to_string(),
        };
        let mut views = Vec::new();
        for (name, bytes) in &stored {
            let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes).map_err(broken)?;
            views.push((name, view));
        }
        let metadata = HashMap::from([("steps".to_owned(), self.steps.to_string())]);
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(broken)?;
        Ok(retort_files::write_atomic(path, &bytes)?)
    }

    /// Reads what [`AdamW::save`] wrote for a model, onto a device.
    ///
    /// # Errors
    /// An I/O error, or a file that is not the optimiser's of a model of this shape.
    pub(crate) fn load(
        settings: &OptimizerSettings,
        path: &Path,
        model: &CrossEncoder,
        device: &Device,
    ) -> Result<Self> {
        let problem = |problem: String| Error::Run {
            folder: path.to_owned(),
            problem,
        };
        let bytes = fs::read(path)?;
        let (_, header) =
            SafeTensors::read_metadata(&bytes).map_err(|error| problem(error.to_string()))?;
        let steps = header
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get("steps")?.parse().ok())
            .ok_or_else(|| problem("does not say how many steps were made".to_owned()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| problem(error.to_string()))?;
        let mut parameters = Sizes(BTreeMap::new());
        model.visit_parameters(&mut parameters);
        let read = |name: String, size: usize| {
            let view = file
                .tensor(&name)
                .map_err(|error| problem(error.to_string()))?;
            if view.dtype() != Dtype::F32 || view.shape() != [size] {
                let (dtype, shape) = (view.dtype(), view.shape());
                return Err(problem(format!(
                    "{name} is {dtype} {shape:?}, expected F32 [{size}]"
                )));
            }
            let values: Vec<f32> = view
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|four| f32::from_le_bytes(*four))
                .collect();
            // Or the first step would put it down to the learning rate.
            if !values.iter().all(|value| value.is_finite()) {
                return Err(problem(format!("{name} holds what is no number")));
            }
            Ok::<_, Error>(from_host(values, device))
        };
        let (mut means, mut squares) = (BTreeMap::new(), BTreeMap::new());
        for name in file
            .names()
            .iter()
            .filter_map(|name| name.strip_suffix(".mean"))
        {
            let size = *parameters
                .0
                .get(name)
                .ok_or_else(|| problem(format!("has moments of {name}, which the model lacks")))?;
            means.insert(name.to_owned(), read(format!("{name}.mean"), size)?);
            squares.insert(name.to_owned(), read(format!("{name}.square"), size)?);
        }
        Ok(Self {
            settings: settings.clone(),
            steps,
            moments: Moments::by_name(means, squares),
        })
    }
}

impl Moments {
    /// Those of the parameters that gradients are of, in their bundles: of one that had no gradient in
    /// the step before, zeros. Of one model, all steps have the same, but for the first after a start.
    fn of(moments: Vec<Self>, gradients: &[Bundle]) -> Vec<Self> {
        let are_those =
            |(its, gradient): (&Self, &Bundle)| its.mean.parameters == gradient.parameters;
        if moments.len() == gradients.len() && moments.iter().zip(gradients).all(are_those) {
            return moments;
        }
        let (mut means, mut squares) = (BTreeMap::new(), BTreeMap::new());
        for Self { mean, square } in moments {
            squares.extend(mean.with(square).apart());
            means.extend(mean.apart());
        }
        let filled = |gradient: &Bundle, by_name: &mut BTreeMap<String, Tensor<1>>| {
            let Bundle {
                parameters,
                values,
                group,
            } = gradient;
            let [length] = values.dims();
            let device = values.device();
            Bundle::filled(Arc::clone(parameters), length, *group, by_name, &device)
        };
        let both = |gradient: &Bundle| Self {
            mean: filled(gradient, &mut means),
            square: filled(gradient, &mut squares).values,
        };
        gradients.iter().map(both).collect()
    }

    fn by_name(
        means: BTreeMap<String, Tensor<1>>,
        squares: BTreeMap<String, Tensor<1>>,
    ) -> Vec<Self> {
        let both = Bundle::of(means).into_iter().zip(Bundle::of(squares));
        both.map(|(mean, square)| Self {
            mean,
            square: square.values,
        })
        .collect()
    }
}

/// Of a group, whose moments are with the device meanwhile.
struct Parameters {
    places: Arc<[(String, Range<usize>)]>,
    group: Option<Group>,
}

impl Parameters {
    fn with(self, moments: retort_model::Moments) -> Moments {
        let mean = Bundle {
            parameters: self.places,
            values: moments.mean,
            group: self.group,
        };
        let square = moments.square;
        Moments { mean, square }
    }
}

/// How many values each parameter has.
struct Sizes(BTreeMap<String, usize>);

impl ParameterVisitor for Sizes {
    fn visit<const N: usize>(&mut self, name: &str, parameter: &Param<Tensor<N>>) {
        let size = parameter.shape().num_elements();
        self.0.insert(name.to_owned(), size);
    }
}

struct Update<'a> {
    settings: &'a OptimizerSettings,
    config: ModelConfig,
    constants: Constants,
    changes: BTreeMap<String, Change>,
    /// Of whole groups, each with its parameters.
    moves: Vec<(Move, Parameters)>,
    /// Those after the update, by the name of the first parameter.
    moments: BTreeMap<String, Moments>,
}

/// What is to be done with a parameter.
#[expect(clippy::large_enum_variant, reason = "of one device all are alike")]
enum Change {
    /// On the CPU all of it.
    ByGradient(Tensor<1>, Moments),
    /// To take it that way, times its share of the learning rate.
    Along(Tensor<1>),
}

/// What one step's update is made with.
#[derive(Clone, Copy)]
struct Constants {
    learning_rate: f64,
    gradient_scale: f64,
    beta1: f64,
    beta2: f64,
    mean_correction: f64,
    square_correction: f64,
    epsilon: f64,
    weight_decay: f64,
}

impl Constants {
    /// What weight decay leaves of a parameter with that share of the learning rate.
    fn kept(self, share: f64) -> f64 {
        1.0 - self.learning_rate * share * self.weight_decay
    }

    /// The same for a group whose parameters have that share.
    fn adam(self, share: f64) -> Adam {
        Adam {
            beta1: self.beta1,
            beta2: self.beta2,
            rate: self.learning_rate * share / self.mean_correction,
            square_correction: self.square_correction,
            epsilon: self.epsilon,
            kept: self.kept(share),
        }
    }
}

impl Update<'_> {
    /// Computes what can be computed of several parameters at once, and keeps the rest.
    fn prepare(&mut self, gradient: Bundle, moments: Moments) {
        if gradient.values.device() == Device::flex() {
            let name = gradient.parameters.first().map(|(name, _)| name.clone());
            let change = Change::ByGradient(gradient.values, moments);
            self.changes.extend(name.map(|name| (name, change)));
            return;
        }
        let first = gradient.parameters.first().map(|(name, _)| name);
        if let (Some(_), Some(name)) = (gradient.group, first) {
            let adam = self.constants.adam(self.share(name));
            let Moments { mean, square } = moments;
            let its = Parameters {
                places: mean.parameters,
                group: mean.group,
            };
            let moments = retort_model::Moments {
                mean: mean.values,
                square,
            };
            let by = Move {
                gradient,
                moments,
                adam,
            };
            self.moves.push((by, its));
            return;
        }
        let (direction, moments) = direction(gradient.values, moments, self.constants);
        let directions = moments.mean.with(direction).apart();
        let along = directions.map(|(name, its)| (name, Change::Along(its)));
        self.changes.extend(along);
        self.keep(moments);
    }

    /// Of the learning rate, a parameter's.
    fn share(&self, name: &str) -> f64 {
        match self.config.layers_above(name) {
            Some(layers) => self.settings.layer_decay.powf(layers as f64),
            None => self.settings.head_factor,
        }
    }

    fn keep(&mut self, moments: Moments) {
        if let Some((first, _)) = moments.mean.parameters.first() {
            self.moments.insert(first.clone(), moments);
        }
    }
}

impl ParameterMapper for Update<'_> {
    fn map<const N: usize>(&mut self, name: &str, parameter: Param<Tensor<N>>) -> Param<Tensor<N>> {
        let Some(change) = self.changes.remove(name) else {
            return parameter;
        };
        let mut constants = self.constants;
        // Biases and layer norms, all the vectors there are, are left out, as BERT was trained.
        if N == 1 {
            constants.weight_decay = 0.0;
        }
        let share = self.share(name);
        replace(parameter, |value| match change {
            Change::ByGradient(gradient, moments) => {
                constants.learning_rate *= share;
                let (value, moments) = update_on_host(value, gradient, moments, constants);
                self.keep(moments);
                value
            }
            Change::Along(direction) => {
                // Of operations on one parameter, each is a kernel, and there are many parameters.
                let times = |tensor: Tensor<1>, factor| match factor {
                    1.0 => tensor,
                    _ => tensor.mul_scalar(factor),
                };
                times(value, constants.kept(share)) - times(direction, share)
            }
        })
    }
}

/// How far Adam goes, and the moments after it.
fn direction(gradient: Tensor<1>, moments: Moments, constants: Constants) -> (Tensor<1>, Moments) {
    let Constants { beta1, beta2, .. } = constants;
    let Bundle {
        parameters,
        values,
        group,
    } = moments.mean;
    let gradient = gradient.mul_scalar(constants.gradient_scale);
    let mean = values.mul_scalar(beta1) + gradient.clone().mul_scalar(1.0 - beta1);
    let square = moments.square.mul_scalar(beta2) + gradient.square().mul_scalar(1.0 - beta2);
    let rate = constants.learning_rate / constants.mean_correction;
    let root = (square.clone().div_scalar(constants.square_correction)).sqrt();
    let direction = mean.clone().mul_scalar(rate) / root.add_scalar(constants.epsilon);
    let mean = Bundle {
        parameters,
        values: mean,
        group,
    };
    (direction, Moments { mean, square })
}

/// A whole update in one pass over memory, on all cores.
fn update_on_host(
    value: Tensor<1>,
    gradient: Tensor<1>,
    moments: Moments,
    constants: Constants,
) -> (Tensor<1>, Moments) {
    let device = value.device();
    let (mut value, gradient) = (host(value), host(gradient));
    let Bundle {
        parameters,
        values,
        group,
    } = moments.mean;
    let (mut mean, mut square) = (host(values), host(moments.square));
    #[expect(clippy::cast_possible_truncation, reason = "parameters have 32 bits")]
    let narrow = |wide: f64| wide as f32;
    let (beta1, beta2) = (narrow(constants.beta1), narrow(constants.beta2));
    // Of narrow numbers, the difference would be off by 1e-5 of itself.
    let (rest1, rest2) = (narrow(1.0 - constants.beta1), narrow(1.0 - constants.beta2));
    let scale = narrow(constants.gradient_scale);
    let decay = narrow(constants.kept(1.0));
    let rate = narrow(constants.learning_rate / constants.mean_correction);
    let correction = narrow(constants.square_correction.sqrt());
    let epsilon = narrow(constants.epsilon);
    let chunks = value
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(mean.par_chunks_mut(CHUNK))
        .zip(square.par_chunks_mut(CHUNK));
    chunks.for_each(|(((value, gradient), mean), square)| {
        for index in 0..value.len() {
            let gradient = gradient[index] * scale;
            mean[index] = beta1 * mean[index] + rest1 * gradient;
            square[index] = beta2 * square[index] + rest2 * gradient * gradient;
            let root = square[index].sqrt() / correction + epsilon;
            value[index] = decay * value[index] - rate * mean[index] / root;
        }
    });
    let device = |values| from_host(values, &device);
    (
        device(value),
        Moments {
            mean: Bundle {
                parameters,
                values: device(mean),
                group,
            },
            square: device(square),
        },
    )
}
