//! The layers of BERT, RoBERTa, ELECTRA and DistilBERT: each half adds its input and normalises.
//!
//! Shapes: `B` pairs (or texts), `T` tokens of the longest, `R` of them computed, `D` hidden width.

use burn::module::Module;
use burn::nn::{LayerNorm, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use crate::architecture::Architecture;
use crate::attention::{attend, dropout, split};
use crate::config::ModelConfig;
use crate::encoder::{layer_norm, those, through};
use crate::gelu::gelu;

#[derive(Module, Debug)]
pub(crate) struct PostNorm {
    layers: Vec<Layer>,
}

#[derive(Module, Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attended: Linear,
    attended_norm: LayerNorm,
    inner: Linear,
    outer: Linear,
    outer_norm: LayerNorm,
}

impl PostNorm {
    pub(crate) fn new(config: &ModelConfig, device: &Device) -> Self {
        let layer = |_| Layer::new(config, device);
        Self {
            layers: (0..config.num_hidden_layers).map(layer).collect(),
        }
    }

    pub(crate) fn keep_layers(self, kept: &[usize]) -> Self {
        Self {
            layers: those(self.layers, kept),
        }
    }

    /// # Shapes
    /// - hidden: `[B, T, D]`
    /// - mask: `[B, 1, 1, T]`, added to the attention scores
    /// - output: `[B, R, D]`
    pub(crate) fn forward(
        &self,
        config: &ModelConfig,
        hidden: Tensor<3>,
        mask: &Tensor<4>,
        rows: usize,
    ) -> Tensor<3> {
        through(&self.layers, hidden, rows, |layer, rows, hidden| {
            layer.forward(config, rows, hidden, mask)
        })
    }
}

impl Layer {
    fn new(config: &ModelConfig, device: &Device) -> Self {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        Self {
            query: linear(hidden, hidden),
            key: linear(hidden, hidden),
            value: linear(hidden, hidden),
            attended: linear(hidden, hidden),
            attended_norm: layer_norm(config, hidden, device),
            inner: linear(hidden, inner),
            outer: linear(inner, hidden),
            outer_norm: layer_norm(config, hidden, device),
        }
    }

    /// # Shapes
    /// - rows: `[B, R, D]`, those of `hidden` to compute
    /// - hidden: `[B, T, D]`, what they attend to
    /// - mask: `[B, 1, 1, T]`
    /// - output: `[B, R, D]`
    fn forward(
        &self,
        config: &ModelConfig,
        rows: Tensor<3>,
        hidden: Tensor<3>,
        mask: &Tensor<4>,
    ) -> Tensor<3> {
        let heads = config.num_attention_heads;
        let head_width = config.hidden_size / heads;
        let linear = |linear, input| config.precision.linear(linear, input);
        // Scaling the queries is T / (D / H) times less work than scaling the scores.
        let query = linear(&self.query, rows.clone()).div_scalar((head_width as f64).sqrt());
        let query = split(query, heads);
        let key = split(linear(&self.key, hidden.clone()), heads);
        let value = split(linear(&self.value, hidden), heads);
        let context = attend(config, query, key, value, mask.clone());
        let attended = linear(&self.attended, context);
        let attended = match config.architecture {
            Architecture::DistilBert => attended,
            _ => dropout(attended, config.hidden_dropout_prob),
        };
        let rows = self.attended_norm.forward(attended + rows);
        let inner = gelu(linear(&self.inner, rows.clone()));
        let outer = dropout(linear(&self.outer, inner), config.hidden_dropout_prob);
        self.outer_norm.forward(outer + rows)
    }
}
