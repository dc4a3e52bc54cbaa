//! The layers of ModernBERT: each half normalises its input first and is added to it. Positions are
//! rotations of queries and keys; most layers see only the tokens nearby.
//!
//! Shapes: `B` pairs (or texts), `T` tokens of the longest, `R` of them computed, `D` hidden width,
//! `H` heads.

use burn::module::Module;
use burn::nn::{LayerNorm, Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData};

use crate::attention::{UNSEEN, attend, dropout, split};
use crate::config::{ModelConfig, ModernBertConfig};
use crate::encoder::{layer_norm, those, through};
use crate::gelu::gelu;

#[derive(Module, Debug)]
pub(crate) struct PreNorm {
    layers: Vec<Layer>,
    norm: LayerNorm,
    local_attention: usize,
    global_theta: f64,
    local_theta: f64,
}

#[derive(Module, Debug)]
struct Layer {
    /// None in the first layer, whose input the embeddings have normalised.
    attention_norm: Option<LayerNorm>,
    /// Query, key and value in one.
    joined: Linear,
    attended: Linear,
    inner_norm: LayerNorm,
    /// What is activated, and the gate that it is multiplied with, in one.
    inner: Linear,
    outer: Linear,
    is_global: bool,
}

/// What a layer has to know of its batch.
struct Surroundings {
    /// `[B, 1, 1, T]` or `[B, 1, T, T]`, added to the attention scores.
    mask: Tensor<4>,
    /// Both `[1, 1, T, D / H]`.
    cosines: Tensor<4>,
    sines: Tensor<4>,
}

impl PreNorm {
    pub(crate) fn new(config: &ModelConfig, modern: &ModernBertConfig, device: &Device) -> Self {
        let layer = |place| Layer::new(config, place, modern.is_global(place), device);
        Self {
            layers: (0..config.num_hidden_layers).map(layer).collect(),
            norm: layer_norm(config, config.hidden_size, device),
            local_attention: modern.local_attention,
            global_theta: modern.global_rope_theta,
            local_theta: modern.local_rope_theta,
        }
    }

    pub(crate) fn keep_layers(self, kept: &[usize]) -> Self {
        Self {
            layers: those(self.layers, kept),
            ..self
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
        let [_, tokens, _] = hidden.dims();
        let device = hidden.device();
        let head_width = config.hidden_size / config.num_attention_heads;
        let surroundings = |theta, mask| {
            let [cosines, sines] = rotation(theta, tokens, head_width, &device);
            Surroundings {
                mask,
                cosines,
                sines,
            }
        };
        let global = surroundings(self.global_theta, mask.clone());
        let nearby = nearby(self.local_attention / 2, tokens, &device);
        let nearby = match nearby {
            Some(nearby) => mask.clone() + nearby,
            None => mask.clone(),
        };
        let local = surroundings(self.local_theta, nearby);
        let hidden = through(&self.layers, hidden, rows, |layer, rows, hidden| {
            let surroundings = if layer.is_global { &global } else { &local };
            layer.forward(config, rows, hidden, surroundings)
        });
        self.norm.forward(hidden)
    }
}

impl Layer {
    fn new(config: &ModelConfig, place: usize, is_global: bool, device: &Device) -> Self {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        let norm = || layer_norm(config, hidden, device);
        Self {
            attention_norm: (place > 0).then(norm),
            joined: linear(hidden, 3 * hidden),
            attended: linear(hidden, hidden),
            inner_norm: norm(),
            inner: linear(hidden, 2 * inner),
            outer: linear(inner, hidden),
            is_global,
        }
    }

