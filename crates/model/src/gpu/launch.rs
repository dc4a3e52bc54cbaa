//! Kernels of a layer, started: each with its shapes, and memory for what comes of it.
//!
//! Shapes are those of [`super::layer`].

use burn::cubecl::calculate_cube_count_elemwise;
use burn::cubecl::client::Client;
use burn::cubecl::ir::{ElemType, FloatKind};
use burn::cubecl::prelude::{BufferArg, CubeCount, CubeDim};
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeDevice;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;

use super::layout::{INNER_BIAS, KEY_BIAS, Places, QUERY_BIAS};
use super::{Work, kernels};
use crate::blocks::Block;

/// Where the slopes at parameters go.
pub(super) struct Goal<'a> {
    gpu: &'a Gpu<'a>,
    /// As [`super::layout::Slopes`] has them.
    slopes: CubeTensor,
    /// Of those that are vectors, the sums of each chunk of rows, chunk by chunk.
    sums: CubeTensor,
    chunks: usize,
}

/// Chunks of rows are at least as long, and at most so many.
const CHUNK: usize = 8;
const CHUNKS: usize = 512;

impl<'a> Goal<'a> {
    pub(super) fn new(gpu: &'a Gpu<'a>) -> Self {
        let slopes = gpu.work.slopes;
        let rows = gpu.work.layout.all.rows;
        let chunks = rows.div_ceil(rows.div_ceil(CHUNKS).max(CHUNK)).max(1);
        let sums = chunks * (slopes.length() - slopes.vectors());
        // What lies between parameters is summed with them.
        let (slopes, sums) = if slopes.has_gaps() {
            (gpu.zeros(slopes.length()), gpu.zeros(sums))
        } else {
            let slopes = gpu.empty([slopes.length()], DType::F32);
            (slopes, gpu.empty([sums], DType::F32))
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
    pub(super) fn product(&self, which: usize, input: &CubeTensor, slopes: &CubeTensor) {
        let range = self.gpu.work.slopes.ranges()[which].clone();
        let shape = [width(input), width(slopes)];
        let output = view(&self.slopes, range.start, shape.into());
        product_into(transposed(input.clone()), slopes.clone(), output);
    }

    /// The same at several, whose slopes lie side by side.
    pub(super) fn products(&self, which: &[usize], input: &CubeTensor, slopes: &CubeTensor) {
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
        let slopes = self.gpu.work.slopes;
        (slopes.length() - slopes.vectors()) / self.gpu.vector
    }

    /// All of them, in their places.
    pub(super) fn summed(self) -> CubeTensor {
        let gpu = self.gpu;
        let width = self.sums_width() * gpu.vector;
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

/// What the way back through a layer norm takes.
pub(super) struct Normed {
    /// Before scale and shift: `[R, D]`.
    rows: CubeTensor,
    /// One over each row's standard deviation: `[R]`.
    inverses: CubeTensor,
}

/// Lanes that share a row, at most or always, and rows side by side then.
const LANES: usize = 32;
const SIDE: usize = UNITS / LANES;

/// Units of a cube.
const UNITS: usize = 256;

/// Cubes in a row, at most.
const IN_A_ROW: usize = 1 << 15;

/// Where kernels are started, and what for.
pub(super) struct Gpu<'a> {
    client: Client,
    device: CubeDevice,
    pub(super) work: &'a Work,
    operand: DType,
    /// Numbers that are read at once.
    vector: usize,
}

impl<'a> Gpu<'a> {
    pub(super) fn new(like: &CubeTensor, work: &'a Work) -> Self {
        let depth = work.slopes.width / work.layout.heads;
        Self {
            client: like.client.clone(),
            device: like.device.clone(),
            work,
            operand: work.operand,
            vector: vector_of(depth, work.slopes.inner),
        }
    }

    pub(super) fn asking(&self) -> &Places {
        self.work.asking()
    }

    /// The block as those lie in it that ask.
    pub(super) fn asking_block(&self, block: Block) -> Block {
        let tokens = if self.work.is_last { 1 } else { block.tokens };
        Block { tokens, ..block }
    }

    /// `[B, H, R, T]`
    pub(super) fn score_shape(&self, block: Block) -> [usize; 4] {
        let rows = self.asking_block(block).tokens;
        [block.pairs, self.work.layout.heads, rows, block.tokens]
    }

    /// Of a head.
    pub(super) fn depth(&self) -> usize {
        self.work.slopes.width / self.work.layout.heads
    }

    /// What queries are scaled by.
    pub(super) fn query_scale(&self) -> f32 {
        1.0 / (self.depth() as f32).sqrt()
    }

    /// Whether operands are rounded.
    pub(super) fn rounds(&self) -> bool {
        self.operand != DType::F32
    }

    fn element(&self) -> ElemType {
        ElemType::Float(match self.operand {
            DType::BF16 => FloatKind::BF16,
            DType::F16 => FloatKind::F16,
            _ => FloatKind::F32,
        })
    }

    pub(super) fn empty(&self, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
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

    /// A vector: of what has rows, Burn may pad these.
    fn zeros(&self, length: usize) -> CubeTensor {
        burn_cubecl::ops::numeric::zeros(self.device.clone(), [length].into(), DType::F32)
    }

    /// In the place of what is not written.
    fn none(&self) -> CubeTensor {
        self.empty([4], DType::F32)
    }

    /// Head rows of a block: `[B, H, T, D / H]`.
    pub(super) fn block_of(
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

    pub(super) fn product(&self, left: &CubeTensor, right: &CubeTensor) -> CubeTensor {
        let output = self.empty([rows(left), width(right)], self.operand);
        product_into(left.clone(), right.clone(), output.clone());
        output
    }

    /// A matrix as products take it.
    pub(super) fn operand(&self, matrix: &CubeTensor) -> CubeTensor {
        if self.rounds() {
            self.side_by_side(&[matrix])
        } else {
            matrix.clone()
        }
    }

    /// Up to three matrices, as products take them.
    pub(super) fn side_by_side(&self, matrices: &[&CubeTensor]) -> CubeTensor {
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
    pub(super) fn pick(&self, hidden: &CubeTensor) -> (CubeTensor, CubeTensor) {
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
    pub(super) fn to_heads(
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
    pub(super) fn out_of_heads(
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
    pub(super) fn exponentials(
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
        let lanes = (tokens / vector).next_power_of_two().min(LANES);
        let side = UNITS / lanes;
        kernels::exponentials::launch(
            &self.client,
            cubes(rows.div_ceil(side)),
            CubeDim::new_2d(count(lanes), count(side)),
            vector,
            read(scores),
            read(mask),
            read(sums),
            rows,
            tokens / vector,
            heads * asking,
            mask_begin / vector,
            self.asking().begins[number],
            lanes,
            side,
            self.element(),
        );
    }

    /// The slopes at a block's scores, in the place of those at their exponentials.
    pub(super) fn exponentials_back(
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
    pub(super) fn context(&self, of_heads: &CubeTensor, sums: &CubeTensor) -> CubeTensor {
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
    pub(super) fn context_back(
        &self,
        slopes: &CubeTensor,
        context: &CubeTensor,
        sums: &CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let asking = self.asking();
        let output = self.empty([asking.total, self.depth()], self.operand);
        let means = self.empty([asking.total], DType::F32);
        let rows = asking.rows * self.work.layout.heads;
        let depth = self.depth() / self.vector;
        let lanes = depth.next_power_of_two();
        let side = (UNITS / lanes).max(1);
        kernels::context_back::launch(
            &self.client,
            cubes(rows.div_ceil(side)),
            CubeDim::new_2d(count(lanes), count(side)),
            self.vector,
            read(slopes),
            read(context),
            read(sums),
            read(&asking.on_device(slopes)),
            read(&output),
            read(&means),
            rows,
            self.work.layout.heads,
            depth,
            lanes,
            side,
            self.element(),
        );
        (output, means)
    }

    /// The sum, normalised, as it is and as an operand, and what the way back takes.
    pub(super) fn add_and_norm(
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
    pub(super) fn norm_back(
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
        // Two or three numbers a lane.
        let width = shape[1] / self.vector;
        let lanes = width.div_ceil(2).next_power_of_two().clamp(LANES, 128);
        kernels::norm_back::launch(
            &self.client,
            CubeCount::new_1d(count(into.chunks)),
            CubeDim::new_1d(count(lanes)),
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
            width,
            lanes,
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

    pub(super) fn gelu(&self, product: &CubeTensor, bias: &CubeTensor) -> CubeTensor {
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
    pub(super) fn gelu_back(
        &self,
        slopes: &CubeTensor,
        product: &CubeTensor,
        bias: &CubeTensor,
        into: &Goal,
    ) {
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
    pub(super) fn add(
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

/// How many numbers are read at once, where what is read comes in multiples of both.
pub(super) fn vector_of(one: usize, other: usize) -> usize {
    let fits = |vector: &usize| one.is_multiple_of(*vector) && other.is_multiple_of(*vector);
    [4, 2].into_iter().find(fits).unwrap_or(1)
}

/// As a kernel takes it, to read or to write.
pub(super) fn read(tensor: &CubeTensor) -> BufferArg {
    tensor.clone().into_buffer_arg()
}

fn rows(matrix: &CubeTensor) -> usize {
    matrix.meta.shape()[0]
}

fn width(matrix: &CubeTensor) -> usize {
    matrix.meta.shape()[1]
}

/// What begins there in a tensor's memory.
pub(super) fn view(of: &CubeTensor, begin: usize, shape: Shape) -> CubeTensor {
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
pub(super) fn transposed(mut matrix: CubeTensor) -> CubeTensor {
    let last = matrix.meta.num_dims() - 1;
    matrix.meta.swap(last - 1, last);
    matrix
}

pub(super) fn product_into(left: CubeTensor, right: CubeTensor, output: CubeTensor) {
    let dtype = output.dtype;
    let strategy = strategy(&left);
    let made = matmul(left, right, Some(output), strategy, dtype);
    // As Burn's own products do, whose panics are what a run hears of a device that fails.
    made.unwrap_or_else(|error| panic!("a product of matrices: {error}"));
}

/// Burn's tuner, but for operands of 16 bits on GPUs whose hardware copies tiles (from Hopper on). Where a
/// product has four times as many rows as columns, the tuner of Burn 0.23.0-pre.1 tries tiles of 512 rows
/// there, of which the hardware takes 256; it counts that failure as one of every kernel it tries after it,
/// and takes the slowest of all, whose output it holds for lost. Without the tuner it is a kernel for tensor
/// cores that copies nothing by itself.
fn strategy(left: &CubeTensor) -> MatmulStrategy {
    let copies_tiles = !left.client.properties().features.tma.is_empty();
    if left.dtype.size() == 2 && copies_tiles {
        MatmulStrategy::Cube
    } else {
        MatmulStrategy::Autotune
    }
}
