//! Correcting a label set by the gold gains of a few of its queries.
//!
//! A student averages out what its teacher gets wrong by chance, and learns what it gets wrong by
//! habit. So the habits are taken out before training: how far the label is above or below gold is
//! explained by what can be counted of query and document, and the explanation subtracted. A map
//! from label to gold alone mends the scale: it can't tell two documents with one label apart.
//!
//! What a correction is worth is measured on queries that it was not fitted to.

mod features;
mod gold;
mod nearest;
mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use retort_data::collection::Collection;
use retort_data::label_set::{self, Label, expected_grade};
use serde::Serialize;
use serde_json::{Value, json};

use crate::ledger::now;
use crate::regression::{Isotonic, Platt, Ridge};
use crate::{AuditSettings, Estimate, Result};
use gold::{Example, Gold};

/// A correction to make.
#[derive(Clone, Copy, Debug)]
pub struct Debias<'a> {
    /// The label set to correct.
    pub labels: &'a Path,
    /// The collection that was labelled.
    pub collection: &'a Path,
    /// The split whose gains are gold.
    pub gold: &'a str,
    /// How.
    pub method: Method,
    /// Where the corrected label set goes; must not exist.
    pub out: &'a Path,
}

/// How labels are corrected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// By a rising map from label to gold.
    Isotonic,
    /// By a logistic map from label to gold.
    Platt,
    /// By what label and features say about how far the label is from gold.
    Residual,
}

const METHODS: [Method; 3] = [Method::Isotonic, Method::Platt, Method::Residual];

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::Isotonic => "isotonic",
            Self::Platt => "platt",
            Self::Residual => "residual",
        })
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = METHODS.into_iter().find(|it| it.to_string() == name);
        found.ok_or_else(|| format!("expected residual, isotonic or platt, not {name:?}"))
    }
}

/// A correction that was made, and what it is worth.
#[derive(Clone, Debug, Serialize)]
pub struct Debiased {
    /// Labels in the corrected set.
    pub rows: usize,
    /// Its digest.
    pub digest: String,
    /// How it was corrected.
    pub method: Method,
    /// Queries with gold gains.
    pub queries: usize,
    /// Their labels, which it was fitted to.
    pub pairs: usize,
    /// Parts of the queries that were held out in turn.
    pub folds: usize,
    /// What the labels are worth as they are.
    pub before: Worth,
    /// What each method makes of the labels of queries that it was not fitted to.
    pub after: BTreeMap<Method, Worth>,
    /// What the chosen method changes there.
    pub change: Change,
    /// What was fitted to all gold gains, in numbers.
    pub fit: Value,
}

/// What labels are worth on gold gains.
#[derive(Clone, Debug, Serialize)]
pub struct Worth {
    /// Relevant over not relevant within a query, in the mean over queries that have both.
    pub auc: Option<Estimate>,
    /// nDCG@10 over a query's labelled documents, against their best order.
    pub ndcg: Option<Estimate>,
    /// The expected calibration error of P(relevant).
    pub calibration_error: Option<Estimate>,
    /// How far label minus gold goes with each feature: Pearson's correlation over pairs.
    pub over_rated_with: BTreeMap<&'static str, Option<f64>>,
}

/// Differences after minus before, on the same queries.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Change {
    /// Of the AUC within queries.
    pub auc: Option<Estimate>,
    /// Of nDCG@10.
    pub ndcg: Option<Estimate>,
    /// Of the calibration error.
    pub calibration_error: Option<Estimate>,
}

/// The penalty on the residual's weights: some hundred pairs are believed over it. Of 1, 10 and 100
/// it did best with 10 and 20 gold queries of the demo, and as well as the others with 100.
const PENALTY: f64 = 100.0;
/// Parts of the queries that are held out in turn; as many as there are queries, if they are fewer.
const MOST_FOLDS: usize = 20;
/// Corrected labels keep this share of the scale's ends, as training does not tell them from there.
const LEAST_DOUBT: f64 = 0.001;

/// Corrects a label set by the gold gains of some of its queries, and writes it as another.
///
/// # Errors
/// Bad input, a label whose texts the collection does not have, too little gold to fit anything to,
/// a setting out of range, a folder that exists already; nothing is written then.
pub fn debias(job: &Debias, settings: &AuditSettings) -> Result<Debiased> {
    retort_files::refuse_existing(job.out)?;
    let set = label_set::read(job.labels)?;
    let collection = Collection::read(job.collection)?;
    let gold = Gold::read(job, &set, &collection, settings)?;
    let folds = gold.queries.len().min(MOST_FOLDS);
    let as_they_are: Vec<Label> = gold.examples.iter().map(|it| it.label.clone()).collect();
    let before = gold.values(&as_they_are);
    let mut after = BTreeMap::new();
    let mut held_out = Change::NONE;
    for method in METHODS {
        let labels = gold.held_out(method, folds);
        let values = gold.values(&labels);
        if method == job.method {
            held_out = gold.change(&before, &values);
        }
        after.insert(method, gold.worth(&values, &labels));
    }
    let map = Map::fit(job.method, &gold.examples.iter().collect::<Vec<_>>());
    let mut manifest = set.manifest.clone();
    let fit = map.to_json();
    manifest.corrections.push(json!({
        "of": set.digest,
        "method": job.method,
        "fit": &fit,
        "gold": {
            "split": job.gold,
            "sha256": retort_files::sha256_file(&collection.qrels_path(job.gold))?,
            "queries": gold.queries.len(),
            "pairs": gold.examples.len(),
        },
        "change_on_held_out_queries": held_out,
    }));
    manifest.sealed_by = format!("retort {}", env!("CARGO_PKG_VERSION"));
    manifest.sealed_at = now();
    let corrected = set.labels.iter().map(|label| {
        let (query, document) = label_set::subject(label, &collection, job.labels)?;
        let features = features::of(&query.text, &document.full_text());
        Ok(map.correct(label, &Subject::new(label, features)))
    });
    let digest = label_set::write(job.out, manifest, corrected)?;
    Ok(Debiased {
        rows: set.labels.len(),
        digest,
        method: job.method,
        queries: gold.queries.len(),
        pairs: gold.examples.len(),
        folds,
        before: gold.worth(&before, &as_they_are),
        after,
        change: held_out,
        fit,
    })
}

