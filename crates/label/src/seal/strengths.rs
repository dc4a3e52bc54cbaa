//! Answers about several documents of a query, as a strength of each; and what the order in which
//! documents were shown did to the answers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::iter::Peekable;
use std::path::Path;
use std::vec;

use retort_data::label_set::Label;
use serde::{Deserialize, Serialize};

use super::unreadable;
use crate::Result;
use crate::ledger::{Entry, Reader, RecipeStatus};
use crate::prompt::Kind;
use crate::strength::{Ranking, fit};

/// The deviations of the strengths' prior, for comparisons and for orders. By them, a teacher that
/// never wavers comes to strengths of about ±4.6 with 4 comparisons a document, or a window of 20
/// documents: training tells no stronger ones apart.
const DEVIATION_OF_COMPARED: f64 = 5.0;
const DEVIATION_OF_ORDERED: f64 = 3.0;

/// Entries, in the order of queries, as labels.
pub(super) struct Strengths<'a, I: Iterator> {
    entries: Peekable<I>,
    kind: Kind,
    ledger: &'a Path,
    /// The rest of a query's labels.
    labels: vec::IntoIter<Label>,
}

impl<'a, I: Iterator<Item = Result<Entry>>> Strengths<'a, I> {
    pub(super) fn new(entries: I, kind: Kind, ledger: &'a Path) -> Self {
        Self {
            entries: entries.peekable(),
            kind,
            ledger,
            labels: Vec::new().into_iter(),
        }
    }
}

impl<I: Iterator<Item = Result<Entry>>> Iterator for Strengths<'_, I> {
    type Item = Result<Label>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(label) = self.labels.next() {
                return Some(Ok(label));
            }
            let labels = match next_query(&mut self.entries, self.ledger)? {
                Ok(judged) => labels(judged, self.kind),
                Err(error) => return Some(Err(error)),
            };
            self.labels = labels.into_iter();
        }
    }
}

/// One entry: what was shown and what was said about it.
struct Judged {
    query_id: String,
    /// Id and digest of each document, in the order they were shown.
    shown: Vec<(String, String)>,
    sample: u32,
    answer: Answer,
    at: String,
}

/// An answer as the ledger has it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    /// The probabilities that the first document is preferred and that the second is.
    Compared { probabilities: [f64; 2], mass: f64 },
    /// An order of the documents by the places at which they were shown, and how many of them the
    /// teacher placed.
    Ordered { ranking: Vec<usize>, placed: usize },
}

impl Judged {
    fn of(entry: Entry, ledger: &Path) -> Result<Self> {
        let answer = entry
            .ended
            .map_err(|_| unreadable(ledger, "it has no answer"))?;
        let answer = Answer::deserialize(&answer).map_err(|error| unreadable(ledger, error))?;
        let digests: Vec<String> = entry.text.split(' ').map(str::to_owned).collect();
        let count = entry.document_ids.len();
        let is_whole = match &answer {
            Answer::Compared { probabilities, .. } => {
                count == 2 && probabilities.iter().all(|p| (0.0..=1.0).contains(p))
            }
            Answer::Ordered { ranking, placed } => {
                let places: BTreeSet<&usize> = ranking.iter().collect();
                let is_permutation = places.into_iter().copied().eq(0..count);
                count > 1 && ranking.len() == count && is_permutation && *placed <= count
            }
        };
        if !is_whole || digests.len() != count {
            return Err(unreadable(ledger, "its answer is about other documents"));
        }
        Ok(Self {
            query_id: entry.query_id,
            shown: entry.document_ids.into_iter().zip(digests).collect(),
            sample: entry.sample,
            answer,
            at: entry.at,
        })
    }

    /// How often each document shown before another was preferred to it: their places, and 1, 0
    /// or what lies between.
    fn preferences(&self) -> Vec<(usize, usize, f64)> {
        match &self.answer {
            Answer::Compared { probabilities, .. } => vec![(0, 1, probabilities[0])],
            Answer::Ordered { ranking, placed } => {
                let mut rank = vec![0; ranking.len()];
                for (place, shown) in ranking.iter().enumerate() {
                    rank[*shown] = place;
                }
                let pairs = |first| (first + 1..rank.len()).map(move |second| (first, second));
                (0..rank.len())
                    .flat_map(pairs)
                    .filter(|(first, second)| rank[*first].min(rank[*second]) < *placed)
                    .map(|(first, second)| {
                        let is_preferred = rank[first] < rank[second];
                        (first, second, f64::from(u8::from(is_preferred)))
                    })
                    .collect()
            }
        }
    }

