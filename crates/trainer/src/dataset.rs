//! Labels as training examples: tokenised pairs with what a student is to learn of each, grouped by
//! query.

use std::collections::{BTreeMap, BTreeSet};

use retort_data::collection::Collection;
use retort_data::label_set::{self, Label};
use retort_model::{Encoded, PairTokenizer};

use crate::loss::Target;
use crate::sentinels::data::contradiction;
use crate::warning::Warning;
use crate::{Error, Result, TrainSettings};

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
    /// Reads the settings' label set and tokenises what it judged.
    ///
    /// # Errors
    /// A bad label set, one of fewer queries than are to be learned from, a label about a text that
    /// has changed since, or a tokenizer that refuses.
    pub(crate) fn read(
        settings: &TrainSettings,
        collection: &Collection,
        tokenizer: &PairTokenizer,
    ) -> Result<Self> {
        let labels = &settings.data.labels;
        let uncertainty = settings.loss.uncertainty;
        let mut set = label_set::read(labels)?;
        if let Some(count) = settings.data.queries {
            keep_queries(&mut set.labels, count, settings.seed)?;
        }
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

/// How many queries labels are about.
pub(crate) fn count_queries(labels: &[Label]) -> usize {
    let queries: BTreeSet<&str> = labels.iter().map(|label| &*label.query_id).collect();
    queries.len()
}

/// Leaves the labels of `count` queries, those with the lowest lots: whether a query is among them
/// depends on it, the seed and the number alone.
fn keep_queries(labels: &mut Vec<Label>, count: usize, seed: u64) -> Result<()> {
    let queries: BTreeSet<String> = labels.iter().map(|label| label.query_id.clone()).collect();
    if count > queries.len() {
        let there_are = queries.len();
        return Err(Error::Setting {
            key: "data.queries",
            problem: format!("is {count}, but the label set has {there_are} queries"),
        });
    }
    let mut drawn: Vec<String> = queries.into_iter().collect();
    drawn.sort_by_cached_key(|query| retort_files::sha256(format!("{seed}:{query}").as_bytes()));
    let kept: BTreeSet<String> = drawn.into_iter().take(count).collect();
    labels.retain(|label| kept.contains(&label.query_id));
    Ok(())
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
    fn fewer_queries_are_some_of_more() {
        let of_query = |query: usize| Label {
            query_id: format!("q{}", query % 20),
            ..label(&[0.5, 0.5])
        };
        let all: Vec<Label> = (0..60).map(of_query).collect();
        let kept = |count, seed| {
            let mut labels = all.clone();
            keep_queries(&mut labels, count, seed).unwrap();
            let queries = labels.iter().map(|label| label.query_id.clone());
            (labels.len(), queries.collect::<BTreeSet<_>>())
        };
        let (rows, mut before) = kept(1, 7);
        assert_eq!(rows, 3);
        for count in 2..=20 {
            let (rows, queries) = kept(count, 7);
            assert_eq!((rows, queries.len()), (3 * count, count));
            assert!(queries.is_superset(&before));
            before = queries;
        }
        assert_ne!(kept(10, 7).1, kept(10, 8).1);
        let error = keep_queries(&mut all.clone(), 21, 7)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "data.queries: is 21, but the label set has 20 queries"
        );
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
