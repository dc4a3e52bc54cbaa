//! A step of parameters.

use burn::cubecl::calculate_cube_count_elemwise;
use burn::cubecl::prelude::{CubeCount, CubeDim};
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::kernels;
use super::launch::{count, read, vector_of};
use crate::update::Adam;

/// Into how many sums the squares of a vector go, each of a cube of so many units.
pub(super) const SUMS: usize = 256;
const UNITS: usize = 256;

/// Sums of the squares of a vector, in the place of those that `into` has there.
pub(super) fn squares(values: CubeTensor, into: CubeTensor, place: usize) -> CubeTensor {
    let (values, into) = (into_contiguous(values), own(into));
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

/// What gradients are multiplied with, and the norm of the loss's own: `[2]`, from sums of the squares of all.
pub(super) fn clip(sums: CubeTensor, most: f32, scale: f32) -> CubeTensor {
    let sums = into_contiguous(sums);
    let count_of_sums = sums.meta.num_elements();
    let output = CubeTensor::new_contiguous(
        sums.client.clone(),
        sums.device.clone(),
        [2].into(),
        sums.client.empty(2 * size_of::<f32>()),
        DType::F32,
    );
    kernels::clip::launch(
        &sums.client,
        CubeCount::new_single(),
        CubeDim::new_1d(count(UNITS)),
        read(&sums),
        read(&output),
        count_of_sums,
        most,
        scale,
        UNITS,
    );
    output
}

/// How parameters are moved.
#[derive(Clone)]
pub(crate) struct Step {
    /// So many decay, the first.
    pub(super) decaying: usize,
    pub(super) adam: Adam,
}

/// Parameters, and the running means of their gradients and of these' squares, after a step: in their own
/// memory, where nothing else has a share in it.
pub(super) fn moved(
    parameters: CubeTensor,
    gradient: CubeTensor,
    clip: CubeTensor,
    moments: [CubeTensor; 2],
    step: &Step,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let (gradient, parameters) = (into_contiguous(gradient), own(parameters));
    let [mean, square] = moments.map(own);
    let length = parameters.meta.num_elements();
    let vector = vector_of(length, step.decaying);
    let units = length / vector;
    let client = &parameters.client;
    let dim = CubeDim::new(client, units);
    #[expect(clippy::cast_possible_truncation, reason = "parameters have 32 bits")]
    let narrow = |wide: f64| wide as f32;
    let adam = &step.adam;
    kernels::adam::launch(
        client,
        calculate_cube_count_elemwise(client, units, dim),
        dim,
        vector,
        read(&gradient),
        read(&into_contiguous(clip)),
        read(&parameters),
        read(&mean),
        read(&square),
        units,
        step.decaying / vector,
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
    (parameters, mean, square)
}

/// What may be written over.
fn own(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    if tensor.can_mut() {
        tensor
    } else {
        tensor.copy()
    }
}
