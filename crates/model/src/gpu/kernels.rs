//! Kernels of the encoder and the head, but for those of attention.
//!
//! Each goes once over what it reads, computes in 32 bits, and rounds what it writes to `E`, what
//! products of matrices are made of. Numbers lie in vectors of `N`; widths are counted in these.
//!
//! Shapes: `R` rows (tokens), `D` hidden width.

#![expect(
    clippy::needless_range_loop,
    clippy::used_underscore_binding,
    reason = "kernels have indices, not iterators; their macro names the types of operands"
)]

use burn::cubecl;
use burn::cubecl::prelude::*;

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

/// A layer's matrices as operands, where they lie: but for the queries', the keys' and the values', of which
/// the last `joined` are side by side. Each of these is `[rows, width]`, and begins `apart` behind the one
/// before it.
#[cube(launch)]
pub(super) fn operands<E: Float, N: Size>(
    input: &[Vector<f32, N>],
    output: &mut [Vector<E, N>],
    units: usize,
    #[comptime] joined: usize,
    #[comptime] rows: usize,
    #[comptime] width: usize,
    #[comptime] apart: usize,
    #[define(E)] _element: ElemType,
) {
    if ABSOLUTE_POS < units {
        let first = comptime!((3 - joined) * apart);
        let mut place = ABSOLUTE_POS;
        let mut is_read = true;
        if place >= first && place < 3 * apart {
            let part = (place - first) / apart;
            let within = (place - first) % apart;
            // Not what lies between two of them.
            is_read = within < rows * width;
            place = first + (within / width * joined + part) * width + within % width;
        }
        if is_read {
            output[place] = Vector::cast_from(input[ABSOLUTE_POS]);
        }
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

/// The rows of these numbers, as they are and as an operand.
#[cube(launch)]
pub(super) fn pick<E: Float, N: Size>(
    input: &[Vector<f32, N>],
    numbers: &[i32],
    rows: &mut [Vector<f32, N>],
    operands: &mut [Vector<E, N>],
    units: usize,
    #[comptime] width: usize,
    #[comptime] rounds: bool,
    #[define(E)] _element: ElemType,
) {
    if ABSOLUTE_POS < units {
        let row = usize::cast_from(numbers[ABSOLUTE_POS / width]);
        let value = input[row * width + ABSOLUTE_POS % width];
        rows[ABSOLUTE_POS] = value;
        if comptime!(rounds) {
            operands[ABSOLUTE_POS] = Vector::cast_from(value);
        }
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
    normalise(
        sum, scale, shift, output, operand, normed, inverses, row, rows, width, count, epsilon,
        lanes, side, rounds,
    );
}

/// The sum of each token's embeddings, normalised: as it is scaled and shifted, and what the way back takes.
/// `ids` has the words of all tokens, then their positions, then their segments.
#[cube(launch)]
pub(super) fn embed<N: Size>(
    words: &[Vector<f32, N>],
    positions: &[Vector<f32, N>],
    segments: &[Vector<f32, N>],
    ids: &[i32],
    scale: &[Vector<f32, N>],
    shift: &[Vector<f32, N>],
    output: &mut [Vector<f32, N>],
    none: &mut [Vector<f32, N>],
    normed: &mut [Vector<f32, N>],
    inverses: &mut [f32],
    rows: usize,
    width: usize,
    count: f32,
    epsilon: f32,
    #[comptime] lanes: usize,
    #[comptime] side: usize,
    #[comptime] has_positions: bool,
    #[comptime] has_segments: bool,
) {
    let lane = UNIT_POS_X as usize;
    let row = CUBE_POS * side + UNIT_POS_Y as usize;
    let mut sum = 0.0f32;
    if row < rows {
        let word = usize::cast_from(ids[row]) * width;
        let position = usize::cast_from(ids[rows + row]) * width;
        let segment = usize::cast_from(ids[2 * rows + row]) * width;
        let mut at = lane;
        while at < width {
            let mut value = words[word + at];
            if comptime!(has_positions) {
                value += positions[position + at];
            }
            if comptime!(has_segments) {
                value += segments[segment + at];
            }
            normed[row * width + at] = value;
            sum += across(value);
            at += lanes;
        }
    }
    normalise(
        sum, scale, shift, output, none, normed, inverses, row, rows, width, count, epsilon, lanes,
        side, false,
    );
}

/// Sums of rows: of those from a chunk's first up to its last in `order`, which has a row's number.
#[cube(launch)]
pub(super) fn gathered<N: Size>(
    input: &[Vector<f32, N>],
    order: &[i32],
    chunks: &[i32],
    output: &mut [Vector<f32, N>],
    units: usize,
    #[comptime] width: usize,
) {
    if ABSOLUTE_POS < units {
        let chunk = ABSOLUTE_POS / width * 2;
        let column = ABSOLUTE_POS % width;
        let mut sum = Vector::<f32, N>::new(0.0f32);
        for place in usize::cast_from(chunks[chunk])..usize::cast_from(chunks[chunk + 1]) {
            sum += input[usize::cast_from(order[place]) * width + column];
        }
        output[ABSOLUTE_POS] = sum;
    }
}

/// Sums of rows that lie side by side: `targets` has where each goes, in numbers of the output, and which
/// rows it is of.
#[cube(launch)]
pub(super) fn scattered<N: Size>(
    input: &[Vector<f32, N>],
    targets: &[i32],
    output: &mut [Vector<f32, N>],
    units: usize,
    #[comptime] width: usize,
    #[comptime] vector: usize,
) {
    if ABSOLUTE_POS < units {
        let target = ABSOLUTE_POS / width * 3;
        let column = ABSOLUTE_POS % width;
        let mut sum = Vector::<f32, N>::new(0.0f32);
        for row in usize::cast_from(targets[target + 1])..usize::cast_from(targets[target + 2]) {
            sum += input[row * width + column];
        }
        output[usize::cast_from(targets[target]) / vector + column] = sum;
    }
}

/// The way back through a layer norm, of a chunk of rows: the slopes at its input, the same as an
/// operand, and the sums for scale, shift and, where one was, the bias that was added before it.
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
    #[comptime] has_bias: bool,
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
        if comptime!(has_bias) {
            sums[first + of_bias + at] = own[2 * width + at];
        }
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
            let value = Vector::<f32, N>::cast_from(slopes[place]) * gelu_slope(input);
            slopes[place] = Vector::cast_from(value);
            sum += value;
        }
        sums[number * sums_width + sums_begin + column] = sum;
    }
}

