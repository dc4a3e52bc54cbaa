use std::f64::consts::PI;

use crate::settings::{Decay, ScheduleSettings};

/// The factor on the peak learning rate at `step` (from 0) of `steps`: it rises linearly over the
/// warm-up and falls to 0 after the last step.
pub(crate) fn learning_rate_factor(step: usize, steps: usize, settings: &ScheduleSettings) -> f64 {
    let (step, steps) = (step as f64, steps as f64);
    let warmup_steps = (steps * settings.warmup).round();
    if step < warmup_steps {
        return (step + 1.0) / (warmup_steps + 1.0);
    }
    let left = (steps - step) / (steps - warmup_steps);
    match settings.decay {
        Decay::Linear => left,
        Decay::Cosine => (1.0 - (PI * left).cos()) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(decay: Decay) -> Vec<f64> {
        let settings = ScheduleSettings {
            decay,
            warmup: 0.2,
            ..ScheduleSettings::of_tests()
        };
        let factor = |step| learning_rate_factor(step, 10, &settings);
        (0..10).map(factor).collect()
    }

    fn near(got: f64, expected: f64) -> bool {
        (got - expected).abs() < 1e-12
    }

    #[test]
    fn rises_then_falls_and_never_stands_still_at_zero() {
        for decay in [Decay::Linear, Decay::Cosine] {
            let factors = factors(decay);
            assert!(near(factors[0], 1.0 / 3.0) && near(factors[1], 2.0 / 3.0));
            assert!(near(factors[2], 1.0));
            assert!(factors[2..].windows(2).all(|pair| pair[0] > pair[1]));
            assert!(factors[9] > 0.0);
        }
        let settings = ScheduleSettings {
            warmup: 0.0,
            ..ScheduleSettings::of_tests()
        };
        assert!(near(learning_rate_factor(0, 1, &settings), 1.0));
    }

    #[test]
    fn falls_along_a_line_or_a_cosine() {
        assert!(near(factors(Decay::Linear)[9], 1.0 / 8.0));
        let cosine = factors(Decay::Cosine);
        assert!(near(cosine[6], 0.5));
        assert!(near(cosine[9], (1.0 - (PI / 8.0).cos()) / 2.0));
    }
}
