//! Where the tokens of a batch lie in memory.

use std::ops::Range;
use std::sync::OnceLock;

use burn::cubecl::prelude::CubeElement;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::attend::ROWS;
use super::launch::view;
use crate::cross_encoder::Batch;

/// As all layers have it.
pub(crate) struct Layout {
    pub(super) heads: usize,
    /// `N`
    pub(super) rows: usize,
    /// `B`
    pub(super) pairs: usize,
    /// What is told of them, one after the other.
    numbers: Vec<i32>,
    ranges: [Range<usize>; 9],
    on_device: OnceLock<CubeTensor>,
}

/// What kernels are told of a batch.
#[derive(Clone, Copy)]
pub(super) enum Told {
    /// The first row of each pair: `[B]`.
    Firsts,
    /// Of each row, which pair's first it is, counted from 1, or 0: `[N]`.
    PairOfFirst,
    /// Tiles of all rows, and which rows these attend to: `[tiles, 4]`.
    All,
    /// Of the first row of each pair, where it is by itself, and what it attends to.
    First,
    /// Of all rows, and which of the first rows attends to them.
    ToFirst,
    /// Of each row, which row of the words, of the positions and of the segments it has: `[3, N]`.
    Ids,
    /// Rows by the row of a table that they have, table by table: `[3 * N]`.
    Order,
    /// From where and up to where rows of that order have the same row of a table, at most [`CHUNK`] of
    /// them: `[chunks, 2]`.
    Chunks,
    /// Of each row of a table that tokens have, where in a vector of all tables it begins, and from which and
    /// up to which chunk its own are: `[rows of tables, 3]`.
    Targets,
}

/// Rows that are summed one after the other.
const CHUNK: usize = 64;

impl Layout {
    /// `tables` has the place of each table of embeddings in a vector, and `width` what is a row there.
    pub(crate) fn new(batch: &Batch, heads: usize, tables: &[Range<usize>], width: usize) -> Self {
        let (mut firsts, mut pair_of_first) = (Vec::new(), Vec::new());
        let (mut all, mut first, mut to_first) = (Vec::new(), Vec::new(), Vec::new());
        let mut begin = 0;
        for (pair, (tokens, padded)) in batch.lengths().enumerate() {
            let (end, padded) = (begin + tokens, begin + padded);
            firsts.push(number(begin));
            pair_of_first.resize(padded, 0);
            pair_of_first[begin] = number(pair + 1);
            tiles(&mut all, begin..end, begin..end);
            tiles(&mut first, pair..pair + 1, begin..end);
            tiles(&mut to_first, begin..end, pair..pair + 1);
            // Padding attends to nothing, and nothing to it.
            tiles(&mut all, end..padded, 0..0);
            tiles(&mut to_first, end..padded, 0..0);
            begin = padded;
        }
        let pairs = firsts.len();
        let ids = [&batch.input_ids, &batch.position_ids, &batch.token_type_ids];
        let mut gathered = Gathered::default();
        for (ids, table) in ids.into_iter().zip(tables) {
            gathered.add(ids, table, width);
        }
        let Gathered {
            order,
            chunks,
            targets,
        } = gathered;
        let ids = ids.map(Vec::as_slice).concat();
        let mut numbers = Vec::new();
        let told = [
            firsts,
            pair_of_first,
            all,
            first,
            to_first,
            ids,
            order,
            chunks,
            targets,
        ];
        let ranges = told.map(|told| {
            let begin = numbers.len();
            numbers.extend(told);
            let range = begin..numbers.len();
            numbers.resize(numbers.len().next_multiple_of(NUMBERS), 0);
            range
        });
        Self {
            heads,
            rows: begin,
            pairs,
            numbers,
            ranges,
            on_device: OnceLock::new(),
        }
    }

    /// Where `like` is, and how many numbers it is.
    pub(super) fn told(&self, what: Told, like: &CubeTensor) -> (CubeTensor, usize) {
        let all = self.on_device.get_or_init(|| {
            CubeTensor::new_contiguous(
                like.client.clone(),
                like.device.clone(),
                [self.numbers.len()].into(),
                like.client.create_from_slice(i32::as_bytes(&self.numbers)),
                DType::I32,
            )
        });
        let range = &self.ranges[what as usize];
        (view(all, range.start, [range.len()].into()), range.len())
    }
}

/// Rows in tiles, with the others that belong to each of them.
fn tiles(into: &mut Vec<i32>, rows: Range<usize>, others: Range<usize>) {
    for begin in rows.clone().step_by(ROWS) {
        let end = rows.end.min(begin + ROWS);
        into.extend([begin, end, others.start, others.end].map(number));
    }
}

/// Which tokens have the same row of a table: so their slopes are summed in one order, wherever they are.
#[derive(Default)]
struct Gathered {
    order: Vec<i32>,
    chunks: Vec<i32>,
    targets: Vec<i32>,
}

