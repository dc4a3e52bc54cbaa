//! The embeddings, kernel by kernel.
//!
//! Shapes: `N` tokens of a batch, `E` width of the embeddings.

use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::Frame;
use super::launch::{Goal, Gpu, Normed};
use super::places::{SCALE, SHIFT, Weights};

/// What the way back through the embeddings takes.
pub(crate) struct Tape {
    normed: Normed,
    /// `[E]`
    scale: CubeTensor,
}

/// The embeddings of each token, added and normalised, `[N, E]`, and what the way back takes.
pub(super) fn forward(weights: CubeTensor, frame: &Frame) -> (CubeTensor, Tape) {
    let weights = Weights::new(weights, frame);
    let (output, normed) = Gpu::new(weights.all(), frame).embed(&weights);
    let scale = weights.at(SCALE);
    (output, Tape { normed, scale })
}

/// The slopes at the parameters.
pub(super) fn back(slopes: CubeTensor, tape: &Tape, frame: &Frame) -> CubeTensor {
    let slopes = into_contiguous(slopes);
    let gpu = Gpu::new(&slopes, frame);
    let into = Goal::new(&gpu, frame.layout.rows, true);
    let Tape { normed, scale } = tape;
    let (of_sums, _) = gpu.norm_back(&slopes, None, normed, scale, &into, &[SCALE, SHIFT]);
    into.tables(&of_sums);
    into.summed()
}
