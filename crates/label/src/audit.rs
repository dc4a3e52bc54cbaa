//! What a teacher's labels are worth: how they are spread, and how far they agree with gold gains.
//!
//! The *soft* label is the expected grade, which training reads; the *hard* label is the likeliest
//! grade, the lower of two that are as likely. Both are held against the same pairs, so that what
//! the probabilities add shows.

mod report;
mod settings;

use std::collections::BTreeMap;
use std::path::Path;

use retort_data::agreement::{
    BINS, Bin, Pairs, Scored, auc, calibration_error, quadratic_kappa, quantile, reliability,
};
use retort_data::collection::{Collection, Qrels};
use retort_data::label_set::{self, Label, LabelSet};
use retort_data::measure::{bootstrap, ndcg_of_scores};
use serde::Serialize;

use crate::{Error, Result};
pub use settings::{AuditFile, AuditSettings, Unlisted};

/// The likeliest grade; the lower of two that are as likely.
pub(crate) fn likeliest(probabilities: &[f64]) -> usize {
    let mut best = 0;
    for (grade, probability) in probabilities.iter().enumerate() {
        if *probability > probabilities[best] {
            best = grade;
        }
    }
    best
}

/// What a label set is like, and what it is worth.
#[derive(Clone, Debug, Serialize)]
pub struct Audit {
    /// Labels in it.
    pub labels: usize,
    /// Queries that they are about.
    pub queries: usize,
    /// How many labels have each grade as their likeliest.
    pub likeliest: Vec<usize>,
    /// What probability the grades had together, before renormalising.
    pub mass: Mass,
    /// How far the labels agree with gold gains; none where their queries have no gains.
    pub agreement: Option<Agreement>,
}

/// A distribution of masses.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Mass {
    /// The least.
    pub least: f64,
    /// 1 % are below.
    pub first_percentile: f64,
    /// Half are below.
    pub median: f64,
}

/// How far labels agree with gold gains.
#[derive(Clone, Debug, Serialize)]
pub struct Agreement {
    /// Labels of queries that have gains.
    pub pairs: usize,
    /// Their queries.
    pub queries: usize,
    /// Of them, pairs that the qrels do not list, taken to have gain 0.
    pub unlisted: usize,
    /// Pairs that the qrels do not list and that were left out.
    pub skipped: usize,
    /// The least grade that counts as relevant.
    pub relevant_grade: usize,
    /// The least gain that counts as relevant.
    pub relevant_gain: u8,
    /// What κ compares.
    pub kappa_of: KappaOf,
    /// Cohen's κ of the hard label, with quadratic weights.
    pub kappa: Option<Estimate>,
    /// The order by the expected grade.
    pub soft: Order,
    /// The order by the likeliest grade.
    pub hard: Order,
    /// What the probability of being relevant is worth as a probability.
    pub calibration: Calibration,
}

/// What κ compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KappaOf {
    /// Grade and gain: both scales have the same number of levels.
    Grades,
    /// Relevant or not: they have not.
    Binarised,
}

/// What an order of each query's documents is worth.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Order {
    /// Relevant over not relevant within a query, in the mean over queries that have both.
    pub auc: Option<Estimate>,
    /// The same over all pairs, whatever their queries.
    pub auc_pooled: Option<Estimate>,
    /// The share of a query's pairs of documents with different gains that are in the right order,
    /// ties counting half, over all queries together.
    pub pair_order: Option<Estimate>,
    /// nDCG@10 with gains `2^g − 1` over the labelled pairs, against the best order of these; ties
    /// count as the mean of their orders.
    pub ndcg: Option<Estimate>,
    /// Kendall's τ-b within a query, in the mean over queries.
    pub tau: Option<Estimate>,
}

/// A number with its 95 % bootstrap interval over queries.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// Probabilities of being relevant beside what is so.
#[derive(Clone, Debug, Serialize)]
pub struct Calibration {
    /// The expected calibration error over ten bins.
    pub error: Option<Estimate>,
    /// The bins that hold anything.
    pub bins: Vec<CalibrationBin>,
}

/// One bin of a [`Calibration`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CalibrationBin {
    /// Its lower bound; it is a tenth wide.
    pub from: f64,
    /// Pairs in it.
    pub pairs: usize,
    /// Their mean probability of being relevant.
    pub said: f64,
    /// The share of them that are relevant.
    pub relevant: f64,
}

