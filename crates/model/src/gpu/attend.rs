//! Kernels of attention between tokens of pairs of any length, which lie side by side without padding.
//!
//! A unit has a row, one token's part in one head: its query, say, and what becomes of it, in registers.
//! A cube has up to [`ROWS`] rows of one pair, and takes what they attend to [`AHEAD`] rows at a time into
//! memory that its units share, where all read the same number at the same time. Scores are computed
//! where they are needed, there and again on the way back, and never written: Dao et al., `FlashAttention`,
//! 2022, arXiv 2205.14135.
//!
//! Rows are computed with in 32 bits. `tiles` has four numbers for each tile: which rows it has, from and
//! up to, and which rows these attend to, or are attended to by.
//!
//! Shapes, in vectors of `N`: `R` rows that ask, `D` hidden width, `H` heads of `depth`. Projections are
//! without their biases; queries are a matrix of their own or the first `D` columns of the others'.

#![expect(
    clippy::used_underscore_binding,
    reason = "their macro names the types of operands"
)]

use burn::cubecl;
use burn::cubecl::prelude::*;

use super::kernels::{across, least};

/// Rows of a tile, at most.
pub(super) const ROWS: usize = 64;

/// The widest part of a head whose keys, values and slopes at both are in registers at once.
pub(super) const BOTH: usize = 32;

/// Rows that are in shared memory at once: of each two vectors.
const AHEAD: usize = 16;

/// Scores that a unit has at once.
const SCORES: usize = 8;

/// Below any score.
pub(super) const LOWEST: f64 = -3e38;

/// What each row that asks finds, `[R, D]`, and the logarithm of the sum of its exponentials, `[R, H]`.
#[cube(launch)]
pub(super) fn attend<E: Float, N: Size>(
    queries: &[Vector<E, N>],
    others: &[Vector<E, N>],
    query_bias: &[Vector<f32, N>],
    key_bias: &[Vector<f32, N>],
    value_bias: &[Vector<f32, N>],
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
    let mut keys = Shared::<[Vector<f32, N>]>::new_slice(comptime!(AHEAD * depth));
    let mut values = Shared::<[Vector<f32, N>]>::new_slice(comptime!(AHEAD * depth));
    let head = CUBE_POS % heads;
    let column = head * depth;
    let tile = tile_of(tiles, CUBE_POS / heads, count);
    let row = tile.begin + UNIT_POS as usize;
    let read = select(row < tile.end, row, tile.begin);

    let mut query = Array::<Vector<f32, N>>::new(depth);
    let mut found = Array::<Vector<f32, N>>::new(depth);
    #[unroll]
    for at in 0..depth {
        let own = Vector::<f32, N>::cast_from(queries[read * queries_width + column + at]);
        query[at] = (own + query_bias[column + at]) * Vector::new(scale);
        found[at] = Vector::new(0.0f32);
    }
    let mut highest = f32::new(LOWEST);
    let mut sum = 0.0f32;
    let mut first = tile.first;
    while first < tile.last {
        let rows = least(AHEAD, tile.last - first);
        share_asked(
            others,
            key_bias,
            value_bias,
            &mut keys,
            &mut values,
            first,
            rows,
            column,
            width,
            others_width,
            keys_begin,
            depth,
        );
        if row < tile.end {
            let mut near = 0usize;
            while near < rows {
                let mut scores = Array::<f32>::new(SCORES);
                let before = highest;
                #[unroll]
                for place in 0..SCORES {
                    let score = along(query, &keys, (near + place) * depth, depth);
                    let score = select(near + place < rows, score, f32::new(LOWEST));
                    scores[place] = score;
                    highest = largest(highest, score);
                }
                let factor = (before - highest).exp();
                sum *= factor;
                #[unroll]
                for at in 0..depth {
                    found[at] *= Vector::new(factor);
                }
                #[unroll]
                for place in 0..SCORES {
                    let weight = (scores[place] - highest).exp();
                    sum += weight;
                    add_times(&mut found, &values, (near + place) * depth, weight, depth);
                }
                near += SCORES;
            }
        }
        first += AHEAD;
    }
    if row < tile.end {
        // Padding attends to nothing, and finds nothing.
        let is_any = sum > 0.0f32;
        let share = select(is_any, 1.0f32 / sum, 0.0f32);
        logs[row * heads + head] = select(is_any, highest + sum.ln(), 0.0f32);
        #[unroll]
        for at in 0..depth {
            context[row * width + column + at] = Vector::cast_from(found[at] * Vector::new(share));
        }
    }
}

