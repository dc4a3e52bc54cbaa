//! Which examples make up which step: a pure function of the seed and the epoch, so that a step's
//! number is all that a resumed run must know.

use std::ops::Range;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::Result;
use crate::dataset::{Dataset, Example, Part};
use crate::settings::{Sampling, ScheduleSettings};

/// The examples of one step; those of one group are compared with one another.
#[derive(Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) groups: Vec<Group>,
}

/// Documents of one query.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    pub(crate) query_id: String,
    pub(crate) examples: Vec<Example>,
}

impl Step {
    /// The step's documents, group by group: the number of the group and the example.
    pub(crate) fn documents(&self) -> impl Iterator<Item = (usize, &Example)> {
        let groups = self.groups.iter().enumerate();
        groups.flat_map(|(number, group)| group.examples.iter().map(move |e| (number, e)))
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

/// The steps of one epoch: each query's documents are shuffled and cut into groups, the groups are
/// shuffled and dealt into steps. Which documents a group has is found out when its step is made, so
/// memory holds eight bytes a group and eight a query.
pub(crate) struct Epoch {
    number: usize,
    rng: ChaCha8Rng,
    /// Where in the generator's numbers the shuffle of each query begins.
    shuffles: Vec<u64>,
    /// Each with its query, and which of its query's groups it is.
    groups: Vec<(u32, u32)>,
}

impl Epoch {
    pub(crate) fn of(
        dataset: &Dataset,
        schedule: &ScheduleSettings,
        seed: u64,
        number: usize,
    ) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(number as u64);
        let mut shuffles = Vec::with_capacity(dataset.queries());
        let mut groups = Vec::new();
        for part in dataset.parts() {
            let first = groups.len();
            for query in part.queries.clone() {
                shuffles.push(u64::try_from(rng.get_word_pos()).unwrap_or(u64::MAX));
                let examples = dataset.examples(query);
                // For the numbers that it takes.
                order(examples, &mut rng);
                let of_query = 0..groups_of(examples, schedule);
                groups.extend(of_query.map(|group| (narrow(query), narrow(group))));
            }
            let kept = groups_in_epoch(groups.len() - first, part);
            if kept < groups.len() - first {
                groups[first..].shuffle(&mut rng);
                groups.truncate(first + kept);
            }
        }
        let kept = rng.clone();
        groups.shuffle(&mut rng);
        Self {
            number,
            rng: kept,
            shuffles,
            groups,
        }
    }

    /// One of its steps.
    ///
    /// # Errors
    /// A disk that fails.
    pub(crate) fn step(
        &self,
        dataset: &Dataset,
        schedule: &ScheduleSettings,
        number: usize,
    ) -> Result<Step> {
        let size = schedule.queries_per_update();
        let groups = self.groups.chunks(size).nth(number).unwrap_or_default();
        let groups = groups.iter().map(|(query, group)| {
            let (query, group) = (*query as usize, *group as usize);
            let (query_id, examples) = dataset.query(query)?;
            let mut rng = self.rng.clone();
            rng.set_word_pos(self.shuffles[query].into());
            let shuffled = order(examples.len(), &mut rng);
            let places = match schedule.sampling {
                Sampling::Random => cut(&shuffled, group, schedule),
                Sampling::Stratified => dealt(&shuffled, group, schedule, |place| {
                    examples[place].target.logit
                }),
            };
            Ok(Group {
                query_id,
                examples: places.into_iter().map(|it| examples[it].clone()).collect(),
            })
        });
        Ok(Step {
            groups: groups.collect::<Result<_>>()?,
        })
    }
}

/// The steps of all epochs.
pub(crate) struct Steps<'a> {
    dataset: &'a Dataset,
    schedule: &'a ScheduleSettings,
    seed: u64,
    per_epoch: usize,
    /// That of the step that was asked for last.
    epoch: Option<Epoch>,
}