/// The rank that nDCG is cut at.
pub(crate) const CUTOFF: usize = 10;

/// Audits a label set on a collection's gold gains: those of one split, or of all there are.
///
/// # Errors
/// Bad input, a label whose texts the collection does not have, a setting out of range, a split
/// that has no gains for the labels' queries.
pub fn audit(
    labels: &Path,
    collection: &Path,
    split: Option<&str>,
    settings: &AuditSettings,
) -> Result<Audit> {
    let set = label_set::read(labels)?;
    let collection = Collection::read(collection)?;
    for label in &set.labels {
        label_set::subject(label, &collection, labels)?;
    }
    let mut qrels = Qrels::new();
    let splits = split.map_or_else(|| collection.splits(), |split| vec![split.to_owned()]);
    for split in splits {
        for (query, gains) in collection.qrels(&split)? {
            let known = qrels.entry(query.clone()).or_default();
            for (document, gain) in gains {
                let before = known.insert(document.clone(), gain);
                if before.is_some_and(|before| before != gain) {
                    return Err(Error::File {
                        path: collection.qrels_path(&split),
                        problem: format!(
                            "{query} {document} has another gain in another split: name one split"
                        ),
                    });
                }
            }
        }
    }
    let audit = Audit::of(&set, &qrels, settings)?;
    match (split, &audit.agreement) {
        (Some(split), None) => Err(Error::File {
            path: collection.qrels_path(split),
            problem: "has no gains for any query of the labels: name their split".to_owned(),
        }),
        _ => Ok(audit),
    }
}

impl Audit {
    /// Audits labels on gold gains.
    ///
    /// # Errors
    /// A setting out of range.
    pub fn of(set: &LabelSet, qrels: &Qrels, settings: &AuditSettings) -> Result<Self> {
        let top_grade = set.manifest.top_grade;
        let relevant_grade = settings.relevant_grade(top_grade)?;
        let mut by_query: BTreeMap<&str, Vec<&Label>> = BTreeMap::new();
        let mut hard = vec![0; top_grade + 1];
        for label in &set.labels {
            by_query.entry(&label.query_id).or_default().push(label);
            hard[likeliest(&label.probabilities)] += 1;
        }
        let mut masses: Vec<f64> = set.labels.iter().map(|label| label.mass).collect();
        masses.sort_by(f64::total_cmp);
        let mass = |share: f64| quantile(&masses, share).unwrap_or(f64::NAN);
        Ok(Self {
            labels: set.labels.len(),
            queries: by_query.len(),
            likeliest: hard,
            mass: Mass {
                least: mass(0.0),
                first_percentile: mass(0.01),
                median: mass(0.5),
            },
            agreement: agreement(&by_query, qrels, settings, top_grade, relevant_grade),
        })
    }

    /// Holds the audit against what the settings ask for.
    ///
    /// # Errors
    /// [`Error::NotGoodEnough`], naming each threshold that is crossed; a number that is asked for
    /// and has no value crosses its threshold.
    pub fn check(&self, settings: &AuditSettings) -> Result<()> {
        let agreement = self.agreement.as_ref();
        let asked = [
            (
                "κ of the likeliest grade",
                "least_kappa",
                settings.least_kappa,
                agreement.and_then(|one| one.kappa),
            ),
            (
                "AUC within queries of the expected grade",
                "least_auc",
                settings.least_auc,
                agreement.and_then(|one| one.soft.auc),
            ),
            (
                "share of pairs that the expected grade orders right",
                "least_pair_order",
                settings.least_pair_order,
                agreement.and_then(|one| one.soft.pair_order),
            ),
        ];
        let mut crossed = Vec::new();
        for (what, setting, least, found) in asked {
            let Some(least) = least else { continue };
            match found {
                Some(found) if found.value >= least => {}
                Some(found) => {
                    let value = found.value;
                    crossed.push(format!("the {what} is {value:.4}, {setting} is {least}"));
                }
                None => crossed.push(format!(
                    "the {what} can't be told from these gains, {setting} is {least}"
                )),
            }
        }
        if crossed.is_empty() {
            return Ok(());
        }
        Err(Error::NotGoodEnough {
            crossed: crossed.join("; "),
        })
    }
}

