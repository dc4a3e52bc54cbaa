//! A step of parameters.

use std::ops::Range;

use burn::cubecl::calculate_cube_count_elemwise;
use burn::cubecl::prelude::{CubeCount, CubeDim};
use burn::cubecl::server::Overlap;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::kernels;
use super::launch::{count, read, vector_of, view};
use super::layout::Places;
use crate::pass::Adam;

/// Into how many sums the squares of a vector go, each of a cube of so many units.
pub(super) const SUMS: usize = 256;
const UNITS: usize = 256;

/// Sums of the squares of a vector, in the place of those that `into` has there.
pub(super) fn squares(values: CubeTensor, into: CubeTensor, place: usize) -> CubeTensor {
    let values = into_contiguous(values);
    let into = if into.can_mut() { into } else { into.copy() };
    let length = values.meta.num_elements();
    let vector = vector_of(length, 4);
    kernels::squares::launch(
        &values.client,
        CubeCount::new_1d(count(SUMS)),
        CubeDim::new_1d(count(UNITS)),
        vector,
        read(&values),
        read(&into),
        length / vector,
        place * SUMS,
        UNITS,
        SUMS,
    );
    into
}

/// What parameters are moved by.
#[derive(Clone)]
pub(crate) struct Step {
    pub(super) places: Places,
    pub(super) adam: Adam,
}

/// Gradients of parameters, or their running means, in one vector.
pub(super) struct Moments {
    pub(super) mean: CubeTensor,
    pub(super) square: CubeTensor,
}

/// Parameters after a step, side by side in memory: so they are one input of the next one. Those that
/// have no place stay as they are.
pub(super) fn moved<const N: usize>(
    parameters: [CubeTensor; N],
    gradient: CubeTensor,
    moments: Moments,
    step: &Step,
) -> ([CubeTensor; N], Moments) {
    let parameters = parameters.map(into_contiguous);
    let [gradient, mean, square] = [gradient, moments.mean, moments.square].map(into_contiguous);
    let (client, length) = (gradient.client.clone(), step.places.length);
    let in_one = as_one(&parameters, &step.places);
    // What lies between parameters is written with them where they lie like that already.
    let has_gaps = in_one.is_none() && step.places.has_gaps();
    let empty = || {
        let (device, shape) = (gradient.device.clone(), Shape::from([length]));
        if has_gaps {
            return burn_cubecl::ops::numeric::zeros(device, shape, DType::F32);
        }
        let handle = client.empty(length * size_of::<f32>());
        CubeTensor::new_contiguous(client.clone(), device, shape, handle, DType::F32)
    };
    let (output, new_mean, new_square) = (empty(), empty(), empty());
    let put = |input: &CubeTensor, Range { start, end }: Range<usize>| {
        let vector = vector_of(end - start, start);
        let units = (end - start) / vector;
        let dim = CubeDim::new(&client, units);
        #[expect(clippy::cast_possible_truncation, reason = "parameters have 32 bits")]
        let narrow = |wide: f64| wide as f32;
        let adam = &step.adam;
        kernels::adam::launch(
            &client,
            calculate_cube_count_elemwise(&client, units, dim),
            dim,
            vector,
            read(input),
            read(&gradient),
            read(&mean),
            read(&square),
            read(&output),
            read(&new_mean),
            read(&new_square),
            units,
            start / vector,
            step.places.vectors / vector,
            narrow(adam.gradient_scale),
            narrow(adam.beta1),
            // Of narrow numbers, the difference would be off by 1e-5 of itself.
            narrow(1.0 - adam.beta1),
            narrow(adam.beta2),
            narrow(1.0 - adam.beta2),
            narrow(adam.rate),
            narrow(adam.square_correction),
            narrow(adam.epsilon),
            narrow(adam.kept),
        );
    };
    if let Some(all) = in_one {
        put(&all, 0..length);
    } else {
        for (parameter, range) in placed(&parameters, &step.places) {
            put(parameter, range);
        }
    }
    let mut ranges = step.places.ranges.iter();
    let parameters = parameters.map(|parameter| match ranges.next() {
        Some(range) if !range.is_empty() => {
            view(&output, range.start, parameter.meta.shape().clone())
        }
        _ => parameter,
    });
    let moments = Moments {
        mean: new_mean,
        square: new_square,
    };
    (parameters, moments)
}

fn placed<'a>(
    parameters: &'a [CubeTensor],
    places: &Places,
) -> impl Iterator<Item = (&'a CubeTensor, Range<usize>)> {
    let both = parameters.iter().zip(places.ranges.iter().cloned());
    both.filter(|(_, range)| !range.is_empty())
}

/// All of them as one vector, where they lie like that, as a step before this one left them.
pub(super) fn as_one(parameters: &[CubeTensor], places: &Places) -> Option<CubeTensor> {
    let (first, _) = placed(parameters, places).next()?;
    let mut handle = first.handle.clone();
    (handle.offset_start, handle.offset_end) = (None, None);
    let length = places.length;
    let size = size_of::<f32>() as u64;
    let lies_in = |(parameter, range): (&CubeTensor, Range<usize>)| {
        let begin = parameter.handle.offset_start.unwrap_or(0);
        begin == range.start as u64 * size && handle.overlap(&parameter.handle) != Overlap::Disjoint
    };
    let all_lie = placed(parameters, places).all(lies_in);
    (all_lie && handle.size() == length as u64 * size).then(|| {
        CubeTensor::new_contiguous(
            first.client.clone(),
            first.device.clone(),
            [length].into(),
            handle.clone(),
            DType::F32,
        )
    })
}
