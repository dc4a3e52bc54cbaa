//! The slopes at parameters, as the way back by hand finds them.

use std::collections::HashMap;
use std::ops::Range;

use burn::module::ParamId;
use burn::tensor::Tensor;

use crate::bundle::Group;

/// None, where nothing goes back by hand.
#[derive(Default)]
pub(crate) struct Slopes {
    /// Of each by itself.
    pub(crate) alone: HashMap<ParamId, Tensor<1>>,
    /// In the order of the way back.
    pub(crate) of_groups: Vec<OfGroup>,
}

/// Those of a group's parameters, in one vector.
pub(crate) struct OfGroup {
    pub(crate) group: Group,
    pub(crate) places: Vec<(ParamId, Range<usize>)>,
    pub(crate) values: Tensor<1>,
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

    /// Those that several passes found, of the same groups.
    pub(crate) fn plus(mut self, other: Self) -> Self {
        for (id, slopes) in other.alone {
            self.add(id, slopes.unsqueeze());
        }
        let both = self.of_groups.into_iter().zip(other.of_groups);
        let sum = |(one, other): (OfGroup, OfGroup)| OfGroup {
            values: one.values + other.values,
            ..one
        };
        self.of_groups = both.map(sum).collect();
        self
    }
}