/// What stands between a head's dense layer and its classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Activation {
    Tanh,
    Gelu,
    Relu,
}

/// A logit of each row of a dense layer's product: its bias, the activation, the classifier.
#[cube(launch)]
pub(super) fn classify<N: Size>(
    product: &[Vector<f32, N>],
    bias: &[Vector<f32, N>],
    weights: &[Vector<f32, N>],
    classifier_bias: &[f32],
    logits: &mut [f32],
    rows: usize,
    width: usize,
    #[comptime] activation: Activation,
    #[comptime] lanes: usize,
    #[comptime] side: usize,
) {
    let mut scratch = Shared::<[f32]>::new_slice(lanes * side);
    let lane = UNIT_POS_X as usize;
    let row = CUBE_POS * side + UNIT_POS_Y as usize;
    let mut sum = 0.0f32;
    if row < rows {
        let mut at = lane;
        while at < width {
            let input = product[row * width + at] + bias[at];
            sum += across(activated(input, activation) * weights[at]);
            at += lanes;
        }
    }
    let logit = over_lanes(sum, &mut scratch, lanes);
    if row < rows && lane == 0 {
        logits[row] = logit + classifier_bias[0];
    }
}

/// The slopes at a dense layer's product, from those at the logits, and of each chunk of rows the sums for
/// the classifier's weights, the dense layer's bias and the classifier's.
#[cube(launch)]
pub(super) fn classify_back<N: Size>(
    slopes: &[f32],
    product: &[Vector<f32, N>],
    bias: &[Vector<f32, N>],
    weights: &[Vector<f32, N>],
    output: &mut [Vector<f32, N>],
    sums: &mut [Vector<f32, N>],
    rows: usize,
    chunk: usize,
    #[comptime] width: usize,
    sums_width: usize,
    of_weights: usize,
    of_bias: usize,
    of_classifier_bias: usize,
    #[comptime] activation: Activation,
) {
    let column = ABSOLUTE_POS_X as usize;
    let number = CUBE_POS_Y as usize;
    let begin = number * chunk;
    let end = least(begin + chunk, rows);
    let place = number * sums_width;
    if column < width {
        let bias = bias[column];
        let weight = weights[column];
        let mut of_weight = Vector::<f32, N>::new(0.0f32);
        let mut sum = Vector::<f32, N>::new(0.0f32);
        for row in begin..end {
            let at = row * width + column;
            let slope = Vector::<f32, N>::new(slopes[row]);
            let input = product[at] + bias;
            let value = slope * weight * slope_of(input, activation);
            of_weight += slope * activated(input, activation);
            sum += value;
            output[at] = value;
        }
        sums[place + of_weights + column] = of_weight;
        sums[place + of_bias + column] = sum;
    }
    if column == width {
        let mut sum = 0.0f32;
        for row in begin..end {
            sum += slopes[row];
        }
        let mut first = Vector::<f32, N>::new(0.0f32);
        first.insert(0usize, sum);
        sums[place + of_classifier_bias] = first;
    }
}

