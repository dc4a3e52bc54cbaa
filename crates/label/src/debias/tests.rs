//! Teachers that err by chance and by habit, and a student made of features.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use retort_data::collection::Qrels;
use retort_data::label_set::LabelSet;
use retort_data::measure::{mean, ndcg_of_scores};
use retort_data::shop::{self, Product, ShopQuery};

use super::*;
use crate::audit::CUTOFF;
use simulated::{StuffedShop, Teacher};

#[path = "../../tests/simulated/mod.rs"]
mod simulated;

/// The stuffed shop in a folder, with the demo's candidates of training queries.
struct World {
    folder: tempfile::TempDir,
    shop: StuffedShop,
}

/// Gold queries that are known to the correction.
const GOLD: usize = 30;
/// Queries that students are trained on, at most; the others measure them.
const TRAINING: usize = 200;

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shop = StuffedShop::write(&folder.path().join("shop"));
        shop.keep_gold("gold", "train", GOLD);
        Self { folder, shop }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn judged_by(&self, teacher: Teacher, name: &str) -> LabelSet {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../training-data/shop");
        let candidates = demo.join("candidates/train.jsonl");
        self.shop
            .judge(teacher, &candidates, "train", &self.path(name));
        label_set::read(&self.path(name)).unwrap()
    }

    fn debiased(&self, labels: &str, method: Method) -> (Debiased, LabelSet) {
        let out = self.path(&format!("{labels}-{method}"));
        let job = Debias {
            labels: &self.path(labels),
            collection: &self.path("shop"),
            gold: "gold",
            method,
            out: &out,
        };
        let debiased = debias(&job, &AuditSettings::default()).unwrap();
        (debiased, label_set::read(&out).unwrap())
    }

    /// nDCG@10 on the queries that nobody trains on: of the labels, then of students that were
    /// trained on 1, 3, 10, … queries.
    fn curve(&self, set: &LabelSet) -> (f64, Vec<f64>) {
        let qrels = self.shop.collection.qrels("train").unwrap();
        let made = shop::generate(shop::SEED);
        let products: BTreeMap<&str, &Product> =
            made.products.iter().map(|it| (&*it.id, it)).collect();
        let queries: BTreeMap<&str, &ShopQuery> =
            made.queries.iter().map(|it| (&*it.id, it)).collect();
        let mut by_query: BTreeMap<String, Vec<(Vec<f64>, &Label)>> = BTreeMap::new();
        for label in &set.labels {
            let (query, document) =
                label_set::subject(label, &self.shop.collection, Path::new("labels")).unwrap();
            let counted = features::of(&query.text, &document.full_text());
            let product = products[&*document.id];
            let row = seen_by_student(queries[&*query.id], product, &counted);
            let lot = retort_files::sha256(query.id.as_bytes());
            by_query.entry(lot).or_default().push((row, label));
        }
        let by_query: Vec<_> = by_query.into_values().collect();
        let (training, test) = by_query.split_at(TRAINING);
        let of_teacher = worth(test, &qrels, |_, label| label.grade);
        let students = [1, 3, 10, 30, 100, TRAINING].map(|count| {
            let (rows, grades): (Vec<_>, Vec<_>) = (training[..count].iter().flatten())
                .map(|(row, label)| (row.clone(), label.grade))
                .unzip();
            let student = Ridge::fit(&rows, &grades, 1.0);
            worth(test, &qrels, |row, _| student.at(row))
        });
        (of_teacher, students.to_vec())
    }
}