    /// The share of the teacher's probability, or of the documents, that the answer is about.
    fn mass(&self) -> f64 {
        match &self.answer {
            Answer::Compared { mass, .. } => *mass,
            Answer::Ordered { ranking, placed } => *placed as f64 / ranking.len() as f64,
        }
    }
}

/// All entries of the next query.
fn next_query<I: Iterator<Item = Result<Entry>>>(
    entries: &mut Peekable<I>,
    ledger: &Path,
) -> Option<Result<Vec<Judged>>> {
    let first = match entries.next()? {
        Ok(first) => first,
        Err(error) => return Some(Err(error)),
    };
    let query_id = first.query_id.clone();
    let mut judged = vec![Judged::of(first, ledger)];
    let is_next = |next: &Result<Entry>| next.as_ref().is_ok_and(|next| next.query_id == query_id);
    while let Some(next) = entries.next_if(is_next) {
        judged.push(next.and_then(|next| Judged::of(next, ledger)));
    }
    Some(judged.into_iter().collect())
}

/// The labels of a query's documents.
fn labels(mut judged: Vec<Judged>, kind: Kind) -> Vec<Label> {
    keep_last_texts(&mut judged);
    let mut labels: BTreeMap<String, Label> = BTreeMap::new();
    for one in &judged {
        for (id, text) in &one.shown {
            let label = labels.entry(id.clone()).or_insert_with(|| Label {
                query_id: one.query_id.clone(),
                document_id: id.clone(),
                grade: 0.0,
                probabilities: Vec::new(),
                mass: 0.0,
                samples: 0,
                text: text.clone(),
                at: String::new(),
            });
            label.samples += 1;
            label.mass += one.mass();
            label.at = label.at.clone().max(one.at.clone());
        }
    }
    let number_of: HashMap<&str, usize> = (labels.keys().enumerate())
        .map(|(number, id)| (id.as_str(), number))
        .collect();
    let (rankings, deviation) = match kind {
        Kind::Listwise => (orders(&judged, &number_of), DEVIATION_OF_ORDERED),
        _ => (comparisons(&judged, &number_of), DEVIATION_OF_COMPARED),
    };
    let strengths = fit(labels.len(), &rankings, deviation);
    let sealed = labels
        .into_values()
        .zip(strengths)
        .map(|(label, strength)| {
            // Both by themselves: 1 − p has no digits left where p is close to 1.
            let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
            Label {
                grade: sigmoid(strength),
                probabilities: vec![sigmoid(-strength), sigmoid(strength)],
                mass: label.mass / f64::from(label.samples),
                ..label
            }
        });
    sealed.collect()
}

/// Leaves those answers that are about each of their documents as it was judged last.
fn keep_last_texts(judged: &mut Vec<Judged>) {
    let mut last: HashMap<String, (String, String)> = HashMap::new();
    for one in &*judged {
        for (id, text) in &one.shown {
            let (at, of_last) = last.entry(id.clone()).or_default();
            if one.at >= *at {
                (*at, *of_last) = (one.at.clone(), text.clone());
            }
        }
    }
    judged.retain(|one| one.shown.iter().all(|(id, text)| last[id].1 == *text));
}

/// Comparisons as rankings. The mean over both orders and all samples counts as one observation.
fn comparisons(judged: &[Judged], number_of: &HashMap<&str, usize>) -> Vec<Ranking> {
    let shown = |one: &Judged| [0, 1].map(|place| number_of[&*one.shown[place].0]);
    let mut asked: HashMap<[usize; 2], f64> = HashMap::new();
    for one in judged {
        *asked.entry(shown(one)).or_default() += 1.0;
    }
    let mut rankings = Vec::new();
    for one in judged {
        let [first, second] = shown(one);
        for (_, _, p) in one.preferences() {
            for (order, p) in [([first, second], p), ([second, first], 1.0 - p)] {
                rankings.push(Ranking {
                    order: order.to_vec(),
                    placed: 1,
                    weight: p / (2.0 * asked[&[first, second]]),
                });
            }
        }
    }
    rankings
}

