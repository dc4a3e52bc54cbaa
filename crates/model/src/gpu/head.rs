//! The head, kernel by kernel: a dense layer, its activation, the classifier of one label.
//!
//! Shapes: `B` pairs of a batch, `D` hidden width.

use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::Frame;
use super::kernels::Activation;
use super::launch::{Goal, Gpu, transposed};
use super::places::{DENSE, Weights};
use crate::architecture::Architecture;

/// What the way back through the head takes.
pub(crate) struct Tape {
    weights: Weights,
    /// `[B, D]`
    pooled: CubeTensor,
    /// Of the dense layer, without its bias.
    product: CubeTensor,
}

/// The logits, `[B]`, and what the way back takes.
pub(super) fn forward(
    pooled: CubeTensor,
    weights: CubeTensor,
    frame: &Frame,
    architecture: Architecture,
) -> (CubeTensor, Tape) {
    let weights = Weights::new(weights, frame);
    let pooled = into_contiguous(pooled);
    let gpu = Gpu::new(&pooled, frame);
    let product = gpu.product(&pooled, &weights.at(DENSE));
    let logits = gpu.classify(&product, &weights, activation(architecture));
    let tape = Tape {
        weights,
        pooled,
        product,
    };
    (logits, tape)
}

/// The slopes at what the head reads, `[B, D]`, and those at its parameters.
pub(super) fn back(
    slopes: CubeTensor,
    tape: &Tape,
    frame: &Frame,
    architecture: Architecture,
) -> (CubeTensor, CubeTensor) {
    let slopes = into_contiguous(slopes);
    let gpu = Gpu::new(&slopes, frame);
    let into = Goal::new(&gpu, frame.layout.pairs, false);
    let Tape {
        weights,
        pooled,
        product,
    } = tape;
    let activation = activation(architecture);
    let of_product = gpu.classify_back(&slopes, product, weights, activation, &into);
    into.products(&[(&[DENSE], pooled, &of_product)]);
    let of_pooled = gpu.product(&of_product, &transposed(weights.at(DENSE)));
    (of_pooled, into.summed())
}

fn activation(architecture: Architecture) -> Activation {
    match architecture {
        Architecture::Bert | Architecture::Roberta | Architecture::XlmRoberta => Activation::Tanh,
        Architecture::Electra | Architecture::ModernBert => Activation::Gelu,
        Architecture::DistilBert => Activation::Relu,
    }
}
