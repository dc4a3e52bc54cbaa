//! The slopes at parameters, as the way back by hand finds them.

use std::collections::HashMap;
use std::ops::Range;

use burn::module::ParamId;
use burn::tensor::Tensor;

/// The place of each parameter in a vector.
pub(crate) type Places = Vec<(ParamId, Range<usize>)>;

/// None, where nothing goes back by hand.
#[derive(Default)]
pub(crate) struct Slopes {
    /// Of each by itself.
    pub(crate) alone: HashMap<ParamId, Tensor<1>>,
    /// Of each layer, from the last to the first, with the place of each parameter's.
    pub(crate) of_layers: Vec<(Places, Tensor<1>)>,
}

#[cfg(feature = "gpu")]
impl Slopes {
    pub(crate) fn add(&mut self, id: ParamId, slopes: Tensor<2>) {
        let slopes = slopes.flatten(0, 1);
        let slopes = match self.alone.remove(&id) {
            None => slopes,
            Some(sum) => sum + slopes,
        };
        self.alone.insert(id, slopes);
    }

    /// Those that several passes found.
    pub(crate) fn plus(mut self, other: Self) -> Self {
        for (id, slopes) in other.alone {
            self.add(id, slopes.unsqueeze());
        }
        if self.of_layers.is_empty() || other.of_layers.is_empty() {
            self.of_layers.extend(other.of_layers);
            return self;
        }
        let both = self.of_layers.into_iter().zip(other.of_layers);
        self.of_layers = both
            .map(|((places, one), (_, other))| (places, one + other))
            .collect();
        self
    }
}
