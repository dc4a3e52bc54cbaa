//! A pass of training: where it can be, by hand ([`crate::by_hand`]), else through Burn's graph.

use std::collections::{BTreeMap, HashMap};

use burn::module::{Param, ParamId};
use burn::tensor::{Gradients, Tensor};

use crate::bundle::Bundle;
#[cfg(feature = "gpu")]
use crate::bundle::Group;
use crate::cross_encoder::{Batch, CrossEncoder};
use crate::pairs::Encoded;
use crate::parameters::ParameterVisitor;
use crate::slopes::Slopes;

#[cfg(feature = "gpu")]
use crate::by_hand::Tape;
#[cfg(feature = "gpu")]
use crate::config::ModelConfig;
#[cfg(feature = "gpu")]
use crate::precision::Precision;

/// What a batch comes to in training, with what going back takes.
pub struct Pass {
    /// Relevance logits: `[B]`.
    pub logits: Tensor<1>,
    /// How these, a leaf of their graph, came about.
    #[cfg(feature = "gpu")]
    by_hand: Option<Tape>,
}

/// A step of AdamW of a group's parameters.
pub struct Move {
    /// As [`CrossEncoder::gradients`] gave it.
    pub gradient: Bundle,
    /// Before the step, in the places of the gradient.
    pub moments: Moments,
    /// How.
    pub adam: Adam,
}

/// Running means of gradients.
pub struct Moments {
    /// Of them.
    pub mean: Tensor<1>,
    /// Of their squares.
    pub square: Tensor<1>,
}

/// What AdamW computes with in a step.
#[derive(Debug, Clone)]
pub struct Adam {
    /// What gradients are multiplied with.
    pub gradient_scale: f64,
    /// The share of the mean that is kept.
    pub beta1: f64,
    /// The share of the squares' mean that is kept.
    pub beta2: f64,
    /// The learning rate, over the mean's correction.
    pub rate: f64,
    /// What the squares' mean is divided by.
    pub square_correction: f64,
    /// Added to its root.
    pub epsilon: f64,
    /// What is left of matrices before; of all else, that is all.
    pub kept: f64,
}

impl CrossEncoder {
    /// The logits that [`CrossEncoder::forward`] gives, of a model that is trained.
    pub fn pass(&self, batch: &Batch) -> Pass {
        #[cfg(feature = "gpu")]
        if self.goes_by_hand() {
            use burn::module::Module;

            let (encoder, head) = (self.encoder().valid(), self.head().valid());
            let (logits, tape) = Tape::record(&encoder, &head, self.config(), batch);
            return Pass {
                logits: Tensor::from_inner(logits).require_grad(),
                by_hand: Some(tape),
            };
        }
        Pass {
            logits: self.forward(batch),
            #[cfg(feature = "gpu")]
            by_hand: None,
        }
    }

    /// On GPUs, of all architectures but ModernBERT, where nothing is dropped out and attention is
    /// decomposed.
    #[cfg(feature = "gpu")]
    pub(crate) fn goes_by_hand(&self) -> bool {
        let config = self.config();
        self.scores_by_hand()
            && config.hidden_dropout_prob == 0.0
            && config.attention_probs_dropout_prob == 0.0
            && config.classifier_dropout.unwrap_or(0.0) == 0.0
            && config.attention == crate::attention::Attention::Decomposed
            && self.device().is_autodiff()
    }

    /// Without a GPU's backends, nothing does.
    #[cfg(not(feature = "gpu"))]
    #[expect(clippy::unused_self, reason = "as where there are GPUs")]
    pub(crate) fn goes_by_hand(&self) -> bool {
        false
    }

    /// Without dropout, the logits can be found by hand.
    #[cfg(feature = "gpu")]
    fn scores_by_hand(&self) -> bool {
        let config = self.config();
        let layers = self.encoder().post_norm();
        layers.is_some_and(|layers| !layers.is_empty())
            && config.labels.len() == 1
            && config.hidden_size.max(config.embedding_size) <= crate::gpu::WIDEST
            && config.hidden_size / config.num_attention_heads <= crate::gpu::WIDEST_HEAD
            && !crate::parallel::is_cpu(&self.device())
    }

    /// The logits of inputs, by a model without autodiff: `[B]`.
    pub(crate) fn scores(&self, inputs: &[&Encoded]) -> Tensor<1> {
        #[cfg(feature = "gpu")]
        if self.scores_by_hand() {
            let config = ModelConfig {
                precision: Precision::F32,
                ..self.config().clone()
            };
            let batch = Batch::unpadded(inputs, &config, &self.device());
            return crate::by_hand::logits(self.encoder(), self.head(), &config, &batch);
        }
        self.forward(&self.batch(inputs))
    }

    /// The gradients of all parameters that have one. `gradients` are of a loss of these passes' logits.
    pub fn gradients(&self, passes: Vec<Pass>, gradients: &Gradients) -> Vec<Bundle> {
        let slopes = passes.iter().map(|pass| pass.logits.grad(gradients));
        let slopes: Vec<Option<Tensor<1>>> = slopes.collect();
        self.bundles(passes, slopes, Some(gradients))
    }

