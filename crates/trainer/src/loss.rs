//! What training minimises: a weighted sum of losses, each a function of the student's scores and of
//! what the teacher said of the same documents.
//!
//! `N` documents, each in the group of its query; a score is a logit. A loss is a mean: over
//! documents ([`mse`], [`bce`]) or over groups in which the teacher tells documents apart (all
//! others), so that neither the order of documents nor what else a step holds matters. Given a part
//! of a step ([`Judged::part`]), it is that part's share of the mean.

mod classes;
mod documents;
mod judged;
mod lists;
mod pairs;

use burn::tensor::{Device, Tensor, TensorData};

pub use classes::{cross_entropy, label_distribution, ordinal, preference};
pub use documents::{bce, mse};
pub use judged::{Judged, Target};
pub use lists::{adr_mse, kl, lce, listnet};
pub use pairs::{lambda_loss, margin_mse, ranknet};

use crate::settings::LossSettings;
use Function::{Plain, Tempered};

/// The losses that `[loss]` can weigh: a setting, its value, a function.
pub(crate) const LOSSES: [(&str, Weight, Function); 9] = [
    ("loss.margin_mse", |s| s.margin_mse, Plain(margin_mse)),
    ("loss.bce", |s| s.bce, Plain(bce)),
    ("loss.mse", |s| s.mse, Plain(mse)),
    ("loss.ranknet", |s| s.ranknet, Plain(ranknet)),
    ("loss.lambda_loss", |s| s.lambda_loss, Plain(lambda_loss)),
    ("loss.listnet", |s| s.listnet, Tempered(listnet)),
    ("loss.kl", |s| s.kl, Tempered(kl)),
    ("loss.lce", |s| s.lce, Tempered(lce)),
    ("loss.adr_mse", |s| s.adr_mse, Plain(adr_mse)),
];

/// Where a loss's weight stands.
type Weight = fn(&LossSettings) -> f64;

/// How a loss is computed.
pub(crate) enum Function {
    /// From scores and judgements.
    Plain(fn(Tensor<1>, &Judged) -> Tensor<1>),
    /// And from a temperature.
    Tempered(fn(Tensor<1>, &Judged, f64) -> Tensor<1>),
}

/// The losses that the settings give a weight, each times its weight. 0 where none has one.
///
/// # Shapes
/// - scores: `[N]`
/// - output: `[1]`
pub fn weighted_sum(scores: &Tensor<1>, judged: &Judged, settings: &LossSettings) -> Tensor<1> {
    let mut sum = None;
    for (_, weight, function) in LOSSES {
        let (weight, scores) = (weight(settings), scores.clone());
        if weight > 0.0 {
            let loss = match function {
                Plain(loss) => loss(scores, judged),
                Tempered(loss) => loss(scores, judged, settings.temperature),
            };
            let term = loss.mul_scalar(weight);
            sum = Some(match sum {
                None => term,
                Some(sum) => sum + term,
            });
        }
    }
    sum.unwrap_or_else(|| scores.clone().mul_scalar(0.0).sum())
}

/// `sᵢ − sⱼ` in row i and column j.
///
/// # Shapes
/// - scores: `[N]`
/// - output: `[N, N]`
fn differences(scores: Tensor<1>) -> Tensor<2> {
    scores.clone().unsqueeze_dim::<2>(1) - scores.unsqueeze_dim::<2>(0)
}

/// The logarithm of each row's sum of exponentials.
///
/// # Shapes
/// - rows: `[any, any]`
/// - output: `[any, 1]`
fn log_sum_exp(rows: Tensor<2>) -> Tensor<2> {
    let highest = rows.clone().detach().max_dim(1);
    (rows - highest.clone()).exp().sum_dim(1).log() + highest
}

