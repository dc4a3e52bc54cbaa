//! Strengths of documents from rankings of some of them: the Plackett-Luce model (Plackett, 1975),
//! which for rankings of two is that of Bradley and Terry (1952).
//!
//! A ranking is made from the top: each place goes to one of the documents that are left, with a
//! probability in proportion to `exp(strength)`. So the difference of two strengths is the logit of
//! the first being preferred to the second. A soft preference is two rankings, one each way, with
//! its probabilities as weights.
//!
//! The strengths are those that maximise `Σ wᵣ log P(r) − Σ θᵢ² / 2s²`. The second term, a normal
//! prior of deviation `s`, keeps a document finite that never loses, centres the strengths, and
//! makes the maximum the only one: Newton's method finds it to the last digits in a few steps,
//! where Hunter's minorisation (2004), whose steps shrink with the prior, takes thousands.

/// An order of some documents.
#[derive(Clone, Debug)]
pub(crate) struct Ranking {
    /// The documents, by number: first those that were placed, best first, then those that are only
    /// known to be below.
    pub(crate) order: Vec<usize>,
    /// How many were placed.
    pub(crate) placed: usize,
    /// How much it counts.
    pub(crate) weight: f64,
}

/// A step that moves no strength by more is the last: the next would be its square.
const LAST_STEP: f64 = 1e-10;
/// Far more steps than a concave objective takes.
const MOST_STEPS: usize = 100;

/// The strengths of documents 0, 1, … under a prior of this deviation; their sum is 0.
///
/// Rankings name documents below `documents`, each once, and have weights from 0.
pub(crate) fn fit(documents: usize, rankings: &[Ranking], deviation: f64) -> Vec<f64> {
    let mut strengths = vec![0.0; documents];
    for _ in 0..MOST_STEPS {
        let (gradient, curvature) = derivatives(&strengths, rankings, deviation);
        let step = solve(curvature, gradient);
        let now = objective(&strengths, rankings, deviation);
        let mut share = 1.0;
        let longest = loop {
            let next: Vec<f64> = (strengths.iter().zip(&step))
                .map(|(strength, step)| strength + share * step)
                .collect();
            // A whole step may overshoot; what rounding takes from the objective does not count.
            if share < 1e-6 || objective(&next, rankings, deviation) > now - 1e-9 {
                strengths = next;
                break step
                    .iter()
                    .fold(0.0, |longest: f64, s| longest.max((share * s).abs()));
            }
            share /= 2.0;
        };
        if longest < LAST_STEP {
            break;
        }
    }
    strengths
}

/// The places of a ranking that were given, each with the documents that were left for it: the
/// first of them got it.
fn choices(ranking: &Ranking) -> impl Iterator<Item = &[usize]> {
    let places = ranking.placed.min(ranking.order.len().saturating_sub(1));
    (0..places).map(|place| &ranking.order[place..])
}

fn objective(strengths: &[f64], rankings: &[Ranking], deviation: f64) -> f64 {
    let squares: f64 = strengths.iter().map(|strength| strength * strength).sum();
    let mut objective = -squares / (2.0 * deviation * deviation);
    for ranking in rankings {
        for left in choices(ranking) {
            objective += ranking.weight * probabilities(strengths, left)[0].ln();
        }
    }
    objective
}

/// The gradient of the objective, and its Hessian's negative as rows.
fn derivatives(
    strengths: &[f64],
    rankings: &[Ranking],
    deviation: f64,
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let precision = 1.0 / (deviation * deviation);
    let mut gradient: Vec<f64> = strengths.iter().map(|s| -s * precision).collect();
    let mut curvature = vec![vec![0.0; strengths.len()]; strengths.len()];
    for (document, row) in curvature.iter_mut().enumerate() {
        row[document] = precision;
    }
    for ranking in rankings {
        for left in choices(ranking) {
            let probabilities = probabilities(strengths, left);
            gradient[left[0]] += ranking.weight;
            for (i, p) in left.iter().zip(&probabilities) {
                gradient[*i] -= ranking.weight * p;
                curvature[*i][*i] += ranking.weight * p;
                for (j, q) in left.iter().zip(&probabilities) {
                    curvature[*i][*j] -= ranking.weight * p * q;
                }
            }
        }
    }
    (gradient, curvature)
}

