//! BERT on the CPU, forward and backward by hand, without padding.
//!
//! Burn's graph of operations is the reference and runs everywhere. On the CPU it leaves a third of a
//! training step to chains of elementwise passes on one core, to gradients of whole embedding tables
//! and to padding. Here the tokens of a block of inputs lie one after the other and no row is
//! computed that nobody reads; each core has blocks of its own, so that nothing waits.
//!
//! Shapes: `S` inputs, `N` tokens of all of them, `R` rows that are computed (in the last layer the
//! first of each input, elsewhere all tokens), `D` hidden width, `H` heads.

mod dropout;
mod kernels;
mod layer;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::Tensor;
use rayon::prelude::*;

use self::dropout::{Dropout, Site};
use self::kernels::{
    Matrix, Normed, Target, add, add_bias, add_rows, multiply, normalise, normalise_backward,
};
use self::layer::{Layer, LayerTape, Linear, Norm};
use crate::architecture::Architecture;
use crate::config::ModelConfig;
use crate::cross_encoder::CrossEncoder;
use crate::pairs::Encoded;
use crate::parallel::{is_cpu, parallel_map};
use crate::parameters::ParameterVisitor;

/// A model's parameters in this memory, ready to compute with.
pub struct HostBert {
    /// Hugging Face names, in the order of `values`.
    names: Vec<String>,
    values: Vec<Vec<f32>>,
    config: ModelConfig,
    width: usize,
    heads: usize,
    epsilon: f32,
    word: usize,
    position: usize,
    segment: usize,
    norm: Norm,
    layers: Vec<Layer>,
    pooler: Linear,
    classifier: Linear,
}

/// A forward pass that can be gone back through.
pub struct HostPass {
    /// A logit for each input, in their order.
    pub logits: Vec<f32>,
    /// Those of each thread.
    blocks: Vec<Vec<Block>>,
}

/// Some inputs, computed together.
struct Block {
    /// Places among all inputs.
    places: Vec<usize>,
    logits: Vec<f32>,
    tape: Tape,
}

/// What going back through a block takes.
struct Tape {
    tokens: Tokens,
    embedded: Normed,
    layers: Vec<LayerTape>,
    /// The last layer's output: `[S, D]`.
    last: Vec<f32>,
    /// The pooler's: `[S, D]`.
    pooled: Vec<f32>,
    /// What the classifier reads of it: `[S, D]`.
    read: Vec<f32>,
}

/// The tokens of a block, one input after the other.
struct Tokens {
    ids: Vec<usize>,
    segments: Vec<usize>,
    positions: Vec<usize>,
    spans: Vec<Span>,
    /// Where the pass is one of training: what it drops out.
    dropout: Option<Dropout>,
}

/// An input's place among the tokens of its block.
#[derive(Clone, Copy)]
struct Span {
    first: usize,
    length: usize,
    /// Its place among all inputs.
    input: usize,
}

