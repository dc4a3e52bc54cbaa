//! The kernels of [`super::attend`] for rows of 16 bits, on tensor cores.
//!
//! A plane has 16 rows of one pair, and a cube [`ROWS`] of them. What these attend to, or are attended to
//! by, is in shared memory [`AHEAD`] rows at a time. Products of 16 rows and 8 others are summed in 32 bits,
//! and are where the next product takes them: weights never leave the registers (Dao, `FlashAttention-2`,
//! 2023, arXiv 2307.08691).
//!
//! A unit has two numbers side by side in each of two rows, eight apart, of such a product: lane `l` of rows
//! `l / 4` and `l / 4 + 8`, columns `2 (l % 4)` and the next.
//!
//! A key's bias adds the same to all scores of a row, a value's to all that is found: the first changes
//! nothing, the second is added at the end.
//!
//! Shapes are those of [`super::attend`], in vectors of `N`, which is 8; biases have vectors of `M`, half of it.

#![expect(
    clippy::too_many_lines,
    clippy::trivially_copy_pass_by_ref,
    clippy::used_underscore_binding,
    reason = "a kernel has what all its units share; its macro names the types of operands, and arrays are small"
)]

use burn::cubecl;
use burn::cubecl::cmma::{MatrixIdent, MmaDefinition};
use burn::cubecl::prelude::*;

use super::attend::{LOWEST, ROWS, largest, tile_of};
use super::kernels::{across, least};

/// Numbers that are copied at once.
pub(super) const VECTOR: usize = 8;

/// The widest part of a head whose sums are in registers.
pub(super) const WIDEST: usize = 64;

/// Units of a cube: those of a plane for 16 rows.
pub(super) const UNITS: usize = ROWS / 16 * PLANE;

/// Units of a plane.
pub(super) const PLANE: usize = 32;

/// Rows that are in shared memory at once.
const AHEAD: usize = 64;

/// Beyond any logarithm of a sum: of a row that is not there.
const HIGHEST: f64 = 3e38;

