//! BERT with a pooler and one logit, and the same encoder as a bi-encoder.
//!
//! Shapes: `B` pairs (or texts), `T` tokens of the longest, `R` of them computed, `D` hidden
//! width, `H` heads.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Distribution, Int, Tensor};

use crate::config::BertConfig;
use crate::gelu::gelu;

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

/// A BERT encoder that reads query and document together and gives one relevance logit.
///
/// The fields are named as in Hugging Face's `BertForSequenceClassification`, where Rust lets
/// them, so that a parameter's path is its name there.
#[derive(Module, Debug)]
pub struct CrossEncoder {
    bert: Bert,
    classifier: Linear,
    #[module(skip)]
    config: BertConfig,
}

#[derive(Module, Debug)]
struct Bert {
    embeddings: Embeddings,
    encoder: Encoder,
    pooler: Pooler,
}

#[derive(Module, Debug)]
#[allow(clippy::struct_field_names, reason = "the names of Hugging Face")]
struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    layer_norm: LayerNorm,
    dropout: f64,
}

#[derive(Module, Debug)]
struct Encoder {
    layer: Vec<Layer>,
}

#[derive(Module, Debug)]
struct Layer {
    attention: Attention,
    intermediate: Intermediate,
    output: Output,
}

#[derive(Module, Debug)]
struct Attention {
    self_attention: SelfAttention,
    output: Output,
}

#[derive(Module, Debug)]
struct SelfAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    heads: usize,
    dropout: f64,
}

#[derive(Module, Debug)]
struct Intermediate {
    dense: Linear,
}

/// The end of both halves of a layer: project, add the half's input, normalise.
#[derive(Module, Debug)]
struct Output {
    dense: Linear,
    layer_norm: LayerNorm,
    dropout: f64,
}

#[derive(Module, Debug)]
struct Pooler {
    dense: Linear,
}

impl CrossEncoder {
    /// The architecture that `config` describes. Parameters are drawn when first used, which is
    /// never: [`crate::weights`] puts values into all of them.
    pub(crate) fn skeleton(config: &BertConfig, device: &Device) -> Self {
        let hidden = config.hidden_size;
        Self {
            bert: Bert {
                embeddings: Embeddings::new(config, device),
                encoder: Encoder {
                    layer: (0..config.num_hidden_layers)
                        .map(|_| Layer::new(config, device))
                        .collect(),
                },
                pooler: Pooler {
                    dense: LinearConfig::new(hidden, hidden).init(device),
                },
            },
            classifier: LinearConfig::new(hidden, 1).init(device),
            config: config.clone(),
        }
    }

    /// The architecture, as loaded; with the dropout it was loaded with.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Where the parameters are. An autodiff device for a model that can be trained.
    pub fn device(&self) -> Device {
        self.classifier.weight.device()
    }

    /// Relevance logits. Dropout acts only on an autodiff device.
    ///
    /// # Shapes
    /// - output: `[B]`
    pub fn forward(&self, batch: &Batch) -> Tensor<1> {
        let [pairs, _] = batch.input_ids.dims();
        // The pooler reads the first token alone, so the last layer computes no other: of a six
        // layer model that spares a seventh of the work.
        let first = self
            .encode(batch, 1)
            .reshape([pairs, self.config.hidden_size]);
        let pooled = self.bert.pooler.dense.forward(first).tanh();
        let pooled = dropout(pooled, self.config.hidden_dropout_prob);
        self.classifier.forward(pooled).reshape([pairs])
    }

    /// The mean of the last hidden state over real tokens, at length one: a text's embedding, if
    /// the encoder is a bi-encoder's.
    ///
    /// # Shapes
    /// - output: `[B, D]`
    pub fn embed(&self, batch: &Batch) -> Tensor<2> {
        let [texts, tokens] = batch.input_ids.dims();
        let mask = batch.attention_mask.clone().unsqueeze_dim::<3>(2);
        // A sum serves as well as a mean: the length is set to one in the end.
        let sum = (self.encode(batch, tokens) * mask)
            .sum_dim(1)
            .reshape([texts, self.config.hidden_size]);
        let length = sum.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
        sum / length
    }

    /// The encoder's output at the first `R` tokens. Rows of padding hold numbers without meaning.
    ///
    /// # Shapes
    /// - output: `[B, R, D]`
    fn encode(&self, batch: &Batch, rows: usize) -> Tensor<3> {
        let [pairs, tokens] = batch.input_ids.dims();
        // Finite, for -inf times 0 is NaN in a gradient; far below any score, so exp gives 0.
        let mask = (batch.attention_mask.clone() - 1.0)
            .mul_scalar(3e4)
            .reshape([pairs, 1, 1, tokens]);
        let hidden = self.bert.embeddings.forward(batch);
        let Some((last, others)) = self.bert.encoder.layer.split_last() else {
            return hidden.narrow(1, 0, rows);
        };
        let hidden = others.iter().fold(hidden, |hidden, layer| {
            layer.forward(hidden.clone(), hidden, &mask)
        });
        let wanted = if rows == tokens {
            hidden.clone()
        } else {
            hidden.clone().narrow(1, 0, rows)
        };
        last.forward(wanted, hidden, &mask)
    }
}

