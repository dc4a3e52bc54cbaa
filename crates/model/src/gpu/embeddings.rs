//! The embeddings, kernel by kernel.
//!
//! Shapes: `N` tokens of a batch, `E` width of the embeddings.

use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::launch::{Goal, Gpu, Normed};
use super::layout::{SCALE, SHIFT};
use super::{EmbeddingWeights, Frame};

/// What the way back through the embeddings takes.
pub(crate) struct Tape {
    normed: Normed,
    /// `[E]`
    scale: CubeTensor,
}

/// The embeddings of each token, added and normalised, `[N, E]`, and what the way back takes.
pub(super) fn forward(weights: EmbeddingWeights<CubeBackend>, frame: &Frame) -> (CubeTensor, Tape) {
    let weights = weights.contiguous();
    let (output, normed) = Gpu::new(&weights.words, frame).embed(&weights);
    let scale = weights.scale;
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
