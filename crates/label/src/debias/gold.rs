//! Labels whose gains are known, and what corrected labels are worth on them.

use std::collections::BTreeMap;
use std::path::Path;

use retort_data::agreement::{BINS, Bin, Scored, auc, calibration_error, reliability};
use retort_data::collection::Collection;
use retort_data::label_set::{self, Label, LabelSet};
use retort_data::measure::ndcg_of_scores;

use super::{Change, Debias, Map, Method, Subject, Worth, features, top_grade};
use crate::audit::{CUTOFF, estimate, gain_beside, mean_of};
use crate::regression::correlation;
use crate::{AuditSettings, Error, Result, Unlisted};

/// Queries with gold gains for relevant and for other documents, below which nothing is fitted.
const LEAST_QUERIES: usize = 10;
/// Their labels, likewise.
const LEAST_PAIRS: usize = 100;

/// A label whose gain is known.
pub(super) struct Example {
    pub(super) label: Label,
    pub(super) subject: Subject,
    /// The gain as a share of the top gain.
    pub(super) gold: f64,
    gain: u8,
    /// Its query's place in [`Gold::queries`].
    query: usize,
}

/// The labels with gold gains.
pub(super) struct Gold {
    pub(super) examples: Vec<Example>,
    /// For each query the places of its examples, in an order that has nothing to do with ids.
    pub(super) queries: Vec<Vec<usize>>,
    relevant_grade: usize,
    relevant_gain: u8,
}

/// What the labels of one query are worth.
pub(super) struct QueryValues {
    auc: Option<f64>,
    ndcg: Option<f64>,
    bins: [Bin; BINS],
}

impl Gold {
    pub(super) fn read(
        job: &Debias,
        set: &LabelSet,
        collection: &Collection,
        settings: &AuditSettings,
    ) -> Result<Self> {
        let qrels = collection.qrels(job.gold)?;
        let top_grade = set.manifest.top_grade;
        let relevant_grade = settings.relevant_grade(top_grade)?;
        let gains = qrels.values().flat_map(BTreeMap::values);
        let top_gain = gains.copied().max().unwrap_or_default();
        let beside = || gain_beside(relevant_grade, top_grade, top_gain);
        let relevant_gain = settings.relevant_gain.unwrap_or_else(beside);
        let mut by_query: BTreeMap<String, Vec<Example>> = BTreeMap::new();
        for label in &set.labels {
            let (query, document) = label_set::subject(label, collection, job.labels)?;
            let Some(gains) = qrels.get(&label.query_id) else {
                continue;
            };
            let gain = match (gains.get(&label.document_id), settings.unlisted) {
                (Some(gain), _) => *gain,
                (None, Unlisted::Zero) => 0,
                (None, Unlisted::Skip) => continue,
            };
            let features = features::of(&query.text, &document.full_text());
            // Sorted by digest: no fold is one kind of query because ids are.
            let lot = retort_files::sha256(label.query_id.as_bytes());
            by_query.entry(lot).or_default().push(Example {
                label: label.clone(),
                subject: Subject::new(label, features),
                gain,
                query: 0,
                gold: f64::from(gain) / f64::from(top_gain.max(1)),
            });
        }
        let mut gold = Self {
            examples: Vec::new(),
            queries: Vec::new(),
            relevant_grade,
            relevant_gain,
        };
        for (number, examples) in by_query.into_values().enumerate() {
            let first = gold.examples.len();
            gold.queries.push((first..first + examples.len()).collect());
            let numbered = examples.into_iter().map(|it| Example {
                query: number,
                ..it
            });
            gold.examples.extend(numbered);
        }
        gold.check(&collection.qrels_path(job.gold))?;
        Ok(gold)
    }

    /// Whether there is enough to fit anything to.
    fn check(&self, qrels: &Path) -> Result<()> {
        let is_relevant = |place: &usize| self.examples[*place].gain >= self.relevant_gain;
        let has_both = |places: &&Vec<usize>| {
            places.iter().any(is_relevant) && !places.iter().all(is_relevant)
        };
        let (queries, pairs) = (
            self.queries.iter().filter(has_both).count(),
            self.examples.len(),
        );
        if queries >= LEAST_QUERIES && pairs >= LEAST_PAIRS {
            return Ok(());
        }
        let gain = self.relevant_gain;
        Err(Error::File {
            path: qrels.to_owned(),
            problem: format!(
                "has gains for {pairs} of the labels, and {queries} of their queries have both a \
                 relevant document (gain {gain} or more) and another; a correction needs \
                 {LEAST_PAIRS} labels and {LEAST_QUERIES} such queries: judge the labelled \
                 documents of {} more queries",
                LEAST_QUERIES.saturating_sub(queries).max(1)
            ),
        })
    }