fn vector(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A square matrix of one number but for some entries: row, column, value.
fn matrix(
    size: usize,
    elsewhere: f32,
    entries: impl IntoIterator<Item = (usize, usize, f32)>,
    device: &Device,
) -> Tensor<2> {
    let mut values = vec![elsewhere; size * size];
    for (row, column, value) in entries {
        values[row * size + column] = value;
    }
    Tensor::from_data(TensorData::new(values, [size, size]), device)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A document with its score, and a number to sort by.
    type Document = (usize, Target, f32, u32);

    /// Documents of up to five queries, in any order; some judgements tie, and no scores.
    fn documents() -> impl Strategy<Value = Vec<Document>> {
        let logit = prop_oneof![-4.0..4.0f32, prop::sample::select(vec![-1.0, 0.0, 2.0])];
        let document = (0..5usize, logit, 0.0..2.0f32, -600..600i16, any::<u32>());
        prop::collection::vec(document, 1..24).prop_map(|documents| {
            type Drawn = (usize, f32, f32, i16, u32);
            let with_score = |(place, (group, logit, doubt, score, key)): (u8, Drawn)| {
                let grade = 3.0 / (1.0 + f32::exp(-logit));
                let target = Target {
                    logit,
                    grade,
                    doubt,
                };
                // From −5 to 5, in steps that constants are added to without rounding.
                let score = f32::from(score) / 128.0 + f32::from(place) / 4096.0;
                (group, target, score, key)
            };
            (0..).zip(documents).map(with_score).collect()
        })
    }

    fn judged(documents: &[Document]) -> Judged {
        Judged::step(
            documents
                .iter()
                .map(|(group, target, ..)| (*group, *target)),
        )
    }

    /// Each loss by itself.
    fn each_alone() -> impl Iterator<Item = (&'static str, LossSettings)> {
        LOSSES.into_iter().map(|(key, ..)| {
            let name = key.trim_start_matches("loss.");
            let settings = toml::from_str(&format!("{name} = 1.0")).unwrap();
            (name, settings)
        })
    }

    fn learns_order_alone(name: &str) -> bool {
        !["mse", "bce"].contains(&name)
    }

    fn value_and_gradient(
        scores: impl Iterator<Item = f32>,
        judged: &Judged,
        settings: &LossSettings,
    ) -> (f32, Vec<f32>) {
        let scores: Vec<f32> = scores.collect();
        let scores = vector(scores, &Device::flex().autodiff()).require_grad();
        let loss = weighted_sum(&scores, judged, settings);
        let gradient = scores.grad(&loss.backward()).unwrap();
        let floats = |tensor: Tensor<1>| tensor.try_into_vec_as::<f32>().unwrap();
        (floats(loss)[0], floats(gradient))
    }

    fn near(got: &[f32], expected: &[f32]) -> bool {
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 2e-5 * b.abs().max(1.0);
        got.len() == expected.len() && got.iter().zip(expected).all(near)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_order_of_documents_changes_nothing(documents in documents()) {
            let mut order: Vec<usize> = (0..documents.len()).collect();
            order.sort_by_key(|place| documents[*place].3);
            let shuffled: Vec<Document> = order.iter().map(|place| documents[*place]).collect();
            let scores = |documents: &[Document]| documents.iter().map(|d| d.2).collect::<Vec<_>>();
            for (name, settings) in each_alone() {
                let of = |documents: &[Document]| {
                    value_and_gradient(scores(documents).into_iter(), &judged(documents), &settings)
                };
                let ((value, gradient), (other, shuffled)) = (of(&documents), of(&shuffled));
                let gradient: Vec<f32> = order.iter().map(|place| gradient[*place]).collect();
                prop_assert!(near(&[other], &[value]), "{name}: {value} {other}");
                prop_assert!(near(&shuffled, &gradient), "{name}: {gradient:?} {shuffled:?}");
            }
        }

        /// So neither does it matter what other groups are computed along with one, nor their size.
        #[test]
        fn parts_of_a_step_add_up_to_it(documents in documents()) {
            let step = judged(&documents);
            for (name, settings) in each_alone() {
                let scores = documents.iter().map(|document| document.2);
                let (value, gradient) = value_and_gradient(scores, &step, &settings);
                let (mut sum, mut together) = (0.0, vec![0.0; documents.len()]);
                for group in 0..5 {
                    let of_group = |place: &usize| documents[*place].0 == group;
                    let places: Vec<usize> = (0..documents.len()).filter(of_group).collect();
                    if places.is_empty() {
                        continue;
                    }
                    let scores = places.iter().map(|place| documents[*place].2);
                    let part = step.part(places.iter().copied());
                    let (value, gradient) = value_and_gradient(scores, &part, &settings);
                    sum += value;
                    for (place, gradient) in places.into_iter().zip(gradient) {
                        together[place] = gradient;
                    }
                }
                prop_assert!(near(&[sum], &[value]), "{name}: {value} {sum}");
                prop_assert!(near(&together, &gradient), "{name}: {gradient:?} {together:?}");
            }
        }

        #[test]
        fn a_constant_on_the_scores_of_a_query_changes_no_ranking_loss(documents in documents()) {
            let step = judged(&documents);
            for (name, settings) in each_alone().filter(|(name, _)| learns_order_alone(name)) {
                let scores = documents.iter().map(|document| document.2);
                let moved = documents.iter().map(|d| d.2 + [3.0, -8.0, 0.5, 20.0, 0.0][d.0]);
                let (value, _) = value_and_gradient(scores, &step, &settings);
                let (other, _) = value_and_gradient(moved, &step, &settings);
                prop_assert!((value - other).abs() <= 1e-4 * value.max(1.0), "{name}: {value} {other}");
            }
        }
    }

    #[test]
    fn no_order_is_learnt_where_the_teacher_sees_none() {
        let target = Target {
            logit: 0.5,
            grade: 1.9,
            doubt: 0.0,
        };
        // Two documents that tie, and a query of one.
        let step = Judged::step([(0, target), (0, target), (1, target)]);
        for (name, settings) in each_alone() {
            let scores = [1.0, -2.0, 3.0].into_iter();
            let (value, gradient) = value_and_gradient(scores, &step, &settings);
            let nothing = value == 0.0 && gradient.iter().all(|g| *g == 0.0);
            assert_eq!(
                nothing,
                learns_order_alone(name),
                "{name}: {value} {gradient:?}"
            );
        }
    }

    #[test]
    fn scores_far_apart_stay_finite() {
        let target = |logit, grade| Target {
            logit,
            grade,
            doubt: 0.0,
        };
        let (good, bad) = (target(4.6, 3.0), target(-4.6, 0.0));
        let step = Judged::step([(0, good), (0, bad), (1, bad), (1, good)]);
        for (name, settings) in each_alone() {
            for far in [30.0, 1e4] {
                let scores = [-far, far, -far, far].into_iter();
                let (value, gradient) = value_and_gradient(scores, &step, &settings);
                let all_finite = value.is_finite() && gradient.iter().all(|g| g.is_finite());
                assert!(all_finite, "{name} at {far}: {value} {gradient:?}");
                // Documents in the wrong order draw the first up, however wrong they are.
                // Ranks so far apart have no slope.
                let drawn = gradient[0] < 0.0 || name == "adr_mse";
                assert!(drawn, "{name} at {far}: {gradient:?}");
            }
        }
    }

    #[test]
    fn a_doubtful_judgement_weighs_less() {
        let target = |logit, doubt| Target {
            logit,
            grade: 1.0,
            doubt,
        };
        // Off by 1 and by 3, the second with a third of the weight.
        let step = Judged::step([(0, target(1.0, 0.0)), (1, target(3.0, 2.0))]);
        let settings = toml::from_str("mse = 1.0").unwrap();
        let (value, _) = value_and_gradient([0.0, 0.0].into_iter(), &step, &settings);
        let expected = (1.0 + 9.0 / 3.0) / (1.0 + 1.0 / 3.0);
        assert!(near(&[value], &[expected]), "{value}");
    }

    #[test]
    fn no_one_score_for_all_is_better_than_the_constant_and_the_teachers_are() {
        let target = |logit: f32, doubt| Target {
            logit,
            grade: 1.0 + logit / 4.0,
            doubt,
        };
        let targets = [(0, -2.0), (0, 3.0), (1, 0.5), (1, -1.0), (2, 1.0)];
        let step = Judged::step(targets.map(|(group, logit)| (group, target(logit, 0.3))));
        let settings = toml::from_str("bce = 1.0\nmargin_mse = 1.0").unwrap();
        let loss = |scores: Vec<f32>| value_and_gradient(scores.into_iter(), &step, &settings).0;
        let best = loss(vec![step.constant(); 5]);
        assert!(loss(vec![step.constant() - 0.1; 5]) > best);
        assert!(loss(vec![step.constant() + 0.1; 5]) > best);
        assert!(loss(step.logits()) < best);
        // Of ±2.5, ±0.75, and a document alone.
        assert!((step.spread(&step.logits()) - 1.625).abs() < 1e-6);
    }

    #[test]
    fn soft_bce_is_the_worked_value() {
        // Targets t / 3 as logits; 0 and 1 as far out as f32 tells σ from 0 and 1.
        let logit = |p: f32| (p / (1.0 - p)).ln();
        let logits = [40.0, logit(1.0 / 3.0), -40.0, logit(1.0 / 3.0)];
        let target = |logit| Target {
            logit,
            grade: 0.0,
            doubt: 0.0,
        };
        let step = Judged::step(logits.map(|logit| (0, target(logit))));
        let settings = toml::from_str("bce = 1.0").unwrap();
        let scores = [2.0, 0.5, -1.0, 0.0].into_iter();
        let (value, _) = value_and_gradient(scores, &step, &settings);
        assert!((value - 0.485_186_8).abs() < 1e-6, "{value}");
    }
}
