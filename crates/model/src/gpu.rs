//! A layer of the encoder in training on a GPU, in few kernels: forward, and back by hand.
//!
//! Burn's operations on tensors would each be registered, looked at for what can be fused with it, and
//! started; here a layer is one operation there and one back, which start their kernels themselves.
//! Burn chooses those of products of matrices; all others are of [`kernels`].

mod kernels;
mod launch;
mod layer;
mod layout;
mod step;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, ExtensionType, backend_extension};
use burn::module::{Module, Param, ParamId};
use burn::nn::{LayerNorm, Linear};
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::config::ModelConfig;
use crate::post_norm::Layer;

pub(crate) use layout::Layout;

/// The widest hidden state whose sums fit into what any GPU shares in a cube, 16 KiB.
pub(crate) const WIDEST: usize = 1280;

/// A layer's work on a batch, which forward leaves for the way back.
#[derive(Clone)]
pub(crate) struct Work {
    layout: Arc<Layout>,
    is_last: bool,
    /// Of the parameters' slopes, one after the other.
    slopes: layout::Slopes,
    epsilon: f32,
    operand: DType,
    /// What forward leaves is there when the way back begins: its slopes hang on what came of forward, and
    /// Burn keeps the order of operations of which one takes what the other gives.
    tape: Arc<Mutex<Option<layer::Tape>>>,
}

impl Work {
    /// The output of this layer: of the last one, the first token of each pair alone, `[R, D]`.
    ///
    /// # Shapes
    /// - hidden: `[N, D]`
    /// - mask: `[N]`, 1 for a token and 0 for padding
    pub(crate) fn forward(
        config: &ModelConfig,
        layout: &Arc<Layout>,
        layer: &Layer,
        is_last: bool,
        hidden: Tensor<2>,
        mask: Tensor<1>,
    ) -> (Tensor<2>, Self) {
        let work = Self {
            layout: Arc::clone(layout),
            is_last,
            slopes: layout::Slopes::new(config.hidden_size, config.intermediate_size),
            #[expect(clippy::cast_possible_truncation, reason = "computed with in 32 bits")]
            epsilon: config.layer_norm_eps as f32,
            operand: config.precision.operands().map_or(DType::F32, DType::from),
            tape: Arc::default(),
        };
        let output = Dispatch::layer_forward(
            hidden.into_dispatch(),
            mask.into_dispatch(),
            weights(layer),
            work.clone(),
        );
        (Tensor::from_dispatch(output), work)
    }

    /// The slopes at the layer's input, `[N, D]`, from those at its output, `[R, D]`, and those at its
    /// parameters, each in its place.
    pub(crate) fn back(self, slopes: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        let (of_input, of_parameters) = Dispatch::layer_back(slopes.into_dispatch(), self);
        let of_parameters = Tensor::from_dispatch(of_parameters);
        (Tensor::from_dispatch(of_input), of_parameters)
    }

    fn tape(&self) -> MutexGuard<'_, Option<layer::Tape>> {
        self.tape.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the slopes of each of the layer's parameters lie; layers have all of them.
    pub(crate) fn places(
        &self,
        layer: &Layer,
    ) -> impl Iterator<Item = (ParamId, std::ops::Range<usize>)> {
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
        let ids: Vec<Option<ParamId>> = ids.collect();
        let places = self.slopes.ranges().into_iter();
        ids.into_iter()
            .zip(places)
            .filter_map(|(id, range)| Some((id?, range)))
    }
}

/// A layer's parameters, in the order of [`layout::Slopes`].
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

    fn contiguous(self) -> Self {
        Self::of_order(self.in_order().map(into_contiguous))
    }
}

