//! Labels as training examples: tokenised pairs with what a student is to learn of each, grouped by
//! query.

use std::collections::BTreeMap;
use std::path::Path;

use retort_data::collection::Collection;
use retort_data::label_set::{self, Label};
use retort_model::{Encoded, PairTokenizer};

use crate::Result;
use crate::loss::Target;
use crate::sentinels::data::contradiction;
use crate::warning::Warning;

/// All examples of a label set; a position in these lists names an example.
pub(crate) struct Dataset {
    /// Tokenised pairs.
    pub(crate) pairs: Vec<Encoded>,
    /// What the teacher said of each.
    pub(crate) targets: Vec<Target>,
    /// The examples of each query, in the order of query ids.
    pub(crate) queries: Vec<QueryExamples>,
    /// What is probably wrong with the labels.
    pub(crate) warning: Option<Warning>,
}

/// The examples of one query.
pub(crate) struct QueryExamples {
    pub(crate) id: String,
    pub(crate) examples: Vec<usize>,
}

impl Dataset {
    /// Reads a label set and tokenises what it judged. `uncertainty` is that of
    /// [`LossSettings`](crate::LossSettings).
    ///
    /// # Errors
    /// A bad label set, a label about a text that has changed since, or a tokenizer that refuses.
    pub(crate) fn read(
        labels: &Path,
        collection: &Collection,
        tokenizer: &PairTokenizer,
        uncertainty: f64,
    ) -> Result<Self> {
        let set = label_set::read(labels)?;
        let mut texts = Vec::with_capacity(set.labels.len());
        let mut by_query: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (example, label) in set.labels.iter().enumerate() {
            let (query, document) = label_set::subject(label, collection, labels)?;
            texts.push((query.text.as_str(), document.full_text()));
            by_query.entry(&label.query_id).or_default().push(example);
        }
        let pairs: Vec<(&str, &str)> = texts
            .iter()
            .map(|(query, document)| (*query, document.as_str()))
            .collect();
        let queries = by_query
            .into_iter()
            .map(|(id, examples)| QueryExamples {
                id: id.to_owned(),
                examples,
            })
            .collect();
        let (pairs, top_grade) = (tokenizer.encode_pairs(&pairs)?, set.manifest.top_grade);
        Ok(Self {
            warning: contradiction(&set.labels, &pairs, top_grade),
            pairs,
            targets: (set.labels.iter())
                .map(|label| target(label, top_grade, uncertainty))
                .collect(),
            queries,
        })
    }
}

/// Keeps a certain teacher's logit finite: grades within this share of the scale's ends count as
/// that far from them. So a strength from comparisons or orders is its own target up to ±4.6, and
/// stronger documents are not told apart.
const LEAST_DOUBT: f64 = 0.01;

/// The expected grade as a logit, `log(p / (1 − p))` of its share `p` of the top grade, so that the
/// student's sigmoid estimates that share; and the variance of that share as doubt.
#[expect(
    clippy::cast_possible_truncation,
    reason = "logits within ±4.6, grades and doubt of few digits"
)]
fn target(label: &Label, top_grade: usize, uncertainty: f64) -> Target {
    let top_grade = top_grade as f64;
    let share = label.grade / top_grade;
    let probabilities = label.probabilities.iter().enumerate();
    let variance: f64 = probabilities
        .map(|(grade, p)| p * (grade as f64 / top_grade - share).powi(2))
        .sum();
    let share = share.clamp(LEAST_DOUBT, 1.0 - LEAST_DOUBT);
    Target {
        logit: (share / (1.0 - share)).ln() as f32,
        grade: label.grade as f32,
        doubt: (uncertainty * variance) as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(probabilities: &[f64]) -> Label {
        Label {
            query_id: "q".into(),
            document_id: "d".into(),
            grade: label_set::expected_grade(probabilities),
            probabilities: probabilities.to_vec(),
            mass: 1.0,
            samples: 8,
            text: String::new(),
            at: String::new(),
        }
    }

    #[test]
    fn a_strength_is_its_own_target_as_far_as_doubt_is_left() {
        for (strength, expected) in [
            (1.7, 1.7),
            (-4.5, -4.5),
            (0.0, 0.0),
            (7.0, 4.595),
            (-50.0, -4.595),
        ] {
            let p = 1.0 / (1.0 + f64::exp(-strength));
            let logit = target(&label(&[1.0 - p, p]), 1, 0.0).logit;
            assert!((logit - expected).abs() < 1e-3, "{strength}: {logit}");
        }
    }

    #[test]
    fn doubt_is_the_variance_of_the_grade() {
        let doubt = |probabilities: &[f64], uncertainty| {
            target(&label(probabilities), 3, uncertainty).doubt
        };
        assert!(doubt(&[0.0, 0.0, 1.0, 0.0], 10.0).abs() < 1e-6);
        // Half at each end of the scale is the most: a variance of 1/4.
        assert!((doubt(&[0.5, 0.0, 0.0, 0.5], 10.0) - 2.5).abs() < 1e-6);
        assert!((doubt(&[0.0, 0.5, 0.5, 0.0], 36.0) - 1.0).abs() < 1e-6);
        assert!(doubt(&[0.5, 0.0, 0.0, 0.5], 0.0).abs() < 1e-9);
    }
}
