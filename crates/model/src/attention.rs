//! Attention as all layers have it, and dropout.
//!
//! Shapes: `B` pairs (or texts), `T` tokens of the longest, `R` of them computed, `D` hidden
//! width, `H` heads.

use burn::tensor::activation::softmax;
use burn::tensor::{Distribution, Tensor};

use crate::config::ModelConfig;

/// Added to the scores of what is not attended to. Finite, for -inf times 0 is NaN in a gradient;
/// far below any score, so exp gives 0.
pub(crate) const UNSEEN: f64 = -3e4;

/// # Shapes
/// - projected: `[B, T, D]`
/// - output: `[B, H, T, D / H]`
pub(crate) fn split(projected: Tensor<3>, heads: usize) -> Tensor<4> {
    let [pairs, tokens, width] = projected.dims();
    projected
        .reshape([pairs, tokens, heads, width / heads])
        .swap_dims(1, 2)
}

/// The values that each row attends to, those of all heads side by side.
///
/// # Shapes
/// - query: `[B, H, R, D / H]`, divided by the root of its last dimension
/// - key and value: `[B, H, T, D / H]`
/// - mask: `[B, 1, 1, T]` or `[B, 1, R, T]`, added to the scores
/// - output: `[B, R, D]`
pub(crate) fn attend(
    config: &ModelConfig,
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Tensor<4>,
) -> Tensor<3> {
    let [pairs, heads, rows, head_width] = query.dims();
    let scores = config.precision.matmul(query, key.transpose()) + mask;
    weigh(config, scores, value)
        .swap_dims(1, 2)
        .reshape([pairs, rows, heads * head_width])
}

/// The values, weighed by the softmax of the scores.
///
/// # Shapes
/// - scores: `[B, H, R, T]`
/// - value: `[B, H, T, D / H]`
/// - output: `[B, H, R, D / H]`
fn weigh(config: &ModelConfig, scores: Tensor<4>, value: Tensor<4>) -> Tensor<4> {
    if !scores.is_autodiff() {
        return softmax(scores, 3).matmul(value);
    }
    // Under autodiff, softmax is a chain of elementwise passes both ways, so the division moves
    // behind the product, where rows are D / H long and not T.
    let highest = scores.clone().detach().max_dim(3);
    let exponentials = (scores - highest).exp();
    let sum = exponentials.clone().sum_dim(3);
    let kept = dropout(exponentials, config.attention_probs_dropout_prob);
    config.precision.matmul(kept, value) / sum
}

/// In training, zeroes each element with `probability` and scales up the others. The mask takes no
/// gradient, so scaling the mask spares the backward pass what scaling the product would cost.
pub(crate) fn dropout<const N: usize>(input: Tensor<N>, probability: f64) -> Tensor<N> {
    if probability == 0.0 || !input.is_autodiff() {
        return input;
    }
    let keep = 1.0 - probability;
    let mask = input
        .random_like(Distribution::Bernoulli(keep))
        .div_scalar(keep);
    input * mask
}
