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
mod places;
mod products;
mod step;
mod tensor_cores;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeBackend;

use crate::architecture::Architecture;
use crate::config::ModelConfig;
use crate::cross_encoder::Batch;
use crate::update::{Adam, Moments};

pub(crate) use places::Places;

use layout::Layout;
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
    /// Of its parameters, which are one vector.
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
    ///
    /// # Shapes
    /// - weights: as the places have them
    pub(crate) fn forward(
        config: &ModelConfig,
        weights: Tensor<1>,
        places: &Places,
        batch: &Batch,
        goes_back: bool,
    ) -> (Tensor<2>, Self) {
        let width = config.embedding_size;
        let tables = if goes_back { places::SCALE } else { 0 };
        let tables = &places.ranges[..tables];
        let heads = config.num_attention_heads;
        let work = Self::new(Frame {
            layout: Arc::new(Layout::new(batch, heads, tables, width)),
            is_last: false,
            width,
            inner: width,
            places: places.clone(),
            epsilon: epsilon(config),
            operand: DType::F32,
        });
        let output = Dispatch::embeddings_forward(weights.into_dispatch(), work.clone());
        (Tensor::from_dispatch(output), work)
    }

    /// Those at its parameters, each in its place, from the slopes at what [`Embedded::forward`] gave.
    pub(crate) fn back(self, slopes: Tensor<2>) -> Tensor<1> {
        Tensor::from_dispatch(Dispatch::embeddings_back(slopes.into_dispatch(), self))
    }
}

impl Layered {
    /// The output of this layer: of the last one, the first token of each pair alone, `[R, D]`.
    ///
    /// # Shapes
    /// - weights: as the places have them
    /// - hidden: `[N, D]`
    pub(crate) fn forward(
        config: &ModelConfig,
        embedded: &Embedded,
        weights: Tensor<1>,
        places: &Places,
        is_last: bool,
        hidden: Tensor<2>,
    ) -> (Tensor<2>, Self) {
        let work = Self::new(Frame {
            layout: Arc::clone(&embedded.frame.layout),
            is_last,
            width: config.hidden_size,
            inner: config.intermediate_size,
            places: places.clone(),
            epsilon: epsilon(config),
            operand: config.precision.operands().map_or(DType::F32, DType::from),
        });
        let hidden = hidden.into_dispatch();
        let output = Dispatch::layer_forward(hidden, weights.into_dispatch(), work.clone());
        (Tensor::from_dispatch(output), work)
    }

    /// The slopes at the layer's input, `[N, D]`, from those at its output, `[R, D]`, and those at its
    /// parameters, each in its place.
    pub(crate) fn back(self, slopes: Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        let (of_input, of_parameters) = Dispatch::layer_back(slopes.into_dispatch(), self);
        let of_parameters = Tensor::from_dispatch(of_parameters);
        (Tensor::from_dispatch(of_input), of_parameters)
    }
}

