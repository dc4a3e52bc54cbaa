//! GELU, exact: `x Φ(x)` with Φ the normal distribution function (Hendrycks and Gimpel, 2016, arXiv
//! 1606.08415).
//!
//! The CPU device computes the error function one number at a time, which was a fifth of a training
//! step. Here Φ and the slope `Φ(x) + x φ(x)` are rational functions of `x²` that a compiler can
//! vectorise, with an error below 3e-7 (`tests/golden/gelu/make.py`, which fitted them).

#![expect(
    clippy::inline_always,
    reason = "what is not inlined into the dispatched loop is not vectorised with it"
)]

use burn::tensor::activation;
use burn::tensor::{DType, Tensor, TensorData};
use pulp::Arch;

use crate::parallel::is_cpu;

/// GELU of every element.
pub(crate) fn gelu<const N: usize>(input: Tensor<N>) -> Tensor<N> {
    let device = input.device();
    if !is_cpu(&device) || input.dtype() != DType::F32 {
        return activation::gelu(input);
    }
    let shape = input.shape();
    let constant = |values| Tensor::from_data(TensorData::new(values, shape.clone()), &device);
    let is_trained = input.is_autodiff();
    let Ok(mut values) = input.clone().detach().into_data().try_into_vec::<f32>() else {
        return activation::gelu(input);
    };
    if !is_trained {
        Arch::new().dispatch(|| {
            for value in &mut values {
                *value *= cumulative(*value);
            }
        });
        return constant(values);
    }
    let mut slopes = vec![0.0; values.len()];
    Arch::new().dispatch(|| {
        for (value, slope) in values.iter_mut().zip(&mut slopes) {
            *slope = derivative(*value);
            *value *= cumulative(*value);
        }
    });
    // The first term is 0 and has the gradient, the second has the value and no gradient.
    (input.clone() - input.detach()) * constant(slopes) + constant(values)
}

/// Beyond it, Φ and the slope are 0 or 1 to the last digit.
const END: f32 = 6.0;

/// Φ.
#[inline(always)]
pub(crate) fn cumulative(x: f32) -> f32 {
    odd(
        x,
        &[
            8.157_469e-8,
            9.428_543e-6,
            1.887_845_9e-4,
            4.957_471e-3,
            3.410_223_5e-2,
            3.989_423e-1,
        ],
        &[
            4.576_55e-9,
            2.401_747e-6,
            9.064_49e-5,
            2.054_579e-3,
            2.945_088_6e-2,
            2.521_484_8e-1,
            1.0,
        ],
    )
}

/// The derivative of `x Φ(x)`.
#[inline(always)]
pub(crate) fn derivative(x: f32) -> f32 {
    odd(
        x,
        &[
            8.994_973e-11,
            2.961_154_3e-8,
            3.021_718e-7,
            4.052_946_3e-5,
            -5.366_872_6e-5,
            1.475_419e-2,
            -3.583_351_5e-2,
            7.978_846e-1,
        ],
        &[
            5.406_562e-9,
            2.619_707_4e-7,
            8.746_664e-6,
            2.040_707_8e-4,
            3.416_646_3e-3,
            3.963_253e-2,
            2.884_226_7e-1,
            1.0,
        ],
    )
}

/// `1/2 + x P(x²) / Q(x²)`, the coefficients from the highest power down.
#[inline(always)]
fn odd<const P: usize, const Q: usize>(x: f32, p: &[f32; P], q: &[f32; Q]) -> f32 {
    let x = x.clamp(-END, END);
    let square = x * x;
    let horner = |sum: f32, coefficient: &f32| sum * square + coefficient;
    0.5 + x * (p.iter().fold(0.0, horner) / q.iter().fold(0.0, horner))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[derive(serde::Deserialize)]
    struct Golden {
        x: Vec<f32>,
        value: Vec<f64>,
        slope: Vec<f64>,
    }

    fn floats(tensor: Tensor<1>) -> Vec<f32> {
        tensor.into_data().try_into_vec().unwrap()
    }

    /// Against the reference in double precision: `tests/golden/gelu/make.py`.
    #[test]
    fn values_and_slopes_are_the_reference_s() {
        let golden = include_str!("../../../tests/golden/gelu/golden.json");
        let golden: Golden = serde_json::from_str(golden).unwrap();
        let device = Device::flex().autodiff();
        let input = Tensor::<1>::from_floats(golden.x.as_slice(), &device).require_grad();
        let output = gelu(input.clone());
        let gradients = output.clone().sum().backward();
        let trained = floats(output);
        let slopes = floats(input.grad(&gradients).unwrap());
        let input = Tensor::<1>::from_floats(golden.x.as_slice(), &Device::flex());
        let values = floats(gelu(input));
        assert_eq!(values, trained);
        assert!(golden.x.len() > 100);
        for (place, x) in golden.x.iter().enumerate() {
            let value = (f64::from(values[place]) - golden.value[place]).abs();
            let slope = (f64::from(slopes[place]) - golden.slope[place]).abs();
            let scale = f64::from(x.abs().max(1.0));
            assert!(value < 3e-7 * scale, "gelu({x}) is off by {value:e}");
            assert!(slope < 4e-7, "the slope at {x} is off by {slope:e}");
        }
    }
}
