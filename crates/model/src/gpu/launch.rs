//! Kernels of the encoder, started: each with its shapes, and memory for what comes of it.
//!
//! Shapes are those of [`super::layer`].

use burn::cubecl::calculate_cube_count_elemwise;
use burn::cubecl::client::Client;
use burn::cubecl::ir::ElemType;
use burn::cubecl::prelude::{BufferArg, CubeCount, CubeDim};
use burn::cubecl::server::MemoryLayoutDescriptor;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;

use super::hopper::{self, Factors};
use super::kernels::Activation;
use super::layout::Told;
use super::places::{
    ATTENDED, CLASSIFIER, CLASSIFIER_BIAS, DENSE_BIAS, INNER, INNER_BIAS, KEY, KEY_BIAS, OUTER,
    POSITIONS, QUERY, QUERY_BIAS, SCALE, SEGMENTS, SHIFT, VALUE, WORDS, Weights,
};
use super::products::{float, product_into};
use super::{Frame, kernels};

/// Where the slopes at parameters go.
pub(super) struct Goal<'a> {
    gpu: &'a Gpu<'a>,
    /// As [`super::places::Places`] has them.
    slopes: CubeTensor,
    /// Of those that are vectors, the sums of each chunk of rows, chunk by chunk.
    sums: CubeTensor,
    chunks: usize,
}

/// What the slopes at matrices side by side are the product of: what these were multiplied with, `[R, D]`, and
/// the slopes at what came out, `[R, matrices * I]`.
pub(super) type Product<'a> = (&'a [usize], &'a CubeTensor, &'a CubeTensor);

/// Chunks of rows are at least as long, and at most so many.
const CHUNK: usize = 8;
const CHUNKS: usize = 512;

impl<'a> Goal<'a> {
    /// Of sums over so many rows, at most. Where `begins_with_zeros`, slopes are 0 that are not written.
    pub(super) fn new(gpu: &'a Gpu<'a>, rows: usize, begins_with_zeros: bool) -> Self {
        let places = &gpu.frame.places;
        let chunks = rows.div_ceil(rows.div_ceil(CHUNKS).max(CHUNK)).max(1);
        let sums = chunks * (places.length - places.summed);
        // What lies between parameters is summed with them.
        let empty = |length: usize, has_zeros: bool| {
            if has_zeros {
                gpu.zeros(length)
            } else {
                gpu.empty([length], DType::F32)
            }
        };
        let has_gaps = places.has_gaps();
        let slopes = empty(places.length, begins_with_zeros || has_gaps);
        let sums = empty(sums, has_gaps);
        Self {
            gpu,
            slopes,
            sums,
            chunks,
        }
    }

    /// The slopes at matrices, of each the product of both factors.
    pub(super) fn products(&self, products: &[Product]) {
        let ranges = &self.gpu.frame.places.ranges;
        let factors = products.iter().map(|(which, input, slopes)| Factors {
            left: input,
            right: slopes,
            begins: which.iter().map(|which| ranges[*which].start).collect(),
        });
        let factors: Vec<Factors> = factors.collect();
        if !hopper::products(&factors, &self.slopes) {
            for product in &factors {
                self.product(product);
            }
        }
    }

