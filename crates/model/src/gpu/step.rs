//! A step of a layer's parameters.

use std::array;
use std::ops::Range;

use burn::cubecl::calculate_cube_count_elemwise;
use burn::cubecl::prelude::CubeDim;
use burn::cubecl::server::Overlap;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::launch::{read, vector_of, view};
use super::layout::Slopes;
use super::{LayerWeights, Step, kernels};

/// A layer's parameters after a step, side by side in memory: so they are one input of the next one.
pub(super) fn moved(
    weights: LayerWeights<CubeBackend>,
    direction: CubeTensor,
    step: Step,
) -> LayerWeights<CubeBackend> {
    let parameters = weights.contiguous().in_order();
    let direction = into_contiguous(direction);
    let (client, length) = (direction.client.clone(), step.slopes.length());
    let output = CubeTensor::new_contiguous(
        client.clone(),
        direction.device.clone(),
        [length].into(),
        client.empty(length * size_of::<f32>()),
        DType::F32,
    );
    let ranges = step.slopes.ranges();
    let put = |input: &CubeTensor, Range { start, end }: Range<usize>| {
        let vector = vector_of(end - start, start);
        let units = (end - start) / vector;
        let dim = CubeDim::new(&client, units);
        kernels::moved::launch(
            &client,
            calculate_cube_count_elemwise(&client, units, dim),
            dim,
            vector,
            read(input),
            read(&direction),
            read(&output),
            units,
            start / vector,
            step.slopes.vectors() / vector,
            step.kept,
            step.share,
        );
    };
    if let Some(all) = as_one(&parameters, step.slopes) {
        put(&all, 0..length);
    } else {
        for (parameter, range) in parameters.iter().zip(ranges.clone()) {
            put(parameter, range);
        }
    }
    LayerWeights::of_order(array::from_fn(|which| {
        let shape = parameters[which].meta.shape().clone();
        view(&output, ranges[which].start, shape)
    }))
}

/// All of them as one vector, where they lie like that, as a step before this one left them.
fn as_one(parameters: &[CubeTensor], slopes: Slopes) -> Option<CubeTensor> {
    let first = parameters.first()?;
    let mut handle = first.handle.clone();
    (handle.offset_start, handle.offset_end) = (None, None);
    let length = slopes.length();
    let size = size_of::<f32>() as u64;
    let lies_in = |(parameter, range): (&CubeTensor, Range<usize>)| {
        let begin = parameter.handle.offset_start.unwrap_or(0);
        begin == range.start as u64 * size && handle.overlap(&parameter.handle) != Overlap::Disjoint
    };
    let all_lie = parameters.iter().zip(slopes.ranges()).all(lies_in);
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
