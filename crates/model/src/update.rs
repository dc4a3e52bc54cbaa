//! What a step of AdamW takes of a device, and gives.

use burn::tensor::Tensor;

use crate::bundle::Bundle;

/// A step of AdamW of a group's parameters.
pub struct Move {
    /// As [`Student::gradients`](crate::Student::gradients) gave it.
    pub gradient: Bundle,
    /// Before the step, in the places of the gradient.
    pub moments: Moments,
    /// How.
    pub adam: Adam,
}

/// Running means of gradients.
pub struct Moments {
    /// Of them.
    pub mean: Tensor<1>,
    /// Of their squares.
    pub square: Tensor<1>,
}

/// How gradients are clipped, and how long they are.
#[expect(clippy::large_enum_variant, reason = "there is one a step")]
pub enum Clip {
    /// They are multiplied with this, and the loss's own have that norm.
    Known {
        /// Where the norm is finite.
        factor: f64,
        /// Of the loss's own.
        norm: f64,
    },
    /// The same two, on the GPU that the gradients are on: `[2]`.
    There(Tensor<1>),
}

/// What AdamW computes with in a step.
#[derive(Debug, Clone)]
pub struct Adam {
    /// The share of the mean that is kept.
    pub beta1: f64,
    /// The share of the squares' mean that is kept.
    pub beta2: f64,
    /// The learning rate, over the mean's correction.
    pub rate: f64,
    /// What the squares' mean is divided by.
    pub square_correction: f64,
    /// Added to its root.
    pub epsilon: f64,
    /// What is left of matrices before; of all else, that is all.
    pub kept: f64,
}

impl Clip {
    /// Of gradients that are `scale` times as large as the loss's own and all in groups, which the GPU that
    /// they are on clips itself, so that nobody waits for their norm; none of others.
    #[must_use]
    pub fn there(gradients: &[Bundle], most: f64, scale: f64) -> Option<Self> {
        #[cfg(feature = "gpu")]
        {
            if gradients.iter().any(|bundle| bundle.group.is_none()) {
                return None;
            }
            let values = gradients.iter().map(|bundle| bundle.values.clone());
            let squares = squares(&values.collect::<Vec<_>>())?;
            #[expect(clippy::cast_possible_truncation, reason = "gradients have 32 bits")]
            let (most, scale) = (most as f32, scale as f32);
            Some(Self::There(crate::gpu::clip(squares, most, scale)))
        }
        #[cfg(not(feature = "gpu"))]
        {
            let _ = (gradients, most, scale);
            None
        }
    }
}

/// Sums of the squares of all numbers of vectors that are on one GPU; none of no vectors.
///
/// # Shapes
/// - output: `[S]`, which together are the sum
#[must_use]
pub fn squares(vectors: &[Tensor<1>]) -> Option<Tensor<1>> {
    #[cfg(feature = "gpu")]
    {
        crate::gpu::squares(vectors)
    }
    #[cfg(not(feature = "gpu"))]
    {
        let sums = vectors.iter().map(|one| one.clone().square().sum());
        (!vectors.is_empty()).then(|| Tensor::cat(sums.collect(), 0))
    }
}
