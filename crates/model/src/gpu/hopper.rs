//! Products of matrices of 16 bits by Hopper's own instruction for them, `wgmma`.
//!
//! A cube has a tile of the product. One unit of it has the hardware copy what is to be multiplied into shared
//! memory, as many steps ahead as there is room for; groups of four planes multiply it from there, 64 rows each,
//! and sum in 32 bits. Who copies and who multiplies meet at two barriers a stage: one is passed when it is full,
//! the other when it may be filled again.
//!
//! Either factor may lie by rows or by columns: the instruction takes both, as [`Major`] has it, where a line of
//! shared memory goes along what is summed over (`K`) or across it (`MN`).

#![expect(
    clippy::needless_pass_by_value,
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    reason = "as the macro of a kernel takes constants and types of operands"
)]

use burn::cubecl;
use burn::cubecl::features::WgmmaElems;
use burn::cubecl::ir::dialect::matrix::WgmmaWaitGroupOp;
use burn::cubecl::ir::types::MatrixShape;
use burn::cubecl::ir::{ElemType, FloatKind};
use burn::cubecl::prelude::barrier::Barrier;
use burn::cubecl::prelude::*;
use burn::cubecl::wgmma::{
    Accumulator, Major, MatrixDescriptor, Swizzle, WARPGROUP_M, WARPGROUP_UNITS, WgmmaTileLayout,
};
use burn_cubecl::tensor::CubeTensor;

use super::launch::{count, cubes, read};
use super::products::{float, lies_by_columns};
use super::tensor_cores::PLANE;

/// How much of a product a cube has, and how it goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    /// At most 256, in multiples of [`LINE`].
    pub(super) columns: usize,
    /// Steps that are in shared memory at once.
    pub(super) stages: usize,
}

/// Rows of a tile.
const ROWS: usize = GROUPS * WARPGROUP_M;

/// Groups of planes that multiply.
const GROUPS: usize = 2;

/// Planes of a group.
const PLANES: usize = WARPGROUP_UNITS / PLANE;

/// Units that multiply.
const MULTIPLYING: usize = GROUPS * WARPGROUP_UNITS;

/// Units of a cube: a plane behind them copies.
const UNITS: usize = MULTIPLYING + PLANE;

/// Numbers in a line that the hardware puts into shared memory, and how many are summed over in a step.
const LINE: usize = 64;

/// Numbers that an instruction sums over.
const STEP: usize = 16;

/// Rows of matrices begin at multiples of so many numbers, as the hardware wants them.
const ALIGNED: usize = 8;

/// Numbers that are written at once.
const PAIR: usize = 2;

/// Two cubes of the first go on side by side on a processor, one of the second.
pub(super) const TILES: [Tile; 2] = [
    Tile {
        columns: 128,
        stages: 3,
    },
    Tile {
        columns: 256,
        stages: 4,
    },
];

/// The product of what it [`takes`], into `output`; an error where this has rows of an odd width.
pub(super) fn product(
    tile: Tile,
    left: &CubeTensor,
    right: &CubeTensor,
    output: &CubeTensor,
) -> Result<(), String> {
    let [rows, columns] = [output.meta.shape()[0], output.meta.shape()[1]];
    if !columns.is_multiple_of(PAIR) {
        return Err(format!("{columns} columns"));
    }
    let depth = left.meta.shape()[1];
    let lying = |by_columns, by_rows, matrix: &CubeTensor| {
        if lies_by_columns(matrix) {
            by_columns
        } else {
            by_rows
        }
    };
    let left_lies = lying(Major::MN, Major::K, left);
    let right_lies = lying(Major::K, Major::MN, right);
    multiply::launch(
        &output.client,
        cubes(rows.div_ceil(ROWS) * columns.div_ceil(tile.columns)),
        CubeDim::new_1d(count(UNITS)),
        PAIR,
        map(left, left_lies, ROWS),
        map(right, right_lies, tile.columns),
        read(output),
        rows,
        columns,
        depth.div_ceil(LINE),
        tile,
        left_lies,
        right_lies,
        float(left.dtype),
        float(output.dtype),
    );
    Ok(())
}

/// Factors of products that are summed over their rows: `[R, M]` and `[R, N]`.
pub(super) struct Factors<'a> {
    pub(super) left: &'a CubeTensor,
    pub(super) right: &'a CubeTensor,
    /// Where in the output the products begin of parts of the right one's columns, each as wide as another.
    pub(super) begins: Vec<usize>,
}

