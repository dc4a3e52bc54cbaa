//! Which of a query's documents meet in a question, and in which order.
//!
//! It hangs on lots: numbers that look random and are functions of the ids alone. So it is the same
//! in every run, and another candidate makes only those questions new that it is part of.

use std::collections::BTreeSet;
use std::ops::Range;

use sha2::{Digest, Sha256};

/// The pairs of documents to compare, by their places in `document_ids`: the edges of `degree / 2`
/// random Hamiltonian cycles, so that each document is compared `degree` times and all are
/// connected (zELO: Pipitone et al., 2025, arXiv 2509.12541). An edge of two cycles is compared
/// once. All pairs, where that is no more.
pub(crate) fn comparisons(
    query_id: &str,
    document_ids: &[&str],
    degree: usize,
) -> Vec<(usize, usize)> {
    let count = document_ids.len();
    if count <= degree + 1 {
        let pairs = |first| (first + 1..count).map(move |second| (first, second));
        return (0..count).flat_map(pairs).collect();
    }
    let mut edges = BTreeSet::new();
    for round in 0..degree / 2 {
        let cycle = shuffled(query_id, round, document_ids);
        for (place, one) in cycle.iter().enumerate() {
            let next = cycle[(place + 1) % count];
            edges.insert((*one.min(&next), *one.max(&next)));
        }
    }
    edges.into_iter().collect()
}

/// The places of documents in a random order, another one each round.
pub(crate) fn shuffled(query_id: &str, round: usize, document_ids: &[&str]) -> Vec<usize> {
    let lots: Vec<_> = (document_ids.iter())
        .map(|id| lot(query_id, round, id))
        .collect();
    let mut places: Vec<usize> = (0..document_ids.len()).collect();
    places.sort_unstable_by_key(|place| (lots[*place], document_ids[*place]));
    places
}

/// Windows of at most `size` over so many documents, each half over the one before it.
pub(crate) fn windows(count: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    let last = count.saturating_sub(size);
    let firsts = (0..last).step_by((size / 2).max(1)).chain([last]);
    firsts.map(move |first| first..(first + size).min(count))
}

fn lot(query_id: &str, round: usize, document_id: &str) -> [u8; 32] {
    let mut hasher = Sha256::new();
    // The length keeps ("ab", "c") apart from ("a", "bc").
    hasher.update((query_id.len() as u64).to_le_bytes());
    hasher.update(query_id);
    hasher.update((round as u64).to_le_bytes());
    hasher.update(document_id);
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("d{number}")).collect()
    }

    /// The comparisons of the first `count` documents, by id.
    fn compared(count: usize, degree: usize) -> HashSet<(String, String)> {
        let ids = ids(count);
        let shown: Vec<&str> = ids.iter().map(String::as_str).collect();
        (comparisons("q", &shown, degree).into_iter())
            .map(|(a, b)| (ids[a].clone(), ids[b].clone()))
            .collect()
    }

    proptest! {
        #[test]
        fn every_document_is_compared_and_all_are_connected(
            count in 2..60usize,
            half in 1..5usize,
        ) {
            let degree = 2 * half;
            let edges = compared(count, degree);
            prop_assert!(edges.iter().all(|(a, b)| a != b));
            let neighbours = |id: &String| -> HashSet<&String> {
                edges.iter()
                    .filter_map(|(a, b)| (a == id).then_some(b).or((b == id).then_some(a)))
                    .collect()
            };
            let all = ids(count);
            for id in &all {
                let met = neighbours(id).len();
                prop_assert!(met <= degree && met >= 2.min(count - 1), "{id} meets {met}");
            }
            let mut reached: HashSet<&String> = HashSet::from([&all[0]]);
            let mut next = vec![&all[0]];
            while let Some(id) = next.pop() {
                next.extend(neighbours(id).into_iter().filter(|id| reached.insert(id)));
            }
            prop_assert_eq!(reached.len(), count);
        }

        #[test]
        fn windows_overlap_by_half_and_leave_nothing_out(count in 2..200usize, size in 2..40usize) {
            let windows: Vec<_> = windows(count, size).collect();
            let shown: HashSet<usize> = windows.iter().cloned().flatten().collect();
            prop_assert_eq!(shown.len(), count);
            prop_assert!(windows.iter().all(|window| window.len() == size.min(count)));
            for two in windows.windows(2) {
                prop_assert!(two[0].end >= two[1].start + size.div_ceil(2));
            }
        }
    }

    #[test]
    fn a_further_document_makes_its_own_comparisons_new_and_no_others() {
        let (before, after) = (compared(30, 4), compared(31, 4));
        let new: Vec<_> = after.difference(&before).collect();
        assert!(new.len() <= 4, "{new:?}");
        assert!(new.iter().all(|(a, b)| a == "d30" || b == "d30"), "{new:?}");
    }

    #[test]
    fn queries_and_rounds_are_shuffled_each_in_its_own_way() {
        let ids = ids(20);
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let orders: HashSet<Vec<usize>> = [("q", 0), ("q", 1), ("r", 0), ("r", 1)]
            .map(|(query, round)| shuffled(query, round, &ids))
            .into();
        assert_eq!(orders.len(), 4);
        assert_eq!(shuffled("q", 0, &ids), shuffled("q", 0, &ids));
    }
}
