//! Maps from numbers to what they should have been, fitted to examples: isotonic, logistic, linear.
//! What they are fitted to, and what they are good for, is the caller's to say.

use serde::Serialize;

use crate::strength::solve;

/// The rising map nearest to its examples in the least squares: the pool adjacent violators
/// algorithm (Ayer et al., 1955). Between two examples it goes on the line that joins them, beyond
/// the outermost it stays level.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Isotonic {
    /// Where the map bends, in rising order.
    pub(crate) x: Vec<f64>,
    /// Its values there.
    pub(crate) y: Vec<f64>,
}

/// Examples that were pooled: they share the value `total / weight`.
struct Block {
    from: f64,
    to: f64,
    total: f64,
    weight: f64,
}

impl Isotonic {
    /// Fits `y` to `x`, of which there is one at least; examples with one `x` count as their mean.
    pub(crate) fn fit(x: &[f64], y: &[f64]) -> Self {
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|a, b| x[*a].total_cmp(&x[*b]));
        let mut blocks: Vec<Block> = Vec::new();
        for tied in order.chunk_by(|a, b| x[*a].total_cmp(&x[*b]).is_eq()) {
            let at = x[tied[0]];
            let mut block = Block {
                from: at,
                to: at,
                total: tied.iter().map(|place| y[*place]).sum(),
                weight: tied.len() as f64,
            };
            while let Some(before) = blocks.pop_if(|it| it.mean() >= block.mean()) {
                block.from = before.from;
                block.total += before.total;
                block.weight += before.weight;
            }
            blocks.push(block);
        }
        let mut map = Self {
            x: Vec::new(),
            y: Vec::new(),
        };
        for block in &blocks {
            let mean = block.mean();
            map.x.push(block.from);
            map.y.push(mean);
            if block.to > block.from {
                map.x.push(block.to);
                map.y.push(mean);
            }
        }
        map
    }

    pub(crate) fn at(&self, x: f64) -> f64 {
        let above = self.x.partition_point(|bend| *bend < x);
        match (above.checked_sub(1), self.x.get(above)) {
            (None, _) => self.y[0],
            (Some(below), None) => self.y[below],
            (Some(below), Some(next)) => {
                let share = (x - self.x[below]) / (next - self.x[below]);
                let rise = self.y[above] - self.y[below];
                // No further up than the next bend, whatever rounding does.
                (self.y[below] + share * rise).min(self.y[above])
            }
        }
    }
}

impl Block {
    fn mean(&self) -> f64 {
        self.total / self.weight
    }
}

/// The probability `σ(slope · x + offset)` (Platt, 1999).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Platt {
    pub(crate) slope: f64,
    pub(crate) offset: f64,
}

/// A step that moves no coefficient by more is the last.
const LAST_STEP: f64 = 1e-10;
/// Far more steps than a convex loss of two numbers takes.
const MOST_STEPS: usize = 100;

impl Platt {
    /// Fits to `y`, each from 0 to 1, by Newton's method with halved steps (Lin, Lin and Weng, 2007).
    /// As Platt has it, targets stop short of 0 and 1 by what as many examples can't rule out, so
    /// that the fit stays finite where `x` separates them.
    pub(crate) fn fit(x: &[f64], y: &[f64]) -> Self {
        let positives: f64 = y.iter().sum();
        let negatives = y.len() as f64 - positives;
        let (top, bottom) = (
            (positives + 1.0) / (positives + 2.0),
            1.0 / (negatives + 2.0),
        );
        let targets: Vec<f64> = y.iter().map(|y| bottom + (top - bottom) * y).collect();
        let mut map = Self {
            slope: 0.0,
            offset: ((positives + 1.0) / (negatives + 1.0)).ln(),
        };
        for _ in 0..MOST_STEPS {
            // A trace of a ridge: the curvature of examples at one place alone is singular.
            let (mut gradient, mut curvature) = ([0.0; 2], [[1e-12, 0.0], [0.0, 1e-12]]);
            for (x, target) in x.iter().zip(&targets) {
                let p = map.at(*x);
                for (row, a) in [*x, 1.0].into_iter().enumerate() {
                    gradient[row] -= (p - target) * a;
                    for (column, b) in [*x, 1.0].into_iter().enumerate() {
                        curvature[row][column] += p * (1.0 - p) * a * b;
                    }
                }
            }
            let step = solve(curvature.map(Vec::from).to_vec(), gradient.to_vec());
            let now = map.loss(x, &targets);
            let mut share = 1.0;
            let next = loop {
                let next = Self {
                    slope: map.slope + share * step[0],
                    offset: map.offset + share * step[1],
                };
                if share < 1e-6 || next.loss(x, &targets) < now + 1e-12 {
                    break next;
                }
                share /= 2.0;
            };
            map = next;
            if step.iter().all(|step| (share * step).abs() < LAST_STEP) {
                break;
            }
        }
        map
    }

