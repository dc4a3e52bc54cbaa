//! Where judgements come from: label sets, and gold gains with candidates that have none.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use retort_data::candidates;
use retort_data::collection::{Collection, Document, Query};
use retort_data::label_set::{self, Label, Sealed};

use crate::loss::Target;
use crate::settings::GoldSettings;
use crate::{Error, Result};

/// A judgement, with the texts that it is about.
pub(super) struct Judgement {
    pub(super) query: Query,
    pub(super) document: Document,
    pub(super) target: Target,
    /// What was judged, as a share of the top grade.
    pub(super) share: f64,
}

/// The judgements of a label set, in the order of queries: of all of them, or of those whose `kept`.
pub(super) fn of_labels<'a>(
    folder: &'a Path,
    sealed: &'a Sealed,
    kept: Option<BTreeSet<String>>,
    uncertainty: f64,
    collection: &'a Collection,
) -> impl Iterator<Item = Result<Judgement>> + 'a {
    let top_grade = sealed.manifest.top_grade;
    sealed.labels().filter_map(move |label| {
        let label = match label {
            Ok(label) => label,
            Err(error) => return Some(Err(error.into())),
        };
        if kept
            .as_ref()
            .is_some_and(|it| !it.contains(&label.query_id))
        {
            return None;
        }
        let subject = label_set::subject(&label, collection, folder);
        Some(
            subject
                .map_err(Error::from)
                .map(|(query, document)| Judgement {
                    query,
                    document,
                    target: target(&label, top_grade, uncertainty),
                    share: label.grade / top_grade as f64,
                }),
        )
    })
}

/// The ids of `count` of a label set's queries, those with the lowest lots: whether a query is among
/// them depends on it, the seed and the number alone.
///
/// # Errors
/// A label set of fewer queries.
pub(super) fn drawn(sealed: &Sealed, count: usize, seed: u64) -> Result<BTreeSet<String>> {
    let mut lots: BTreeMap<String, String> = BTreeMap::new();
    let there_are = each_query(sealed, |query| {
        let lot = retort_files::sha256(format!("{seed}:{query}").as_bytes());
        lots.insert(lot, query.to_owned());
        if lots.len() > count {
            lots.pop_last();
        }
    })?;
    if count > there_are {
        return Err(Error::Setting {
            key: "data.queries",
            problem: format!("is {count}, but the label set has {there_are} queries"),
        });
    }
    Ok(lots.into_values().collect())
}

/// How many queries a label set is about.
pub(crate) fn count_queries(sealed: &Sealed) -> Result<usize> {
    each_query(sealed, |_| ())
}

/// Calls for each query, once; says how many there were.
fn each_query(sealed: &Sealed, mut call: impl FnMut(&str)) -> Result<usize> {
    let mut last = None;
    let mut count = 0;
    for label in sealed.labels() {
        let query = label?.query_id;
        if last.as_ref() != Some(&query) {
            call(&query);
            count += 1;
            last = Some(query);
        }
    }
    Ok(count)
}