impl HostBert {
    /// The parameters of a BERT with one label that is on the CPU: of such a model this computes what
    /// [`CrossEncoder::forward`] and a backward pass through it would. `None` of others, and of one
    /// that is trained with fewer than 32 bits.
    pub fn of(model: &CrossEncoder) -> Option<Self> {
        let config = model.config();
        let is_bert = config.architecture == Architecture::Bert && config.labels.len() == 1;
        let device = model.device();
        let is_narrow = config.precision.operands().is_some() && device.is_autodiff();
        if !is_bert || !is_cpu(&device) || is_narrow {
            return None;
        }
        let mut gathered = Gather::default();
        model.visit_parameters(&mut gathered);
        let Gather { names, values } = gathered;
        let places: BTreeMap<&str, usize> = names
            .iter()
            .enumerate()
            .map(|(place, name)| (name.as_str(), place))
            .collect();
        let at = |name: &str| places.get(name).copied();
        let linear = |name: &str| {
            Some(Linear {
                weight: at(&format!("{name}.weight"))?,
                bias: at(&format!("{name}.bias"))?,
            })
        };
        let norm = |name: &str| {
            let Linear { weight, bias } = linear(&format!("{name}.LayerNorm"))?;
            Some(Norm { weight, bias })
        };
        let layer = |number: usize| {
            let name = |part: &str| format!("bert.encoder.layer.{number}.{part}");
            Some(Layer {
                number,
                is_last: number + 1 == config.num_hidden_layers,
                query: linear(&name("attention.self.query"))?,
                key: linear(&name("attention.self.key"))?,
                value: linear(&name("attention.self.value"))?,
                attention_output: linear(&name("attention.output.dense"))?,
                attention_norm: norm(&name("attention.output"))?,
                inner: linear(&name("intermediate.dense"))?,
                output: linear(&name("output.dense"))?,
                output_norm: norm(&name("output"))?,
            })
        };
        let layers: Option<Vec<Layer>> = (0..config.num_hidden_layers).map(layer).collect();
        #[expect(clippy::cast_possible_truncation, reason = "computed with 32 bits")]
        let epsilon = config.layer_norm_eps as f32;
        Some(Self {
            config: config.clone(),
            width: config.hidden_size,
            heads: config.num_attention_heads,
            epsilon,
            word: at("bert.embeddings.word_embeddings.weight")?,
            position: at("bert.embeddings.position_embeddings.weight")?,
            segment: at("bert.embeddings.token_type_embeddings.weight")?,
            norm: norm("bert.embeddings")?,
            layers: layers.filter(|layers| !layers.is_empty())?,
            pooler: linear("bert.pooler.dense")?,
            classifier: linear("classifier")?,
            names,
            values,
        })
    }

    /// The logits of all inputs, in their order, with what a way back takes. Inputs go to `threads`
    /// threads by their lengths alone, in blocks of about `tokens_per_block` tokens, so that the same
    /// inputs give the same numbers to the last bit. What the configuration says is dropped out: which
    /// numbers is up to `seed` and an input's place, and not to threads and blocks.
    pub fn forward(
        &self,
        inputs: &[&Encoded],
        threads: usize,
        tokens_per_block: usize,
        seed: u64,
    ) -> HostPass {
        let dropout = Some(Dropout::of(&self.config, seed));
        let shares = shares(inputs, threads);
        let blocks = parallel_map(&shares, threads, |share| {
            blocks(share, inputs, tokens_per_block)
                .into_iter()
                .map(|places| {
                    let tokens = Tokens::of(&places, inputs, dropout);
                    let (logits, tape) = self.forward_block(tokens);
                    Block {
                        places,
                        logits,
                        tape,
                    }
                })
                .collect::<Vec<_>>()
        });
        let mut logits = vec![0.0; inputs.len()];
        for block in blocks.iter().flatten() {
            for (place, logit) in block.places.iter().zip(&block.logits) {
                logits[*place] = *logit;
            }
        }
        HostPass { logits, blocks }
    }

    /// The gradient of every parameter, by Hugging Face name and flattened, from the slope at each
    /// logit.
    pub fn backward(&self, pass: &HostPass, slopes: &[f32]) -> Vec<(String, Vec<f32>)> {
        let parts = parallel_map(&pass.blocks, pass.blocks.len(), |blocks| {
            let mut gradients = Gradients::new(self);
            for block in blocks {
                let slopes: Vec<f32> = block.places.iter().map(|place| slopes[*place]).collect();
                self.backward_block(&block.tape, &slopes, &mut gradients);
            }
            gradients
        });
        Gradients::sum(parts, self)
    }

