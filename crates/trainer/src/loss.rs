//! What training minimises. `N` documents, each of a query's group; a score is a logit.

use std::collections::BTreeMap;

use burn::tensor::activation::log_sigmoid;
use burn::tensor::{Tensor, TensorData};

/// Margin-MSE (Hofstätter et al., 2020, arXiv 2010.02666) over whole groups: the mean over pairs
/// of a group of `((sᵢ − sⱼ) − (tᵢ − tⱼ))²`, for the pairs the teacher tells apart (`tᵢ > tⱼ`),
/// averaged over the groups that have such a pair. 0 when none has.
///
/// # Shapes
/// - scores: `[N]`
/// - targets and groups: `N` teacher scores, on the scale of the student's logits, and the group
///   each belongs to
/// - output: `[1]`
pub fn margin_mse(scores: Tensor<1>, targets: &[f32], groups: &[usize]) -> Tensor<1> {
    let compared = compared_groups(targets, groups);
    margin_mse_of(scores, targets, groups, compared)
}

/// How many groups have a pair that the teacher tells apart.
pub(crate) fn compared_groups(targets: &[f32], groups: &[usize]) -> usize {
    pairs_by_group(targets, groups).len()
}

fn pairs_by_group(targets: &[f32], groups: &[usize]) -> BTreeMap<usize, f32> {
    let mut pairs_of = BTreeMap::new();
    for i in 0..targets.len() {
        for j in 0..targets.len() {
            if groups[i] == groups[j] && targets[i] > targets[j] {
                *pairs_of.entry(groups[i]).or_default() += 1.0;
            }
        }
    }
    pairs_of
}

/// [`margin_mse`] of some of the groups of a step in which `compared` groups are compared: what
/// these give for all shards of the step adds up to the step's.
pub(crate) fn margin_mse_of(
    scores: Tensor<1>,
    targets: &[f32],
    groups: &[usize],
    compared: usize,
) -> Tensor<1> {
    let count = targets.len();
    let pairs_of = pairs_by_group(targets, groups);
    let mut weights = vec![0.0; count * count];
    let mut margins = vec![0.0; count * count];
    for i in 0..count {
        for j in 0..count {
            if groups[i] == groups[j] && targets[i] > targets[j] {
                weights[i * count + j] = 1.0 / (pairs_of[&groups[i]] * compared as f32);
                margins[i * count + j] = targets[i] - targets[j];
            }
        }
    }
    let device = scores.device();
    let matrix = |values| Tensor::<2>::from_data(TensorData::new(values, [count, count]), &device);
    let differences: Tensor<2> =
        scores.clone().unsqueeze_dim::<2>(1) - scores.unsqueeze_dim::<2>(0);
    ((differences - matrix(margins)).square() * matrix(weights)).sum()
}

/// Binary cross-entropy with soft targets: the mean over documents of
/// `−σ(t) log σ(s) − (1 − σ(t)) log σ(−s)`.
///
/// # Shapes
/// - scores: `[N]`
/// - targets: `N` teacher logits
/// - output: `[1]`
pub fn soft_bce(scores: Tensor<1>, targets: &[f32]) -> Tensor<1> {
    let probabilities: Vec<f32> = targets.iter().map(|t| 1.0 / (1.0 + (-t).exp())).collect();
    let device = scores.device();
    let probabilities =
        Tensor::<1>::from_data(TensorData::new(probabilities, [targets.len()]), &device);
    // log σ(−s) = log σ(s) − s, so the cross-entropy is (1 − p)·s − log σ(s).
    (probabilities.neg().add_scalar(1.0) * scores.clone() - log_sigmoid(scores)).mean()
}

/// [`margin_mse`] plus `bce_weight` times [`soft_bce`], which pins the scale that margins leave
/// open.
///
/// # Shapes
/// As theirs; output: `[1]`
pub fn margin_mse_with_bce(
    scores: Tensor<1>,
    targets: &[f32],
    groups: &[usize],
    bce_weight: f64,
) -> Tensor<1> {
    let compared = compared_groups(targets, groups);
    margin_mse_with_bce_of(scores, targets, groups, compared, bce_weight)
}

