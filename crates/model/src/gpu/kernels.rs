//! Kernels of a layer of the encoder.
//!
//! Each goes once over what it reads, computes in 32 bits, and rounds what it writes to `E`, what
//! products of matrices are made of. Numbers lie in vectors of `N`; widths are counted in these.
//!
//! Shapes: `R` rows (tokens), `D` hidden width, `H` heads. What heads have of a token lies apart from
//! what they have of the next: `places` says of each row, in four numbers, where the first of its
//! pair's head rows is, how many tokens the pair has, which of them it is, and a fourth that
//! [`super::layout`] explains.

#![expect(
    clippy::needless_range_loop,
    clippy::used_underscore_binding,
    reason = "kernels have indices, not iterators; their macro names the types of operands"
)]

use burn::cubecl;
use burn::cubecl::prelude::*;

use crate::attention::UNSEEN;

/// Below any score.
const LOWEST: f64 = -3e38;

/// One over the root of 2.
const ROOT: f32 = std::f32::consts::FRAC_1_SQRT_2;

/// One over the root of 2 π.
const DENSITY: f32 = 0.398_942_3;

/// Up to three matrices side by side, each `[rows, width]`: `[rows, parts * width]`.
#[cube(launch)]
pub(super) fn side_by_side<E: Float, N: Size>(
    first: &[Vector<f32, N>],
    second: &[Vector<f32, N>],
    third: &[Vector<f32, N>],
    output: &mut [Vector<E, N>],
    units: usize,
    #[comptime] parts: usize,
    #[comptime] width: usize,
    #[define(E)] _element: ElemType,
) {
    if ABSOLUTE_POS < units {
        let row = ABSOLUTE_POS / (parts * width);
        let column = ABSOLUTE_POS % (parts * width);
        let part = column / width;
        let place = row * width + column % width;
        let mut value = first[place];
        if part == 1 {
            value = second[place];
        }
        if part == 2 {
            value = third[place];
        }
        output[ABSOLUTE_POS] = Vector::cast_from(value);
    }
}

/// What [`side_by_side()`] put together, apart: each matrix where it begins in the output.
#[cube(launch)]
pub(super) fn apart<N: Size>(
    input: &[Vector<f32, N>],
    output: &mut [Vector<f32, N>],
    units: usize,
    #[comptime] parts: usize,
    #[comptime] width: usize,
    first: usize,
    second: usize,
    third: usize,
) {
    if ABSOLUTE_POS < units {
        let row = ABSOLUTE_POS / (parts * width);
        let column = ABSOLUTE_POS % (parts * width);
        let part = column / width;
        let mut begin = first;
        if part == 1 {
            begin = second;
        }
        if part == 2 {
            begin = third;
        }
        output[begin + row * width + column % width] = input[ABSOLUTE_POS];
    }
}

/// Rows that `places` names in its fourth number, as they are and as an operand.
#[cube(launch)]
pub(super) fn pick<E: Float, N: Size>(
    input: &[Vector<f32, N>],
    places: &[i32],
    rows: &mut [Vector<f32, N>],
    operands: &mut [Vector<E, N>],
    units: usize,
    #[comptime] width: usize,
    #[comptime] rounds: bool,
    #[define(E)] _element: ElemType,
) {
    if ABSOLUTE_POS < units {
        let row = usize::cast_from(places[ABSOLUTE_POS / width * 4 + 3]);
        let value = input[row * width + ABSOLUTE_POS % width];
        rows[ABSOLUTE_POS] = value;
        if comptime!(rounds) {
            operands[ABSOLUTE_POS] = Vector::cast_from(value);
        }
    }
}

