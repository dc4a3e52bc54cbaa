/// The factor on the peak learning rate at `step` (from 0) of `steps`: it rises linearly over the
/// first `warmup` share of the steps and falls linearly to 0 after the last.
pub(crate) fn learning_rate_factor(step: usize, steps: usize, warmup: f64) -> f64 {
    let (step, steps) = (step as f64, steps as f64);
    let warmup_steps = (steps * warmup).round();
    if step < warmup_steps {
        (step + 1.0) / (warmup_steps + 1.0)
    } else {
        (steps - step) / (steps - warmup_steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_then_falls_and_never_stands_still_at_zero() {
        let factors: Vec<f64> = (0..10)
            .map(|step| learning_rate_factor(step, 10, 0.2))
            .collect();
        assert!((factors[0] - 1.0 / 3.0).abs() < 1e-12 && (factors[1] - 2.0 / 3.0).abs() < 1e-12);
        assert!((factors[2] - 1.0).abs() < 1e-12);
        assert!((factors[9] - 1.0 / 8.0).abs() < 1e-12);
        assert!(factors[2..].windows(2).all(|pair| pair[0] > pair[1]));
        assert!((learning_rate_factor(0, 1, 0.0) - 1.0).abs() < 1e-12);
    }
}
