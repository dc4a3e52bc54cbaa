//! Forward and back by hand, on a GPU: the embeddings, a layer at a time and the head in kernels of our own
//! ([`crate::gpu`]), what ELECTRA projects behind the embeddings in Burn's operations.
//!
//! Burn's graph of operations is the reference, and what everything else runs on.
//!
//! Shapes: `N` tokens of a batch, `D` hidden width, `E` width of the embeddings; `B` pairs of a batch.

use burn::nn::Linear;
use burn::tensor::Tensor;

use crate::bundle::Group;
use crate::config::ModelConfig;
use crate::cross_encoder::Batch;
use crate::encoder::Encoder;
use crate::gpu::{Embedded, Headed, Layered};
use crate::head::ClassificationHead;
use crate::slopes::{OfGroup, Slopes};

/// What the way back takes.
pub(crate) struct Tape {
    embedded: Embedded,
    /// What is projected, where something is.
    projected: Option<Tensor<2>>,
    layers: Vec<Layered>,
    head: Headed,
}

impl Tape {
    /// The logits of a batch: `[B]`.
    pub(crate) fn record(
        encoder: &Encoder,
        head: &ClassificationHead,
        config: &ModelConfig,
        batch: &Batch,
    ) -> (Tensor<1>, Self) {
        let mut layers = Vec::new();
        let keep = |layer| layers.push(layer);
        let (logits, embedded, projected, head) = forward(encoder, head, config, batch, true, keep);
        let tape = Self {
            embedded,
            projected,
            layers,
            head,
        };
        (logits, tape)
    }

    /// # Shapes
    /// - slopes: `[B]`, at what [`Tape::record`] gave
    pub(crate) fn back(
        self,
        encoder: &Encoder,
        head: &ClassificationHead,
        config: &ModelConfig,
        slopes: Tensor<1>,
    ) -> Slopes {
        let mut into = Slopes::default();
        let places = self.head.places(head);
        let (mut slopes, values) = self.head.back(config, slopes);
        into.of_groups.push(OfGroup {
            group: Group::Head,
            places,
            values,
        });
        let layers = encoder.post_norm().unwrap_or_default();
        for (number, (layer, work)) in layers.iter().zip(self.layers).enumerate().rev() {
            let places = work.places(layer);
            let (of_input, values) = work.back(slopes);
            slopes = of_input;
            into.of_groups.push(OfGroup {
                group: Group::Layer(number),
                places,
                values,
            });
        }
        if let (Some(projection), Some(input)) = (&encoder.projection, self.projected) {
            slopes = back_through(config, projection, input, slopes, &mut into);
        }
        into.of_groups.push(OfGroup {
            group: Group::Embeddings,
            places: self.embedded.places(encoder),
            values: self.embedded.back(slopes),
        });
        into
    }
}

/// The logits of a batch, `[B]`, where nothing goes back.
pub(crate) fn logits(
    encoder: &Encoder,
    head: &ClassificationHead,
    config: &ModelConfig,
    batch: &Batch,
) -> Tensor<1> {
    // What the way back would take goes with a layer's work.
    forward(encoder, head, config, batch, false, drop).0
}

/// The logits of a batch, and the work that finding them took.
fn forward(
    encoder: &Encoder,
    head: &ClassificationHead,
    config: &ModelConfig,
    batch: &Batch,
    goes_back: bool,
    mut keep: impl FnMut(Layered),
) -> (Tensor<1>, Embedded, Option<Tensor<2>>, Headed) {
    let (mut hidden, embedded) = Embedded::forward(config, encoder, batch, goes_back);
    let mut projected = None;
    if let Some(projection) = &encoder.projection {
        let input = config.precision.operand(hidden);
        hidden = project(config, projection, &input);
        projected = Some(input);
    }
    let layers = encoder.post_norm().unwrap_or_default();
    for (number, layer) in layers.iter().enumerate() {
        let is_last = number + 1 == layers.len();
        let (output, work) = Layered::forward(config, &embedded, layer, is_last, hidden);
        hidden = output;
        keep(work);
    }
    let (logits, head) = Headed::forward(config, &embedded, head, hidden);
    (logits, embedded, projected, head)
}

/// A linear map of what `Precision::operand` gave.
///
/// # Shapes
/// - input: `[N, E]`
/// - output: `[N, D]`
fn project(config: &ModelConfig, linear: &Linear, input: &Tensor<2>) -> Tensor<2> {
    let bias = linear.bias.as_ref().map(|bias| bias.val().unsqueeze());
    let weight = config.precision.operand(linear.weight.val());
    let product = config.precision.wide(input.clone().matmul(weight));
    match bias {
        Some(bias) => product + bias,
        None => product,
    }
}

/// The slopes at its input.
fn back_through(
    config: &ModelConfig,
    linear: &Linear,
    input: Tensor<2>,
    slopes: Tensor<2>,
    into: &mut Slopes,
) -> Tensor<2> {
    if let Some(bias) = &linear.bias {
        into.add(bias.id, slopes.clone().sum_dim(0));
    }
    let slopes = config.precision.operand(slopes);
    let of_weight = input.transpose().matmul(slopes.clone());
    into.add(linear.weight.id, config.precision.wide(of_weight));
    let weight = config.precision.operand(linear.weight.val());
    config.precision.wide(slopes.matmul(weight.transpose()))
}
