//! What the loss is multiplied with before the way back, so that slopes that half precision would
//! round to 0 are not lost (Micikevicius et al., 2018, arXiv 1710.03740).

use retort_model::Precision;
use serde::{Deserialize, Serialize};

/// A factor that is as large as gradients let it be: halved when one overflows, doubled after many
/// that did not.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LossScale {
    /// A power of two, so that nothing is rounded by it.
    factor: f64,
    /// Updates since it was changed.
    clean_steps: usize,
}

impl LossScale {
    const FIRST: f64 = 65_536.0;
    /// After so many updates, it is tried whether twice as much does as well.
    const PATIENCE: usize = 2000;

    /// Where training begins, if it takes one.
    pub(crate) fn of(precision: Precision) -> Option<Self> {
        precision
            .scales_loss()
            .then(|| Self::begin_with(Self::FIRST))
    }

    pub(crate) fn begin_with(factor: f64) -> Self {
        Self {
            factor,
            clean_steps: 0,
        }
    }

    pub(crate) fn factor(self) -> f64 {
        self.factor
    }

    /// Below 1 it would be no help: a gradient that overflows then is the data's or the weights'.
    pub(crate) fn helps(self) -> bool {
        self.factor >= 1.0
    }

    /// After a step whose gradient was finite or not.
    pub(crate) fn after(self, is_finite: bool) -> Self {
        if !is_finite {
            return Self::begin_with(self.factor / 2.0);
        }
        let clean_steps = self.clean_steps + 1;
        if clean_steps == Self::PATIENCE {
            return Self::begin_with(self.factor * 2.0);
        }
        Self {
            clean_steps,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::float_cmp, reason = "powers of two, which are exact")]

    use super::*;

    #[test]
    fn it_halves_at_once_and_doubles_after_two_thousand_updates() {
        let first = LossScale::of(Precision::F16).unwrap();
        let factor = |scale: LossScale| scale.factor().log2();
        let clean = |scale, steps| (0..steps).fold(scale, |scale: LossScale, _| scale.after(true));
        assert_eq!(factor(first), 16.0);
        assert_eq!(factor(clean(first, 1999)), 16.0);
        assert_eq!(factor(clean(first, 2000)), 17.0);
        assert_eq!(factor(clean(first, 4000)), 18.0);
        // An overflow begins the count anew.
        let halved = clean(first, 1999).after(false);
        assert_eq!(factor(halved), 15.0);
        assert_eq!(factor(clean(halved, 1999)), 15.0);
        assert_eq!(factor(clean(halved, 2000)), 16.0);
    }

    #[test]
    fn it_is_given_up_below_one() {
        let mut scale = LossScale::begin_with(4.0);
        let mut halved = 0;
        while scale.helps() {
            scale = scale.after(false);
            halved += 1;
        }
        assert_eq!(halved, 3);
    }

    #[test]
    fn only_half_precision_takes_one() {
        for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
            assert_eq!(LossScale::of(precision), None);
        }
    }
}