    pub(crate) fn at(&self, x: f64) -> f64 {
        1.0 / (1.0 + (-self.slope * x - self.offset).exp())
    }

    /// Cross-entropy, of logits so that nothing overflows.
    fn loss(&self, x: &[f64], targets: &[f64]) -> f64 {
        let of = |(x, target): (&f64, &f64)| {
            let logit = self.slope * x + self.offset;
            logit.max(0.0) - logit * target + (-logit.abs()).exp().ln_1p()
        };
        x.iter().zip(targets).map(of).sum()
    }
}

/// A line through standardised columns, its coefficients held small by a ridge (Hoerl and Kennard,
/// 1970).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Ridge {
    /// The mean of each column.
    pub(crate) means: Vec<f64>,
    /// Its standard deviation; 1 where that is 0.
    pub(crate) deviations: Vec<f64>,
    /// What a deviation of it adds.
    pub(crate) weights: Vec<f64>,
    /// The value at the means.
    pub(crate) offset: f64,
}

impl Ridge {
    /// Fits `y` to rows of one width, of which there is one at least, with `penalty` on the sum of
    /// squared weights beside the sum of squared errors.
    pub(crate) fn fit(rows: &[Vec<f64>], y: &[f64], penalty: f64) -> Self {
        let count = rows.len() as f64;
        let width = rows.first().map_or(0, Vec::len);
        let mut means = vec![0.0; width];
        let mut deviations = vec![0.0; width];
        for row in rows {
            add(&mut means, row.iter().map(|value| value / count));
        }
        for row in rows {
            let off = row.iter().zip(&means).map(|(value, mean)| value - mean);
            add(&mut deviations, off.map(|off| off * off / count));
        }
        for deviation in &mut deviations {
            *deviation = deviation.sqrt();
            // What rounding leaves of a column that has one value.
            if *deviation < 1e-9 {
                *deviation = 1.0;
            }
        }
        let offset = y.iter().sum::<f64>() / count;
        let mut ridge = Self {
            means,
            deviations,
            weights: Vec::new(),
            offset,
        };
        let mut products = vec![vec![0.0; width]; width];
        let mut right = vec![0.0; width];
        for (row, y) in rows.iter().zip(y) {
            let row = ridge.standardised(row);
            add(&mut right, row.iter().map(|value| value * (y - offset)));
            for (products, left) in products.iter_mut().zip(&row) {
                add(products, row.iter().map(|value| left * value));
            }
        }
        for (place, row) in products.iter_mut().enumerate() {
            row[place] += penalty;
        }
        ridge.weights = solve(products, right);
        ridge
    }

    pub(crate) fn at(&self, row: &[f64]) -> f64 {
        let row = self.standardised(row);
        let parts = row.iter().zip(&self.weights);
        self.offset + parts.map(|(value, weight)| value * weight).sum::<f64>()
    }

    fn standardised(&self, row: &[f64]) -> Vec<f64> {
        let scales = self.means.iter().zip(&self.deviations);
        let row = row.iter().zip(scales);
        row.map(|(value, (mean, deviation))| (value - mean) / deviation)
            .collect()
    }
}

fn add(sums: &mut [f64], values: impl Iterator<Item = f64>) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

