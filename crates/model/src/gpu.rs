//! A model in training on a GPU, in few kernels: forward, and back by hand.
//!
//! Burn's operations on tensors would each be registered, looked at for what can be fused with it, and
//! started; here the embeddings, each layer and the head are one operation there and one back, which start their
//! kernels themselves. Those of products of matrices are Burn's or of [`hopper`], as [`products`] has it; all
//! others are of [`kernels`], and of [`attend`] or [`tensor_cores`].

mod attend;
mod attention;
mod embeddings;
mod head;
mod hopper;
mod kernels;
mod launch;
mod layer;
mod layout;
mod products;
mod step;
mod tensor_cores;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, ExtensionType, backend_extension};
use burn::module::{Module, Param, ParamId};
use burn::nn::{Embedding, LayerNorm, Linear};
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::architecture::Architecture;
use crate::config::ModelConfig;
use crate::cross_encoder::Batch;
use crate::encoder::Encoder;
use crate::head::ClassificationHead;
use crate::pass::{Moments, Move};
use crate::post_norm::Layer;

use layout::{Layout, Places};
use step::Step;

/// The widest hidden state whose sums fit into what any GPU shares in a cube, 16 KiB.
pub(crate) const WIDEST: usize = 1280;

/// The widest part of a head whose keys and values do.
pub(crate) const WIDEST_HEAD: usize = 128;

/// What a part of the encoder computes on, and how.
#[derive(Clone)]
pub(crate) struct Frame {
    layout: Arc<Layout>,
    /// Whether only the first token of each pair is computed.
    is_last: bool,
    width: usize,
    /// Between the two products behind attention.
    inner: usize,
    /// Of its parameters.
    places: Places,
    epsilon: f32,
    operand: DType,
}

impl Frame {
    /// `[N, D]`
    fn input(&self) -> [usize; 2] {
        [self.layout.rows, self.width]
    }

    /// `[R, D]`
    fn output(&self) -> [usize; 2] {
        let rows = if self.is_last {
            self.layout.pairs
        } else {
            self.layout.rows
        };
        [rows, self.width]
    }
}

/// A part's work on a batch, which forward leaves for the way back.
pub(crate) struct Work<T> {
    frame: Frame,
    /// What forward leaves is there when the way back begins: Burn makes operations of one thread in the
    /// order in which they were asked for, but for those that it fuses.
    tape: Arc<Mutex<Option<T>>>,
}

/// The embeddings' work.
pub(crate) type Embedded = Work<embeddings::Tape>;

/// A layer's work.
pub(crate) type Layered = Work<layer::Tape>;

/// The head's work.
pub(crate) type Headed = Work<head::Tape>;

impl<T> Clone for Work<T> {
    fn clone(&self) -> Self {
        Self {
            frame: self.frame.clone(),
            tape: Arc::clone(&self.tape),
        }
    }
}

impl<T> Work<T> {
    fn new(frame: Frame) -> Self {
        Self {
            frame,
            tape: Arc::default(),
        }
    }

    fn tape(&self) -> MutexGuard<'_, Option<T>> {
        self.tape.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where forward failed, Burn does not come here; and where a panic is, its caller hears of it.
    fn take(&self) -> T {
        let tape = self.tape().take();
        tape.expect("what goes back does so once, and after it went forward")
    }
}

impl Embedded {
    /// The embeddings of each token of a batch, added and normalised: `[N, E]`. Which tokens have the same
    /// row of a table, the way back alone takes.
    pub(crate) fn forward(
        config: &ModelConfig,
        encoder: &Encoder,
        batch: &Batch,
        goes_back: bool,
    ) -> (Tensor<2>, Self) {
        let places = of_embeddings(encoder);
        let [_, width] = encoder.words.weight.dims();
        let tables = if goes_back { layout::SCALE } else { 0 };
        let tables = &places.ranges[..tables];
        let work = Self::new(Frame {
            layout: Arc::new(Layout::new(
                batch,
                config.num_attention_heads,
                tables,
                width,
            )),
            is_last: false,
            width,
            inner: width,
            places,
            epsilon: epsilon(config),
            operand: DType::F32,
        });
        let output = Dispatch::embeddings_forward(embedding_weights(encoder), work.clone());
        (Tensor::from_dispatch(output), work)
    }

