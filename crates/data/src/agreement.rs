//! How far two gradings of the same pairs agree. Each function counts what it is given; which pairs
//! that is, and over how many queries, is the caller's to say.

/// Cohen's κ with quadratic weights (Cohen, 1968) of a square table of counts, row by row: one rater
/// names the row, the other the column. 1 is perfect, 0 is what chance gives.
///
/// `None` when chance can't disagree, as where both name one grade alone.
pub fn quadratic_kappa(counts: &[f64], levels: usize) -> Option<f64> {
    let mut rows = vec![0.0; levels];
    let mut columns = vec![0.0; levels];
    for (place, count) in counts.iter().enumerate() {
        rows[place / levels] += count;
        columns[place % levels] += count;
    }
    let total: f64 = rows.iter().sum();
    let (mut seen, mut by_chance) = (0.0, 0.0);
    for (place, count) in counts.iter().enumerate() {
        let (row, column) = (place / levels, place % levels);
        let weight = (row.abs_diff(column) as f64).powi(2);
        seen += weight * count;
        by_chance += weight * rows[row] * columns[column] / total;
    }
    (by_chance > 0.0).then(|| 1.0 - seen / by_chance)
}

/// One item of an [`auc`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The higher, the likelier to be positive.
    pub score: f64,
    /// What it is.
    pub positive: bool,
    /// The place of its query.
    pub query: usize,
}

/// The probability that a positive scores above a negative, ties counting half: the area under the
/// ROC curve (Hanley and McNeil, 1982). `items` are in the order of their scores, `weight` says how
/// often a query counts.
///
/// `None` without both positives and negatives.
pub fn auc(items: &[Scored], weight: impl Fn(usize) -> f64) -> Option<f64> {
    let (mut right, mut positives, mut negatives) = (0.0, 0.0, 0.0);
    for tied in items.chunk_by(|a, b| a.score.total_cmp(&b.score).is_eq()) {
        let (mut positives_here, mut negatives_here) = (0.0, 0.0);
        for item in tied {
            if item.positive {
                positives_here += weight(item.query);
            } else {
                negatives_here += weight(item.query);
            }
        }
        right += positives_here * (negatives + negatives_here / 2.0);
        positives += positives_here;
        negatives += negatives_here;
    }
    (positives > 0.0 && negatives > 0.0).then(|| right / (positives * negatives))
}

/// Pairs of documents of one query, by how scores and gains order them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    /// The scores order them as the gains do.
    pub right: u64,
    /// The scores order them the other way round.
    pub wrong: u64,
    /// The gains differ, the scores are the same.
    pub tied_scores: u64,
    /// The scores differ, the gains are the same.
    pub tied_gains: u64,
}

impl Pairs {
    /// Every pair of scored documents with their gains.
    pub fn of(scored: &[(f64, u8)]) -> Self {
        let mut pairs = Self::default();
        for (place, (score, gain)) in scored.iter().enumerate() {
            for (other_score, other_gain) in &scored[..place] {
                let (by_score, by_gain) = (score.total_cmp(other_score), gain.cmp(other_gain));
                match (by_score.is_eq(), by_gain.is_eq()) {
                    (true, true) => {}
                    (true, false) => pairs.tied_scores += 1,
                    (false, true) => pairs.tied_gains += 1,
                    (false, false) if by_score == by_gain => pairs.right += 1,
                    (false, false) => pairs.wrong += 1,
                }
            }
        }
        pairs
    }

    /// These and others.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            right: self.right + other.right,
            wrong: self.wrong + other.wrong,
            tied_scores: self.tied_scores + other.tied_scores,
            tied_gains: self.tied_gains + other.tied_gains,
        }
    }

    /// The share in the right order among those whose gains differ, tied scores counting half.
    pub fn share_right(&self) -> Option<f64> {
        let of = self.right + self.wrong + self.tied_scores;
        (of > 0).then(|| (self.right as f64 + self.tied_scores as f64 / 2.0) / of as f64)
    }

    /// Kendall's τ-b (Kendall, 1945); `None` when all scores or all gains are the same.
    pub fn tau_b(&self) -> Option<f64> {
        let by_gain = self.right + self.wrong + self.tied_scores;
        let by_score = self.right + self.wrong + self.tied_gains;
        let product = by_gain as f64 * by_score as f64;
        (product > 0.0).then(|| (self.right as f64 - self.wrong as f64) / product.sqrt())
    }
}

/// How many bins [`reliability`] has.
pub const BINS: usize = 10;

