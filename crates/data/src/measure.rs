//! What a ranking is worth: nDCG, MRR, and how sure one can be.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Orders scored documents: by score, highest first; equal scores by document id, so that the
/// order never depends on how they came. A score that is not a number comes last.
pub fn rank<'a>(scored: &[(&'a str, f32)]) -> Vec<&'a str> {
    let key = |score: f32| {
        if score.is_nan() {
            f32::NEG_INFINITY
        } else {
            score
        }
    };
    let mut order: Vec<_> = scored.to_vec();
    order.sort_by(|a, b| key(b.1).total_cmp(&key(a.1)).then_with(|| a.0.cmp(b.0)));
    order.into_iter().map(|(id, _)| id).collect()
}

/// nDCG at `k` with exponential gain: `DCG = Σ (2^g − 1) / log2(rank + 1)` (Burges et al., 2005),
/// against the ideal order of **all** judged documents of the query, ranked or not.
///
/// `None` when the query has no document with a gain: no order of it is better than another.
pub fn ndcg(ranked: &[&str], gains: &BTreeMap<String, u8>, k: usize) -> Option<f64> {
    let mut ideal: Vec<u8> = gains.values().copied().collect();
    ideal.sort_unstable_by(|a, b| b.cmp(a));
    let best = dcg(ideal.into_iter().take(k));
    let found = ranked
        .iter()
        .take(k)
        .map(|id| gains.get(*id).copied().unwrap_or(0));
    (best > 0.0).then(|| dcg(found) / best)
}

/// [`ndcg`] of scored documents, each with its gain, against the best order of these very
/// documents. Tied documents count as the mean over all their orders (McSherry and Najork, 2008), so
/// that the value hangs on the scores alone.
///
/// `None` when no document has a gain.
pub fn ndcg_of_scores(scored: &[(f64, u8)], k: usize) -> Option<f64> {
    let mut scored = scored.to_vec();
    scored.sort_by_key(|one| std::cmp::Reverse(one.1));
    let best = dcg(scored.iter().map(|(_, gain)| *gain).take(k));
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut found, mut above) = (0.0, 0);
    for tied in scored.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq()) {
        let worth: f64 = tied.iter().map(|(_, gain)| worth(*gain)).sum();
        let below = above + tied.len();
        let discounts: f64 = (above..below.min(k))
            .map(|index| depth(index).recip())
            .sum();
        found += worth / tied.len() as f64 * discounts;
        above = below;
    }
    (best > 0.0).then(|| found / best)
}

fn dcg(gains: impl Iterator<Item = u8>) -> f64 {
    gains
        .enumerate()
        .map(|(index, gain)| worth(gain) / depth(index))
        .sum()
}

fn worth(gain: u8) -> f64 {
    f64::from(gain).exp2() - 1.0
}

/// What a gain at the place `index`, from 0, is divided by.
fn depth(index: usize) -> f64 {
    (index as f64 + 2.0).log2()
}

/// 1 / rank of the first document with a gain of at least `relevant_gain` among the first `k`,
/// else 0.
pub fn reciprocal_rank(
    ranked: &[&str],
    gains: &BTreeMap<String, u8>,
    k: usize,
    relevant_gain: u8,
) -> f64 {
    ranked
        .iter()
        .take(k)
        .position(|id| gains.get(*id).is_some_and(|gain| *gain >= relevant_gain))
        .map_or(0.0, |index| 1.0 / (index as f64 + 1.0))
}

/// The mean; 0 for no values.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() {
        0.0
    } else {
        values.iter().sum::<f64>() / values.len() as f64
    }
}

/// Resamples of a bootstrap.
const RESAMPLES: usize = 2000;

