//! Parameters as vectors. On the CPU they are worked on in one pass over memory on all cores: as
//! tensor operations, of which each is a pass on one core, the update of a 22.7 M parameter model
//! takes a third of a training step.

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use crate::{Error, Result};

/// Numbers that one core handles at a time.
pub(crate) const CHUNK: usize = 1 << 14;

pub(crate) fn add(a: Tensor<1>, b: Tensor<1>) -> Tensor<1> {
    let device = a.device();
    if device != Device::flex() {
        return a + b;
    }
    let (mut a, b) = (host(a), host(b));
    a.par_chunks_mut(CHUNK)
        .zip(b.par_chunks(CHUNK))
        .for_each(|(a, b)| {
            for (a, b) in a.iter_mut().zip(b) {
                *a += b;
            }
        });
    from_host(a, &device)
}

/// Moves a running mean towards a value, of which it keeps that share of itself.
pub(crate) fn blend(mean: Tensor<1>, value: Tensor<1>, share: f64) -> Tensor<1> {
    let device = mean.device();
    if device != Device::flex() {
        let difference = value - mean.clone();
        return mean + difference.mul_scalar(1.0 - share);
    }
    let (mut mean, value) = (host(mean), host(value));
    #[expect(clippy::cast_possible_truncation, reason = "parameters have 32 bits")]
    let rest = (1.0 - share) as f32;
    mean.par_chunks_mut(CHUNK)
        .zip(value.par_chunks(CHUNK))
        .for_each(|(mean, value)| {
            for (mean, value) in mean.iter_mut().zip(value) {
                *mean += rest * (value - *mean);
            }
        });
    from_host(mean, &device)
}

/// Over all of several tensors, in their order. A GPU is asked once for all of them: until it answers,
/// it has nothing else to do.
pub(crate) fn sum_of_squares<'a>(tensors: impl Iterator<Item = &'a Tensor<1>>) -> Result<f64> {
    let (here, there): (Vec<Tensor<1>>, Vec<Tensor<1>>) = tensors
        .cloned()
        .partition(|one| one.device() == Device::flex());
    let here: f64 = here.iter().map(sum_of_squares_on_host).sum();
    let Some(sums) = retort_model::squares(&there) else {
        return Ok(here);
    };
    let sums = to_host(sums)?;
    Ok(here + sums.into_iter().map(f64::from).sum::<f64>())
}

fn sum_of_squares_on_host(tensor: &Tensor<1>) -> f64 {
    let data = tensor.clone().into_data();
    let Ok(values) = data.as_slice::<f32>() else {
        return f64::NAN;
    };
    // Chunks of one size, summed in order: the same number on any number of cores.
    let sums: Vec<f64> = values
        .par_chunks(1 << 16)
        .map(|chunk| chunk.iter().map(|value| f64::from(*value).powi(2)).sum())
        .collect();
    sums.into_iter().sum()
}

pub(crate) fn to_host(tensor: Tensor<1>) -> Result<Vec<f32>> {
    tensor
        .try_into_vec_as::<f32>()
        .map_err(|error| Error::Model(retort_model::Error::from(error)))
}

/// The numbers of a tensor that is in this memory: moved, not copied, where nobody shares them.
pub(crate) fn host(tensor: Tensor<1>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().unwrap_or_default()
}

pub(crate) fn from_host(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}
