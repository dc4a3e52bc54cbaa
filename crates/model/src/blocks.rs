//! How the tokens of a batch lie: one pair after the other, in blocks whose pairs are padded to one
//! length. What is computed for a token by itself is computed for all blocks at once, and attention
//! for a block at a time, so a short pair beside a long one costs what a short pair costs.
//!
//! Shapes: `N` tokens of all blocks, padding included, `D` width; of a block, `B` pairs (or texts) of
//! `T` tokens each.

use burn::tensor::Tensor;

/// Pairs that are padded to one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) pairs: usize,
    pub(crate) tokens: usize,
}

impl Block {
    /// Tokens of all its pairs.
    pub(crate) fn rows(self) -> usize {
        self.pairs * self.tokens
    }

    /// The blocks of pairs of these lengths, in their order, that cost least.
    pub(crate) fn cheapest(lengths: &[usize], cost: impl Fn(Self) -> usize) -> Vec<Self> {
        // Pairs of one length are never apart.
        let runs: Vec<&[usize]> = lengths.chunk_by(|one, next| one == next).collect();
        // Of the blocks up to so many runs, the cost and where the last of them begins.
        let mut best = vec![(0, 0)];
        for end in 1..=runs.len() {
            let (mut pairs, mut tokens) = (0, 0);
            let mut least = (usize::MAX, 0);
            for begin in (0..end).rev() {
                pairs += runs[begin].len();
                tokens = tokens.max(runs[begin][0]);
                let cost = best[begin].0 + cost(Self { pairs, tokens });
                least = least.min((cost, begin));
            }
            best.push(least);
        }
        let mut blocks = Vec::new();
        let mut end = runs.len();
        while end > 0 {
            let begin = best[end].1;
            let runs = &runs[begin..end];
            blocks.push(Self {
                pairs: runs.iter().map(|run| run.len()).sum(),
                tokens: runs.iter().map(|run| run[0]).max().unwrap_or(0),
            });
            end = begin;
        }
        blocks.reverse();
        blocks
    }
}

/// What belongs to each block.
///
/// # Shapes
/// - rows: `[N, D]`
/// - output: `[B, T, D]` of each block
pub(crate) fn apart(rows: &Tensor<2>, blocks: &[Block]) -> Vec<Tensor<3>> {
    let [_, width] = rows.dims();
    let mut begin = 0;
    let block = |block: &Block| {
        let its = match blocks {
            // Its gradient is no copy either.
            [_] => rows.clone(),
            _ => rows.clone().narrow(0, begin, block.rows()),
        };
        begin += block.rows();
        its.reshape([block.pairs, block.tokens, width])
    };
    blocks.iter().map(block).collect()
}

/// All blocks, one after the other.
///
/// # Shapes
/// - blocks: `[B, T, D]` each
/// - output: `[N, D]`
pub(crate) fn together(blocks: Vec<Tensor<3>>) -> Tensor<2> {
    let rows = blocks.into_iter().map(|block| block.flatten::<2>(0, 1));
    let mut rows: Vec<Tensor<2>> = rows.collect();
    match rows.len() {
        1 => rows.remove(0),
        _ => Tensor::cat(rows, 0),
    }
}

/// The first token of every pair, and the blocks that these lie in.
///
/// # Shapes
/// - rows: `[N, D]`
/// - output: `[B, D]`, of all blocks together
pub(crate) fn first(rows: &Tensor<2>, blocks: &[Block]) -> (Tensor<2>, Vec<Block>) {
    let parts = apart(rows, blocks).into_iter();
    let firsts = parts.map(|part| part.narrow(1, 0, 1)).collect();
    (together(firsts), alone(blocks))
}

/// What the first tokens of all pairs lie in.
pub(crate) fn alone(blocks: &[Block]) -> Vec<Block> {
    let alone = |block: &Block| Block {
        tokens: 1,
        ..*block
    };
    blocks.iter().map(alone).collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn block(pairs: usize, tokens: usize) -> Block {
        Block { pairs, tokens }
    }

    #[test]
    fn blocks_are_made_where_they_spare_more_than_they_cost() {
        let lengths = [300, 90, 88, 88, 60, 60];
        let cheapest = |more| Block::cheapest(&lengths, |block| more + block.rows());
        assert_eq!(
            cheapest(0),
            [block(1, 300), block(1, 90), block(2, 88), block(2, 60)]
        );
        assert_eq!(cheapest(50), [block(1, 300), block(3, 90), block(2, 60)]);
        assert_eq!(cheapest(200), [block(1, 300), block(5, 90)]);
        assert_eq!(cheapest(2000), [block(6, 300)]);
        assert_eq!(Block::cheapest(&[], |_| 1), []);
        // In the order given, whatever it is.
        assert_eq!(
            Block::cheapest(&[5, 100, 5], |block| 10 + block.rows()),
            [block(1, 5), block(1, 100), block(1, 5)]
        );
    }

    #[test]
    fn what_is_taken_apart_comes_together_as_it_was() {
        let values: Vec<f32> = (0..22).map(|value| value as f32).collect();
        let rows = Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).reshape([11, 2]);
        let blocks = [block(1, 5), block(2, 3)];
        let parts = apart(&rows, &blocks);
        assert_eq!(parts[0].dims(), [1, 5, 2]);
        assert_eq!(parts[1].dims(), [2, 3, 2]);
        let second: Vec<f32> = parts[1].clone().into_data().try_into_vec().unwrap();
        assert_eq!(second, values[10..]);
        let all: Vec<f32> = together(parts).into_data().try_into_vec().unwrap();
        assert_eq!(all, values);
    }
}