/// What the student sees: whether type, brand and attribute values are those asked for, what can be
/// counted, each by itself and where the type is right, and its words in sixty-four buckets, which
/// say nothing.
fn seen_by_student(query: &ShopQuery, product: &Product, counted: &[f64]) -> Vec<f64> {
    let number = |it: bool| f64::from(u8::from(it));
    let asked =
        query.product_type == product.product_type || query.also.contains(&product.product_type);
    let lacks = |hard: bool| {
        let constraints = query.constraints.iter().filter(|it| it.hard == hard);
        constraints
            .filter(|it| product.attributes.get(&it.attribute) != Some(&it.value))
            .count() as f64
    };
    let other_brand = query
        .brand
        .as_ref()
        .is_some_and(|brand| *brand != product.brand);
    let alone = [&[lacks(true), lacks(false), number(other_brand)], counted].concat();
    let mut row = vec![number(asked)];
    row.extend(alone.iter().map(|value| value * number(asked)));
    row.extend(alone);
    let mut buckets = [0.0; 64];
    for word in product.text().split_whitespace() {
        let digest = retort_files::sha256(word.as_bytes());
        let bucket = usize::from_str_radix(&digest[..2], 16).unwrap() % buckets.len();
        buckets[bucket] += 1.0;
    }
    row.extend(buckets);
    row
}

fn worth(
    queries: &[Vec<(Vec<f64>, &Label)>],
    qrels: &Qrels,
    score: impl Fn(&[f64], &Label) -> f64,
) -> f64 {
    let of_query = |query: &Vec<(Vec<f64>, &Label)>| {
        let scored: Vec<(f64, u8)> = (query.iter())
            .map(|(row, label)| {
                let gains = qrels.get(&label.query_id);
                let gain = gains.and_then(|gains| gains.get(&label.document_id));
                (score(row, label), gain.copied().unwrap_or_default())
            })
            .collect();
        ndcg_of_scores(&scored, CUTOFF)
    };
    let values: Vec<f64> = queries.iter().filter_map(of_query).collect();
    assert!(values.len() > 80, "{}", values.len());
    mean(&values)
}

#[test]
fn a_teacher_wrong_by_chance_is_passed_with_enough_queries() {
    let world = World::new();
    let (teacher, students) = world.curve(&world.judged_by(Teacher::NOISY, "noisy"));
    assert!(students[0] < teacher - 0.02, "{teacher} {students:?}");
    assert!(students[5] > teacher + 0.1, "{teacher} {students:?}");
}

#[test]
fn a_teacher_wrong_by_habit_is_not_passed_until_the_habit_is_taken_out() {
    let world = World::new();
    let (teacher, students) = world.curve(&world.judged_by(Teacher::BIASED, "biased"));
    assert!(students[5] < teacher, "{teacher} {students:?}");

    let (of_residual, corrected) = world.debiased("biased", Method::Residual);
    let (_, students) = world.curve(&corrected);
    assert!(students[5] > teacher + 0.1, "{teacher} {students:?}");

    // A map from label to gold makes less of what stuffed documents have most of, and can't tell one
    // from another document with its label.
    let (of_isotonic, mapped) = world.debiased("biased", Method::Isotonic);
    let (_, of_mapped) = world.curve(&mapped);
    let (mapped, corrected) = (of_mapped[5], students[5]);
    assert!(mapped < corrected - 0.05, "{mapped} {corrected}");

    let repetition = |worth: &Worth| worth.over_rated_with["repetition"].unwrap();
    assert!(repetition(&of_residual.before) > 0.5, "{of_residual}");
    assert!(
        repetition(&of_residual.after[&Method::Residual]).abs() < 0.2,
        "{of_residual}"
    );
    assert!(
        repetition(&of_residual.after[&Method::Isotonic]) > 0.5,
        "{of_residual}"
    );
    assert!(of_residual.change.ndcg.unwrap().low > 0.0, "{of_residual}");
    assert!(
        of_residual.warnings().is_empty(),
        "{:?}",
        of_residual.warnings()
    );
    assert_eq!((of_residual.queries, of_residual.pairs), (GOLD, 20 * GOLD));
    assert!(
        of_isotonic.change.calibration_error.unwrap().high < 0.0,
        "{of_isotonic}"
    );
}

