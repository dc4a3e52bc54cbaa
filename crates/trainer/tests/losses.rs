//! Every loss and its gradient against what PyTorch computed (`tests/golden/losses/make.py`), and
//! what a student learns from each.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use fs_err as fs;
use retort_data::measure;
use retort_model::{
    Batch, CrossEncoder, DeviceChoice, Encoded, Head, PairTokenizer, Precision, Student, choose,
    configure,
};
use retort_trainer::loss::{self, Judged, Target};
use retort_trainer::{AdamW, LossSettings, NamedGradients, OptimizerSettings};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    steps: Vec<Step>,
    classes: Classes,
}

#[derive(Deserialize)]
struct Step {
    name: String,
    temperature: f64,
    groups: Vec<usize>,
    grades: Vec<f32>,
    logits: Vec<f32>,
    doubts: Vec<f32>,
    scores: Vec<f32>,
    losses: BTreeMap<String, Expected>,
}

#[derive(Deserialize)]
struct Classes {
    #[serde(rename = "classes")]
    right: Vec<i32>,
    preferred: Vec<i32>,
    rejected: Vec<i32>,
    beta: f64,
    logits: Vec<[f32; 4]>,
    reference: Vec<[f32; 4]>,
    distributions: Vec<[f32; 4]>,
    losses: BTreeMap<String, Expected>,
}

#[derive(Deserialize)]
struct Expected {
    value: f32,
    gradient: Vec<f32>,
}

fn golden_folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    folder.join(name)
}

impl Golden {
    fn read() -> Self {
        let path = golden_folder("losses").join("golden.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn check(&self, device: &Device) {
        for step in &self.steps {
            for (loss, expected) in &step.losses {
                let scores = Tensor::<1>::from_floats(step.scores.as_slice(), device);
                let scores = scores.require_grad();
                let settings = alone(loss, step.temperature);
                let got = loss::weighted_sum(&scores, &step.judged(), &settings);
                expected.check(&format!("{loss} of {}", step.name), got, &scores);
            }
        }
        for (loss, expected) in &self.classes.losses {
            let logits = table(&self.classes.logits, device).require_grad();
            let got = self.classes.loss(loss, logits.clone());
            expected.check(loss, got, &logits);
        }
    }
}

impl Step {
    fn judged(&self) -> Judged {
        Judged::step(self.groups.iter().enumerate().map(|(place, group)| {
            let target = Target {
                logit: self.logits[place],
                grade: self.grades[place],
                doubt: self.doubts[place],
            };
            (*group, target)
        }))
    }
}

impl Classes {
    fn loss(&self, name: &str, logits: Tensor<2>) -> Tensor<1> {
        let device = logits.device();
        let indices = |classes: &[i32]| Tensor::<1, Int>::from_ints(classes, &device);
        let distributions = table(&self.distributions, &device);
        match name {
            "cross_entropy" => loss::cross_entropy(logits, indices(&self.right)),
            "label_distribution" => loss::label_distribution(logits, distributions),
            "ordinal" => loss::ordinal(logits, distributions),
            "preference" => loss::preference(
                logits,
                table(&self.reference, &device),
                indices(&self.preferred),
                indices(&self.rejected),
                self.beta,
            ),
            _ => panic!("no loss is called {name}"),
        }
    }
}

impl Expected {
    fn check<const N: usize>(&self, what: &str, loss: Tensor<1>, leaf: &Tensor<N>) {
        let gradient = leaf.grad(&loss.backward()).unwrap();
        let value = loss.try_into_vec_as::<f32>().unwrap()[0];
        assert_near(&format!("{what}: value"), value, self.value);
        let gradient: Vec<f32> = gradient.try_into_vec_as().unwrap();
        assert_eq!(gradient.len(), self.gradient.len());
        for (place, (got, expected)) in gradient.iter().zip(&self.gradient).enumerate() {
            assert_near(&format!("{what}: gradient {place}"), *got, *expected);
        }
    }
}

fn assert_near(what: &str, got: f32, expected: f32) {
    let error = (got - expected).abs() / expected.abs().max(1.0);
    assert!(error <= 1e-5, "{what}: {got}, expected {expected}");
}

fn table(rows: &[[f32; 4]], device: &Device) -> Tensor<2> {
    let data = TensorData::new(rows.concat(), [rows.len(), 4]);
    Tensor::from_data(data, device)
}

fn alone(loss: &str, temperature: f64) -> LossSettings {
    toml::from_str(&format!("{loss} = 1.0\ntemperature = {temperature:?}")).unwrap()
}

/// The losses that `[loss]` has a weight for.
fn weighted_losses() -> BTreeSet<String> {
    let settings = toml::Table::try_from(LossSettings::none()).unwrap();
    let others = ["temperature", "uncertainty"];
    let names = settings.into_iter().map(|(name, _)| name);
    names.filter(|name| !others.contains(&&**name)).collect()
}

#[test]
fn losses_and_gradients_match_pytorch() {
    let golden = Golden::read();
    for step in &golden.steps {
        let names: BTreeSet<String> = step.losses.keys().cloned().collect();
        assert_eq!(names, weighted_losses(), "{}", step.name);
    }
    golden.check(&Device::flex().autodiff());
}

#[test]
fn losses_and_gradients_match_pytorch_on_a_gpu() {
    configure(None, Precision::F32);
    let choice = env::var("RETORT_TEST_GPU").map_or(DeviceChoice::Wgpu, |it| it.parse().unwrap());
    match choose(choice) {
        Ok((device, why)) => {
            println!("on {why}");
            Golden::read().check(&device.autodiff());
        }
        Err(error) => {
            assert!(env::var_os("RETORT_REQUIRE_GPU").is_none(), "{error}");
            println!("skipped: {error}");
        }
    }
}

const QUERIES: usize = 8;
/// The gains of each query's documents.
const GAINS: [u8; 5] = [3, 2, 1, 0, 0];

/// Eight queries with five documents each, of words that the golden tokenizer knows.
fn pairs() -> Vec<(String, String)> {
    let vocabulary = fs::read_to_string(golden_folder("bert").join("vocab.txt")).unwrap();
    let is_word = |word: &&str| word.len() > 2 && word.chars().all(char::is_alphabetic);
    let mut words = vocabulary.lines().filter(is_word);
    let mut word = || words.next().unwrap().to_owned();
    let mut pairs = Vec::new();
    for _ in 0..QUERIES {
        let query = word();
        pairs.extend(GAINS.map(|_| (query.clone(), word())));
    }
    pairs
}

/// The mean nDCG of the queries.
fn ndcg(scores: &[f32], gains: [u8; 5]) -> f64 {
    let ids = ["a", "b", "c", "d", "e"];
    let gain_of: BTreeMap<String, u8> = ids.map(str::to_owned).into_iter().zip(gains).collect();
    let of_query = |scores: &[f32]| {
        let run: Vec<(&str, f32)> = ids.into_iter().zip(scores.iter().copied()).collect();
        measure::ndcg(&measure::rank(&run), &gain_of, 10).unwrap()
    };
    let all: Vec<f64> = scores.chunks(GAINS.len()).map(of_query).collect();
    measure::mean(&all)
}

/// The best nDCG on the way to 1 when a two-layer BERT learns the queries by heart.
fn learnt(loss: &str) -> f64 {
    let device = Device::flex().autodiff();
    let student =
        CrossEncoder::load(&golden_folder("bert"), Head::Required, Some(0.0), &device).unwrap();
    let mut student = Student::new(student).unwrap();
    let pairs = pairs();
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(q, d)| (&**q, &**d)).collect();
    let tokenizer = PairTokenizer::open(&golden_folder("bert"), 64).unwrap();
    let encoded = tokenizer.encode_pairs(&pairs).unwrap();
    let inputs: Vec<&Encoded> = encoded.iter().collect();
    let batch = Batch::new(&inputs, student.config(), &device);

