//! A model at work, in training or scoring: where it can be, by hand ([`crate::by_hand`]), else through Burn's
//! graph or by the CPU's own passes.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::{Device, Gradients, Tensor};

use crate::bundle::Bundle;
use crate::config::ModelConfig;
use crate::cross_encoder::{Batch, CrossEncoder};
use crate::error::Result;
use crate::host::HostBert;
use crate::pairs::{Encoded, check, score};
use crate::parameters::{ParameterMapper, ParameterVisitor, replace};
use crate::update::{Clip, Moments, Move};

#[cfg(feature = "gpu")]
use crate::by_hand::{Parts, Tape};
#[cfg(feature = "gpu")]
use crate::guard::guard;
#[cfg(feature = "gpu")]
use crate::pairs::{length_buckets, score_by_hand};

/// A model that is trained, or that scores, as its device does it best.
#[derive(Clone)]
pub struct Student(Form);

#[derive(Clone)]
enum Form {
    /// On a device with autodiff: through Burn's graph, or by the CPU's own passes.
    Whole(CrossEncoder),
    /// By hand.
    #[cfg(feature = "gpu")]
    InParts(Parts),
}

/// What a batch comes to in training, with what going back takes.
pub struct Pass {
    /// Relevance logits: `[B]`.
    pub logits: Tensor<1>,
    /// How these, a leaf of their graph, came about.
    #[cfg(feature = "gpu")]
    by_hand: Option<Tape>,
}

impl Student {
    /// A model on a device with autodiff: on GPUs by hand, of all architectures but ModernBERT, where nothing
    /// is dropped out and attention is decomposed.
    ///
    /// # Errors
    /// A device that fails.
    pub fn new(model: CrossEncoder) -> Result<Self> {
        #[cfg(feature = "gpu")]
        {
            let config = model.config();
            let goes_by_hand = config.hidden_dropout_prob == 0.0
                && config.attention_probs_dropout_prob == 0.0
                && config.classifier_dropout.unwrap_or(0.0) == 0.0
                && config.attention == crate::attention::Attention::Decomposed;
            if goes_by_hand && let Some(parts) = Parts::of(&model)? {
                return Ok(Self(Form::InParts(parts)));
            }
        }
        Ok(Self::by_graph(model))
    }

    /// One that scores and is not trained: of a GPU's, whatever is dropped out in training, in kernels of our own.
    ///
    /// # Errors
    /// A device that fails.
    pub fn for_scores(model: CrossEncoder) -> Result<Self> {
        #[cfg(feature = "gpu")]
        if let Some(parts) = guard(&model.device(), || Parts::of(&model))? {
            return Ok(Self(Form::InParts(parts)));
        }
        Ok(Self::by_graph(model))
    }

    /// Through Burn's graph wherever the model is, as the reference.
    pub fn by_graph(model: CrossEncoder) -> Self {
        Self(Form::Whole(model))
    }

    /// The model as it is; of one in parts, a copy on the CPU.
    ///
    /// # Errors
    /// A device that fails.
    pub fn model(&self) -> Result<CrossEncoder> {
        match &self.0 {
            Form::Whole(model) => Ok(model.clone()),
            #[cfg(feature = "gpu")]
            Form::InParts(parts) => parts.model(),
        }
    }

    /// The CPU's own passes, where it has them for this model.
    pub fn host(&self) -> Option<HostBert> {
        match &self.0 {
            Form::Whole(model) => HostBert::of(model),
            #[cfg(feature = "gpu")]
            Form::InParts(_) => None,
        }
    }

    /// The architecture, as loaded.
    pub fn config(&self) -> &ModelConfig {
        match &self.0 {
            Form::Whole(model) => model.config(),
            #[cfg(feature = "gpu")]
            Form::InParts(parts) => parts.config(),
        }
    }

    /// Where the parameters are, without autodiff.
    pub fn device(&self) -> Device {
        match &self.0 {
            Form::Whole(model) => model.device().without_autodiff(),
            #[cfg(feature = "gpu")]
            Form::InParts(parts) => parts.device(),
        }
    }

    /// The same, so that its passes and those of the original can be made side by side.
    #[must_use]
    pub fn fork(&self) -> Self {
        match &self.0 {
            Form::Whole(model) => Self(Form::Whole(model.fork())),
            #[cfg(feature = "gpu")]
            Form::InParts(_) => self.clone(),
        }
    }

