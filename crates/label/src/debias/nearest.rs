//! Moving a distribution over grades to another expected grade.

use retort_data::label_set::expected_grade;

/// What every grade is given first: a teacher that named one grade alone can be moved to others.
const LEAST: f64 = 1e-3;
/// Halvings of the interval that the tilt is sought in: to below what an f64 holds of it.
const HALVINGS: usize = 60;
/// A tilt beyond which all probability is on the outermost grade.
const MOST_TILT: f64 = 60.0;

/// Of the distributions with this expected grade, that which diverges least from the given one (by
/// Kullback and Leibler): `pᵢ·exp(tilt·i)`, renormalised (Csiszár, 1975). So what the teacher was
/// unsure of stays unsure.
pub(super) fn nearest(probabilities: &[f64], grade: f64) -> Vec<f64> {
    let count = probabilities.len() as f64;
    let from: Vec<f64> = (probabilities.iter())
        .map(|p| (1.0 - LEAST * count) * p + LEAST)
        .collect();
    let (mut low, mut high) = (-MOST_TILT, MOST_TILT);
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if expected_grade(&tilted(&from, middle)) < grade {
            low = middle;
        } else {
            high = middle;
        }
    }
    tilted(&from, f64::midpoint(low, high))
}

fn tilted(probabilities: &[f64], tilt: f64) -> Vec<f64> {
    let last = probabilities.len() as f64 - 1.0;
    let powers = probabilities.iter().enumerate().map(|(grade, p)| {
        // From the end that it tilts to, so that nothing overflows.
        let from_end = if tilt > 0.0 {
            grade as f64 - last
        } else {
            grade as f64
        };
        p * (tilt * from_end).exp()
    });
    let powers: Vec<f64> = powers.collect();
    let total: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / total).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_moved_nowhere_stays_and_certainty_can_be_moved() {
        let unsure = [0.1, 0.2, 0.3, 0.4];
        for (found, before) in nearest(&unsure, 2.0).iter().zip(unsure) {
            assert!((found - before).abs() < 2e-3, "{found} {before}");
        }
        let moved = nearest(&[0.0, 0.0, 0.0, 1.0], 0.3);
        assert!((expected_grade(&moved) - 0.3).abs() < 1e-9, "{moved:?}");
        let binary = nearest(&[0.9, 0.1], 0.6);
        assert!((binary[1] - 0.6).abs() < 1e-9, "{binary:?}");
    }

    proptest! {
        #[test]
        fn the_grade_is_what_was_asked_for(
            weights in prop::collection::vec(0.0..1.0, 2..12),
            share in 0.001..0.999,
        ) {
            let total: f64 = weights.iter().sum::<f64>() + 1e-9;
            let mut probabilities: Vec<f64> = weights.iter().map(|w| w / total).collect();
            probabilities[0] += 1.0 - probabilities.iter().sum::<f64>();
            let grade = share * (weights.len() - 1) as f64;
            let moved = nearest(&probabilities, grade);
            prop_assert!((moved.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            prop_assert!(moved.iter().all(|p| (0.0..=1.0).contains(p)));
            prop_assert!((expected_grade(&moved) - grade).abs() < 1e-6, "{moved:?}");
        }
    }
}