/// The probability of each of the documents that are left to be chosen: a softmax.
fn probabilities(strengths: &[f64], left: &[usize]) -> Vec<f64> {
    let most = left.iter().map(|i| strengths[*i]).fold(f64::MIN, f64::max);
    let powers: Vec<f64> = left.iter().map(|i| (strengths[*i] - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// Solves `matrix · x = right` for a symmetric positive definite matrix, by Cholesky's
/// decomposition into `L · Lᵀ`.
pub(crate) fn solve(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let count = right.len();
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    for row in 0..count {
        for column in 0..=row {
            let rest = matrix[row][column] - dot(&matrix[row][..column], &matrix[column][..column]);
            matrix[row][column] = if row == column {
                rest.sqrt()
            } else {
                rest / matrix[column][column]
            };
        }
        right[row] = (right[row] - dot(&matrix[row][..row], &right[..row])) / matrix[row][row];
    }
    for row in (0..count).rev() {
        let below: f64 = (row + 1..count).map(|i| matrix[i][row] * right[i]).sum();
        right[row] = (right[row] - below) / matrix[row][row];
    }
    right
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    fn preference(first: usize, second: usize, p: f64) -> [Ranking; 2] {
        [([first, second], p), ([second, first], 1.0 - p)].map(|(order, weight)| Ranking {
            order: order.to_vec(),
            placed: 1,
            weight,
        })
    }

    #[derive(Deserialize)]
    struct Case {
        name: String,
        documents: usize,
        deviation: f64,
        rankings: Vec<(Vec<usize>, usize, f64)>,
        strengths: Vec<f64>,
    }

    /// Against scipy's optimisers: `tests/golden/strengths/make.py`.
    #[test]
    fn strengths_are_those_of_the_reference() {
        let golden = include_str!("../../../tests/golden/strengths/golden.json");
        let cases: Vec<Case> = serde_json::from_str(golden).unwrap();
        assert!(cases.len() >= 4);
        for case in cases {
            let rankings: Vec<Ranking> = (case.rankings.into_iter())
                .map(|(order, placed, weight)| Ranking {
                    order,
                    placed,
                    weight,
                })
                .collect();
            let strengths = fit(case.documents, &rankings, case.deviation);
            assert_eq!(strengths.len(), case.strengths.len());
            for (got, want) in strengths.iter().zip(&case.strengths) {
                assert!((got - want).abs() < 1e-6, "{}: {got} {want}", case.name);
            }
        }
    }

    #[test]
    fn a_weak_prior_leaves_the_logit_of_a_lone_preference() {
        let strengths = fit(2, &preference(0, 1, 0.8), 1e3);
        assert!((strengths[0] - strengths[1] - 4.0_f64.ln()).abs() < 1e-4);
        assert!((strengths[0] + strengths[1]).abs() < 1e-8);
    }

    #[test]
    fn preferences_that_agree_give_back_the_strengths_they_were_made_from() {
        let made_from = [1.5, 0.75, 0.0, -0.25, -2.0];
        let mut rankings = Vec::new();
        for (a, b) in [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (0, 2), (1, 3)] {
            let p = 1.0 / (1.0 + f64::exp(made_from[b] - made_from[a]));
            rankings.extend(preference(a, b, p));
        }
        for (got, want) in fit(5, &rankings, 1e4).iter().zip(made_from) {
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
    }

    #[test]
    fn what_was_not_placed_is_below_and_alike() {
        let ranking = Ranking {
            order: vec![2, 0, 1, 3],
            placed: 2,
            weight: 1.0,
        };
        let strengths = fit(4, &[ranking], 3.0);
        assert!(strengths[2] > strengths[0] && strengths[0] > strengths[1]);
        assert!((strengths[1] - strengths[3]).abs() < 1e-12);
    }

    proptest! {
        /// Whatever is ranked how often, the gradient is 0 where the fit ends.
        #[test]
        fn the_fit_ends_at_the_maximum(
            orders in prop::collection::vec((Just((0..8).collect::<Vec<usize>>()).prop_shuffle(), 2..=8usize, 1..=8usize, 0.0..50.0), 0..30),
            deviation in 0.5..20.0,
        ) {
            let rankings: Vec<Ranking> = orders
                .into_iter()
                .map(|(mut order, shown, placed, weight)| {
                    order.truncate(shown);
                    Ranking { order, placed: placed.min(shown), weight }
                })
                .collect();
            let strengths = fit(8, &rankings, deviation);
            let (gradient, _) = derivatives(&strengths, &rankings, deviation);
            prop_assert!(gradient.iter().all(|g| g.abs() < 1e-7), "{gradient:?}");
            prop_assert!(strengths.iter().sum::<f64>().abs() < 1e-8);
        }
    }
}