/// The gold gains of a split, and its candidates without one as irrelevant, but for those that a label
/// set takes for relevant: what nobody looked at is often good.
pub(super) fn of_gold<'a>(
    gold: &'a GoldSettings,
    guards: &[Sealed],
    collection: &'a Collection,
) -> Result<impl Iterator<Item = Result<Judgement>> + 'a> {
    let qrels = collection.qrels(&gold.split)?;
    let gains = qrels.values().flat_map(BTreeMap::values);
    let top_gain = gains.copied().max().unwrap_or_default();
    if top_gain == 0 {
        return Err(retort_data::Error::File {
            path: collection.qrels_path(&gold.split),
            problem: "has no gain above 0: nothing is relevant".to_owned(),
        }
        .into());
    }
    let mut unlisted: BTreeMap<String, Vec<String>> = BTreeMap::new();
    if let Some(file) = &gold.candidates {
        let mut is_of_split = false;
        for candidate in candidates::read_of(file, collection)? {
            let listed = qrels.get(&candidate.query_id);
            is_of_split |= listed.is_some();
            if listed.is_some_and(|listed| !listed.contains_key(&candidate.document_id)) {
                let documents = unlisted.entry(candidate.query_id).or_default();
                documents.push(candidate.document_id);
            }
        }
        if !is_of_split {
            return Err(retort_data::Error::File {
                path: file.clone(),
                problem: format!("names no query of the split {}", gold.split),
            }
            .into());
        }
    }
    let relevant = relevant(&unlisted, guards, gold.guard.unwrap_or(GoldSettings::GUARD))?;
    let mut judged: Vec<(String, String, u8)> = Vec::new();
    for (query, listed) in qrels {
        let listed = listed.into_iter();
        let no_gain = unlisted.remove(&query).unwrap_or_default().into_iter();
        let no_gain = no_gain
            .filter(|document| !relevant.contains(&(query.clone(), document.clone())))
            .take(gold.negatives.unwrap_or(usize::MAX))
            .map(|document| (document, 0));
        let documents = listed.chain(no_gain);
        judged.extend(documents.map(|(document, gain)| (query.clone(), document, gain)));
    }
    let source = gold.candidates.as_deref().unwrap_or(Path::new("qrels"));
    Ok(judged.into_iter().map(move |(query, document, gain)| {
        let share = f64::from(gain) / f64::from(top_gain);
        Ok(Judgement {
            query: collection.query(&query, source)?,
            document: collection.document(&document, source)?,
            target: Target {
                logit: logit(share),
                grade: gain.into(),
                doubt: 0.0,
            },
            share,
        })
    }))
}

/// The pairs that a label set says are relevant: above `guard`, as a share of the top grade.
fn relevant(
    pairs: &BTreeMap<String, Vec<String>>,
    guards: &[Sealed],
    guard: f64,
) -> Result<BTreeSet<(String, String)>> {
    let mut shares: HashMap<(String, String), f64> = HashMap::new();
    for sealed in guards {
        let top_grade = sealed.manifest.top_grade as f64;
        for label in sealed.labels() {
            let label = label?;
            let documents = pairs.get(&label.query_id);
            if documents.is_some_and(|documents| documents.contains(&label.document_id)) {
                let share = shares
                    .entry((label.query_id, label.document_id))
                    .or_default();
                *share = share.max(label.grade / top_grade);
            }
        }
    }
    let above = shares.into_iter().filter(|(_, share)| *share > guard);
    Ok(above.map(|(pair, _)| pair).collect())
}

/// Keeps a certain teacher's logit finite: grades within this share of the scale's ends count as
/// that far from them. So a strength from comparisons or orders is its own target up to ±4.6, and
/// stronger documents are not told apart.
const LEAST_DOUBT: f64 = 0.01;

/// The expected grade as a logit, `log(p / (1 − p))` of its share `p` of the top grade, so that the
/// student's sigmoid estimates that share; and the variance of that share as doubt.
#[expect(
    clippy::cast_possible_truncation,
    reason = "grades and doubt of few digits"
)]
fn target(label: &Label, top_grade: usize, uncertainty: f64) -> Target {
    let top_grade = top_grade as f64;
    let share = label.grade / top_grade;
    let probabilities = label.probabilities.iter().enumerate();
    let variance: f64 = probabilities
        .map(|(grade, p)| p * (grade as f64 / top_grade - share).powi(2))
        .sum();
    Target {
        logit: logit(share),
        grade: label.grade as f32,
        doubt: (uncertainty * variance) as f32,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "logits within ±4.6")]