/// All of them, by one kernel, each where it begins; whether this device and these matrices are for it.
pub(super) fn products(all: &[Factors], output: &CubeTensor) -> bool {
    let width = |matrix: &CubeTensor| matrix.meta.shape()[1];
    let mut parts = Vec::new();
    for (
        factors,
        Factors {
            left,
            right,
            begins,
        },
    ) in all.iter().enumerate()
    {
        let columns = width(right) / begins.len();
        parts.extend(begins.iter().enumerate().map(|(number, begin)| Part {
            factors,
            first: number * columns,
            rows: width(left),
            columns,
            begin: *begin,
        }));
    }
    let [narrow, wide] = TILES;
    let fits = |part: &Part| part.columns.is_multiple_of(wide.columns);
    let tile = if parts.iter().all(fits) { wide } else { narrow };
    let lies = |matrix| takes(matrix) && !lies_by_columns(matrix) && matrix.meta.num_elements() > 0;
    let are_taken = all.iter().all(|it| lies(it.left) && lies(it.right));
    if !are_taken || parts.iter().any(|part| part.columns % PAIR != 0) {
        return false;
    }
    multiply_all::launch(
        &output.client,
        cubes(tiles(&parts, tile)),
        CubeDim::new_1d(count(UNITS)),
        PAIR,
        all.iter().map(|it| map(it.left, Major::MN, ROWS)).collect(),
        all.iter()
            .map(|it| map(it.right, Major::MN, tile.columns))
            .collect(),
        all.iter()
            .map(|it| it.left.meta.shape()[0].div_ceil(LINE))
            .collect(),
        read(output),
        tile,
        parts,
        float(all[0].left.dtype),
    );
    true
}

/// Whether the device has the instruction, and can copy the matrix.
pub(super) fn takes(matrix: &CubeTensor) -> bool {
    let element = float(matrix.dtype);
    let elems = WgmmaElems {
        a: element,
        b: element,
        cd: ElemType::Float(FloatKind::F32),
    };
    let known = &matrix.client.properties().features.matmul.wgmma;
    let along = usize::from(!lies_by_columns(matrix));
    matrix.meta.shape()[along].is_multiple_of(ALIGNED)
        && TILES.iter().all(|tile| {
            let shape = MatrixShape {
                m: WARPGROUP_M,
                n: tile.columns,
                k: STEP,
            };
            known.iter().any(|it| it.matches(elems, shape))
        })
}

/// A factor as the hardware copies it, in boxes of so many rows of the left one, or columns of the right one, or
/// of a line of them.
fn map(factor: &CubeTensor, major: Major, width: usize) -> TensorMapArg<Tiled> {
    let mut factor = factor.clone();
    if lies_by_columns(&factor) {
        factor.meta.swap(0, 1);
    }
    let element = float(factor.dtype);
    let lines = if major == Major::K { width } else { LINE };
    let tile_size = [lines, LINE].into();
    TensorMapArg::new(TiledArgs { tile_size }, factor.into_tensor_arg(), element)
        .with_swizzle(Swizzle::B128.into())
}

/// Shapes: `left` `[M, K]` and `right` `[K, N]`, as they lie, of which each [`LINE`] along `K` is a step, and
/// `output` `[M, N]`.
#[cube(launch)]
fn multiply<E: Float, O: Float, N: Size>(
    left: &TensorMap<E, Tiled>,
    right: &TensorMap<E, Tiled>,
    output: &mut [Vector<O, N>],
    rows: usize,
    columns: usize,
    steps: usize,
    #[comptime] tile: Tile,
    #[comptime] left_lies: Major,
    #[comptime] right_lies: Major,
    #[define(E)] _element: ElemType,
    #[define(O)] _to: ElemType,
) {
    let across = columns.div_ceil(tile.columns);
    let row = CUBE_POS / across * ROWS;
    let column = CUBE_POS % across * tile.columns;
    let mut ring = Ring::<E>::new(tile, left_lies, right_lies);
    if row < rows {
        if multiplies() {
            let sums = ring.sums(steps);
            write(&sums, output, 0, row, column, rows, columns, tile.columns);
        } else if copies() {
            ring.fill(left, right, row, column, steps);
        }
    }
}

/// A product's part of the output.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Part {
    /// Of which factors.
    factors: usize,
    /// The first of its columns that the right one has.
    first: usize,
    rows: usize,
    columns: usize,
    begin: usize,
}

