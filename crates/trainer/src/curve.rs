//! Learning curves: what a student is worth by how many labelled queries it learned from, beside its
//! teacher on the same candidates.
//!
//! ```text
//! CURVE/config.toml, inputs.json      what all points have in common
//! CURVE/100-queries-seed-42/          a run; its checkpoints go when it is measured
//! CURVE/100-queries-seed-42/ndcg.json what its student is worth, query by query
//! ```
//!
//! A point that was measured stays; one that was being trained is gone on with.

mod report;
mod svg;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fs_err as fs;
use retort_data::collection::Collection;
use retort_data::{label_set, measure};
use retort_model::{CrossEncoder, Encoded, Head};
use serde::{Deserialize, Serialize};

use crate::dataset::count_queries;
use crate::evaluation::{Evaluation, Measured};
use crate::inputs::Inputs;
use crate::material::tokenizer;
use crate::start::{refuse_changes, write_origin};
use crate::train::fit;
use crate::{Error, Event, Result, Run, TrainSettings, checkpoint, verdict};

/// Which points of a curve to draw.
#[derive(Clone, Debug)]
pub struct CurveSettings {
    /// Numbers of labelled queries; none means a thirtieth, a tenth, a third and all of them.
    pub queries: Vec<usize>,
    /// Students a point, each with another seed: another head, another order, other queries.
    pub students: u64,
    /// Whether each point passes over its labels as often as the settings say. If not, each makes
    /// about as many steps as all labels would, so that the curve says what labels are worth and not
    /// what steps are.
    pub same_epochs: bool,
}

/// What happens while a curve is drawn.
#[derive(Debug)]
pub enum CurveEvent<'a> {
    /// A student begins, or goes on.
    Student {
        /// Queries it learns from.
        queries: usize,
        /// Its seed.
        seed: u64,
    },
    /// Something happens in its training.
    Training(Event<'a>),
    /// A student was measured, now or before.
    Measured {
        /// Queries it learned from.
        queries: usize,
        /// Its seed.
        seed: u64,
        /// What it is worth.
        ndcg: f64,
    },
}

/// A student's worth by the number of labelled queries.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// Whose gold gains.
    pub split: String,
    /// Queries that students are measured on.
    pub test_queries: usize,
    /// Queries of the label set.
    pub labelled_queries: usize,
    /// Seeds of the students of a point.
    pub seeds: Vec<u64>,
    /// From the fewest queries to the most.
    pub points: Vec<CurvePoint>,
    /// The teacher, where the settings name its labels of the test candidates.
    pub teacher: Option<TeacherLine>,
    /// The number of queries from which on the student is above its teacher.
    pub passes_at: Option<usize>,
    /// The same, with the whole interval of the difference above 0.
    pub surely_passes_at: Option<usize>,
}

/// One number of labelled queries.
#[derive(Clone, Debug, Serialize)]
pub struct CurvePoint {
    /// That number.
    pub queries: usize,
    /// Mean nDCG@10 over test queries and students.
    #[serde(rename = "ndcg@10")]
    pub ndcg: Interval,
    /// That of each student.
    pub of_students: Vec<f64>,
    /// The mean difference to the teacher, over the queries of the teacher's line.
    pub minus_teacher: Option<Interval>,
}

/// What the teacher is worth.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TeacherLine {
    /// Mean nDCG@10.
    #[serde(rename = "ndcg@10")]
    pub ndcg: Interval,
    /// Over so many queries: those of which it judged every candidate.
    pub queries: usize,
}

/// A mean with its 95 % bootstrap interval over queries.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The mean.
    pub value: f64,
    /// The interval's lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Interval {
    fn of(values: &[f64]) -> Self {
        let (low, high) = measure::bootstrap_interval(values);
        let value = measure::mean(values);
        Self { value, low, high }
    }
}

/// What a measured point keeps.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Worth {
    /// By test query.
    #[serde(rename = "ndcg@10")]
    ndcg: BTreeMap<String, f64>,
}