    let target = |gain: u8| {
        let share = (f32::from(gain) / 3.0).clamp(0.01, 0.99);
        Target {
            logit: (share / (1.0 - share)).ln(),
            grade: f32::from(gain),
            doubt: 0.0,
        }
    };
    let judged =
        Judged::step((0..QUERIES).flat_map(|query| GAINS.map(|gain| (query, target(gain)))));
    // At a temperature of 1, softmax hardly sees what is below the best.
    let settings = alone(loss, if loss == "lce" { 1.0 } else { 4.0 });
    // This loss says which document is best, and nothing of the others.
    let gains = if loss == "lce" {
        [1, 0, 0, 0, 0]
    } else {
        GAINS
    };
    let adamw: OptimizerSettings =
        toml::from_str("learning_rate = 3e-3\nweight_decay = 0.0").unwrap();
    let mut optimizer = AdamW::new(&adamw);
    let mut best = 0.0_f64;
    for _ in 0..300 {
        let pass = student.pass(&batch);
        let scores = pass.logits.clone();
        best = best.max(ndcg(
            &scores.clone().try_into_vec_as::<f32>().unwrap(),
            gains,
        ));
        if best >= 1.0 {
            break;
        }
        let gradients = loss::weighted_sum(&scores, &judged, &settings).backward();
        let gradients = NamedGradients::of(&student, vec![pass], &gradients);
        (student, _) = optimizer.step(student, gradients, 3e-3).unwrap();
    }
    best
}

#[test]
fn a_student_learns_eight_queries_by_heart_from_any_loss() {
    for loss in weighted_losses() {
        let ndcg = learnt(&loss);
        assert!(ndcg >= 1.0, "{loss}: {ndcg}");
    }
}
