//! Parameters drawn by chance, the same on every device.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Draws weights from the normal distribution; biases are zero, a norm's weights one.
pub(crate) struct Draw {
    random: ChaCha8Rng,
    deviation: f64,
}

impl Draw {
    pub(crate) fn new(seed: u64, deviation: f64) -> Self {
        Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            deviation,
        }
    }

    /// The values of the parameter of that name.
    pub(crate) fn values(&mut self, name: &str, shape: &[usize]) -> Vec<f32> {
        let count = shape.iter().product();
        if name.ends_with("bias") {
            return vec![0.0; count];
        }
        if shape.len() == 1 {
            return vec![1.0; count];
        }
        (0..count).map(|_| self.normal(self.deviation)).collect()
    }

    /// A draw from the normal distribution around 0, by Box and Muller.
    #[allow(clippy::cast_possible_truncation, reason = "weights have 32 bits")]
    pub(crate) fn normal(&mut self, deviation: f64) -> f32 {
        // In (0, 1]: the logarithm of 0 is no number.
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.uniform()).cos();
        (normal * deviation) as f32
    }

    /// A draw from [0, 1), in steps of 2^-32.
    fn uniform(&mut self) -> f64 {
        f64::from(self.random.next_u32()) / (f64::from(u32::MAX) + 1.0)
    }
}
