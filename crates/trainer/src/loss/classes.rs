//! Losses that read a logit a class: `N` examples, `C` classes, a mean over examples.

use burn::tensor::activation::{log_sigmoid, log_softmax};
use burn::tensor::{Int, Tensor};

use super::log_sum_exp;

/// Cross-entropy: the mean of `−log softmax(z)` of an example's class.
///
/// # Shapes
/// - logits: `[N, C]`
/// - classes: `[N]`, each from 0 to `C − 1`
/// - output: `[1]`
pub fn cross_entropy(logits: Tensor<2>, classes: Tensor<1, Int>) -> Tensor<1> {
    of_class(log_softmax(logits, 1), classes).mean().neg()
}

/// Cross-entropy with a distribution over classes (label distribution learning, Geng, 2016, arXiv
/// 1408.6027): the mean of `−Σ p log softmax(z)`.
///
/// # Shapes
/// - logits: `[N, C]`
/// - distributions: `[N, C]`, each row adding up to 1
/// - output: `[1]`
pub fn label_distribution(logits: Tensor<2>, distributions: Tensor<2>) -> Tensor<1> {
    (log_softmax(logits, 1) * distributions)
        .sum_dim(1)
        .mean()
        .neg()
}

/// Cross-entropy for classes that have an order, such as grades: one binary cross-entropy a
/// threshold, as Frank and Hall (2001, "A simple approach to ordinal classification") split the
/// problem. The mean of `−Σₖ P(≥ k) log Q(≥ k) + P(< k) log Q(< k)` over `k` from 1 to `C − 1`, with
/// `P` the given distribution and `Q` the softmax of the logits. The further from the class, the
/// more a mistake costs.
///
/// # Shapes
/// - logits: `[N, C]`
/// - distributions: `[N, C]`, each row adding up to 1
/// - output: `[1]`
pub fn ordinal(logits: Tensor<2>, distributions: Tensor<2>) -> Tensor<1> {
    let [examples, classes] = logits.dims();
    let log_q = log_softmax(logits, 1);
    let p_below = distributions.cumsum(1);
    let mut sum = Tensor::<2>::zeros([examples, 1], &log_q.device());
    for threshold in 1..classes {
        let log_below = log_sum_exp(log_q.clone().narrow(1, 0, threshold));
        let log_above = log_sum_exp(log_q.clone().narrow(1, threshold, classes - threshold));
        let below = p_below.clone().narrow(1, threshold - 1, 1);
        sum = sum - below.clone() * log_below - below.neg().add_scalar(1.0) * log_above;
    }
    sum.mean()
}

/// Direct preference optimisation (Rafailov et al., 2023, arXiv 2305.18290) with classes for replies:
/// the mean of `−log σ(β ((log π(w) − log π₀(w)) − (log π(l) − log π₀(l))))` with `w` the preferred
/// class, `l` the rejected one, `π` the softmax of the logits, and `π₀` that of the reference, which
/// should take no gradient.
///
/// # Shapes
/// - logits and reference: `[N, C]`
/// - preferred and rejected: `[N]`, each from 0 to `C − 1`
/// - output: `[1]`
pub fn preference(
    logits: Tensor<2>,
    reference: Tensor<2>,
    preferred: Tensor<1, Int>,
    rejected: Tensor<1, Int>,
    beta: f64,
) -> Tensor<1> {
    // What softmax divides by is the same for both classes, and cancels.
    let gains = logits - reference;
    let margins = of_class(gains.clone(), preferred) - of_class(gains, rejected);
    log_sigmoid(margins.mul_scalar(beta)).mean().neg()
}

/// One number of each row.
///
/// # Shapes
/// - rows: `[N, C]`
/// - classes: `[N]`
/// - output: `[N, 1]`
fn of_class(rows: Tensor<2>, classes: Tensor<1, Int>) -> Tensor<2> {
    rows.gather(1, classes.unsqueeze_dim(1))
}
