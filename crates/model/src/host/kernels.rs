//! What a layer is made of, on plain slices, rows one after the other. One thread each; the loops are
//! such that a compiler vectorises them.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined into the dispatched loop is not vectorised with it"
)]

use gemm::Parallelism;
use pulp::Arch;

use crate::gelu::{cumulative, derivative};

/// A matrix within a slice.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `columns` numbers, one after the other.
    pub(super) fn new(values: &'a [f32], columns: usize) -> Self {
        Self::part(values, values.len() / columns, columns, columns)
    }

    /// `columns` numbers at the beginning of each of `rows` rows that are `stride` apart.
    pub(super) fn part(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        Self {
            values,
            rows,
            columns,
            row_stride: stride,
            column_stride: 1,
        }
    }

    /// Rows become columns.
    pub(super) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    fn last(&self) -> usize {
        (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride
    }
}

/// Where a product goes.
pub(super) struct Target<'a> {
    values: &'a mut [f32],
    stride: usize,
    /// Whether the product is added to what is there.
    adds: bool,
}

impl<'a> Target<'a> {
    /// Rows that are `stride` apart; what is there is replaced.
    pub(super) fn new(values: &'a mut [f32], stride: usize) -> Self {
        Self {
            values,
            stride,
            adds: false,
        }
    }

    /// The product is added to what is there.
    pub(super) fn adding(self) -> Self {
        Self { adds: true, ..self }
    }
}

/// `scale · a · b`.
///
/// # Shapes
/// - a: `[M, K]`, b: `[K, N]`
/// - target: `[M, N]`
///
/// # Panics
/// When the matrices don't fit together or into their slices.
#[expect(clippy::many_single_char_names, reason = "the names of the formula")]
#[allow(
    unsafe_code,
    reason = "the one call of a library that takes pointers; bounds are asserted"
)]
pub(super) fn multiply(a: Matrix, b: Matrix, scale: f32, target: Target) {
    let Target {
        values,
        stride: row_stride,
        adds,
    } = target;
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "inner dimensions");
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(a.last() < a.values.len() && b.last() < b.values.len());
    assert!(n <= row_stride && (m - 1) * row_stride + n <= values.len());
    let stride = |stride: usize| stride.cast_signed();
    // SAFETY: every element that the strides reach is within its slice, and the target is borrowed
    // exclusively.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            values.as_mut_ptr(),
            1,
            stride(row_stride),
            adds,
            a.values.as_ptr(),
            stride(a.column_stride),
            stride(a.row_stride),
            b.values.as_ptr(),
            stride(b.column_stride),
            stride(b.row_stride),
            1.0f32,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Adds `bias` to each row.
pub(super) fn add_bias(rows: &mut [f32], bias: &[f32]) {
    Arch::new().dispatch(|| {
        for row in rows.chunks_exact_mut(bias.len()) {
            add(row, bias);
        }
    });
}

/// Adds each row to `sum`.
pub(super) fn add_rows(rows: &[f32], sum: &mut [f32]) {
    Arch::new().dispatch(|| {
        for row in rows.chunks_exact(sum.len()) {
            add(sum, row);
        }
    });
}

/// Adds number by number.
#[inline(always)]
pub(super) fn add(sum: &mut [f32], other: &[f32]) {
    for (sum, other) in sum.iter_mut().zip(other) {
        *sum += other;
    }
}

/// What the backward pass of a layer norm needs.
pub(super) struct Normed {
    /// The rows at mean 0 and variance 1.
    standard: Vec<f32>,
    /// What each row was multiplied with.
    inverse: Vec<f32>,
}

/// Layer norm of each row.
pub(super) fn normalise(
    mut rows: Vec<f32>,
    weight: &[f32],
    bias: &[f32],
    epsilon: f32,
) -> (Vec<f32>, Normed) {
    let width = weight.len();
    let mut output = vec![0.0; rows.len()];
    let mut inverse = vec![0.0; rows.len() / width];
    Arch::new().dispatch(|| {
        let outputs = output.chunks_exact_mut(width);
        for ((row, output), inverse) in rows.chunks_exact_mut(width).zip(outputs).zip(&mut inverse)
        {
            let mean = sum(row) / width as f32;
            for value in row.iter_mut() {
                *value -= mean;
            }
            *inverse = 1.0 / (dot(row, row) / width as f32 + epsilon).sqrt();
            for place in 0..width {
                row[place] *= *inverse;
                output[place] = row[place] * weight[place] + bias[place];
            }
        }
    });
    let standard = rows;
    (output, Normed { standard, inverse })
}

/// The slope at a layer norm's input, from that at its output; those of weight and bias are added
/// to what is there.
pub(super) fn normalise_backward(
    mut slopes: Vec<f32>,
    normed: &Normed,
    weight: &[f32],
    of_weight: &mut [f32],
    of_bias: &mut [f32],
) -> Vec<f32> {
    let width = weight.len();
    Arch::new().dispatch(|| {
        let rows = slopes.chunks_exact_mut(width);
        let standard = normed.standard.chunks_exact(width);
        for ((row, standard), inverse) in rows.zip(standard).zip(&normed.inverse) {
            for place in 0..width {
                of_weight[place] += row[place] * standard[place];
                of_bias[place] += row[place];
                row[place] *= weight[place];
            }
            let mean = sum(row) / width as f32;
            let along = dot(row, standard) / width as f32;
            for place in 0..width {
                row[place] = inverse * (row[place] - mean - standard[place] * along);
            }
        }
    });
    slopes
}