/// Projections, `[R, parts * D]`, with their biases, in head rows: `[parts, total, D / H]`. Those of the
/// first part are scaled.
#[cube(launch)]
pub(super) fn to_heads<E: Float, N: Size>(
    input: &[Vector<E, N>],
    first: &[Vector<f32, N>],
    second: &[Vector<f32, N>],
    third: &[Vector<f32, N>],
    places: &[i32],
    output: &mut [Vector<E, N>],
    units: usize,
    #[comptime] parts: usize,
    #[comptime] width: usize,
    #[comptime] depth: usize,
    total: usize,
    scale: f32,
    #[define(E)] _element: ElemType,
) {
    if ABSOLUTE_POS < units {
        let row = ABSOLUTE_POS / (parts * width);
        let column = ABSOLUTE_POS % (parts * width);
        let part = column / width;
        let within = column % width;
        let mut bias = first[within];
        if part == 1 {
            bias = second[within];
        }
        if part == 2 {
            bias = third[within];
        }
        let mut value = Vector::<f32, N>::cast_from(input[ABSOLUTE_POS]) + bias;
        if part == 0 {
            value *= Vector::new(scale);
        }
        let head_row = head_row(places, row, within / depth);
        output[(part * total + head_row) * depth + within % depth] = Vector::cast_from(value);
    }
}

/// The way back through [`to_heads()`], and of each chunk of rows the sums, for the biases.
#[cube(launch)]
pub(super) fn out_of_heads<E: Float, N: Size>(
    input: &[Vector<E, N>],
    places: &[i32],
    output: &mut [Vector<E, N>],
    sums: &mut [Vector<f32, N>],
    rows: usize,
    chunk: usize,
    #[comptime] parts: usize,
    #[comptime] width: usize,
    #[comptime] depth: usize,
    total: usize,
    scale: f32,
    sums_width: usize,
    sums_begin: usize,
    sums_apart: usize,
    #[define(E)] _element: ElemType,
) {
    let column = ABSOLUTE_POS_X as usize;
    if column < parts * width {
        let part = column / width;
        let within = column % width;
        let mut factor = 1.0f32;
        if part == 0 {
            factor = scale;
        }
        let number = CUBE_POS_Y as usize;
        let begin = number * chunk;
        let end = least(begin + chunk, rows);
        let mut sum = Vector::<f32, N>::new(0.0f32);
        for row in begin..end {
            let head_row = head_row(places, row, within / depth);
            let read = input[(part * total + head_row) * depth + within % depth];
            let value = Vector::<f32, N>::cast_from(read) * Vector::new(factor);
            output[row * parts * width + column] = Vector::cast_from(value);
            sum += value;
        }
        sums[number * sums_width + sums_begin + part * sums_apart + within] = sum;
    }
}

/// Of scores, each row's highest taken off, the exponentials in their place, and each row's sum.
#[cube(launch)]
pub(super) fn exponentials<E: Float, N: Size>(
    scores: &mut [Vector<E, N>],
    mask: &[Vector<f32, N>],
    sums: &mut [f32],
    rows: usize,
    width: usize,
    rows_of_pair: usize,
    mask_begin: usize,
    sums_begin: usize,
    #[comptime] lanes: usize,
    #[comptime] side: usize,
    #[define(E)] _element: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(lanes * side);
    let lane = UNIT_POS_X as usize;
    let row = CUBE_POS * side + UNIT_POS_Y as usize;
    let begin = row * width;
    let seen = mask_begin + row / rows_of_pair * width;
    let mut highest = f32::new(LOWEST);
    if row < rows {
        let mut at = lane;
        while at < width {
            let score = Vector::<f32, N>::cast_from(scores[begin + at]) + added(mask[seen + at]);
            highest = largest(highest, highest_within(score));
            at += lanes;
        }
    }
    let highest = over_lanes(highest, &mut scratch, lanes, true);
    let mut sum = 0.0f32;
    if row < rows {
        let mut at = lane;
        while at < width {
            let score = Vector::<f32, N>::cast_from(scores[begin + at]) + added(mask[seen + at]);
            let value = (score - Vector::new(highest)).exp();
            scores[begin + at] = Vector::cast_from(value);
            sum += across(value);
            at += lanes;
        }
    }
    let sum = over_lanes(sum, &mut scratch, lanes, false);
    if row < rows && lane == 0 {
        sums[sums_begin + row] = sum;
    }
}