/// Trains a student for each point, measures it, and writes the curve as `curve.json` and
/// `curve.svg`. `run` is what all points have in common, its folder that of the curve; one that was
/// begun is gone on with, and may get more points.
///
/// # Errors
/// As [`train`](crate::train()); a number of queries that the label set does not have; a folder that
/// holds something else.
pub fn curve(
    run: &Run,
    wanted: &CurveSettings,
    mut report: impl FnMut(CurveEvent),
) -> Result<Curve> {
    let settings = run.settings;
    settings.check()?;
    let collection = Collection::read(&settings.data.collection)?;
    let Some(labels) = &settings.data.labels else {
        return Err(Error::Setting {
            key: "data.labels",
            problem: "is not given, and a curve is one over the queries of a label set: name one"
                .to_owned(),
        });
    };
    for (key, is_given) in [
        ("data.also", !settings.data.also.is_empty()),
        ("data.gold", settings.data.gold.is_some()),
    ] {
        if is_given {
            return Err(Error::Setting {
                key,
                problem:
                    "would be learnt from whole at every point, and a curve counts the queries \
                          of data.labels: leave it out"
                        .to_owned(),
            });
        }
    }
    let labelled = count_queries(&label_set::open(labels)?)?;
    let numbers = numbers(wanted, labelled, settings)?;
    let subject = Subject::read(run, &collection)?;
    begin(run)?;

    let seeds: Vec<u64> = (0..wanted.students.max(1))
        .map(|n| settings.seed.wrapping_add(n))
        .collect();
    let mut points = Vec::new();
    for queries in numbers {
        let mut students = Vec::new();
        for seed in &seeds {
            report(CurveEvent::Student {
                queries,
                seed: *seed,
            });
            let settings = of_point(settings, wanted, queries, labelled, *seed);
            let folder = run.folder.join(format!("{queries}-queries-seed-{seed}"));
            let point = Run {
                settings: &settings,
                folder: &folder,
                ..*run
            };
            let worth = subject.student(&point, &mut report)?;
            report(CurveEvent::Measured {
                queries,
                seed: *seed,
                ndcg: measure::mean(&worth),
            });
            students.push(worth);
        }
        points.push(subject.point(queries, &students));
    }
    let curve = Curve {
        split: settings.verdict.split.clone(),
        test_queries: subject.evaluation.queries.len(),
        labelled_queries: labelled,
        seeds,
        passes_at: from_where_on(&points, |difference| difference.value > 0.0),
        surely_passes_at: from_where_on(&points, |difference| difference.low > 0.0),
        teacher: subject.line(),
        points,
    };
    let json = checkpoint::to_json(&curve);
    retort_files::write_atomic(&run.folder.join("curve.json"), &json)?;
    retort_files::write_atomic(&run.folder.join("curve.svg"), svg::draw(&curve).as_bytes())?;
    Ok(curve)
}

/// The numbers of queries to draw points for, in rising order.
fn numbers(
    wanted: &CurveSettings,
    labelled: usize,
    settings: &TrainSettings,
) -> Result<Vec<usize>> {
    if settings.data.queries.is_some() {
        return Err(Error::Setting {
            key: "data.queries",
            problem: "is what a curve varies: leave it out".to_owned(),
        });
    }
    let mut numbers = wanted.queries.clone();
    if numbers.is_empty() {
        numbers = [30, 10, 3, 1].map(|part| labelled / part).to_vec();
        numbers.retain(|number| *number > 0);
    }
    numbers.sort_unstable();
    numbers.dedup();
    match numbers
        .iter()
        .find(|number| !(1..=labelled).contains(*number))
    {
        None => Ok(numbers),
        Some(number) => Err(Error::Setting {
            key: "--queries",
            problem: format!(
                "is {number}, expected numbers from 1 to the label set's {labelled} queries"
            ),
        }),
    }
}

/// Makes the curve's folder, or makes sure that it is this curve's.
fn begin(run: &Run) -> Result<()> {
    let inputs = Inputs::read(run)?;
    if run.folder.exists() {
        return refuse_changes(run, &inputs);
    }
    retort_files::write_new_directory(run.folder, |folder| write_origin(run, &inputs, folder))
}

fn of_point(
    settings: &TrainSettings,
    wanted: &CurveSettings,
    queries: usize,
    labelled: usize,
    seed: u64,
) -> TrainSettings {
    let mut settings = settings.clone();
    settings.seed = seed;
    settings.data.queries = Some(queries);
    if !wanted.same_epochs {
        let epochs = settings.schedule.epochs * labelled;
        settings.schedule.epochs = ((epochs + queries / 2) / queries).max(1);
    }
    settings
}

/// The fewest queries that the difference to the teacher is so at and at all points after.
fn from_where_on(points: &[CurvePoint], is_so: impl Fn(&Interval) -> bool) -> Option<usize> {
    let so = |point: &&CurvePoint| point.minus_teacher.as_ref().is_some_and(&is_so);
    points
        .iter()
        .rev()
        .take_while(so)
        .last()
        .map(|point| point.queries)
}