/// As [`crate::gpu::attend::attend()`].
#[cube(launch)]
pub(super) fn attend<E: Float, N: Size, M: Size>(
    queries: &[Vector<E, N>],
    others: &[Vector<E, N>],
    query_bias: &[Vector<f32, M>],
    value_bias: &[Vector<f32, M>],
    tiles: &[i32],
    context: &mut [Vector<E, N>],
    logs: &mut [f32],
    count: usize,
    scale: f32,
    #[comptime] heads: usize,
    #[comptime] depth: usize,
    #[comptime] queries_width: usize,
    #[comptime] others_width: usize,
    #[comptime] keys_begin: usize,
    #[define(E)] _element: ElemType,
) {
    let width = comptime!(heads * depth);
    let mut keys = Shared::<[Vector<E, N>]>::new_slice(comptime!(AHEAD * (depth + 1)));
    let mut values = Shared::<[Vector<E, N>]>::new_slice(comptime!(AHEAD * (depth + 1)));
    let head = CUBE_POS % heads;
    let column = head * depth;
    let tile = tile_of(tiles, CUBE_POS / heads, count);
    let (begin, in_row) = (tile.begin + own_row(), in_row());
    let is_one = begin < tile.end;

    share_biased(
        queries,
        query_bias,
        &mut keys,
        tile.begin * queries_width + column,
        column,
        tile.end - tile.begin,
        queries_width,
        depth,
    );
    sync_cube();
    let query = own::<E, N>(&keys, depth);
    sync_cube();

    let mut found = Array::<Vector<f32, Const<2>>>::new(comptime!(2 * depth));
    zeros(&mut found, comptime!(2 * depth));
    let mut highest = Array::<f32>::new(2usize);
    let mut sum = Array::<f32>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        highest[half] = f32::new(LOWEST);
        sum[half] = 0.0f32;
    }
    let mut first = tile.first;
    while first < tile.last {
        let rows = least(AHEAD, tile.last - first);
        let asked = first * others_width + keys_begin + column;
        share(others, &mut keys, asked, rows, others_width, depth);
        share(
            others,
            &mut values,
            asked + width,
            rows,
            others_width,
            depth,
        );
        sync_cube();
        if is_one {
            let mut near = 0usize;
            while near < rows {
                // Of 32 rows: of each 8, the upper half and the lower.
                let mut scores = Array::<Vector<f32, Const<2>>>::new(8usize);
                zeros(&mut scores, 8usize);
                along::<E, N>(&query, &keys, near, &mut scores, 0, depth);
                along::<E, N>(&query, &keys, near + 16, &mut scores, 4, depth);
                if near + 32 > rows {
                    #[unroll]
                    for place in 0..8usize {
                        let column = near + place / 2 * 8 + in_row;
                        scores[place] = masked(scores[place], column, rows, f32::new(LOWEST));
                    }
                }
                #[unroll]
                for half in 0..2usize {
                    let before = highest[half];
                    let mut most = before;
                    #[unroll]
                    for eighth in 0..4usize {
                        let score = scores[2 * eighth + half];
                        most = largest(most, largest(score.extract(0usize), score.extract(1usize)));
                    }
                    most = largest(most, plane_shuffle_xor(most, 1u32));
                    most = largest(most, plane_shuffle_xor(most, 2u32));
                    let factor = (before * scale - most * scale).exp();
                    let mut weights = sum[half] * factor;
                    #[unroll]
                    for eighth in 0..4usize {
                        let place = 2 * eighth + half;
                        let score = scores[place] * Vector::new(scale);
                        let weight = (score - Vector::new(most * scale)).exp();
                        weights += across(weight);
                        scores[place] = weight;
                    }
                    #[unroll]
                    for at in 0..depth {
                        found[2 * at + half] *= Vector::new(factor);
                    }
                    highest[half] = most;
                    sum[half] = weights;
                }
                add_times::<E, N>(&scores, 0, &values, near, &mut found, depth);
                add_times::<E, N>(&scores, 4, &values, near + 16, &mut found, depth);
                near += 32;
            }
        }
        sync_cube();
        first += AHEAD;
    }
    if is_one {
        let bias = value_bias.with_vector_size::<Const<2>>();
        let context = context.with_vector_size_mut::<Const<2>>();
        #[unroll]
        for half in 0..2usize {
            let sum = over_row(sum[half]);
            let row = begin + lane() / 4 + 8 * half;
            if row < tile.end {
                // Padding attends to nothing, and finds nothing.
                let is_any = sum > 0.0f32;
                let share = select(is_any, 1.0f32 / sum, 0.0f32);
                let one = select(is_any, 1.0f32, 0.0f32);
                if in_row == 0 {
                    logs[row * heads + head] =
                        select(is_any, highest[half] * scale + sum.ln(), 0.0f32);
                }
                #[unroll]
                for at in 0..depth {
                    let there = (4 * (column + at)) + in_row / 2;
                    let value = found[2 * at + half] * Vector::new(share);
                    let value = value + bias[there] * Vector::new(one);
                    context[4 * row * width + there] = Vector::cast_from(value);
                }
            }
        }
    }
}