impl Debiased {
    /// What was not to be hoped for: numbers that the correction makes worse, or that it makes none
    /// better.
    pub fn warnings(&self) -> Vec<String> {
        let Change {
            auc,
            ndcg,
            calibration_error,
        } = self.change;
        let error = calibration_error.map(|it| Estimate {
            value: -it.value,
            low: -it.high,
            high: -it.low,
        });
        let changes = [
            ("AUC in a query", auc),
            ("nDCG@10", ndcg),
            ("calibration error", error),
        ];
        let mut warnings: Vec<String> = (changes.iter())
            .filter(|(_, change)| change.is_some_and(|it| it.high < 0.0))
            .map(|(name, _)| {
                format!(
                    "the {name} of queries that {} was not fitted to is worse than before",
                    self.method
                )
            })
            .collect();
        if !changes
            .iter()
            .any(|(_, change)| change.is_some_and(|it| it.low > 0.0))
        {
            warnings.push(format!(
                "{} makes nothing better that {} gold queries could show: judge more queries, or \
                 train on the labels as they are",
                self.method, self.queries
            ));
        }
        warnings
    }
}

impl Change {
    const NONE: Self = Self {
        auc: None,
        ndcg: None,
        calibration_error: None,
    };
}

/// The top of a label's scale.
fn top_grade(label: &Label) -> f64 {
    label.probabilities.len().saturating_sub(1).max(1) as f64
}

/// What a correction knows of a label.
#[derive(Clone, Debug)]
struct Subject {
    /// The expected grade as a share of the top grade.
    share: f64,
    features: [f64; features::NAMES.len()],
}

impl Subject {
    fn new(label: &Label, features: [f64; features::NAMES.len()]) -> Self {
        let share = label.grade / top_grade(label);
        Self { share, features }
    }

    fn logit(&self) -> f64 {
        let share = self.share.clamp(LEAST_DOUBT, 1.0 - LEAST_DOUBT);
        (share / (1.0 - share)).ln()
    }

    fn row(&self) -> Vec<f64> {
        [&[self.share], &self.features[..]].concat()
    }
}

/// What was fitted.
enum Map {
    Isotonic(Isotonic),
    Platt(Platt),
    /// Of gold minus label.
    Residual(Ridge),
}

impl Map {
    fn fit(method: Method, examples: &[&Example]) -> Self {
        let of = |value: fn(&Example) -> f64| -> Vec<f64> {
            examples.iter().map(|example| value(example)).collect()
        };
        let gold = of(|example| example.gold);
        match method {
            Method::Isotonic => {
                Self::Isotonic(Isotonic::fit(&of(|example| example.subject.share), &gold))
            }
            Method::Platt => Self::Platt(Platt::fit(&of(|example| example.subject.logit()), &gold)),
            Method::Residual => {
                let rows: Vec<Vec<f64>> = examples.iter().map(|it| it.subject.row()).collect();
                let residuals = of(|example| example.gold - example.subject.share);
                Self::Residual(Ridge::fit(&rows, &residuals, PENALTY))
            }
        }
    }

    /// The label with the grade that the map gives it, its probabilities moved as little as that
    /// takes.
    fn correct(&self, label: &Label, subject: &Subject) -> Label {
        let share = match self {
            Self::Isotonic(map) => map.at(subject.share),
            Self::Platt(map) => map.at(subject.logit()),
            Self::Residual(map) => subject.share + map.at(&subject.row()),
        };
        let share = share.clamp(LEAST_DOUBT, 1.0 - LEAST_DOUBT);
        let probabilities = nearest::nearest(&label.probabilities, share * top_grade(label));
        Label {
            grade: expected_grade(&probabilities),
            probabilities,
            ..label.clone()
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Isotonic(map) => json!(map),
            Self::Platt(map) => json!(map),
            Self::Residual(map) => {
                let mut json = json!(map);
                json["columns"] = json!([&["label"], &features::NAMES[..]].concat());
                json["penalty"] = json!(PENALTY);
                json
            }
        }
    }
}
