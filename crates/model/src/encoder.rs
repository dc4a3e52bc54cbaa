//! From token ids to hidden states: embeddings, and a stack of layers of one of two kinds.
//!
//! Shapes: `B` pairs (or texts), `T` tokens of the longest, `R` of them computed, `D` hidden
//! width, `E` width of the embeddings.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor};

use crate::attention::{UNSEEN, dropout};
use crate::config::ModelConfig;
use crate::cross_encoder::Batch;
use crate::post_norm::PostNorm;
use crate::pre_norm::PreNorm;

/// Fields that an architecture lacks are none.
#[derive(Module, Debug)]
pub(crate) struct Encoder {
    words: Embedding,
    positions: Option<Embedding>,
    segments: Option<Embedding>,
    norm: LayerNorm,
    projection: Option<Linear>,
    stack: Stack,
}

#[derive(Module, Debug)]
enum Stack {
    PostNorm(PostNorm),
    PreNorm(Box<PreNorm>),
}

impl Encoder {
    pub(crate) fn new(config: &ModelConfig, device: &Device) -> Self {
        let (width, hidden) = (config.embedding_size, config.hidden_size);
        let table = |rows| EmbeddingConfig::new(rows, width).init(device);
        Self {
            words: table(config.vocab_size),
            positions: config
                .modern
                .is_none()
                .then(|| table(config.max_position_embeddings)),
            segments: (config.type_vocab_size > 0).then(|| table(config.type_vocab_size)),
            norm: layer_norm(config, width, device),
            projection: (width != hidden).then(|| LinearConfig::new(width, hidden).init(device)),
            stack: match &config.modern {
                None => Stack::PostNorm(PostNorm::new(config, device)),
                Some(modern) => Stack::PreNorm(Box::new(PreNorm::new(config, modern, device))),
            },
        }
    }

    /// The last hidden state of the first `R` tokens. Rows of padding hold numbers without meaning.
    ///
    /// # Shapes
    /// - output: `[B, R, D]`
    pub(crate) fn forward(&self, config: &ModelConfig, batch: &Batch, rows: usize) -> Tensor<3> {
        let [pairs, tokens] = batch.input_ids.dims();
        let mask = (batch.attention_mask.clone() - 1.0)
            .mul_scalar(-UNSEEN)
            .reshape([pairs, 1, 1, tokens]);
        let hidden = self.embed(config, batch);
        match &self.stack {
            Stack::PostNorm(stack) => stack.forward(config, hidden, &mask, rows),
            Stack::PreNorm(stack) => stack.forward(config, hidden, &mask, rows),
        }
    }

    pub(crate) fn keep_layers(self, kept: &[usize]) -> Self {
        let stack = match self.stack {
            Stack::PostNorm(stack) => Stack::PostNorm(stack.keep_layers(kept)),
            Stack::PreNorm(stack) => Stack::PreNorm(Box::new(stack.keep_layers(kept))),
        };
        Self { stack, ..self }
    }

    /// # Shapes
    /// - output: `[B, T, D]`
    fn embed(&self, config: &ModelConfig, batch: &Batch) -> Tensor<3> {
        let mut sum = self.words.forward(batch.input_ids.clone());
        if let Some(segments) = &self.segments {
            sum = sum
                + if config.reads_segments() {
                    segments.forward(batch.token_type_ids.clone())
                } else {
                    segments.weight.val().narrow(0, 0, 1).unsqueeze()
                };
        }
        if let Some(positions) = &self.positions {
            let [_, tokens] = batch.input_ids.dims();
            sum = sum
                + if config.counts_from_padding() {
                    let ids = batch.input_ids.clone();
                    positions.forward(positions_after_padding(ids, config.pad_token_id))
                } else {
                    // 0, 1, 2 … in every row: a slice, not a lookup.
                    positions.weight.val().narrow(0, 0, tokens).unsqueeze()
                };
        }
        let hidden = dropout(self.norm.forward(sum), config.hidden_dropout_prob);
        match &self.projection {
            Some(projection) => config.precision.linear(projection, hidden),
            None => hidden,
        }
    }
}

/// RoBERTa's positions: those of padding tokens, also of one within a text, are the padding token's
/// id, and the others count on from it.
///
/// # Shapes
/// - ids and output: `[B, T]`
fn positions_after_padding(ids: Tensor<2, Int>, pad_token_id: usize) -> Tensor<2, Int> {
    let padding = i64::try_from(pad_token_id).unwrap_or_default();
    let is_token = ids.not_equal_elem(padding).int();
    (is_token.clone().cumsum(1) * is_token).add_scalar(padding)
}

/// Through all layers, of which the last computes the first `R` tokens alone. A layer is given what
/// to compute and what that attends to.
///
/// # Shapes
/// - hidden: `[B, T, D]`
/// - output: `[B, R, D]`
pub(crate) fn through<L>(
    layers: &[L],
    hidden: Tensor<3>,
    rows: usize,
    forward: impl Fn(&L, Tensor<3>, Tensor<3>) -> Tensor<3>,
) -> Tensor<3> {
    let [_, tokens, _] = hidden.dims();
    let Some((last, others)) = layers.split_last() else {
        return hidden.narrow(1, 0, rows);
    };
    let hidden = others.iter().fold(hidden, |hidden, layer| {
        forward(layer, hidden.clone(), hidden)
    });
    let wanted = if rows == tokens {
        hidden.clone()
    } else {
        hidden.clone().narrow(1, 0, rows)
    };
    forward(last, wanted, hidden)
}

/// Those of the layers that have these numbers.
pub(crate) fn those<L>(layers: Vec<L>, kept: &[usize]) -> Vec<L> {
    let layers = layers.into_iter().enumerate();
    layers
        .filter(|(number, _)| kept.contains(number))
        .map(|(_, layer)| layer)
        .collect()
}

pub(crate) fn layer_norm(config: &ModelConfig, width: usize, device: &Device) -> LayerNorm {
    LayerNormConfig::new(width)
        .with_epsilon(config.layer_norm_eps)
        .with_bias(config.modern.is_none())
        .init(device)
}
