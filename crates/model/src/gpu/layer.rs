//! A layer of the encoder, kernel by kernel.
//!
//! Shapes: `N` tokens of a batch, `R` of them computed (in the last layer the first of each pair,
//! elsewhere all), `D` hidden width, `I` inner width, `H` heads; of a block of the batch, `B` pairs of
//! `T` tokens each. Head rows lie as [`super::layout`] has them.

use std::ops::Range;

use burn::cubecl::calculate_cube_count_elemwise;
use burn::cubecl::client::Client;
use burn::cubecl::ir::{ElemType, FloatKind};
use burn::cubecl::prelude::{BufferArg, CubeCount, CubeDim};
use burn::cubecl::server::Overlap;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeDevice};

use super::layout::{
    ATTENDED, ATTENDED_BIAS, ATTENDED_SCALE, ATTENDED_SHIFT, INNER, INNER_BIAS, KEY, KEY_BIAS,
    OUTER, OUTER_BIAS, OUTER_SCALE, OUTER_SHIFT, Places, QUERY, QUERY_BIAS, Slopes, VALUE,
    VALUE_BIAS,
};
use super::{LayerWeights, Step, Work, kernels};
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

/// What the way back through a layer norm takes.
struct Normed {
    /// Before scale and shift: `[R, D]`.
    rows: CubeTensor,
    /// One over each row's standard deviation: `[R]`.
    inverses: CubeTensor,
}