/// One label beside the gain of its pair.
struct Judged {
    soft: f64,
    hard: usize,
    /// The probability of being relevant.
    probability: f64,
    gain: u8,
}

fn agreement(
    by_query: &BTreeMap<&str, Vec<&Label>>,
    qrels: &Qrels,
    settings: &AuditSettings,
    top_grade: usize,
    relevant_grade: usize,
) -> Option<Agreement> {
    let (mut unlisted, mut skipped) = (0, 0);
    let mut queries: Vec<Vec<Judged>> = Vec::new();
    for (query, labels) in by_query {
        let Some(gains) = qrels.get(*query) else {
            continue;
        };
        let mut judged = Vec::new();
        for label in labels {
            let gain = match (gains.get(&label.document_id), settings.unlisted) {
                (Some(gain), _) => *gain,
                (None, Unlisted::Zero) => {
                    unlisted += 1;
                    0
                }
                (None, Unlisted::Skip) => {
                    skipped += 1;
                    continue;
                }
            };
            judged.push(Judged {
                soft: label.grade,
                hard: likeliest(&label.probabilities),
                probability: label.probabilities.iter().skip(relevant_grade).sum(),
                gain,
            });
        }
        if !judged.is_empty() {
            queries.push(judged);
        }
    }
    if queries.is_empty() {
        return None;
    }
    let gains = qrels.values().flat_map(BTreeMap::values);
    let top_gain = gains.copied().max().unwrap_or_default();
    let relevant_gain = settings
        .relevant_gain
        .unwrap_or_else(|| gain_beside(relevant_grade, top_grade, top_gain));
    let is_relevant = |judged: &Judged| judged.gain >= relevant_gain;

    let (kappa_of, levels) = if usize::from(top_gain) == top_grade {
        (KappaOf::Grades, top_grade + 1)
    } else {
        (KappaOf::Binarised, 2)
    };
    let levels_of = |judged: &Judged| match kappa_of {
        KappaOf::Grades => (judged.hard, usize::from(judged.gain)),
        KappaOf::Binarised => (
            usize::from(judged.hard >= relevant_grade),
            usize::from(is_relevant(judged)),
        ),
    };
    let tables: Vec<Vec<f64>> = each(&queries, |judged| {
        let mut table = vec![0.0; levels * levels];
        for one in judged {
            let (row, column) = levels_of(one);
            table[row * levels + column] += 1.0;
        }
        table
    });
    let kappa = estimate(queries.len(), |drawn| {
        let mut table = vec![0.0; levels * levels];
        for place in drawn {
            for (sum, count) in table.iter_mut().zip(&tables[*place]) {
                *sum += count;
            }
        }
        quadratic_kappa(&table, levels)
    });
    Some(Agreement {
        pairs: queries.iter().map(Vec::len).sum(),
        queries: queries.len(),
        unlisted,
        skipped,
        relevant_grade,
        relevant_gain,
        kappa_of,
        kappa,
        soft: order(&queries, |judged| judged.soft, is_relevant),
        hard: order(&queries, |judged| judged.hard as f64, is_relevant),
        calibration: calibration(&queries, is_relevant),
    })
}

/// The least gain that lies on the scale of gains above where the middle between `grade` and the
/// grade below it lies on the scale of grades: the same number where the scales are the same, the
/// upper half where it is the upper half.
pub(crate) fn gain_beside(grade: usize, top_grade: usize, top_gain: u8) -> u8 {
    let middle = (grade as f64 - 0.5) / top_grade.max(1) as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a u8"
    )]
    let below = (middle * f64::from(top_gain)) as u8;
    below + 1
}

