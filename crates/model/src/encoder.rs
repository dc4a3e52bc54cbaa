//! From token ids to hidden states: embeddings, and a stack of layers of one of two kinds.
//!
//! Shapes: `N` tokens of a batch, `R` of them computed, `D` hidden width, `E` width of the embeddings;
//! of a block of the batch, `B` pairs (or texts) of `T` tokens each.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor};

use crate::attention::dropout;
use crate::blocks::{Block, first};
use crate::config::ModelConfig;
use crate::cross_encoder::Batch;
#[cfg(feature = "gpu")]
use crate::post_norm::Layer;
use crate::post_norm::PostNorm;
use crate::pre_norm::PreNorm;

/// Fields that an architecture lacks are none.
#[derive(Module, Debug)]
pub(crate) struct Encoder {
    pub(crate) words: Embedding,
    pub(crate) positions: Option<Embedding>,
    pub(crate) segments: Option<Embedding>,
    pub(crate) norm: LayerNorm,
    pub(crate) projection: Option<Linear>,
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

    /// The last hidden state of the wanted tokens. Rows of padding hold numbers without meaning.
    ///
    /// # Shapes
    /// - output: `[R, D]`
    pub(crate) fn forward(&self, config: &ModelConfig, batch: &Batch, wanted: Rows) -> Tensor<2> {
        let (blocks, masks) = (&batch.blocks, batch.masks());
        let hidden = self.embed(config, batch);
        match &self.stack {
            Stack::PostNorm(stack) => stack.forward(config, hidden, blocks, &masks, wanted),
            Stack::PreNorm(stack) => stack.forward(config, hidden, blocks, &masks, wanted),
        }
    }

    /// The layers, where they are such.
    #[cfg(feature = "gpu")]
    pub(crate) fn post_norm(&self) -> Option<&[Layer]> {
        match &self.stack {
            Stack::PostNorm(stack) => Some(&stack.layers),
            Stack::PreNorm(_) => None,
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
    /// - output: `[N, D]`
    fn embed(&self, config: &ModelConfig, batch: &Batch) -> Tensor<2> {
        let normed = self.norm.forward(self.sum(config, batch));
        let hidden = dropout(normed, config.hidden_dropout_prob);
        match &self.projection {
            Some(projection) => config.precision.linear(projection, hidden),
            None => hidden,
        }
    }

    /// The embeddings of each token, added.
    ///
    /// # Shapes
    /// - output: `[N, E]`
    pub(crate) fn sum(&self, config: &ModelConfig, batch: &Batch) -> Tensor<2> {
        let mut sum = look_up(&self.words, batch.on_device(&batch.input_ids));
        if let Some(segments) = &self.segments {
            sum = sum
                + if config.reads_segments() {
                    look_up(segments, batch.on_device(&batch.token_type_ids))
                } else {
                    segments.weight.val().narrow(0, 0, 1)
                };
        }
        if let Some(positions) = &self.positions {
            sum = sum + look_up(positions, batch.on_device(&batch.position_ids));
        }
        sum
    }
}

/// # Shapes
/// - ids: `[N]`
/// - output: `[N, E]`
fn look_up(table: &Embedding, ids: Tensor<1, Int>) -> Tensor<2> {
    table.forward(ids.unsqueeze()).flatten(0, 1)
}

/// Which tokens the last layer computes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rows {
    All,
    /// The first of each pair.
    First,
}

/// Through all layers, of which the last computes the wanted rows alone. A layer is given what to
/// compute, with the blocks that it lies in, and what that attends to.
///
/// # Shapes
/// - hidden: `[N, D]`
/// - output: `[R, D]`
pub(crate) fn through<L>(
    layers: &[L],
    hidden: Tensor<2>,
    blocks: &[Block],
    wanted: Rows,
    forward: impl Fn(&L, (Tensor<2>, &[Block]), Tensor<2>) -> Tensor<2>,
) -> Tensor<2> {
    let (others, last) = match wanted {
        Rows::All => (layers, None),
        Rows::First => match layers.split_last() {
            Some((last, others)) => (others, Some(last)),
            None => return first(&hidden, blocks).0,
        },
    };
    let hidden = others.iter().fold(hidden, |hidden, layer| {
        forward(layer, (hidden.clone(), blocks), hidden)
    });
    match last {
        None => hidden,
        Some(last) => {
            let (rows, blocks) = first(&hidden, blocks);
            forward(last, (rows, &blocks), hidden)
        }
    }
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
