//! Gradients by name, added and measured.

use std::collections::BTreeMap;

use burn::tensor::distributed::ReduceOperation;
use burn::tensor::{Device, Gradients, Tensor};
use retort_model::{Bundle, Clip, Pass, Student};

use crate::Result;
use crate::vectors::{add, from_host, sum_of_squares, to_host};

/// Gradients by Hugging Face name, flattened, without autodiff.
pub struct NamedGradients {
    pub(crate) bundles: Vec<Bundle>,
    /// How many times as large as the loss's they are.
    pub(crate) scale: f64,
}

impl NamedGradients {
    /// Of a student's parameters, from those of a loss of what its passes gave.
    pub fn of(student: &Student, passes: Vec<Pass>, gradients: &Gradients) -> Self {
        Self::of_bundles(student.gradients(passes, gradients))
    }

    /// The same of a loss that has these slopes at the logits, pass by pass.
    pub(crate) fn at(student: &Student, passes: Vec<Pass>, slopes: &[f32]) -> Self {
        Self::of_bundles(student.gradients_at(passes, slopes))
    }

    /// What [`HostBert::backward`](retort_model::HostBert::backward) gave, on the device without
    /// autodiff.
    pub fn of_host(gradients: Vec<(String, Vec<f32>)>, device: &Device) -> Self {
        let tensor = |(name, values)| (name, from_host(values, device));
        Self::of_bundles(Bundle::of(gradients.into_iter().map(tensor).collect()))
    }

    fn of_bundles(bundles: Vec<Bundle>) -> Self {
        Self {
            bundles,
            scale: 1.0,
        }
    }

    /// The same, of a loss that was multiplied by `scale` before the way back: all gradients that are
    /// added have to have one.
    #[must_use]
    pub fn scaled_by(self, scale: f64) -> Self {
        Self { scale, ..self }
    }

    /// The gradients of a sum of losses, from those of its terms.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        // A loss that no score moves has none.
        if other.bundles.is_empty() {
            return self;
        }
        if self.bundles.is_empty() {
            return other;
        }
        let scale = self.scale;
        let (ours, theirs) = (self.bundles.iter(), other.bundles.iter());
        let are_alike = ours
            .map(|bundle| &bundle.parameters)
            .eq(theirs.map(|bundle| &bundle.parameters));
        if are_alike {
            let both = self.bundles.into_iter().zip(other.bundles);
            let sum = |(one, other): (Bundle, Bundle)| Bundle {
                parameters: one.parameters,
                values: add(one.values, other.values),
                group: one.group,
            };
            let bundles = both.map(sum).collect();
            return Self { bundles, scale };
        }
        // A parameter that one of the terms leaves out has the other's.
        let mut by_name = self.by_name();
        for (name, gradient) in other.by_name() {
            let sum = match by_name.remove(&name) {
                None => gradient,
                Some(this) => add(this, gradient),
            };
            by_name.insert(name, sum);
        }
        Self::of_bundles(Bundle::of(by_name)).scaled_by(scale)
    }

    /// The gradient of each parameter.
    pub(crate) fn by_name(self) -> BTreeMap<String, Tensor<1>> {
        self.bundles.into_iter().flat_map(Bundle::apart).collect()
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
        let bundles = any.bundles.iter();
        let bundles: Vec<_> = bundles
            .map(|bundle| {
                (
                    bundle.parameters.clone(),
                    bundle.group,
                    bundle.values.dims(),
                )
            })
            .collect();
        let mut all: Vec<_> = (0..devices.len())
            .map(|number| {
                of_replicas
                    .remove(&number)
                    .map(|its| its.bundles.into_iter())
            })
            .collect();
        let mut sums: Vec<Self> = devices
            .iter()
            .map(|_| Self {
                bundles: Vec::new(),
                scale,
            })
            .collect();
        for (parameters, group, length) in bundles {
            // Replicas are alike, so their gradients are of the same parameters in the same bundles.
            let members = all.iter_mut().zip(devices).map(|(bundles, device)| {
                let its = bundles.as_mut().and_then(Iterator::next);
                its.map_or_else(|| Tensor::zeros(length, device), |its| its.values)
            });
            let reduced = Tensor::all_reduce(members.collect(), ReduceOperation::Sum);
            for (sum, values) in sums.iter_mut().zip(reduced) {
                let parameters = parameters.clone();
                sum.bundles.push(Bundle {
                    parameters,
                    values,
                    group,
                });
            }
        }
        sums
    }

    /// By what they are clipped to a norm of `most`, over all parameters together. Who asks a GPU for the norm
    /// waits for all that was asked before, so it clips by itself where nobody `waits`, if it can.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn clip(&self, most: f64, waits: bool) -> Result<Clip> {
        if !waits && let Some(there) = Clip::there(&self.bundles, most, self.scale) {
            return Ok(there);
        }
        let norm = self.norm()?;
        // As torch.nn.utils.clip_grad_norm_ does it.
        let factor = (most / (norm + 1e-6)).min(1.0) / self.scale;
        Ok(Clip::Known { factor, norm })
    }

    /// The norm of the loss's own gradients, over all parameters together.
    ///
    /// # Errors
    /// A device that fails.
    pub(crate) fn norm(&self) -> Result<f64> {
        // Summed in one order, so that the same gradients give the same norm.
        let all = self.bundles.iter().map(|bundle| &bundle.values);
        Ok(sum_of_squares(all)?.sqrt() / self.scale)
    }
}

/// The norm, which a GPU may have yet to find.
///
/// # Errors
/// A device that fails.
pub(crate) fn norm_of(clip: &Clip) -> Result<f64> {
    match clip {
        Clip::Known { norm, .. } => Ok(*norm),
        Clip::There(both) => Ok(norm_in(&to_host(both.clone())?)),
    }
}

/// The norm in what a GPU has of it, as it was read.
pub(crate) fn norm_in(clip: &[f32]) -> f64 {
    clip.get(1).copied().map_or(f64::NAN, f64::from)
}