impl Gathered {
    /// By counting.
    fn add(&mut self, ids: &[i32], table: &Range<usize>, width: usize) {
        let rows = table.len() / width;
        if rows == 0 {
            return;
        }
        let row = |id: &i32| usize::try_from(*id).unwrap_or(0).min(rows - 1);
        // How many tokens have each row, then up to where those are that have it.
        let mut ends = vec![0; rows + 1];
        for id in ids {
            ends[row(id) + 1] += 1;
        }
        let begin = self.order.len();
        ends[0] = begin;
        for row in 0..rows {
            ends[row + 1] += ends[row];
        }
        let mut next = ends.clone();
        self.order.resize(begin + ids.len(), 0);
        for (place, id) in ids.iter().enumerate() {
            let next = &mut next[row(id)];
            self.order[*next] = number(place);
            *next += 1;
        }
        for row in 0..rows {
            let (begin, end) = (ends[row], ends[row + 1]);
            if begin == end {
                continue;
            }
            let first = self.chunks.len() / 2;
            for begin in (begin..end).step_by(CHUNK) {
                self.chunks
                    .extend([begin, end.min(begin + CHUNK)].map(number));
            }
            let last = self.chunks.len() / 2;
            let place = table.start + row * width;
            self.targets.extend([place, first, last].map(number));
        }
    }
}

/// Numbers of 32 bits at multiples of so many begin where a view of memory may.
pub(super) const NUMBERS: usize = 128;

/// 2^31 numbers are in no GPU's vector.
fn number(wide: usize) -> i32 {
    i32::try_from(wide).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words 3, 1, 3 … of a table that begins at 256, whose rows have 8 numbers.
    #[test]
    fn tokens_are_gathered_by_their_row_of_a_table_in_their_order() {
        let ids: Vec<i32> = (0..150)
            .map(|place| if place % 2 == 0 { 3 } else { 1 })
            .collect();
        let mut gathered = Gathered::default();
        gathered.add(&[2], &(0..24), 8);
        gathered.add(&ids, &(256..296), 8);
        gathered.add(&ids, &(512..512), 8);
        let order = (1..150).step_by(2).chain((0..150).step_by(2));
        assert_eq!(
            gathered.order,
            [0].into_iter().chain(order).collect::<Vec<i32>>()
        );
        assert_eq!(gathered.chunks, [0, 1, 1, 65, 65, 76, 76, 140, 140, 151]);
        assert_eq!(gathered.targets, [16, 0, 1, 264, 1, 3, 280, 3, 5]);
    }

    /// Tiles that rows of three pairs are in, of which one is padded, and what each row attends to.
    #[test]
    fn every_row_is_in_one_tile_and_attends_to_its_pair() {
        let encoded = |tokens| crate::Encoded {
            input_ids: vec![1; tokens],
            token_type_ids: vec![0; tokens],
        };
        let inputs = [70, 33, 1].map(encoded);
        let inputs: Vec<&crate::Encoded> = inputs.iter().collect();
        let device = burn::tensor::Device::flex();
        let config = crate::trial::config();
        let layout = |batch: &Batch| Layout::new(batch, 2, &[], 8);
        let unpadded = layout(&Batch::unpadded(&inputs, &config, &device));
        let padded = layout(&Batch::new(&inputs[..2], &config, &device));
        let numbers = |layout: &Layout, what: Told| -> Vec<i32> {
            layout.numbers[layout.ranges[what as usize].clone()].to_vec()
        };
        let attended = |layout: &Layout, what, rows: usize| {
            let mut seen = vec![None; rows];
            for tile in numbers(layout, what).chunks(4) {
                for row in tile[0]..tile[1] {
                    let row = usize::try_from(row).unwrap();
                    assert!(seen[row].replace((tile[2], tile[3])).is_none());
                }
                assert!(tile[1] - tile[0] <= i32::try_from(ROWS).unwrap());
            }
            seen.into_iter().map(Option::unwrap).collect::<Vec<_>>()
        };
        let each = |of: &[((i32, i32), usize)]| {
            let rows = of.iter().map(|(range, rows)| vec![*range; *rows]);
            rows.collect::<Vec<_>>().concat()
        };
        assert_eq!((unpadded.rows, unpadded.pairs), (104, 3));
        let expected = each(&[((0, 70), 70), ((70, 103), 33), ((103, 104), 1)]);
        assert_eq!(attended(&unpadded, Told::All, 104), expected);
        assert_eq!(
            attended(&unpadded, Told::First, 3),
            [(0, 70), (70, 103), (103, 104)]
        );
        let expected = each(&[((0, 1), 70), ((1, 2), 33), ((2, 3), 1)]);
        assert_eq!(attended(&unpadded, Told::ToFirst, 104), expected);
        assert_eq!(numbers(&unpadded, Told::Firsts), [0, 70, 103]);
        let pair_of_first = numbers(&unpadded, Told::PairOfFirst);
        assert_eq!((pair_of_first[70], pair_of_first[71]), (2, 0));

        let expected = each(&[((0, 70), 70), ((70, 103), 33), ((0, 0), 37)]);
        assert_eq!(attended(&padded, Told::All, 140), expected);
        let expected = each(&[((0, 1), 70), ((1, 2), 33), ((0, 0), 37)]);
        assert_eq!(attended(&padded, Told::ToFirst, 140), expected);
    }
}
