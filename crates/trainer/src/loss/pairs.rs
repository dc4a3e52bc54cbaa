//! Losses that compare two documents of a query: a mean over a group's pairs that the teacher tells
//! apart (`tᵢ > tⱼ`), then over the groups that have such a pair. A constant added to the scores of
//! a query changes none of them.

use std::f64::consts::LN_2;

use burn::tensor::Tensor;
use burn::tensor::activation::log_sigmoid;

use super::judged::{List, companions, pairs};
use super::{Judged, differences, matrix};

/// Margin-MSE (Hofstätter et al., 2020, arXiv 2010.02666): the mean of `((sᵢ − sⱼ) − (tᵢ − tⱼ))²`.
///
/// # Shapes
/// - scores: `[N]`
/// - output: `[1]`
pub fn margin_mse(scores: Tensor<1>, judged: &Judged) -> Tensor<1> {
    let (device, lists, targets) = (scores.device(), judged.lists(), judged.targets());
    let weights = pairs(&lists).map(|pair| (pair.above, pair.below, pair.weight));
    let weights = matrix(targets.len(), 0.0, weights, &device);
    let margins = pairs(&lists).map(|pair| {
        let margin = targets[pair.above].logit - targets[pair.below].logit;
        (pair.above, pair.below, margin)
    });
    let margins = matrix(targets.len(), 0.0, margins, &device);
    ((differences(scores) - margins).square() * weights).sum()
}

/// RankNet (Burges et al., 2005, "Learning to rank using gradient descent"): the mean of
/// `log(1 + exp(sⱼ − sᵢ))`. Of the teacher it reads the order alone.
///
/// # Shapes
/// - scores: `[N]`
/// - output: `[1]`
pub fn ranknet(scores: Tensor<1>, judged: &Judged) -> Tensor<1> {
    let (device, lists) = (scores.device(), judged.lists());
    let weights = pairs(&lists).map(|pair| (pair.above, pair.below, pair.weight));
    let weights = matrix(judged.targets().len(), 0.0, weights, &device);
    (log_sigmoid(differences(scores)) * weights).sum().neg()
}

/// How much more the places between two documents count than their own discounts (μ).
const DISTANCE_WEIGHT: f64 = 10.0;

/// LambdaLoss with the weights of NDCG-Loss2++ (Wang et al., 2018, "The LambdaLoss framework for
/// ranking metric optimization"): the mean of
/// `(μ |1/D(|rᵢ − rⱼ|) − 1/D(|rᵢ − rⱼ| + 1)| + |1/D(rᵢ) − 1/D(rⱼ)|) · |Gᵢ − Gⱼ| · log₂(1 + exp(sⱼ − sᵢ))`
/// with `r` the student's present ranks within the group, `D(r) = log₂(1 + r)`, `μ = 10`, and
/// `G = (2^g − 1)` over the DCG of the best order. Ranks and weights take no gradient. Of documents
/// with one score, the one that the teacher scores lower is ranked first.
///
/// # Shapes
/// - scores: `[N]`
/// - output: `[1]`
pub fn lambda_loss(scores: Tensor<1>, judged: &Judged) -> Tensor<1> {
    let (device, lists, targets) = (scores.device(), judged.lists(), judged.targets());
    let differences = differences(scores);
    let gains = gains(&lists, judged);
    let weights = pairs(&lists).map(|pair| {
        let change = (gains[pair.above] - gains[pair.below]).abs();
        (pair.above, pair.below, pair.weight * change)
    });
    let weights = matrix(targets.len(), 0.0, weights, &device);
    let ranks = ranks(differences.clone().detach(), &lists, judged);
    let other_ranks = ranks.clone().transpose();
    // From 1, for a document's distance from itself has no discount; such pairs weigh 0.
    let distances = (ranks.clone() - other_ranks.clone()).abs().clamp_min(1.0);
    let distant = (discount(distances.clone()) - discount(distances.add_scalar(1.0))).abs();
    let swapped = (discount(ranks) - discount(other_ranks)).abs();
    let weights = (distant.mul_scalar(DISTANCE_WEIGHT) + swapped) * weights;
    (log_sigmoid(differences) * weights)
        .sum()
        .mul_scalar(-1.0 / LN_2)
}

/// The gain of each document that is in a list, over the DCG of the list's best order.
fn gains(lists: &[List], judged: &Judged) -> Vec<f32> {
    let mut gains = vec![0.0; judged.targets().len()];
    for List { documents, .. } in lists {
        let gain = |place: &usize| f64::from(judged.targets()[*place].grade).exp2() - 1.0;
        let mut best: Vec<f64> = documents.iter().map(gain).collect();
        best.sort_by(|a, b| b.total_cmp(a));
        let best = best.iter().enumerate();
        let ideal: f64 = best
            .map(|(index, gain)| gain / (index as f64 + 2.0).log2())
            .sum();
        for place in documents {
            #[expect(clippy::cast_possible_truncation, reason = "at most 1")]
            let share = (gain(place) / ideal.max(f64::MIN_POSITIVE)) as f32;
            gains[*place] = share;
        }
    }
    gains
}

/// The rank of each document in its list, from 1.
///
/// # Shapes
/// - differences: `[N, N]`
/// - output: `[N, 1]`
fn ranks(differences: Tensor<2>, lists: &[List], judged: &Judged) -> Tensor<2> {
    let (device, targets) = (differences.device(), judged.targets());
    let all = companions(lists).map(|(i, j)| (i, j, 1.0));
    let all = matrix(targets.len(), 0.0, all, &device);
    let first_of_tied = companions(lists).map(|(i, j)| {
        let order = targets[j].logit.total_cmp(&targets[i].logit);
        (i, j, f32::from(order.then(j.cmp(&i)).is_lt()))
    });
    let first_of_tied = matrix(targets.len(), 0.0, first_of_tied, &device);
    let above = differences.clone().lower_elem(0.0).float() * all;
    let tied = differences.equal_elem(0.0).float() * first_of_tied;
    (above + tied).sum_dim(1).add_scalar(1.0)
}

/// `1 / log₂(1 + r)`.
fn discount(ranks: Tensor<2>) -> Tensor<2> {
    ranks.log1p().recip().mul_scalar(LN_2)
}
