//! A layer of the encoder, kernel by kernel.
//!
//! Shapes: `N` tokens of a batch, `R` of them computed (in the last layer the first of each pair,
//! elsewhere all), `D` hidden width, `I` inner width, `H` heads.

use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::Frame;
use super::launch::{Goal, Gpu, Normed, Operands, Product, transposed};
use super::places::{
    ATTENDED, ATTENDED_BIAS, ATTENDED_SCALE, ATTENDED_SHIFT, INNER, INNER_BIAS, KEY, KEY_BIAS,
    OUTER, OUTER_BIAS, OUTER_SCALE, OUTER_SHIFT, QUERY, QUERY_BIAS, VALUE, VALUE_BIAS, Weights,
};

/// What the way back through a layer takes. Operands of products are as they were multiplied.
pub(crate) struct Tape {
    weights: Weights,
    /// Of them, the matrices behind attention, as operands: `[D, D]`, `[D, I]` and `[I, D]`.
    operands: [CubeTensor; 3],
    /// `[N, D]`
    input: CubeTensor,
    asked: Asked,
    /// `[R, D]`
    context: CubeTensor,
    /// The logarithm of the sum of the exponentials of each row's scores: `[R, H]`.
    logs: CubeTensor,
    attended: Normed,
    /// `[R, D]`
    inner_input: CubeTensor,
    /// The product before bias and GELU: `[R, I]`.
    inner: CubeTensor,
    /// After them.
    activated: CubeTensor,
    outer: Normed,
}

/// What attention is asked, without biases, and what it was projected with.
#[expect(clippy::large_enum_variant, reason = "one a layer")]
pub(super) enum Asked {
    /// Of all tokens.
    All {
        /// `[D, 3 D]`
        weights: CubeTensor,
        /// Queries, keys and values: `[N, 3 D]`.
        projected: CubeTensor,
    },
    /// Of first tokens alone.
    First {
        /// `[R, D]`
        rows: CubeTensor,
        /// `[D, D]`
        weights: CubeTensor,
        /// `[R, D]`
        queries: CubeTensor,
        /// `[D, 2 D]`
        other_weights: CubeTensor,
        /// Keys and values: `[N, 2 D]`.
        others: CubeTensor,
    },
}

/// The layer's output, `[R, D]`, and what the way back takes.
pub(super) fn forward(
    hidden: CubeTensor,
    weights: CubeTensor,
    frame: &Frame,
) -> (CubeTensor, Tape) {
    let weights = Weights::new(weights, frame);
    let hidden = into_contiguous(hidden);
    let gpu = Gpu::new(&hidden, frame);
    let Operands {
        asking,
        asked,
        others: operands,
    } = gpu.operands(&weights);
    let input = gpu.operand(&hidden);
    let w = &weights;
    let (residual, asked) = match asked {
        None => {
            let weights = asking;
            let projected = gpu.product(&input, &weights);
            (hidden, Asked::All { weights, projected })
        }
        Some(other_weights) => {
            let weights = asking;
            let (residual, rows) = gpu.pick(&hidden);
            let queries = gpu.product(&rows, &weights);
            let others = gpu.product(&input, &other_weights);
            let asked = Asked::First {
                rows,
                weights,
                queries,
                other_weights,
                others,
            };
            (residual, asked)
        }
    };
    let [to_attended, to_inner, to_outer] = &operands;
    let (context, logs) = gpu.attend(&asked, w);
    let attended = gpu.product(&context, to_attended);
    let (residual, inner_input, attended) = gpu.add_and_norm(
        &attended,
        &residual,
        [ATTENDED_BIAS, ATTENDED_SCALE, ATTENDED_SHIFT].map(|which| w.at(which)),
        gpu.rounds(),
    );
    let inner = gpu.product(&inner_input, to_inner);
    let activated = gpu.gelu(&inner, &w.at(INNER_BIAS));
    let outer = gpu.product(&activated, to_outer);
    let (output, _, outer) = gpu.add_and_norm(
        &outer,
        &residual,
        [OUTER_BIAS, OUTER_SCALE, OUTER_SHIFT].map(|which| w.at(which)),
        false,
    );
    let tape = Tape {
        weights,
        operands,
        input,
        asked,
        context,
        logs,
        attended,
        inner_input,
        inner,
        activated,
        outer,
    };
    (output, tape)
}

/// The slopes at the layer's input, `[N, D]`, and those at its parameters.
pub(super) fn back(slopes: CubeTensor, tape: &Tape, frame: &Frame) -> (CubeTensor, CubeTensor) {
    let slopes = into_contiguous(slopes);
    let gpu = Gpu::new(&slopes, frame);
    let w = &tape.weights;
    let [to_attended, to_inner, to_outer] = &tape.operands;
    let into = Goal::new(&gpu, frame.layout.rows, false);

    let (of_outer, outer_operand) = gpu.norm_back(
        &slopes,
        None,
        &tape.outer,
        &w.at(OUTER_SCALE),
        &into,
        &[OUTER_SCALE, OUTER_SHIFT, OUTER_BIAS],
    );
    let of_inner = gpu.product(&outer_operand, &transposed(to_outer.clone()));
    gpu.gelu_back(&of_inner, &tape.inner, &w.at(INNER_BIAS), &into);
    let of_attended = gpu.product(&of_inner, &transposed(to_inner.clone()));
    let (of_attended, attended_operand) = gpu.norm_back(
        &of_outer,
        Some(&of_attended),
        &tape.attended,
        &w.at(ATTENDED_SCALE),
        &into,
        &[ATTENDED_SCALE, ATTENDED_SHIFT, ATTENDED_BIAS],
    );
    let of_context = gpu.product(&attended_operand, &transposed(to_attended.clone()));

    let attended: Product = (&[ATTENDED], &tape.context, &attended_operand);
    let inner: Product = (&[INNER], &tape.inner_input, &of_inner);
    let outer: Product = (&[OUTER], &tape.activated, &outer_operand);
    let found = [&tape.context, &tape.logs];
    let of_input = match &tape.asked {
        asked @ Asked::All { weights, projected } => {
            let slopes = gpu.like(projected);
            gpu.attend_back(asked, w, &of_context, found, [&slopes; 2]);
            into.biases(&[QUERY_BIAS, KEY_BIAS, VALUE_BIAS], &slopes);
            let projected: Product = (&[QUERY, KEY, VALUE], &tape.input, &slopes);
            into.products(&[projected, attended, inner, outer]);
            let product = gpu.product(&slopes, &transposed(weights.clone()));
            gpu.add(&product, &of_attended, None)
        }
        asked @ Asked::First {
            rows,
            weights,
            queries,
            other_weights,
            others,
        } => {
            let like = |it: &CubeTensor| (it.meta.shape().clone(), it.dtype);
            let [of_queries, of_others] = gpu.together([like(queries), like(others)]);
            let goals = [&of_queries, &of_others];
            gpu.attend_back(asked, w, &of_context, found, goals);
            into.biases(&[QUERY_BIAS], &of_queries);
            into.biases(&[KEY_BIAS, VALUE_BIAS], &of_others);
            let asking: Product = (&[QUERY], rows, &of_queries);
            let asked: Product = (&[KEY, VALUE], &tape.input, &of_others);
            into.products(&[asking, asked, attended, inner, outer]);
            let of_rows = gpu.product(&of_queries, &transposed(weights.clone()));
            let product = gpu.product(&of_others, &transposed(other_weights.clone()));
            gpu.add(&product, &of_attended, Some(&of_rows))
        }
    };
    (of_input, into.summed())
}