/// What heads found, over the sums of their rows, side by side: `[R, D]`.
#[cube(launch)]
pub(super) fn context<E: Float, N: Size>(
    input: &[Vector<E, N>],
    sums: &[f32],
    places: &[i32],
    output: &mut [Vector<E, N>],
    units: usize,
    #[comptime] width: usize,
    #[comptime] depth: usize,
    #[define(E)] _element: ElemType,
) {
    if ABSOLUTE_POS < units {
        let within = ABSOLUTE_POS % width;
        let head_row = head_row(places, ABSOLUTE_POS / width, within / depth);
        let value = Vector::<f32, N>::cast_from(input[head_row * depth + within % depth]);
        let value = value / Vector::new(sums[head_row]);
        output[ABSOLUTE_POS] = Vector::cast_from(value);
    }
}

/// The slopes at what [`context()`] was given, in head rows, and of each head row the product of its
/// slopes and its context: the mean that the way back through softmax takes. Lanes are at least as many as
/// a head row has vectors.
#[cube(launch)]
pub(super) fn context_back<E: Float, N: Size>(
    slopes: &[Vector<E, N>],
    context: &[Vector<E, N>],
    sums: &[f32],
    places: &[i32],
    output: &mut [Vector<E, N>],
    means: &mut [f32],
    rows: usize,
    #[comptime] heads: usize,
    #[comptime] depth: usize,
    #[comptime] lanes: usize,
    #[comptime] side: usize,
    #[define(E)] _element: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(lanes * side);
    let lane = UNIT_POS_X as usize;
    let number = CUBE_POS * side + UNIT_POS_Y as usize;
    // Beyond the last, the last again, which is not written.
    let of_head = least(number, rows - 1);
    let head_row = head_row(places, of_head / heads, of_head % heads);
    let mut product = 0.0f32;
    if number < rows && lane < depth {
        let at = of_head * depth + lane;
        let slope = Vector::<f32, N>::cast_from(slopes[at]) / Vector::new(sums[head_row]);
        product = across(slope * Vector::<f32, N>::cast_from(context[at]));
        output[head_row * depth + lane] = Vector::cast_from(slope);
    }
    let mean = over_lanes(product, &mut scratch, lanes, false);
    if number < rows && lane == 0 {
        means[head_row] = mean;
    }
}

/// The slopes at scores, in the place of those at the weights that they became.
#[cube(launch)]
pub(super) fn exponentials_back<E: Float, N: Size>(
    slopes: &mut [Vector<E, N>],
    exponentials: &[Vector<E, N>],
    means: &[f32],
    units: usize,
    width: usize,
    means_begin: usize,
    #[define(E)] _element: ElemType,
) {
    if ABSOLUTE_POS < units {
        let mean = Vector::<f32, N>::new(means[means_begin + ABSOLUTE_POS / width]);
        let slope = Vector::<f32, N>::cast_from(slopes[ABSOLUTE_POS]) - mean;
        let weight = Vector::<f32, N>::cast_from(exponentials[ABSOLUTE_POS]);
        slopes[ABSOLUTE_POS] = Vector::cast_from(slope * weight);
    }
}