impl Part {
    fn tiles(&self, tile: Tile) -> usize {
        self.rows.div_ceil(ROWS) * self.columns.div_ceil(tile.columns)
    }
}

/// Shapes: of each of the `lefts` `[R, M]`, and of the `rights` `[R, N]`, of which each [`LINE`] along `R` is a
/// step.
#[cube(launch)]
fn multiply_all<E: Float, N: Size>(
    lefts: &Sequence<TensorMap<E, Tiled>>,
    rights: &Sequence<TensorMap<E, Tiled>>,
    all_steps: &Sequence<usize>,
    output: &mut [Vector<f32, N>],
    #[comptime] tile: Tile,
    #[comptime] parts: Vec<Part>,
    #[define(E)] _element: ElemType,
) {
    let mut ring = Ring::<E>::new(tile, Major::MN, Major::MN);
    let (mut row, mut rows) = (0usize.runtime(), 0usize.runtime());
    let (mut column, mut columns) = (0usize.runtime(), 0usize.runtime());
    let (mut first, mut begin) = (0usize.runtime(), 0usize.runtime());
    let (mut factors, mut steps) = (0usize.runtime(), 0usize.runtime());
    #[unroll]
    for number in 0..comptime!(parts.len()) {
        let part = comptime!(parts[number].clone());
        let before = comptime!(tiles(&parts[..number], tile));
        let until = comptime!(before + part.tiles(tile));
        if CUBE_POS >= before && CUBE_POS < until {
            let across = comptime!(part.columns.div_ceil(tile.columns));
            let place = CUBE_POS - before;
            row = place / across * ROWS;
            rows = comptime!(part.rows).runtime();
            column = place % across * tile.columns;
            columns = comptime!(part.columns).runtime();
            first = comptime!(part.first).runtime();
            begin = comptime!(part.begin).runtime();
            factors = comptime!(part.factors).runtime();
            steps = *all_steps.index(comptime!(part.factors));
        }
    }
    if row < rows {
        if multiplies() {
            let sums = ring.sums(steps);
            write(
                &sums,
                output,
                begin,
                row,
                column,
                rows,
                columns,
                tile.columns,
            );
        } else if copies() {
            #[unroll]
            for number in 0..comptime!(parts[parts.len() - 1].factors + 1) {
                if factors == number {
                    let (left, right) = (lefts.index(number), rights.index(number));
                    ring.fill(left, right, row, first + column, steps);
                }
            }
        }
    }
}

fn tiles(parts: &[Part], tile: Tile) -> usize {
    parts.iter().map(|part| part.tiles(tile)).sum()
}

#[cube]
fn multiplies() -> bool {
    (UNIT_POS as usize) < MULTIPLYING
}

/// One unit does.
#[cube]
fn copies() -> bool {
    UNIT_POS as usize == MULTIPLYING
}

/// What is in shared memory: stage by stage.
#[derive(CubeType)]
struct Ring<E: Float> {
    lefts: Shared<[E]>,
    rights: Shared<[E]>,
    full: Sequence<Shared<Barrier>>,
    empty: Sequence<Shared<Barrier>>,
    #[cube(comptime)]
    stages: usize,
    #[cube(comptime)]
    left: WgmmaTileLayout,
    #[cube(comptime)]
    right: WgmmaTileLayout,
}

#[cube]
impl<E: Float> Ring<E> {
    fn new(
        #[comptime] tile: Tile,
        #[comptime] left_lies: Major,
        #[comptime] right_lies: Major,
    ) -> Ring<E> {
        let stages = comptime!(tile.stages);
        let left = comptime!(layout(left_lies, ROWS));
        let right = comptime!(layout(right_lies, tile.columns));
        let (of_left, of_right) = comptime!((left.alignment(), right.alignment()));
        let lefts = Shared::new_aligned_slice(comptime!(stages * ROWS * LINE), of_left);
        let rights = Shared::new_aligned_slice(comptime!(stages * tile.columns * LINE), of_right);
        let mut full = Sequence::<Shared<Barrier>>::new();
        let mut empty = Sequence::<Shared<Barrier>>::new();
        #[unroll]
        for _ in 0..stages {
            full.push(Barrier::shared_uninit());
            empty.push(Barrier::shared_uninit());
        }
        if UNIT_POS == 0 {
            #[unroll]
            for stage in 0..stages {
                full.index(stage).init_manual(1u32);
                empty
                    .index(stage)
                    .init_manual(comptime!(count(GROUPS * PLANES)));
            }
        }
        sync_async_proxy_shared();
        sync_cube();
        Ring::<E> {
            lefts,
            rights,
            full,
            empty,
            stages,
            left,
            right,
        }
    }

