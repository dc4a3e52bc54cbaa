//! Forward and back through the encoder by hand, on a GPU: a layer at a time in kernels of our own
//! ([`crate::gpu`]), embeddings in Burn's operations.
//!
//! Burn's graph of operations is the reference, and what everything else runs on.
//!
//! Shapes: `N` tokens of a batch, `D` hidden width, `E` width of the embeddings; `B` pairs of a batch.

use std::sync::Arc;

use burn::module::Param;
use burn::nn::{Embedding, LayerNorm, Linear};
use burn::tensor::{IndexingUpdateOp, Int, Tensor};

use crate::blocks::apart;
use crate::config::ModelConfig;
use crate::cross_encoder::Batch;
use crate::encoder::{Encoder, position_ids};
use crate::gpu::{Layout, Work};
use crate::slopes::Slopes;

/// What the way back through the encoder takes.
pub(crate) struct Tape {
    batch: Batch,
    embedded: Normed,
    /// What is projected, where something is.
    projected: Option<Tensor<2>>,
    layers: Vec<Work>,
}

impl Tape {
    /// What the last layer makes of each pair's first token: `[B, D]`, of all blocks together.
    pub(crate) fn record(
        encoder: &Encoder,
        config: &ModelConfig,
        batch: &Batch,
    ) -> (Tensor<2>, Self) {
        let (mut hidden, embedded) = normalise(config, &encoder.norm, encoder.sum(config, batch));
        let projected = encoder.projection.as_ref().map(|projection| {
            let input = config.precision.operand(hidden.clone());
            hidden = project(config, projection, &input);
            input
        });
        let layers = encoder.post_norm().unwrap_or_default();
        let layout = Arc::new(Layout::new(&batch.blocks, config.num_attention_heads));
        let mut works = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            let is_last = number + 1 == layers.len();
            let mask = batch.attention_mask.clone();
            let (output, work) = Work::forward(config, &layout, layer, is_last, hidden, mask);
            hidden = output;
            works.push(work);
        }
        let tape = Self {
            batch: batch.clone(),
            embedded,
            projected,
            layers: works,
        };
        (hidden, tape)
    }

    /// # Shapes
    /// - slopes: `[B, D]`, at what [`Tape::record`] gave
    pub(crate) fn back(
        self,
        encoder: &Encoder,
        config: &ModelConfig,
        mut slopes: Tensor<2>,
    ) -> Slopes {
        let mut into = Slopes::default();
        let layers = encoder.post_norm().unwrap_or_default();
        for (layer, work) in layers.iter().zip(self.layers).rev() {
            let places = work.places(layer).collect();
            let (of_input, of_parameters) = work.back(slopes);
            slopes = of_input;
            into.of_layers.push((places, of_parameters));
        }
        if let (Some(projection), Some(input)) = (&encoder.projection, self.projected) {
            slopes = back_through(config, projection, input, slopes, &mut into);
        }
        let slopes = self.embedded.back(&encoder.norm, slopes, &mut into);
        let Batch {
            input_ids,
            token_type_ids,
            blocks,
            ..
        } = &self.batch;
        if let Some(segments) = &encoder.segments {
            let of_segments = if config.reads_segments() {
                scattered(segments, token_type_ids.clone(), slopes.clone())
            } else {
                let [rows, width] = segments.weight.dims();
                below(slopes.clone().sum_dim(0), [rows, width])
            };
            into.add(segments.weight.id, of_segments);
        }
        if let Some(positions) = &encoder.positions {
            let of_positions = if let Some(ids) = position_ids(config, &self.batch) {
                scattered(positions, ids, slopes.clone())
            } else {
                let [rows, width] = positions.weight.dims();
                let of_block = |block: Tensor<3>| {
                    let [_, tokens, _] = block.dims();
                    let sum = block.sum_dim(0).reshape([tokens, width]);
                    below(sum, [rows, width])
                };
                let of_blocks = apart(&slopes, blocks).into_iter().map(of_block);
                of_blocks
                    .reduce(|one, other| one + other)
                    .unwrap_or_else(|| positions.weight.val().zeros_like())
            };
            into.add(positions.weight.id, of_positions);
        }
        let of_words = scattered(&encoder.words, input_ids.clone(), slopes);
        into.add(encoder.words.weight.id, of_words);
        into
    }
}

/// The slopes at a table, from those at the rows that were looked up.
///
/// # Shapes
/// - ids: `[N]`
/// - slopes: `[N, E]`
fn scattered(table: &Embedding, ids: Tensor<1, Int>, slopes: Tensor<2>) -> Tensor<2> {
    let zeros = table.weight.val().zeros_like();
    zeros.select_assign(0, ids, slopes, IndexingUpdateOp::Add)
}

/// Rows of zeros below those given.
fn below(rows: Tensor<2>, [all, width]: [usize; 2]) -> Tensor<2> {
    let [given, _] = rows.dims();
    if given == all {
        return rows;
    }
    let zeros = Tensor::zeros([all - given, width], &rows.device());
    Tensor::cat(vec![rows, zeros], 0)
}

/// What the way back through a layer norm takes.
struct Normed {
    /// Before scale and shift: `[N, E]`.
    rows: Tensor<2>,
    /// One over each row's standard deviation: `[N, 1]`.
    inverse: Tensor<2>,
    /// `[1, E]`
    scale: Tensor<2>,
}

/// A vector as a matrix of one row: `[1, D]`. Burn fuses up to such a change of shape, so what a chain of
/// operations takes of them is made before it.
fn row(vector: &Param<Tensor<1>>) -> Tensor<2> {
    vector.val().unsqueeze()
}

/// # Shapes
/// - input, output: `[N, E]`
fn normalise(config: &ModelConfig, norm: &LayerNorm, input: Tensor<2>) -> (Tensor<2>, Normed) {
    let (scale, shift) = (row(&norm.gamma), norm.beta.as_ref().map(row));
    let mean = input.clone().mean_dim(1);
    let centred = input - mean;
    let variance = (centred.clone() * centred.clone()).mean_dim(1);
    let inverse = variance.add_scalar(config.layer_norm_eps).sqrt().recip();
    let rows = centred * inverse.clone();
    let scaled = rows.clone() * scale.clone();
    let output = match shift {
        Some(shift) => scaled + shift,
        None => scaled,
    };
    let taken = Normed {
        rows,
        inverse,
        scale,
    };
    (output, taken)
}

impl Normed {
    /// The slopes at the input.
    fn back(self, norm: &LayerNorm, slopes: Tensor<2>, into: &mut Slopes) -> Tensor<2> {
        let scaled = slopes.clone() * self.scale;
        let mean = scaled.clone().mean_dim(1);
        let along = (scaled.clone() * self.rows.clone()).mean_dim(1);
        let of_input = (scaled - mean - self.rows.clone() * along) * self.inverse;
        // Behind that: between its operations, Burn would fuse less.
        if let Some(beta) = &norm.beta {
            into.add(beta.id, slopes.clone().sum_dim(0));
        }
        into.add(norm.gamma.id, (slopes * self.rows).sum_dim(0));
        of_input
    }
}

/// A linear map of what `Precision::operand` gave.
///
/// # Shapes
/// - input: `[N, E]`
/// - output: `[N, D]`
fn project(config: &ModelConfig, linear: &Linear, input: &Tensor<2>) -> Tensor<2> {
    let bias = linear.bias.as_ref().map(row);
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