/// What was said with about the same probability, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bin {
    /// How many pairs.
    pub pairs: usize,
    /// How many of them are relevant.
    pub relevant: usize,
    /// The sum of their probabilities of being relevant.
    pub said: f64,
}

impl Bin {
    /// This and another.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            pairs: self.pairs + other.pairs,
            relevant: self.relevant + other.relevant,
            said: self.said + other.said,
        }
    }
}

/// Probabilities of being relevant, each with what is so, in ten bins of the same width; a bin holds
/// its lower bound, the last one 1 too.
pub fn reliability(said: impl IntoIterator<Item = (f64, bool)>) -> [Bin; BINS] {
    let mut bins = [Bin::default(); BINS];
    for (probability, is_relevant) in said {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a probability, and a cast of anything else saturates"
        )]
        let place = (probability * BINS as f64) as usize;
        let bin = &mut bins[place.min(BINS - 1)];
        *bin = bin.plus(Bin {
            pairs: 1,
            relevant: usize::from(is_relevant),
            said: probability,
        });
    }
    bins
}

/// The expected calibration error (Naeini et al., 2015): how far a bin's mean probability is from
/// its share of relevant pairs, in the mean over pairs. `None` without pairs.
pub fn calibration_error(bins: &[Bin]) -> Option<f64> {
    let pairs: usize = bins.iter().map(|bin| bin.pairs).sum();
    let off = |bin: &Bin| (bin.said - bin.relevant as f64).abs();
    let off: f64 = bins.iter().map(off).sum();
    (pairs > 0).then(|| off / pairs as f64)
}

/// The value below which a share of the values lies, from 0 to 1, between two values on the line
/// that joins them. `sorted` is in ascending order; `None` of no values.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = share * last as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 0 to the last place"
    )]
    let below = (place.floor() as usize).min(last);
    let above = (below + 1).min(last);
    Some(sorted[below] + (place - below as f64) * (sorted[above] - sorted[below]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(list: &[(f64, bool)]) -> Vec<Scored> {
        let item = |(query, (score, positive)): (usize, &(f64, bool))| Scored {
            score: *score,
            positive: *positive,
            query,
        };
        list.iter().enumerate().map(item).collect()
    }

    #[test]
    fn kappa_is_one_for_the_same_and_none_where_chance_cannot_disagree() {
        assert_eq!(quadratic_kappa(&[3.0, 0.0, 0.0, 2.0], 2), Some(1.0));
        assert_eq!(quadratic_kappa(&[1.0, 1.0, 1.0, 1.0], 2), Some(0.0));
        assert_eq!(quadratic_kappa(&[5.0, 0.0, 0.0, 0.0], 2), None);
        assert_eq!(quadratic_kappa(&[0.0; 4], 2), None);
    }

    #[test]
    fn a_query_drawn_twice_counts_as_two() {
        let once = items(&[(0.1, true), (0.2, false), (0.3, true), (0.3, false)]);
        let twice = items(&[
            (0.1, true),
            (0.1, true),
            (0.2, false),
            (0.3, true),
            (0.3, false),
        ]);
        let weight = |query: usize| if query == 0 { 2.0 } else { 1.0 };
        assert_eq!(auc(&once, weight), auc(&twice, |_| 1.0));
        // One of four is right, one is a tie.
        assert_eq!(auc(&once, |_| 1.0), Some(0.375));
        assert_eq!(auc(&items(&[(0.1, true)]), |_| 1.0), None);
    }

    #[test]
    fn ties_count_half_and_tell_nothing_of_the_order() {
        let pairs = Pairs::of(&[(2.0, 3), (1.0, 0), (1.0, 1), (0.0, 0)]);
        let expected = Pairs {
            right: 4,
            wrong: 0,
            tied_scores: 1,
            tied_gains: 1,
        };
        assert_eq!(pairs, expected);
        assert_eq!(pairs.share_right(), Some(0.9));
        assert_eq!(pairs.tau_b(), Some(0.8));
        assert_eq!(Pairs::of(&[(1.0, 0), (1.0, 0)]).tau_b(), None);
    }

    #[test]
    fn the_bounds_of_bins_are_where_they_are_said_to_be() {
        let bins = reliability([(0.0, false), (0.1, true), (1.0, true), (0.95, false)]);
        let counts = bins.map(|bin| bin.pairs);
        assert_eq!(counts, [1, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
        let error = calibration_error(&bins).unwrap();
        assert!((error - (0.9 + 0.95) / 4.0).abs() < 1e-12, "{error}");
    }
}