    /// One unit's part.
    fn fill(
        &mut self,
        left: &TensorMap<E, Tiled>,
        right: &TensorMap<E, Tiled>,
        row: usize,
        column: usize,
        steps: usize,
    ) {
        let bytes = comptime!(count((ROWS + self.right.rows) * LINE * 2));
        // What was never full is passed at first.
        let (mut stage, mut phase) = (0usize.runtime(), 1u32.runtime());
        for step in 0..steps {
            let depth = step * LINE;
            #[unroll]
            for one in 0..self.stages {
                if stage == one {
                    self.empty.index(one).wait_parity(phase);
                    let full = self.full.index(one);
                    full.arrive_and_expect_tx(1u32, bytes);
                    bring(left, &mut self.lefts, full, one, row, depth, self.left);
                    bring(
                        right,
                        &mut self.rights,
                        full,
                        one,
                        column,
                        depth,
                        self.right,
                    );
                }
            }
            stage += 1;
            if stage == self.stages {
                stage = 0;
                phase ^= 1u32;
            }
        }
    }

    /// The others' part: a group's 64 rows of the product.
    fn sums(&mut self, steps: usize) -> Accumulator<f32> {
        let own = UNIT_POS as usize / WARPGROUP_UNITS * WARPGROUP_M;
        let mut sums = Accumulator::<f32>::new(self.right.rows).start();
        let (mut stage, mut phase) = (0usize.runtime(), 0u32.runtime());
        let mut previous = 0usize.runtime();
        for step in 0..steps {
            #[unroll]
            for one in 0..self.stages {
                if stage == one {
                    self.full.index(one).wait_parity(phase);
                }
            }
            let left = descriptor(&self.lefts, stage, self.left);
            let right = descriptor(&self.rights, stage, self.right);
            #[unroll]
            for at in 0..comptime!(LINE / STEP) {
                sums.execute(&left.at(own, at * STEP), &right.at(0usize, at * STEP));
            }
            let _ = sums.commit();
            wait_but_for_last();
            if step > 0 && UNIT_POS_PLANE == 0 {
                #[unroll]
                for one in 0..self.stages {
                    if previous == one {
                        self.empty.index(one).arrive();
                    }
                }
            }
            previous = stage;
            stage += 1;
            if stage == self.stages {
                stage = 0;
                phase ^= 1u32;
            }
        }
        sums.wait()
    }
}

/// A tile in shared memory, as the instruction reads it: so many rows of the left factor, or columns of the right.
fn layout(major: Major, rows: usize) -> WgmmaTileLayout {
    WgmmaTileLayout {
        major,
        swizzle: Swizzle::B128,
        rows,
        k: LINE,
    }
}

#[cube]
fn descriptor<E: Float>(
    stages: &Shared<[E]>,
    stage: usize,
    #[comptime] layout: WgmmaTileLayout,
) -> MatrixDescriptor<E> {
    let begin = stage * comptime!(layout.rows * LINE);
    let end = begin + comptime!(layout.rows * LINE);
    MatrixDescriptor::new(&stages[begin..end], layout)
}

/// Waits for all products but those of the last step, which go on. `CubeCL`'s own wait for a step's products, kept
/// in a variable from one turn of the loop to the next, was compiled to one for all.
#[cube]
fn wait_but_for_last() {
    intrinsic!(|scope| {
        let wait = WgmmaWaitGroupOp::new(scope.ctx_mut(), 1);
        scope.register(&wait);
    });
}

/// A step of a factor.
#[cube]
fn bring<E: Float>(
    factor: &TensorMap<E, Tiled>,
    stages: &mut Shared<[E]>,
    full: &Barrier,
    stage: usize,
    begin: usize,
    depth: usize,
    #[comptime] layout: WgmmaTileLayout,
) {
    let there = stage * comptime!(layout.rows * LINE);
    if comptime!(layout.major == Major::K) {
        let end = there + comptime!(layout.rows * LINE);
        full.tma_load_2d(
            factor,
            &mut stages[there..end],
            i32::cast_from(begin),
            i32::cast_from(depth),
        );
    } else {
        #[unroll]
        for line in 0..comptime!(layout.rows / LINE) {
            let there = there + line * LINE * LINE;
            let end = there + LINE * LINE;
            full.tma_load_2d(
                factor,
                &mut stages[there..end],
                i32::cast_from(depth),
                i32::cast_from(begin + line * LINE),
            );
        }
    }
}

