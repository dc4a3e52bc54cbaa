//! Losses that take the documents of a query as a list: a mean over the groups in which the teacher
//! tells documents apart. A constant added to the scores of a query changes none of them.
//!
//! `p` and `q` are the softmax, over the documents of a group, of the teacher's scores and of the
//! student's, both divided by the temperature `T`.

use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;

use super::judged::{List, companions};
use super::{Judged, differences, log_sum_exp, matrix, vector};

/// ListNet (Cao et al., 2007, "Learning to rank: from pairwise approach to listwise approach"),
/// its top-one form: the mean of `−Σ p log q`.
///
/// # Shapes
/// - scores: `[N]`
/// - output: `[1]`
pub fn listnet(scores: Tensor<1>, judged: &Judged, temperature: f64) -> Tensor<1> {
    let lists = judged.lists();
    let mut shares = vec![0.0; judged.targets().len()];
    for list in &lists {
        for (place, log_p) in log_softmax(list, judged, temperature) {
            shares[place] = list.weight * log_p.exp();
        }
    }
    let shares = vector(shares, &scores.device());
    (surprises(scores, &lists, temperature) * shares).sum()
}

/// Kullback-Leibler divergence with a temperature (Hinton et al., 2015, arXiv 1503.02531): the mean
/// of `T² Σ p log(p / q)`. The square keeps the size of gradients as `T` changes.
///
/// # Shapes
/// - scores: `[N]`
/// - output: `[1]`
pub fn kl(scores: Tensor<1>, judged: &Judged, temperature: f64) -> Tensor<1> {
    let (device, lists, count) = (scores.device(), judged.lists(), judged.targets().len());
    let (mut shares, mut logs) = (vec![0.0; count], vec![0.0; count]);
    for list in &lists {
        for (place, log_p) in log_softmax(list, judged, temperature) {
            shares[place] = list.weight * log_p.exp();
            logs[place] = log_p;
        }
    }
    let surprises = surprises(scores, &lists, temperature) + vector(logs, &device);
    let sum = (surprises * vector(shares, &device)).sum();
    sum.mul_scalar(temperature * temperature)
}

/// Localised contrastive estimation (Gao et al., 2021, arXiv 2101.08751), which is InfoNCE (van den
/// Oord et al., 2018, arXiv 1807.03748) over a query's own documents: the mean of `−log q` of the
/// document that the teacher scores highest, over such documents where several tie.
///
/// # Shapes
/// - scores: `[N]`
/// - output: `[1]`
pub fn lce(scores: Tensor<1>, judged: &Judged, temperature: f64) -> Tensor<1> {
    let (lists, targets) = (judged.lists(), judged.targets());
    let mut shares = vec![0.0; targets.len()];
    for list in &lists {
        let logits = || list.documents.iter().map(|place| targets[*place].logit);
        let highest = logits().fold(f32::NEG_INFINITY, f32::max);
        let tied = logits().filter(|logit| *logit >= highest).count();
        for place in &list.documents {
            if targets[*place].logit >= highest {
                shares[*place] = list.weight / tied as f32;
            }
        }
    }
    let shares = vector(shares, &scores.device());
    (surprises(scores, &lists, temperature) * shares).sum()
}

/// Approximate discounted rank MSE (Schlatt et al., 2024, arXiv 2405.07920): the mean over a group's
/// documents of `(r̂ − r)² / log₂(r + 1)`, with `r` the teacher's rank, the mean of their ranks for
/// documents that tie, and `r̂ᵢ = 1 + Σ σ(sⱼ − sᵢ)` over the others, a rank that has a gradient.
///
/// # Shapes
/// - scores: `[N]`
/// - output: `[1]`
pub fn adr_mse(scores: Tensor<1>, judged: &Judged) -> Tensor<1> {
    let (device, lists, targets) = (scores.device(), judged.lists(), judged.targets());
    let (mut ranks, mut weights) = (vec![0.0; targets.len()], vec![0.0; targets.len()]);
    for list in &lists {
        for place in &list.documents {
            let (mut above, mut tied) = (0.0, 0.0);
            for other in &list.documents {
                if targets[*other].logit > targets[*place].logit {
                    above += 1.0;
                } else if targets[*other].logit >= targets[*place].logit {
                    tied += 1.0;
                }
            }
            let rank: f32 = above + 0.5 * (tied + 1.0);
            ranks[*place] = rank;
            weights[*place] = list.weight / (list.documents.len() as f32 * (rank + 1.0).log2());
        }
    }
    let others = companions(&lists).map(|(i, j)| (i, j, f32::from(i != j)));
    let others = matrix(targets.len(), 0.0, others, &device);
    let above = (sigmoid(differences(scores).neg()) * others).sum_dim(1);
    let approximate = above.reshape([targets.len()]).add_scalar(1.0);
    ((approximate - vector(ranks, &device)).square() * vector(weights, &device)).sum()
}

/// `log p` of each document of a list, by place.
fn log_softmax(list: &List, judged: &Judged, temperature: f64) -> Vec<(usize, f32)> {
    let logit = |place: &usize| f64::from(judged.targets()[*place].logit) / temperature;
    let logits = || list.documents.iter().map(logit);
    let highest = logits().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits().map(|logit| (logit - highest).exp()).sum();
    #[expect(
        clippy::cast_possible_truncation,
        reason = "computed in f64 only to round once"
    )]
    let log_p = |place: &usize| (*place, (logit(place) - highest - sum.ln()) as f32);
    list.documents.iter().map(log_p).collect()
}

/// Far below any difference of scores, and finite: −∞ times 0 is NaN in a gradient.
const APART: f32 = -1e30;

/// `−log q` of each document that is in a list.
///
/// # Shapes
/// - scores: `[N]`
/// - output: `[N]`
fn surprises(scores: Tensor<1>, lists: &[List], temperature: f64) -> Tensor<1> {
    let [count] = scores.dims();
    let itself = (0..count).map(|place| (place, place));
    let together = companions(lists).chain(itself).map(|(i, j)| (i, j, 0.0));
    let mask = matrix(count, APART, together, &scores.device());
    // −log q is the logarithm of the sum of exp(sⱼ − sᵢ) over the list.
    let differences = differences(scores).div_scalar(-temperature);
    log_sum_exp(differences + mask).reshape([count])
}