/// As [`crate::gpu::attend::queries_back()`].
#[cube(launch)]
pub(super) fn queries_back<E: Float, N: Size, M: Size>(
    queries: &[Vector<E, N>],
    others: &[Vector<E, N>],
    query_bias: &[Vector<f32, M>],
    value_bias: &[Vector<f32, M>],
    tiles: &[i32],
    slopes: &[Vector<E, N>],
    context: &[Vector<E, N>],
    logs: &[f32],
    of_queries: &mut [Vector<E, N>],
    means: &mut [f32],
    count: usize,
    scale: f32,
    #[comptime] heads: usize,
    #[comptime] depth: usize,
    #[comptime] queries_width: usize,
    #[comptime] others_width: usize,
    #[comptime] keys_begin: usize,
    #[define(E)] _element: ElemType,
) {
    let width = comptime!(heads * depth);
    let mut keys = Shared::<[Vector<E, N>]>::new_slice(comptime!(AHEAD * (depth + 1)));
    let mut values = Shared::<[Vector<E, N>]>::new_slice(comptime!(AHEAD * (depth + 1)));
    let head = CUBE_POS % heads;
    let column = head * depth;
    let tile = tile_of(tiles, CUBE_POS / heads, count);
    let (begin, in_row) = (tile.begin + own_row(), in_row());
    let is_one = begin < tile.end;

    let rows = tile.end - tile.begin;
    share_biased(
        queries,
        query_bias,
        &mut keys,
        tile.begin * queries_width + column,
        column,
        rows,
        queries_width,
        depth,
    );
    let asking = tile.begin * width + column;
    share(slopes, &mut values, asking, rows, width, depth);
    sync_cube();
    let query = own::<E, N>(&keys, depth);
    let slope = own::<E, N>(&values, depth);
    sync_cube();

    let mut log = Array::<f32>::new(2usize);
    let mut mean = Array::<f32>::new(2usize);
    let bias = value_bias.with_vector_size::<Const<2>>();
    let context = context.with_vector_size::<Const<2>>();
    #[unroll]
    for half in 0..2usize {
        let row = begin + lane() / 4 + 8 * half;
        let read = select(row < tile.end, row, tile.begin);
        let mut product = Vector::<f32, Const<2>>::new(0.0f32);
        #[unroll]
        for at in 0..depth {
            let there = 4 * (column + at) + in_row / 2;
            let found = Vector::<f32, Const<2>>::cast_from(context[4 * read * width + there]);
            // Of each 16 columns, the first eight of both halves come before the others.
            let slope = slope[at / 2 * 4 + at % 2 * 2 + half];
            product += Vector::cast_from(slope) * (found - bias[there]);
        }
        mean[half] = over_row(across(product));
        log[half] = logs[read * heads + head];
    }

    let mut found = Array::<Vector<f32, Const<2>>>::new(comptime!(2 * depth));
    zeros(&mut found, comptime!(2 * depth));
    let mut first = tile.first;
    while first < tile.last {
        let rows = least(AHEAD, tile.last - first);
        let asked = first * others_width + keys_begin + column;
        share(others, &mut keys, asked, rows, others_width, depth);
        share(
            others,
            &mut values,
            asked + width,
            rows,
            others_width,
            depth,
        );
        sync_cube();
        if is_one {
            let mut near = 0usize;
            while near < rows {
                let mut scores = Array::<Vector<f32, Const<2>>>::new(4usize);
                let mut of_weights = Array::<Vector<f32, Const<2>>>::new(4usize);
                zeros(&mut scores, 4usize);
                zeros(&mut of_weights, 4usize);
                along::<E, N>(&query, &keys, near, &mut scores, 0, depth);
                along::<E, N>(&slope, &values, near, &mut of_weights, 0, depth);
                #[unroll]
                for half in 0..2usize {
                    #[unroll]
                    for eighth in 0..2usize {
                        let place = 2 * eighth + half;
                        let score = scores[place] * Vector::new(scale);
                        let weight = (score - Vector::new(log[half])).exp();
                        scores[place] = (of_weights[place] - Vector::new(mean[half])) * weight;
                    }
                }
                if near + 16 > rows {
                    #[unroll]
                    for place in 0..4usize {
                        let column = near + place / 2 * 8 + in_row;
                        scores[place] = masked(scores[place], column, rows, 0.0f32);
                    }
                }
                add_times::<E, N>(&scores, 0, &keys, near, &mut found, depth);
                near += 16;
            }
        }
        sync_cube();
        first += AHEAD;
    }
    if is_one {
        let of_queries = of_queries.with_vector_size_mut::<Const<2>>();
        #[unroll]
        for half in 0..2usize {
            let row = begin + lane() / 4 + 8 * half;
            if row < tile.end {
                if in_row == 0 {
                    means[row * heads + head] = mean[half];
                }
                #[unroll]
                for at in 0..depth {
                    let there = 4 * (row * queries_width + column + at) + in_row / 2;
                    of_queries[there] =
                        Vector::cast_from(found[2 * at + half] * Vector::new(scale));
                }
            }
        }
    }
}