/// Orders as rankings. All samples together count as one observation.
fn orders(judged: &[Judged], number_of: &HashMap<&str, usize>) -> Vec<Ranking> {
    let samples: BTreeSet<u32> = judged.iter().map(|one| one.sample).collect();
    let mut rankings = Vec::new();
    for one in judged {
        if let Answer::Ordered { ranking, placed } = &one.answer {
            let number = |place: &usize| number_of[&*one.shown[*place].0];
            rankings.push(Ranking {
                order: ranking.iter().map(number).collect(),
                placed: *placed,
                weight: 1.0 / samples.len() as f64,
            });
        }
    }
    rankings
}

/// What the order in which documents were shown did to a teacher's preferences.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PositionBias {
    /// How often a document was preferred to one that was shown after it: without a bias ½, for
    /// comparisons that are asked in both orders.
    pub first: f64,
    /// The share of `pairs` of which the other document was preferred in the other order.
    pub flipped: f64,
    /// Pairs of documents that were judged in both orders.
    pub pairs: usize,
}

/// A recipe's position bias; `None` where documents are judged one by one, or none were yet.
///
/// # Errors
/// A row that can't be read, an I/O error.
pub fn position_bias(reader: &Reader, recipe: &RecipeStatus) -> Result<Option<PositionBias>> {
    if Kind::of(&recipe.spec) == Kind::Graded {
        return Ok(None);
    }
    reader.judgements(recipe.id, |entries| {
        let mut entries = entries.peekable();
        let mut tally = Tally::default();
        while let Some(judged) = next_query(&mut entries, reader.path()) {
            tally.add(&judged?);
        }
        Ok(tally.bias())
    })
}

#[derive(Default)]
struct Tally {
    preferences: f64,
    count: usize,
    flipped: usize,
    pairs: usize,
}

impl Tally {
    /// Counts the answers about a query.
    fn add(&mut self, judged: &[Judged]) {
        // For documents in the order they were shown: the sum of preferences for the first.
        let mut preferred: HashMap<(&str, &str), (f64, f64)> = HashMap::new();
        for one in judged {
            let id = |place: usize| one.shown[place].0.as_str();
            for (first, second, p) in one.preferences() {
                let (sum, count) = preferred.entry((id(first), id(second))).or_default();
                *sum += p;
                *count += 1.0;
                self.preferences += p;
                self.count += 1;
            }
        }
        for ((a, b), (sum, count)) in &preferred {
            if a < b
                && let Some((other_sum, other_count)) = preferred.get(&(*b, *a))
            {
                let (shown_first, shown_last) = (sum / count, 1.0 - other_sum / other_count);
                self.pairs += 1;
                self.flipped += usize::from((shown_first - 0.5) * (shown_last - 0.5) < 0.0);
            }
        }
    }