/// What students are measured on.
struct Subject {
    evaluation: Evaluation,
    pairs: Vec<Encoded>,
    relevant_gain: u8,
    /// What the teacher is worth by query.
    teacher: Option<BTreeMap<String, f64>>,
}

impl Subject {
    fn read(run: &Run, collection: &Collection) -> Result<Self> {
        let settings = &run.settings.verdict;
        let relevant_gain = settings.relevant_gain;
        let evaluation = Evaluation::read(collection, &settings.split, &settings.candidates)?;
        let pairs = evaluation.encode(collection, &tokenizer(run)?, &settings.candidates)?;
        let teacher = match &settings.teacher_labels {
            None => None,
            Some(labels) => {
                let grades = verdict::read_grades(labels, collection)?;
                let of = verdict::of_teacher(&evaluation, &grades, relevant_gain);
                of.map(|(judged, measured)| by_query(&judged, &measured))
            }
        };
        Ok(Self {
            evaluation,
            pairs,
            relevant_gain,
            teacher,
        })
    }

    /// What the student of a run is worth, in the order of the queries; trains it first if that was
    /// not done.
    fn student(&self, run: &Run, report: &mut impl FnMut(CurveEvent)) -> Result<Vec<f64>> {
        let kept = run.folder.join("ndcg.json");
        let worth = if kept.exists() {
            refuse_changes(run, &Inputs::read(run)?)?;
            checkpoint::read_json(&kept)?
        } else {
            let mut training = |event: Event| report(CurveEvent::Training(event));
            let worth = run.guarded(|| {
                let fitted = fit(run, &mut training)?;
                training(Event::Stage("measuring"));
                self.measure(run, &fitted.model)
            })?;
            retort_files::write_atomic(&kept, &checkpoint::to_json(&worth))?;
            worth
        };
        let checkpoints: PathBuf = run.folder.join("steps");
        if checkpoints.exists() {
            fs::remove_dir_all(&checkpoints)?;
        }
        let of_query = |id: &String| {
            worth.ndcg.get(id).copied().ok_or_else(|| Error::Run {
                folder: kept.clone(),
                problem: format!("lacks the query {id}: remove it to train its student again"),
            })
        };
        self.evaluation
            .queries
            .iter()
            .map(|query| of_query(&query.id))
            .collect()
    }

    fn measure(&self, run: &Run, model: &Path) -> Result<Worth> {
        let student = CrossEncoder::load(model, Head::Required, None, run.device)?;
        let tokens = run.settings.schedule.tokens_per_pass;
        let measured =
            self.evaluation
                .of_student(&student, &self.pairs, tokens, self.relevant_gain)?;
        Ok(Worth {
            ndcg: by_query(&self.evaluation, &measured),
        })
    }

    fn point(&self, queries: usize, students: &[Vec<f64>]) -> CurvePoint {
        let count = students.len() as f64;
        let mean_at = |place: usize| students.iter().map(|it| it[place]).sum::<f64>() / count;
        let ids = self.evaluation.queries.iter().map(|query| &query.id);
        let values: Vec<(&String, f64)> = ids
            .enumerate()
            .map(|(place, id)| (id, mean_at(place)))
            .collect();
        let ndcgs: Vec<f64> = values.iter().map(|(_, value)| *value).collect();
        let minus_teacher = self.teacher.as_ref().map(|teacher| {
            let both = values
                .iter()
                .filter_map(|(id, value)| Some(value - teacher.get(*id)?));
            Interval::of(&both.collect::<Vec<f64>>())
        });
        CurvePoint {
            queries,
            ndcg: Interval::of(&ndcgs),
            of_students: students.iter().map(|it| measure::mean(it)).collect(),
            minus_teacher,
        }
    }

    fn line(&self) -> Option<TeacherLine> {
        let values: Vec<f64> = self.teacher.as_ref()?.values().copied().collect();
        Some(TeacherLine {
            ndcg: Interval::of(&values),
            queries: values.len(),
        })
    }
}

