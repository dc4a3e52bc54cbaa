//! Numbers of parameters by name: on a GPU in few tensors, for what is done with one is a kernel to
//! start; on the CPU in one a parameter, for putting them together would copy them.

use std::collections::BTreeMap;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData, TensorReadError, Transaction};

use crate::error::Result;

/// Numbers of some parameters in one vector.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Each with the place of its numbers, in their order. What lies between is 0 and stays 0.
    pub parameters: Arc<[(String, Range<usize>)]>,
    /// All of them, without autodiff.
    pub values: Tensor<1>,
    /// Whose, where they are those of a part of the model that a GPU has its own kernels for.
    pub group: Option<Group>,
}

/// A part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// All of the embeddings, but for what projects them.
    Embeddings,
    /// What projects them, where something does.
    Projection,
    /// A layer, from 0.
    Layer(usize),
    /// The head.
    Head,
}

/// Beyond so many, a tensor has no other parameter's: adapters are there that bind 128 MiB at most.
const MOST: usize = 1 << 24;

impl Bundle {
    /// As few as may be of vectors that are on one device.
    pub fn of(by_name: BTreeMap<String, Tensor<1>>) -> Vec<Self> {
        let mut bundles = Vec::new();
        let (mut names, mut vectors, mut length) = (Vec::new(), Vec::new(), 0);
        for (name, vector) in by_name {
            let more = vector.dims()[0];
            let stays_alone = vector.device() == Device::flex() || length + more > MOST;
            if stays_alone && length > 0 {
                bundles.push(Self::join(mem::take(&mut names), mem::take(&mut vectors)));
                length = 0;
            }
            names.push(name);
            vectors.push(vector);
            length += more;
        }
        if !names.is_empty() {
            bundles.push(Self::join(names, vectors));
        }
        bundles
    }

    fn join(names: Vec<String>, vectors: Vec<Tensor<1>>) -> Self {
        let mut end = 0;
        let lengths = vectors.iter().map(|vector| vector.dims()[0]);
        let ranges = lengths.map(|length| {
            let begin = end;
            end += length;
            begin..end
        });
        let parameters = names.into_iter().zip(ranges).collect();
        let values = one(vectors);
        Self {
            parameters,
            values,
            group: None,
        }
    }

    /// Numbers in these places of a vector so long: those given by name, 0 of others and between them.
    #[must_use]
    pub fn filled(
        parameters: Arc<[(String, Range<usize>)]>,
        length: usize,
        group: Option<Group>,
        by_name: &mut BTreeMap<String, Tensor<1>>,
        device: &Device,
    ) -> Self {
        let mut vectors = Vec::new();
        let mut end = 0;
        let zeros = |length: usize| Tensor::zeros([length], device);
        for (name, range) in &*parameters {
            if range.start > end {
                vectors.push(zeros(range.start - end));
            }
            let its = by_name.remove(name);
            vectors.push(its.unwrap_or_else(|| zeros(range.len())));
            end = range.end;
        }
        if length > end {
            vectors.push(zeros(length - end));
        }
        let values = one(vectors);
        Self {
            parameters,
            values,
            group,
        }
    }

    /// The numbers of each parameter.
    pub fn apart(self) -> impl Iterator<Item = (String, Tensor<1>)> {
        let Self {
            parameters, values, ..
        } = self;
        let [length] = values.dims();
        (0..parameters.len()).map(move |place| {
            let (name, range) = &parameters[place];
            let its = if range.len() == length {
                values.clone()
            } else {
                values.clone().narrow(0, range.start, range.len())
            };
            (name.clone(), its)
        })
    }

    /// Other numbers of the same parameters.
    #[must_use]
    pub fn with(&self, values: Tensor<1>) -> Self {
        Self {
            parameters: Arc::clone(&self.parameters),
            values,
            group: self.group,
        }
    }
}

/// The numbers of vectors that are on one device, which is asked once for all of them.
///
/// # Errors
/// A device that fails.
pub fn read(vectors: impl IntoIterator<Item = Tensor<1>>) -> Result<Vec<Vec<f32>>> {
    numbers(
        vectors
            .into_iter()
            .fold(Transaction::default(), Transaction::register),
    )
}

pub(crate) fn numbers(reading: Transaction) -> Result<Vec<Vec<f32>>> {
    let values = reading.try_execute().map_err(TensorReadError::from)?;
    let values = values.into_iter().map(TensorData::try_into_vec_as);
    let values = values.map(|values| values.map_err(TensorReadError::from));
    Ok(values.collect::<std::result::Result<_, _>>()?)
}

/// Of several vectors, one behind the other.
fn one(mut vectors: Vec<Tensor<1>>) -> Tensor<1> {
    match vectors.len() {
        1 => vectors.remove(0),
        _ => Tensor::cat(vectors, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_vectors_are_read_as_there_are() {
        let device = Device::flex();
        let vector = |values: &[f32]| Tensor::from_floats(values, &device);
        assert!(read([]).unwrap().is_empty());
        let both = read([vector(&[1.0, 2.0]), vector(&[3.0])]).unwrap();
        assert_eq!(both, [vec![1.0, 2.0], vec![3.0]]);
    }
}