impl Embeddings {
    fn new(config: &BertConfig, device: &Device) -> Self {
        let table = |rows| EmbeddingConfig::new(rows, config.hidden_size).init(device);
        Self {
            word_embeddings: table(config.vocab_size),
            position_embeddings: table(config.max_position_embeddings),
            token_type_embeddings: table(config.type_vocab_size),
            layer_norm: layer_norm(config, device),
            dropout: config.hidden_dropout_prob,
        }
    }

    /// # Shapes
    /// - output: `[B, T, D]`
    fn forward(&self, batch: &Batch) -> Tensor<3> {
        let [_, tokens] = batch.input_ids.dims();
        let words = self.word_embeddings.forward(batch.input_ids.clone());
        let segments = self
            .token_type_embeddings
            .forward(batch.token_type_ids.clone());
        // Positions are 0, 1, 2 … in every row: a slice, not a lookup.
        let positions = self
            .position_embeddings
            .weight
            .val()
            .narrow(0, 0, tokens)
            .unsqueeze();
        let sum = words + segments + positions;
        dropout(self.layer_norm.forward(sum), self.dropout)
    }
}

impl Layer {
    fn new(config: &BertConfig, device: &Device) -> Self {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let square = || LinearConfig::new(hidden, hidden).init(device);
        Self {
            attention: Attention {
                self_attention: SelfAttention {
                    query: square(),
                    key: square(),
                    value: square(),
                    heads: config.num_attention_heads,
                    dropout: config.attention_probs_dropout_prob,
                },
                output: Output::new(hidden, config, device),
            },
            intermediate: Intermediate {
                dense: LinearConfig::new(hidden, inner).init(device),
            },
            output: Output::new(inner, config, device),
        }
    }

    /// # Shapes
    /// - rows: `[B, R, D]`, those of `hidden` to compute
    /// - hidden: `[B, T, D]`, what they attend to
    /// - mask: `[B, 1, 1, T]`, added to the attention scores
    /// - output: `[B, R, D]`
    fn forward(&self, rows: Tensor<3>, hidden: Tensor<3>, mask: &Tensor<4>) -> Tensor<3> {
        let self_attention = &self.attention.self_attention;
        let context = self_attention.forward(rows.clone(), hidden, mask);
        let rows = self.attention.output.forward(context, rows);
        let inner = gelu(self.intermediate.dense.forward(rows.clone()));
        self.output.forward(inner, rows)
    }
}

impl SelfAttention {
    /// # Shapes
    /// - rows: `[B, R, D]`
    /// - hidden: `[B, T, D]`
    /// - mask: `[B, 1, 1, T]`
    /// - output: `[B, R, D]`
    fn forward(&self, rows: Tensor<3>, hidden: Tensor<3>, mask: &Tensor<4>) -> Tensor<3> {
        let [pairs, wanted, width] = rows.dims();
        let head_width = width / self.heads;
        let split = |projected: Tensor<3>| {
            let [pairs, tokens, _] = projected.dims();
            projected
                .reshape([pairs, tokens, self.heads, head_width])
                .swap_dims(1, 2)
        };
        // Scaling the queries is T / (D / H) times less work than scaling the scores.
        let query = self
            .query
            .forward(rows)
            .div_scalar((head_width as f64).sqrt());
        let (query, key) = (split(query), split(self.key.forward(hidden.clone())));
        let value = split(self.value.forward(hidden));
        let scores = query.matmul(key.transpose()) + mask.clone();
        attend(scores, value, self.dropout)
            .swap_dims(1, 2)
            .reshape([pairs, wanted, width])
    }
}

/// The values, weighed by the softmax of the scores.
///
/// # Shapes
/// - scores: `[B, H, R, T]`
/// - value: `[B, H, T, D / H]`
/// - output: `[B, H, R, D / H]`
fn attend(scores: Tensor<4>, value: Tensor<4>, probability: f64) -> Tensor<4> {
    if !scores.is_autodiff() {
        return softmax(scores, 3).matmul(value);
    }
    // Under autodiff, softmax is a chain of elementwise passes both ways, so the division moves
    // behind the product, where rows are D / H long and not T.
    let highest = scores.clone().detach().max_dim(3);
    let exponentials = (scores - highest).exp();
    let sum = exponentials.clone().sum_dim(3);
    dropout(exponentials, probability).matmul(value) / sum
}

impl Output {
    fn new(inner: usize, config: &BertConfig, device: &Device) -> Self {
        Self {
            dense: LinearConfig::new(inner, config.hidden_size).init(device),
            layer_norm: layer_norm(config, device),
            dropout: config.hidden_dropout_prob,
        }
    }

    /// # Shapes
    /// - inner: `[B, R, any]`
    /// - residual and output: `[B, R, D]`
    fn forward(&self, inner: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        let projected = dropout(self.dense.forward(inner), self.dropout);
        self.layer_norm.forward(projected + residual)
    }
}

fn layer_norm(config: &BertConfig, device: &Device) -> LayerNorm {
    LayerNormConfig::new(config.hidden_size)
        .with_epsilon(config.layer_norm_eps)
        .init(device)
}

/// In training, zeroes each element with `probability` and scales up the others. The mask takes no
/// gradient, so scaling the mask spares the backward pass what scaling the product would cost.
fn dropout<const N: usize>(input: Tensor<N>, probability: f64) -> Tensor<N> {
    if probability == 0.0 || !input.is_autodiff() {
        return input;
    }
    let keep = 1.0 - probability;
    let mask = input
        .random_like(Distribution::Bernoulli(keep))
        .div_scalar(keep);
    input * mask
}
