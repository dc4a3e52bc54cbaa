//! What a teacher said of the documents of a step.

use std::collections::BTreeMap;

/// What a student is to learn of one document.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// The teacher's score, on the scale of the student's logits.
    pub logit: f32,
    /// The grade expected of the teacher: its gain is `2^g − 1`.
    pub grade: f32,
    /// How unsure the judgement is, as a variance: it weighs `1 / (1 + doubt)`, and a pair `1 / (1 +
    /// doubt + doubt)`, for the variance of a difference is the sum. 0 for all weighs all alike.
    pub doubt: f32,
}

/// The documents of a step, or whole groups of them, as the teacher judged them.
#[derive(Clone, Debug)]
pub struct Judged {
    targets: Vec<Target>,
    /// The group of each.
    groups: Vec<usize>,
    totals: Totals,
}

/// What all documents and all groups of the step weigh: what its means are divided by.
#[derive(Clone, Copy, Debug)]
struct Totals {
    documents: f32,
    groups: f32,
}

/// A group in which the teacher tells documents apart.
pub(super) struct List {
    /// Places in [`Judged::targets`].
    pub(super) documents: Vec<usize>,
    /// The pairs of which the teacher scores one higher.
    pub(super) pairs: Vec<Pair>,
    /// Its share of the step: the mean certainty of its pairs over the sum of all groups'.
    pub(super) weight: f32,
}

/// Two documents of a group.
pub(super) struct Pair {
    /// The place of the one that the teacher scores higher.
    pub(super) above: usize,
    /// The place of the other.
    pub(super) below: usize,
    /// Its share of the step: those of a list's pairs add up to the list's.
    pub(super) weight: f32,
}

impl Judged {
    /// All documents of a step, each with its group.
    pub fn step(documents: impl IntoIterator<Item = (usize, Target)>) -> Self {
        let (groups, targets) = documents.into_iter().unzip();
        let alone = Totals {
            documents: 1.0,
            groups: 1.0,
        };
        let step = Self {
            targets,
            groups,
            totals: alone,
        };
        let totals = Totals {
            documents: step.certainties().iter().sum(),
            groups: step.lists().iter().map(|list| list.weight).sum(),
        };
        Self { totals, ..step }
    }

    /// Some documents, by their places in this one and in that order; of a group all or none. What a
    /// loss gives for all parts of a step adds up to what it gives for the step.
    #[must_use]
    pub fn part(&self, places: impl IntoIterator<Item = usize>) -> Self {
        let (groups, targets) = places
            .into_iter()
            .map(|place| (self.groups[place], self.targets[place]))
            .unzip();
        Self {
            targets,
            groups,
            totals: self.totals,
        }
    }

    /// The teacher's scores.
    pub(crate) fn logits(&self) -> Vec<f32> {
        self.targets.iter().map(|target| target.logit).collect()
    }

    /// The one score for all documents that is nearest to the teacher's: the logit of their mean share
    /// of the top grade, each with its weight.
    pub(crate) fn constant(&self) -> f32 {
        let share = |target: &Target| 1.0 / (1.0 + (-target.logit).exp());
        let weighted = self.targets.iter().zip(self.certainties());
        let sum: f32 = weighted
            .map(|(target, weight)| weight * share(target))
            .sum();
        let mean = sum / self.totals.documents;
        (mean / (1.0 - mean)).ln()
    }

    /// The standard deviation of a group's scores, in the mean over groups of several documents.
    pub(crate) fn spread(&self, scores: &[f32]) -> f64 {
        let mut groups: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for (group, score) in self.groups.iter().zip(scores) {
            groups.entry(*group).or_default().push((*score).into());
        }
        groups.retain(|_, scores| scores.len() > 1);
        let deviation = |scores: &Vec<f64>| {
            let count = scores.len() as f64;
            let mean = scores.iter().sum::<f64>() / count;
            let squares = scores.iter().map(|score| (score - mean).powi(2));
            (squares.sum::<f64>() / count).sqrt()
        };
        let sum: f64 = groups.values().map(deviation).sum();
        sum / groups.len().max(1) as f64
    }

    pub(super) fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// What each document weighs.
    pub(super) fn certainties(&self) -> Vec<f32> {
        let of = |target: &Target| certainty(target.doubt);
        self.targets.iter().map(of).collect()
    }

    /// What all documents of the step weigh.
    pub(super) fn total(&self) -> f32 {
        self.totals.documents
    }

    /// The groups in which the teacher tells documents apart: from the others no order is learnt.
    pub(super) fn lists(&self) -> Vec<List> {
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (place, group) in self.groups.iter().enumerate() {
            groups.entry(*group).or_default().push(place);
        }
        let mut lists = Vec::new();
        for documents in groups.into_values() {
            let mut pairs = Vec::new();
            for above in &documents {
                for below in &documents {
                    let (high, low) = (self.targets[*above], self.targets[*below]);
                    if high.logit > low.logit {
                        pairs.push(Pair {
                            above: *above,
                            below: *below,
                            weight: certainty(high.doubt + low.doubt),
                        });
                    }
                }
            }
            if pairs.is_empty() {
                continue;
            }
            let divisor = pairs.len() as f32 * self.totals.groups;
            let certainties: f32 = pairs.iter().map(|pair| pair.weight).sum();
            for pair in &mut pairs {
                pair.weight /= divisor;
            }
            lists.push(List {
                documents,
                pairs,
                weight: certainties / divisor,
            });
        }
        lists
    }
}

/// The pairs of all lists.
pub(super) fn pairs(lists: &[List]) -> impl Iterator<Item = &Pair> {
    lists.iter().flat_map(|list| &list.pairs)
}

/// Each document of a list with each of that list, itself too.
pub(super) fn companions(lists: &[List]) -> impl Iterator<Item = (usize, usize)> {
    lists.iter().flat_map(|list| {
        let documents = &list.documents;
        documents
            .iter()
            .flat_map(move |i| documents.iter().map(move |j| (*i, *j)))
    })
}

fn certainty(doubt: f32) -> f32 {
    1.0 / (1.0 + doubt)
}
