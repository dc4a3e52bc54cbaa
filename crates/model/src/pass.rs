//! A pass of training: where it can be, forward and back through the encoder by hand, in operations on
//! whole tensors.
//!
//! Burn's graph of operations is the reference, and what everything else runs on. Of a layer norm it
//! makes a way back of some forty operations, most of them kernels of a GPU's of their own that go over
//! all of memory. Here each is as many as its derivative has terms, and a layer's tape is let go of once
//! that is gone back through.
//!
//! Shapes: `N` tokens of a batch, `R` of them computed (in the last layer the first of each pair,
//! elsewhere all), `D` hidden width, `E` width of the embeddings, `H` heads; of a block of the batch,
//! `B` pairs of `T` tokens each.

use std::collections::{BTreeMap, HashMap};
use std::mem;

use burn::module::{Module, Param, ParamId};
use burn::nn::{Embedding, LayerNorm, Linear};
use burn::tensor::{Gradients, IndexingUpdateOp, Int, Tensor};

use crate::attention::{Attention, heads_of};
use crate::blocks::{Block, alone, apart, first, together};
use crate::config::ModelConfig;
use crate::cross_encoder::{Batch, CrossEncoder};
use crate::encoder::{Encoder, position_ids};
use crate::gelu::{gelu, gelu_slope};
use crate::parameters::ParameterVisitor;
use crate::post_norm::Layer;

/// What a batch comes to in training, with what going back takes.
pub struct Pass {
    /// Relevance logits: `[B]`.
    pub logits: Tensor<1>,
    /// What the head reads, a leaf of its graph, and how it came about.
    by_hand: Option<(Tensor<2>, Tape)>,
}

impl CrossEncoder {
    /// The logits that [`CrossEncoder::forward`] gives, of a model that is trained.
    pub fn pass(&self, batch: &Batch) -> Pass {
        let config = self.config();
        let drops = config.hidden_dropout_prob > 0.0 || config.attention_probs_dropout_prob > 0.0;
        let has_layers = self
            .encoder()
            .post_norm()
            .is_some_and(|layers| !layers.is_empty());
        let is_decomposed = config.attention == Attention::Decomposed;
        if !has_layers || drops || !is_decomposed || !self.device().is_autodiff() {
            return Pass {
                logits: self.forward(batch),
                by_hand: None,
            };
        }
        let (pooled, tape) = Tape::record(&self.encoder().valid(), config, &batch.inner());
        let pooled = Tensor::from_inner(pooled).require_grad();
        Pass {
            logits: self.head().forward(config, pooled.clone()).flatten(0, 1),
            by_hand: Some((pooled, tape)),
        }
    }

    /// The gradient of each parameter that has one, by Hugging Face name, flattened and without autodiff.
    /// `gradients` are of a loss of these passes' logits.
    pub fn gradients(
        &self,
        passes: Vec<Pass>,
        gradients: &Gradients,
    ) -> BTreeMap<String, Tensor<1>> {
        let mut slopes = Slopes::default();
        let encoder = self.encoder().valid();
        for (pooled, tape) in passes.into_iter().filter_map(|pass| pass.by_hand) {
            if let Some(of_pooled) = pooled.grad(gradients) {
                tape.back(&encoder, self.config(), of_pooled, &mut slopes);
            }
        }
        let mut named = Named {
            gradients,
            slopes,
            by_name: BTreeMap::new(),
        };
        self.visit_parameters(&mut named);
        named.by_name
    }
}

/// Gives gradients their names.
struct Named<'a> {
    gradients: &'a Gradients,
    slopes: Slopes,
    by_name: BTreeMap<String, Tensor<1>>,
}

impl ParameterVisitor for Named<'_> {
    fn visit<const N: usize>(&mut self, name: &str, parameter: &Param<Tensor<N>>) {
        let by_hand = self.slopes.sums.remove(&parameter.id);
        let gradient = by_hand.or_else(|| {
            let of_graph = parameter.val().grad(self.gradients)?;
            Some(of_graph.flatten(0, N - 1))
        });
        if let Some(gradient) = gradient {
            self.by_name.insert(name.to_owned(), gradient);
        }
    }
}

/// The slopes at parameters.
#[derive(Default)]
struct Slopes {
    sums: HashMap<ParamId, Tensor<1>>,
    /// What is computed once a layer's input has its slopes: between what leads to these, Burn fuses
    /// less. Until then, it keeps what it is computed of.
    owed: Vec<(ParamId, Owed)>,
}

