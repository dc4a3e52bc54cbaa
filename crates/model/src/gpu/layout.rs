//! Where what a layer computes with lies in memory.

use std::ops::Range;
use std::sync::OnceLock;

use burn::cubecl::prelude::CubeElement;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use crate::blocks::{Block, alone};

/// Where the tokens of a batch lie, as all layers have it.
pub(crate) struct Layout {
    pub(super) blocks: Vec<Block>,
    pub(super) heads: usize,
    /// Of all tokens; the fourth number is which pair a token is of.
    pub(super) all: Places,
    /// Of the first of each pair; the fourth number is which of all tokens that is.
    pub(super) first: Places,
}

/// Where head rows of tokens lie: those of a pair one after the other, of all its tokens for the first
/// head, then for the second. Pairs of a block lie side by side, `[B, H, T]`, and blocks where views of
/// memory may begin.
pub(super) struct Places {
    /// Tokens.
    pub(super) rows: usize,
    /// The first head row of each block.
    pub(super) begins: Vec<usize>,
    /// Head rows, those between blocks included.
    pub(super) total: usize,
    /// `[rows, 4]`
    numbers: Vec<i32>,
    on_device: OnceLock<CubeTensor>,
}

/// Head rows at multiples of so many begin where a view may, of any width and type.
const HEAD_ROWS: usize = 256;

/// So do numbers of 32 bits.
const NUMBERS: usize = 128;

impl Layout {
    pub(crate) fn new(blocks: &[Block], heads: usize) -> Self {
        let mut row = 0;
        let mut pair = 0;
        let (mut pairs, mut firsts) = (Vec::new(), Vec::new());
        for block in blocks {
            for _ in 0..block.pairs {
                pairs.resize(pairs.len() + block.tokens, pair);
                firsts.push(row);
                row += block.tokens;
                pair += 1;
            }
        }
        Self {
            blocks: blocks.to_vec(),
            heads,
            all: Places::new(blocks, heads, &pairs),
            first: Places::new(&alone(blocks), heads, &firsts),
        }
    }
}

impl Places {
    fn new(blocks: &[Block], heads: usize, fourth: &[usize]) -> Self {
        let (mut begins, mut total, mut rows) = (Vec::new(), 0, 0);
        let mut numbers = Vec::with_capacity(4 * fourth.len());
        for block in blocks {
            begins.push(total);
            for pair in 0..block.pairs {
                let first = total + pair * heads * block.tokens;
                for token in 0..block.tokens {
                    numbers.extend([first, block.tokens, token, fourth[rows]].map(number));
                    rows += 1;
                }
            }
            total = (total + heads * block.rows()).next_multiple_of(HEAD_ROWS);
        }
        Self {
            rows,
            begins,
            total,
            numbers,
            on_device: OnceLock::new(),
        }
    }

    /// `[rows, 4]`, where `like` is.
    pub(super) fn on_device(&self, like: &CubeTensor) -> CubeTensor {
        let made = self.on_device.get_or_init(|| {
            CubeTensor::new_contiguous(
                like.client.clone(),
                like.device.clone(),
                [self.rows, 4].into(),
                like.client.create_from_slice(i32::as_bytes(&self.numbers)),
                DType::I32,
            )
        });
        made.clone()
    }
}

/// Of head rows, 2^31 fit into no GPU.
fn number(wide: usize) -> i32 {
    i32::try_from(wide).unwrap_or(i32::MAX)
}

/// Where a layer's parameters, or the slopes at them, lie in a vector: matrices, then the others.
#[derive(Clone, Copy)]
pub(super) struct Slopes {
    pub(super) width: usize,
    pub(super) inner: usize,
}

/// Which is where, in the order of memory; the last is the bias of values.
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

impl Slopes {
    pub(super) fn new(width: usize, inner: usize) -> Self {
        Self { width, inner }
    }

    pub(super) fn ranges(self) -> [Range<usize>; 16] {
        let Self { width, inner } = self;
        let mut end = 0;
        let (square, wide) = (width * width, width * inner);
        [
            square, square, square, square, wide, wide, width, width, width, inner, width, width,
            width, width, width, width,
        ]
        .map(|length| {
            let begin = end;
            end = (begin + length).next_multiple_of(NUMBERS);
            begin..begin + length
        })
    }

    /// Of the whole vector.
    pub(super) fn length(self) -> usize {
        let [.., last] = self.ranges();
        last.end.next_multiple_of(NUMBERS)
    }

    /// Where it is that no matrix is any more.
    pub(super) fn vectors(self) -> usize {
        self.ranges()[OUTER_SCALE].start
    }

    /// Whether there is something between parameters.
    pub(super) fn has_gaps(self) -> bool {
        let ranges = self.ranges();
        let used: usize = ranges.iter().map(ExactSizeIterator::len).sum();
        used < self.length()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_do_not_overlap_and_begin_where_views_may() {
        for (width, inner) in [(32, 64), (384, 1536), (312, 1200), (20, 28)] {
            let slopes = Slopes::new(width, inner);
            let mut end = 0;
            for range in slopes.ranges() {
                assert!(range.start >= end && range.start % NUMBERS == 0);
                end = range.end;
            }
            assert!(end <= slopes.length());
            let gaps = 4 * width * width + 2 * width * inner + 9 * width + inner < slopes.length();
            assert_eq!(slopes.has_gaps(), gaps);
        }
    }

    #[test]
    fn every_head_row_has_one_place() {
        let blocks = [
            Block {
                pairs: 3,
                tokens: 5,
            },
            Block {
                pairs: 2,
                tokens: 9,
            },
        ];
        let layout = Layout::new(&blocks, 4);
        for places in [&layout.all, &layout.first] {
            let mut seen = vec![false; places.total];
            for row in places.numbers.chunks(4) {
                for head in 0..4 {
                    let place = usize::try_from(row[0] + head * row[1] + row[2]).unwrap();
                    assert!(!std::mem::replace(&mut seen[place], true));
                }
            }
            let count = seen.into_iter().filter(|seen| *seen).count();
            assert_eq!(count, 4 * places.rows);
        }
        let fourth =
            |places: &Places| -> Vec<i32> { places.numbers.chunks(4).map(|row| row[3]).collect() };
        assert_eq!(fourth(&layout.first), [0, 5, 10, 15, 24]);
        assert_eq!(
            fourth(&layout.all)[14..25],
            [2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4]
        );
    }
}
