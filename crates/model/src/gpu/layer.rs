//! A layer of the encoder, kernel by kernel.
//!
//! Shapes: `N` tokens of a batch, `R` of them computed (in the last layer the first of each pair,
//! elsewhere all), `D` hidden width, `I` inner width, `H` heads; of a block of the batch, `B` pairs of
//! `T` tokens each. Head rows lie as [`super::layout`] has them.

use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::launch::{Goal, Gpu, Normed, product_into, transposed};
use super::layout::{
    ATTENDED, ATTENDED_BIAS, ATTENDED_SCALE, ATTENDED_SHIFT, INNER, KEY, KEY_BIAS, OUTER,
    OUTER_BIAS, OUTER_SCALE, OUTER_SHIFT, Places, QUERY, QUERY_BIAS, VALUE,
};
use super::{LayerWeights, Work};
use crate::blocks::Block;

/// What the way back through a layer takes. Operands of products are as they were multiplied.
pub(super) struct Tape {
    weights: LayerWeights<CubeBackend>,
    /// `[N, D]`
    input: CubeTensor,
    asked: Asked,
    /// Exponentials of the scores of each block: `[B, H, R, T]`.
    exponentials: Vec<CubeTensor>,
    /// Of the head rows that ask.
    sums: CubeTensor,
    /// `[R, D]`
    context: CubeTensor,
    attended: Normed,
    /// `[R, D]`
    inner_input: CubeTensor,
    /// The product before bias and GELU: `[R, I]`.
    inner: CubeTensor,
    /// After them.
    activated: CubeTensor,
    outer: Normed,
}

/// What attention is asked, and what it was projected with.
#[expect(clippy::large_enum_variant, reason = "one a layer")]
enum Asked {
    /// Queries, keys and values of all tokens: `[3, head rows, D / H]`.
    All {
        /// `[D, 3 D]`
        weights: CubeTensor,
        heads: CubeTensor,
    },
    /// Queries of first tokens alone.
    First {
        /// `[R, D]`
        rows: CubeTensor,
        /// `[D, D]`
        weights: CubeTensor,
        /// `[1, head rows that ask, D / H]`
        queries: CubeTensor,
        /// `[D, 2 D]`
        others: CubeTensor,
        /// Keys and values: `[2, head rows, D / H]`.
        heads: CubeTensor,
    },
}

/// The layer's output, `[R, D]`, and what the way back takes.
pub(super) fn forward(
    hidden: CubeTensor,
    mask: CubeTensor,
    weights: LayerWeights<CubeBackend>,
    work: &Work,
) -> (CubeTensor, Tape) {
    let weights = weights.contiguous();
    let hidden = into_contiguous(hidden);
    let mask = into_contiguous(mask);
    let gpu = Gpu::new(&hidden, work);
    let input = gpu.operand(&hidden);
    let w = &weights;
    let (residual, asked) = if work.is_last {
        let (rows, row_input) = gpu.pick(&hidden);
        let query = gpu.operand(&w.query);
        let queries = gpu.to_heads(
            &gpu.product(&row_input, &query),
            &[&w.query_bias],
            &work.layout.first,
            gpu.query_scale(),
        );
        let others = gpu.side_by_side(&[&w.key, &w.value]);
        let heads = gpu.to_heads(
            &gpu.product(&input, &others),
            &[&w.key_bias, &w.value_bias],
            &work.layout.all,
            1.0,
        );
        let asked = Asked::First {
            rows: row_input,
            weights: query,
            queries,
            others,
            heads,
        };
        (rows, asked)
    } else {
        let all = gpu.side_by_side(&[&w.query, &w.key, &w.value]);
        let heads = gpu.to_heads(
            &gpu.product(&input, &all),
            &[&w.query_bias, &w.key_bias, &w.value_bias],
            &work.layout.all,
            gpu.query_scale(),
        );
        let asked = Asked::All {
            weights: all,
            heads,
        };
        (hidden, asked)
    };
    let asking = gpu.asking();
    let sums = gpu.empty([asking.total], DType::F32);
    let of_heads = gpu.empty([asking.total, gpu.depth()], work.operand);
    let mut exponentials = Vec::new();
    let mut begin = 0;
    for (number, block) in work.layout.blocks.iter().enumerate() {
        let [query, key, value] = asked.of_block(&gpu, number, *block);
        let scores = gpu.empty(gpu.score_shape(*block), work.operand);
        product_into(query, transposed(key), scores.clone());
        gpu.exponentials(&scores, &mask, &sums, number, begin);
        let output = gpu.block_of(&of_heads, 0, asking, number, gpu.asking_block(*block));
        product_into(scores.clone(), value, output);
        exponentials.push(scores);
        begin += block.rows();
    }
    let context = gpu.context(&of_heads, &sums);
    let attended = gpu.product(&context, &gpu.operand(&w.attended));
    let (residual, inner_input, attended) = gpu.add_and_norm(
        &attended,
        &residual,
        [&w.attended_bias, &w.attended_scale, &w.attended_shift],
        gpu.rounds(),
    );
    let inner = gpu.product(&inner_input, &gpu.operand(&w.inner));
    let activated = gpu.gelu(&inner, &w.inner_bias);
    let outer = gpu.product(&activated, &gpu.operand(&w.outer));
    let (output, _, outer) = gpu.add_and_norm(
        &outer,
        &residual,
        [&w.outer_bias, &w.outer_scale, &w.outer_shift],
        false,
    );
    let tape = Tape {
        weights,
        input,
        asked,
        exponentials,
        sums,
        context,
        attended,
        inner_input,
        inner,
        activated,
        outer,
    };
    (output, tape)
}

