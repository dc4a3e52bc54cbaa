//! One layer of the encoder.

use std::borrow::Cow;

use super::dropout::Site;
use super::kernels::{
    Matrix, Normed, Target, add, add_bias, gelu, multiply, scale_by, softmax, softmax_backward,
};
use super::{Gradients, HostBert, Span, Tokens};

/// Places of a linear map's parameters.
#[derive(Clone, Copy)]
pub(super) struct Linear {
    pub(super) weight: usize,
    pub(super) bias: usize,
}

/// Places of a layer norm's parameters.
#[derive(Clone, Copy)]
pub(super) struct Norm {
    pub(super) weight: usize,
    pub(super) bias: usize,
}

/// Places of a layer's parameters.
pub(super) struct Layer {
    /// From 0.
    pub(super) number: usize,
    /// Whether it is the one whose output the pooler reads: the first row of each input.
    pub(super) is_last: bool,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) attention_output: Linear,
    pub(super) attention_norm: Norm,
    pub(super) inner: Linear,
    pub(super) output: Linear,
    pub(super) output_norm: Norm,
}

/// What going back through a layer takes.
pub(super) struct LayerTape {
    /// `[N, D]`
    input: Vec<f32>,
    /// Of a last layer, the input's first rows: `[S, D]`.
    first_rows: Option<Vec<f32>>,
    attention: Attention,
    /// `[R, D]`
    context: Vec<f32>,
    attention_norm: Normed,
    /// Between the halves of the layer: `[R, D]`.
    middle: Vec<f32>,
    /// After GELU: `[R, inner]`.
    inner: Vec<f32>,
    /// GELU's slopes: `[R, inner]`.
    slopes: Vec<f32>,
    output_norm: Normed,
}

/// Queries, keys and values, and what came of them.
struct Attention {
    /// `[R, D]`
    query: Vec<f32>,
    /// `[N, D]`
    key: Vec<f32>,
    /// `[N, D]`
    value: Vec<f32>,
    /// Of each input and head, one after the other: `[its R, its N]`.
    weights: Vec<f32>,
}

/// An input's rows, and where its attention weights begin.
struct Place {
    rows: Span,
    tokens: Span,
    weights: usize,
}

impl Layer {
    /// # Shapes
    /// - input: `[N, D]`
    /// - output: `[R, D]`
    pub(super) fn forward(
        &self,
        model: &HostBert,
        input: Vec<f32>,
        tokens: &Tokens,
    ) -> (Vec<f32>, LayerTape) {
        let width = model.width;
        let first_rows = self.is_last.then(|| {
            tokens
                .spans
                .iter()
                .flat_map(|span| &input[span.first * width..][..width])
                .copied()
                .collect::<Vec<f32>>()
        });
        let rows = first_rows.as_ref().unwrap_or(&input);
        let projected = |linear, input| {
            let mut output = model.project(linear, input);
            add_bias(&mut output, &model.values[linear.bias]);
            output
        };
        let mut attention = Attention {
            query: projected(self.query, rows),
            key: projected(self.key, &input),
            value: projected(self.value, &input),
            weights: Vec::new(),
        };
        let context = attention.forward(self, tokens, model);
        let end = |linear, norm, input: &[f32], residual: &[f32], site| {
            let mut sums: Vec<f32> = model.project(linear, input);
            add_bias(&mut sums, &model.values[linear.bias]);
            self.drop_rows(tokens, &mut sums, width, site);
            add(&mut sums, residual);
            model.normalise(sums, norm)
        };
        let site = Site::Attended(self.number);
        let (linear, norm) = (self.attention_output, self.attention_norm);
        let (middle, attention_norm) = end(linear, norm, &context, rows, site);
        let mut inner = model.project(self.inner, &middle);
        let is_trained = tokens.dropout.is_some();
        let slopes = gelu(&mut inner, &model.values[self.inner.bias], is_trained);
        let site = Site::Outer(self.number);
        let (output, output_norm) = end(self.output, self.output_norm, &inner, &middle, site);
        let tape = LayerTape {
            input,
            first_rows,
            attention,
            context,
            attention_norm,
            middle,
            inner,
            slopes,
            output_norm,
        };
        (output, tape)
    }

