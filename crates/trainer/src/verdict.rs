//! What the student is worth, beside what it must beat.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use retort_data::bm25::{Bm25, Matching};
use retort_data::collection::Collection;
use retort_data::{label_set, measure};
use retort_model::{CrossEncoder, Encoded, Head, PairTokenizer};
use serde_json::json;

use crate::Result;
use crate::evaluation::{Evaluation, EvaluationQuery, Measured};
use crate::settings::VerdictSettings;
use crate::train::Run;

/// Systems measured on the same queries and candidates.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Whose queries.
    pub split: String,
    /// The least gain that counted as relevant for MRR.
    pub relevant_gain: u8,
    /// From the least expected of to the student.
    pub systems: Vec<System>,
}

/// What one system is worth.
#[derive(Clone, Debug)]
pub struct System {
    /// `random`, `bm25`, `base-cosine`, `teacher`, `student-before` or `student`.
    pub name: &'static str,
    /// Mean over the queries, with gains `2^g − 1`, against the ideal order of all judged
    /// documents.
    pub ndcg: f64,
    /// The 95 % bootstrap interval of that mean.
    pub ndcg_interval: (f64, f64),
    /// Mean reciprocal rank of the first relevant document among the first ten.
    pub mrr: f64,
    /// How many queries.
    pub queries: usize,
}