/// As [`crate::gpu::attend::others_back()`], at both.
#[cube(launch)]
pub(super) fn others_back<E: Float, N: Size, M: Size>(
    queries: &[Vector<E, N>],
    others: &[Vector<E, N>],
    query_bias: &[Vector<f32, M>],
    tiles: &[i32],
    slopes: &[Vector<E, N>],
    logs: &[f32],
    means: &[f32],
    of_others: &mut [Vector<E, N>],
    count: usize,
    scale: f32,
    #[comptime] heads: usize,
    #[comptime] depth: usize,
    #[comptime] queries_width: usize,
    #[comptime] others_width: usize,
    #[comptime] keys_begin: usize,
    #[define(E)] _element: ElemType,
) {
    let width = comptime!(heads * depth);
    let mut asking = Shared::<[Vector<E, N>]>::new_slice(comptime!(AHEAD * (depth + 1)));
    let mut of_found = Shared::<[Vector<E, N>]>::new_slice(comptime!(AHEAD * (depth + 1)));
    let mut their_logs = Shared::<[f32]>::new_slice(AHEAD);
    let mut their_means = Shared::<[f32]>::new_slice(AHEAD);
    let head = CUBE_POS % heads;
    let column = head * depth;
    let tile = tile_of(tiles, CUBE_POS / heads, count);
    let (begin, in_row) = (tile.begin + own_row(), in_row());
    let is_one = begin < tile.end;

    let rows = tile.end - tile.begin;
    let asked = tile.begin * others_width + keys_begin + column;
    share(others, &mut asking, asked, rows, others_width, depth);
    share(
        others,
        &mut of_found,
        asked + width,
        rows,
        others_width,
        depth,
    );
    sync_cube();
    let key = own::<E, N>(&asking, depth);
    let value = own::<E, N>(&of_found, depth);
    sync_cube();

    let mut of_key = Array::<Vector<f32, Const<2>>>::new(comptime!(2 * depth));
    let mut of_value = Array::<Vector<f32, Const<2>>>::new(comptime!(2 * depth));
    zeros(&mut of_key, comptime!(2 * depth));
    zeros(&mut of_value, comptime!(2 * depth));
    let mut first = tile.first;
    while first < tile.last {
        let rows = least(AHEAD, tile.last - first);
        share_biased(
            queries,
            query_bias,
            &mut asking,
            first * queries_width + column,
            column,
            rows,
            queries_width,
            depth,
        );
        share(
            slopes,
            &mut of_found,
            first * width + column,
            rows,
            width,
            depth,
        );
        let unit = UNIT_POS as usize;
        if unit < AHEAD {
            let mut log = f32::new(HIGHEST);
            let mut mean = 0.0f32;
            if unit < rows {
                log = logs[(first + unit) * heads + head];
                mean = means[(first + unit) * heads + head];
            }
            their_logs[unit] = log;
            their_means[unit] = mean;
        }
        sync_cube();
        if is_one {
            let mut near = 0usize;
            while near < rows {
                let mut weights = Array::<Vector<f32, Const<2>>>::new(4usize);
                let mut of_weights = Array::<Vector<f32, Const<2>>>::new(4usize);
                zeros(&mut weights, 4usize);
                zeros(&mut of_weights, 4usize);
                along::<E, N>(&key, &asking, near, &mut weights, 0, depth);
                along::<E, N>(&value, &of_found, near, &mut of_weights, 0, depth);
                #[unroll]
                for eighth in 0..2usize {
                    let mut log = Vector::<f32, Const<2>>::new(0.0f32);
                    let mut mean = Vector::<f32, Const<2>>::new(0.0f32);
                    #[unroll]
                    for which in 0..2usize {
                        let that = near + 8 * eighth + in_row + which;
                        log.insert(which, their_logs[that]);
                        mean.insert(which, their_means[that]);
                    }
                    #[unroll]
                    for half in 0..2usize {
                        let place = 2 * eighth + half;
                        let score = weights[place] * Vector::new(scale);
                        let weight = (score - log).exp();
                        weights[place] = weight;
                        of_weights[place] = (of_weights[place] - mean) * weight;
                    }
                }
                add_times::<E, N>(&weights, 0, &of_found, near, &mut of_value, depth);
                add_times::<E, N>(&of_weights, 0, &asking, near, &mut of_key, depth);
                near += 16;
            }
        }
        sync_cube();
        first += AHEAD;
    }
    if is_one {
        let of_others = of_others.with_vector_size_mut::<Const<2>>();
        #[unroll]
        for half in 0..2usize {
            let row = begin + lane() / 4 + 8 * half;
            if row < tile.end {
                let at_key = row * others_width + keys_begin + column;
                #[unroll]
                for at in 0..depth {
                    let there = 4 * (at_key + at) + in_row / 2;
                    let of_key = of_key[2 * at + half] * Vector::new(scale);
                    of_others[there] = Vector::cast_from(of_key);
                    of_others[there + 4 * width] = Vector::cast_from(of_value[2 * at + half]);
                }
            }
        }
    }
}