/// A product, its bias and a residual, normalised: as it is scaled and shifted, the same as an operand,
/// and what the way back takes: rows before scale and shift, and one over their standard deviations.
#[cube(launch)]
pub(super) fn add_and_norm<E: Float, N: Size>(
    product: &[Vector<E, N>],
    bias: &[Vector<f32, N>],
    residual: &[Vector<f32, N>],
    scale: &[Vector<f32, N>],
    shift: &[Vector<f32, N>],
    output: &mut [Vector<f32, N>],
    operand: &mut [Vector<E, N>],
    normed: &mut [Vector<f32, N>],
    inverses: &mut [f32],
    rows: usize,
    width: usize,
    count: f32,
    epsilon: f32,
    #[comptime] lanes: usize,
    #[comptime] side: usize,
    #[comptime] rounds: bool,
    #[define(E)] _element: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(lanes * side);
    let lane = UNIT_POS_X as usize;
    let row = CUBE_POS * side + UNIT_POS_Y as usize;
    let begin = row * width;
    let mut sum = 0.0f32;
    if row < rows {
        let mut at = lane;
        while at < width {
            let product = Vector::<f32, N>::cast_from(product[begin + at]);
            let value = product + bias[at] + residual[begin + at];
            // Each lane reads again what it wrote itself.
            normed[begin + at] = value;
            sum += across(value);
            at += lanes;
        }
    }
    let mean = over_lanes(sum, &mut scratch, lanes, false) / count;
    let mut squares = 0.0f32;
    if row < rows {
        let mut at = lane;
        while at < width {
            let centred = normed[begin + at] - Vector::new(mean);
            squares += across(centred * centred);
            at += lanes;
        }
    }
    let variance = over_lanes(squares, &mut scratch, lanes, false) / count;
    let inverse = 1.0f32 / (variance + epsilon).sqrt();
    if row < rows {
        let mut at = lane;
        while at < width {
            let value = (normed[begin + at] - Vector::new(mean)) * Vector::new(inverse);
            normed[begin + at] = value;
            let value = value * scale[at] + shift[at];
            output[begin + at] = value;
            if comptime!(rounds) {
                operand[begin + at] = Vector::cast_from(value);
            }
            at += lanes;
        }
        if lane == 0 {
            inverses[row] = inverse;
        }
    }
}

/// The way back through a layer norm, of a chunk of rows: the slopes at its input, the same as an
/// operand, and the sums for scale, shift and the bias that was added before it.
#[cube(launch)]
pub(super) fn norm_back<E: Float, N: Size>(
    slopes: &[Vector<f32, N>],
    product: &[Vector<E, N>],
    normed: &[Vector<f32, N>],
    inverses: &[f32],
    scale: &[Vector<f32, N>],
    output: &mut [Vector<f32, N>],
    operand: &mut [Vector<E, N>],
    sums: &mut [Vector<f32, N>],
    rows: usize,
    chunk: usize,
    count: f32,
    sums_width: usize,
    of_scale: usize,
    of_shift: usize,
    of_bias: usize,
    #[comptime] width: usize,
    #[comptime] lanes: usize,
    #[comptime] adds: bool,
    #[comptime] rounds: bool,
    #[define(E)] _element: ElemType,
) {
    let mut scratch = Shared::<[Vector<f32, Const<2>>]>::new_slice(lanes);
    let mut own = Shared::<[Vector<f32, N>]>::new_slice(3 * width);
    let lane = UNIT_POS_X as usize;
    let mut at = lane;
    while at < width {
        own[at] = Vector::new(0.0f32);
        own[width + at] = Vector::new(0.0f32);
        own[2 * width + at] = Vector::new(0.0f32);
        at += lanes;
    }
    let begin = CUBE_POS * chunk;
    let end = least(begin + chunk, rows);
    for row in begin..end {
        let mut sum = 0.0f32;
        let mut along = 0.0f32;
        let mut at = lane;
        while at < width {
            let place = row * width + at;
            let mut slope = slopes[place];
            if comptime!(adds) {
                slope += Vector::<f32, N>::cast_from(product[place]);
            }
            own[at] += slope * normed[place];
            own[width + at] += slope;
            let scaled = slope * scale[at];
            sum += across(scaled);
            along += across(scaled * normed[place]);
            at += lanes;
        }
        // Both at once.
        let mut both = Vector::<f32, Const<2>>::new(sum);
        both.insert(1usize, along);
        let both = pairs_over_lanes(both, &mut scratch);
        let mean = both.extract(0usize) / count;
        let along = both.extract(1usize) / count;
        let inverse = inverses[row];
        let mut at = lane;
        while at < width {
            let place = row * width + at;
            let mut slope = slopes[place];
            if comptime!(adds) {
                slope += Vector::<f32, N>::cast_from(product[place]);
            }
            let centred =
                slope * scale[at] - Vector::new(mean) - normed[place] * Vector::new(along);
            let value = centred * Vector::new(inverse);
            own[2 * width + at] += value;
            output[place] = value;
            if comptime!(rounds) {
                operand[place] = Vector::cast_from(value);
            }
            at += lanes;
        }
    }
    let mut at = lane;
    let first = CUBE_POS * sums_width;
    while at < width {
        sums[first + of_scale + at] = own[at];
        sums[first + of_shift + at] = own[width + at];
        sums[first + of_bias + at] = own[2 * width + at];
        at += lanes;
    }
}