/// Pearson's correlation; none where one of the two has one value alone.
pub(crate) fn correlation(x: &[f64], y: &[f64]) -> Option<f64> {
    let count = x.len() as f64;
    let (mean_x, mean_y) = (x.iter().sum::<f64>() / count, y.iter().sum::<f64>() / count);
    let (mut both, mut of_x, mut of_y) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        let (x, y) = (x - mean_x, y - mean_y);
        both += x * y;
        of_x += x * x;
        of_y += y * y;
    }
    (of_x > 1e-18 * count && of_y > 1e-18 * count).then(|| both / (of_x * of_y).sqrt())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        isotonic: Vec<Curve>,
        platt: Vec<Curve>,
        ridge: Vec<Plane>,
        correlation: Vec<Correlated>,
    }

    #[derive(Deserialize)]
    struct Curve {
        x: Vec<f64>,
        y: Vec<f64>,
        at: Vec<f64>,
        expected: Vec<f64>,
    }

    #[derive(Deserialize)]
    struct Plane {
        rows: Vec<Vec<f64>>,
        y: Vec<f64>,
        penalty: f64,
        weights: Vec<f64>,
        at: Vec<Vec<f64>>,
        expected: Vec<f64>,
    }

    #[derive(Deserialize)]
    struct Correlated {
        x: Vec<f64>,
        y: Vec<f64>,
        expected: f64,
    }

    fn assert_close(name: &str, found: impl IntoIterator<Item = f64>, expected: &[f64], by: f64) {
        let found: Vec<f64> = found.into_iter().collect();
        assert_eq!(found.len(), expected.len(), "{name}");
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < by, "{name}: {found}, {expected}");
        }
    }

    /// Against scikit-learn and SciPy: `tests/golden/regression/make.py`.
    #[test]
    fn every_fit_is_that_of_the_reference() {
        let golden = include_str!("../../../tests/golden/regression/golden.json");
        let golden: Golden = serde_json::from_str(golden).unwrap();
        let counts = [
            golden.isotonic.len(),
            golden.platt.len(),
            golden.ridge.len(),
            golden.correlation.len(),
        ];
        assert!(counts.iter().all(|count| *count >= 2), "{counts:?}");
        for Curve { x, y, at, expected } in golden.isotonic {
            let map = Isotonic::fit(&x, &y);
            assert_close("isotonic", at.iter().map(|x| map.at(*x)), &expected, 1e-9);
        }
        for Curve { x, y, at, expected } in golden.platt {
            let map = Platt::fit(&x, &y);
            assert_close("platt", at.iter().map(|x| map.at(*x)), &expected, 1e-6);
        }
        for case in golden.ridge {
            let ridge = Ridge::fit(&case.rows, &case.y, case.penalty);
            let at = case.at.iter().map(|row| ridge.at(row));
            assert_close("ridge", at, &case.expected, 1e-9);
            assert_close("ridge weights", ridge.weights, &case.weights, 1e-9);
        }
        for Correlated { x, y, expected } in golden.correlation {
            assert_close("correlation", correlation(&x, &y), &[expected], 1e-9);
        }
    }

    #[test]
    fn pooled_violators_share_their_mean() {
        let map = Isotonic::fit(&[1.0, 2.0, 3.0, 4.0], &[1.0, 3.0, 2.0, 4.0]);
        let at = [0.0, 1.0, 1.5, 2.0, 3.0, 3.5, 9.0].map(|x| map.at(x));
        assert_close("PAVA", at, &[1.0, 1.0, 1.75, 2.5, 2.5, 3.25, 4.0], 1e-12);
    }

    #[test]
    fn examples_that_are_separated_leave_the_logistic_map_finite() {
        let map = Platt::fit(&[-1.0, -2.0, 1.0, 3.0], &[0.0, 0.0, 1.0, 1.0]);
        assert!(map.slope > 0.0 && map.slope < 10.0, "{map:?}");
        let alike = Platt::fit(&[0.5; 3], &[1.0, 1.0, 0.0]);
        assert!((alike.at(0.5) - (2.0 * 0.75 + 1.0 / 3.0) / 3.0).abs() < 1e-6);
    }

    #[test]
    fn what_never_changes_explains_nothing() {
        let rows = [vec![1.0, 0.1], vec![2.0, 0.1], vec![4.0, 0.1]];
        let ridge = Ridge::fit(&rows, &[1.0, 2.0, 4.0], 1e-9);
        assert!(ridge.weights[1].abs() < 1e-6, "{ridge:?}");
        assert!((ridge.at(&[3.0, 0.1]) - 3.0).abs() < 1e-6);
        assert_eq!(correlation(&[0.1; 3], &[1.0, 2.0, 3.0]), None);
    }

    proptest! {
        #[test]
        fn a_rising_map_rises_within_its_examples(
            examples in prop::collection::vec((0..20_u8, -1.0..1.0), 1..60),
        ) {
            let x: Vec<f64> = examples.iter().map(|(x, _)| f64::from(*x)).collect();
            let y: Vec<f64> = examples.iter().map(|(_, y)| *y).collect();
            let map = Isotonic::fit(&x, &y);
            let values: Vec<f64> = (-2..44).map(|half| map.at(f64::from(half) / 2.0)).collect();
            prop_assert!(values.is_sorted(), "{values:?}");
            let (least, most) = (y.iter().copied().fold(1.0, f64::min), y.iter().copied().fold(-1.0, f64::max));
            prop_assert!(values.iter().all(|it| (least - 1e-9..=most + 1e-9).contains(it)));
        }
    }
}