    /// The same of a loss that has these slopes at the logits, pass by pass.
    pub fn gradients_at(&self, passes: Vec<Pass>, slopes: &[f32]) -> Vec<Bundle> {
        let device = self.device();
        if !self.goes_by_hand() {
            let logits = passes.iter().map(|pass| pass.logits.clone()).collect();
            let slopes = Tensor::<1>::from_floats(slopes, &device);
            let gradients = (Tensor::cat(logits, 0) * slopes).sum().backward();
            return self.gradients(passes, &gradients);
        }
        let device = device.without_autodiff();
        let mut rest = slopes;
        let of_passes = passes.iter().map(|pass| {
            let (its, others) = rest.split_at(pass.logits.dims()[0].min(rest.len()));
            rest = others;
            Some(Tensor::from_floats(its, &device))
        });
        let of_passes = of_passes.collect();
        self.bundles(passes, of_passes, None)
    }

    fn bundles(
        &self,
        passes: Vec<Pass>,
        slopes: Vec<Option<Tensor<1>>>,
        gradients: Option<&Gradients>,
    ) -> Vec<Bundle> {
        let Slopes { alone, of_groups } = self.slopes(passes, slopes);
        let in_groups = of_groups.iter().flat_map(|of_group| &of_group.places);
        let mut named = Named {
            gradients,
            by_id: alone,
            names: in_groups.map(|(id, _)| (*id, String::new())).collect(),
            by_name: BTreeMap::new(),
        };
        self.visit_parameters(&mut named);
        let Named { names, by_name, .. } = named;
        let mut bundles = Bundle::of(by_name);
        bundles.extend(of_groups.into_iter().map(|of_group| {
            let place = |(id, range)| Some((names.get(&id)?.clone(), range));
            Bundle {
                parameters: of_group.places.into_iter().filter_map(place).collect(),
                values: of_group.values,
                group: Some(of_group.group),
            }
        }));
        bundles
    }

    /// The same model after a step of these groups, and their moments after it, in their order.
    #[must_use]
    pub fn moved(self, moves: Vec<Move>) -> (Self, Vec<Moments>) {
        #[cfg(feature = "gpu")]
        {
            let groups: Vec<Option<Group>> = moves.iter().map(|one| one.gradient.group).collect();
            let mut by_group = HashMap::new();
            for one in moves {
                by_group.extend(one.gradient.group.map(|group| (group, one)));
            }
            let (mut encoder, mut head, config) = self.into_parts();
            let mut after = HashMap::new();
            let mut moments;
            if let Some(by) = by_group.remove(&Group::Embeddings) {
                (encoder, moments) = crate::gpu::moved_embeddings(encoder, by);
                after.insert(Group::Embeddings, moments);
            }
            encoder = encoder.map_layers(|number, mut layer| {
                if let Some(by) = by_group.remove(&Group::Layer(number)) {
                    let moments;
                    (layer, moments) = crate::gpu::moved_layer(layer, by);
                    after.insert(Group::Layer(number), moments);
                }
                layer
            });
            if let Some(by) = by_group.remove(&Group::Head) {
                (head, moments) = crate::gpu::moved_head(head, by);
                after.insert(Group::Head, moments);
            }
            let model = Self::of_parts(encoder, head, config);
            let in_order = groups.into_iter().flatten();
            let moments = in_order.filter_map(|group| after.remove(&group)).collect();
            (model, moments)
        }
        #[cfg(not(feature = "gpu"))]
        {
            drop(moves);
            (self, Vec::new())
        }
    }

    /// What passes by hand found, added.
    #[cfg(feature = "gpu")]
    fn slopes(&self, passes: Vec<Pass>, slopes: Vec<Option<Tensor<1>>>) -> Slopes {
        use burn::module::Module;

        let (encoder, head) = (self.encoder().valid(), self.head().valid());
        let both = passes.into_iter().zip(slopes);
        let found = both.filter_map(|(pass, slopes)| {
            let tape = pass.by_hand?;
            Some(tape.back(&encoder, &head, self.config(), slopes?))
        });
        found.reduce(Slopes::plus).unwrap_or_default()
    }

    #[cfg(not(feature = "gpu"))]
    #[expect(clippy::unused_self, reason = "as where there are GPUs")]
    fn slopes(&self, passes: Vec<Pass>, slopes: Vec<Option<Tensor<1>>>) -> Slopes {
        drop((passes, slopes));
        Slopes::default()
    }
}

/// Sums of the squares of all numbers of vectors that are on one GPU; none of no vectors.
///
/// # Shapes
/// - output: `[S]`, which together are the sum
#[must_use]
pub fn squares(vectors: &[Tensor<1>]) -> Option<Tensor<1>> {
    #[cfg(feature = "gpu")]
    {
        crate::gpu::squares(vectors)
    }
    #[cfg(not(feature = "gpu"))]
    {
        let sums = vectors.iter().map(|one| one.clone().square().sum());
        (!vectors.is_empty()).then(|| Tensor::cat(sums.collect(), 0))
    }
}

/// Gives gradients their names.
struct Named<'a> {
    gradients: Option<&'a Gradients>,
    /// Those found by hand, each by itself.
    by_id: HashMap<ParamId, Tensor<1>>,
    /// Of parameters that have theirs with others'.
    names: HashMap<ParamId, String>,
    by_name: BTreeMap<String, Tensor<1>>,
}

impl ParameterVisitor for Named<'_> {
    fn visit<const N: usize>(&mut self, name: &str, parameter: &Param<Tensor<N>>) {
        if let Some(its) = self.names.get_mut(&parameter.id) {
            name.clone_into(its);
            return;
        }
        let by_hand = self.by_id.remove(&parameter.id);
        let gradient = by_hand.or_else(|| {
            let of_graph = parameter.val().grad(self.gradients?)?;
            Some(of_graph.flatten(0, N - 1))
        });
        if let Some(gradient) = gradient {
            self.by_name.insert(name.to_owned(), gradient);
        }
    }
}