    /// The examples' labels, each corrected by a map that was fitted to other queries.
    pub(super) fn held_out(&self, method: Method, folds: usize) -> Vec<Label> {
        let without = |fold| {
            let others = self.examples.iter().filter(|it| it.query % folds != fold);
            Map::fit(method, &others.collect::<Vec<_>>())
        };
        let maps: Vec<Map> = (0..folds).map(without).collect();
        let corrected = |it: &Example| maps[it.query % folds].correct(&it.label, &it.subject);
        self.examples.iter().map(corrected).collect()
    }

    /// What labels of the examples are worth, query by query.
    pub(super) fn values(&self, labels: &[Label]) -> Vec<QueryValues> {
        let of_query = |(query, places): (usize, &Vec<usize>)| {
            let both = |place: &usize| (&labels[*place], self.examples[*place].gain);
            let judged = || places.iter().map(both);
            let is_relevant = |gain: u8| gain >= self.relevant_gain;
            let mut items: Vec<Scored> = judged()
                .map(|(label, gain)| Scored {
                    score: label.grade,
                    positive: is_relevant(gain),
                    query,
                })
                .collect();
            items.sort_by(|a, b| a.score.total_cmp(&b.score));
            let scored: Vec<(f64, u8)> =
                judged().map(|(label, gain)| (label.grade, gain)).collect();
            QueryValues {
                auc: auc(&items, |_| 1.0),
                ndcg: ndcg_of_scores(&scored, CUTOFF),
                bins: reliability(judged().map(|(label, gain)| {
                    let said: f64 = label.probabilities.iter().skip(self.relevant_grade).sum();
                    (said, is_relevant(gain))
                })),
            }
        };
        self.queries.iter().enumerate().map(of_query).collect()
    }

    pub(super) fn worth(&self, values: &[QueryValues], labels: &[Label]) -> Worth {
        let count = values.len();
        let (aucs, ndcgs) = (aucs(values), ndcgs(values));
        let above: Vec<f64> = (labels.iter().zip(&self.examples))
            .map(|(label, example)| label.grade / top_grade(label) - example.gold)
            .collect();
        let with = |(place, name): (usize, &&'static str)| {
            let feature = self.examples.iter().map(|it| it.subject.features[place]);
            let feature: Vec<f64> = feature.collect();
            (*name, correlation(&feature, &above))
        };
        Worth {
            auc: estimate(count, |drawn| mean_of(&aucs, drawn)),
            ndcg: estimate(count, |drawn| mean_of(&ndcgs, drawn)),
            calibration_error: estimate(count, |drawn| error_of(values, drawn)),
            over_rated_with: features::NAMES.iter().enumerate().map(with).collect(),
        }
    }

    /// Paired: a query that is drawn counts before and after.
    pub(super) fn change(&self, before: &[QueryValues], after: &[QueryValues]) -> Change {
        let count = self.queries.len();
        let differences = |after: Vec<Option<f64>>, before: Vec<Option<f64>>| {
            let both = after.into_iter().zip(before);
            let differences: Vec<Option<f64>> = both.map(|(a, b)| Some(a? - b?)).collect();
            estimate(count, |drawn| mean_of(&differences, drawn))
        };
        Change {
            auc: differences(aucs(after), aucs(before)),
            ndcg: differences(ndcgs(after), ndcgs(before)),
            calibration_error: estimate(count, |drawn| {
                Some(error_of(after, drawn)? - error_of(before, drawn)?)
            }),
        }
    }
}

fn aucs(values: &[QueryValues]) -> Vec<Option<f64>> {
    values.iter().map(|query| query.auc).collect()
}

fn ndcgs(values: &[QueryValues]) -> Vec<Option<f64>> {
    values.iter().map(|query| query.ndcg).collect()
}

fn error_of(values: &[QueryValues], drawn: &[usize]) -> Option<f64> {
    let mut bins = [Bin::default(); BINS];
    for place in drawn {
        for (bin, more) in bins.iter_mut().zip(&values[*place].bins) {
            *bin = bin.plus(*more);
        }
    }
    calibration_error(&bins)
}