    /// Those at its parameters, each in its place, from the slopes at what [`Embedded::forward`] gave.
    pub(crate) fn back(self, slopes: Tensor<2>) -> Tensor<1> {
        Tensor::from_dispatch(Dispatch::embeddings_back(slopes.into_dispatch(), self))
    }

    /// Where the slopes of each parameter lie.
    pub(crate) fn places(&self, encoder: &Encoder) -> Vec<(ParamId, Range<usize>)> {
        let table = |table: &Option<Embedding>| table.as_ref().map(|table| table.weight.id);
        let ids = [
            Some(encoder.words.weight.id),
            table(&encoder.positions),
            table(&encoder.segments),
            Some(encoder.norm.gamma.id),
            encoder.norm.beta.as_ref().map(|beta| beta.id),
        ];
        self.frame.places.of(ids)
    }
}

impl Layered {
    /// The output of this layer: of the last one, the first token of each pair alone, `[R, D]`.
    ///
    /// # Shapes
    /// - hidden: `[N, D]`
    pub(crate) fn forward(
        config: &ModelConfig,
        embedded: &Embedded,
        layer: &Layer,
        is_last: bool,
        hidden: Tensor<2>,
    ) -> (Tensor<2>, Self) {
        let work = Self::new(Frame {
            layout: Arc::clone(&embedded.frame.layout),
            is_last,
            width: config.hidden_size,
            inner: config.intermediate_size,
            places: Places::of_layer(config.hidden_size, config.intermediate_size),
            epsilon: epsilon(config),
            operand: config.precision.operands().map_or(DType::F32, DType::from),
        });
        let hidden = hidden.into_dispatch();
        let output = Dispatch::layer_forward(hidden, layer_weights(layer), work.clone());
        (Tensor::from_dispatch(output), work)
    }

    /// The slopes at the layer's input, `[N, D]`, from those at its output, `[R, D]`, and those at its
    /// parameters, each in its place.
    pub(crate) fn back(self, slopes: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        let (of_input, of_parameters) = Dispatch::layer_back(slopes.into_dispatch(), self);
        let of_parameters = Tensor::from_dispatch(of_parameters);
        (Tensor::from_dispatch(of_input), of_parameters)
    }

    /// Where the slopes of each of the layer's parameters lie; layers have all of them.
    pub(crate) fn places(&self, layer: &Layer) -> Vec<(ParamId, Range<usize>)> {
        let matrices = [
            &layer.query,
            &layer.key,
            &layer.value,
            &layer.attended,
            &layer.inner,
            &layer.outer,
        ];
        let bias = |linear: &Linear| linear.bias.as_ref().map(|bias| bias.id);
        let norm = |norm: &LayerNorm| [Some(norm.gamma.id), norm.beta.as_ref().map(|beta| beta.id)];
        let ids = matrices.map(|linear| Some(linear.weight.id)).into_iter();
        let ids = ids
            .chain(norm(&layer.outer_norm))
            .chain([bias(&layer.outer), bias(&layer.inner)])
            .chain(norm(&layer.attended_norm))
            .chain([&layer.attended, &layer.query, &layer.key, &layer.value].map(bias));
        self.frame.places.of(ids)
    }
}

impl Headed {
    /// The logits, `[B]`, of what the head reads, `[B, D]`.
    pub(crate) fn forward(
        config: &ModelConfig,
        embedded: &Embedded,
        head: &ClassificationHead,
        pooled: Tensor<2>,
    ) -> (Tensor<1>, Self) {
        let work = Self::new(Frame {
            layout: Arc::clone(&embedded.frame.layout),
            is_last: true,
            width: config.hidden_size,
            inner: config.hidden_size,
            places: Places::of_head(config.hidden_size),
            epsilon: epsilon(config),
            operand: DType::F32,
        });
        let pooled = pooled.into_dispatch();
        let weights = head_weights(head);
        let logits = Dispatch::head_forward(pooled, weights, work.clone(), config.architecture);
        (Tensor::from_dispatch(logits), work)
    }