fn order(
    queries: &[Vec<Judged>],
    score: impl Fn(&Judged) -> f64,
    is_relevant: impl Fn(&Judged) -> bool,
) -> Order {
    let scored: Vec<Vec<(f64, u8)>> = each(queries, |judged| {
        judged.iter().map(|one| (score(one), one.gain)).collect()
    });
    let items: Vec<Vec<Scored>> = (queries.iter().enumerate())
        .map(|(query, judged)| {
            let items = judged.iter().map(|one| Scored {
                score: score(one),
                positive: is_relevant(one),
                query,
            });
            by_score(items.collect())
        })
        .collect();
    let pooled = by_score(items.concat());
    let aucs: Vec<_> = each(&items, |items| auc(items, |_| 1.0));
    let pairs: Vec<Pairs> = each(&scored, |scored| Pairs::of(scored));
    let ndcgs: Vec<_> = each(&scored, |scored| ndcg_of_scores(scored, CUTOFF));
    let taus: Vec<_> = each(&pairs, Pairs::tau_b);
    let count = queries.len();
    Order {
        auc: estimate(count, |drawn| mean_of(&aucs, drawn)),
        auc_pooled: estimate(count, |drawn| {
            let mut weights = vec![0.0; count];
            for place in drawn {
                weights[*place] += 1.0;
            }
            auc(&pooled, |query| weights[query])
        }),
        pair_order: estimate(count, |drawn| {
            let drawn = drawn.iter().map(|place| pairs[*place]);
            drawn.fold(Pairs::default(), Pairs::plus).share_right()
        }),
        ndcg: estimate(count, |drawn| mean_of(&ndcgs, drawn)),
        tau: estimate(count, |drawn| mean_of(&taus, drawn)),
    }
}

fn by_score(mut items: Vec<Scored>) -> Vec<Scored> {
    items.sort_by(|a, b| a.score.total_cmp(&b.score));
    items
}

fn calibration(queries: &[Vec<Judged>], is_relevant: impl Fn(&Judged) -> bool) -> Calibration {
    let of_queries: Vec<[Bin; BINS]> = each(queries, |judged| {
        reliability(judged.iter().map(|one| (one.probability, is_relevant(one))))
    });
    let sum = |drawn: &mut dyn Iterator<Item = usize>| {
        let mut bins = [Bin::default(); BINS];
        for place in drawn {
            for (bin, more) in bins.iter_mut().zip(&of_queries[place]) {
                *bin = bin.plus(*more);
            }
        }
        bins
    };
    let bins = sum(&mut (0..queries.len()));
    let bins = bins.iter().enumerate().filter(|(_, bin)| bin.pairs > 0);
    let bins = bins.map(|(place, bin)| CalibrationBin {
        from: place as f64 / BINS as f64,
        pairs: bin.pairs,
        said: bin.said / bin.pairs as f64,
        relevant: bin.relevant as f64 / bin.pairs as f64,
    });
    Calibration {
        bins: bins.collect(),
        error: estimate(queries.len(), |drawn| {
            calibration_error(&sum(&mut drawn.iter().copied()))
        }),
    }
}

/// A statistic of all queries, with its interval.
pub(crate) fn estimate(
    queries: usize,
    mut statistic: impl FnMut(&[usize]) -> Option<f64>,
) -> Option<Estimate> {
    let all: Vec<usize> = (0..queries).collect();
    let value = statistic(&all)?;
    let (low, high) = bootstrap(queries, statistic)?;
    Some(Estimate { value, low, high })
}

/// The mean over the queries that have a value.
pub(crate) fn mean_of(values: &[Option<f64>], drawn: &[usize]) -> Option<f64> {
    let (mut total, mut count) = (0.0, 0);
    for value in drawn.iter().filter_map(|place| values[*place]) {
        total += value;
        count += 1;
    }
    (count > 0).then(|| total / f64::from(count))
}

fn each<T, U>(list: &[T], of: impl FnMut(&T) -> U) -> Vec<U> {
    list.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relevant_gain_lies_where_the_relevant_grade_does() {
        for (grade, top_grade, top_gain, expected) in [
            (1, 3, 3, 1),
            (2, 3, 3, 2),
            (3, 3, 3, 3),
            (2, 3, 1, 1),
            (1, 1, 3, 2),
            (2, 3, 4, 3),
            (1, 1, 1, 1),
        ] {
            let gain = gain_beside(grade, top_grade, top_gain);
            assert_eq!(gain, expected, "{grade} of {top_grade} on {top_gain}");
        }
    }

    #[test]
    fn of_grades_that_are_as_likely_the_lower_counts() {
        assert_eq!(likeliest(&[0.1, 0.4, 0.4, 0.1]), 1);
        assert_eq!(likeliest(&[0.0, 0.0, 0.0, 1.0]), 3);
    }
}