fn by_query(evaluation: &Evaluation, measured: &Measured) -> BTreeMap<String, f64> {
    let ids = evaluation.queries.iter().map(|query| query.id.clone());
    ids.zip(measured.ndcg.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(queries: usize, low: f64, value: f64, high: f64) -> CurvePoint {
        let interval = Interval { value, low, high };
        CurvePoint {
            queries,
            ndcg: Interval {
                value: 0.6 + value,
                low: 0.6 + low,
                high: 0.6 + high,
            },
            of_students: vec![0.6 + value],
            minus_teacher: Some(interval),
        }
    }

    fn drawn(points: Vec<CurvePoint>) -> Curve {
        let ndcg = Interval {
            value: 0.6,
            low: 0.55,
            high: 0.65,
        };
        Curve {
            split: "test".into(),
            test_queries: 110,
            labelled_queries: 300,
            seeds: vec![42],
            passes_at: from_where_on(&points, |it| it.value > 0.0),
            surely_passes_at: from_where_on(&points, |it| it.low > 0.0),
            teacher: Some(TeacherLine { ndcg, queries: 110 }),
            points,
        }
    }

    #[test]
    fn a_teacher_is_passed_from_where_on_no_point_is_below() {
        let curve = drawn(vec![
            point(10, 0.0, 0.01, 0.02),
            point(30, -0.1, -0.05, 0.0),
            point(100, -0.01, 0.02, 0.05),
            point(300, 0.02, 0.05, 0.08),
        ]);
        assert_eq!(
            (curve.passes_at, curve.surely_passes_at),
            (Some(100), Some(300))
        );
        let said = curve.to_string();
        assert!(
            said.contains("passes its teacher from 100 queries on"),
            "{said}"
        );
        assert!(said.contains("beyond chance from 300 on"), "{said}");

        let below = drawn(vec![
            point(10, -0.2, -0.1, 0.0),
            point(30, -0.1, -0.05, 0.1),
        ]);
        assert_eq!((below.passes_at, below.surely_passes_at), (None, None));
        let said = below.to_string();
        assert!(said.contains("does not pass its teacher"), "{said}");
    }

    #[test]
    fn a_drawing_has_every_point_inside_its_frame() {
        let curve = drawn(vec![
            point(10, -0.4, -0.2, -0.1),
            point(300, 0.02, 0.05, 0.08),
        ]);
        let drawing = svg::draw(&curve);
        assert_eq!(drawing.matches("<circle").count(), 2, "{drawing}");
        for (attribute, most) in [(" cx=\"", 640.0), (" cy=\"", 400.0)] {
            for part in drawing.split(attribute).skip(1) {
                let value: f64 = part.split('"').next().unwrap().parse().unwrap();
                assert!((0.0..=most).contains(&value), "{value}");
            }
        }
        assert!(
            drawing.contains("teacher") && !drawing.contains("NaN"),
            "{drawing}"
        );
        // A lone point has no scale to be on.
        let lone = svg::draw(&drawn(vec![point(10, 0.0, 0.0, 0.0)]));
        assert!(!lone.contains("NaN") && !lone.contains("inf"), "{lone}");
    }

    #[test]
    fn fewer_labels_are_seen_more_often() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/demo.toml");
        let demo: TrainSettings = retort_data::settings::read(&path, &[]).unwrap();
        let mut wanted = CurveSettings {
            queries: Vec::new(),
            students: 1,
            same_epochs: false,
        };
        let numbers = numbers(&wanted, 300, &demo).unwrap();
        assert_eq!(numbers, [10, 30, 100, 300]);
        let epochs = |wanted: &CurveSettings| {
            let of = |queries: &usize| of_point(&demo, wanted, *queries, 300, 42).schedule.epochs;
            numbers.iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(epochs(&wanted), [30, 10, 3, 1]);
        wanted.same_epochs = true;
        assert_eq!(epochs(&wanted), [1, 1, 1, 1]);
    }

    #[test]
    fn numbers_that_the_labels_do_not_have_are_refused() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/demo.toml");
        let demo: TrainSettings = retort_data::settings::read(&path, &[]).unwrap();
        let of = |queries: &[usize], settings: &TrainSettings| {
            let wanted = CurveSettings {
                queries: queries.to_vec(),
                students: 1,
                same_epochs: false,
            };
            numbers(&wanted, 20, settings).map_err(|error| error.to_string())
        };
        assert_eq!(of(&[20, 3, 3], &demo).unwrap(), [3, 20]);
        assert_eq!(of(&[], &demo).unwrap(), [2, 6, 20]);
        for number in [0, 21] {
            let error = of(&[5, number], &demo).unwrap_err();
            assert!(
                error.contains("from 1 to the label set's 20 queries"),
                "{error}"
            );
        }
        let mut fixed = demo;
        fixed.data.queries = Some(5);
        assert!(of(&[5], &fixed).unwrap_err().contains("leave it out"));
    }
}