fn weights(layer: &Layer) -> LayerWeights<Dispatch> {
    fn dispatched<const N: usize>(parameter: &Param<Tensor<N>>) -> FloatTensor<Dispatch> {
        parameter.val().into_dispatch()
    }
    let bias = |linear: &Linear| {
        let [_, width] = linear.weight.dims();
        let none = || Tensor::<1>::zeros([width], &linear.weight.device()).into_dispatch();
        linear.bias.as_ref().map_or_else(none, dispatched)
    };
    let shift = |norm: &LayerNorm| match &norm.beta {
        Some(beta) => dispatched(beta),
        None => norm.gamma.val().zeros_like().into_dispatch(),
    };
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

/// A layer whose parameters went a step that way, in one tensor as [`Work::back`] gives their slopes: of
/// matrices `kept` times themselves is left, of others all, less `share` times the direction.
pub(crate) fn moved(layer: Layer, direction: Tensor<1>, kept: f64, share: f64) -> Layer {
    fn put<const N: usize>(
        parameter: Param<Tensor<N>>,
        value: FloatTensor<Dispatch>,
    ) -> Param<Tensor<N>> {
        let id = parameter.id;
        let device = parameter.lazy_device();
        let value = Tensor::from_inner(Tensor::from_dispatch(value)).to_device(&device);
        parameter.transform_for_load(value, id)
    }
    let linear = |linear: Linear, weight, bias| Linear {
        weight: put(linear.weight, weight),
        bias: linear.bias.map(|parameter| put(parameter, bias)),
    };
    let norm = |norm: LayerNorm, scale, shift| {
        let mut norm = norm;
        norm.gamma = put(norm.gamma, scale);
        norm.beta = norm.beta.map(|parameter| put(parameter, shift));
        norm
    };
    let [_, inner] = layer.inner.weight.dims();
    let [width, _] = layer.query.weight.dims();
    #[expect(clippy::cast_possible_truncation, reason = "parameters have 32 bits")]
    let step = Step {
        slopes: layout::Slopes::new(width, inner),
        kept: kept as f32,
        share: share as f32,
    };
    let weights = weights(&layer.valid());
    let new = Dispatch::layer_moved(weights, direction.into_dispatch(), step);
    Layer {
        query: linear(layer.query, new.query, new.query_bias),
        key: linear(layer.key, new.key, new.key_bias),
        value: linear(layer.value, new.value, new.value_bias),
        attended: linear(layer.attended, new.attended, new.attended_bias),
        attended_norm: norm(layer.attended_norm, new.attended_scale, new.attended_shift),
        inner: linear(layer.inner, new.inner, new.inner_bias),
        outer: linear(layer.outer, new.outer, new.outer_bias),
        outer_norm: norm(layer.outer_norm, new.outer_scale, new.outer_shift),
    }
}

/// What a layer's parameters are moved by.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    slopes: layout::Slopes,
    kept: f32,
    share: f32,
}

/// What is done for a layer.
#[backend_extension(Cube, Fusion)]
pub(crate) trait LayerOps: Backend {
    /// See [`Work::forward`].
    #[fusion(meta = |hidden, _mask, _weights, work| TensorSpec::new(work.output().into(), hidden.dtype))]
    fn layer_forward(
        hidden: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        #[extension_type] weights: LayerWeights<Self>,
        work: Work,
    ) -> FloatTensor<Self>;

    /// See [`Work::back`].
    #[fusion(meta = |slopes, work| (
        TensorSpec::new(work.input().into(), slopes.dtype),
        TensorSpec::new([work.slopes.length()].into(), slopes.dtype),
    ))]
    fn layer_back(slopes: FloatTensor<Self>, work: Work) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`moved`].
    #[fusion(meta = |weights, _direction, _step| weights.clone())]
    fn layer_moved(
        #[extension_type] weights: LayerWeights<Self>,
        direction: FloatTensor<Self>,
        step: Step,
    ) -> LayerWeights<Self>;
}

impl LayerOps for CubeBackend {
    fn layer_forward(
        hidden: FloatTensor<Self>,
        mask: FloatTensor<Self>,
        weights: LayerWeights<Self>,
        work: Work,
    ) -> FloatTensor<Self> {
        let (output, tape) = layer::forward(hidden, mask, weights, &work);
        *work.tape() = Some(tape);
        output
    }

    fn layer_back(slopes: FloatTensor<Self>, work: Work) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let tape = work.tape().take();
        // Where forward failed, Burn does not come here; and where a panic is, its caller hears of it.
        let tape = tape.expect("a layer goes back once, and after it went forward");
        layer::back(slopes, tape, &work)
    }

    fn layer_moved(
        weights: LayerWeights<Self>,
        direction: FloatTensor<Self>,
        step: Step,
    ) -> LayerWeights<Self> {
        step::moved(weights, direction, step)
    }
}

#[cfg(test)]
mod tests {
    use std::{env, panic, process, thread};

    use super::*;
    use crate::trial::{compare, config};
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

    /// A width of heads that four does not divide, gaps between parameters; one block, of a length that
    /// GPUs pad to, and one a pair, of lengths that nothing divides.
    #[test]
    fn layers_of_any_width_are_the_graph_s_of_the_cpu_on_a_gpu() {
        let Some(device) = gpu() else { return };
        let config = ModelConfig {
            hidden_size: 20,
            embedding_size: 20,
            intermediate_size: 28,
            ..config()
        };
        let in_one: fn(&CrossEncoder, &[&Encoded]) -> Batch = CrossEncoder::batch;
        let apart = |model: &CrossEncoder, inputs: &[&Encoded]| {
            Batch::unpadded(inputs, model.config().pad_token_id, &model.device())
        };
        for batch in [in_one, apart] {
            let trial = compare(&device, &config, 1, batch).unwrap();
            println!("{trial:?}");
            assert!(
                trial.of_logits < 1e-5 && trial.of_gradients < 1e-5,
                "{trial:?}"
            );
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
            let trial = compare(&device, &config, 24, CrossEncoder::batch).unwrap();
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