/// GELU of a product and its bias.
#[cube(launch)]
pub(super) fn gelu<E: Float, N: Size>(
    product: &[Vector<E, N>],
    bias: &[Vector<f32, N>],
    output: &mut [Vector<E, N>],
    units: usize,
    #[comptime] width: usize,
    #[define(E)] _element: ElemType,
) {
    if ABSOLUTE_POS < units {
        let input = Vector::<f32, N>::cast_from(product[ABSOLUTE_POS]) + bias[ABSOLUTE_POS % width];
        output[ABSOLUTE_POS] = Vector::cast_from(input * cumulative(input));
    }
}

/// The slopes at the input of [`gelu()`], in the place of those at its output, and of each chunk of rows
/// the sums, for the bias.
#[cube(launch)]
pub(super) fn gelu_back<E: Float, N: Size>(
    slopes: &mut [Vector<E, N>],
    product: &[Vector<E, N>],
    bias: &[Vector<f32, N>],
    sums: &mut [Vector<f32, N>],
    rows: usize,
    chunk: usize,
    #[comptime] width: usize,
    sums_width: usize,
    sums_begin: usize,
    #[define(E)] _element: ElemType,
) {
    let column = ABSOLUTE_POS_X as usize;
    if column < width {
        let bias = bias[column];
        let number = CUBE_POS_Y as usize;
        let begin = number * chunk;
        let end = least(begin + chunk, rows);
        let mut sum = Vector::<f32, N>::new(0.0f32);
        for row in begin..end {
            let place = row * width + column;
            let input = Vector::<f32, N>::cast_from(product[place]) + bias;
            let density = (input * input * Vector::new(-0.5f32)).exp() * Vector::new(DENSITY);
            let slope = cumulative(input) + input * density;
            let value = Vector::<f32, N>::cast_from(slopes[place]) * slope;
            slopes[place] = Vector::cast_from(value);
            sum += value;
        }
        sums[number * sums_width + sums_begin + column] = sum;
    }
}

/// The sums of all chunks: `[chunks, width]`, of which the output has the columns from where it begins.
#[cube(launch)]
pub(super) fn over_chunks(
    sums: &[f32],
    output: &mut [f32],
    chunks: usize,
    width: usize,
    begin: usize,
    #[comptime] lanes: usize,
    #[comptime] side: usize,
) {
    let mut scratch = Shared::<[f32]>::new_slice(lanes * side);
    let column = ABSOLUTE_POS_X as usize;
    let mut sum = 0.0f32;
    if column < width {
        let mut chunk = UNIT_POS_Y as usize;
        while chunk < chunks {
            sum += sums[chunk * width + column];
            chunk += side;
        }
    }
    scratch[UNIT_POS_Y as usize * lanes + UNIT_POS_X as usize] = sum;
    sync_cube();
    if UNIT_POS_Y == 0 && column < width {
        let mut sum = 0.0f32;
        for row in 0..side {
            sum += scratch[row * lanes + UNIT_POS_X as usize];
        }
        output[begin + column] = sum;
    }
}

/// A product and what is added to it: to all rows, or to those of first tokens, which the fourth number
/// of `places` counts.
#[cube(launch)]
pub(super) fn add<E: Float, N: Size>(
    product: &[Vector<E, N>],
    residual: &[Vector<f32, N>],
    other: &[Vector<E, N>],
    places: &[i32],
    output: &mut [Vector<f32, N>],
    units: usize,
    #[comptime] width: usize,
    #[comptime] to_first: bool,
    #[define(E)] _element: ElemType,
) {
    if ABSOLUTE_POS < units {
        let mut value = Vector::<f32, N>::cast_from(product[ABSOLUTE_POS]);
        if comptime!(to_first) {
            let place = ABSOLUTE_POS / width * 4;
            if places[place + 2] == 0 {
                let pair = usize::cast_from(places[place + 3]);
                let at = pair * width + ABSOLUTE_POS % width;
                value += residual[at] + Vector::<f32, N>::cast_from(other[at]);
            }
        } else {
            value += residual[ABSOLUTE_POS];
        }
        output[ABSOLUTE_POS] = value;
    }
}