/// [`margin_mse_with_bce`] of a shard: see [`margin_mse_of`]. The caller scales `bce_weight` by the
/// shard's share of the step's documents.
pub(crate) fn margin_mse_with_bce_of(
    scores: Tensor<1>,
    targets: &[f32],
    groups: &[usize],
    compared: usize,
    bce_weight: f64,
) -> Tensor<1> {
    let margins = margin_mse_of(scores.clone(), targets, groups, compared);
    if bce_weight == 0.0 {
        return margins;
    }
    margins + soft_bce(scores, targets).mul_scalar(bce_weight)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    const SCORES: [f32; 4] = [2.0, 0.5, -1.0, 0.0];
    const TEACHER: [f32; 4] = [3.0, 1.0, 0.0, 1.0];

    fn scores(values: &[f32]) -> Tensor<1> {
        Tensor::from_floats(values, &Device::flex())
    }

    fn value(loss: Tensor<1>) -> f32 {
        loss.try_into_vec_as::<f32>().unwrap()[0]
    }

    #[test]
    fn margin_mse_is_the_worked_value() {
        let loss = value(margin_mse(scores(&SCORES), &TEACHER, &[0; 4]));
        assert!((loss - 0.1).abs() < 1e-6, "{loss}");
    }

    #[test]
    fn soft_bce_is_the_worked_value() {
        // Targets t / 3 as logits; 0 and 1 as far out as f32 tells σ from 0 and 1.
        let logit = |p: f32| (p / (1.0 - p)).ln();
        let targets = [40.0, logit(1.0 / 3.0), -40.0, logit(1.0 / 3.0)];
        let loss = value(soft_bce(scores(&SCORES), &targets));
        assert!((loss - 0.485_186_8).abs() < 1e-6, "{loss}");
    }

    #[test]
    fn groups_weigh_alike_and_do_not_mix() {
        let twice = [SCORES, SCORES].concat();
        let teacher = [TEACHER, TEACHER].concat();
        let groups = [0, 0, 0, 0, 1, 1, 1, 1];
        let loss = value(margin_mse(scores(&twice), &teacher, &groups));
        assert!((loss - 0.1).abs() < 1e-6, "{loss}");
        // A constant on one group's scores changes no margin.
        let shifted: Vec<f32> = twice
            .iter()
            .zip(groups)
            .map(|(s, g)| if g == 1 { s + 5.0 } else { *s })
            .collect();
        let loss = value(margin_mse(scores(&shifted), &teacher, &groups));
        assert!((loss - 0.1).abs() < 1e-5, "{loss}");
    }

    #[test]
    fn the_shards_of_a_step_add_up_to_it() {
        let all = [2.0, 0.5, -1.0, 0.0, 0.3, -0.7, 1.5];
        let teacher = [3.0, 1.0, 0.0, 1.0, -2.0, 0.5, 0.5];
        let groups = [0, 0, 0, 0, 1, 1, 1];
        let whole = value(margin_mse_with_bce(scores(&all), &teacher, &groups, 0.1));
        let compared = compared_groups(&teacher, &groups);
        let part = |range: std::ops::Range<usize>| {
            let weight = 0.1 * range.len() as f64 / all.len() as f64;
            let (part, targets) = (scores(&all[range.clone()]), &teacher[range.clone()]);
            value(margin_mse_with_bce_of(
                part,
                targets,
                &groups[range],
                compared,
                weight,
            ))
        };
        let sum = part(0..4) + part(4..7);
        assert!((sum - whole).abs() < 1e-6, "{sum} {whole}");
    }

    #[test]
    fn documents_the_teacher_ties_give_no_margin() {
        let loss = value(margin_mse(scores(&[1.0, 2.0]), &[0.5, 0.5], &[0, 0]));
        assert!(loss.abs() < 1e-9);
    }

    #[test]
    fn large_scores_stay_finite() {
        let loss = value(soft_bce(scores(&[1e4, -1e4]), &[-5.0, 5.0]));
        assert!(loss.is_finite());
    }
}