    /// The slopes at what the head reads, `[B, D]`, from those at the logits, `[B]`, and those at its
    /// parameters, each in its place.
    pub(crate) fn back(self, config: &ModelConfig, slopes: Tensor<1>) -> (Tensor<2>, Tensor<1>) {
        let slopes = slopes.into_dispatch();
        let (of_input, of_parameters) = Dispatch::head_back(slopes, self, config.architecture);
        let of_parameters = Tensor::from_dispatch(of_parameters);
        (Tensor::from_dispatch(of_input), of_parameters)
    }

    /// Where the slopes of each parameter lie.
    pub(crate) fn places(&self, head: &ClassificationHead) -> Vec<(ParamId, Range<usize>)> {
        let bias = |linear: &Linear| linear.bias.as_ref().map(|bias| bias.id);
        let (dense, classifier) = (&head.dense, &head.classifier);
        self.frame.places.of([
            Some(dense.weight.id),
            Some(classifier.weight.id),
            bias(dense),
            bias(classifier),
        ])
    }
}

#[expect(clippy::cast_possible_truncation, reason = "computed with in 32 bits")]
fn epsilon(config: &ModelConfig) -> f32 {
    config.layer_norm_eps as f32
}

fn of_embeddings(encoder: &Encoder) -> Places {
    let [words, width] = encoder.words.weight.dims();
    let rows = |table: &Option<Embedding>| table.as_ref().map_or(0, |it| it.weight.dims()[0]);
    let rows = [words, rows(&encoder.positions), rows(&encoder.segments)];
    Places::of_embeddings(rows, width)
}

/// The embeddings' parameters, in the order of [`Places::of_embeddings`]; in the place of a table that is not
/// there, words.
#[derive(ExtensionType)]
#[extension_type(fusion)]
pub(crate) struct EmbeddingWeights<B: Backend> {
    words: FloatTensor<B>,
    positions: FloatTensor<B>,
    segments: FloatTensor<B>,
    scale: FloatTensor<B>,
    shift: FloatTensor<B>,
}

impl EmbeddingWeights<CubeBackend> {
    fn in_order(self) -> [CubeTensor; 5] {
        [
            self.words,
            self.positions,
            self.segments,
            self.scale,
            self.shift,
        ]
    }

    fn of_order([words, positions, segments, scale, shift]: [CubeTensor; 5]) -> Self {
        Self {
            words,
            positions,
            segments,
            scale,
            shift,
        }
    }

    fn contiguous(self) -> Self {
        Self::of_order(self.in_order().map(into_contiguous))
    }
}

fn embedding_weights(encoder: &Encoder) -> EmbeddingWeights<Dispatch> {
    let table =
        |table: &Option<Embedding>| dispatched(&table.as_ref().unwrap_or(&encoder.words).weight);
    EmbeddingWeights {
        words: dispatched(&encoder.words.weight),
        positions: table(&encoder.positions),
        segments: table(&encoder.segments),
        scale: dispatched(&encoder.norm.gamma),
        shift: shift(&encoder.norm),
    }
}

/// A layer's parameters, in the order of [`Places::of_layer`].
#[derive(ExtensionType)]
#[extension_type(fusion)]
pub(crate) struct LayerWeights<B: Backend> {
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    attended: FloatTensor<B>,
    inner: FloatTensor<B>,
    outer: FloatTensor<B>,
    outer_scale: FloatTensor<B>,
    outer_shift: FloatTensor<B>,
    outer_bias: FloatTensor<B>,
    inner_bias: FloatTensor<B>,
    attended_scale: FloatTensor<B>,
    attended_shift: FloatTensor<B>,
    attended_bias: FloatTensor<B>,
    query_bias: FloatTensor<B>,
    key_bias: FloatTensor<B>,
    value_bias: FloatTensor<B>,
}

