//! What can be told of the data before the first step.

use std::collections::{BTreeSet, HashMap};

use crate::evaluation::EvaluationQuery;
use crate::warning::Warning;

/// Queries of an evaluation with the text of one that is learnt from.
pub(crate) fn leak(
    split: &str,
    queries: &[EvaluationQuery],
    leaked: &BTreeSet<String>,
) -> Option<Warning> {
    let both = queries.iter().filter(|q| leaked.contains(&plain(&q.text)));
    let both: Vec<String> = both.map(|query| query.id.clone()).collect();
    (!both.is_empty()).then(|| Warning::Leak {
        split: split.to_owned(),
        queries: both,
        of: queries.len(),
    })
}

/// A text without what hardly makes it another: case and spaces.
pub(crate) fn plain(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").to_lowercase()
}

/// Labels that are this far apart, as shares of the top grade, contradict each other.
const APART: f64 = 0.5;

/// Documents of a query that the student reads as the same tokens, with labels that contradict each
/// other.
#[derive(Default)]
pub(crate) struct Contradictions {
    count: usize,
    first: Option<Apart>,
}

/// A query, two of its documents, and their labels.
type Apart = ([String; 3], [f64; 2]);

impl Contradictions {
    /// Looks at a query's documents: their ids, the judged shares of the top grade, and the tokens.
    pub(crate) fn of_query<'a>(
        &mut self,
        query: &str,
        documents: impl Iterator<Item = ((&'a str, f64), &'a [u32])>,
    ) {
        let mut same: HashMap<&[u32], [(&str, f64); 2]> = HashMap::new();
        for (judged, tokens) in documents {
            let [low, high] = same.entry(tokens).or_insert([judged; 2]);
            if judged.1 < low.1 {
                *low = judged;
            }
            if judged.1 > high.1 {
                *high = judged;
            }
        }
        let apart = same
            .into_values()
            .filter(|[low, high]| high.1 - low.1 > APART);
        let apart = apart.map(|[low, high]| {
            let ids = [query, low.0, high.0].map(str::to_owned);
            (ids, [low.1, high.1])
        });
        let mut apart: Vec<Apart> = apart.collect();
        apart.sort_by(|a, b| a.0.cmp(&b.0));
        self.count += apart.len();
        if self.first.is_none() {
            self.first = apart.into_iter().next();
        }
    }

    pub(crate) fn warning(self) -> Option<Warning> {
        let (example, labels) = self.first?;
        Some(Warning::Contradiction {
            count: self.count,
            example,
            labels,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_with_labels_far_apart_is_a_contradiction() {
        let judged = [("a", 0.1), ("b", 0.97), ("c", 0.93)];
        let of = |tokens: [u32; 3]| {
            let tokens = tokens.map(|token| [1, token]);
            let tokens = tokens.iter().map(<[u32; 2]>::as_slice);
            let mut contradictions = Contradictions::default();
            contradictions.of_query("q", judged.into_iter().zip(tokens));
            contradictions.warning()
        };
        // Each of its own, and two that agree.
        assert_eq!(of([1, 2, 3]), None);
        assert_eq!(of([1, 2, 2]), None);
        let Some(Warning::Contradiction { count, example, .. }) = of([5, 5, 5]) else {
            panic!("nothing was found");
        };
        assert_eq!((count, example), (1, ["q", "a", "b"].map(str::to_owned)));
    }

    #[test]
    fn a_query_that_differs_in_case_alone_is_a_leak() {
        let query = |id: &str, text: &str| EvaluationQuery {
            id: id.into(),
            text: text.into(),
            candidates: Vec::new(),
        };
        let learnt = BTreeSet::from([plain("Cordless  drill"), plain("bath towel")]);
        let queries = [
            query("q1", "cordless drill "),
            query("q2", "cordless drills"),
        ];
        assert_eq!(
            leak("test", &queries, &learnt),
            Some(Warning::Leak {
                split: "test".into(),
                queries: vec!["q1".into()],
                of: 2
            })
        );
        assert_eq!(leak("test", &queries[1..], &learnt), None);
    }
}