    /// The same on another device.
    #[must_use]
    pub fn on(&self, device: &Device) -> Self {
        match &self.0 {
            Form::Whole(model) => Self(Form::Whole(model.on(&device.clone().autodiff()))),
            #[cfg(feature = "gpu")]
            Form::InParts(parts) => Self(Form::InParts(parts.on(device))),
        }
    }

    /// As [`CrossEncoder::check`].
    ///
    /// # Errors
    /// As that.
    pub fn check(&self, encodings: &[Encoded]) -> Result<()> {
        check(self.config(), encodings)
    }

    /// As [`score`](crate::score()).
    ///
    /// # Errors
    /// As that.
    pub fn score(&self, encodings: &[Encoded], tokens_per_batch: usize) -> Result<Vec<f32>> {
        match &self.0 {
            Form::Whole(model) => score(model, encodings, tokens_per_batch),
            #[cfg(feature = "gpu")]
            Form::InParts(parts) => score_by_hand(parts.clone(), encodings, tokens_per_batch),
        }
    }

    /// What goes into one batch each, as [`length_buckets`] has it, by the lengths that
    /// [`Student::batch`] gives inputs.
    pub fn buckets(&self, lengths: &[usize], tokens_per_batch: usize) -> Vec<Vec<usize>> {
        match &self.0 {
            Form::Whole(model) => model.buckets(lengths, tokens_per_batch),
            #[cfg(feature = "gpu")]
            Form::InParts(_) => length_buckets(lengths, tokens_per_batch),
        }
    }

    /// A batch for the model, on its device: by hand without padding, else as [`CrossEncoder::batch`] has it.
    pub fn batch(&self, encodings: &[&Encoded]) -> Batch {
        match &self.0 {
            Form::Whole(model) => model.batch(encodings),
            #[cfg(feature = "gpu")]
            Form::InParts(parts) => Batch::unpadded(encodings, parts.config(), &parts.device()),
        }
    }

    /// The logits that [`CrossEncoder::forward`] gives, and what going back takes.
    pub fn pass(&self, batch: &Batch) -> Pass {
        match &self.0 {
            Form::Whole(model) => Pass {
                logits: model.forward(batch),
                #[cfg(feature = "gpu")]
                by_hand: None,
            },
            #[cfg(feature = "gpu")]
            Form::InParts(parts) => {
                let (logits, tape) = parts.record(batch);
                Pass {
                    logits: Tensor::from_inner(logits).require_grad(),
                    by_hand: Some(tape),
                }
            }
        }
    }

    /// The gradients of all parameters that have one. `gradients` are of a loss of these passes' logits.
    pub fn gradients(&self, passes: Vec<Pass>, gradients: &Gradients) -> Vec<Bundle> {
        match &self.0 {
            Form::Whole(model) => {
                drop(passes);
                let mut named = Named {
                    gradients,
                    by_name: BTreeMap::new(),
                };
                model.visit_parameters(&mut named);
                Bundle::of(named.by_name)
            }
            #[cfg(feature = "gpu")]
            Form::InParts(parts) => {
                let slopes = passes.iter().map(|pass| pass.logits.grad(gradients));
                let slopes: Vec<Option<Tensor<1>>> = slopes.collect();
                back(parts, passes, slopes)
            }
        }
    }

    /// The same of a loss that has these slopes at the logits, pass by pass.
    pub fn gradients_at(&self, passes: Vec<Pass>, slopes: &[f32]) -> Vec<Bundle> {
        match &self.0 {
            Form::Whole(model) => {
                let logits = passes.iter().map(|pass| pass.logits.clone()).collect();
                let slopes = Tensor::<1>::from_floats(slopes, &model.device());
                let gradients = (Tensor::cat(logits, 0) * slopes).sum().backward();
                self.gradients(passes, &gradients)
            }
            #[cfg(feature = "gpu")]
            Form::InParts(parts) => {
                let device = parts.device();
                let mut rest = slopes;
                let of_passes = passes.iter().map(|pass| {
                    let (its, others) = rest.split_at(pass.logits.dims()[0].min(rest.len()));
                    rest = others;
                    Some(Tensor::from_floats(its, &device))
                });
                let of_passes = of_passes.collect();
                back(parts, passes, of_passes)
            }
        }
    }