/// What comes to the slopes at a parameter.
enum Owed {
    /// The sum of these rows: `[R, D]`.
    Sum(Tensor<2>),
    /// The sum of their products, number by number: `[R, D]` both.
    SumOfProducts(Tensor<2>, Tensor<2>),
    /// The product of matrices, `[R, D]` transposed and `[R, I]`.
    Product(Tensor<2>, Tensor<2>),
}

impl Slopes {
    fn owe<const N: usize>(&mut self, of: &Param<Tensor<N>>, owed: Owed) {
        self.owed.push((of.id, owed));
    }

    fn settle(&mut self, config: &ModelConfig) {
        for (id, owed) in mem::take(&mut self.owed) {
            let slopes = match owed {
                Owed::Sum(rows) => rows.sum_dim(0),
                Owed::SumOfProducts(rows, others) => (rows * others).sum_dim(0),
                Owed::Product(input, slopes) => {
                    config.precision.wide(input.transpose().matmul(slopes))
                }
            };
            self.add(id, slopes);
        }
    }

    fn add(&mut self, id: ParamId, slopes: Tensor<2>) {
        let slopes = slopes.flatten(0, 1);
        let slopes = match self.sums.remove(&id) {
            None => slopes,
            Some(sum) => sum + slopes,
        };
        self.sums.insert(id, slopes);
    }
}

/// What the way back through the encoder takes.
struct Tape {
    batch: Batch,
    embedded: Normed,
    /// What is projected, where something is.
    projected: Option<Tensor<2>>,
    layers: Vec<LayerTape>,
}