#[cube]
fn lane() -> usize {
    UNIT_POS as usize % PLANE
}

/// Where a plane's rows begin in a tile.
#[cube]
fn own_row() -> usize {
    UNIT_POS as usize / PLANE * 16
}

/// Which of eight columns is the first that a unit has.
#[cube]
fn in_row() -> usize {
    lane() % 4 * 2
}

/// The sum over the units that have a row.
#[cube]
fn over_row(value: f32) -> f32 {
    let two = value + plane_shuffle_xor(value, 1u32);
    two + plane_shuffle_xor(two, 2u32)
}

/// Two numbers side by side, or what is in their place where there is no such column.
#[cube]
fn masked(
    two: Vector<f32, Const<2>>,
    column: usize,
    columns: usize,
    instead: f32,
) -> Vector<f32, Const<2>> {
    let mut masked = two;
    #[unroll]
    for which in 0..2usize {
        let is_there = column + which < columns;
        masked.insert(which, select(is_there, two.extract(which), instead));
    }
    masked
}

#[cube]
fn zeros(into: &mut Array<Vector<f32, Const<2>>>, #[comptime] length: usize) {
    #[unroll]
    for at in 0..length {
        into[at] = Vector::new(0.0f32);
    }
}

/// Rows of one head for all units of a cube; those that are not there are 0. Each is a vector longer than it
/// has numbers, so that eight rows lie in all banks.
#[cube]
fn share<E: Float, N: Size>(
    input: &[Vector<E, N>],
    into: &mut Shared<[Vector<E, N>]>,
    begin: usize,
    rows: usize,
    #[comptime] width: usize,
    #[comptime] depth: usize,
) {
    let mut at = UNIT_POS as usize;
    while at < comptime!(AHEAD * depth) {
        let (row, column) = (at / depth, at % depth);
        let mut value = Vector::<E, N>::cast_from(0.0f32);
        if row < rows {
            value = input[begin + row * width + column];
        }
        into[row * (depth + 1) + column] = value;
        at += UNITS;
    }
}

/// Such rows with a bias.
#[cube]
fn share_biased<E: Float, N: Size, M: Size>(
    input: &[Vector<E, N>],
    bias: &[Vector<f32, M>],
    into: &mut Shared<[Vector<E, N>]>,
    begin: usize,
    bias_begin: usize,
    rows: usize,
    #[comptime] width: usize,
    #[comptime] depth: usize,
) {
    let mut at = UNIT_POS as usize;
    while at < comptime!(AHEAD * depth) {
        let (row, column) = (at / depth, at % depth);
        let mut value = Vector::<f32, N>::new(0.0f32);
        if row < rows {
            value = Vector::cast_from(input[begin + row * width + column]);
            #[unroll]
            for half in 0..2usize {
                let bias = bias[2 * (bias_begin + column) + half];
                #[unroll]
                for which in 0..comptime!(VECTOR / 2) {
                    let place = VECTOR / 2 * half + which;
                    value.insert(place, value.extract(place) + bias.extract(which));
                }
            }
        }
        into[row * (depth + 1) + column] = Vector::cast_from(value);
        at += UNITS;
    }
}

