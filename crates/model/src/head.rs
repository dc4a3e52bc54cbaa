//! What stands on the encoder: a dense layer with an activation, and the classifier.

use burn::module::Module;
use burn::nn::{LayerNorm, Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};

use crate::architecture::Architecture;
use crate::attention::dropout;
use crate::config::ModelConfig;
use crate::encoder::layer_norm;
use crate::gelu::gelu;

#[derive(Module, Debug)]
pub(crate) struct ClassificationHead {
    pub(crate) dense: Linear,
    /// ModernBERT's alone.
    norm: Option<LayerNorm>,
    pub(crate) classifier: Linear,
}

impl ClassificationHead {
    pub(crate) fn new(config: &ModelConfig, device: &Device) -> Self {
        let width = config.hidden_size;
        let is_modern = config.architecture == Architecture::ModernBert;
        Self {
            dense: LinearConfig::new(width, width)
                .with_bias(!is_modern)
                .init(device),
            norm: is_modern.then(|| layer_norm(config, width, device)),
            classifier: LinearConfig::new(width, config.labels.len()).init(device),
        }
    }

    pub(crate) fn device(&self) -> Device {
        self.classifier.weight.device()
    }

    /// # Shapes
    /// - pooled: `[B, D]`
    /// - output: `[B, N]`
    pub(crate) fn forward(&self, config: &ModelConfig, pooled: Tensor<2>) -> Tensor<2> {
        let probability = config
            .classifier_dropout
            .unwrap_or(config.hidden_dropout_prob);
        let pooled = match config.architecture {
            Architecture::Roberta | Architecture::XlmRoberta | Architecture::Electra => {
                dropout(pooled, probability)
            }
            _ => pooled,
        };
        let dense = self.dense.forward(pooled);
        let activated = match config.architecture {
            Architecture::Bert | Architecture::Roberta | Architecture::XlmRoberta => dense.tanh(),
            Architecture::Electra | Architecture::ModernBert => gelu(dense),
            Architecture::DistilBert => relu(dense),
        };
        let normed = match &self.norm {
            Some(norm) => norm.forward(activated),
            None => activated,
        };
        self.classifier.forward(dropout(normed, probability))
    }
}
