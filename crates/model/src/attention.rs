//! Attention as all layers have it, and dropout.
//!
//! Shapes: `N` tokens of a batch, `D` hidden width, `H` heads; of a block of the batch, `B` pairs (or
//! texts) of `T` tokens each, `R` of them computed.

use std::fmt;

use burn::tensor::activation::softmax;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Device, Distribution, FloatDType, Tensor, module};
use serde::{Deserialize, Serialize};

use crate::blocks::{Block, apart, together};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::parallel::is_cpu;

/// How training computes attention.
///
/// The results are the same but for rounding. Outside of training attention is decomposed, whatever
/// is chosen: Burn's fused kernels that only go forward round to 16 bits. BERT by hand on the CPU,
/// whose inputs lie without padding, has an attention of its own in the place of the decomposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attention {
    /// Scores, their softmax and its product with the values, one after the other; the way back
    /// keeps arrays of `[B, H, T, T]` of every layer.
    #[default]
    Decomposed,
    /// Burn's fused kernels there and back, between which one number is kept for each row of scores
    /// (Dao, 2023, arXiv 2307.08691). GPUs have them, and they have no dropout. A layer whose tokens
    /// see only those nearby stays decomposed.
    Fused,
}

impl Attention {
    const ALL: [Self; 2] = [Self::Decomposed, Self::Fused];

    /// Those that a device computes, where nothing is dropped.
    pub fn of(device: &Device) -> Vec<Self> {
        let computes = |one: &Self| one.check(device, 0.0).is_ok();
        Self::ALL.into_iter().filter(computes).collect()
    }

    /// Refuses a device that does not compute this, and a probability of dropping attention weights
    /// where they can't be dropped.
    ///
    /// # Errors
    /// With what to choose instead.
    pub fn check(self, device: &Device, dropout: f64) -> Result<()> {
        let hint = match self {
            Self::Fused if is_cpu(device) => {
                "the CPU has no such kernels: choose \"decomposed\", or a GPU"
            }
            Self::Fused if dropout > 0.0 => {
                "the kernels drop out nothing: set model.dropout = 0.0, or choose \"decomposed\""
            }
            _ => return Ok(()),
        };
        Err(Error::Attention {
            attention: self,
            hint,
        })
    }
}

impl fmt::Display for Attention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decomposed => "decomposed",
            Self::Fused => "fused",
        })
    }
}

/// Added to the scores of what is not attended to. Finite, for -inf times 0 is NaN in a gradient;
/// far below any score, so exp gives 0.
pub(crate) const UNSEEN: f64 = -3e4;

/// Matrix units take features by so many.
const TILE: usize = 8;

/// What each head has of each block.
///
/// # Shapes
/// - projected: `[N, D]`
/// - output: `[B, H, T, D / H]` of each block
pub(crate) fn heads_of(projected: &Tensor<2>, blocks: &[Block], heads: usize) -> Vec<Tensor<4>> {
    let blocks = apart(projected, blocks).into_iter();
    let split = |block: Tensor<3>| {
        let [pairs, tokens, width] = block.dims();
        block
            .reshape([pairs, tokens, heads, width / heads])
            .swap_dims(1, 2)
    };
    blocks.map(split).collect()
}

/// The values that each row attends to in its block, those of all heads side by side.
///
/// # Shapes
/// Of each block,
/// - queries: `[B, H, R, D / H]`, divided by the root of its last dimension
/// - keys and values: `[B, H, T, D / H]`
/// - masks: `[B, 1, 1, T]` or `[B, 1, R, T]`, added to the scores
///
/// and of all together,
/// - output: `[B R, D]`
pub(crate) fn attend(
    config: &ModelConfig,
    queries: Vec<Tensor<4>>,
    keys: Vec<Tensor<4>>,
    values: Vec<Tensor<4>>,
    masks: &[Tensor<4>],
) -> Tensor<2> {
    let blocks = queries.into_iter().zip(keys).zip(values).zip(masks);
    let attended = |(((query, key), value), mask): (_, &Tensor<4>)| {
        let of_heads = attend_in_block(config, query, key, value, mask.clone());
        let [pairs, heads, rows, head_width] = of_heads.dims();
        of_heads
            .swap_dims(1, 2)
            .reshape([pairs, rows, heads * head_width])
    };
    together(blocks.map(attended).collect())
}

/// # Shapes
/// - query: `[B, H, R, D / H]`
/// - key and value: `[B, H, T, D / H]`
/// - mask: `[B, 1, 1, T]` or `[B, 1, R, T]`
/// - output: `[B, H, R, D / H]`
fn attend_in_block(
    config: &ModelConfig,
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Tensor<4>,
) -> Tensor<4> {
    let [_, _, rows_of_mask, _] = mask.dims();
    let is_fused = config.attention == Attention::Fused && query.is_autodiff();
    if is_fused && rows_of_mask == 1 {
        return fused(config, query, key, value, mask);
    }
    let scores = config.precision.matmul(query, key.transpose()) + mask;
    weigh(config, scores, value)
}

/// The same in Burn's fused kernels. On the way back they take no mask, so it goes in as features:
/// every query has ones there, and a key its share of what is added to its scores.
///
/// # Shapes
/// - query: `[B, H, R, D / H]`
/// - key and value: `[B, H, T, D / H]`
/// - mask: `[B, 1, 1, T]`
/// - output: `[B, H, R, D / H]`
fn fused(
    config: &ModelConfig,
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    mask: Tensor<4>,
) -> Tensor<4> {
    let [pairs, heads, rows, head_width] = query.dims();
    let [_, _, tokens, _] = key.dims();
    let more = TILE - head_width % TILE;
    let ones = Tensor::ones([pairs, heads, rows, more], &query.device());
    let shares = mask.swap_dims(2, 3).div_scalar(more as f64);
    let shares = shares.expand([pairs, heads, tokens, more]);
    let operand = |tensor: Tensor<4>| config.precision.operand(tensor);
    let query = operand(Tensor::cat(vec![query, ones], 3));
    let key = operand(Tensor::cat(vec![key, shares], 3));
    let options = AttentionModuleOptions {
        // The queries are scaled already.
        scale: Some(1.0),
        ..Default::default()
    };
    module::attention(query, key, operand(value), None, None, options).cast(FloatDType::F32)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_or_the_kernels_lack_is_refused() {
        let device = Device::flex();
        assert_eq!(Attention::of(&device.autodiff()), [Attention::Decomposed]);
        Attention::Decomposed.check(&Device::flex(), 0.1).unwrap();
        let error = Attention::Fused.check(&Device::flex(), 0.0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "attention can't be fused here: the CPU has no such kernels: choose \"decomposed\", or \
             a GPU"
        );
    }
}