    /// The logits of all inputs, in their order.
    pub(crate) fn logits(
        &self,
        inputs: &[Encoded],
        threads: usize,
        tokens_per_block: usize,
    ) -> Vec<f32> {
        let references: Vec<&Encoded> = inputs.iter().collect();
        let mut longest_first: Vec<usize> = (0..inputs.len()).collect();
        longest_first.sort_by_key(|place| Reverse(inputs[*place].len()));
        let blocks = blocks(&longest_first, &references, tokens_per_block);
        let of_blocks = parallel_map(&blocks, threads, |places| {
            let tokens = Tokens::of(places, &references, None);
            self.forward_block(tokens).0
        });
        let mut logits = vec![0.0; inputs.len()];
        for (places, of_block) in blocks.iter().zip(of_blocks) {
            for (place, logit) in places.iter().zip(of_block) {
                logits[*place] = logit;
            }
        }
        logits
    }

    fn forward_block(&self, tokens: Tokens) -> (Vec<f32>, Tape) {
        let width = self.width;
        let mut sums = vec![0.0; tokens.ids.len() * width];
        for (token, sum) in sums.chunks_exact_mut(width).enumerate() {
            sum.copy_from_slice(self.row(self.word, tokens.ids[token]));
            add(sum, self.row(self.segment, tokens.segments[token]));
            add(sum, self.row(self.position, tokens.positions[token]));
        }
        let (mut hidden, embedded) = self.normalise(sums, self.norm);
        tokens.drop_rows(&mut hidden, width, Site::Embeddings);
        let mut layers = Vec::new();
        for layer in &self.layers {
            let tape;
            (hidden, tape) = layer.forward(self, hidden, &tokens);
            if tokens.dropout.is_some() {
                layers.push(tape);
            }
        }
        let mut pooled = self.project(self.pooler, &hidden);
        add_bias(&mut pooled, &self.values[self.pooler.bias]);
        for value in &mut pooled {
            *value = value.tanh();
        }
        let mut read = pooled.clone();
        tokens.drop_first_rows(&mut read, width, Site::Pooled);
        let mut logits = self.project(self.classifier, &read);
        add_bias(&mut logits, &self.values[self.classifier.bias]);
        let tape = Tape {
            tokens,
            embedded,
            layers,
            last: hidden,
            pooled,
            read,
        };
        (logits, tape)
    }

    fn backward_block(&self, tape: &Tape, slopes: &[f32], gradients: &mut Gradients) {
        let width = self.width;
        let mut of_pooled = self.backward_linear(self.classifier, &tape.read, slopes, gradients);
        tape.tokens
            .drop_first_rows(&mut of_pooled, width, Site::Pooled);
        for (slope, pooled) in of_pooled.iter_mut().zip(&tape.pooled) {
            *slope *= 1.0 - pooled * pooled;
        }
        let mut of_hidden = self.backward_linear(self.pooler, &tape.last, &of_pooled, gradients);
        for (layer, of_layer) in self.layers.iter().zip(&tape.layers).rev() {
            of_hidden = layer.backward(self, of_layer, &tape.tokens, of_hidden, gradients);
        }
        tape.tokens
            .drop_rows(&mut of_hidden, width, Site::Embeddings);
        let of_sums = self.backward_norm(self.norm, of_hidden, &tape.embedded, gradients);
        for (token, slope) in of_sums.chunks_exact(width).enumerate() {
            for (table, row) in [
                (self.segment, tape.tokens.segments[token]),
                (self.position, tape.tokens.positions[token]),
            ] {
                add(&mut gradients.dense[table][row * width..][..width], slope);
            }
        }
        gradients.words.extend(&tape.tokens.ids);
        gradients.of_words.extend(of_sums);
    }

    fn row(&self, table: usize, row: usize) -> &[f32] {
        &self.values[table][row * self.width..][..self.width]
    }

    /// The product with a weight; the bias is left to the caller, who passes over the rows anyway.
    fn project(&self, linear: Linear, input: &[f32]) -> Vec<f32> {
        let (input, weight) = (self.input(linear, input), self.weight(linear));
        let outputs = self.values[linear.bias].len();
        let mut output = vec![0.0; input.rows() * outputs];
        multiply(input, weight, 1.0, Target::new(&mut output, outputs));
        output
    }