    /// # Shapes
    /// - slopes at the output: `[R, D]`
    /// - slopes at the input: `[N, D]`
    pub(super) fn backward(
        &self,
        model: &HostBert,
        tape: &LayerTape,
        tokens: &Tokens,
        slopes: Vec<f32>,
        gradients: &mut Gradients,
    ) -> Vec<f32> {
        let width = model.width;
        let mut of_middle =
            model.backward_norm(self.output_norm, slopes, &tape.output_norm, gradients);
        let of_outer = self.dropped(tokens, &of_middle, width, Site::Outer(self.number));
        let mut of_inner = model.backward_linear(self.output, &tape.inner, &of_outer, gradients);
        scale_by(&mut of_inner, &tape.slopes);
        // To the residual's slope, which is that of the sum.
        model.backward_linear_into(
            self.inner,
            &tape.middle,
            &of_inner,
            &mut of_middle,
            gradients,
        );
        let mut of_rows = model.backward_norm(
            self.attention_norm,
            of_middle,
            &tape.attention_norm,
            gradients,
        );
        let of_attended = self.dropped(tokens, &of_rows, width, Site::Attended(self.number));
        let linear = self.attention_output;
        let of_context = model.backward_linear(linear, &tape.context, &of_attended, gradients);
        let (of_query, of_key, of_value) =
            tape.attention.backward(self, &of_context, tokens, model);
        let rows = tape.first_rows.as_ref().unwrap_or(&tape.input);
        model.backward_linear_into(self.query, rows, &of_query, &mut of_rows, gradients);
        let mut of_input = if self.is_last {
            let mut of_input = vec![0.0; tape.input.len()];
            for (span, of_row) in tokens.spans.iter().zip(of_rows.chunks_exact(width)) {
                of_input[span.first * width..][..width].copy_from_slice(of_row);
            }
            of_input
        } else {
            of_rows
        };
        for (linear, slopes) in [(self.key, &of_key), (self.value, &of_value)] {
            model.backward_linear_into(linear, &tape.input, slopes, &mut of_input, gradients);
        }
        of_input
    }

    /// Drops out of `[R, D]`.
    fn drop_rows(&self, tokens: &Tokens, values: &mut [f32], width: usize, site: Site) {
        if self.is_last {
            tokens.drop_first_rows(values, width, site);
        } else {
            tokens.drop_rows(values, width, site);
        }
    }

    /// `[R, D]` with what is dropped dropped.
    fn dropped<'a>(
        &self,
        tokens: &Tokens,
        values: &'a [f32],
        width: usize,
        site: Site,
    ) -> Cow<'a, [f32]> {
        let drops = tokens.dropout.is_some_and(|dropout| dropout.drops(site));
        let mut values = Cow::Borrowed(values);
        if drops {
            self.drop_rows(tokens, values.to_mut(), width, site);
        }
        values
    }
}

impl Attention {
    /// The values, weighed by the softmax of the scores: `[R, D]`.
    fn forward(&mut self, layer: &Layer, tokens: &Tokens, model: &HostBert) -> Vec<f32> {
        let (width, head_width, scale) = heads(model);
        let places = places(layer, tokens, model.heads);
        let all: usize = places.iter().map(|place| place.size(model.heads)).sum();
        self.weights = vec![0.0; all];
        let mut context = vec![0.0; self.query.len()];
        for place in &places {
            let (rows, columns) = (place.rows.length, place.tokens.length);
            for head in 0..model.heads {
                let column = head * head_width;
                let query = part(&self.query, place.rows, column, model);
                let key = part(&self.key, place.tokens, column, model);
                let value = part(&self.value, place.tokens, column, model);
                let first = place.weights + head * rows * columns;
                let weights = &mut self.weights[first..][..rows * columns];
                let target = Target::new(weights, columns);
                multiply(query, key.transposed(), scale, target);
                softmax(weights, columns);
                let weights = place.dropped(layer, tokens, weights, head);
                let target = &mut context[place.rows.first * width + column..];
                let weights = Matrix::new(&weights, columns);
                multiply(weights, value, 1.0, Target::new(target, width));
            }
        }
        context
    }