/// Parameters after a step: what is kept of them, less their share of a direction. The input is what lies
/// in `direction` and `output` from `begin` on; of what begins at `whole` or behind it, all is kept.
#[cube(launch)]
pub(super) fn moved<N: Size>(
    input: &[Vector<f32, N>],
    direction: &[Vector<f32, N>],
    output: &mut [Vector<f32, N>],
    units: usize,
    begin: usize,
    whole: usize,
    kept: f32,
    share: f32,
) {
    if ABSOLUTE_POS < units {
        let at = begin + ABSOLUTE_POS;
        let factor = select(at < whole, kept, 1.0f32);
        let before = input[ABSOLUTE_POS] * Vector::new(factor);
        output[at] = before - direction[at] * Vector::new(share);
    }
}

/// The head row of a row's head.
#[cube]
fn head_row(places: &[i32], row: usize, head: usize) -> usize {
    let first = usize::cast_from(places[row * 4]);
    let tokens = usize::cast_from(places[row * 4 + 1]);
    first + head * tokens + usize::cast_from(places[row * 4 + 2])
}

#[cube]
fn least(one: usize, other: usize) -> usize {
    select(one < other, one, other)
}

#[cube]
fn largest(one: f32, other: f32) -> f32 {
    select(one > other, one, other)
}

/// What a mask, 1 for a token and 0 for padding, adds to scores.
#[cube]
fn added<N: Size>(mask: Vector<f32, N>) -> Vector<f32, N> {
    (Vector::new(1.0f32) - mask) * Vector::new(f32::new(UNSEEN))
}

/// Φ.
#[cube]
fn cumulative<N: Size>(input: Vector<f32, N>) -> Vector<f32, N> {
    let error = (input * Vector::new(ROOT)).erf();
    (error + Vector::new(1.0f32)) * Vector::new(0.5f32)
}

/// The sum of a vector's numbers.
#[cube]
fn across<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for place in 0..N::value() {
        sum += vector.extract(place);
    }
    sum
}

/// The largest of a vector's numbers.
#[cube]
fn highest_within<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut highest = f32::new(LOWEST);
    #[unroll]
    for place in 0..N::value() {
        highest = largest(highest, vector.extract(place));
    }
    highest
}

/// The sum, or the largest, of what the lanes of a row have, for each of them.
#[cube]
fn over_lanes(
    value: f32,
    scratch: &mut Shared<[f32]>,
    #[comptime] lanes: usize,
    #[comptime] of_highest: bool,
) -> f32 {
    let lane = UNIT_POS_X as usize;
    let begin = UNIT_POS_Y as usize * lanes;
    // What was there before, all have read.
    sync_cube();
    scratch[begin + lane] = value;
    sync_cube();
    let mut half = CUBE_DIM_X as usize / 2;
    while half > 0 {
        if lane < half {
            let one = scratch[begin + lane];
            let other = scratch[begin + lane + half];
            if comptime!(of_highest) {
                scratch[begin + lane] = largest(one, other);
            } else {
                scratch[begin + lane] = one + other;
            }
        }
        sync_cube();
        half /= 2;
    }
    scratch[begin]
}

/// The sums of what the lanes of a row, the only one of a cube, have, for each of them.
#[cube]
fn pairs_over_lanes(
    value: Vector<f32, Const<2>>,
    scratch: &mut Shared<[Vector<f32, Const<2>>]>,
) -> Vector<f32, Const<2>> {
    let lane = UNIT_POS_X as usize;
    // What was there before, all have read.
    sync_cube();
    scratch[lane] = value;
    sync_cube();
    let mut half = CUBE_DIM_X as usize / 2;
    while half > 0 {
        if lane < half {
            let other = scratch[lane + half];
            scratch[lane] += other;
        }
        sync_cube();
        half /= 2;
    }
    scratch[0]
}