/// The slopes at queries, from those at what they found, and each row's mean slope, `[R, H]`.
#[cube(launch)]
pub(super) fn queries_back<E: Float, N: Size>(
    queries: &[Vector<E, N>],
    others: &[Vector<E, N>],
    query_bias: &[Vector<f32, N>],
    key_bias: &[Vector<f32, N>],
    value_bias: &[Vector<f32, N>],
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
    let mut keys = Shared::<[Vector<f32, N>]>::new_slice(comptime!(AHEAD * depth));
    let mut values = Shared::<[Vector<f32, N>]>::new_slice(comptime!(AHEAD * depth));
    let head = CUBE_POS % heads;
    let column = head * depth;
    let tile = tile_of(tiles, CUBE_POS / heads, count);
    let row = tile.begin + UNIT_POS as usize;
    let read = select(row < tile.end, row, tile.begin);

    let mut query = Array::<Vector<f32, N>>::new(depth);
    let mut slope = Array::<Vector<f32, N>>::new(depth);
    let mut found = Array::<Vector<f32, N>>::new(depth);
    let mut product = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for at in 0..depth {
        let own = Vector::<f32, N>::cast_from(queries[read * queries_width + column + at]);
        query[at] = (own + query_bias[column + at]) * Vector::new(scale);
        slope[at] = Vector::cast_from(slopes[read * width + column + at]);
        product += slope[at] * Vector::cast_from(context[read * width + column + at]);
        found[at] = Vector::new(0.0f32);
    }
    let mean = across(product);
    let log = logs[read * heads + head];
    let mut first = tile.first;
    while first < tile.last {
        let rows = least(AHEAD, tile.last - first);
        share_asked(
            others,
            key_bias,
            value_bias,
            &mut keys,
            &mut values,
            first,
            rows,
            column,
            width,
            others_width,
            keys_begin,
            depth,
        );
        if row < tile.end {
            for place in 0..rows {
                let weight = (along(query, &keys, place * depth, depth) - log).exp();
                let of_weight = along(slope, &values, place * depth, depth) - mean;
                add_times(&mut found, &keys, place * depth, weight * of_weight, depth);
            }
        }
        first += AHEAD;
    }
    if row < tile.end {
        means[row * heads + head] = mean;
        #[unroll]
        for at in 0..depth {
            of_queries[row * queries_width + column + at] =
                Vector::cast_from(found[at] * Vector::new(scale));
        }
    }
}