    /// The slope at a linear map's input, from that at its output; those of weight and bias are
    /// added to `gradients`.
    fn backward_linear(
        &self,
        linear: Linear,
        input: &[f32],
        slopes: &[f32],
        gradients: &mut Gradients,
    ) -> Vec<f32> {
        let mut of_input = vec![0.0; input.len()];
        self.backward_linear_into(linear, input, slopes, &mut of_input, gradients);
        of_input
    }

    /// The same, with the slope at the input added to what is there.
    fn backward_linear_into(
        &self,
        linear: Linear,
        input: &[f32],
        slopes: &[f32],
        of_input: &mut [f32],
        gradients: &mut Gradients,
    ) {
        let outputs = self.values[linear.bias].len();
        let (input, weight) = (self.input(linear, input), self.weight(linear));
        let slopes_matrix = Matrix::new(slopes, outputs);
        let of_weight = Target::new(&mut gradients.dense[linear.weight], outputs).adding();
        multiply(input.transposed(), slopes_matrix, 1.0, of_weight);
        add_rows(slopes, &mut gradients.dense[linear.bias]);
        let of_input = Target::new(of_input, input.columns()).adding();
        multiply(slopes_matrix, weight.transposed(), 1.0, of_input);
    }

    fn weight(&self, linear: Linear) -> Matrix<'_> {
        Matrix::new(&self.values[linear.weight], self.values[linear.bias].len())
    }

    fn input<'a>(&self, linear: Linear, input: &'a [f32]) -> Matrix<'a> {
        let inputs = self.values[linear.weight].len() / self.values[linear.bias].len();
        Matrix::new(input, inputs)
    }

    fn normalise(&self, rows: Vec<f32>, norm: Norm) -> (Vec<f32>, Normed) {
        let (weight, bias) = (&self.values[norm.weight], &self.values[norm.bias]);
        normalise(rows, weight, bias, self.epsilon)
    }

    fn backward_norm(
        &self,
        norm: Norm,
        slopes: Vec<f32>,
        normed: &Normed,
        gradients: &mut Gradients,
    ) -> Vec<f32> {
        let mut of_weight = std::mem::take(&mut gradients.dense[norm.weight]);
        let of_bias = &mut gradients.dense[norm.bias];
        let weight = &self.values[norm.weight];
        let slopes = normalise_backward(slopes, normed, weight, &mut of_weight, of_bias);
        gradients.dense[norm.weight] = of_weight;
        slopes
    }
}

/// Sums of gradients.
struct Gradients {
    /// In the order of the parameters; that of the word embeddings is empty until the end.
    dense: Vec<Vec<f32>>,
    /// The rows of the word embeddings that tokens took.
    words: Vec<usize>,
    /// The slope at each: few rows of a large table have one.
    of_words: Vec<f32>,
}

impl Gradients {
    fn new(model: &HostBert) -> Self {
        let zeros = |(place, values): (usize, &Vec<f32>)| {
            vec![0.0; if place == model.word { 0 } else { values.len() }]
        };
        Self {
            dense: model.values.iter().enumerate().map(zeros).collect(),
            words: Vec::new(),
            of_words: Vec::new(),
        }
    }

    fn sum(parts: Vec<Self>, model: &HostBert) -> Vec<(String, Vec<f32>)> {
        let width = model.width;
        let mut parts = parts.into_iter();
        let mut total = parts.next().unwrap_or_else(|| Self::new(model));
        let mut words = vec![0.0; model.values[model.word].len()];
        let mut scatter = |ids: &[usize], slopes: &[f32]| {
            for (id, slope) in ids.iter().zip(slopes.chunks_exact(width)) {
                add(&mut words[id * width..][..width], slope);
            }
        };
        scatter(&total.words, &total.of_words);
        for part in parts {
            scatter(&part.words, &part.of_words);
            let pairs = total.dense.par_iter_mut().zip(&part.dense);
            pairs.for_each(|(total, part)| add(total, part));
        }
        total.dense[model.word] = words;
        model.names.iter().cloned().zip(total.dense).collect()
    }
}

