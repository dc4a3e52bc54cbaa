//! Dropout that is drawn twice instead of being kept.
//!
//! What is dropped is a function of the seed, of the place in the network and of the input's place
//! among all: blocks and threads make no difference, and the way back finds it again.

use std::borrow::Cow;

use pulp::Arch;

use crate::config::ModelConfig;

/// What a training pass drops out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropout {
    seed: u64,
    /// Of hidden states.
    hidden: f32,
    /// Of attention weights.
    attention: f32,
    /// Of what the classifier reads.
    classifier: f32,
}

/// Where numbers are dropped.
#[derive(Clone, Copy)]
pub(super) enum Site {
    Embeddings,
    /// Of a layer and a head.
    Attention(usize, usize),
    /// Of a layer: what its attention adds.
    Attended(usize),
    /// Of a layer: what its second half adds.
    Outer(usize),
    Pooled,
}

impl Dropout {
    #[expect(clippy::cast_possible_truncation, reason = "probabilities")]
    pub(super) fn of(config: &ModelConfig, seed: u64) -> Self {
        let hidden = config.hidden_dropout_prob;
        Self {
            seed,
            hidden: hidden as f32,
            attention: config.attention_probs_dropout_prob as f32,
            classifier: config.classifier_dropout.unwrap_or(hidden) as f32,
        }
    }

    /// `values` of one input with some of them zeroed and the others scaled up; their slopes
    /// likewise.
    pub(super) fn drop<'a>(&self, values: &'a [f32], site: Site, input: usize) -> Cow<'a, [f32]> {
        let mut values = Cow::Borrowed(values);
        if self.drops(site) {
            self.drop_in_place(values.to_mut(), site, input);
        }
        values
    }

    /// Whether any number is.
    pub(super) fn drops(&self, site: Site) -> bool {
        self.probability(site) > 0.0
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a probability's share of all numbers of 32 bits; the place only stirs them"
    )]
    pub(super) fn drop_in_place(&self, values: &mut [f32], site: Site, input: usize) {
        if !self.drops(site) {
            return;
        }
        let probability = self.probability(site);
        let below = (f64::from(probability) * 2f64.powi(32)) as u32;
        let scale = 1.0 / (1.0 - probability);
        let key = [site.number(), input as u64]
            .iter()
            .fold(stirred(self.seed), |key, part| stirred(key ^ part));
        let keys = [key as u32, (key >> 32) as u32];
        Arch::new().dispatch(|| {
            for (place, value) in values.iter_mut().enumerate() {
                let drawn = drawn(place as u32, keys);
                *value = if drawn < below { 0.0 } else { *value * scale };
            }
        });
    }

    fn probability(&self, site: Site) -> f32 {
        match site {
            Site::Attention(..) => self.attention,
            Site::Pooled => self.classifier,
            _ => self.hidden,
        }
    }
}

impl Site {
    fn number(self) -> u64 {
        let (kind, layer, head) = match self {
            Self::Embeddings => (0, 0, 0),
            Self::Attention(layer, head) => (1, layer, head),
            Self::Attended(layer) => (2, layer, 0),
            Self::Outer(layer) => (3, layer, 0),
            Self::Pooled => (4, 0, 0),
        };
        kind | (layer as u64) << 8 | (head as u64) << 32
    }
}

/// `SplitMix64`'s output function after a step.
fn stirred(state: u64) -> u64 {
    let mut mixed = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// A number of 32 bits for each place: `MurmurHash3`'s last steps, with a key before each product.
#[expect(
    clippy::inline_always,
    reason = "what is not inlined into the dispatched loop is not vectorised with it"
)]
#[inline(always)]
fn drawn(place: u32, keys: [u32; 2]) -> u32 {
    let mut mixed = place.wrapping_mul(0x9E37_79B1) ^ keys[0];
    mixed = (mixed ^ (mixed >> 16)).wrapping_mul(0x85EB_CA6B) ^ keys[1];
    mixed = (mixed ^ (mixed >> 13)).wrapping_mul(0xC2B2_AE35);
    mixed ^ (mixed >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DROPOUT: Dropout = Dropout {
        seed: 7,
        hidden: 0.1,
        attention: 0.3,
        classifier: 0.0,
    };
    const SITES: [Site; 4] = [
        Site::Embeddings,
        Site::Attention(2, 1),
        Site::Attention(1, 2),
        Site::Outer(1),
    ];

    /// As many are dropped as should be, and those of two places have nothing to do with each
    /// other.
    #[test]
    fn as_many_are_dropped_as_asked_for() {
        let ones = vec![1.0; 100_000];
        let mut all = Vec::new();
        for (site, seed) in SITES.iter().flat_map(|site| [(site, 7), (site, 8)]) {
            for input in [0, 1] {
                let dropout = Dropout { seed, ..DROPOUT };
                let values = dropout.drop(&ones, *site, input).into_owned();
                let probability = f64::from(dropout.probability(*site));
                let dropped: Vec<bool> = values.iter().map(|value| *value == 0.0).collect();
                // Five standard deviations.
                let band = 5.0 * (probability * (1.0 - probability) / 1e5).sqrt();
                assert!((share(&dropped) - probability).abs() < band);
                let after: Vec<bool> = dropped.windows(2).map(|two| two[0] && two[1]).collect();
                assert!((share(&after) - probability.powi(2)).abs() < band);
                let sum: f64 = values.iter().map(|value| f64::from(*value)).sum();
                assert!((sum / 1e5 - 1.0).abs() < 2.0 * band, "{sum}");
                all.push((dropped, probability));
            }
        }
        for (place, (one, of_one)) in all.iter().enumerate() {
            for (other, of_other) in &all[..place] {
                let both: Vec<bool> = one.iter().zip(other).map(|(a, b)| *a && *b).collect();
                assert!((share(&both) - of_one * of_other).abs() < 0.005);
            }
        }
    }

    #[test]
    fn nothing_is_dropped_at_probability_0() {
        let values = [1.0, -2.0];
        let dropped = DROPOUT.drop(&values, Site::Pooled, 3);
        assert!(matches!(dropped, Cow::Borrowed(same) if same == values));
    }

    fn share(dropped: &[bool]) -> f64 {
        dropped.iter().filter(|is_dropped| **is_dropped).count() as f64 / dropped.len() as f64
    }
}