fn logit(share: f64) -> f32 {
    let share = share.clamp(LEAST_DOUBT, 1.0 - LEAST_DOUBT);
    (share / (1.0 - share)).ln() as f32
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

    /// A label set of so many queries, with three documents each of grades 0, 1 and 2 of 2.
    fn sealed(folder: &Path, queries: usize) -> Sealed {
        let path = folder.join("labels");
        let manifest = serde_json::json!({
            "format": label_set::FORMAT, "top_grade": 2, "recipe": {}, "models": [], "rows": 0,
            "shards": [], "sealed_by": "a test", "sealed_at": "2026-11-27T00:00:00Z",
        });
        let manifest = serde_json::from_value(manifest).unwrap();
        let labels = (0..3 * queries).map(|row| {
            let mut probabilities = [0.0; 3];
            probabilities[row % 3] = 1.0;
            Ok(Label {
                query_id: format!("q{:02}", row / 3),
                document_id: format!("d{}", row % 3),
                ..label(&probabilities)
            })
        });
        label_set::write(&path, manifest, labels).unwrap();
        label_set::open(&path).unwrap()
    }

    #[test]
    fn fewer_queries_are_some_of_more() {
        let folder = tempfile::tempdir().unwrap();
        let sealed = sealed(folder.path(), 20);
        assert_eq!(count_queries(&sealed).unwrap(), 20);
        let mut before = drawn(&sealed, 1, 7).unwrap();
        for count in 2..=20 {
            let queries = drawn(&sealed, count, 7).unwrap();
            assert_eq!(queries.len(), count);
            assert!(queries.is_superset(&before));
            before = queries;
        }
        assert_ne!(
            drawn(&sealed, 10, 7).unwrap(),
            drawn(&sealed, 10, 8).unwrap()
        );
        let error = drawn(&sealed, 21, 7).unwrap_err().to_string();
        assert_eq!(
            error,
            "data.queries: is 21, but the label set has 20 queries"
        );
    }

    #[test]
    fn candidates_without_a_gain_are_irrelevant_unless_a_teacher_says_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let write = |name: &str, text: &str| fs_err::write(path.join(name), text).unwrap();
        let documents = (0..6).map(|n| format!("{{\"_id\":\"d{n}\",\"text\":\"t{n}\"}}\n"));
        write("corpus.jsonl", &documents.collect::<String>());
        write(
            "queries.jsonl",
            "{\"_id\":\"q00\",\"text\":\"a\"}\n{\"_id\":\"q9\",\"text\":\"b\"}\n",
        );
        fs_err::create_dir(path.join("qrels")).unwrap();
        write("qrels/train.tsv", "q00\td5\t2\nq00\td4\t1\n");
        let candidates = ["d0", "d1", "d2", "d3", "d5"].map(|document| {
            format!("{{\"query_id\":\"q00\",\"document_id\":\"{document}\",\"source\":\"bm25\"}}\n")
        });
        write("candidates.jsonl", &candidates.concat());
        let collection = Collection::read(path).unwrap();
        // d1 has the grade 1 of 2 there, d2 the grade 2.
        let sealed = sealed(path, 1);
        let judged = |guard, negatives| {
            let gold = GoldSettings {
                split: "train".into(),
                candidates: Some(path.join("candidates.jsonl")),
                negatives,
                guard: Some(guard),
                share: 1.0,
            };
            let of = of_gold(&gold, std::slice::from_ref(&sealed), &collection).unwrap();
            of.map(Result::unwrap)
                .map(|one| format!("{} {}", one.document.id, one.share))
                .collect::<Vec<_>>()
        };
        assert_eq!(judged(0.4, None), ["d4 0.5", "d5 1", "d0 0", "d3 0"]);
        assert_eq!(
            judged(0.5, None),
            ["d4 0.5", "d5 1", "d0 0", "d1 0", "d3 0"]
        );
        assert_eq!(judged(0.4, Some(1)), ["d4 0.5", "d5 1", "d0 0"]);
        assert_eq!(judged(1.0, Some(9)).len(), 6);
        write(
            "candidates.jsonl",
            "{\"query_id\":\"q9\",\"document_id\":\"d0\",\"source\":\"bm25\"}\n",
        );
        let gold: GoldSettings = toml::from_str(&format!(
            "split = 'train'\ncandidates = {:?}",
            path.join("candidates.jsonl")
        ))
        .unwrap();
        let error = of_gold(&gold, &[], &collection).err().unwrap().to_string();
        assert!(
            error.contains("names no query of the split train"),
            "{error}"
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
