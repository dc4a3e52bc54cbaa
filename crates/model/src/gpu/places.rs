//! Where parameters lie in memory: those of a part of the model in one vector.

use std::ops::Range;
use std::sync::Arc;

use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::Frame;
use super::launch::view;
use super::layout::NUMBERS;

/// Where a part's parameters, or the slopes at them, lie in a vector: matrices, then the others.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// Of each parameter; of one that the part lacks, none.
    pub(crate) ranges: Arc<[Range<usize>]>,
    /// Of each matrix.
    shapes: Arc<[[usize; 2]]>,
    /// Where it is that no matrix is any more.
    pub(super) vectors: usize,
    /// Where those begin whose slopes are sums over rows.
    pub(super) summed: usize,
    /// Of all of it.
    pub(crate) length: usize,
}

/// Which of a layer's is where, in the order of memory.
pub(super) const QUERY: usize = 0;
pub(super) const KEY: usize = 1;
pub(super) const VALUE: usize = 2;
pub(super) const ATTENDED: usize = 3;
pub(super) const INNER: usize = 4;
pub(super) const OUTER: usize = 5;
pub(super) const OUTER_SCALE: usize = 6;
pub(super) const OUTER_SHIFT: usize = 7;
pub(super) const OUTER_BIAS: usize = 8;
pub(super) const INNER_BIAS: usize = 9;
pub(super) const ATTENDED_SCALE: usize = 10;
pub(super) const ATTENDED_SHIFT: usize = 11;
pub(super) const ATTENDED_BIAS: usize = 12;
pub(super) const QUERY_BIAS: usize = 13;
pub(super) const KEY_BIAS: usize = 14;
pub(super) const VALUE_BIAS: usize = 15;

/// Of the head.
pub(super) const DENSE: usize = 0;
pub(super) const CLASSIFIER: usize = 1;
pub(super) const DENSE_BIAS: usize = 2;
pub(super) const CLASSIFIER_BIAS: usize = 3;

/// Of the embeddings.
pub(super) const WORDS: usize = 0;
pub(super) const POSITIONS: usize = 1;
pub(super) const SEGMENTS: usize = 2;
pub(super) const SCALE: usize = 3;
pub(super) const SHIFT: usize = 4;

impl Places {
    pub(crate) fn of_layer(width: usize, inner: usize) -> Self {
        let square = [width, width];
        let mut vectors = [width; 10];
        vectors[INNER_BIAS - OUTER_SCALE] = inner;
        let (to_inner, to_outer) = ([width, inner], [inner, width]);
        Self::new(
            &[square, square, square, square, to_inner, to_outer],
            &vectors,
        )
    }

    /// Of tables of so many rows, none of one that is not there.
    pub(crate) fn of_embeddings(rows: [usize; 3], width: usize) -> Self {
        Self::new(&rows.map(|rows| [rows, width]), &[width, width])
    }

    /// Of a linear map.
    pub(crate) fn of_projection(width: usize, hidden: usize) -> Self {
        Self::new(&[[width, hidden]], &[hidden])
    }

    /// The classifier of one label.
    pub(crate) fn of_head(width: usize) -> Self {
        let places = Self::new(&[[width, width], [width, 1]], &[width, 1]);
        Self {
            summed: places.ranges[CLASSIFIER].start,
            ..places
        }
    }

    fn new(matrices: &[[usize; 2]], vectors: &[usize]) -> Self {
        let mut end = 0;
        let of_matrices = matrices.iter().map(|[rows, width]| rows * width);
        let ranges: Arc<[Range<usize>]> = of_matrices
            .chain(vectors.iter().copied())
            .map(|length| {
                let begin = end;
                end = (begin + length).next_multiple_of(NUMBERS);
                begin..begin + length
            })
            .collect();
        let vectors = ranges[matrices.len()].start;
        Self {
            vectors,
            summed: vectors,
            length: end,
            ranges,
            shapes: matrices.into(),
        }
    }

    /// Whether there is something between parameters.
    pub(super) fn has_gaps(&self) -> bool {
        let used: usize = self.ranges.iter().map(ExactSizeIterator::len).sum();
        used < self.length
    }
}

/// A part's parameters.
pub(super) struct Weights {
    all: CubeTensor,
    places: Places,
}

impl Weights {
    pub(super) fn new(all: CubeTensor, frame: &Frame) -> Self {
        Self {
            all: into_contiguous(all),
            places: frame.places.clone(),
        }
    }

    pub(super) fn all(&self) -> &CubeTensor {
        &self.all
    }

    /// One of them, where it lies.
    pub(super) fn at(&self, which: usize) -> CubeTensor {
        let Range { start, end } = self.places.ranges[which];
        let shape = match self.places.shapes.get(which) {
            Some(shape) => (*shape).into(),
            None => [end - start].into(),
        };
        view(&self.all, start, shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_do_not_overlap_and_begin_where_views_may() {
        for (width, inner) in [(32, 64), (384, 1536), (312, 1200), (20, 28)] {
            let places = Places::of_layer(width, inner);
            let mut end = 0;
            for range in &*places.ranges {
                assert!(range.start >= end && range.start % NUMBERS == 0);
                end = range.end;
            }
            assert!(end <= places.length);
            let gaps = 4 * width * width + 2 * width * inner + 9 * width + inner < places.length;
            assert_eq!(places.has_gaps(), gaps);
            assert_eq!(places.ranges[INNER_BIAS].len(), inner);
            assert_eq!(places.vectors, places.ranges[OUTER_SCALE].start);
        }
    }
}