/// A plane's own rows: of each 16 columns, the first eight of the upper and of the lower half of the rows, and
/// the others.
#[cube]
fn own<E: Float, N: Size>(
    shared: &Shared<[Vector<E, N>]>,
    #[comptime] depth: usize,
) -> Array<Vector<E, Const<2>>> {
    let mut rows = Array::<Vector<E, Const<2>>>::new(comptime!(2 * depth));
    #[unroll]
    for at in 0..comptime!(depth / 2) {
        let block = block::<E, N>(shared, own_row(), 2 * at, depth, false);
        #[unroll]
        for part in 0..4usize {
            rows[4 * at + part] = block[part];
        }
    }
    rows
}

/// 16 columns of 16 rows, in four parts: the upper half's first eight columns, the lower half's, and the
/// others of both.
#[cube]
fn block<E: Float, N: Size>(
    shared: &Shared<[Vector<E, N>]>,
    row: usize,
    column: usize,
    #[comptime] depth: usize,
    #[comptime] transposed: bool,
) -> Array<Vector<E, Const<2>>> {
    let begin = (row + lane() % 16) * (depth + 1) + column + lane() / 16;
    let end = begin + 1;
    let product = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
    product.load_matrix::<Vector<E, N>, Const<2>>(
        &shared[begin..end],
        MatrixIdent::A,
        4usize,
        transposed,
    )
}

/// Adds the products of a plane's own rows and of 16 shared ones.
#[cube]
fn along<E: Float, N: Size>(
    own: &Array<Vector<E, Const<2>>>,
    shared: &Shared<[Vector<E, N>]>,
    row: usize,
    into: &mut Array<Vector<f32, Const<2>>>,
    begin: usize,
    #[comptime] depth: usize,
) {
    #[unroll]
    for at in 0..comptime!(depth / 2) {
        let others = block::<E, N>(shared, row, 2 * at, depth, false);
        let mut left = Array::<Vector<E, Const<2>>>::new(4usize);
        #[unroll]
        for part in 0..4usize {
            left[part] = own[4 * at + part];
        }
        multiply(&left, others[0], others[2], into, begin);
        multiply(&left, others[1], others[3], into, begin + 2);
    }
}

/// Adds 16 shared rows, so many times each.
#[cube]
fn add_times<E: Float, N: Size>(
    times: &Array<Vector<f32, Const<2>>>,
    begin: usize,
    shared: &Shared<[Vector<E, N>]>,
    row: usize,
    into: &mut Array<Vector<f32, Const<2>>>,
    #[comptime] depth: usize,
) {
    let mut left = Array::<Vector<E, Const<2>>>::new(4usize);
    #[unroll]
    for part in 0..4usize {
        left[part] = Vector::cast_from(times[begin + part]);
    }
    #[unroll]
    for at in 0..comptime!(depth / 2) {
        let others = block::<E, N>(shared, row, 2 * at, depth, true);
        multiply(&left, others[0], others[1], into, 4 * at);
        multiply(&left, others[2], others[3], into, 4 * at + 2);
    }
}

/// Adds the product of 16 by 16 numbers and 16 by 8.
#[cube]
fn multiply<E: Float>(
    left: &Array<Vector<E, Const<2>>>,
    upper: Vector<E, Const<2>>,
    lower: Vector<E, Const<2>>,
    into: &mut Array<Vector<f32, Const<2>>>,
    begin: usize,
) {
    let mut right = Array::<Vector<E, Const<2>>>::new(2usize);
    right[0] = upper;
    right[1] = lower;
    let mut sums = Array::<Vector<f32, Const<2>>>::new(2usize);
    sums[0] = into[begin];
    sums[1] = into[begin + 1];
    let product = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
    let sums = product.execute(left, &right, &sums);
    into[begin] = sums[0];
    into[begin + 1] = sums[1];
}