impl Tokens {
    fn of(places: &[usize], inputs: &[&Encoded], dropout: Option<Dropout>) -> Self {
        let mut tokens = Self {
            ids: Vec::new(),
            segments: Vec::new(),
            positions: Vec::new(),
            spans: Vec::new(),
            dropout,
        };
        for place in places {
            let input = inputs[*place];
            tokens.spans.push(Span {
                first: tokens.ids.len(),
                length: input.len(),
                input: *place,
            });
            tokens
                .ids
                .extend(input.input_ids.iter().map(|id| *id as usize));
            let segments = input.token_type_ids.iter();
            tokens.segments.extend(segments.map(|id| *id as usize));
            tokens.positions.extend(0..input.len());
        }
        tokens
    }

    /// The first row of each input, one after the other.
    fn firsts(&self) -> impl Iterator<Item = Span> {
        self.spans.iter().enumerate().map(|(first, span)| Span {
            first,
            length: 1,
            ..*span
        })
    }

    /// Drops out of `[N, D]`.
    fn drop_rows(&self, values: &mut [f32], width: usize, site: Site) {
        self.drop_spans(values, width, site, self.spans.iter().copied());
    }

    /// Drops out of `[S, D]`.
    fn drop_first_rows(&self, values: &mut [f32], width: usize, site: Site) {
        self.drop_spans(values, width, site, self.firsts());
    }

    fn drop_spans(
        &self,
        values: &mut [f32],
        width: usize,
        site: Site,
        spans: impl Iterator<Item = Span>,
    ) {
        if let Some(dropout) = self.dropout {
            for span in spans {
                let values = &mut values[span.first * width..][..span.length * width];
                dropout.drop_in_place(values, site, span.input);
            }
        }
    }
}

/// Deals inputs to threads, the longest first, each to the one that has the least to do.
fn shares(inputs: &[&Encoded], threads: usize) -> Vec<Vec<usize>> {
    let mut shares = vec![(0, Vec::new()); threads.clamp(1, inputs.len().max(1))];
    let mut longest_first: Vec<usize> = (0..inputs.len()).collect();
    longest_first.sort_by_key(|place| Reverse(inputs[*place].len()));
    for place in longest_first {
        if let Some(least) = shares.iter_mut().min_by_key(|(tokens, _)| *tokens) {
            least.0 += inputs[place].len();
            least.1.push(place);
        }
    }
    shares.into_iter().map(|(_, places)| places).collect()
}

/// Cuts a list of inputs into blocks of about so many tokens.
fn blocks(places: &[usize], inputs: &[&Encoded], tokens_per_block: usize) -> Vec<Vec<usize>> {
    let mut blocks: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for place in places {
        let tokens = inputs[*place].len();
        match blocks.last_mut() {
            Some(block) if tokens <= room => {
                block.push(*place);
                room -= tokens;
            }
            _ => {
                blocks.push(vec![*place]);
                room = tokens_per_block.saturating_sub(tokens);
            }
        }
    }
    blocks
}

/// Takes every parameter's numbers.
#[derive(Default)]
struct Gather {
    names: Vec<String>,
    values: Vec<Vec<f32>>,
}

