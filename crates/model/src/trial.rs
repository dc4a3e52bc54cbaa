//! Whether a device computes what the CPU computes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use burn::module::Param;
use burn::tensor::{Device, Tensor};

use crate::architecture::Architecture;
use crate::attention::Attention;
use crate::bundle::Bundle;
use crate::config::ModelConfig;
use crate::cross_encoder::{Batch, CrossEncoder};
use crate::draw::Draw;
use crate::error::{Error, Result};
use crate::guard::guard;
use crate::pairs::{Encoded, score};
use crate::parameters::{ParameterMapper, filled};
use crate::precision::Precision;
use crate::student::Student;

/// How far a device is from the CPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// The largest difference of a logit; the logits are around 1.
    pub of_logits: f64,
    /// The length of the difference of all gradients, as a share of their length.
    pub of_gradients: f64,
    /// What it took, kernels that had to be compiled among it.
    pub took: Duration,
}

/// Sums of 32 bits in another order are off by some 1e-6; a kernel that is wrong in the fourth digit is
/// found. Operands cut to TF32 would be off by 5e-4: they are to be whole here.
const MOST: f64 = 1e-4;

/// Passes a few pairs through a BERT of two layers, drawn by chance, there and back, on the
/// device and on the CPU.
///
/// # Errors
/// A device that fails, or computes something else.
pub fn try_out(device: &Device) -> Result<Trial> {
    let trial = compare(device, &config(), &LENGTHS, Student::batch)?;
    // Not a number is no better than far off.
    if trial.of_logits <= MOST && trial.of_gradients <= MOST {
        Ok(trial)
    } else {
        Err(Error::Device {
            said: format!(
                "it computes something else than the CPU: logits are off by {:.1e}, gradients by {:.1e} \
                 of their length; another version of its driver may be right",
                trial.of_logits, trial.of_gradients
            ),
        })
    }
}

/// Tokens of pairs.
pub(crate) const LENGTHS: [u32; 4] = [24, 17, 9, 5];

/// How far a device is from the CPU with such a model, drawn by chance, and pairs of so many tokens.
pub(crate) fn compare(
    device: &Device,
    config: &ModelConfig,
    lengths: &[u32],
    batch: impl Fn(&Student, &[&Encoded]) -> Batch,
) -> Result<Trial> {
    let started = Instant::now();
    let there = guard(device, || {
        passes(&device.clone().autodiff(), config, lengths, &batch)
    })?;
    let took = started.elapsed();
    let here = passes(&Device::flex().autodiff(), config, lengths, &batch)?;
    let differences = there.logits.iter().zip(&here.logits);
    // In this order, what is not a number is larger than any.
    let of_logits = differences
        .map(|(a, b)| f64::from((a - b).abs()))
        .max_by(f64::total_cmp)
        .unwrap_or(f64::NAN);
    let (mut difference, mut length) = (0.0, 0.0);
    for (name, here) in &here.gradients {
        let there = there.gradients.get(name).map_or(&[][..], Vec::as_slice);
        for (place, here) in here.iter().enumerate() {
            let there = there.get(place).map_or(f64::NAN, |value| f64::from(*value));
            difference += (there - f64::from(*here)).powi(2);
            length += f64::from(*here).powi(2);
        }
    }
    Ok(Trial {
        of_logits,
        of_gradients: (difference / length).sqrt(),
        took,
    })
}

/// What came of it.
struct Passed {
    logits: Vec<f32>,
    /// By parameter.
    gradients: BTreeMap<String, Vec<f32>>,
}

fn passes(
    device: &Device,
    config: &ModelConfig,
    lengths: &[u32],
    batch: impl Fn(&Student, &[&Encoded]) -> Batch,
) -> Result<Passed> {
    let skeleton = CrossEncoder::skeleton(config, device);
    let model = skeleton.map_parameters(&mut Fill(Draw::new(1, config.initializer_range)));
    let owned: Vec<Encoded> = lengths
        .iter()
        .map(|tokens| input(*tokens, config))
        .collect();
    let inputs: Vec<&Encoded> = owned.iter().collect();
    let student = Student::new(model.clone())?;
    let pass = student.pass(&batch(&student, &inputs));
    let logits = pass.logits.clone();
    let weights = [1.0_f32, -0.5, 0.25, 2.0].into_iter().cycle();
    let weights: Vec<f32> = weights.take(lengths.len()).collect();
    let weights = Tensor::<1>::from_floats(weights.as_slice(), device);
    let gradients = (logits.clone() * weights).sum().backward();
    let gradients = student.gradients(vec![pass], &gradients).into_iter();
    let gradients = gradients.flat_map(Bundle::apart);
    let mut logits: Vec<f32> = logits.try_into_vec_as()?;
    // Scored they are computed in 32 bits and without a way back.
    logits.extend(score(&model, &owned, usize::MAX)?);
    Ok(Passed {
        logits,
        gradients: gradients
            .map(|(name, gradient)| Ok((name, gradient.try_into_vec_as()?)))
            .collect::<Result<_>>()?,
    })
}

/// A BERT of two layers.
pub(crate) fn config() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Bert,
        vocab_size: 97,
        embedding_size: 64,
        hidden_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 128,
        max_position_embeddings: 32,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        hidden_dropout_prob: 0.0,
        attention_probs_dropout_prob: 0.0,
        classifier_dropout: None,
        // So that attention is not nearly even, and logits are around 1.
        initializer_range: 0.1,
        pad_token_id: 0,
        labels: vec!["LABEL_0".to_owned()],
        modern: None,
        precision: Precision::F32,
        attention: Attention::Decomposed,
    }
}

fn input(tokens: u32, config: &ModelConfig) -> Encoded {
    #[expect(clippy::cast_possible_truncation, reason = "it is small")]
    let words = config.vocab_size as u32 - 1;
    Encoded {
        input_ids: (0..tokens)
            .map(|place| 1 + (place * 31 + tokens) % words)
            .collect(),
        token_type_ids: (0..tokens)
            .map(|place| u32::from(place > tokens / 3))
            .collect(),
    }
}

/// How far biases are from 0, and the weights of norms from 1.
const VARIETY: f64 = 0.3;

struct Fill(Draw);

impl ParameterMapper for Fill {
    fn map<const N: usize>(&mut self, name: &str, parameter: Param<Tensor<N>>) -> Param<Tensor<N>> {
        let mut values = self.0.values(name, &parameter.lazy_shape());
        // Biases that are 0 would hide where they are left out, and norms of 1 as well.
        if N == 1 {
            for value in &mut values {
                *value += self.0.normal(VARIETY);
            }
        }
        filled(parameter, values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_as_itself() {
        let trial = try_out(&Device::flex()).unwrap();
        assert_eq!((trial.of_logits, trial.of_gradients), (0.0, 0.0));
    }

    /// What is compared is worth comparing.
    #[test]
    fn logits_differ_and_all_parameters_have_gradients() {
        let device = Device::flex().autodiff();
        let passed = passes(&device, &config(), &LENGTHS, Student::batch).unwrap();
        let (least, most) = (passed.logits.iter())
            .fold((f32::MAX, f32::MIN), |(least, most), one| {
                (least.min(*one), most.max(*one))
            });
        assert!(most - least > 0.1, "{:?}", passed.logits);
        assert!(passed.logits.iter().all(|logit| logit.abs() < 10.0));
        assert_eq!(passed.gradients.len(), 5 + 2 * 16 + 4);
    }
}