    fn product(&self, factors: &Factors) {
        let Factors {
            left,
            right,
            begins,
        } = factors;
        let gpu = self.gpu;
        let shape = [width(left), width(right)];
        let into = |output| product_into(transposed((*left).clone()), (*right).clone(), output);
        if let [begin] = begins[..] {
            return into(view(&self.slopes, begin, shape.into()));
        }
        let output = gpu.empty(shape, DType::F32);
        into(output.clone());
        let begin = |number: usize| begins.get(number).map_or(0, |begin| begin / gpu.vector);
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
            begins.len(),
            shape[1] / begins.len() / gpu.vector,
            begin(0),
            begin(1),
            begin(2),
        );
    }

    /// The slopes at biases, whose places follow one another, from those at what they were added to, side
    /// by side: `[R, parts * D]`.
    pub(super) fn biases(&self, which: &[usize], slopes: &CubeTensor) {
        let gpu = self.gpu;
        let (rows, width) = (rows(slopes), width(slopes));
        kernels::columns::launch(
            &gpu.client,
            gpu.by_columns(width, self),
            CubeDim::new_1d(count(COLUMNS)),
            gpu.vector,
            read(slopes),
            read(&self.sums),
            rows,
            self.chunk(rows),
            which.len(),
            width / which.len() / gpu.vector,
            self.sums_width(),
            self.place(which[0]),
            self.place(KEY_BIAS) - self.place(QUERY_BIAS),
            gpu.element(),
        );
    }

    /// The slopes at tables, from those at the sums of their rows, `[N, D]`; at rows that no token has, 0.
    pub(super) fn tables(&self, slopes: &CubeTensor) {
        let gpu = self.gpu;
        let layout = &gpu.frame.layout;
        let width = width(slopes);
        let (chunks, numbers) = layout.told(Told::Chunks, slopes);
        let sums = gpu.empty([numbers / 2, width], DType::F32);
        let units = numbers / 2 * width / gpu.vector;
        let (count, dim) = gpu.elementwise(units);
        kernels::gathered::launch(
            &gpu.client,
            count,
            dim,
            gpu.vector,
            read(slopes),
            read(&layout.told(Told::Order, slopes).0),
            read(&chunks),
            read(&sums),
            units,
            width / gpu.vector,
        );
        let (targets, numbers) = layout.told(Told::Targets, slopes);
        let units = numbers / 3 * width / gpu.vector;
        let (count, dim) = gpu.elementwise(units);
        kernels::scattered::launch(
            &gpu.client,
            count,
            dim,
            gpu.vector,
            read(&sums),
            read(&targets),
            read(&self.slopes),
            units,
            width / gpu.vector,
            gpu.vector,
        );
    }

    /// Rows of which each chunk has its part.
    fn chunk(&self, rows: usize) -> usize {
        rows.div_ceil(self.chunks)
    }

    /// Where, among the sums of a chunk, those of a parameter are, in vectors.
    fn place(&self, which: usize) -> usize {
        let places = &self.gpu.frame.places;
        (places.ranges[which].start - places.summed) / self.gpu.vector
    }

    fn sums_width(&self) -> usize {
        let places = &self.gpu.frame.places;
        (places.length - places.summed) / self.gpu.vector
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
            gpu.frame.places.summed,
            LANES,
            SIDE,
        );
        self.slopes
    }
}

/// A layer's matrices, as products take them.
pub(super) struct Operands {
    /// Of queries, keys and values side by side, `[D, 3 D]`; in the last layer of queries, `[D, D]`.
    pub(super) asking: CubeTensor,
    /// There, of keys and values: `[D, 2 D]`.
    pub(super) asked: Option<CubeTensor>,
    /// Those behind attention: `[D, D]`, `[D, I]` and `[I, D]`.
    pub(super) others: [CubeTensor; 3],
}

/// What the way back through a layer norm takes.
pub(super) struct Normed {
    /// Before scale and shift: `[R, D]`.
    rows: CubeTensor,
    /// One over each row's standard deviation: `[R]`.
    inverses: CubeTensor,
}

/// In the place of what is not written.
const NONE: [usize; 1] = [4];

/// Lanes that share a row, at most or always, and rows side by side then.
const LANES: usize = 32;
const SIDE: usize = UNITS / LANES;

/// Units of a cube.
const UNITS: usize = 256;

/// Cubes in a row, at most.
const IN_A_ROW: usize = 1 << 15;

/// Where kernels are started, and what for.
pub(super) struct Gpu<'a> {
    pub(super) client: Client,
    device: CubeDevice,
    pub(super) frame: &'a Frame,
    pub(super) operand: DType,
    /// Numbers that are read at once.
    pub(super) vector: usize,
}

impl<'a> Gpu<'a> {
    pub(super) fn new(like: &CubeTensor, frame: &'a Frame) -> Self {
        Self {
            client: like.client.clone(),
            device: like.device.clone(),
            frame,
            operand: frame.operand,
            vector: vector_of(frame.width / frame.layout.heads, frame.inner),
        }
    }

    /// Whether operands are rounded.
    pub(super) fn rounds(&self) -> bool {
        self.operand != DType::F32
    }