    /// The slopes at queries, keys and values, from those at what [`Attention::forward`] gave.
    fn backward(
        &self,
        layer: &Layer,
        slopes: &[f32],
        tokens: &Tokens,
        model: &HostBert,
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (width, head_width, scale) = heads(model);
        let mut of_query = vec![0.0; self.query.len()];
        let mut of_key = vec![0.0; self.key.len()];
        let mut of_value = vec![0.0; self.value.len()];
        let mut of_weights = Vec::new();
        for place in places(layer, tokens, model.heads) {
            let (rows, columns) = (place.rows.length, place.tokens.length);
            of_weights.resize(rows * columns, 0.0);
            for head in 0..model.heads {
                let column = head * head_width;
                let first = place.weights + head * rows * columns;
                let weights = &self.weights[first..][..rows * columns];
                let dropped = place.dropped(layer, tokens, weights, head);
                let slopes = part(slopes, place.rows, column, model);
                let value = part(&self.value, place.tokens, column, model);
                let (of_rows, of_tokens) = (
                    place.rows.first * width + column,
                    place.tokens.first * width + column,
                );
                let target = Target::new(&mut of_value[of_tokens..], width);
                multiply(
                    Matrix::new(&dropped, columns).transposed(),
                    slopes,
                    1.0,
                    target,
                );
                let target = Target::new(&mut of_weights, columns);
                multiply(slopes, value.transposed(), 1.0, target);
                if let Some(dropout) = tokens.dropout {
                    let site = Site::Attention(layer.number, head);
                    dropout.drop_in_place(&mut of_weights, site, place.tokens.input);
                }
                softmax_backward(&mut of_weights, weights, columns);
                let of_scores = Matrix::new(&of_weights, columns);
                let target = Target::new(&mut of_query[of_rows..], width);
                let key = part(&self.key, place.tokens, column, model);
                multiply(of_scores, key, scale, target);
                let target = Target::new(&mut of_key[of_tokens..], width);
                let query = part(&self.query, place.rows, column, model);
                multiply(of_scores.transposed(), query, scale, target);
            }
        }
        (of_query, of_key, of_value)
    }
}

impl Place {
    fn size(&self, heads: usize) -> usize {
        heads * self.rows.length * self.tokens.length
    }

    /// A head's attention weights with what is dropped dropped.
    fn dropped<'a>(
        &self,
        layer: &Layer,
        tokens: &Tokens,
        weights: &'a [f32],
        head: usize,
    ) -> Cow<'a, [f32]> {
        let site = Site::Attention(layer.number, head);
        match tokens.dropout {
            Some(dropout) => dropout.drop(weights, site, self.tokens.input),
            None => Cow::Borrowed(weights),
        }
    }
}

fn places(layer: &Layer, tokens: &Tokens, heads: usize) -> Vec<Place> {
    let mut weights = 0;
    let place = |(span, first): (&Span, Span)| {
        let place = Place {
            rows: if layer.is_last { first } else { *span },
            tokens: *span,
            weights,
        };
        weights += place.size(heads);
        place
    };
    tokens
        .spans
        .iter()
        .zip(tokens.firsts())
        .map(place)
        .collect()
}

/// The width of all heads and of one, and what scores are multiplied with.
fn heads(model: &HostBert) -> (usize, usize, f32) {
    let head_width = model.width / model.heads;
    (model.width, head_width, 1.0 / (head_width as f32).sqrt())
}

/// A head's columns of an input's rows.
fn part<'a>(values: &'a [f32], rows: Span, column: usize, model: &HostBert) -> Matrix<'a> {
    let (width, head_width, _) = heads(model);
    let values = &values[rows.first * width + column..];
    Matrix::part(values, rows.length, head_width, width)
}