/// Adds `bias` to each row, takes GELU of the sums, and gives back its slopes where they will be
/// needed.
pub(super) fn gelu(rows: &mut [f32], bias: &[f32], with_slopes: bool) -> Vec<f32> {
    let mut slopes = vec![0.0; if with_slopes { rows.len() } else { 0 }];
    Arch::new().dispatch(|| {
        for row in rows.chunks_exact_mut(bias.len()) {
            add(row, bias);
        }
        for (value, slope) in rows.iter().zip(&mut slopes) {
            *slope = derivative(*value);
        }
        for value in rows {
            *value *= cumulative(*value);
        }
    });
    slopes
}

/// Multiplies number by number.
pub(super) fn scale_by(values: &mut [f32], factors: &[f32]) {
    Arch::new().dispatch(|| {
        for (value, factor) in values.iter_mut().zip(factors) {
            *value *= factor;
        }
    });
}

/// Softmax of each row.
pub(super) fn softmax(rows: &mut [f32], width: usize) {
    Arch::new().dispatch(|| {
        for row in rows.chunks_exact_mut(width) {
            let highest = max(row);
            for value in row.iter_mut() {
                *value = exp(*value - highest);
            }
            let factor = 1.0 / sum(row);
            for value in row.iter_mut() {
                *value *= factor;
            }
        }
    });
}

/// The slopes at the inputs of softmax, from those at its outputs.
pub(super) fn softmax_backward(slopes: &mut [f32], outputs: &[f32], width: usize) {
    Arch::new().dispatch(|| {
        let rows = slopes.chunks_exact_mut(width);
        for (row, outputs) in rows.zip(outputs.chunks_exact(width)) {
            let along = dot(row, outputs);
            for (slope, output) in row.iter_mut().zip(outputs) {
                *slope = output * (*slope - along);
            }
        }
    });
}

/// As many running results as keep a vector unit busy: the order of additions is ours to choose, not
/// the compiler's.
const LANES: usize = 16;

#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    reduce(values, 0.0, |sum, value| sum + value)
}

#[inline(always)]
fn max(values: &[f32]) -> f32 {
    reduce(values, f32::NEG_INFINITY, |most, value| {
        if value > most { value } else { most }
    })
}

#[inline(always)]
fn reduce(values: &[f32], neutral: f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [neutral; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = join(lanes[lane], chunk[lane]);
        }
    }
    let join = |one, &other| join(one, other);
    rest.iter().fold(lanes.iter().fold(neutral, join), join)
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
    lanes.into_iter().chain(rest).sum()
}

/// `eˣ` for `x ≤ 0`, to 2e-7 of itself; 0 below -87, where `eˣ` is next to nothing.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with a whole n: eˣ = 2ⁿ eʳ, and eʳ is near its Taylor series. ln 2 is taken in
    // two parts, the first with so few digits that its product with n is exact.
    const HIGH: f32 = 355.0 / 512.0;
    const LOW: f32 = -2.121_944_4e-4;
    // Adding it moves a number's whole part into the last bits.
    const ROUNDING: f32 = 12_582_912.0;
    const BIAS: u32 = 127;
    let bounded = if x > -87.0 { x } else { -87.0 };
    let shifted = bounded * std::f32::consts::LOG2_E + ROUNDING;
    let whole = shifted - ROUNDING;
    let rest = bounded - whole * HIGH - whole * LOW;
    let series = [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let of_rest = (series.iter()).fold(1.0 / 5040.0, |sum, term| sum * rest + term);
    let power = f32::from_bits(shifted.to_bits().wrapping_add(BIAS) << 23);
    if x > -87.0 { of_rest * power } else { 0.0 }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::float_cmp, reason = "whole numbers, which are exact")]

    use super::*;

    #[test]
    fn exp_is_the_reference_s() {
        for step in 0..20_000 {
            let x = -0.00434 * step as f32;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn reductions_take_every_number() {
        for length in [0, 1, 15, 16, 17, 40] {
            let values: Vec<f32> = (0..length).map(|n| n as f32 - 20.0).collect();
            let expected: f32 = values.iter().sum();
            assert_eq!(sum(&values), expected);
            assert_eq!(dot(&values, &vec![1.0; length]), expected);
            let most = values.last().copied().unwrap_or(f32::NEG_INFINITY);
            assert_eq!(max(&values), most);
        }
    }

    #[test]
    fn products_of_parts_and_transposed_matrices() {
        // [[1, 2], [4, 5]] of rows of three, times the transposed of [[1, 0], [2, 1], [0, 3]].
        let a = [1.0, 2.0, 9.0, 4.0, 5.0, 9.0];
        let b = [1.0, 0.0, 2.0, 1.0, 0.0, 3.0];
        let mut target = [1.0; 7];
        let target_part = Target::new(&mut target, 4).adding();
        let (a, b) = (Matrix::part(&a, 2, 2, 3), Matrix::new(&b, 2).transposed());
        multiply(a, b, 10.0, target_part);
        assert_eq!(target, [11.0, 41.0, 61.0, 1.0, 41.0, 131.0, 151.0]);
    }

    #[test]
    #[should_panic(expected = "assertion")]
    fn a_target_that_is_too_small_is_refused() {
        let mut target = [0.0; 3];
        let square = Matrix::new(&[1.0, 0.0, 0.0, 1.0], 2);
        multiply(square, square, 1.0, Target::new(&mut target, 2));
    }
}
