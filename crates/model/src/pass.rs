//! A pass of training: where it can be, by hand ([`crate::by_hand`]), else through Burn's graph.

use std::collections::{BTreeMap, HashMap};

use burn::module::{Param, ParamId};
use burn::tensor::{Gradients, Tensor};

use crate::bundle::Bundle;
use crate::cross_encoder::{Batch, CrossEncoder};
use crate::parameters::ParameterVisitor;
use crate::slopes::Slopes;

#[cfg(feature = "gpu")]
use crate::by_hand::Tape;

/// What a batch comes to in training, with what going back takes.
pub struct Pass {
    /// Relevance logits: `[B]`.
    pub logits: Tensor<1>,
    /// What the head reads, a leaf of its graph, and how it came about.
    #[cfg(feature = "gpu")]
    by_hand: Option<(Tensor<2>, Tape)>,
}

/// A step of a layer's parameters.
pub struct Move {
    /// That way, in the places of the gradients that [`CrossEncoder::gradients`] gave of a layer.
    pub direction: Bundle,
    /// What is left of matrices before; of all else, that is all.
    pub kept: f64,
    /// How far.
    pub share: f64,
}

impl CrossEncoder {
    /// The logits that [`CrossEncoder::forward`] gives, of a model that is trained.
    pub fn pass(&self, batch: &Batch) -> Pass {
        #[cfg(feature = "gpu")]
        if self.goes_by_hand() {
            use burn::module::Module;

            let (pooled, tape) =
                Tape::record(&self.encoder().valid(), self.config(), &batch.inner());
            let pooled = Tensor::from_inner(pooled).require_grad();
            let logits = self.head().forward(self.config(), pooled.clone());
            return Pass {
                logits: logits.flatten(0, 1),
                by_hand: Some((pooled, tape)),
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
    fn goes_by_hand(&self) -> bool {
        let config = self.config();
        let layers = self.encoder().post_norm();
        let device = self.device();
        layers.is_some_and(|layers| !layers.is_empty())
            && config.hidden_dropout_prob == 0.0
            && config.attention_probs_dropout_prob == 0.0
            && config.attention == crate::attention::Attention::Decomposed
            && config.hidden_size <= crate::gpu::WIDEST
            && device.is_autodiff()
            && !crate::parallel::is_cpu(&device)
    }

    /// The gradients of all parameters that have one. `gradients` are of a loss of these passes' logits.
    pub fn gradients(&self, passes: Vec<Pass>, gradients: &Gradients) -> Vec<Bundle> {
        let Slopes { alone, of_layers } = self.slopes(passes, gradients);
        let in_layers = of_layers.iter().flat_map(|(places, _)| places);
        let mut named = Named {
            gradients,
            by_id: alone,
            names: in_layers.map(|(id, _)| (*id, String::new())).collect(),
            by_name: BTreeMap::new(),
        };
        self.visit_parameters(&mut named);
        let Named { names, by_name, .. } = named;
        let mut bundles = Bundle::of(by_name);
        let layers = of_layers.len();
        let of_layers = of_layers.into_iter().enumerate();
        let of_layers = of_layers.map(|(number, (places, values))| {
            let place = |(id, range)| Some((names.get(&id)?.clone(), range));
            let parameters = places.into_iter().filter_map(place).collect();
            Bundle {
                parameters,
                values,
                // They come from the last to the first.
                layer: Some(layers - 1 - number),
            }
        });
        bundles.extend(of_layers);
        bundles
    }

    /// The same model after a step of these layers.
    #[must_use]
    pub fn moved(self, moves: Vec<Move>) -> Self {
        #[cfg(feature = "gpu")]
        {
            let mut by_layer = HashMap::new();
            for one in moves {
                by_layer.extend(one.direction.layer.map(|layer| (layer, one)));
            }
            self.map_layers(|number, layer| match by_layer.remove(&number) {
                Some(one) => crate::gpu::moved(layer, one.direction.values, one.kept, one.share),
                None => layer,
            })
        }
        #[cfg(not(feature = "gpu"))]
        {
            drop(moves);
            self
        }
    }

    /// What passes by hand found, added.
    #[cfg(feature = "gpu")]
    fn slopes(&self, passes: Vec<Pass>, gradients: &Gradients) -> Slopes {
        use burn::module::Module;

        let encoder = self.encoder().valid();
        let passes = passes.into_iter().filter_map(|pass| pass.by_hand);
        let slopes = passes.filter_map(|(pooled, tape)| {
            Some(tape.back(&encoder, self.config(), pooled.grad(gradients)?))
        });
        slopes.reduce(Slopes::plus).unwrap_or_default()
    }

    #[cfg(not(feature = "gpu"))]
    #[expect(clippy::unused_self, reason = "as where there are GPUs")]
    fn slopes(&self, passes: Vec<Pass>, _: &Gradients) -> Slopes {
        drop(passes);
        Slopes::default()
    }
}

/// Gives gradients their names.
struct Named<'a> {
    gradients: &'a Gradients,
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
            let of_graph = parameter.val().grad(self.gradients)?;
            Some(of_graph.flatten(0, N - 1))
        });
        if let Some(gradient) = gradient {
            self.by_name.insert(name.to_owned(), gradient);
        }
    }
}