/// The 95 % percentile bootstrap interval (Efron, 1979) of a statistic of queries, from a fixed
/// seed: the same queries give the same interval. `statistic` is handed the places of the queries
/// that were drawn; draws of which it has no value are left out.
///
/// `None` when no draw has a value.
pub fn bootstrap(
    queries: usize,
    mut statistic: impl FnMut(&[usize]) -> Option<f64>,
) -> Option<(f64, f64)> {
    if queries == 0 {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut drawn = vec![0; queries];
    let mut values = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        drawn.fill_with(|| rng.random_range(0..queries));
        values.extend(statistic(&drawn));
    }
    values.sort_by(f64::total_cmp);
    let outside = values.len() / 40;
    Some((*values.get(outside)?, values[values.len() - 1 - outside]))
}

/// [`bootstrap`] of the mean of values, one a query; zeros for no values.
pub fn bootstrap_interval(values: &[f64]) -> (f64, f64) {
    bootstrap(values.len(), |drawn| {
        let total: f64 = drawn.iter().map(|place| values[*place]).sum();
        Some(total / values.len() as f64)
    })
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gains(list: &[(&str, u8)]) -> BTreeMap<String, u8> {
        list.iter()
            .map(|(id, gain)| ((*id).to_owned(), *gain))
            .collect()
    }

    #[test]
    fn ndcg_is_the_published_formulas() {
        let gold = gains(&[("a", 3), ("b", 1), ("c", 0), ("d", 1)]);
        assert_eq!(ndcg(&["a", "b", "d", "c"], &gold, 4), Some(1.0));
        let other = ndcg(&["b", "a", "d", "c"], &gold, 4).unwrap();
        assert!((other - 0.727_654_580).abs() < 1e-9, "{other}");
    }

    #[test]
    fn the_ideal_counts_documents_that_were_not_ranked() {
        let gold = gains(&[("a", 3), ("b", 3)]);
        let half_found = ndcg(&["a"], &gold, 10).unwrap();
        assert!((half_found - 1.0 / (1.0 + 1.0 / 3.0_f64.log2())).abs() < 1e-12);
        assert_eq!(ndcg(&["a"], &gains(&[("a", 0)]), 10), None);
    }

    #[test]
    fn ties_are_worth_the_mean_of_their_orders() {
        let gold = gains(&[("a", 3), ("b", 1), ("c", 0)]);
        let orders = [["a", "b", "c"], ["b", "a", "c"]];
        let of_orders: f64 = orders
            .iter()
            .map(|order| ndcg(order, &gold, 2).unwrap() / 2.0)
            .sum();
        let tied = ndcg_of_scores(&[(0.5, 1), (0.1, 0), (0.5, 3)], 2).unwrap();
        assert!((tied - of_orders).abs() < 1e-12, "{tied} {of_orders}");
        assert_eq!(ndcg_of_scores(&[(0.5, 0)], 2), None);
    }

    #[test]
    fn reciprocal_rank_counts_from_the_gain_that_is_asked_for() {
        let gold = gains(&[("a", 1), ("b", 3)]);
        assert!((reciprocal_rank(&["a", "b"], &gold, 10, 3) - 0.5).abs() < 1e-12);
        assert!((reciprocal_rank(&["a", "b"], &gold, 10, 1) - 1.0).abs() < 1e-12);
        assert!(reciprocal_rank(&["a", "b"], &gold, 1, 3).abs() < 1e-12);
    }

    #[test]
    fn ties_go_by_id_and_nan_comes_last() {
        assert_eq!(
            rank(&[("n", f32::NAN), ("b", 1.0), ("a", 1.0), ("c", 2.0)]),
            ["c", "a", "b", "n"]
        );
    }

    #[test]
    fn the_interval_holds_the_mean_and_shrinks_with_more_queries() {
        let few: Vec<f64> = (0..20).map(|i| f64::from(i % 5) / 4.0).collect();
        let many: Vec<f64> = (0..500).map(|i| f64::from(i % 5) / 4.0).collect();
        let ((low, high), (low_many, high_many)) =
            (bootstrap_interval(&few), bootstrap_interval(&many));
        assert!(low < 0.5 && 0.5 < high);
        assert!(high_many - low_many < (high - low) / 3.0);
    }
}