impl LayerWeights<CubeBackend> {
    fn in_order(self) -> [CubeTensor; 16] {
        [
            self.query,
            self.key,
            self.value,
            self.attended,
            self.inner,
            self.outer,
            self.outer_scale,
            self.outer_shift,
            self.outer_bias,
            self.inner_bias,
            self.attended_scale,
            self.attended_shift,
            self.attended_bias,
            self.query_bias,
            self.key_bias,
            self.value_bias,
        ]
    }

    fn of_order(ordered: [CubeTensor; 16]) -> Self {
        let [
            query,
            key,
            value,
            attended,
            inner,
            outer,
            outer_scale,
            outer_shift,
            outer_bias,
            inner_bias,
            attended_scale,
            attended_shift,
            attended_bias,
            query_bias,
            key_bias,
            value_bias,
        ] = ordered;
        Self {
            query,
            key,
            value,
            attended,
            inner,
            outer,
            outer_scale,
            outer_shift,
            outer_bias,
            inner_bias,
            attended_scale,
            attended_shift,
            attended_bias,
            query_bias,
            key_bias,
            value_bias,
        }
    }
}

/// The head's parameters, in the order of [`Places::of_head`].
#[derive(ExtensionType)]
#[extension_type(fusion)]
pub(crate) struct HeadWeights<B: Backend> {
    dense: FloatTensor<B>,
    classifier: FloatTensor<B>,
    dense_bias: FloatTensor<B>,
    classifier_bias: FloatTensor<B>,
}

impl HeadWeights<CubeBackend> {
    fn in_order(self) -> [CubeTensor; 4] {
        [
            self.dense,
            self.classifier,
            self.dense_bias,
            self.classifier_bias,
        ]
    }

    fn of_order([dense, classifier, dense_bias, classifier_bias]: [CubeTensor; 4]) -> Self {
        Self {
            dense,
            classifier,
            dense_bias,
            classifier_bias,
        }
    }

    fn contiguous(self) -> Self {
        Self::of_order(self.in_order().map(into_contiguous))
    }
}

fn head_weights(head: &ClassificationHead) -> HeadWeights<Dispatch> {
    HeadWeights {
        dense: dispatched(&head.dense.weight),
        classifier: dispatched(&head.classifier.weight),
        dense_bias: bias(&head.dense),
        classifier_bias: bias(&head.classifier),
    }
}

fn dispatched<const N: usize>(parameter: &Param<Tensor<N>>) -> FloatTensor<Dispatch> {
    parameter.val().into_dispatch()
}

/// Of a norm that shifts nothing, zeros.
fn shift(norm: &LayerNorm) -> FloatTensor<Dispatch> {
    match &norm.beta {
        Some(beta) => dispatched(beta),
        None => norm.gamma.val().zeros_like().into_dispatch(),
    }
}

/// Of a linear map that adds nothing, zeros.
fn bias(linear: &Linear) -> FloatTensor<Dispatch> {
    let [_, width] = linear.weight.dims();
    let none = || Tensor::<1>::zeros([width], &linear.weight.device()).into_dispatch();
    linear.bias.as_ref().map_or_else(none, dispatched)
}

fn layer_weights(layer: &Layer) -> LayerWeights<Dispatch> {
    LayerWeights {
        query: dispatched(&layer.query.weight),
        query_bias: bias(&layer.query),
        key: dispatched(&layer.key.weight),
        key_bias: bias(&layer.key),
        value: dispatched(&layer.value.weight),
        value_bias: bias(&layer.value),
        attended: dispatched(&layer.attended.weight),
        attended_bias: bias(&layer.attended),
        attended_scale: dispatched(&layer.attended_norm.gamma),
        attended_shift: shift(&layer.attended_norm),
        inner: dispatched(&layer.inner.weight),
        inner_bias: bias(&layer.inner),
        outer: dispatched(&layer.outer.weight),
        outer_bias: bias(&layer.outer),
        outer_scale: dispatched(&layer.outer_norm.gamma),
        outer_shift: shift(&layer.outer_norm),
    }
}