    pub(super) fn element(&self) -> ElemType {
        float(self.operand)
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

    /// Several that are needed as long as one another, in one piece of memory: each that is asked for is a message
    /// to the thread that serves the GPU.
    pub(super) fn together<const N: usize>(&self, of: [(Shape, DType); N]) -> [CubeTensor; N] {
        let descriptor = |(shape, dtype): &(Shape, DType)| {
            MemoryLayoutDescriptor::contiguous(shape.clone(), dtype.size())
        };
        let memory = self
            .client
            .empty_tensors(of.iter().map(descriptor).collect());
        let mut memory = memory.into_iter();
        of.map(|(shape, dtype)| match memory.next() {
            Some(its) => CubeTensor::new_contiguous(
                self.client.clone(),
                self.device.clone(),
                shape,
                its.memory,
                dtype,
            ),
            None => self.empty(shape, dtype),
        })
    }

    /// As large as another, without its numbers.
    pub(super) fn like(&self, other: &CubeTensor) -> CubeTensor {
        self.empty(other.meta.shape().clone(), other.dtype)
    }

    /// A vector: of what has rows, Burn may pad these.
    fn zeros(&self, length: usize) -> CubeTensor {
        burn_cubecl::ops::numeric::zeros(self.device.clone(), [length].into(), DType::F32)
    }

    /// Numbers of 32 bits, and the same as operands, where these are rounded.
    fn with_operand(&self, shape: [usize; 2]) -> (CubeTensor, CubeTensor) {
        let of_operand = if self.rounds() {
            shape.into()
        } else {
            NONE.into()
        };
        let both = [(shape.into(), DType::F32), (of_operand, self.operand)];
        let [whole, operand] = self.together(both);
        (whole, operand)
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

    /// A layer's matrices as operands, by one kernel.
    pub(super) fn operands(&self, weights: &Weights) -> Operands {
        let is_last = self.frame.is_last;
        if !self.rounds() {
            let [query, key, value] = [QUERY, KEY, VALUE].map(|which| weights.at(which));
            let (asking, asked) = if is_last {
                (query, Some(self.side_by_side(&[&key, &value])))
            } else {
                (self.side_by_side(&[&query, &key, &value]), None)
            };
            return Operands {
                asking,
                asked,
                others: [ATTENDED, INNER, OUTER].map(|which| weights.at(which)),
            };
        }
        let Frame {
            places,
            width,
            inner,
            ..
        } = self.frame;
        let (width, inner) = (*width, *inner);
        let output = self.empty([places.vectors], self.operand);
        let units = places.vectors / self.vector;
        let (count, dim) = self.elementwise(units);
        kernels::operands::launch(
            &self.client,
            count,
            dim,
            self.vector,
            read(weights.all()),
            read(&output),
            units,
            if is_last { 2 } else { 3 },
            width,
            width / self.vector,
            places.ranges[KEY].start / self.vector,
            self.element(),
        );
        let at = |which: usize, shape: [usize; 2]| {
            view(&output, places.ranges[which].start, shape.into())
        };
        Operands {
            asking: at(QUERY, [width, if is_last { width } else { 3 * width }]),
            asked: is_last.then(|| at(KEY, [width, 2 * width])),
            others: [
                at(ATTENDED, [width, width]),
                at(INNER, [width, inner]),
                at(OUTER, [inner, width]),
            ],
        }
    }

    /// The first row of each pair, as it is and as an operand.
    pub(super) fn pick(&self, hidden: &CubeTensor) -> (CubeTensor, CubeTensor) {
        let shape = self.frame.output();
        let (rows, operands) = self.with_operand(shape);
        let units = shape[0] * shape[1] / self.vector;
        let (count, dim) = self.elementwise(units);
        kernels::pick::launch(
            &self.client,
            count,
            dim,
            self.vector,
            read(hidden),
            read(&self.frame.layout.told(Told::Firsts, hidden).0),
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

    /// The sum, normalised, as it is and as an operand, and what the way back takes.
    pub(super) fn add_and_norm(
        &self,
        product: &CubeTensor,
        residual: &CubeTensor,
        [bias, scale, shift]: [CubeTensor; 3],
        rounds: bool,
    ) -> (CubeTensor, CubeTensor, Normed) {
        let shape = self.frame.output();
        // What is added to is not needed on the way back; the others are.
        let output = self.empty(shape, DType::F32);
        let of_operand = if rounds { shape.into() } else { NONE.into() };
        let [operand, rows, inverses] = self.together([
            (of_operand, self.operand),
            (shape.into(), DType::F32),
            ([shape[0]].into(), DType::F32),
        ]);
        let normed = Normed { rows, inverses };
        kernels::add_and_norm::launch(
            &self.client,
            cubes(shape[0].div_ceil(SIDE)),
            CubeDim::new_2d(count(LANES), count(SIDE)),
            self.vector,
            read(product),
            read(&bias),
            read(residual),
            read(&scale),
            read(&shift),
            read(&output),
            read(&operand),
            read(&normed.rows),
            read(&normed.inverses),
            shape[0],
            shape[1] / self.vector,
            shape[1] as f32,
            self.frame.epsilon,
            LANES,
            SIDE,
            rounds,
            self.element(),
        );
        let operand = if rounds { operand } else { output.clone() };
        (output, operand, normed)
    }

    /// The slopes at what was normalised, as they are and as operands, from those at what came of it,
    /// which are the sum of two where there are two; `goals` are its scale, its shift and, where one was
    /// added before it, the bias.
    pub(super) fn norm_back(
        &self,
        slopes: &CubeTensor,
        product: Option<&CubeTensor>,
        normed: &Normed,
        scale: &CubeTensor,
        into: &Goal,
        goals: &[usize],
    ) -> (CubeTensor, CubeTensor) {
        let shape = self.frame.output();
        let (output, operand) = self.with_operand(shape);
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
            into.place(goals[0]),
            into.place(goals[1]),
            goals.get(2).map_or(0, |of_bias| into.place(*of_bias)),
            width,
            lanes,
            product.is_some(),
            goals.len() > 2,
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

    /// The embeddings of each token, added and normalised, and what the way back takes.
    pub(super) fn embed(&self, weights: &Weights) -> (CubeTensor, Normed) {
        let [rows, width] = self.frame.input();
        let output = self.empty([rows, width], DType::F32);
        let [none, normed, inverses] = self.together([
            (NONE.into(), DType::F32),
            ([rows, width].into(), DType::F32),
            ([rows].into(), DType::F32),
        ]);
        let normed = Normed {
            rows: normed,
            inverses,
        };
        let has = |which: usize| !self.frame.places.ranges[which].is_empty();
        // In the place of a table that is not there, words.
        let table = |which: usize| weights.at(if has(which) { which } else { WORDS });
        kernels::embed::launch(
            &self.client,
            cubes(rows.div_ceil(SIDE)),
            CubeDim::new_2d(count(LANES), count(SIDE)),
            self.vector,
            read(&table(WORDS)),
            read(&table(POSITIONS)),
            read(&table(SEGMENTS)),
            read(&self.frame.layout.told(Told::Ids, &output).0),
            read(&weights.at(SCALE)),
            read(&weights.at(SHIFT)),
            read(&output),
            read(&none),
            read(&normed.rows),
            read(&normed.inverses),
            rows,
            width / self.vector,
            width as f32,
            self.frame.epsilon,
            LANES,
            SIDE,
            has(POSITIONS),
            has(SEGMENTS),
        );
        (output, normed)
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

    /// The logits, `[B]`, of the dense layer's product.
    pub(super) fn classify(
        &self,
        product: &CubeTensor,
        weights: &Weights,
        activation: Activation,
    ) -> CubeTensor {
        let (rows, width) = (rows(product), width(product));
        let logits = self.empty([rows], DType::F32);
        kernels::classify::launch(
            &self.client,
            cubes(rows.div_ceil(SIDE)),
            CubeDim::new_2d(count(LANES), count(SIDE)),
            self.vector,
            read(product),
            read(&weights.at(DENSE_BIAS)),
            read(&weights.at(CLASSIFIER)),
            read(&weights.at(CLASSIFIER_BIAS)),
            read(&logits),
            rows,
            width / self.vector,
            activation,
            LANES,
            SIDE,
        );
        logits
    }

    /// The slopes at the dense layer's product.
    pub(super) fn classify_back(
        &self,
        slopes: &CubeTensor,
        product: &CubeTensor,
        weights: &Weights,
        activation: Activation,
        into: &Goal,
    ) -> CubeTensor {
        let (rows, width) = (rows(product), width(product));
        let output = self.like(product);
        kernels::classify_back::launch(
            &self.client,
            // And one for the classifier's bias.
            self.by_columns(width + self.vector, into),
            CubeDim::new_1d(count(COLUMNS)),
            self.vector,
            read(slopes),
            read(product),
            read(&weights.at(DENSE_BIAS)),
            read(&weights.at(CLASSIFIER)),
            read(&output),
            read(&into.sums),
            rows,
            into.chunk(rows),
            width / self.vector,
            into.sums_width(),
            into.place(CLASSIFIER),
            into.place(DENSE_BIAS),
            into.place(CLASSIFIER_BIAS),
            activation,
        );
        output
    }

    /// What comes to all rows, `[N, D]`, and what to the first of each pair, `[R, D]`, in the last layer;
    /// elsewhere the sum of two.
    pub(super) fn add(
        &self,
        product: &CubeTensor,
        residual: &CubeTensor,
        to_first: Option<&CubeTensor>,
    ) -> CubeTensor {
        let shape = self.frame.input();
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
            read(&self.frame.layout.told(Told::PairOfFirst, product).0),
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
pub(super) fn cubes(number: usize) -> CubeCount {
    let rows = number.div_ceil(IN_A_ROW);
    CubeCount::new_2d(count(number.div_ceil(rows.max(1))), count(rows))
}

pub(super) fn count(number: usize) -> u32 {
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

pub(super) fn width(matrix: &CubeTensor) -> usize {
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