/// Of each chunk of rows, `[rows, parts * width]`, the sums of the columns.
#[cube(launch)]
pub(super) fn columns<E: Float, N: Size>(
    input: &[Vector<E, N>],
    sums: &mut [Vector<f32, N>],
    rows: usize,
    chunk: usize,
    #[comptime] parts: usize,
    #[comptime] width: usize,
    sums_width: usize,
    sums_begin: usize,
    sums_apart: usize,
    #[define(E)] _element: ElemType,
) {
    let column = ABSOLUTE_POS_X as usize;
    if column < parts * width {
        let number = CUBE_POS_Y as usize;
        let begin = number * chunk;
        let end = least(begin + chunk, rows);
        let mut sum = Vector::<f32, N>::new(0.0f32);
        for row in begin..end {
            sum += Vector::cast_from(input[row * parts * width + column]);
        }
        let place = column / width * sums_apart + column % width;
        sums[number * sums_width + sums_begin + place] = sum;
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

/// A product and what is added to it: to all rows, or to the first of each pair, where `pair_of_first` says
/// which pair's that is, counted from 1, and elsewhere 0.
#[cube(launch)]
pub(super) fn add<E: Float, N: Size>(
    product: &[Vector<E, N>],
    residual: &[Vector<f32, N>],
    other: &[Vector<E, N>],
    pair_of_first: &[i32],
    output: &mut [Vector<f32, N>],
    units: usize,
    #[comptime] width: usize,
    #[comptime] to_first: bool,
    #[define(E)] _element: ElemType,
) {
    if ABSOLUTE_POS < units {
        let mut value = Vector::<f32, N>::cast_from(product[ABSOLUTE_POS]);
        if comptime!(to_first) {
            let pair = pair_of_first[ABSOLUTE_POS / width];
            if pair > 0 {
                let at = usize::cast_from(pair - 1) * width + ABSOLUTE_POS % width;
                value += residual[at] + Vector::<f32, N>::cast_from(other[at]);
            }
        } else {
            value += residual[ABSOLUTE_POS];
        }
        output[ABSOLUTE_POS] = value;
    }
}

/// Sums of squares, each cube's behind those of the cubes before it, from `begin` on.
#[cube(launch)]
pub(super) fn squares<N: Size>(
    input: &[Vector<f32, N>],
    output: &mut [f32],
    units: usize,
    begin: usize,
    #[comptime] lanes: usize,
    #[comptime] cubes: usize,
) {
    let mut scratch = Shared::<[f32]>::new_slice(lanes);
    let mut sum = Vector::<f32, N>::new(0.0f32);
    let mut at = ABSOLUTE_POS;
    while at < units {
        sum += input[at] * input[at];
        at += lanes * cubes;
    }
    let sum = over_lanes(across(sum), &mut scratch, lanes);
    if UNIT_POS == 0 {
        output[begin + CUBE_POS] = sum;
    }
}

/// What gradients that are `scale` times as large as the loss's own are multiplied with, so that these have a
/// norm of `most` at most, and that norm: of sums of their squares.
#[cube(launch)]
pub(super) fn clip(
    sums: &[f32],
    output: &mut [f32],
    count: usize,
    most: f32,
    scale: f32,
    #[comptime] lanes: usize,
) {
    let mut scratch = Shared::<[f32]>::new_slice(lanes);
    let mut sum = 0.0f32;
    let mut at = UNIT_POS as usize;
    while at < count {
        sum += sums[at];
        at += lanes;
    }
    let sum = over_lanes(sum, &mut scratch, lanes);
    if UNIT_POS == 0 {
        let norm = sum.sqrt() / scale;
        // As torch.nn.utils.clip_grad_norm_ does it.
        output[0] = min(most / (norm + 1e-6f32), 1.0f32) / scale;
        output[1] = norm;
    }
}

/// Whether it is a number and not infinite: by its bits, since compilers that are allowed to compute faster
/// take it that nothing else occurs.
#[cube]
fn is_finite(value: f32) -> bool {
    let exponent = 0x7f80_0000u32;
    u32::reinterpret(value) & exponent != exponent
}

/// A step of AdamW of parameters, and of the running means of their gradients and of these' squares, by what
/// [`clip`](crate::gpu::kernels::clip()) gave; none where the norm is not finite. From `decaying` on, parameters
/// do not decay.
#[cube(launch)]
pub(super) fn adam<N: Size>(
    gradient: &[Vector<f32, N>],
    clip: &[f32],
    parameters: &mut [Vector<f32, N>],
    mean: &mut [Vector<f32, N>],
    square: &mut [Vector<f32, N>],
    units: usize,
    decaying: usize,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    rate: f32,
    square_correction: f32,
    epsilon: f32,
    kept: f32,
) {
    let at = ABSOLUTE_POS;
    if at < units && is_finite(clip[1]) {
        let gradient = gradient[at] * Vector::new(clip[0]);
        let new_mean = mean[at] * Vector::new(beta1) + gradient * Vector::new(rest1);
        let new_square = square[at] * Vector::new(beta2) + gradient * gradient * Vector::new(rest2);
        mean[at] = new_mean;
        square[at] = new_square;
        let root = (new_square / Vector::new(square_correction)).sqrt() + Vector::new(epsilon);
        let before = parameters[at] * Vector::new(select(at < decaying, kept, 1.0f32));
        parameters[at] = before - new_mean * Vector::new(rate) / root;
    }
}

/// Rows of a layer norm's input, which its lanes wrote into `normed` and of which each has its part of the
/// `sum`.
#[cube]
fn normalise<E: Float, N: Size>(
    sum: f32,
    scale: &[Vector<f32, N>],
    shift: &[Vector<f32, N>],
    output: &mut [Vector<f32, N>],
    operand: &mut [Vector<E, N>],
    normed: &mut [Vector<f32, N>],
    inverses: &mut [f32],
    row: usize,
    rows: usize,
    width: usize,
    count: f32,
    epsilon: f32,
    #[comptime] lanes: usize,
    #[comptime] side: usize,
    #[comptime] rounds: bool,
) {
    let mut scratch = Shared::<[f32]>::new_slice(lanes * side);
    let lane = UNIT_POS_X as usize;
    let begin = row * width;
    let mean = over_lanes(sum, &mut scratch, lanes) / count;
    let mut squares = 0.0f32;
    if row < rows {
        let mut at = lane;
        while at < width {
            let centred = normed[begin + at] - Vector::new(mean);
            squares += across(centred * centred);
            at += lanes;
        }
    }
    let variance = over_lanes(squares, &mut scratch, lanes) / count;
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

#[cube]
pub(super) fn least(one: usize, other: usize) -> usize {
    select(one < other, one, other)
}

#[cube]
fn activated<N: Size>(input: Vector<f32, N>, #[comptime] activation: Activation) -> Vector<f32, N> {
    match comptime!(activation) {
        Activation::Tanh => input.tanh(),
        Activation::Gelu => input * cumulative(input),
        Activation::Relu => input * is_above(input),
    }
}

#[cube]
fn slope_of<N: Size>(input: Vector<f32, N>, #[comptime] activation: Activation) -> Vector<f32, N> {
    match comptime!(activation) {
        Activation::Tanh => {
            let output = input.tanh();
            Vector::new(1.0f32) - output * output
        }
        Activation::Gelu => gelu_slope(input),
        Activation::Relu => is_above(input),
    }
}

/// 1 where a number is above 0, elsewhere 0.
#[cube]
fn is_above<N: Size>(input: Vector<f32, N>) -> Vector<f32, N> {
    let mut output = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for place in 0..N::value() {
        output.insert(place, select(input.extract(place) > 0.0f32, 1.0f32, 0.0f32));
    }
    output
}

#[cube]
fn gelu_slope<N: Size>(input: Vector<f32, N>) -> Vector<f32, N> {
    let density = (input * input * Vector::new(-0.5f32)).exp() * Vector::new(DENSITY);
    cumulative(input) + input * density
}

/// Φ.
#[cube]
fn cumulative<N: Size>(input: Vector<f32, N>) -> Vector<f32, N> {
    let error = (input * Vector::new(ROOT)).erf();
    (error + Vector::new(1.0f32)) * Vector::new(0.5f32)
}

/// The sum of a vector's numbers.
#[cube]
pub(super) fn across<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for place in 0..N::value() {
        sum += vector.extract(place);
    }
    sum
}

/// The sum of what the lanes of a row have, for each of them.
#[cube]
fn over_lanes(value: f32, scratch: &mut Shared<[f32]>, #[comptime] lanes: usize) -> f32 {
    let lane = UNIT_POS_X as usize;
    let begin = UNIT_POS_Y as usize * lanes;
    // What was there before, all have read.
    sync_cube();
    scratch[begin + lane] = value;
    sync_cube();
    let mut half = CUBE_DIM_X as usize / 2;
    while half > 0 {
        if lane < half {
            let other = scratch[begin + lane + half];
            scratch[begin + lane] += other;
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