/// The embeddings after a step of AdamW by a gradient that [`Embedded::back`] gave.
pub(crate) fn moved_embeddings(mut encoder: Encoder, by: Move) -> (Encoder, Moments) {
    let places = of_embeddings(&encoder);
    let weights = embedding_weights(&encoder.valid());
    let (gradient, mean, square, step) = dispatched_move(by, places);
    let (new, mean, square) = Dispatch::embeddings_moved(weights, gradient, mean, square, step);
    let table = |mut table: Embedding, value| {
        table.weight = put(table.weight, value);
        table
    };
    encoder.words = table(encoder.words, new.words);
    encoder.positions = encoder.positions.map(|it| table(it, new.positions));
    encoder.segments = encoder.segments.map(|it| table(it, new.segments));
    encoder.norm = put_norm(encoder.norm, new.scale, new.shift);
    (encoder, moments(mean, square))
}

/// A layer after a step of AdamW by a gradient that [`Layered::back`] gave.
pub(crate) fn moved_layer(layer: Layer, by: Move) -> (Layer, Moments) {
    let [_, inner] = layer.inner.weight.dims();
    let [width, _] = layer.query.weight.dims();
    let weights = layer_weights(&layer.valid());
    let (gradient, mean, square, step) = dispatched_move(by, Places::of_layer(width, inner));
    let (new, mean, square) = Dispatch::layer_moved(weights, gradient, mean, square, step);
    let layer = Layer {
        query: put_linear(layer.query, new.query, new.query_bias),
        key: put_linear(layer.key, new.key, new.key_bias),
        value: put_linear(layer.value, new.value, new.value_bias),
        attended: put_linear(layer.attended, new.attended, new.attended_bias),
        attended_norm: put_norm(layer.attended_norm, new.attended_scale, new.attended_shift),
        inner: put_linear(layer.inner, new.inner, new.inner_bias),
        outer: put_linear(layer.outer, new.outer, new.outer_bias),
        outer_norm: put_norm(layer.outer_norm, new.outer_scale, new.outer_shift),
    };
    (layer, moments(mean, square))
}

/// The head after a step of AdamW by a gradient that [`Headed::back`] gave.
pub(crate) fn moved_head(mut head: ClassificationHead, by: Move) -> (ClassificationHead, Moments) {
    let [width, _] = head.dense.weight.dims();
    let weights = head_weights(&head.valid());
    let (gradient, mean, square, step) = dispatched_move(by, Places::of_head(width));
    let (new, mean, square) = Dispatch::head_moved(weights, gradient, mean, square, step);
    head.dense = put_linear(head.dense, new.dense, new.dense_bias);
    head.classifier = put_linear(head.classifier, new.classifier, new.classifier_bias);
    (head, moments(mean, square))
}

type Dispatched = FloatTensor<Dispatch>;

fn dispatched_move(by: Move, places: Places) -> (Dispatched, Dispatched, Dispatched, Step) {
    let Move {
        gradient,
        moments: Moments { mean, square },
        adam,
    } = by;
    let [gradient, mean, square] = [gradient.values, mean, square].map(Tensor::into_dispatch);
    (gradient, mean, square, Step { places, adam })
}

fn moments(mean: Dispatched, square: Dispatched) -> Moments {
    Moments {
        mean: Tensor::from_dispatch(mean),
        square: Tensor::from_dispatch(square),
    }
}

/// Sums of the squares of vectors that are on one GPU.
pub(crate) fn squares(vectors: &[Tensor<1>]) -> Option<Tensor<1>> {
    let device = vectors.first()?.device();
    let sums = Tensor::<1>::zeros([vectors.len() * step::SUMS], &device).into_dispatch();
    let numbered = vectors.iter().enumerate();
    let sums = numbered.fold(sums, |sums, (place, values)| {
        Dispatch::squares(values.clone().into_dispatch(), sums, place)
    });
    Some(Tensor::from_dispatch(sums))
}