impl Headed {
    /// The logits, `[B]`, of what the head reads, `[B, D]`.
    ///
    /// # Shapes
    /// - weights: as the places have them
    pub(crate) fn forward(
        config: &ModelConfig,
        embedded: &Embedded,
        weights: Tensor<1>,
        places: &Places,
        pooled: Tensor<2>,
    ) -> (Tensor<1>, Self) {
        let work = Self::new(Frame {
            layout: Arc::clone(&embedded.frame.layout),
            is_last: true,
            width: config.hidden_size,
            inner: config.hidden_size,
            places: places.clone(),
            epsilon: epsilon(config),
            operand: DType::F32,
        });
        let (pooled, weights) = (pooled.into_dispatch(), weights.into_dispatch());
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
}

#[expect(clippy::cast_possible_truncation, reason = "computed with in 32 bits")]
fn epsilon(config: &ModelConfig) -> f32 {
    config.layer_norm_eps as f32
}

/// Parameters of these places, and their moments, after a step of AdamW.
pub(crate) fn moved(
    weights: Tensor<1>,
    places: &Places,
    gradient: Tensor<1>,
    clip: Tensor<1>,
    moments: Moments,
    adam: Adam,
) -> (Tensor<1>, Moments) {
    let Moments { mean, square } = moments;
    let all = [weights, gradient, clip, mean, square].map(Tensor::into_dispatch);
    let [weights, gradient, clip, mean, square] = all;
    let step = Step {
        decaying: places.vectors,
        adam,
    };
    let (weights, mean, square) = Dispatch::moved(weights, gradient, clip, mean, square, step);
    let moments = Moments {
        mean: Tensor::from_dispatch(mean),
        square: Tensor::from_dispatch(square),
    };
    (Tensor::from_dispatch(weights), moments)
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

/// What gradients are multiplied with, and the norm of the loss's own: `[2]`.
pub(crate) fn clip(squares: Tensor<1>, most: f32, scale: f32) -> Tensor<1> {
    Tensor::from_dispatch(Dispatch::clip(squares.into_dispatch(), most, scale))
}

/// What is done for a part of the encoder, and for its gradients.
#[backend_extension(Cube, Fusion)]
pub(crate) trait EncoderOps: Backend {
    /// See [`Embedded::forward`].
    #[fusion(meta = |weights, work| TensorSpec::new(work.frame.input().into(), weights.dtype))]
    fn embeddings_forward(weights: FloatTensor<Self>, work: Embedded) -> FloatTensor<Self>;

    /// See [`Embedded::back`].
    #[fusion(meta = |slopes, work| TensorSpec::new([work.frame.places.length].into(), slopes.dtype))]
    fn embeddings_back(slopes: FloatTensor<Self>, work: Embedded) -> FloatTensor<Self>;

    /// See [`Headed::forward`].
    #[fusion(meta = |pooled, _weights, work, _architecture| {
        TensorSpec::new([work.frame.layout.pairs].into(), pooled.dtype)
    })]
    fn head_forward(
        pooled: FloatTensor<Self>,
        weights: FloatTensor<Self>,
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

    /// See [`Layered::forward`].
    #[fusion(meta = |hidden, _weights, work| TensorSpec::new(work.frame.output().into(), hidden.dtype))]
    fn layer_forward(
        hidden: FloatTensor<Self>,
        weights: FloatTensor<Self>,
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

    /// See [`moved()`].
    #[fusion(meta = |weights, _gradient, _clip, mean, square, _step| {
        (weights.clone(), mean.clone(), square.clone())
    })]
    fn moved(
        weights: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        clip: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        square: FloatTensor<Self>,
        step: Step,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// See [`clip()`].
    #[fusion(meta = |squares, _most, _scale| TensorSpec::new([2].into(), squares.dtype))]
    fn clip(squares: FloatTensor<Self>, most: f32, scale: f32) -> FloatTensor<Self>;

    /// See [`squares()`].
    #[fusion(dtype = into, shape = into)]
    fn squares(
        values: FloatTensor<Self>,
        into: FloatTensor<Self>,
        place: usize,
    ) -> FloatTensor<Self>;
}

impl EncoderOps for CubeBackend {
    fn embeddings_forward(weights: FloatTensor<Self>, work: Embedded) -> FloatTensor<Self> {
        let (output, tape) = embeddings::forward(weights, &work.frame);
        *work.tape() = Some(tape);
        output
    }

    fn embeddings_back(slopes: FloatTensor<Self>, work: Embedded) -> FloatTensor<Self> {
        embeddings::back(slopes, &work.take(), &work.frame)
    }

    fn head_forward(
        pooled: FloatTensor<Self>,
        weights: FloatTensor<Self>,
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

    fn layer_forward(
        hidden: FloatTensor<Self>,
        weights: FloatTensor<Self>,
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

    fn moved(
        weights: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        clip: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        square: FloatTensor<Self>,
        step: Step,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        step::moved(weights, gradient, clip, [mean, square], &step)
    }

    fn clip(squares: FloatTensor<Self>, most: f32, scale: f32) -> FloatTensor<Self> {
        step::clip(squares, most, scale)
    }

    fn squares(
        values: FloatTensor<Self>,
        into: FloatTensor<Self>,
        place: usize,
    ) -> FloatTensor<Self> {
        step::squares(values, into, place)
    }
}

#[cfg(test)]
mod tests {
    use std::{env, panic, process, thread};

    use super::*;
    use crate::trial::{LENGTHS, compare, config};
    use crate::{Batch, Device, DeviceChoice, Encoded, Precision, Student, choose};

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
        let unpadded: fn(&Student, &[&Encoded]) -> Batch = Student::batch;
        let padded = |student: &Student, inputs: &[&Encoded]| {
            Batch::new(inputs, student.config(), &student.device())
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
                let trial = compare(&device, &config, &lengths, Student::batch).unwrap();
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
            let trial = compare(&device, &config, &LENGTHS.repeat(24), Student::batch).unwrap();
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