/// The slopes at the layer's input, `[N, D]`, and those at its parameters.
pub(super) fn back(slopes: CubeTensor, tape: Tape, work: &Work) -> (CubeTensor, CubeTensor) {
    let slopes = into_contiguous(slopes);
    let gpu = Gpu::new(&slopes, work);
    let w = &tape.weights;
    let into = Goal::new(&gpu);

    let (of_outer, outer_operand) = gpu.norm_back(
        &slopes,
        None,
        &tape.outer,
        &w.outer_scale,
        &into,
        [OUTER_SCALE, OUTER_SHIFT, OUTER_BIAS],
    );
    let of_inner = gpu.product(&outer_operand, &transposed(gpu.operand(&w.outer)));
    into.product(OUTER, &tape.activated, &outer_operand);
    gpu.gelu_back(&of_inner, &tape.inner, &w.inner_bias, &into);
    let of_attended = gpu.product(&of_inner, &transposed(gpu.operand(&w.inner)));
    into.product(INNER, &tape.inner_input, &of_inner);
    let (of_attended, attended_operand) = gpu.norm_back(
        &of_outer,
        Some(&of_attended),
        &tape.attended,
        &w.attended_scale,
        &into,
        [ATTENDED_SCALE, ATTENDED_SHIFT, ATTENDED_BIAS],
    );
    let of_context = gpu.product(&attended_operand, &transposed(gpu.operand(&w.attended)));
    into.product(ATTENDED, &tape.context, &attended_operand);

    let asking = gpu.asking();
    let all = &work.layout.all;
    let (of_heads, means) = gpu.context_back(&of_context, &tape.context, &tape.sums);
    let parts = if work.is_last { 2 } else { 3 };
    let of_asked = gpu.empty([parts, all.total, gpu.depth()], work.operand);
    let of_queries = if work.is_last {
        gpu.empty([1, asking.total, gpu.depth()], work.operand)
    } else {
        of_asked.clone()
    };
    let blocks = work.layout.blocks.iter().enumerate();
    for ((number, block), exponentials) in blocks.zip(tape.exponentials) {
        let [query, key, value] = tape.asked.of_block(&gpu, number, *block);
        let its_slopes = gpu.block_of(&of_heads, 0, asking, number, gpu.asking_block(*block));
        let of_scores = gpu.empty(gpu.score_shape(*block), work.operand);
        product_into(its_slopes.clone(), transposed(value), of_scores.clone());
        gpu.exponentials_back(&of_scores, &exponentials, &means, number);
        let part = |part| gpu.block_of(&of_asked, part, all, number, *block);
        product_into(transposed(exponentials), its_slopes, part(parts - 1));
        product_into(transposed(of_scores.clone()), query, part(parts - 2));
        let of_query = gpu.block_of(&of_queries, 0, asking, number, gpu.asking_block(*block));
        product_into(of_scores, key, of_query);
    }
    let of_input = match &tape.asked {
        Asked::All { weights, .. } => {
            let slopes = gpu.out_of_heads(&of_asked, all, gpu.query_scale(), &into, QUERY_BIAS);
            into.products(&[QUERY, KEY, VALUE], &tape.input, &slopes);
            let product = gpu.product(&slopes, &transposed(weights.clone()));
            gpu.add(&product, &of_attended, None)
        }
        Asked::First {
            rows,
            weights,
            others,
            ..
        } => {
            let slopes =
                gpu.out_of_heads(&of_queries, asking, gpu.query_scale(), &into, QUERY_BIAS);
            into.product(QUERY, rows, &slopes);
            let of_rows = gpu.product(&slopes, &transposed(weights.clone()));
            let slopes = gpu.out_of_heads(&of_asked, all, 1.0, &into, KEY_BIAS);
            into.products(&[KEY, VALUE], &tape.input, &slopes);
            let product = gpu.product(&slopes, &transposed(others.clone()));
            gpu.add(&product, &of_attended, Some(&of_rows))
        }
    };
    (of_input, into.summed())
}

impl Work {
    /// `[N, D]`
    pub(super) fn input(&self) -> [usize; 2] {
        [self.layout.all.rows, self.slopes.width]
    }

    /// `[R, D]`
    pub(super) fn output(&self) -> [usize; 2] {
        [self.asking().rows, self.slopes.width]
    }

    pub(super) fn asking(&self) -> &Places {
        if self.is_last {
            &self.layout.first
        } else {
            &self.layout.all
        }
    }
}

impl Asked {
    /// Queries, `[B, H, R, D / H]`, keys and values, `[B, H, T, D / H]`.
    fn of_block(&self, gpu: &Gpu, number: usize, block: Block) -> [CubeTensor; 3] {
        let all = &gpu.work.layout.all;
        match self {
            Self::All { heads, .. } => {
                [0, 1, 2].map(|part| gpu.block_of(heads, part, all, number, block))
            }
            Self::First { queries, heads, .. } => {
                let asking = gpu.asking_block(block);
                let first = &gpu.work.layout.first;
                [
                    gpu.block_of(queries, 0, first, number, asking),
                    gpu.block_of(heads, 0, all, number, block),
                    gpu.block_of(heads, 1, all, number, block),
                ]
            }
        }
    }
}
