//! Gradients by name, added and measured.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::distributed::ReduceOperation;
use burn::tensor::{Device, Gradients, Tensor};
use retort_model::{CrossEncoder, ParameterVisitor};

use crate::Result;
use crate::vectors::{add, from_host, sum_of_squares};

/// Gradients by Hugging Face name, flattened, without autodiff.
pub struct NamedGradients {
    pub(crate) by_name: BTreeMap<String, Tensor<1>>,
    /// How many times as large as the loss's they are.
    pub(crate) scale: f64,
}

impl NamedGradients {
    /// Of a model's parameters.
    pub fn of(model: &CrossEncoder, gradients: &Gradients) -> Self {
        let mut collect = Collect {
            gradients,
            by_name: BTreeMap::new(),
        };
        model.visit_parameters(&mut collect);
        Self {
            by_name: collect.by_name,
            scale: 1.0,
        }
    }

    /// The same, of a loss that was multiplied by `scale` before the way back: all gradients that are
    /// added have to have one.
    #[must_use]
    pub fn scaled_by(self, scale: f64) -> Self {
        Self { scale, ..self }
    }

    /// What [`HostBert::backward`](retort_model::HostBert::backward) gave, on the device without
    /// autodiff.
    pub fn of_host(gradients: Vec<(String, Vec<f32>)>, device: &Device) -> Self {
        let tensor = |(name, values)| (name, from_host(values, device));
        Self {
            by_name: gradients.into_iter().map(tensor).collect(),
            scale: 1.0,
        }
    }

    /// The gradients of a sum of losses, from those of its terms.
    #[must_use]
    pub fn plus(mut self, other: Self) -> Self {
        for (name, gradient) in other.by_name {
            let sum = match self.by_name.remove(&name) {
                None => gradient,
                Some(this) => add(this, gradient),
            };
            self.by_name.insert(name, sum);
        }
        self
    }

    /// Sums the gradients of a student's replicas, each of a device of its own, given by their numbers,
    /// and gives each the sum, through what joins the devices; a replica that had nothing to compute has
    /// none.
    pub(crate) fn all_reduced(
        mut of_replicas: BTreeMap<usize, Self>,
        devices: &[Device],
    ) -> Vec<Self> {
        let Some(any) = of_replicas.values().next() else {
            return Vec::new();
        };
        if devices.len() == 1 {
            return of_replicas.into_values().collect();
        }
        let scale = any.scale;
        let lengths: Vec<(String, usize)> = (any.by_name.iter())
            .map(|(name, gradient)| (name.clone(), gradient.dims()[0]))
            .collect();
        let mut sums: Vec<Self> = devices
            .iter()
            .map(|_| Self {
                by_name: BTreeMap::new(),
                scale,
            })
            .collect();
        for (name, length) in lengths {
            let members = devices.iter().enumerate().map(|(number, device)| {
                let its = of_replicas
                    .get_mut(&number)
                    .and_then(|its| its.by_name.remove(&name));
                its.unwrap_or_else(|| Tensor::zeros([length], device))
            });
            let reduced = Tensor::all_reduce(members.collect(), ReduceOperation::Sum);
            for (sum, reduced) in sums.iter_mut().zip(reduced) {
                sum.by_name.insert(name.clone(), reduced);
            }
        }
        sums
    }

    /// The norm of the loss's own gradients, over all parameters together.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn norm(&self) -> Result<f64> {
        // Summed in the order of names, so that the same gradients give the same norm.
        Ok(sum_of_squares(self.by_name.values())?.sqrt() / self.scale)
    }
}

struct Collect<'a> {
    gradients: &'a Gradients,
    by_name: BTreeMap<String, Tensor<1>>,
}

impl ParameterVisitor for Collect<'_> {
    fn visit<const N: usize>(&mut self, name: &str, parameter: &Param<Tensor<N>>) {
        if let Some(gradient) = parameter.val().grad(self.gradients) {
            self.by_name
                .insert(name.to_owned(), gradient.flatten(0, N - 1));
        }
    }
}
