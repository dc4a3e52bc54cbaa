//! Numbers of parameters by name: on a GPU in few tensors, for what is done with one is a kernel to
//! start; on the CPU in one a parameter, for putting them together would copy them.

use std::collections::BTreeMap;
use std::mem;

use burn::tensor::{Device, Tensor};

/// Numbers of some parameters, one after the other.
pub(crate) struct Bundle {
    /// Each with how many numbers it has, in the order of names.
    pub(crate) parameters: Vec<(String, usize)>,
    pub(crate) values: Tensor<1>,
}

/// Beyond so many, a tensor has no other parameter's: adapters are there that bind 128 MiB at most.
const MOST: usize = 1 << 24;

impl Bundle {
    /// As few as may be of vectors that are on one device.
    pub(crate) fn of(by_name: BTreeMap<String, Tensor<1>>) -> Vec<Self> {
        let mut bundles = Vec::new();
        let (mut parameters, mut vectors, mut length) = (Vec::new(), Vec::new(), 0);
        for (name, vector) in by_name {
            let more = vector.dims()[0];
            let stays_alone = vector.device() == Device::flex() || length + more > MOST;
            if stays_alone && length > 0 {
                bundles.push(Self::join(
                    mem::take(&mut parameters),
                    mem::take(&mut vectors),
                ));
                length = 0;
            }
            parameters.push((name, more));
            vectors.push(vector);
            length += more;
        }
        if !parameters.is_empty() {
            bundles.push(Self::join(parameters, vectors));
        }
        bundles
    }

    fn join(parameters: Vec<(String, usize)>, mut vectors: Vec<Tensor<1>>) -> Self {
        let values = match vectors.len() {
            1 => vectors.remove(0),
            _ => Tensor::cat(vectors, 0),
        };
        Self { parameters, values }
    }

    /// The numbers of each parameter.
    pub(crate) fn apart(self) -> impl Iterator<Item = (String, Tensor<1>)> {
        let Self { parameters, values } = self;
        let is_alone = parameters.len() == 1;
        let mut begin = 0;
        parameters.into_iter().map(move |(name, length)| {
            let its = if is_alone {
                values.clone()
            } else {
                values.clone().narrow(0, begin, length)
            };
            begin += length;
            (name, its)
        })
    }

    /// Other numbers of the same parameters.
    pub(crate) fn with(&self, values: Tensor<1>) -> Self {
        Self {
            parameters: self.parameters.clone(),
            values,
        }
    }
}