impl Verdict {
    /// The shape of `verdict.json`.
    pub fn to_json(&self) -> serde_json::Value {
        let systems: Vec<_> = self
            .systems
            .iter()
            .map(|system| {
                json!({
                    "name": system.name,
                    "ndcg@10": system.ndcg,
                    "ndcg@10_ci": [system.ndcg_interval.0, system.ndcg_interval.1],
                    "mrr@10": system.mrr,
                    "queries": system.queries,
                })
            })
            .collect();
        json!({
            "split": self.split,
            "gain": "2^g - 1",
            "relevant_gain": self.relevant_gain,
            "systems": systems,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(
            f,
            "{:<16} nDCG@10   95 % interval    MRR@10  queries",
            self.split
        )?;
        for system in &self.systems {
            let (low, high) = system.ndcg_interval;
            let System {
                name,
                ndcg,
                mrr,
                queries,
                ..
            } = system;
            writeln!(
                f,
                "{name:<16} {ndcg:>7.4}   {low:.4}–{high:.4}    {mrr:>6.4}  {queries:>7}"
            )?;
        }
        Ok(())
    }
}

/// The test queries, read before training so that a missing file is found before it.
pub(crate) struct Subject {
    settings: VerdictSettings,
    evaluation: Evaluation,
    pairs: Vec<Encoded>,
    /// Texts for the bi-encoder: the queries', then the candidates', each once.
    texts: Vec<Encoded>,
    places: HashMap<String, usize>,
    grades: Option<Grades>,
}

/// Orders drawn to estimate what a random one is worth.
const RANDOM_ORDERS: u64 = 20;

impl Subject {
    pub(crate) fn read(
        settings: &VerdictSettings,
        collection: &Collection,
        tokenizer: &PairTokenizer,
    ) -> Result<Self> {
        let source = &settings.candidates;
        let evaluation = Evaluation::read(collection, &settings.split, source)?;
        let pairs = evaluation.encode(collection, tokenizer, source)?;
        let mut texts: Vec<String> = evaluation
            .queries
            .iter()
            .map(|query| query.text.clone())
            .collect();
        let mut places = HashMap::new();
        for id in evaluation
            .queries
            .iter()
            .flat_map(|query| &query.candidates)
        {
            if !places.contains_key(id) {
                places.insert(id.clone(), texts.len());
                texts.push(collection.document(id, source)?.full_text());
            }
        }
        let texts: Vec<&str> = texts.iter().map(|text| &**text).collect();
        let grades = match &settings.teacher_labels {
            None => None,
            Some(labels) => Some(read_grades(labels, collection)?),
        };
        Ok(Self {
            settings: settings.clone(),
            evaluation,
            pairs,
            texts: tokenizer.encode_texts(&texts)?,
            places,
            grades,
        })
    }

    /// The queries.
    pub(crate) fn queries(&self) -> &[EvaluationQuery] {
        &self.evaluation.queries
    }

    /// Measures every system.
    pub(crate) fn verdict(
        &self,
        run: &Run,
        collection: &Collection,
        model: &Path,
    ) -> Result<Verdict> {
        let tokens = run.settings.schedule.tokens_per_pass;
        let relevant_gain = self.settings.relevant_gain;
        let student_of = |student: &CrossEncoder| {
            self.evaluation
                .of_student(student, &self.pairs, tokens, relevant_gain)
        };
        let base = CrossEncoder::load(run.base, run.head()?, None, run.device)?;
        let student = CrossEncoder::load(model, Head::Required, None, run.device)?;
        let mut systems = vec![
            system("random", &self.random()),
            system("bm25", &self.bm25(collection)?),
            system("base-cosine", &self.cosine(&base, tokens)?),
        ];
        systems.extend(self.teacher());
        systems.push(system(
            "student-before",
            &student_of(&run.untrained(base)?)?,
        ));
        systems.push(system("student", &student_of(&student)?));
        Ok(Verdict {
            split: self.settings.split.clone(),
            relevant_gain,
            systems,
        })
    }

    fn teacher(&self) -> Option<System> {
        let relevant_gain = self.settings.relevant_gain;
        let (_, measured) = of_teacher(&self.evaluation, self.grades.as_ref()?, relevant_gain)?;
        Some(system("teacher", &measured))
    }

    fn random(&self) -> Measured {
        let orders: Vec<Measured> = (0..RANDOM_ORDERS)
            .map(|seed| {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                self.evaluation
                    .measure(self.settings.relevant_gain, |_, _| rng.random::<f32>())
            })
            .collect();
        let mean_of = |values: fn(&Measured) -> &Vec<f64>| {
            (0..self.evaluation.queries.len())
                .map(|query| {
                    let draws: Vec<f64> = orders.iter().map(|order| values(order)[query]).collect();
                    measure::mean(&draws)
                })
                .collect()
        };
        Measured {
            ndcg: mean_of(|order| &order.ndcg),
            reciprocal_ranks: mean_of(|order| &order.reciprocal_ranks),
        }
    }

    fn bm25(&self, collection: &Collection) -> Result<Measured> {
        let index = Bm25::index(collection, Matching::Words)?;
        let mut scores = HashMap::new();
        for query in &self.evaluation.queries {
            let of = query.candidates.iter().map(|id| &**id).collect();
            scores.insert(query.id.clone(), index.scores(&query.text, &of)?);
        }
        // A document that shares no word with the query scores nothing.
        let score = |query: &str, id: &str| scores[query].get(id).copied().unwrap_or(0.0);
        Ok(self
            .evaluation
            .measure(self.settings.relevant_gain, |query, id| {
                score(&query.id, id)
            }))
    }

    /// The base model as a bi-encoder: the cosine of mean-pooled embeddings.
    fn cosine(&self, base: &CrossEncoder, tokens: usize) -> Result<Measured> {
        let embeddings = retort_model::embed_all(base, &self.texts, tokens)?;
        let query_places: HashMap<&str, usize> = (self.evaluation.queries.iter())
            .enumerate()
            .map(|(place, query)| (&*query.id, place))
            .collect();
        // Of length one, as they come.
        let cosine = |a: usize, b: usize| -> f32 {
            embeddings[a]
                .iter()
                .zip(&embeddings[b])
                .map(|(a, b)| a * b)
                .sum()
        };
        Ok(self
            .evaluation
            .measure(self.settings.relevant_gain, |query, id| {
                cosine(query_places[&*query.id], self.places[id])
            }))
    }
}

/// The teacher's grade of a query and a document.
type Grades = HashMap<(String, String), f32>;

/// The teacher, on the queries of which it judged every candidate: an order of some of them would be
/// worth less than the same judgement of all.
pub(crate) fn of_teacher(
    evaluation: &Evaluation,
    grades: &Grades,
    relevant_gain: u8,
) -> Option<(Evaluation, Measured)> {
    let grade =
        |query: &EvaluationQuery, id: &str| grades.get(&(query.id.clone(), id.to_owned())).copied();
    let judged =
        evaluation.only(|query| query.candidates.iter().all(|id| grade(query, id).is_some()));
    let (measured, all) = (judged.queries.len(), evaluation.queries.len());
    if measured < all {
        tracing::warn!("the teacher judged all candidates of {measured} of {all} queries");
    }
    let score = |query: &EvaluationQuery, id: &str| grade(query, id).unwrap_or(f32::NAN);
    let of = judged.measure(relevant_gain, score);
    (measured > 0).then_some((judged, of))
}

fn system(name: &'static str, measured: &Measured) -> System {
    System {
        name,
        ndcg: measured.mean_ndcg(),
        ndcg_interval: measure::bootstrap_interval(&measured.ndcg),
        mrr: measure::mean(&measured.reciprocal_ranks),
        queries: measured.ndcg.len(),
    }
}

pub(crate) fn read_grades(labels: &Path, collection: &Collection) -> Result<Grades> {
    let mut grades = HashMap::new();
    for label in label_set::open(labels)?.labels() {
        let label = label?;
        label_set::subject(&label, collection, labels)?;
        #[expect(clippy::cast_possible_truncation, reason = "only ordered by")]
        let grade = label.grade as f32;
        grades.insert((label.query_id, label.document_id), grade);
    }
    Ok(grades)
}
