//! What is computed in what.

use std::fmt;

use burn::nn::Linear;
use burn::tensor::{Device, FloatDType, Tensor, module};
use serde::{Deserialize, Serialize};

use crate::device::is_cuda;
use crate::error::{Error, Result};

/// What training computes in what.
///
/// A policy is about the operands of the encoder's matrix products, where the time goes, and which
/// way through them gradients take back. All else has 32 bits under each: parameters, gradients and
/// what an optimiser keeps of them, sums of residuals, biases, layer norms, softmax, GELU, the layers
/// on top of the encoder, the loss; softmax goes back by its weights as they were multiplied. So have
/// scores outside of training, whatever the policy: what is evaluated is what is stored. CUDA cuts the operands of 32-bit products to TF32 where
/// [`configure`](crate::configure) was called with a policy of fewer bits than those of
/// [`Precision::F32`]: that is one choice for all of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Products of 32-bit numbers.
    #[default]
    F32,
    /// The same, of which CUDA cuts the operands to TF32: the range of 32 bits, 10 bits of fraction.
    Tf32,
    /// Operands are cast to bfloat16: the range of 32 bits, 7 bits of fraction.
    Bf16,
    /// Operands are cast to half precision: 10 bits of fraction, but nothing above 65,504 and little
    /// below 6e-8, so the loss has to be scaled.
    F16,
}

impl Precision {
    const ALL: [Self; 4] = [Self::F32, Self::Tf32, Self::Bf16, Self::F16];

    /// Those that a device computes in.
    pub fn of(device: &Device) -> Vec<Self> {
        let computes = |one: &Self| one.check(device).is_ok();
        Self::ALL.into_iter().filter(computes).collect()
    }

    /// Refuses a device that computes in something else.
    ///
    /// # Errors
    /// With what to choose instead.
    pub fn check(self, device: &Device) -> Result<()> {
        let has = |dtype| device.supports_dtype(dtype);
        let hint = match self {
            Self::Tf32 if !is_cuda(device) => "it is CUDA's alone: choose \"f32\"",
            Self::Bf16 if !has(FloatDType::BF16) && has(FloatDType::F16) => {
                "CUDA and, slowly, the CPU have it: choose \"f16\", \"f32\" or one of these devices"
            }
            Self::Bf16 if !has(FloatDType::BF16) => {
                "CUDA and, slowly, the CPU have it: choose \"f32\" or one of these devices"
            }
            Self::F16 if !has(FloatDType::F16) => {
                "CUDA, many GPUs through wgpu and, slowly, the CPU have it: choose \"f32\" or one of \
                 these devices"
            }
            _ => return Ok(()),
        };
        Err(Error::Precision {
            precision: self,
            hint,
        })
    }

    /// Whether small gradients are lost unless the loss is multiplied by something.
    pub fn scales_loss(self) -> bool {
        self == Self::F16
    }

    /// What operands are cast to, where they are.
    pub(crate) fn operands(self) -> Option<FloatDType> {
        match self {
            Self::F32 | Self::Tf32 => None,
            Self::Bf16 => Some(FloatDType::BF16),
            Self::F16 => Some(FloatDType::F16),
        }
    }

    /// As products in training take it.
    pub(crate) fn operand<const N: usize>(self, tensor: Tensor<N>) -> Tensor<N> {
        match self.operands() {
            Some(narrow) => tensor.cast(narrow),
            None => tensor,
        }
    }

    /// As products in training give it to what comes after them.
    #[cfg(feature = "gpu")]
    pub(crate) fn wide<const N: usize>(self, product: Tensor<N>) -> Tensor<N> {
        match self.operands() {
            Some(_) => product.cast(FloatDType::F32),
            None => product,
        }
    }

    /// A linear map. Parameters are cast within the graph, so that they and their gradients have 32
    /// bits; the bias is added with 32.
    pub(crate) fn linear<const N: usize>(self, linear: &Linear, input: Tensor<N>) -> Tensor<N> {
        let Some(narrow) = self.in_training(&input) else {
            return linear.forward(input);
        };
        let weight = linear.weight.val().cast(narrow);
        let product = module::linear(input.cast(narrow), weight, None).cast(FloatDType::F32);
        match &linear.bias {
            Some(bias) => product + bias.val().unsqueeze(),
            None => product,
        }
    }

    /// A product of matrices.
    pub(crate) fn matmul(self, left: Tensor<4>, right: Tensor<4>) -> Tensor<4> {
        match self.in_training(&left) {
            None => left.matmul(right),
            Some(narrow) => (left.cast(narrow).matmul(right.cast(narrow))).cast(FloatDType::F32),
        }
    }

    fn in_training<const N: usize>(self, input: &Tensor<N>) -> Option<FloatDType> {
        self.operands().filter(|_| input.is_autodiff())
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;

    #[test]
    fn the_cpu_has_all_but_tf32() {
        let device = Device::flex();
        let expected = [Precision::F32, Precision::Bf16, Precision::F16];
        assert_eq!(Precision::of(&device), expected);
        assert_eq!(Precision::of(&device.autodiff()), expected);
        let error = Precision::Tf32.check(&Device::flex()).unwrap_err();
        let expected = "this device does not train in tf32: it is CUDA's alone: choose \"f32\"";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn names_are_those_of_settings() {
        for precision in Precision::ALL {
            let name = serde_json::to_value(precision).unwrap();
            assert_eq!(name, precision.to_string());
        }
    }

    /// What is multiplied is rounded, and what comes out and goes back has 32 bits.
    #[test]
    fn products_round_their_operands_and_gradients_have_32_bits() {
        let device = Device::flex().autodiff();
        let weights = [[1.0 + 1.0 / 512.0, 2.0], [3.0, 1.0 / 3.0]];
        let input = Tensor::<4>::from_floats([[[[1.0, 0.0], [0.0, 1.0]]]], &device);
        for (precision, rounded) in [
            (Precision::F32, [1.001_953_1, 0.333_333_34]),
            (Precision::Bf16, [1.0, 0.333_984_38]),
            (Precision::F16, [1.001_953_1, 0.333_251_95]),
        ] {
            let weights = Tensor::<4>::from_floats([[weights]], &device).require_grad();
            let product = precision.matmul(input.clone(), weights.clone());
            assert_eq!(product.dtype(), DType::F32);
            let gradients = product.clone().sum().backward();
            let product: Vec<f32> = product.try_into_vec_as().unwrap();
            let bits = |values: [f32; 2]| values.map(f32::to_bits);
            assert_eq!(bits([product[0], product[3]]), bits(rounded), "{precision}");
            assert_eq!(weights.grad(&gradients).unwrap().dtype(), DType::F32);
            // Outside of training, numbers stay as they are.
            let product = precision.matmul(input.clone().inner(), weights.inner());
            let product: Vec<f32> = product.try_into_vec_as().unwrap();
            let exact = bits([1.001_953_1, 0.333_333_34]);
            assert_eq!(bits([product[0], product[3]]), exact);
        }
    }
}
