//! A BERT-like encoder with a classifier on top, and the same encoder as a bi-encoder.
//!
//! Shapes: `B` pairs (or texts), `N` tokens of all of them and what pads these, `D` hidden width, `L`
//! labels.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::attention::Attention;
use crate::blocks::{Block, apart, together};
use crate::config::{ModelConfig, ModernBertConfig};
use crate::encoder::{Encoder, Rows};
use crate::error::{Error, Result};
use crate::head::ClassificationHead;
use crate::precision::Precision;

/// What the model reads: token ids of pairs, one pair after the other, in blocks whose pairs are padded
/// to one length. On its device it is as soon as it is read there.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Vocabulary ids, padding included: `[N]`.
    pub(crate) input_ids: Vec<i32>,
    /// 0 for the first text and the padding, 1 for the second, where the model reads that: `[N]`.
    pub(crate) token_type_ids: Vec<i32>,
    /// Which rows of the position embeddings tokens take: `[N]`.
    pub(crate) position_ids: Vec<i32>,
    /// Of each pair, without padding.
    pub(crate) lengths: Vec<usize>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) device: Device,
}

/// An encoder that tells which of several classes a pair of texts is of: whether one follows from
/// the other, say.
#[derive(Debug, Clone)]
pub struct Classifier(pub(crate) CrossEncoder);

/// An encoder that reads query and document together and gives one relevance logit.
#[derive(Module, Debug)]
pub struct CrossEncoder {
    encoder: Encoder,
    head: ClassificationHead,
    #[module(skip)]
    config: ModelConfig,
}

impl CrossEncoder {
    /// The architecture that `config` describes. Parameters are drawn when first used, which is
    /// never: [`crate::weights`] puts values into all of them.
    pub(crate) fn skeleton(config: &ModelConfig, device: &Device) -> Self {
        Self {
            encoder: Encoder::new(config, device),
            head: ClassificationHead::new(config, device),
            config: config.clone(),
        }
    }

    /// The architecture, as loaded; with the dropout it was loaded with.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The same model, trained in another precision.
    #[must_use]
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.config.precision = precision;
        self
    }

    /// The same model, trained with attention computed like this.
    ///
    /// # Errors
    /// Where its device or its dropout forbids it.
    pub fn with_attention(mut self, attention: Attention) -> Result<Self> {
        attention.check(&self.device(), self.config.attention_probs_dropout_prob)?;
        self.config.attention = attention;
        Ok(self)
    }

    /// Where the parameters are. An autodiff device for a model that can be trained.
    pub fn device(&self) -> Device {
        self.head.device()
    }

    #[cfg(feature = "gpu")]
    pub(crate) fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    #[cfg(feature = "gpu")]
    pub(crate) fn head(&self) -> &ClassificationHead {
        &self.head
    }

    /// Relevance logits. Dropout and [`Precision`] act only on an autodiff device.
    ///
    /// # Shapes
    /// - output: `[B]`
    pub fn forward(&self, batch: &Batch) -> Tensor<1> {
        self.logits(batch).flatten(0, 1)
    }

    /// The same model with these of its layers alone: what a shallower student starts from.
    ///
    /// # Errors
    /// No layer, one that the model lacks, or another order than theirs; of a ModernBERT, what
    /// `config.json` could not describe.
    pub fn keep_layers(self, kept: &[usize]) -> Result<Self> {
        let Self {
            encoder,
            head,
            mut config,
        } = self;
        let refused = |problem| Error::Layers {
            kept: kept.to_vec(),
            layers: config.num_hidden_layers,
            problem,
        };
        if kept.is_empty() || kept.iter().any(|layer| *layer >= config.num_hidden_layers) {
            return Err(refused("name some of those it has, counted from 0"));
        }
        if !kept.is_sorted_by(|one, next| one < next) {
            return Err(refused("name each once, the lowest first"));
        }
        let modern = match &config.modern {
            None => None,
            Some(modern) => {
                let are_global: Vec<bool> = kept.iter().map(|l| modern.is_global(*l)).collect();
                match ModernBertConfig::every(&are_global) {
                    // The first layer does not normalise its input, and the others do.
                    Some(every) if kept[0] == 0 => Some(ModernBertConfig {
                        global_attn_every_n_layers: every,
                        ..modern.clone()
                    }),
                    _ => {
                        return Err(refused(
                            "of a ModernBERT, keep the first layer, and a global one every so many",
                        ));
                    }
                }
            }
        };
        config.modern = modern;
        config.num_hidden_layers = kept.len();
        Ok(Self {
            encoder: encoder.keep_layers(kept),
            head,
            config,
        })
    }

    /// What the encoder makes of each token. Rows of padding hold numbers without meaning.
    ///
    /// # Shapes
    /// - output: `[N, D]`
    pub fn last_hidden_state(&self, batch: &Batch) -> Tensor<2> {
        self.encoder.forward(&self.config, batch, Rows::All)
    }

    /// # Shapes
    /// - output: `[B, L]`
    pub(crate) fn logits(&self, batch: &Batch) -> Tensor<2> {
        let pools_mean = self.config.modern.as_ref().is_some_and(|m| m.pools_mean);
        let pooled = if pools_mean {
            let [sum, tokens] = self.sum(batch);
            sum / tokens
        } else {
            // The classifier reads the first token alone, so the last layer computes no other: of
            // a six layer model that spares a seventh of the work.
            self.encoder.forward(&self.config, batch, Rows::First)
        };
        self.head.forward(&self.config, pooled)
    }

    /// The mean of the last hidden state over real tokens, at length one: a text's embedding, if
    /// the encoder is a bi-encoder's.
    ///
    /// # Shapes
    /// - output: `[B, D]`
    pub fn embed(&self, batch: &Batch) -> Tensor<2> {
        // A sum serves as well as a mean: the length is set to one in the end.
        let [sum, _] = self.sum(batch);
        let length = sum.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
        sum / length
    }

    /// The last hidden state, summed over real tokens, and the number of these.
    ///
    /// # Shapes
    /// - output: `[B, D]` and `[B, 1]`
    fn sum(&self, batch: &Batch) -> [Tensor<2>; 2] {
        let mask = batch.mask().unsqueeze_dim::<2>(1);
        let sums = |rows: Tensor<2>| {
            let blocks = apart(&rows, &batch.blocks).into_iter();
            together(blocks.map(|block| block.sum_dim(1)).collect())
        };
        let hidden = self.last_hidden_state(batch) * mask.clone();
        [sums(hidden), sums(mask)]
    }
}

impl Classifier {
    /// What the classes are called, in the order of the logits.
    pub fn labels(&self) -> &[String] {
        &self.0.config.labels
    }

    /// A logit of each class.
    ///
    /// # Shapes
    /// - output: `[B, L]`
    pub fn forward(&self, batch: &Batch) -> Tensor<2> {
        self.0.logits(batch)
    }
}