/// The layer's output, `[R, D]`, and what the way back takes.
pub(super) fn forward(
    hidden: CubeTensor,
    mask: CubeTensor,
    weights: LayerWeights<CubeBackend>,
    work: &Work,
) -> (CubeTensor, Tape) {
    let weights = contiguous(weights);
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
    let of_heads = gpu.empty([asking.total, gpu.depth()], gpu.operand);
    let mut exponentials = Vec::new();
    let mut begin = 0;
    for (number, block) in work.layout.blocks.iter().enumerate() {
        let [query, key, value] = asked.of_block(&gpu, number, *block);
        let scores = gpu.empty(gpu.score_shape(*block), gpu.operand);
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
    let of_asked = gpu.empty([parts, all.total, gpu.depth()], gpu.operand);
    let of_queries = if work.is_last {
        gpu.empty([1, asking.total, gpu.depth()], gpu.operand)
    } else {
        of_asked.clone()
    };
    let blocks = work.layout.blocks.iter().enumerate();
    for ((number, block), exponentials) in blocks.zip(tape.exponentials) {
        let [query, key, value] = tape.asked.of_block(&gpu, number, *block);
        let its_slopes = gpu.block_of(&of_heads, 0, asking, number, gpu.asking_block(*block));
        let of_scores = gpu.empty(gpu.score_shape(*block), gpu.operand);
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

/// Zeros of the shapes that [`back`] gives.
pub(super) fn nothing(like: &CubeTensor, work: &Work) -> (CubeTensor, CubeTensor) {
    let gpu = Gpu::new(like, work);
    let length = work.slopes.length();
    (gpu.zeros(work.input()), gpu.zeros([length]))
}

/// A layer's parameters after a step, side by side in memory: so they are one input of the next one.
pub(super) fn moved(
    weights: LayerWeights<CubeBackend>,
    direction: CubeTensor,
    step: Step,
) -> LayerWeights<CubeBackend> {
    let parameters = in_order(contiguous(weights));
    let direction = into_contiguous(direction);
    let (client, length) = (direction.client.clone(), step.slopes.length());
    let output = CubeTensor::new_contiguous(
        client.clone(),
        direction.device.clone(),
        [length].into(),
        client.empty(length * size_of::<f32>()),
        DType::F32,
    );
    let ranges = step.slopes.ranges();
    let put = |input: &CubeTensor, Range { start, end }: Range<usize>| {
        let vector = vector_of(end - start, start);
        let units = (end - start) / vector;
        let dim = CubeDim::new(&client, units);
        kernels::moved::launch(
            &client,
            calculate_cube_count_elemwise(&client, units, dim),
            dim,
            vector,
            read(input),
            read(&direction),
            read(&output),
            units,
            start / vector,
            step.slopes.vectors() / vector,
            step.kept,
            step.share,
        );
    };
    if let Some(all) = side_by_side(&parameters, step.slopes) {
        put(&all, 0..length);
    } else {
        for (parameter, range) in parameters.iter().zip(ranges.clone()) {
            put(parameter, range);
        }
    }
    let of = |which: usize| {
        let shape = parameters[which].meta.shape().clone();
        view(&output, ranges[which].start, shape)
    };
    LayerWeights {
        query: of(QUERY),
        query_bias: of(QUERY_BIAS),
        key: of(KEY),
        key_bias: of(KEY_BIAS),
        value: of(VALUE),
        value_bias: of(VALUE_BIAS),
        attended: of(ATTENDED),
        attended_bias: of(ATTENDED_BIAS),
        attended_scale: of(ATTENDED_SCALE),
        attended_shift: of(ATTENDED_SHIFT),
        inner: of(INNER),
        inner_bias: of(INNER_BIAS),
        outer: of(OUTER),
        outer_bias: of(OUTER_BIAS),
        outer_scale: of(OUTER_SCALE),
        outer_shift: of(OUTER_SHIFT),
    }
}

/// As [`super::layout::Slopes`] has them.
fn in_order(weights: LayerWeights<CubeBackend>) -> [CubeTensor; 16] {
    [
        weights.query,
        weights.key,
        weights.value,
        weights.attended,
        weights.inner,
        weights.outer,
        weights.outer_scale,
        weights.outer_shift,
        weights.outer_bias,
        weights.inner_bias,
        weights.attended_scale,
        weights.attended_shift,
        weights.attended_bias,
        weights.query_bias,
        weights.key_bias,
        weights.value_bias,
    ]
}

/// All of them as one vector, where they lie like that, as a step before this one left them.
fn side_by_side(parameters: &[CubeTensor], slopes: Slopes) -> Option<CubeTensor> {
    let first = parameters.first()?;
    let mut handle = first.handle.clone();
    (handle.offset_start, handle.offset_end) = (None, None);
    let length = slopes.length();
    let size = size_of::<f32>() as u64;
    let lies_in = |(parameter, range): (&CubeTensor, Range<usize>)| {
        let begin = parameter.handle.offset_start.unwrap_or(0);
        begin == range.start as u64 * size && handle.overlap(&parameter.handle) != Overlap::Disjoint
    };
    let all_lie = parameters.iter().zip(slopes.ranges()).all(lies_in);
    (all_lie && handle.size() == length as u64 * size).then(|| {
        CubeTensor::new_contiguous(
            first.client.clone(),
            first.device.clone(),
            [length].into(),
            handle.clone(),
            DType::F32,
        )
    })
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

    fn asking(&self) -> &Places {
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

/// Where the slopes at parameters go.
struct Goal<'a> {
    gpu: &'a Gpu<'a>,
    /// As [`super::layout::Slopes`] has them.
    slopes: CubeTensor,
    /// Of those that are vectors, the sums of each chunk of rows.
    sums: CubeTensor,
    chunks: usize,
}

/// Chunks of rows are at least as long, and at most so many.
const CHUNK: usize = 8;
const CHUNKS: usize = 512;

impl<'a> Goal<'a> {
    fn new(gpu: &'a Gpu<'a>) -> Self {
        let slopes = gpu.work.slopes;
        let rows = gpu.work.layout.all.rows;
        let chunks = rows.div_ceil(rows.div_ceil(CHUNKS).max(CHUNK)).max(1);
        let sums = [chunks, slopes.length() - slopes.vectors()];
        // What lies between parameters is summed with them.
        let (slopes, sums) = if slopes.has_gaps() {
            (gpu.zeros([slopes.length()]), gpu.zeros(sums))
        } else {
            let slopes = gpu.empty([slopes.length()], DType::F32);
            (slopes, gpu.empty(sums, DType::F32))
        };
        Self {
            gpu,
            slopes,
            sums,
            chunks,
        }
    }

    /// The slopes at a matrix: the product of what it was multiplied with, `[R, D]` transposed, and of
    /// the slopes at what came out, `[R, I]`.
    fn product(&self, which: usize, input: &CubeTensor, slopes: &CubeTensor) {
        let range = self.gpu.work.slopes.ranges()[which].clone();
        let shape = [width(input), width(slopes)];
        let output = view(&self.slopes, range.start, shape.into());
        product_into(transposed(input.clone()), slopes.clone(), output);
    }

    /// The same at several, whose slopes lie side by side.
    fn products(&self, which: &[usize], input: &CubeTensor, slopes: &CubeTensor) {
        let gpu = self.gpu;
        let shape = [width(input), width(slopes)];
        let output = gpu.empty(shape, DType::F32);
        product_into(transposed(input.clone()), slopes.clone(), output.clone());
        let ranges = gpu.work.slopes.ranges();
        let begin = |number: usize| which.get(number).map_or(0, |which| ranges[*which].start);
        let units = shape[0] * shape[1] / gpu.vector;
        let (count, dim) = gpu.elementwise(units);
        kernels::apart::launch(
            &gpu.client,
            count,
            dim,
            gpu.vector,
            read(&output),
            read(&self.slopes),
            units,
            which.len(),
            shape[1] / which.len() / gpu.vector,
            begin(0) / gpu.vector,
            begin(1) / gpu.vector,
            begin(2) / gpu.vector,
        );
    }

    /// Rows of which each chunk has its part.
    fn chunk(&self, rows: usize) -> usize {
        rows.div_ceil(self.chunks)
    }

    /// Where, among the sums of a chunk, those of a parameter are, in vectors.
    fn place(&self, which: usize) -> usize {
        let slopes = self.gpu.work.slopes;
        (slopes.ranges()[which].start - slopes.vectors()) / self.gpu.vector
    }

    fn sums_width(&self) -> usize {
        width(&self.sums) / self.gpu.vector
    }

    /// All of them, in their places.
    fn summed(self) -> CubeTensor {
        let gpu = self.gpu;
        let width = width(&self.sums);
        kernels::over_chunks::launch(
            &gpu.client,
            CubeCount::new_1d(count(width.div_ceil(LANES))),
            CubeDim::new_2d(count(LANES), count(SIDE)),
            read(&self.sums),
            read(&self.slopes),
            self.chunks,
            width,
            gpu.work.slopes.vectors(),
            LANES,
            SIDE,
        );
        self.slopes
    }
}

/// Lanes that share a row, and rows side by side.
const LANES: usize = 32;
const SIDE: usize = 8;

/// Cubes in a row, at most.
const IN_A_ROW: usize = 1 << 15;

/// Where kernels are started, and what for.
struct Gpu<'a> {
    client: Client,
    device: CubeDevice,
    work: &'a Work,
    operand: DType,
    /// Numbers that are read at once.
    vector: usize,
}

impl<'a> Gpu<'a> {
    fn new(like: &CubeTensor, work: &'a Work) -> Self {
        let depth = work.slopes.width / work.layout.heads;
        let fits = |vector: &usize| {
            depth.is_multiple_of(*vector) && work.slopes.inner.is_multiple_of(*vector)
        };
        Self {
            client: like.client.clone(),
            device: like.device.clone(),
            work,
            operand: work.operand,
            vector: [4, 2].into_iter().find(fits).unwrap_or(1),
        }
    }

    fn asking(&self) -> &Places {
        self.work.asking()
    }

    /// The block as those lie in it that ask.
    fn asking_block(&self, block: Block) -> Block {
        let tokens = if self.work.is_last { 1 } else { block.tokens };
        Block { tokens, ..block }
    }

    /// `[B, H, R, T]`
    fn score_shape(&self, block: Block) -> [usize; 4] {
        let rows = self.asking_block(block).tokens;
        [block.pairs, self.work.layout.heads, rows, block.tokens]
    }

    /// Of a head.
    fn depth(&self) -> usize {
        self.work.slopes.width / self.work.layout.heads
    }

    /// What queries are scaled by.
    fn query_scale(&self) -> f32 {
        1.0 / (self.depth() as f32).sqrt()
    }

    /// Whether operands are rounded.
    fn rounds(&self) -> bool {
        self.operand != DType::F32
    }

    fn element(&self) -> ElemType {
        ElemType::Float(match self.operand {
            DType::BF16 => FloatKind::BF16,
            DType::F16 => FloatKind::F16,
            _ => FloatKind::F32,
        })
    }

    fn empty(&self, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
        let shape = shape.into();
        let handle = self.client.empty(shape.num_elements() * dtype.size());
        CubeTensor::new_contiguous(
            self.client.clone(),
            self.device.clone(),
            shape,
            handle,
            dtype,
        )
    }

    fn zeros(&self, shape: impl Into<Shape>) -> CubeTensor {
        burn_cubecl::ops::numeric::zeros(self.device.clone(), shape.into(), DType::F32)
    }

    /// In the place of what is not written.
    fn none(&self) -> CubeTensor {
        self.empty([4], DType::F32)
    }

    /// Head rows of a block: `[B, H, T, D / H]`.
    fn block_of(
        &self,
        heads: &CubeTensor,
        part: usize,
        places: &Places,
        number: usize,
        block: Block,
    ) -> CubeTensor {
        let depth = self.depth();
        let begin = (part * places.total + places.begins[number]) * depth;
        let shape = [block.pairs, self.work.layout.heads, block.tokens, depth];
        view(heads, begin, shape.into())
    }

    fn product(&self, left: &CubeTensor, right: &CubeTensor) -> CubeTensor {
        let output = self.empty([rows(left), width(right)], self.operand);
        product_into(left.clone(), right.clone(), output.clone());
        output
    }

    /// A matrix as products take it.
    fn operand(&self, matrix: &CubeTensor) -> CubeTensor {
        if self.rounds() {
            self.side_by_side(&[matrix])
        } else {
            matrix.clone()
        }
    }

    /// Up to three matrices, as products take them.
    fn side_by_side(&self, matrices: &[&CubeTensor]) -> CubeTensor {
        let of = |number: usize| read(matrices[number.min(matrices.len() - 1)]);
        let (rows, width) = (rows(matrices[0]), width(matrices[0]));
        let output = self.empty([rows, matrices.len() * width], self.operand);
        let units = rows * matrices.len() * width / self.vector;
        let (count, dim) = self.elementwise(units);
        kernels::side_by_side::launch(
            &self.client,
            count,
            dim,
            self.vector,
            of(0),
            of(1),
            of(2),
            read(&output),
            units,
            matrices.len(),
            width / self.vector,
            self.element(),
        );
        output
    }

    /// The first row of each pair, as it is and as an operand.
    fn pick(&self, hidden: &CubeTensor) -> (CubeTensor, CubeTensor) {
        let shape = self.work.output();
        let rows = self.empty(shape, DType::F32);
        let operands = if self.rounds() {
            self.empty(shape, self.operand)
        } else {
            self.none()
        };
        let units = shape[0] * shape[1] / self.vector;
        let (count, dim) = self.elementwise(units);
        kernels::pick::launch(
            &self.client,
            count,
            dim,
            self.vector,
            read(hidden),
            read(&self.work.layout.first.on_device(hidden)),
            read(&rows),
            read(&operands),
            units,
            shape[1] / self.vector,
            self.rounds(),
            self.element(),
        );
        let operands = if self.rounds() {
            operands
        } else {
            rows.clone()
        };
        (rows, operands)
    }

    /// Projections, `[R, parts * D]`, in head rows, with their biases: `[parts, head rows, D / H]`.
    fn to_heads(
        &self,
        projected: &CubeTensor,
        biases: &[&CubeTensor],
        places: &Places,
        scale: f32,
    ) -> CubeTensor {
        let output = self.empty([biases.len(), places.total, self.depth()], self.operand);
        let units = rows(projected) * width(projected) / self.vector;
        let bias = |number: usize| read(biases[number.min(biases.len() - 1)]);
        let (count, dim) = self.elementwise(units);
        kernels::to_heads::launch(
            &self.client,
            count,
            dim,
            self.vector,
            read(projected),
            bias(0),
            bias(1),
            bias(2),
            read(&places.on_device(projected)),
            read(&output),
            units,
            biases.len(),
            self.work.slopes.width / self.vector,
            self.depth() / self.vector,
            places.total,
            scale,
            self.element(),
        );
        output
    }

    /// The way back through [`Gpu::to_heads`]; the biases are that one and those behind it.
    fn out_of_heads(
        &self,
        slopes: &CubeTensor,
        places: &Places,
        scale: f32,
        into: &Goal,
        first_bias: usize,
    ) -> CubeTensor {
        let parts = slopes.meta.shape()[0];
        let width = parts * self.work.slopes.width;
        let output = self.empty([places.rows, width], self.operand);
        kernels::out_of_heads::launch(
            &self.client,
            self.by_columns(width, into),
            CubeDim::new_1d(count(COLUMNS)),
            self.vector,
            read(slopes),
            read(&places.on_device(slopes)),
            read(&output),
            read(&into.sums),
            places.rows,
            into.chunk(places.rows),
            parts,
            self.work.slopes.width / self.vector,
            self.depth() / self.vector,
            places.total,
            scale,
            into.sums_width(),
            into.place(first_bias),
            into.place(KEY_BIAS) - into.place(QUERY_BIAS),
            self.element(),
        );
        output
    }

    /// Of a block's scores, in their place.
    fn exponentials(
        &self,
        scores: &CubeTensor,
        mask: &CubeTensor,
        sums: &CubeTensor,
        number: usize,
        mask_begin: usize,
    ) {
        let [_, heads, asking, tokens] = self.score_shape(self.work.layout.blocks[number]);
        let rows = scores.meta.num_elements() / tokens;
        let vector = vector_of(tokens, mask_begin);
        kernels::exponentials::launch(
            &self.client,
            cubes(rows.div_ceil(SIDE)),
            CubeDim::new_2d(count(LANES), count(SIDE)),
            vector,
            read(scores),
            read(mask),
            read(sums),
            rows,
            tokens / vector,
            heads * asking,
            mask_begin / vector,
            self.asking().begins[number],
            LANES,
            SIDE,
            self.element(),
        );
    }

    /// The slopes at a block's scores, in the place of those at their exponentials.
    fn exponentials_back(
        &self,
        slopes: &CubeTensor,
        exponentials: &CubeTensor,
        means: &CubeTensor,
        number: usize,
    ) {
        let tokens = self.work.layout.blocks[number].tokens;
        let vector = vector_of(tokens, 0);
        let units = slopes.meta.num_elements() / vector;
        let (count, dim) = self.elementwise(units);
        kernels::exponentials_back::launch(
            &self.client,
            count,
            dim,
            vector,
            read(slopes),
            read(exponentials),
            read(means),
            units,
            tokens / vector,
            self.asking().begins[number],
            self.element(),
        );
    }

    /// What heads found, side by side: `[R, D]`.
    fn context(&self, of_heads: &CubeTensor, sums: &CubeTensor) -> CubeTensor {
        let shape = self.work.output();
        let output = self.empty(shape, self.operand);
        let units = shape[0] * shape[1] / self.vector;
        let (count, dim) = self.elementwise(units);
        kernels::context::launch(
            &self.client,
            count,
            dim,
            self.vector,
            read(of_heads),
            read(sums),
            read(&self.asking().on_device(of_heads)),
            read(&output),
            units,
            shape[1] / self.vector,
            self.depth() / self.vector,
            self.element(),
        );
        output
    }

    /// The way back: slopes in head rows, `[head rows, D / H]`, and the mean of each.
    fn context_back(
        &self,
        slopes: &CubeTensor,
        context: &CubeTensor,
        sums: &CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let asking = self.asking();
        let output = self.empty([asking.total, self.depth()], self.operand);
        let means = self.empty([asking.total], DType::F32);
        let units = asking.rows * self.work.layout.heads;
        let (count, dim) = self.elementwise(units);
        kernels::context_back::launch(
            &self.client,
            count,
            dim,
            self.vector,
            read(slopes),
            read(context),
            read(sums),
            read(&asking.on_device(slopes)),
            read(&output),
            read(&means),
            units,
            self.work.layout.heads,
            self.depth() / self.vector,
            self.element(),
        );
        (output, means)
    }

    /// The sum, normalised, as it is and as an operand, and what the way back takes.
    fn add_and_norm(
        &self,
        product: &CubeTensor,
        residual: &CubeTensor,
        [bias, scale, shift]: [&CubeTensor; 3],
        rounds: bool,
    ) -> (CubeTensor, CubeTensor, Normed) {
        let shape = self.work.output();
        let output = self.empty(shape, DType::F32);
        let operand = if rounds {
            self.empty(shape, self.operand)
        } else {
            self.none()
        };
        let normed = Normed {
            rows: self.empty(shape, DType::F32),
            inverses: self.empty([shape[0]], DType::F32),
        };
        kernels::add_and_norm::launch(
            &self.client,
            cubes(shape[0].div_ceil(SIDE)),
            CubeDim::new_2d(count(LANES), count(SIDE)),
            self.vector,
            read(product),
            read(bias),
            read(residual),
            read(scale),
            read(shift),
            read(&output),
            read(&operand),
            read(&normed.rows),
            read(&normed.inverses),
            shape[0],
            shape[1] / self.vector,
            shape[1] as f32,
            self.work.epsilon,
            LANES,
            SIDE,
            rounds,
            self.element(),
        );
        let operand = if rounds { operand } else { output.clone() };
        (output, operand, normed)
    }

    /// The slopes at what was normalised, as they are and as operands, from those at what came of it,
    /// which are the sum of two where there are two.
    fn norm_back(
        &self,
        slopes: &CubeTensor,
        product: Option<&CubeTensor>,
        normed: &Normed,
        scale: &CubeTensor,
        into: &Goal,
        [of_scale, of_shift, of_bias]: [usize; 3],
    ) -> (CubeTensor, CubeTensor) {
        let shape = self.work.output();
        let output = self.empty(shape, DType::F32);
        let operand = if self.rounds() {
            self.empty(shape, self.operand)
        } else {
            self.none()
        };
        kernels::norm_back::launch(
            &self.client,
            CubeCount::new_1d(count(into.chunks)),
            CubeDim::new_1d(count(COLUMNS)),
            self.vector,
            read(slopes),
            read(product.unwrap_or(slopes)),
            read(&normed.rows),
            read(&normed.inverses),
            read(scale),
            read(&output),
            read(&operand),
            read(&into.sums),
            shape[0],
            into.chunk(shape[0]),
            shape[1] as f32,
            into.sums_width(),
            into.place(of_scale),
            into.place(of_shift),
            into.place(of_bias),
            shape[1] / self.vector,
            COLUMNS,
            product.is_some(),
            self.rounds(),
            self.element(),
        );
        let operand = if self.rounds() {
            operand
        } else {
            output.clone()
        };
        (output, operand)
    }

    fn gelu(&self, product: &CubeTensor, bias: &CubeTensor) -> CubeTensor {
        let output = self.empty([rows(product), width(product)], self.operand);
        let units = rows(product) * width(product) / self.vector;
        let (count, dim) = self.elementwise(units);
        kernels::gelu::launch(
            &self.client,
            count,
            dim,
            self.vector,
            read(product),
            read(bias),
            read(&output),
            units,
            width(product) / self.vector,
            self.element(),
        );
        output
    }

    /// In the place of the slopes.
    fn gelu_back(&self, slopes: &CubeTensor, product: &CubeTensor, bias: &CubeTensor, into: &Goal) {
        let rows = rows(product);
        kernels::gelu_back::launch(
            &self.client,
            self.by_columns(width(product), into),
            CubeDim::new_1d(count(COLUMNS)),
            self.vector,
            read(slopes),
            read(product),
            read(bias),
            read(&into.sums),
            rows,
            into.chunk(rows),
            width(product) / self.vector,
            into.sums_width(),
            into.place(INNER_BIAS),
            self.element(),
        );
    }

    /// What comes to all rows, `[N, D]`, and what to the first of each pair, `[R, D]`, in the last layer;
    /// elsewhere the sum of two.
    fn add(
        &self,
        product: &CubeTensor,
        residual: &CubeTensor,
        to_first: Option<&CubeTensor>,
    ) -> CubeTensor {
        let shape = self.work.input();
        let output = self.empty(shape, DType::F32);
        let units = shape[0] * shape[1] / self.vector;
        let (count, dim) = self.elementwise(units);
        kernels::add::launch(
            &self.client,
            count,
            dim,
            self.vector,
            read(product),
            read(residual),
            read(to_first.unwrap_or(product)),
            read(&self.work.layout.all.on_device(product)),
            read(&output),
            units,
            shape[1] / self.vector,
            to_first.is_some(),
            self.element(),
        );
        output
    }

    fn elementwise(&self, units: usize) -> (CubeCount, CubeDim) {
        let dim = CubeDim::new(&self.client, units);
        (calculate_cube_count_elemwise(&self.client, units, dim), dim)
    }

    /// A unit a column, in vectors, and chunk of rows.
    fn by_columns(&self, width: usize, into: &Goal) -> CubeCount {
        let columns = (width / self.vector).div_ceil(COLUMNS);
        CubeCount::new_2d(count(columns), count(into.chunks))
    }
}

/// Columns that one cube goes down.
const COLUMNS: usize = 64;

/// At least so many cubes, wherever there may be only so many in a row.
fn cubes(number: usize) -> CubeCount {
    let rows = number.div_ceil(IN_A_ROW);
    CubeCount::new_2d(count(number.div_ceil(rows.max(1))), count(rows))
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Numbers that are read at once of rows of so many, from there on.
fn vector_of(tokens: usize, begin: usize) -> usize {
    let fits = |vector: &usize| tokens.is_multiple_of(*vector) && begin.is_multiple_of(*vector);
    [4, 2].into_iter().find(fits).unwrap_or(1)
}

/// As a kernel takes it, to read or to write.
fn read(tensor: &CubeTensor) -> BufferArg {
    tensor.clone().into_buffer_arg()
}

fn rows(matrix: &CubeTensor) -> usize {
    matrix.meta.shape()[0]
}

fn width(matrix: &CubeTensor) -> usize {
    matrix.meta.shape()[1]
}

/// What begins there in a tensor's memory.
fn view(of: &CubeTensor, begin: usize, shape: Shape) -> CubeTensor {
    let size = of.dtype.size();
    let end = begin + shape.num_elements();
    let behind = of.meta.num_elements() - end;
    let handle = of.handle.clone();
    let handle = handle.offset_start((begin * size) as u64);
    let handle = handle.offset_end((behind * size) as u64);
    CubeTensor::new_contiguous(
        of.client.clone(),
        of.device.clone(),
        shape,
        handle,
        of.dtype,
    )
}

/// Rows and columns change places, and nothing in memory.
fn transposed(mut matrix: CubeTensor) -> CubeTensor {
    let last = matrix.meta.num_dims() - 1;
    matrix.meta.swap(last - 1, last);
    matrix
}

fn product_into(left: CubeTensor, right: CubeTensor, output: CubeTensor) {
    let dtype = output.dtype;
    let made = matmul(left, right, Some(output), MatmulStrategy::default(), dtype);
    // As Burn's own products do, whose panics are what a run hears of a device that fails.
    made.unwrap_or_else(|error| panic!("a product of matrices: {error}"));
}

fn contiguous(weights: LayerWeights<CubeBackend>) -> LayerWeights<CubeBackend> {
    LayerWeights {
        query: into_contiguous(weights.query),
        query_bias: into_contiguous(weights.query_bias),
        key: into_contiguous(weights.key),
        key_bias: into_contiguous(weights.key_bias),
        value: into_contiguous(weights.value),
        value_bias: into_contiguous(weights.value_bias),
        attended: into_contiguous(weights.attended),
        attended_bias: into_contiguous(weights.attended_bias),
        attended_scale: into_contiguous(weights.attended_scale),
        attended_shift: into_contiguous(weights.attended_shift),
        inner: into_contiguous(weights.inner),
        inner_bias: into_contiguous(weights.inner_bias),
        outer: into_contiguous(weights.outer),
        outer_bias: into_contiguous(weights.outer_bias),
        outer_scale: into_contiguous(weights.outer_scale),
        outer_shift: into_contiguous(weights.outer_shift),
    }
}