fn put<const N: usize>(
    parameter: Param<Tensor<N>>,
    value: FloatTensor<Dispatch>,
) -> Param<Tensor<N>> {
    let id = parameter.id;
    let device = parameter.lazy_device();
    let value = Tensor::from_inner(Tensor::from_dispatch(value)).to_device(&device);
    parameter.transform_for_load(value, id)
}

fn put_linear(linear: Linear, weight: Dispatched, bias: Dispatched) -> Linear {
    Linear {
        weight: put(linear.weight, weight),
        bias: linear.bias.map(|parameter| put(parameter, bias)),
    }
}

fn put_norm(
    mut norm: LayerNorm,
    scale: FloatTensor<Dispatch>,
    shift: FloatTensor<Dispatch>,
) -> LayerNorm {
    norm.gamma = put(norm.gamma, scale);
    norm.beta = norm.beta.map(|parameter| put(parameter, shift));
    norm
}

/// What is done for a part of the encoder, and for its gradients.
#[backend_extension(Cube, Fusion)]
pub(crate) trait EncoderOps: Backend {
    /// See [`Embedded::forward`].
    #[fusion(meta = |_weights, work| TensorSpec::new(work.frame.input().into(), DType::F32))]
    fn embeddings_forward(
        #[extension_type] weights: EmbeddingWeights<Self>,
        work: Embedded,
    ) -> FloatTensor<Self>;

    /// See [`Embedded::back`].
    #[fusion(meta = |slopes, work| TensorSpec::new([work.frame.places.length].into(), slopes.dtype))]
    fn embeddings_back(slopes: FloatTensor<Self>, work: Embedded) -> FloatTensor<Self>;