impl Tape {
    /// What the last layer makes of each pair's first token: `[B, D]`, of all blocks together.
    fn record(encoder: &Encoder, config: &ModelConfig, batch: &Batch) -> (Tensor<2>, Self) {
        let norm = rows(&encoder.norm);
        let (mut hidden, embedded) = normalise(config, norm, encoder.sum(config, batch));
        let projected = encoder.projection.as_ref().map(|projection| {
            let input = config.precision.operand(hidden.clone());
            hidden = project(config, with_bias(projection), &input);
            input
        });
        let masks = batch.masks();
        let layers = encoder.post_norm().unwrap_or_default();
        let mut tapes = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            let is_last = number + 1 == layers.len();
            let (output, tape) =
                LayerTape::record(layer, config, hidden, &batch.blocks, &masks, is_last);
            hidden = output;
            tapes.push(tape);
        }
        let tape = Self {
            batch: batch.clone(),
            embedded,
            projected,
            layers: tapes,
        };
        (hidden, tape)
    }

    /// # Shapes
    /// - slopes: `[B, D]`, at what [`Tape::record`] gave
    fn back(
        self,
        encoder: &Encoder,
        config: &ModelConfig,
        mut slopes: Tensor<2>,
        into: &mut Slopes,
    ) {
        let layers = encoder.post_norm().unwrap_or_default();
        for (layer, tape) in layers.iter().zip(self.layers).rev() {
            slopes = tape.back(layer, config, slopes, &self.batch.blocks, into);
            into.settle(config);
        }
        if let (Some(projection), Some(input)) = (&encoder.projection, self.projected) {
            slopes = back_through(config, projection, input, slopes, into);
        }
        let slopes = self.embedded.back(&encoder.norm, slopes, into);
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
        into.settle(config);
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

/// What the way back through a layer takes. Operands of products are as they are multiplied.
struct LayerTape {
    is_last: bool,
    /// What keys and values are projections of: `[N, D]`.
    hidden: Tensor<2>,
    /// What queries are projections of: `[R, D]`.
    rows: Tensor<2>,
    blocks: Vec<AttentionTape>,
    /// `[R, D]`
    context: Tensor<2>,
    attended: Normed,
    /// `[R, D]`
    inner_input: Tensor<2>,
    /// Before GELU: `[R, I]`.
    inner: Tensor<2>,
    /// After it.
    activated: Tensor<2>,
    outer: Normed,
}

impl LayerTape {
    /// # Shapes
    /// - hidden: `[N, D]`
    /// - masks: `[B, 1, 1, T]` of each block
    /// - output: `[R, D]`
    fn record(
        layer: &Layer,
        config: &ModelConfig,
        hidden: Tensor<2>,
        blocks: &[Block],
        masks: &[Tensor<4>],
        is_last: bool,
    ) -> (Tensor<2>, Self) {
        let heads = config.num_attention_heads;
        let [query, key, value] = [&layer.query, &layer.key, &layer.value].map(with_bias);
        let [attended, inner, outer] = [&layer.attended, &layer.inner, &layer.outer].map(with_bias);
        let [attended_norm, outer_norm] = [&layer.attended_norm, &layer.outer_norm].map(rows);
        let input = config.precision.operand(hidden.clone());
        let (residual, row_input, asking) = if is_last {
            let (rows, asking) = first(&hidden, blocks);
            (rows.clone(), config.precision.operand(rows), asking)
        } else {
            (hidden, input.clone(), blocks.to_vec())
        };
        let query = project(config, query, &row_input).div_scalar(root(config));
        let key = project(config, key, &input);
        let value = project(config, value, &input);
        let queries = heads_of(&query, &asking, heads).into_iter();
        let keys = heads_of(&key, blocks, heads);
        let values = heads_of(&value, blocks, heads);
        let (contexts, of_blocks): (Vec<_>, Vec<_>) = queries
            .zip(keys)
            .zip(values)
            .zip(masks)
            .map(|(((query, key), value), mask)| {
                AttentionTape::record(config, query, key, value, mask.clone())
            })
            .unzip();
        let context = together(contexts.into_iter().map(side_by_side).collect());
        let context = config.precision.operand(context);
        let attended = project(config, attended, &context) + residual;
        let (residual, attended) = normalise(config, attended_norm, attended);
        let inner_input = config.precision.operand(residual.clone());
        let inner = project(config, inner, &inner_input);
        let activated = config.precision.operand(gelu(inner.clone()));
        let outer = project(config, outer, &activated) + residual;
        let (output, outer) = normalise(config, outer_norm, outer);
        let tape = Self {
            is_last,
            hidden: input,
            rows: row_input,
            blocks: of_blocks,
            context,
            attended,
            inner_input,
            inner,
            activated,
            outer,
        };
        (output, tape)
    }

    /// The slopes at the layer's input, `[N, D]`, from those at its output, `[R, D]`.
    fn back(
        self,
        layer: &Layer,
        config: &ModelConfig,
        slopes: Tensor<2>,
        blocks: &[Block],
        into: &mut Slopes,
    ) -> Tensor<2> {
        let heads = config.num_attention_heads;
        let of_outer = self.outer.back(&layer.outer_norm, slopes, into);
        let of_activated =
            back_through(config, &layer.outer, self.activated, of_outer.clone(), into);
        let of_inner = of_activated * gelu_slope(self.inner);
        let of_attended = back_through(config, &layer.inner, self.inner_input, of_inner, into);
        let of_attended = of_attended + of_outer;
        let of_attended = self.attended.back(&layer.attended_norm, of_attended, into);
        let of_context = back_through(
            config,
            &layer.attended,
            self.context,
            of_attended.clone(),
            into,
        );
        let alone = alone(blocks);
        let asking = if self.is_last { &alone } else { blocks };
        let of_contexts = heads_of(&of_context, asking, heads).into_iter();
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (slopes, tape) in of_contexts.zip(self.blocks) {
            let [query, key, value] = tape.back(config, slopes).map(side_by_side);
            queries.push(query);
            keys.push(key);
            values.push(value);
        }
        let of_query = together(queries).div_scalar(root(config));
        let of_rows = back_through(config, &layer.query, self.rows, of_query, into) + of_attended;
        let of_hidden = back_through(
            config,
            &layer.key,
            self.hidden.clone(),
            together(keys),
            into,
        ) + back_through(config, &layer.value, self.hidden, together(values), into);
        if !self.is_last {
            return of_hidden + of_rows;
        }
        let of_rows = apart(&of_rows, &alone).into_iter().zip(blocks);
        let spread = of_rows.map(|(rows, block)| {
            let [pairs, _, width] = rows.dims();
            let zeros = [pairs, block.tokens - 1, width];
            match block.tokens {
                1 => rows,
                _ => Tensor::cat(vec![rows.clone(), Tensor::zeros(zeros, &rows.device())], 1),
            }
        });
        of_hidden + together(spread.collect())
    }
}

/// The root of a head's width, by which scores are divided.
fn root(config: &ModelConfig) -> f64 {
    ((config.hidden_size / config.num_attention_heads) as f64).sqrt()
}

/// # Shapes
/// - heads: `[B, H, T, D / H]`
/// - output: `[B, T, D]`
fn side_by_side(of_heads: Tensor<4>) -> Tensor<3> {
    let [pairs, heads, tokens, width] = of_heads.dims();
    of_heads
        .swap_dims(1, 2)
        .reshape([pairs, tokens, heads * width])
}

/// What the way back through a block's attention takes.
struct AttentionTape {
    /// `[B, H, R, D / H]`
    query: Tensor<4>,
    /// `[B, H, T, D / H]`
    key: Tensor<4>,
    /// `[B, H, T, D / H]`
    value: Tensor<4>,
    /// Of the scores, each row's highest taken off, as they were multiplied: `[B, H, R, T]`.
    exponentials: Tensor<4>,
    /// Of each row: `[B, H, R, 1]`.
    sum: Tensor<4>,
    /// `[B, H, R, D / H]`
    context: Tensor<4>,
}

impl AttentionTape {
    fn record(
        config: &ModelConfig,
        query: Tensor<4>,
        key: Tensor<4>,
        value: Tensor<4>,
        mask: Tensor<4>,
    ) -> (Tensor<4>, Self) {
        let [query, key, value] = [query, key, value].map(|one| config.precision.operand(one));
        let scores = config
            .precision
            .wide(query.clone().matmul(key.clone().transpose()))
            + mask;
        let highest = scores.clone().max_dim(3);
        let exponentials = (scores - highest).exp();
        let sum = exponentials.clone().sum_dim(3);
        let exponentials = config.precision.operand(exponentials);
        // The division behind the product, where rows are D / H long and not T.
        let product = config
            .precision
            .wide(exponentials.clone().matmul(value.clone()));
        let context = product / sum.clone();
        let tape = Self {
            query,
            key,
            value,
            exponentials,
            sum,
            context: context.clone(),
        };
        (context, tape)
    }

    /// The slopes at queries, keys and values. That at a score is its weight times how far the slope at
    /// the weight is from the mean of its row, which is the product of the row's slopes and its context
    /// (Dao et al., 2022, arXiv 2205.14135).
    fn back(self, config: &ModelConfig, slopes: Tensor<4>) -> [Tensor<4>; 3] {
        let slopes = slopes / self.sum;
        let mean = (slopes.clone() * self.context).sum_dim(3);
        let slopes = config.precision.operand(slopes);
        let of_weights = config
            .precision
            .wide(slopes.clone().matmul(self.value.transpose()));
        let of_scores = (of_weights - mean) * config.precision.wide(self.exponentials.clone());
        let of_scores = config.precision.operand(of_scores);
        let of_value = self.exponentials.transpose().matmul(slopes);
        let of_key = of_scores.clone().transpose().matmul(self.query);
        let of_query = of_scores.matmul(self.key);
        [of_query, of_key, of_value].map(|one| config.precision.wide(one))
    }
}

/// What the way back through a layer norm takes.
struct Normed {
    /// Before scale and shift: `[R, D]`.
    rows: Tensor<2>,
    /// One over each row's standard deviation: `[R, 1]`.
    inverse: Tensor<2>,
    /// `[1, D]`
    scale: Tensor<2>,
}

/// A vector as a matrix of one row: `[1, D]`. Burn fuses up to such a change of shape, so what a chain of
/// operations takes of them is made before it.
fn row(vector: &Param<Tensor<1>>) -> Tensor<2> {
    vector.val().unsqueeze()
}

/// A layer norm's scale and shift: `[1, D]` both.
fn rows(norm: &LayerNorm) -> (Tensor<2>, Option<Tensor<2>>) {
    (row(&norm.gamma), norm.beta.as_ref().map(row))
}

/// # Shapes
/// - scale, shift: `[1, D]`
/// - input, output: `[R, D]`
fn normalise(
    config: &ModelConfig,
    (scale, shift): (Tensor<2>, Option<Tensor<2>>),
    input: Tensor<2>,
) -> (Tensor<2>, Normed) {
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
        if let Some(beta) = &norm.beta {
            into.owe(beta, Owed::Sum(slopes.clone()));
        }
        let products = Owed::SumOfProducts(slopes.clone(), self.rows.clone());
        into.owe(&norm.gamma, products);
        let slopes = slopes * self.scale;
        let mean = slopes.clone().mean_dim(1);
        let along = (slopes.clone() * self.rows.clone()).mean_dim(1);
        (slopes - mean - self.rows * along) * self.inverse
    }
}

/// A linear map of what `Precision::operand` gave.
///
/// # Shapes
/// - input: `[R, D]`
fn project(
    config: &ModelConfig,
    (linear, bias): (&Linear, Option<Tensor<2>>),
    input: &Tensor<2>,
) -> Tensor<2> {
    let weight = config.precision.operand(linear.weight.val());
    let product = config.precision.wide(input.clone().matmul(weight));
    match bias {
        Some(bias) => product + bias,
        None => product,
    }
}

/// A linear map, and its bias as a row: `[1, I]`.
fn with_bias(linear: &Linear) -> (&Linear, Option<Tensor<2>>) {
    (linear, linear.bias.as_ref().map(row))
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
        into.owe(bias, Owed::Sum(slopes.clone()));
    }
    let slopes = config.precision.operand(slopes);
    into.owe(&linear.weight, Owed::Product(input, slopes.clone()));
    let weight = config.precision.operand(linear.weight.val());
    config.precision.wide(slopes.matmul(weight.transpose()))
}
