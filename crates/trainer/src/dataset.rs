//! Labels as training examples: tokenised pairs with a teacher logit, grouped by query.

use std::collections::BTreeMap;
use std::path::Path;

use retort_data::collection::Collection;
use retort_data::label_set::{self, Label};
use retort_model::{Encoded, PairTokenizer};

use crate::Result;

/// All examples of a label set; a position in these lists names an example.
pub(crate) struct Dataset {
    /// Tokenised pairs.
    pub(crate) pairs: Vec<Encoded>,
    /// The teacher's score of each, as a logit.
    pub(crate) targets: Vec<f32>,
    /// The examples of each query, in the order of query ids.
    pub(crate) queries: Vec<QueryExamples>,
}

/// The examples of one query.
pub(crate) struct QueryExamples {
    pub(crate) id: String,
    pub(crate) examples: Vec<usize>,
}

impl Dataset {
    /// Reads a label set and tokenises what it judged.
    ///
    /// # Errors
    /// A bad label set, a label about a text that has changed since, or a tokenizer that refuses.
    pub(crate) fn read(
        labels: &Path,
        collection: &Collection,
        tokenizer: &PairTokenizer,
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
        Ok(Self {
            pairs: tokenizer.encode_pairs(&pairs)?,
            targets: (set.labels.iter())
                .map(|label| teacher_logit(label, set.manifest.top_grade))
                .collect(),
            queries,
        })
    }
}

/// Keeps a certain teacher's logit finite: grades within this share of the scale's ends count as
/// that far from them. So a strength from comparisons or orders is its own target up to ±4.6, and
/// stronger documents are not told apart.
const LEAST_DOUBT: f64 = 0.01;

/// The expected grade as a logit: `log(p / (1 − p))` of its share `p` of the top grade, so that
/// the student's sigmoid estimates that share.
fn teacher_logit(label: &Label, top_grade: usize) -> f32 {
    let share = label.grade / top_grade as f64;
    let share = share.clamp(LEAST_DOUBT, 1.0 - LEAST_DOUBT);
    #[expect(clippy::cast_possible_truncation, reason = "within ±4.6")]
    let logit = (share / (1.0 - share)).ln() as f32;
    logit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strength_is_its_own_target_as_far_as_doubt_is_left() {
        for (strength, target) in [
            (1.7, 1.7),
            (-4.5, -4.5),
            (0.0, 0.0),
            (7.0, 4.595),
            (-50.0, -4.595),
        ] {
            let p = 1.0 / (1.0 + f64::exp(-strength));
            let label = Label {
                query_id: "q".into(),
                document_id: "d".into(),
                grade: p,
                probabilities: vec![1.0 - p, p],
                mass: 1.0,
                samples: 8,
                text: String::new(),
                at: String::new(),
            };
            let logit = teacher_logit(&label, 1);
            assert!((logit - target).abs() < 1e-3, "{strength}: {logit}");
        }
    }
}
