//! The demo's shop with some of its products stuffed with their own words, and teachers made from its
//! gold gains: one errs by chance, one by habit.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fs_err as fs;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use retort_data::candidates;
use retort_data::collection::Collection;
use retort_data::label_set::{self, FORMAT, Label, Manifest};
use retort_data::shop;
use serde_json::{Value, json};

/// How a teacher errs, in grades.
#[derive(Clone, Copy)]
pub(crate) struct Teacher {
    /// The standard deviation of what it adds to a gain by chance.
    pub(crate) by_chance: f64,
    /// What it adds to a stuffed document's gain, always; its scale then has room for that.
    pub(crate) for_stuffing: f64,
}

impl Teacher {
    /// Wrong by chance alone.
    pub(crate) const NOISY: Self = Self {
        by_chance: 2.0,
        for_stuffing: 0.0,
    };
    /// Wrong by habit, and a little by chance.
    pub(crate) const BIASED: Self = Self {
        by_chance: 0.5,
        for_stuffing: 3.0,
    };
}

/// The shop on disk.
pub(crate) struct StuffedShop {
    pub(crate) collection: Collection,
    folder: PathBuf,
    stuffed: BTreeSet<String>,
}

/// Products that are stuffed.
const STUFFED: f64 = 0.3;
/// How often a stuffed product says its title again.
const TIMES: usize = 4;
const TOP_GRADE: u8 = 3;

impl StuffedShop {
    /// Writes it into a new folder.
    pub(crate) fn write(folder: &Path) -> Self {
        shop::generate(shop::SEED).write(folder).unwrap();
        let corpus = folder.join("corpus.jsonl");
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut stuffed = BTreeSet::new();
        let mut lines = Vec::new();
        for line in fs::read_to_string(&corpus).unwrap().lines() {
            let mut product: Value = serde_json::from_str(line).unwrap();
            if rng.random::<f64>() < STUFFED {
                let (title, text) = (&product["title"], &product["text"]);
                let again = format!(" {}", title.as_str().unwrap()).repeat(TIMES);
                let text = format!("{}{again}", text.as_str().unwrap());
                stuffed.insert(product["_id"].as_str().unwrap().to_owned());
                product["text"] = json!(text);
            }
            lines.push(format!("{product}\n"));
        }
        fs::write(&corpus, lines.concat()).unwrap();
        Self {
            collection: Collection::read(folder).unwrap(),
            folder: folder.to_owned(),
            stuffed,
        }
    }

    /// Makes a split `name` of the gains of some queries of another: what a person might judge.
    pub(crate) fn keep_gold(&self, name: &str, of: &str, queries: usize) {
        let mut rows = vec!["query-id\tcorpus-id\tscore\n".to_owned()];
        let mut qrels: Vec<_> = self.collection.qrels(of).unwrap().into_iter().collect();
        // Not the first by id, which ask for types of one family.
        qrels.sort_by_key(|(query, _)| retort_files::sha256(query.as_bytes()));
        for (query, gains) in qrels.into_iter().take(queries) {
            for (document, gain) in gains {
                rows.push(format!("{query}\t{document}\t{gain}\n"));
            }
        }
        fs::write(self.folder.join(format!("qrels/{name}.tsv")), rows.concat()).unwrap();
    }

    /// Seals what a teacher says of candidates into a new folder.
    pub(crate) fn judge(&self, teacher: Teacher, candidates: &Path, split: &str, out: &Path) {
        let qrels = self.collection.qrels(split).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let labels = candidates::read(candidates)
            .unwrap()
            .into_iter()
            .map(|one| {
                let query = self.collection.query(&one.query_id, candidates)?;
                let document = self.collection.document(&one.document_id, candidates)?;
                let gain = qrels
                    .get(&one.query_id)
                    .and_then(|it| it.get(&one.document_id));
                let mut grade = f64::from(gain.copied().unwrap_or_default());
                grade += teacher.by_chance * normal(&mut rng);
                if self.stuffed.contains(&document.id) {
                    grade += teacher.for_stuffing;
                }
                let top_grade = f64::from(TOP_GRADE);
                grade *= top_grade / (top_grade + teacher.for_stuffing);
                let grade = grade.clamp(0.0, top_grade);
                Ok(Label {
                    text: label_set::text_digest(&query, &document),
                    grade,
                    probabilities: (0..=TOP_GRADE)
                        .map(|level| (1.0 - (grade - f64::from(level)).abs()).max(0.0))
                        .collect(),
                    mass: 1.0,
                    samples: 1,
                    at: "2026-11-21T00:00:00Z".to_owned(),
                    query_id: one.query_id,
                    document_id: one.document_id,
                })
            });
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            top_grade: TOP_GRADE.into(),
            recipe: json!({"kind": "graded", "teacher": "simulated"}),
            models: Vec::new(),
            preflights: Vec::new(),
            corrections: Vec::new(),
            rows: 0,
            shards: Vec::new(),
            sealed_by: "a simulation".to_owned(),
            sealed_at: "2026-11-21T00:00:00Z".to_owned(),
        };
        label_set::write(out, manifest, labels).unwrap();
    }
}

/// A draw from the standard normal distribution (Box and Muller, 1958).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}
