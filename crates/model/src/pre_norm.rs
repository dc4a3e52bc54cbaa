//! The layers of ModernBERT: each half normalises its input first and is added to it. Positions are
//! rotations of queries and keys; most layers see only the tokens nearby.
//!
//! Shapes: `N` tokens of a batch, `R` of them computed, `D` hidden width, `H` heads; of a block of the
//! batch, `B` pairs (or texts) of `T` tokens each.

use burn::module::Module;
use burn::nn::{LayerNorm, Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData};

use crate::attention::{UNSEEN, attend, dropout, heads_of};
use crate::blocks::Block;
use crate::config::{ModelConfig, ModernBertConfig};
use crate::encoder::{Rows, layer_norm, those, through};
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
    /// `[B, 1, 1, T]` or `[B, 1, T, T]` of each block, added to the attention scores.
    masks: Vec<Tensor<4>>,
    /// Both `[1, 1, T, D / H]`, with `T` of the longest.
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
        let longest = blocks.iter().map(|block| block.tokens).max();
        let device = hidden.device();
        let head_width = config.hidden_size / config.num_attention_heads;
        let surroundings = |theta, masks| {
            let [cosines, sines] = rotation(theta, longest.unwrap_or(0), head_width, &device);
            Surroundings {
                masks,
                cosines,
                sines,
            }
        };
        let global = surroundings(self.global_theta, masks.to_vec());
        let nearby = |(block, mask): (&Block, &Tensor<4>)| match nearby(
            self.local_attention / 2,
            block.tokens,
            &device,
        ) {
            Some(nearby) => mask.clone() + nearby,
            None => mask.clone(),
        };
        let nearby = blocks.iter().zip(masks).map(nearby).collect();
        let local = surroundings(self.local_theta, nearby);
        let layers = &self.layers;
        let hidden = through(layers, hidden, blocks, wanted, |layer, rows, hidden| {
            let surroundings = if layer.is_global { &global } else { &local };
            layer.forward(config, rows, (hidden, blocks), surroundings)
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
    /// - rows: `[R, D]`, those of `hidden` to compute, and what they lie in
    /// - hidden: `[N, D]`, what they attend to, and what that lies in
    /// - output: `[R, D]`
    fn forward(
        &self,
        config: &ModelConfig,
        (rows, asking): (Tensor<2>, &[Block]),
        (hidden, asked): (Tensor<2>, &[Block]),
        surroundings: &Surroundings,
    ) -> Tensor<2> {
        let [_, width] = rows.dims();
        let heads = config.num_attention_heads;
        let normed = match &self.attention_norm {
            Some(norm) => norm.forward(hidden),
            None => hidden,
        };
        let linear = |linear, input| config.precision.linear(linear, input);
        let joined = linear(&self.joined, normed);
        let part = |number: usize| {
            let part = joined.clone().narrow(1, number * width, width);
            heads_of(&part, asked, heads).into_iter()
        };
        let query = part(0).zip(asking).map(|(query, block)| {
            let query = surroundings.rotate(query.narrow(2, 0, block.tokens));
            query.div_scalar(((width / heads) as f64).sqrt())
        });
        let query: Vec<Tensor<4>> = query.collect();
        let key = part(1).map(|key| surroundings.rotate(key)).collect();
        let masks = surroundings.masks_of(asking);
        let context = attend(config, query, key, part(2).collect(), &masks);
        let probability = config.attention_probs_dropout_prob;
        let rows = rows + dropout(linear(&self.attended, context), probability);

        let inner = linear(&self.inner, self.inner_norm.forward(rows.clone()));
        let half = config.intermediate_size;
        let (activated, gate) = (
            gelu(inner.clone().narrow(1, 0, half)),
            inner.narrow(1, half, half),
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

    /// The masks of each pair's first rows.
    fn masks_of(&self, asking: &[Block]) -> Vec<Tensor<4>> {
        let masks = self.masks.iter().zip(asking);
        let first = masks.map(|(mask, block)| match mask.dims() {
            [_, _, 1, _] => mask.clone(),
            _ => mask.clone().narrow(2, 0, block.tokens),
        });
        first.collect()
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
