//! Losses that take each document by itself.

use burn::tensor::Tensor;
use burn::tensor::activation::log_sigmoid;

use super::{Judged, Target, vector};

/// Point-wise mean squared error on logits (Ba and Caruana, 2014, arXiv 1312.6184): the mean over
/// documents of `(s − t)²`.
///
/// # Shapes
/// - scores: `[N]`
/// - output: `[1]`
pub fn mse(scores: Tensor<1>, judged: &Judged) -> Tensor<1> {
    let targets = judged.targets().iter().map(|target| target.logit);
    let targets = vector(targets.collect(), &scores.device());
    mean((scores - targets).square(), judged)
}

/// Binary cross-entropy with soft labels (Hinton et al., 2015, arXiv 1503.02531, for two classes):
/// the mean over documents of `−σ(t) log σ(s) − (1 − σ(t)) log σ(−s)`.
///
/// # Shapes
/// - scores: `[N]`
/// - output: `[1]`
pub fn bce(scores: Tensor<1>, judged: &Judged) -> Tensor<1> {
    let probability = |target: &Target| 1.0 / (1.0 + (-target.logit).exp());
    let probabilities = judged.targets().iter().map(probability).collect();
    let probabilities = vector(probabilities, &scores.device());
    // log σ(−s) = log σ(s) − s, so the cross-entropy is (1 − p)·s − log σ(s).
    let losses = probabilities.neg().add_scalar(1.0) * scores.clone() - log_sigmoid(scores);
    mean(losses, judged)
}

/// # Shapes
/// - losses: `[N]`
/// - output: `[1]`
fn mean(losses: Tensor<1>, judged: &Judged) -> Tensor<1> {
    let certainties = vector(judged.certainties(), &losses.device());
    (losses * certainties).sum().div_scalar(judged.total())
}