impl<'a> Steps<'a> {
    pub(crate) fn of(dataset: &'a Dataset, schedule: &'a ScheduleSettings, seed: u64) -> Self {
        Self {
            dataset,
            schedule,
            seed,
            per_epoch: steps_per_epoch(dataset, schedule),
            epoch: None,
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.per_epoch * self.schedule.epochs
    }

    /// The step after so many.
    ///
    /// # Errors
    /// A disk that fails.
    pub(crate) fn after(&mut self, steps: usize) -> Result<Step> {
        let number = steps / self.per_epoch;
        let epoch = match self.epoch.take() {
            Some(epoch) if epoch.number == number => epoch,
            _ => Epoch::of(self.dataset, self.schedule, self.seed, number),
        };
        let epoch = self.epoch.insert(epoch);
        epoch.step(self.dataset, self.schedule, steps % self.per_epoch)
    }
}

/// The number of steps in an epoch: the same for every epoch.
fn steps_per_epoch(dataset: &Dataset, schedule: &ScheduleSettings) -> usize {
    let groups_of = |query| groups_of(dataset.examples(query), schedule);
    let of_part = |part: &Part| groups_in_epoch(part.queries.clone().map(groups_of).sum(), part);
    let groups: usize = dataset.parts().iter().map(of_part).sum();
    groups.div_ceil(schedule.queries_per_update())
}

/// How many of a part's groups an epoch has.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a number"
)]
fn groups_in_epoch(groups: usize, part: &Part) -> usize {
    ((groups as f64 * part.share).round() as usize).clamp(groups.min(1), groups)
}

/// How many groups a query's documents make in an epoch.
fn groups_of(documents: usize, schedule: &ScheduleSettings) -> usize {
    let all = documents.div_ceil(schedule.documents_per_query);
    schedule.groups_per_query.map_or(all, |most| all.min(most))
}

fn order(count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(rng);
    order
}

/// One of the groups that shuffled documents are cut into: nearly of one size, none above the limit. A
/// rest of one document would be compared with nothing.
fn cut(shuffled: &[usize], group: usize, schedule: &ScheduleSettings) -> Vec<usize> {
    let groups = shuffled.len().div_ceil(schedule.documents_per_query);
    let size = |group| (shuffled.len() + group) / groups;
    let begins: usize = (0..group).map(size).sum();
    shuffled[begins..begins + size(group)].to_vec()
}

/// One of the groups that shuffled documents are dealt to from the highest score to the lowest: of the
/// highest, as many as there are groups, each group has one, and so on, so all groups span the scores
/// of the query.
fn dealt(
    shuffled: &[usize],
    group: usize,
    schedule: &ScheduleSettings,
    score: impl Fn(usize) -> f32,
) -> Vec<usize> {
    let groups = shuffled.len().div_ceil(schedule.documents_per_query);
    // Places in `shuffled`, so that chance decides among equal scores and within a stratum.
    let mut ranked: Vec<usize> = (0..shuffled.len()).collect();
    ranked.sort_by(|a, b| score(shuffled[*b]).total_cmp(&score(shuffled[*a])));
    let strata = ranked.chunks(groups).map(|stratum| {
        let mut stratum = stratum.to_vec();
        stratum.sort_unstable();
        stratum
    });
    strata
        .filter_map(|stratum| stratum.get(group).map(|place| shuffled[*place]))
        .collect()
}

