//! Orders that are written out: `[2] > [1] > [3]` (RankGPT: Sun et al., 2023, arXiv 2304.09542).

use super::{Problem, shortened};

/// An order of all documents that were shown.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Read {
    /// The places at which they were shown, from 0, best first.
    pub(crate) ranking: Vec<usize>,
    /// How many of them the teacher named; the rest follow as they were shown.
    pub(crate) placed: usize,
}

/// Reads the order of so many documents.
///
/// Nothing but numbers in brackets and `>` between them is an order. One that is no permutation is
/// repaired as RankGPT does it: a number counts where it comes first, one of no document is left
/// out, and the missing are appended as they were shown. An order that names fewer than half of the
/// documents is none.
pub(crate) fn read(written: &str, documents: usize) -> Result<Read, Problem> {
    let unreadable = |why: &str| {
        let shown = shortened(written);
        Problem::Unreadable(format!(
            "expected an order of {documents} documents such as [2] > [1]; {why}: {shown:?}"
        ))
    };
    let mut ranking = Vec::with_capacity(documents);
    for part in written.trim().split('>') {
        let number = bracketed(part.trim()).ok_or_else(|| unreadable("this is another thing"))?;
        if let Some(place) = number.checked_sub(1)
            && place < documents
            && !ranking.contains(&place)
        {
            ranking.push(place);
        }
    }
    let placed = ranking.len();
    if 2 * placed < documents {
        return Err(unreadable("fewer than half are there"));
    }
    for place in 0..documents {
        if !ranking.contains(&place) {
            ranking.push(place);
        }
    }
    Ok(Read { ranking, placed })
}

/// The number in brackets.
fn bracketed(text: &str) -> Option<usize> {
    let digits = text.strip_prefix('[')?.strip_suffix(']')?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    // No document has a number that large.
    is_number.then(|| digits.parse().unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn orders_are_read_and_repaired() {
        for (written, ranking, placed) in [
            ("[2] > [1] > [4] > [3]", [1, 0, 3, 2], 4),
            (" [2]>[1]>\n[4] > [3]\n", [1, 0, 3, 2], 4),
            ("[3] > [1]", [2, 0, 1, 3], 2),
            ("[3] > [3] > [9] > [0] > [1]", [2, 0, 1, 3], 2),
            ("[4] > [2] > [99999999999999999999999]", [3, 1, 0, 2], 2),
        ] {
            let ranking = ranking.to_vec();
            assert_eq!(
                read(written, 4).unwrap(),
                Read { ranking, placed },
                "{written}"
            );
        }
    }

    #[test]
    fn what_is_no_order_is_refused() {
        for written in [
            "",
            "[4]",
            "2 > 1 > 4 > 3",
            "[2] > [1] > [4] > ",
            "[2] > [1], [4] > [3]",
            "The order is [2] > [1] > [4] > [3]",
            "[2] > [1] > [+4] > [3]",
            "[2] > [1] > [ 4 ] > [3]",
            "[2] > [] > [4]",
            "[9] > [8] > [7] > [1]",
        ] {
            assert!(read(written, 4).is_err(), "{written}");
        }
    }

    proptest! {
        #[test]
        fn a_permutation_is_read_as_it_is(ranking in Just((0..20).collect::<Vec<usize>>()).prop_shuffle()) {
            let written: Vec<String> = ranking.iter().map(|place| format!("[{}]", place + 1)).collect();
            let read = read(&written.join(" > "), 20).unwrap();
            prop_assert_eq!(read, Read { ranking, placed: 20 });
        }

        #[test]
        fn whatever_is_written_is_refused_or_made_a_permutation(written in "(\\[[0-9]{0,2}\\]|>| |[a-z]){0,40}") {
            if let Ok(read) = read(&written, 6) {
                let mut places = read.ranking.clone();
                places.sort_unstable();
                prop_assert_eq!(places, (0..6).collect::<Vec<_>>());
                prop_assert!((3..=6).contains(&read.placed));
            }
        }
    }
}