/// A group's rows. Of each eight columns a unit has two, in two rows that are eight apart.
#[cube]
fn write<O: Float, N: Size>(
    sums: &Accumulator<f32>,
    output: &mut [Vector<O, N>],
    begin: usize,
    row: usize,
    column: usize,
    rows: usize,
    columns: usize,
    #[comptime] width: usize,
) {
    let output = output.with_vector_size_mut::<Const<2>>();
    let (plane, lane) = (UNIT_POS as usize / PLANE, UNIT_POS_PLANE as usize);
    let row = row + plane * (WARPGROUP_M / PLANES) + lane / 4;
    let column = column + lane % 4 * 2;
    #[unroll]
    for half in 0..2usize {
        let row = row + 8 * half;
        if row < rows {
            #[unroll]
            for eighth in 0..comptime!(width / 8) {
                let column = column + 8 * eighth;
                if column < columns {
                    let mut both = Vector::<f32, Const<2>>::new(0.0f32);
                    both.insert(0usize, sums.get(4 * eighth + 2 * half));
                    both.insert(1usize, sums.get(4 * eighth + 2 * half + 1));
                    output[(begin + row * columns + column) / PAIR] = Vector::cast_from(both);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::env;

    use burn::tensor::DType;
    use burn_cubecl::CubeDevice;

    use super::super::products::tests::{factor, matrix, numbers, product};
    use super::*;

    /// Of tiles of both widths, whole ones and others, and of parts of a factor; what lies between them is left.
    #[test]
    fn each_product_is_where_it_begins_on_a_gpu() {
        if env::var("RETORT_TEST_GPU").as_deref() != Ok("cuda") {
            println!("only CUDA has them");
            return;
        }
        let device = CubeDevice::default();
        if device
            .client()
            .properties()
            .features
            .matmul
            .wgmma
            .is_empty()
        {
            println!("only Hopper has them");
            return;
        }
        for (dtype, shapes) in [
            (DType::BF16, [[72, 200, 48], [136, 67, 264]]),
            (DType::F16, [[136, 589, 256], [256, 1, 512]]),
        ] {
            // The first has a right factor of three parts.
            let of = |[rows, depth, columns]: [usize; 3], parts| {
                let left = factor(&device, [depth, rows], false, dtype);
                let right = factor(&device, [depth, parts * columns], false, dtype);
                (left, right)
            };
            let [[rows, depth, columns], other] = shapes;
            let (left, right) = of(shapes[0], 3);
            let (other_left, other_right) = of(other, 1);
            // Out of order, with 8 numbers before each.
            let length = rows * columns + 8;
            let begins = [2, 0, 1].map(|place| place * length + 8);
            let whole = 3 * length + 8 + other[0] * other[2];
            let output = matrix(&device, [1, whole], &vec![-7.0; whole], DType::F32);
            let all = [
                Factors {
                    left: &left.matrix,
                    right: &right.matrix,
                    begins: begins.to_vec(),
                },
                Factors {
                    left: &other_left.matrix,
                    right: &other_right.matrix,
                    begins: vec![3 * length + 8],
                },
            ];
            assert!(products(&all, &output));
            let mut expected = vec![-7.0; whole];
            let mut put = |begin: usize, left: &[f32], right: &[f32], shape: [usize; 3]| {
                let [rows, depth, _] = shape;
                let turned: Vec<f32> = (0..rows * depth)
                    .map(|at| left[at % depth * rows + at / depth])
                    .collect();
                let product = product(&turned, right, shape);
                expected[begin..begin + product.len()].copy_from_slice(&product);
            };
            for (part, begin) in begins.into_iter().enumerate() {
                let own = right.numbers.chunks(3 * columns);
                let own = own.flat_map(|row| &row[part * columns..(part + 1) * columns]);
                let own: Vec<f32> = own.copied().collect();
                put(begin, &left.numbers, &own, [rows, depth, columns]);
            }
            put(
                3 * length + 8,
                &other_left.numbers,
                &other_right.numbers,
                other,
            );
            assert_eq!(numbers(output), expected);
        }
    }
}