/// A number of a query or of one of its groups.
fn narrow(number: usize) -> u32 {
    // Sixteen bytes a query: four billion of them do not fit into memory.
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use retort_model::Encoded;

    use super::*;
    use crate::loss::Target;

    /// Queries of so many documents, whose logits are their numbers in the query.
    fn dataset(parts: &[(&[usize], f64)]) -> Dataset {
        let example = |number: usize| Example {
            pair: Encoded {
                input_ids: vec![narrow(number)],
                token_type_ids: vec![0],
            },
            target: Target {
                logit: number as f32,
                grade: 0.0,
                doubt: 0.0,
            },
        };
        let mut queries = Vec::new();
        let mut made = Vec::new();
        for (sizes, share) in parts {
            let first = queries.len();
            for size in *sizes {
                let id = queries.len().to_string();
                queries.push((id, (0..*size).map(example).collect()));
            }
            made.push(Part {
                queries: first..queries.len(),
                share: *share,
            });
        }
        Dataset::of_tests(&queries, made)
    }

    fn schedule() -> ScheduleSettings {
        ScheduleSettings {
            documents_per_query: 8,
            queries_per_step: 2,
            ..ScheduleSettings::of_tests()
        }
    }

    fn steps(dataset: &Dataset, schedule: &ScheduleSettings, seed: u64, epoch: usize) -> Vec<Step> {
        let count = steps_per_epoch(dataset, schedule);
        let epoch = Epoch::of(dataset, schedule, seed, epoch);
        let step = |number| epoch.step(dataset, schedule, number).unwrap();
        let steps: Vec<Step> = (0..count).map(step).collect();
        assert!(steps.iter().all(|step| !step.groups.is_empty()));
        assert!(step(count).groups.is_empty());
        steps
    }

    /// The query of each group and its documents' numbers.
    fn groups(steps: &[Step]) -> Vec<(usize, Vec<usize>)> {
        let groups = steps.iter().flat_map(|step| &step.groups);
        let number = |example: &Example| example.pair.input_ids[0] as usize;
        groups
            .map(|group| {
                let documents = group.examples.iter().map(number).collect();
                (group.query_id.parse().unwrap(), documents)
            })
            .collect()
    }

    const SIZES: [usize; 4] = [20, 3, 9, 1];

    #[test]
    fn an_epoch_has_every_example_once_in_groups_of_one_query() {
        for sampling in [Sampling::Random, Sampling::Stratified] {
            let dataset = dataset(&[(&SIZES, 1.0)]);
            let schedule = ScheduleSettings {
                sampling,
                ..schedule()
            };
            let groups = groups(&steps(&dataset, &schedule, 7, 0));
            let mut seen: Vec<(usize, usize)> = Vec::new();
            for (query, documents) in groups {
                assert!(documents.len() <= 8);
                // A query of 9 is two groups of 4 and 5, not 8 and 1.
                assert!(documents.len() > 1 || SIZES[query] == 1);
                seen.extend(documents.into_iter().map(|document| (query, document)));
            }
            seen.sort_unstable();
            let all = (0..4).flat_map(|query| (0..SIZES[query]).map(move |it| (query, it)));
            assert!(seen.into_iter().eq(all));
        }
    }

    #[test]
    fn stratified_groups_span_the_scores() {
        let dataset = dataset(&[(&[40], 1.0)]);
        let schedule = ScheduleSettings {
            sampling: Sampling::Stratified,
            ..schedule()
        };
        let mut orders = BTreeSet::new();
        for epoch in 0..4 {
            let groups = groups(&steps(&dataset, &schedule, 7, epoch));
            assert_eq!(groups.len(), 5);
            for (_, documents) in &groups {
                // One of 35 to 39, one of 30 to 34, and so on.
                let strata = documents.iter().map(|document| document / 5);
                assert!(strata.eq((0..8).rev()), "{documents:?}");
            }
            orders.insert(groups);
        }
        assert_eq!(orders.len(), 4);
    }

    #[test]
    fn a_share_of_a_set_is_another_in_each_epoch() {
        let dataset = dataset(&[(&[8; 10], 1.0), (&[8; 20], 0.25)]);
        let schedule = schedule();
        let mut drawn = BTreeSet::new();
        for epoch in 0..4 {
            let groups = groups(&steps(&dataset, &schedule, 7, epoch));
            let (all, some): (Vec<_>, Vec<_>) = groups.into_iter().partition(|it| it.0 < 10);
            assert_eq!((all.len(), some.len()), (10, 5));
            let queries: BTreeSet<usize> = some.into_iter().map(|it| it.0).collect();
            assert_eq!(queries.len(), 5);
            drawn.insert(queries);
        }
        assert_eq!(drawn.len(), 4);
    }

    #[test]
    fn groups_of_a_query_can_be_few() {
        let dataset = dataset(&[(&SIZES, 1.0)]);
        let schedule = ScheduleSettings {
            groups_per_query: Some(1),
            ..schedule()
        };
        let groups = groups(&steps(&dataset, &schedule, 7, 0));
        let queries: BTreeSet<usize> = groups.iter().map(|it| it.0).collect();
        assert_eq!((groups.len(), queries.len()), (4, 4));
        let largest = groups.iter().map(|it| it.1.len()).max();
        assert_eq!(largest, Some(6), "a third of 20");
    }

    #[test]
    fn epochs_differ_and_repeat() {
        let dataset = dataset(&[(&[20; 5], 1.0)]);
        let of = |number| steps(&dataset, &schedule(), 7, number);
        assert_eq!(of(1), of(1));
        assert_ne!(of(0), of(1));
    }

    #[test]
    fn small_steps_that_are_accumulated_are_one_large_step() {
        let dataset = dataset(&[(&SIZES, 1.0)]);
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
        let of = |schedule| steps(&dataset, schedule, 7, 0);
        assert_eq!(of(&small), of(&large));
        assert_eq!(steps_per_epoch(&dataset, &small), 2);
    }

    #[test]
    fn parts_and_shards_are_whole_groups_and_all_of_them() {
        let dataset = dataset(&[(&SIZES, 1.0)]);
        let schedule = ScheduleSettings {
            queries_per_step: 5,
            ..schedule()
        };
        for step in steps(&dataset, &schedule, 7, 0) {
            let documents: Vec<(usize, &Example)> = step.documents().collect();
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