impl ParameterVisitor for Gather {
    fn visit<const N: usize>(&mut self, name: &str, parameter: &Param<Tensor<N>>) {
        let data = parameter.val().inner().into_data();
        if let Ok(values) = data.try_into_vec::<f32>() {
            self.names.push(name.to_owned());
            self.values.push(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::Device;

    use super::*;
    use crate::weights::Head;

    const SEED: u64 = 5;

    fn model(hidden: f64, attention: f64, classifier: f64) -> HostBert {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bert");
        let device = Device::flex().autodiff();
        let model = CrossEncoder::load(&folder, Head::Required, None, &device).unwrap();
        let mut host = HostBert::of(&model).unwrap();
        host.config.hidden_dropout_prob = hidden;
        host.config.attention_probs_dropout_prob = attention;
        host.config.classifier_dropout = Some(classifier);
        host
    }

    fn inputs() -> Vec<Encoded> {
        let input = |length: u32| Encoded {
            input_ids: (0..length).map(|place| 5 + place * 7 % 40).collect(),
            token_type_ids: (0..length).map(|place| u32::from(place > 3)).collect(),
        };
        [9, 4, 17, 6, 12].map(input).to_vec()
    }

    fn logits(host: &HostBert, threads: usize, tokens_per_block: usize, seed: u64) -> Vec<f32> {
        let inputs = inputs();
        let inputs: Vec<&Encoded> = inputs.iter().collect();
        host.forward(&inputs, threads, tokens_per_block, seed)
            .logits
    }

    /// The slope of a sum of logits along each tensor's gradient, against the difference that a
    /// small step makes, the same numbers dropped.
    #[test]
    fn gradients_hold_with_dropout() {
        let mut host = model(0.2, 0.3, 0.1);
        let inputs = inputs();
        let inputs: Vec<&Encoded> = inputs.iter().collect();
        let weights = [1.0, -0.5, 2.0, 0.7, -1.2];
        let sum = |host: &HostBert| -> f64 {
            let logits = host.forward(&inputs, 1, 20, SEED).logits;
            let products = logits.iter().zip(weights);
            products.map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
        };
        let pass = host.forward(&inputs, 2, 12, SEED);
        let mut compared = 0;
        for (place, (name, gradient)) in host.backward(&pass, &weights).into_iter().enumerate() {
            let squares = gradient.iter().map(|slope| f64::from(slope * slope));
            let norm = squares.sum::<f64>().sqrt();
            if norm < 1e-3 {
                // A key's bias moves nothing.
                continue;
            }
            let before = host.values[place].clone();
            #[expect(clippy::cast_possible_truncation, reason = "a small step")]
            let mut moved = |by: f64| {
                let scale = (by / norm) as f32;
                for (value, (before, slope)) in host.values[place]
                    .iter_mut()
                    .zip(before.iter().zip(&gradient))
                {
                    *value = before + scale * slope;
                }
                sum(&host)
            };
            let step = 4e-3;
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            moved(0.0);
            let error = (slope - norm).abs() / norm;
            assert!(error < 0.02, "{name}: {slope} along a gradient of {norm}");
            compared += 1;
        }
        assert!(compared > 20, "{compared}");
    }

    #[test]
    fn what_is_dropped_is_up_to_the_seed_alone() {
        let host = model(0.1, 0.1, 0.1);
        let expected = logits(&host, 1, 1000, SEED);
        for (threads, tokens_per_block) in [(1, 10), (3, 1000), (2, 1)] {
            for (one, other) in expected
                .iter()
                .zip(logits(&host, threads, tokens_per_block, SEED))
            {
                assert!((one - other).abs() < 1e-5, "{one} {other}");
            }
        }
        assert_ne!(expected, logits(&host, 1, 1000, SEED + 1));
    }

    #[test]
    fn each_dropout_acts_by_itself() {
        let without = logits(&model(0.0, 0.0, 0.0), 1, 1000, SEED);
        assert_eq!(without, logits(&model(0.0, 0.0, 0.0), 1, 1000, SEED + 1));
        for host in [
            model(0.3, 0.0, 0.0),
            model(0.0, 0.3, 0.0),
            model(0.0, 0.0, 0.3),
        ] {
            assert_ne!(without, logits(&host, 1, 1000, SEED));
            // Scoring drops nothing.
            assert_eq!(without, host.logits(&inputs(), 1, 1000));
        }
    }
}