    /// See [`moved_embeddings`].
    #[fusion(meta = |weights, _gradient, mean, square, _step| {
        (weights.clone(), mean.clone(), square.clone())
    })]
    fn embeddings_moved(
        #[extension_type] weights: EmbeddingWeights<Self>,
        gradient: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        square: FloatTensor<Self>,
        step: Step,
    ) -> (EmbeddingWeights<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// See [`Headed::forward`].
    #[fusion(meta = |pooled, _weights, work, _architecture| {
        TensorSpec::new([work.frame.layout.pairs].into(), pooled.dtype)
    })]
    fn head_forward(
        pooled: FloatTensor<Self>,
        #[extension_type] weights: HeadWeights<Self>,
        work: Headed,
        architecture: Architecture,
    ) -> FloatTensor<Self>;

    /// See [`Headed::back`].
    #[fusion(meta = |slopes, work, _architecture| (
        TensorSpec::new(work.frame.output().into(), slopes.dtype),
        TensorSpec::new([work.frame.places.length].into(), slopes.dtype),
    ))]
    fn head_back(
        slopes: FloatTensor<Self>,
        work: Headed,
        architecture: Architecture,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`moved_head`].
    #[fusion(meta = |weights, _gradient, mean, square, _step| {
        (weights.clone(), mean.clone(), square.clone())
    })]
    fn head_moved(
        #[extension_type] weights: HeadWeights<Self>,
        gradient: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        square: FloatTensor<Self>,
        step: Step,
    ) -> (HeadWeights<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// See [`squares()`].
    #[fusion(dtype = into, shape = into)]
    fn squares(
        values: FloatTensor<Self>,
        into: FloatTensor<Self>,
        place: usize,
    ) -> FloatTensor<Self>;

    /// See [`Layered::forward`].
    #[fusion(meta = |hidden, _weights, work| TensorSpec::new(work.frame.output().into(), hidden.dtype))]
    fn layer_forward(
        hidden: FloatTensor<Self>,
        #[extension_type] weights: LayerWeights<Self>,
        work: Layered,
    ) -> FloatTensor<Self>;

    /// See [`Layered::back`].
    #[fusion(meta = |slopes, work| (
        TensorSpec::new(work.frame.input().into(), slopes.dtype),
        TensorSpec::new([work.frame.places.length].into(), slopes.dtype),
    ))]
    fn layer_back(
        slopes: FloatTensor<Self>,
        work: Layered,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`moved_layer`].
    #[fusion(meta = |weights, _gradient, mean, square, _step| {
        (weights.clone(), mean.clone(), square.clone())
    })]
    fn layer_moved(
        #[extension_type] weights: LayerWeights<Self>,
        gradient: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        square: FloatTensor<Self>,
        step: Step,
    ) -> (LayerWeights<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

impl EncoderOps for CubeBackend {
    fn embeddings_forward(weights: EmbeddingWeights<Self>, work: Embedded) -> FloatTensor<Self> {
        let (output, tape) = embeddings::forward(weights, &work.frame);
        *work.tape() = Some(tape);
        output
    }

    fn embeddings_back(slopes: FloatTensor<Self>, work: Embedded) -> FloatTensor<Self> {
        embeddings::back(slopes, &work.take(), &work.frame)
    }

    fn embeddings_moved(
        weights: EmbeddingWeights<Self>,
        gradient: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        square: FloatTensor<Self>,
        step: Step,
    ) -> (EmbeddingWeights<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let moments = step::Moments { mean, square };
        let (weights, moments) = step::moved(weights.in_order(), gradient, moments, &step);
        (
            EmbeddingWeights::of_order(weights),
            moments.mean,
            moments.square,
        )
    }

    fn head_forward(
        pooled: FloatTensor<Self>,
        weights: HeadWeights<Self>,
        work: Headed,
        architecture: Architecture,
    ) -> FloatTensor<Self> {
        let (logits, tape) = head::forward(pooled, weights, &work.frame, architecture);
        *work.tape() = Some(tape);
        logits
    }

    fn head_back(
        slopes: FloatTensor<Self>,
        work: Headed,
        architecture: Architecture,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        head::back(slopes, &work.take(), &work.frame, architecture)
    }

    fn head_moved(
        weights: HeadWeights<Self>,
        gradient: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        square: FloatTensor<Self>,
        step: Step,
    ) -> (HeadWeights<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let moments = step::Moments { mean, square };
        let (weights, moments) = step::moved(weights.in_order(), gradient, moments, &step);
        let weights = HeadWeights::of_order(weights);
        (weights, moments.mean, moments.square)
    }

    fn squares(
        values: FloatTensor<Self>,
        into: FloatTensor<Self>,
        place: usize,
    ) -> FloatTensor<Self> {
        step::squares(values, into, place)
    }

    fn layer_forward(
        hidden: FloatTensor<Self>,
        weights: LayerWeights<Self>,
        work: Layered,
    ) -> FloatTensor<Self> {
        let (output, tape) = layer::forward(hidden, weights, &work.frame);
        *work.tape() = Some(tape);
        output
    }

    fn layer_back(
        slopes: FloatTensor<Self>,
        work: Layered,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        layer::back(slopes, &work.take(), &work.frame)
    }

    fn layer_moved(
        weights: LayerWeights<Self>,
        gradient: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        square: FloatTensor<Self>,
        step: Step,
    ) -> (LayerWeights<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let moments = step::Moments { mean, square };
        let (weights, moments) = step::moved(weights.in_order(), gradient, moments, &step);
        (
            LayerWeights::of_order(weights),
            moments.mean,
            moments.square,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::{env, panic, process, thread};

    use super::*;
    use crate::trial::{LENGTHS, compare, config};
    use crate::{Batch, CrossEncoder, Device, DeviceChoice, Encoded, Precision, choose};

    /// What `RETORT_TEST_GPU` names, wgpu's unless given; none where there is none and none is required.
    fn gpu() -> Option<Device> {
        crate::configure(None, Precision::F32);
        let choice = env::var("RETORT_TEST_GPU").map_or(Ok(DeviceChoice::Wgpu), |it| it.parse());
        match choose(choice.unwrap()) {
            Ok((device, _)) => {
                // wgpu's, which dies now and then, would leave the test waiting.
                let report = panic::take_hook();
                panic::set_hook(Box::new(move |panic| {
                    report(panic);
                    if thread::current().name().is_none() {
                        process::abort();
                    }
                }));
                Some(device)
            }
            Err(error) => {
                assert!(env::var_os("RETORT_REQUIRE_GPU").is_none(), "{error}");
                None
            }
        }
    }

    /// A width of heads that four does not divide, gaps between parameters; pairs without padding and with it.
    #[test]
    fn layers_of_any_width_are_the_graph_s_of_the_cpu_on_a_gpu() {
        let Some(device) = gpu() else { return };
        let config = ModelConfig {
            hidden_size: 20,
            embedding_size: 20,
            intermediate_size: 28,
            ..config()
        };
        let unpadded: fn(&CrossEncoder, &[&Encoded]) -> Batch = CrossEncoder::batch;
        let padded = |model: &CrossEncoder, inputs: &[&Encoded]| {
            Batch::new(inputs, model.config(), &model.device())
        };
        for batch in [unpadded, padded] {
            let trial = compare(&device, &config, &LENGTHS, batch).unwrap();
            println!("{trial:?}");
            assert!(
                trial.of_logits < 1e-5 && trial.of_gradients < 1e-5,
                "{trial:?}"
            );
        }
    }

    /// More tokens than a tile of attention has, and than are in shared memory at once. In 32 bits, heads whose
    /// keys' and values' slopes are found together and one after the other; in 16, heads of all widths that
    /// tensor cores take, and of one that they do not.
    #[test]
    fn pairs_of_any_length_are_the_graph_s_of_the_cpu_on_a_gpu() {
        let Some(device) = gpu() else { return };
        let lengths = [130, 65, 64, 33, 17, 1];
        let is_cuda = crate::device::is_cuda(&device);
        for (precision, most, depths) in [
            (Precision::F32, 1e-5, &[32, 64][..]),
            (Precision::Bf16, 2e-2, &[16, 32, 48, 64, 80]),
            (Precision::F16, 4e-3, &[32, 64]),
        ] {
            if precision != Precision::F32 && !is_cuda {
                println!("only CUDA's tensor cores are asked");
                continue;
            }
            for depth in depths {
                if !is_cuda && *depth != 64 {
                    println!("compiled on the CPU, kernels take their time");
                    continue;
                }
                let config = ModelConfig {
                    precision,
                    hidden_size: 2 * depth,
                    embedding_size: 2 * depth,
                    max_position_embeddings: 160,
                    ..config()
                };
                let trial = compare(&device, &config, &lengths, CrossEncoder::batch).unwrap();
                println!("{precision}, heads of {depth}: {trial:?}");
                assert!(
                    trial.of_logits < most && trial.of_gradients < most,
                    "{precision}, heads of {depth}: {trial:?}"
                );
            }
        }
    }

    /// As many rows as Burn's tuner fails with in 16 bits on GPUs whose hardware copies tiles: four times the
    /// columns, which are more than 32.
    #[test]
    fn products_of_16_bits_of_any_height_are_near_those_of_the_cpu_on_a_gpu() {
        let Some(device) = gpu() else { return };
        if !crate::device::is_cuda(&device) {
            println!("only CUDA's tuner does");
            return;
        }
        for precision in [Precision::Bf16, Precision::F16] {
            let config = ModelConfig {
                precision,
                ..config()
            };
            let trial =
                compare(&device, &config, &LENGTHS.repeat(24), CrossEncoder::batch).unwrap();
            println!("{precision}: {trial:?}");
            let most = if precision == Precision::Bf16 {
                1e-2
            } else {
                4e-3
            };
            assert!(
                trial.of_logits < most && trial.of_gradients < most,
                "{precision}: {trial:?}"
            );
        }
    }
}
