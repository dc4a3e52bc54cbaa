//! What can be told of the data before the first step.

use std::collections::{BTreeSet, HashMap};

use retort_data::label_set::Label;
use retort_model::Encoded;

use crate::evaluation::EvaluationQuery;
use crate::warning::Warning;

/// Queries of an evaluation with the text of one that is learnt from.
pub(crate) fn leak(
    split: &str,
    queries: &[EvaluationQuery],
    learnt: &BTreeSet<String>,
) -> Option<Warning> {
    let both = queries.iter().filter(|q| learnt.contains(&plain(&q.text)));
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

/// Pairs that the student reads as the same tokens, with labels that contradict each other.
pub(crate) fn contradiction(
    labels: &[Label],
    pairs: &[Encoded],
    top_grade: usize,
) -> Option<Warning> {
    let mut same: HashMap<&[u32], (&Label, &Label)> = HashMap::new();
    for (label, pair) in labels.iter().zip(pairs) {
        let (low, high) = same.entry(&pair.input_ids).or_insert((label, label));
        if label.grade < low.grade {
            *low = label;
        }
        if label.grade > high.grade {
            *high = label;
        }
    }
    let share = |label: &Label| label.grade / top_grade as f64;
    let mut apart: Vec<(&Label, &Label)> = same.into_values().collect();
    apart.retain(|(low, high)| share(high) - share(low) > APART);
    let ids = |(low, high): &(&Label, &Label)| {
        [&low.query_id, &low.document_id, &high.document_id].map(Clone::clone)
    };
    apart.sort_by_cached_key(ids);
    let first = apart.first()?;
    Some(Warning::Contradiction {
        count: apart.len(),
        example: ids(first),
        labels: [share(first.0), share(first.1)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(document: &str, grade: f64) -> Label {
        Label {
            query_id: "q".into(),
            document_id: document.into(),
            grade,
            probabilities: Vec::new(),
            mass: 1.0,
            samples: 1,
            text: String::new(),
            at: String::new(),
        }
    }

    fn pair(tokens: &[u32]) -> Encoded {
        Encoded {
            input_ids: tokens.to_vec(),
            token_type_ids: vec![0; tokens.len()],
        }
    }

    #[test]
    fn the_same_text_with_labels_far_apart_is_a_contradiction() {
        let labels = [label("a", 0.2), label("b", 2.9), label("c", 2.8)];
        let of = |tokens: [u32; 3]| {
            let pairs = tokens.map(|token| pair(&[1, token]));
            contradiction(&labels, &pairs, 3)
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