#[test]
fn a_corrected_set_says_what_it_was_made_from_and_can_be_corrected_again() {
    let world = World::new();
    let parent = world.judged_by(Teacher::BIASED, "biased");
    let (debiased, set) = world.debiased("biased", Method::Residual);
    assert_eq!(
        (&debiased.digest, debiased.rows),
        (&set.digest, parent.labels.len())
    );
    let [correction] = &set.manifest.corrections[..] else {
        panic!("{:?}", set.manifest.corrections);
    };
    assert_eq!(correction["of"], json!(parent.digest));
    assert_eq!(correction["method"], "residual");
    assert_eq!(correction["gold"]["queries"], GOLD);
    assert_eq!(set.manifest.recipe, parent.manifest.recipe);

    // The coefficients are all that it takes to make a label.
    let fit: Value = correction["fit"].clone();
    let numbers = |name: &str| -> Vec<f64> { serde_json::from_value(fit[name].clone()).unwrap() };
    let ridge = Ridge {
        means: numbers("means"),
        deviations: numbers("deviations"),
        weights: numbers("weights"),
        offset: fit["offset"].as_f64().unwrap(),
    };
    assert_eq!(
        fit["columns"].as_array().unwrap().len(),
        ridge.weights.len()
    );
    for (before, after) in parent.labels.iter().zip(&set.labels) {
        let (query, document) =
            label_set::subject(after, &world.shop.collection, Path::new("labels")).unwrap();
        let features = features::of(&query.text, &document.full_text());
        let subject = Subject::new(before, features);
        let share =
            (subject.share + ridge.at(&subject.row())).clamp(LEAST_DOUBT, 1.0 - LEAST_DOUBT);
        assert!(
            (after.grade - 3.0 * share).abs() < 1e-6,
            "{before:?} {after:?}"
        );
        assert_eq!((&before.text, &before.at), (&after.text, &after.at));
    }

    let (_, twice) = world.debiased("biased-residual", Method::Isotonic);
    assert_eq!(twice.manifest.corrections.len(), 2);
    assert_eq!(twice.manifest.corrections[0], *correction);
    assert_eq!(twice.manifest.corrections[1]["of"], json!(set.digest));
}

#[test]
fn labels_that_are_gold_can_not_be_made_better() {
    let world = World::new();
    let teacher = Teacher {
        by_chance: 0.0,
        for_stuffing: 0.0,
    };
    world.judged_by(teacher, "gold");
    let (debiased, set) = world.debiased("gold", Method::Residual);
    assert!(set.labels.iter().all(|label| label.problem(3).is_none()));
    let said = debiased.warnings().join("\n");
    assert!(said.contains("judge more queries"), "{said}\n{debiased}");
}

#[test]
fn too_little_gold_is_refused_and_says_how_much_it_takes() {
    let world = World::new();
    world.judged_by(Teacher::NOISY, "noisy");
    world.shop.keep_gold("few", "train", 4);
    let job = Debias {
        labels: &world.path("noisy"),
        collection: &world.path("shop"),
        gold: "few",
        method: Method::Residual,
        out: &world.path("out"),
    };
    let refused = |job: &Debias| {
        let error = debias(job, &AuditSettings::default())
            .unwrap_err()
            .to_string();
        assert!(!world.path("out").exists());
        error
    };
    let error = refused(&job);
    assert!(
        error.contains("few.tsv: has gains for 80 of the labels")
            && error.contains("needs 100 labels and 10 such queries"),
        "{error}"
    );
    let error = refused(&Debias {
        gold: "test",
        ..job
    });
    assert!(error.contains("has gains for 0 of the labels"), "{error}");
    let error = refused(&Debias {
        gold: "tset",
        ..job
    });
    assert!(error.contains("no such split"), "{error}");
    let out = world.path("noisy");
    let error = debias(&Debias { out: &out, ..job }, &AuditSettings::default());
    assert!(error.unwrap_err().to_string().contains("exists already"));
}