    fn bias(&self) -> Option<PositionBias> {
        (self.count > 0).then(|| PositionBias {
            first: self.preferences / self.count as f64,
            flipped: self.flipped as f64 / self.pairs.max(1) as f64,
            pairs: self.pairs,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Error;
    use crate::ledger::Key;

    fn entry(shown: &[(&str, &str)], answer: Value, at: &str) -> Entry {
        let texts: Vec<&str> = shown.iter().map(|(_, text)| *text).collect();
        Entry {
            key: Key([0; 32]),
            query_id: "q".into(),
            document_ids: shown.iter().map(|(id, _)| (*id).to_owned()).collect(),
            sample: 0,
            text: texts.join(" "),
            ended: Ok(answer),
            at: at.into(),
        }
    }

    fn compared(a: (&str, &str), b: (&str, &str), p: f64, at: &str) -> Entry {
        let answer = json!({"probabilities": [p, 1.0 - p], "mass": 0.9});
        entry(&[a, b], answer, at)
    }

    fn judged(entries: Vec<Entry>) -> Vec<Judged> {
        let mut entries = entries.into_iter().map(Ok).peekable();
        next_query(&mut entries, Path::new("l")).unwrap().unwrap()
    }

    const A: (&str, &str) = ("a", "1");
    const B: (&str, &str) = ("b", "1");
    const C: (&str, &str) = ("c", "1");

    #[test]
    fn both_orders_of_a_comparison_count_alike() {
        // 0.9 when shown first and 0.5 when shown last is 0.7, whatever else is asked how often.
        let twice = vec![
            compared(A, B, 0.9, "1"),
            compared(A, B, 0.9, "1"),
            compared(B, A, 0.5, "1"),
        ];
        let plain = vec![compared(A, B, 0.7, "1"), compared(B, A, 0.3, "1")];
        let (twice, plain) = (
            labels(judged(twice), Kind::Pairwise),
            labels(judged(plain), Kind::Pairwise),
        );
        assert!((twice[0].grade - plain[0].grade).abs() < 1e-9);
        assert!(plain[0].grade > 0.55 && (plain[0].grade + plain[1].grade - 1.0).abs() < 1e-9);
        assert_eq!((twice[0].samples, twice[0].document_id.as_str()), (3, "a"));
        assert!((twice[0].mass - 0.9).abs() < 1e-9);
    }

    #[test]
    fn an_answer_about_a_text_that_was_edited_since_is_left_out() {
        let new = ("b", "2");
        let entries = vec![
            compared(A, B, 0.9, "2026-01-01T00:00:00Z"),
            compared(C, B, 0.9, "2026-01-01T00:00:00Z"),
            compared(A, new, 0.2, "2026-01-02T00:00:00Z"),
        ];
        let labels = labels(judged(entries), Kind::Pairwise);
        let sealed: Vec<_> = labels
            .iter()
            .map(|one| (&*one.document_id, &*one.text))
            .collect();
        assert_eq!(sealed, [("a", "1"), ("b", "2")]);
        assert!(labels[0].grade < 0.5, "{labels:?}");
    }

    #[test]
    fn a_bias_for_the_first_place_is_told() {
        let entries = vec![
            // Preferred wherever it is shown.
            compared(A, B, 0.9, "1"),
            compared(B, A, 0.4, "1"),
            // Preferred where it is shown first.
            compared(A, C, 0.8, "1"),
            compared(C, A, 0.7, "1"),
            // Asked in one order only.
            compared(B, C, 0.7, "1"),
        ];
        let mut tally = Tally::default();
        tally.add(&judged(entries));
        let PositionBias {
            first,
            flipped,
            pairs,
        } = tally.bias().unwrap();
        assert_eq!(pairs, 2);
        assert!(
            (flipped - 0.5).abs() < 1e-12 && (first - 0.7).abs() < 1e-12,
            "{first}"
        );
        assert_eq!(Tally::default().bias(), None);

        // Orders: as shown, and the same two turned round.
        let order = |shown: &[(&str, &str)], ranking: [usize; 3], placed: usize| {
            entry(shown, json!({"ranking": ranking, "placed": placed}), "1")
        };
        let entries = vec![
            order(&[A, B, C], [0, 1, 2], 3),
            order(&[B, A, C], [0, 1, 2], 1),
        ];
        let mut tally = Tally::default();
        tally.add(&judged(entries));
        let bias = tally.bias().unwrap();
        assert_eq!((bias.pairs, bias.flipped, bias.first), (1, 1.0, 1.0));
    }

    #[test]
    fn rows_about_other_documents_than_they_name_are_refused() {
        for answer in [
            json!({"ranking": [0, 0], "placed": 2}),
            json!({"ranking": [0, 1, 2], "placed": 2}),
            json!({"ranking": [1, 2], "placed": 2}),
            json!({"probabilities": [0.5, 1.5], "mass": 1.0}),
            json!({"score": 0.5}),
        ] {
            let mut entries = [Ok(entry(&[A, B], answer.clone(), "1"))]
                .into_iter()
                .peekable();
            let error = next_query(&mut entries, Path::new("l"))
                .unwrap()
                .err()
                .unwrap();
            assert!(matches!(error, Error::File { .. }), "{answer}");
        }
    }
}
