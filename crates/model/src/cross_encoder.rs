//! A BERT-like encoder with a classifier on top, and the same encoder as a bi-encoder.
//!
//! Shapes: `B` pairs (or texts), `T` tokens of the longest, `D` hidden width, `N` labels.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};

use crate::config::ModelConfig;
use crate::encoder::Encoder;
use crate::head::ClassificationHead;

/// What the model reads: token ids, padded to one length.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Vocabulary ids, padding included: `[B, T]`.
    pub input_ids: Tensor<2, Int>,
    /// 0 for the first text and the padding, 1 for the second: `[B, T]`.
    pub token_type_ids: Tensor<2, Int>,
    /// 1.0 for a token, 0.0 for padding: `[B, T]`.
    pub attention_mask: Tensor<2>,
}

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

    /// Where the parameters are. An autodiff device for a model that can be trained.
    pub fn device(&self) -> Device {
        self.head.device()
    }

    /// Relevance logits. Dropout acts only on an autodiff device.
    ///
    /// # Shapes
    /// - output: `[B]`
    pub fn forward(&self, batch: &Batch) -> Tensor<1> {
        let [pairs, _] = batch.input_ids.dims();
        self.logits(batch).reshape([pairs])
    }

    /// # Shapes
    /// - output: `[B, N]`
    fn logits(&self, batch: &Batch) -> Tensor<2> {
        let [pairs, _] = batch.input_ids.dims();
        let pools_mean = self.config.modern.as_ref().is_some_and(|m| m.pools_mean);
        let pooled = if pools_mean {
            self.sum(batch) / batch.attention_mask.clone().sum_dim(1)
        } else {
            // The classifier reads the first token alone, so the last layer computes no other: of
            // a six layer model that spares a seventh of the work.
            self.encoder
                .forward(&self.config, batch, 1)
                .reshape([pairs, self.config.hidden_size])
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
        let sum = self.sum(batch);
        let length = sum.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
        sum / length
    }

    /// The last hidden state, summed over real tokens.
    ///
    /// # Shapes
    /// - output: `[B, D]`
    fn sum(&self, batch: &Batch) -> Tensor<2> {
        let [texts, tokens] = batch.input_ids.dims();
        let mask = batch.attention_mask.clone().unsqueeze_dim::<3>(2);
        (self.encoder.forward(&self.config, batch, tokens) * mask)
            .sum_dim(1)
            .reshape([texts, self.config.hidden_size])
    }
}