/// The slopes at keys, at values, or at both, from those at what was found: tiles have rows that are
/// attended to.
#[cube(launch)]
pub(super) fn others_back<E: Float, N: Size>(
    queries: &[Vector<E, N>],
    others: &[Vector<E, N>],
    query_bias: &[Vector<f32, N>],
    key_bias: &[Vector<f32, N>],
    value_bias: &[Vector<f32, N>],
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
    #[comptime] of_keys: bool,
    #[comptime] of_values: bool,
    #[define(E)] _element: ElemType,
) {
    let width = comptime!(heads * depth);
    let mut asking = Shared::<[Vector<f32, N>]>::new_slice(comptime!(AHEAD * depth));
    let mut of_found = Shared::<[Vector<f32, N>]>::new_slice(comptime!(AHEAD * depth));
    let head = CUBE_POS % heads;
    let column = head * depth;
    let tile = tile_of(tiles, CUBE_POS / heads, count);
    let row = tile.begin + UNIT_POS as usize;
    let read = select(row < tile.end, row, tile.begin);
    let mut key = Array::<Vector<f32, N>>::new(depth);
    let mut value = Array::<Vector<f32, N>>::new(depth);
    let mut of_key = Array::<Vector<f32, N>>::new(depth);
    let mut of_value = Array::<Vector<f32, N>>::new(depth);
    let at_key = read * others_width + keys_begin + column;
    #[unroll]
    for at in 0..depth {
        key[at] = Vector::<f32, N>::cast_from(others[at_key + at]) + key_bias[column + at];
        if comptime!(of_keys) {
            let read = Vector::<f32, N>::cast_from(others[at_key + width + at]);
            value[at] = read + value_bias[column + at];
            of_key[at] = Vector::new(0.0f32);
        }
        if comptime!(of_values) {
            of_value[at] = Vector::new(0.0f32);
        }
    }
    let mut first = tile.first;
    while first < tile.last {
        let rows = least(AHEAD, tile.last - first);
        // What was there before, all have read.
        sync_cube();
        let begin = first * queries_width + column;
        share_biased(
            queries,
            query_bias,
            &mut asking,
            begin,
            column,
            rows,
            scale,
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
        sync_cube();
        if row < tile.end {
            for place in 0..rows {
                let that = (first + place) * heads + head;
                let weight = (along(key, &asking, place * depth, depth) - logs[that]).exp();
                if comptime!(of_values) {
                    add_times(&mut of_value, &of_found, place * depth, weight, depth);
                }
                if comptime!(of_keys) {
                    let of_weight = along(value, &of_found, place * depth, depth) - means[that];
                    add_times(
                        &mut of_key,
                        &asking,
                        place * depth,
                        weight * of_weight,
                        depth,
                    );
                }
            }
        }
        first += AHEAD;
    }
    if row < tile.end {
        #[unroll]
        for at in 0..depth {
            if comptime!(of_keys) {
                of_others[at_key + at] = Vector::cast_from(of_key[at]);
            }
            if comptime!(of_values) {
                of_others[at_key + width + at] = Vector::cast_from(of_value[at]);
            }
        }
    }
}

/// Which rows a cube has, and which these attend to.
#[derive(CubeType)]
pub(super) struct Tile {
    pub(super) begin: usize,
    pub(super) end: usize,
    pub(super) first: usize,
    pub(super) last: usize,
}

/// Of a cube beyond the last tile, none.
#[cube]
pub(super) fn tile_of(tiles: &[i32], number: usize, count: usize) -> Tile {
    let at = least(number, count - 1) * 4;
    let begin = usize::cast_from(tiles[at]);
    let first = usize::cast_from(tiles[at + 2]);
    let is_one = number < count;
    Tile {
        begin,
        end: select(is_one, usize::cast_from(tiles[at + 1]), begin),
        first,
        last: select(is_one, usize::cast_from(tiles[at + 3]), first),
    }
}

/// Keys and values for all units of a cube, which have read those before them.
#[cube]
fn share_asked<E: Float, N: Size>(
    others: &[Vector<E, N>],
    key_bias: &[Vector<f32, N>],
    value_bias: &[Vector<f32, N>],
    keys: &mut Shared<[Vector<f32, N>]>,
    values: &mut Shared<[Vector<f32, N>]>,
    first: usize,
    rows: usize,
    column: usize,
    #[comptime] width: usize,
    #[comptime] others_width: usize,
    #[comptime] keys_begin: usize,
    #[comptime] depth: usize,
) {
    let begin = first * others_width + keys_begin + column;
    sync_cube();
    share_biased(
        others,
        key_bias,
        keys,
        begin,
        column,
        rows,
        1.0f32,
        others_width,
        depth,
    );
    share_biased(
        others,
        value_bias,
        values,
        begin + width,
        column,
        rows,
        1.0f32,
        others_width,
        depth,
    );
    sync_cube();
}

/// Rows for all units of a cube; those that are not there are 0.
#[cube]
fn share<E: Float, N: Size>(
    input: &[Vector<E, N>],
    into: &mut Shared<[Vector<f32, N>]>,
    begin: usize,
    rows: usize,
    #[comptime] width: usize,
    #[comptime] depth: usize,
) {
    let mut at = UNIT_POS as usize;
    while at < comptime!(AHEAD * depth) {
        let mut value = Vector::<f32, N>::new(0.0f32);
        if at < rows * depth {
            value = Vector::cast_from(input[begin + at / depth * width + at % depth]);
        }
        into[at] = value;
        at += ROWS;
    }
}

/// Such rows with a bias, scaled.
#[cube]
fn share_biased<E: Float, N: Size>(
    input: &[Vector<E, N>],
    bias: &[Vector<f32, N>],
    into: &mut Shared<[Vector<f32, N>]>,
    begin: usize,
    column: usize,
    rows: usize,
    scale: f32,
    #[comptime] width: usize,
    #[comptime] depth: usize,
) {
    let mut at = UNIT_POS as usize;
    while at < comptime!(AHEAD * depth) {
        let mut value = Vector::<f32, N>::new(0.0f32);
        if at < rows * depth {
            let read = input[begin + at / depth * width + at % depth];
            value = Vector::cast_from(read) + bias[column + at % depth];
            value *= Vector::new(scale);
        }
        into[at] = value;
        at += ROWS;
    }
}

/// The product of a unit's own row and a shared one.
#[cube]
fn along<N: Size>(
    own: Array<Vector<f32, N>>,
    shared: &Shared<[Vector<f32, N>]>,
    begin: usize,
    #[comptime] depth: usize,
) -> f32 {
    let mut sum = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for at in 0..depth {
        sum = fma(own[at], shared[begin + at], sum);
    }
    across(sum)
}

/// Adds a shared row, so many times.
#[cube]
fn add_times<N: Size>(
    own: &mut Array<Vector<f32, N>>,
    shared: &Shared<[Vector<f32, N>]>,
    begin: usize,
    times: f32,
    #[comptime] depth: usize,
) {
    #[unroll]
    for at in 0..depth {
        own[at] = fma(shared[begin + at], Vector::new(times), own[at]);
    }
}

#[cube]
pub(super) fn largest(one: f32, other: f32) -> f32 {
    select(one > other, one, other)
}
