//! The layers of BERT, RoBERTa, ELECTRA and DistilBERT: each half adds its input and normalises.
//!
//! Shapes: `N` tokens of a batch, `R` of them computed, `D` hidden width; of a block of the batch, `B`
//! pairs (or texts) of `T` tokens each.

use burn::module::Module;
use burn::nn::{LayerNorm, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use crate::architecture::Architecture;
use crate::attention::{attend, dropout, heads_of};
use crate::blocks::Block;
use crate::config::ModelConfig;
use crate::encoder::{Rows, layer_norm, those, through};
use crate::gelu::gelu;

#[derive(Module, Debug)]
pub(crate) struct PostNorm {
    pub(crate) layers: Vec<Layer>,
}

#[derive(Module, Debug)]
pub(crate) struct Layer {
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) attended: Linear,
    pub(crate) attended_norm: LayerNorm,
    pub(crate) inner: Linear,
    pub(crate) outer: Linear,
    pub(crate) outer_norm: LayerNorm,
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
    /// - hidden: `[N, D]`
    /// - masks: `[B, 1, 1, T]` of each block, added to the attention scores
    /// - output: `[R, D]`
    pub(crate) fn forward(
        &self,
        config: &ModelConfig,
        hidden: Tensor<2>,
        blocks: &[Block],
        masks: &[Tensor<4>],
        wanted: Rows,
    ) -> Tensor<2> {
        let layers = &self.layers;
        through(layers, hidden, blocks, wanted, |layer, rows, hidden| {
            layer.forward(config, rows, (hidden, blocks), masks)
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
    /// - rows: `[R, D]`, those of `hidden` to compute, and what they lie in
    /// - hidden: `[N, D]`, what they attend to, and what that lies in
    /// - masks: `[B, 1, 1, T]` of each block
    /// - output: `[R, D]`
    fn forward(
        &self,
        config: &ModelConfig,
        (rows, asking): (Tensor<2>, &[Block]),
        (hidden, asked): (Tensor<2>, &[Block]),
        masks: &[Tensor<4>],
    ) -> Tensor<2> {
        let heads = config.num_attention_heads;
        let head_width = config.hidden_size / heads;
        let linear = |linear, input| config.precision.linear(linear, input);
        // Scaling the queries is T / (D / H) times less work than scaling the scores.
        let query = linear(&self.query, rows.clone()).div_scalar((head_width as f64).sqrt());
        let query = heads_of(&query, asking, heads);
        let key = heads_of(&linear(&self.key, hidden.clone()), asked, heads);
        let value = heads_of(&linear(&self.value, hidden), asked, heads);
        let context = attend(config, query, key, value, masks);
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