    /// # Shapes
    /// - rows: `[B, R, D]`, those of `hidden` to compute
    /// - hidden: `[B, T, D]`, what they attend to
    /// - output: `[B, R, D]`
    fn forward(
        &self,
        config: &ModelConfig,
        rows: Tensor<3>,
        hidden: Tensor<3>,
        surroundings: &Surroundings,
    ) -> Tensor<3> {
        let [_, wanted, width] = rows.dims();
        let heads = config.num_attention_heads;
        let normed = match &self.attention_norm {
            Some(norm) => norm.forward(hidden),
            None => hidden,
        };
        let linear = |linear, input| config.precision.linear(linear, input);
        let joined = linear(&self.joined, normed);
        let part = |number: usize| joined.clone().narrow(2, number * width, width);
        let query = split(part(0).narrow(1, 0, wanted), heads);
        let query = surroundings
            .rotate(query)
            .div_scalar(((width / heads) as f64).sqrt());
        let key = surroundings.rotate(split(part(1), heads));
        let value = split(part(2), heads);
        let mask = surroundings.mask_of(wanted);
        let context = attend(config, query, key, value, mask);
        let probability = config.attention_probs_dropout_prob;
        let rows = rows + dropout(linear(&self.attended, context), probability);

        let inner = linear(&self.inner, self.inner_norm.forward(rows.clone()));
        let half = config.intermediate_size;
        let (activated, gate) = (
            gelu(inner.clone().narrow(2, 0, half)),
            inner.narrow(2, half, half),
        );
        let gated = dropout(activated * gate, config.hidden_dropout_prob);
        rows + linear(&self.outer, gated)
    }
}

impl Surroundings {
    /// Turns each feature of the first half, with its counterpart in the second, by its position.
    ///
    /// # Shapes
    /// - input and output: `[B, H, R, D / H]`
    fn rotate(&self, input: Tensor<4>) -> Tensor<4> {
        let [_, _, rows, width] = input.dims();
        let half = |number: usize| input.clone().narrow(3, number * width / 2, width / 2);
        let swapped = Tensor::cat(vec![half(1), half(0)], 3);
        let cosines = self.cosines.clone().narrow(2, 0, rows);
        let sines = self.sines.clone().narrow(2, 0, rows);
        input * cosines + swapped * sines
    }

    /// The mask of the first rows.
    fn mask_of(&self, rows: usize) -> Tensor<4> {
        match self.mask.dims() {
            [_, _, 1, _] => self.mask.clone(),
            _ => self.mask.clone().narrow(2, 0, rows),
        }
    }
}

/// Cosines and sines of every position's angles (Su et al., 2021, arXiv 2104.09864). The sines of
/// the first half are negative: there the counterpart is taken away.
///
/// # Shapes
/// - output: twice `[1, 1, T, width]`
fn rotation(theta: f64, tokens: usize, width: usize, device: &Device) -> [Tensor<4>; 2] {
    let half = width / 2;
    let frequencies: Vec<f64> = (0..half)
        .map(|feature| theta.powf(-2.0 * feature as f64 / width as f64))
        .collect();
    let (mut cosines, mut sines) = (Vec::new(), Vec::new());
    for position in 0..tokens {
        for sign in [-1.0, 1.0] {
            for frequency in &frequencies {
                let angle = position as f64 * frequency;
                cosines.push(single(angle.cos()));
                sines.push(single(sign * angle.sin()));
            }
        }
    }
    [cosines, sines]
        .map(|values| Tensor::from_data(TensorData::new(values, [1, 1, tokens, width]), device))
}

/// What keeps every token from those further away than `distance`; none where none are.
///
/// # Shapes
/// - output: `[1, 1, T, T]`
fn nearby(distance: usize, tokens: usize, device: &Device) -> Option<Tensor<4>> {
    if tokens <= distance + 1 {
        return None;
    }
    let values: Vec<f32> = (0..tokens)
        .flat_map(|row| (0..tokens).map(move |column| row.abs_diff(column) > distance))
        .map(|is_far| if is_far { single(UNSEEN) } else { 0.0 })
        .collect();
    let values = TensorData::new(values, [1, 1, tokens, tokens]);
    Some(Tensor::from_data(values, device))
}

#[expect(clippy::cast_possible_truncation, reason = "tensors have 32 bits")]
fn single(wide: f64) -> f32 {
    wide as f32
}
