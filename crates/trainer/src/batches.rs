//! Which examples make up which step: a pure function of the seed and the epoch, so that a step's
//! number is all that a resumed run must know.

use std::ops::Range;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::dataset::{Dataset, QueryExamples};
use crate::settings::ScheduleSettings;

/// The examples of one step; those of one group are compared with one another.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) groups: Vec<Group>,
}

/// Documents of one query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Its place in [`Dataset::queries`].
    pub(crate) query: usize,
    /// Places in [`Dataset::pairs`].
    pub(crate) examples: Vec<usize>,
}

impl Step {
    /// The step's documents, group by group: the number of the group and the example.
    pub(crate) fn documents(&self) -> impl Iterator<Item = (usize, usize)> {
        let groups = self.groups.iter().enumerate();
        groups.flat_map(|(number, group)| group.examples.iter().map(move |e| (number, *e)))
    }

    /// The places of these documents, in parts of at most so many groups, to be computed one after
    /// another; each in shards to be computed side by side: at most `shards`, of nearly one number of
    /// groups, none empty.
    pub(crate) fn parts(&self, groups: usize, shards: usize) -> Vec<Vec<Range<usize>>> {
        let mut end = 0;
        let mut places = |groups: &[Group]| {
            let start = end;
            end += groups.iter().map(|g| g.examples.len()).sum::<usize>();
            start..end
        };
        self.groups
            .chunks(groups.max(1))
            .map(|part| {
                let size = part.len().div_ceil(shards.max(1));
                part.chunks(size).map(&mut places).collect()
            })
            .collect()
    }
}

/// The steps of one epoch, every example once: each query's documents are shuffled and cut into
/// groups, the groups are shuffled and dealt into steps.
pub(crate) fn epoch(
    dataset: &Dataset,
    settings: &ScheduleSettings,
    seed: u64,
    epoch: usize,
) -> Vec<Step> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch as u64);
    let mut groups = Vec::new();
    for (query, QueryExamples { examples, .. }) in dataset.queries.iter().enumerate() {
        let mut shuffled = examples.clone();
        shuffled.shuffle(&mut rng);
        let mut rest = shuffled.as_slice();
        for size in group_sizes(examples.len(), settings) {
            let (examples, left) = rest.split_at(size);
            groups.push(Group {
                query,
                examples: examples.to_vec(),
            });
            rest = left;
        }
    }
    groups.shuffle(&mut rng);
    let steps = groups.chunks(settings.queries_per_update());
    steps
        .map(|groups| Step {
            groups: groups.to_vec(),
        })
        .collect()
}

/// The number of steps in an epoch: the same for every epoch.
pub(crate) fn steps_per_epoch(dataset: &Dataset, settings: &ScheduleSettings) -> usize {
    let groups_of = |query: &QueryExamples| group_sizes(query.examples.len(), settings).len();
    let groups: usize = dataset.queries.iter().map(groups_of).sum();
    groups.div_ceil(settings.queries_per_update())
}

/// The sizes of the groups that `count` documents are cut into: nearly one size, none above the
/// limit. A rest of one document would be compared with nothing.
fn group_sizes(count: usize, settings: &ScheduleSettings) -> Vec<usize> {
    let groups = count.div_ceil(settings.documents_per_query);
    (0..groups).map(|group| (count + group) / groups).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn dataset(sizes: &[usize]) -> Dataset {
        let mut next = 0;
        let queries = sizes
            .iter()
            .map(|size| {
                let examples = (next..next + size).collect();
                next += size;
                QueryExamples {
                    id: String::new(),
                    examples,
                }
            })
            .collect();
        Dataset {
            pairs: Vec::new(),
            targets: Vec::new(),
            queries,
            warning: None,
        }
    }

    fn schedule() -> ScheduleSettings {
        ScheduleSettings {
            documents_per_query: 8,
            queries_per_step: 2,
            ..ScheduleSettings::of_tests()
        }
    }

    #[test]
    fn an_epoch_has_every_example_once_in_groups_of_one_query() {
        let dataset = dataset(&[20, 3, 9, 1]);
        let steps = epoch(&dataset, &schedule(), 7, 0);
        assert_eq!(steps.len(), steps_per_epoch(&dataset, &schedule()));
        let groups = || steps.iter().flat_map(|step| &step.groups);
        let mut seen: Vec<usize> = groups().flat_map(|group| group.examples.clone()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..33).collect::<Vec<_>>());
        for group in groups() {
            assert!(group.examples.len() <= 8);
            let of_query = &dataset.queries[group.query].examples;
            assert!(
                group
                    .examples
                    .iter()
                    .all(|example| of_query.contains(example))
            );
            // A query of 9 is two groups of 4 and 5, not 8 and 1.
            assert!(group.examples.len() > 1 || of_query.len() == 1);
        }
    }

    #[test]
    fn epochs_differ_and_repeat() {
        let dataset = dataset(&[20; 5]);
        let of = |number| epoch(&dataset, &schedule(), 7, number);
        assert_eq!(of(1), of(1));
        assert_ne!(of(0), of(1));
    }

    #[test]
    fn small_steps_that_are_accumulated_are_one_large_step() {
        let dataset = dataset(&[20, 3, 9, 1]);
        let (small, large) = (
            ScheduleSettings {
                accumulate: 3,
                ..schedule()
            },
            ScheduleSettings {
                queries_per_step: 6,
                ..schedule()
            },
        );
        assert_eq!(epoch(&dataset, &small, 7, 0), epoch(&dataset, &large, 7, 0));
        assert_eq!(steps_per_epoch(&dataset, &small), 2);
    }

    #[test]
    fn parts_and_shards_are_whole_groups_and_all_of_them() {
        let dataset = dataset(&[20, 3, 9, 1]);
        let schedule = ScheduleSettings {
            queries_per_step: 5,
            ..schedule()
        };
        for step in epoch(&dataset, &schedule, 7, 0) {
            let documents: Vec<(usize, usize)> = step.documents().collect();
            let group = |place: usize| documents[place].0;
            for (groups, count) in [(1, 1), (2, 2), (3, 1), (9, 0), (9, 2), (9, 9)] {
                let parts = step.parts(groups, count);
                assert_eq!(parts.len(), step.groups.len().div_ceil(groups));
                let places = parts.iter().flatten().cloned().flatten();
                assert!(places.eq(0..documents.len()));
                for shards in &parts {
                    assert!(shards.len() <= count.max(1));
                    let of_part = || shards.iter().cloned().flatten().map(group);
                    let several: BTreeSet<usize> = of_part().collect();
                    assert!(several.len() <= groups);
                    for shard in shards {
                        assert!(!shard.is_empty());
                        let cuts = [shard.start, shard.end].into_iter();
                        let mut inside = cuts.filter(|cut| *cut > 0 && *cut < documents.len());
                        assert!(inside.all(|cut| group(cut - 1) != group(cut)));
                    }
                }
            }
        }
    }
}
