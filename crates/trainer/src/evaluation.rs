//! Ranking candidates and measuring the rankings against gold gains.

use std::collections::BTreeMap;
use std::path::Path;

use retort_data::candidates;
use retort_data::collection::{Collection, Qrels};
use retort_data::measure;
use retort_model::{CrossEncoder, Encoded, PairTokenizer};

use crate::{Error, Result};

/// The rank that nDCG and MRR are cut at.
const CUTOFF: usize = 10;

/// Queries with gold gains and the candidates that every system ranks. No gold document is put
/// among the candidates: what the first stage missed, no system can find.
pub(crate) struct Evaluation {
    pub(crate) queries: Vec<EvaluationQuery>,
    qrels: Qrels,
}

/// One query of an [`Evaluation`].
#[derive(Clone)]
pub(crate) struct EvaluationQuery {
    pub(crate) id: String,
    pub(crate) text: String,
    pub(crate) candidates: Vec<String>,
}

/// What one system is worth, query by query.
pub(crate) struct Measured {
    pub(crate) ndcg: Vec<f64>,
    pub(crate) reciprocal_ranks: Vec<f64>,
}

impl Measured {
    pub(crate) fn mean_ndcg(&self) -> f64 {
        measure::mean(&self.ndcg)
    }
}

impl Evaluation {
    /// The queries of `split` that have both candidates and a gain: without a gain no order is
    /// better than another.
    ///
    /// # Errors
    /// A missing or malformed file, or no query left.
    pub(crate) fn read(collection: &Collection, split: &str, candidates: &Path) -> Result<Self> {
        let qrels = collection.qrels(split)?;
        let mut by_query: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for candidate in candidates::read(candidates)? {
            collection.document(&candidate.document_id, candidates)?;
            by_query
                .entry(candidate.query_id)
                .or_default()
                .push(candidate.document_id);
        }
        let mut queries = Vec::new();
        for (id, candidates_of) in by_query {
            let text = collection.query(&id, candidates)?.text;
            let has_gain = |gains: &BTreeMap<String, u8>| gains.values().any(|gain| *gain > 0);
            if qrels.get(&id).is_some_and(has_gain) {
                queries.push(EvaluationQuery {
                    id,
                    text,
                    candidates: candidates_of,
                });
            }
        }
        if queries.is_empty() {
            return Err(Error::Data(retort_data::Error::File {
                path: candidates.to_owned(),
                problem: format!("none of its queries has a gain in the split {split:?}"),
            }));
        }
        Ok(Self { queries, qrels })
    }

    /// Some of its queries.
    pub(crate) fn only(&self, keep: impl Fn(&EvaluationQuery) -> bool) -> Self {
        let queries = self.queries.iter().filter(|query| keep(query));
        Self {
            queries: queries.cloned().collect(),
            qrels: self.qrels.clone(),
        }
    }

    /// Tokenises every candidate pair, query by query.
    pub(crate) fn encode(
        &self,
        collection: &Collection,
        tokenizer: &PairTokenizer,
        source: &Path,
    ) -> Result<Vec<Encoded>> {
        let mut texts = Vec::new();
        for query in &self.queries {
            for id in &query.candidates {
                texts.push((&*query.text, collection.document(id, source)?.full_text()));
            }
        }
        let pairs: Vec<(&str, &str)> = texts
            .iter()
            .map(|(query, document)| (*query, &**document))
            .collect();
        Ok(tokenizer.encode_pairs(&pairs)?)
    }

    /// What a student is worth on what [`Evaluation::encode`] made.
    pub(crate) fn of_student(
        &self,
        student: &CrossEncoder,
        pairs: &[Encoded],
        tokens_per_pass: usize,
        relevant_gain: u8,
    ) -> Result<Measured> {
        let scores = retort_model::score(student, pairs, tokens_per_pass)?;
        Ok(self.of_scores(scores, relevant_gain))
    }

    /// The same of one that gives these scores to what [`Evaluation::encode`] made.
    pub(crate) fn of_scores(&self, scores: Vec<f32>, relevant_gain: u8) -> Measured {
        let mut scores = scores.into_iter();
        let next = |_: &EvaluationQuery, _: &str| scores.next().unwrap_or(f32::NAN);
        self.measure(relevant_gain, next)
    }

    /// What a system is worth that gives each candidate a score. It is asked query by query, in
    /// the order of the candidates.
    pub(crate) fn measure(
        &self,
        relevant_gain: u8,
        mut score: impl FnMut(&EvaluationQuery, &str) -> f32,
    ) -> Measured {
        let mut measured = Measured {
            ndcg: Vec::new(),
            reciprocal_ranks: Vec::new(),
        };
        for query in &self.queries {
            let scored: Vec<(&str, f32)> = query
                .candidates
                .iter()
                .map(|id| (&**id, score(query, id)))
                .collect();
            let ranked = measure::rank(&scored);
            let gains = &self.qrels[&query.id];
            measured
                .ndcg
                .push(measure::ndcg(&ranked, gains, CUTOFF).unwrap_or_default());
            let reciprocal = measure::reciprocal_rank(&ranked, gains, CUTOFF, relevant_gain);
            measured.reciprocal_ranks.push(reciprocal);
        }
        measured
    }
}