    /// Gradients by name as this student's own are: of one in parts, a part's together, 0 where there is none.
    #[must_use]
    pub fn arranged(&self, gradients: Vec<Bundle>) -> Vec<Bundle> {
        match &self.0 {
            Form::Whole(_) => gradients,
            #[cfg(feature = "gpu")]
            Form::InParts(parts) => parts.arranged(gradients),
        }
    }

    /// The same after a step of these groups, and their moments after it, in their order; where the norm is
    /// not finite, as before.
    #[must_use]
    pub fn moved(self, moves: Vec<Move>, clip: &Clip) -> (Self, Vec<Moments>) {
        match self.0 {
            // It has no groups.
            Form::Whole(model) => {
                drop(moves);
                let _ = clip;
                (Self(Form::Whole(model)), Vec::new())
            }
            #[cfg(feature = "gpu")]
            Form::InParts(parts) => {
                let (parts, moments) = parts.moved(moves, clip);
                (Self(Form::InParts(parts)), moments)
            }
        }
    }

    /// Puts what `mapper` gives in the place of every parameter that is in no group.
    #[must_use]
    pub fn map_parameters(self, mapper: &mut impl ParameterMapper) -> Self {
        match self.0 {
            Form::Whole(model) => Self(Form::Whole(model.map_parameters(mapper))),
            #[cfg(feature = "gpu")]
            Form::InParts(parts) => Self(Form::InParts(parts)),
        }
    }

    /// With what comes of each vector of parameters and that of another student of this model.
    #[must_use]
    pub fn mixed(self, other: &Self, mix: impl Fn(Tensor<1>, Tensor<1>) -> Tensor<1>) -> Self {
        match (self.0, &other.0) {
            (Form::Whole(model), Form::Whole(other)) => {
                let mut mixer = Mixer {
                    others: BTreeMap::new(),
                    mix,
                };
                other.visit_parameters(&mut mixer);
                Self(Form::Whole(model.map_parameters(&mut mixer)))
            }
            #[cfg(feature = "gpu")]
            (Form::InParts(parts), Form::InParts(other)) => {
                Self(Form::InParts(parts.mixed(other, mix)))
            }
            #[cfg(feature = "gpu")]
            (form, _) => Self(form),
        }
    }
}

/// What passes found, added.
#[cfg(feature = "gpu")]
fn back(parts: &Parts, passes: Vec<Pass>, slopes: Vec<Option<Tensor<1>>>) -> Vec<Bundle> {
    let both = passes.into_iter().zip(slopes);
    let found = both.filter_map(|(pass, slopes)| Some(parts.back(pass.by_hand?, slopes?)));
    let plus = |sum: Vec<Bundle>, other: Vec<Bundle>| {
        let both = sum.into_iter().zip(other);
        both.map(|(one, other)| one.with(one.values.clone() + other.values))
            .collect()
    };
    found.reduce(plus).unwrap_or_default()
}

/// Gives gradients their names.
struct Named<'a> {
    gradients: &'a Gradients,
    by_name: BTreeMap<String, Tensor<1>>,
}

impl ParameterVisitor for Named<'_> {
    fn visit<const N: usize>(&mut self, name: &str, parameter: &Param<Tensor<N>>) {
        if let Some(gradient) = parameter.val().grad(self.gradients) {
            let gradient = gradient.flatten(0, N - 1);
            self.by_name.insert(name.to_owned(), gradient);
        }
    }
}

struct Mixer<M> {
    others: BTreeMap<String, Tensor<1>>,
    mix: M,
}

impl<M> ParameterVisitor for Mixer<M> {
    fn visit<const N: usize>(&mut self, name: &str, parameter: &Param<Tensor<N>>) {
        let values = parameter.val().inner().flatten(0, N - 1);
        self.others.insert(name.to_owned(), values);
    }
}

impl<M: Fn(Tensor<1>, Tensor<1>) -> Tensor<1>> ParameterMapper for Mixer<M> {
    fn map<const N: usize>(&mut self, name: &str, parameter: Param<Tensor<N>>) -> Param<Tensor<N>> {
        match self.others.remove(name) {
            None => parameter,
            Some(other) => replace(parameter, |values| (self.mix)(values, other)),
        }
    }
}
