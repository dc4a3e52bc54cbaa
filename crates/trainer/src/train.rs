//! The training loop: set up or resume, then per step evaluate and save once in a while, update,
//! report.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use fs_err as fs;
use retort_data::collection::{self, Collection};
use retort_data::label_set;
use retort_model::{CrossEncoder, Head, ModelConfig, PairTokenizer};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::batches::{self, Step};
use crate::checkpoint::{self, State};
use crate::dataset::Dataset;
use crate::evaluation::Evaluation;
use crate::optimizer::AdamW;
use crate::schedule::learning_rate_factor;
use crate::settings::TrainSettings;
use crate::step::StepContext;
use crate::verdict::{self, Verdict};
use crate::{Error, Result};

/// A run, new or to be gone on with.
pub struct Run<'a> {
    /// What to do.
    pub settings: &'a TrainSettings,
    /// Where. New for a new run; of a run that is gone on with, the folder with its settings.
    pub folder: &'a Path,
    /// The base model's folder.
    pub base: &'a Path,
    /// What to compute on.
    pub device: &'a Device,
}

impl Run<'_> {
    /// The student as it is before any step, from the base model with a new head.
    pub(crate) fn untrained(&self, base: CrossEncoder) -> Result<CrossEncoder> {
        match &self.settings.model.keep_layers {
            None => Ok(base),
            Some(layers) => Ok(base.keep_layers(layers)?),
        }
    }
}

/// What happens while a run goes on.
#[derive(Debug)]
pub enum Event<'a> {
    /// A stage begins.
    Stage(&'a str),
    /// A step was made.
    Step(StepReport),
    /// The dev queries were ranked.
    Evaluated {
        /// Steps made before.
        step: usize,
        /// Mean over the dev queries.
        ndcg: f64,
        /// Whether it is the best so far.
        best: bool,
    },
}

/// How a step went.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Steps made, this one included.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// The loss before the update.
    pub loss: f64,
    /// The learning rate of the update.
    pub learning_rate: f64,
    /// The gradient's norm before clipping.
    pub gradient_norm: f64,
    /// Pairs in the step.
    pub pairs: usize,
    /// How long the step took.
    pub seconds: f64,
    /// The share of padding in what was computed.
    pub padding: f64,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// What the student is worth.
    pub verdict: Verdict,
    /// Steps of the whole run.
    pub steps: usize,
    /// The best dev nDCG@10.
    pub dev_ndcg: f64,
    /// The checkpoint it belongs to.
    pub model: PathBuf,
}

/// Trains a student and measures it.
///
/// A folder that holds a run is gone on with from its last checkpoint; it must have been started
/// with the same settings and inputs.
///
/// # Errors
/// Bad input, before anything is written; a run that was started from something else; a loss or a
/// gradient that is not finite, before it spoils the weights.
pub fn train(run: &Run, mut report: impl FnMut(Event)) -> Result<Outcome> {
    report(Event::Stage("reading"));
    let settings = run.settings;
    settings.check()?;
    let inputs = Inputs::read(run)?;
    let collection = Collection::read(&settings.data.collection)?;
    let tokenizer = tokenizer(run)?;
    let labels = &settings.data.labels;
    let dataset = Dataset::read(labels, &collection, &tokenizer, settings.loss.uncertainty)?;
    let dev_candidates = &settings.evaluation.candidates;
    let dev = Evaluation::read(&collection, &settings.evaluation.split, dev_candidates)?;
    let dev_pairs = dev.encode(&collection, &tokenizer, dev_candidates)?;
    let test = verdict::Subject::read(&settings.verdict, &collection, &tokenizer)?;

    let training_device = run.device.clone().autodiff();
    let Start {
        mut student,
        mut optimizer,
        mut state,
    } = start(run, &inputs, &dataset, &training_device)?;
    let mut metrics = Metrics::open(run.folder, state.as_ref())?;

    let per_epoch = batches::steps_per_epoch(&dataset, &settings.schedule);
    let steps = per_epoch * settings.schedule.epochs;
    let mut step = state.map_or(0, |state| state.step);
    let mut plan = Plan {
        epoch: usize::MAX,
        steps: Vec::new(),
    };
    report(Event::Stage("training"));
    loop {
        let due = step.is_multiple_of(settings.evaluation.every_steps) || step == steps;
        if due && state.is_none_or(|state| state.step < step) {
            let passes = settings.schedule.tokens_per_pass;
            let ndcg = dev.of_student(&student, &dev_pairs, passes, 1)?.mean_ndcg();
            let best = state.is_none_or(|state| ndcg > state.best_ndcg);
            metrics.append(&json!({"step": step, "dev_ndcg@10": ndcg}))?;
            report(Event::Evaluated { step, ndcg, best });
            let (best_ndcg, best_step) = match state {
                Some(state) if !best => (state.best_ndcg, state.best_step),
                _ => (ndcg, step),
            };
            let now = State {
                step,
                best_ndcg,
                best_step,
            };
            checkpoint::save(run.folder, run.base, &student, &optimizer, now)?;
            state = Some(now);
        }
        if step == steps {
            break;
        }

        if plan.epoch != step / per_epoch {
            plan.epoch = step / per_epoch;
            plan.steps = batches::epoch(&dataset, &settings.schedule, settings.seed, plan.epoch);
        }
        let factor = learning_rate_factor(step, steps, settings.schedule.warmup);
        let learning_rate = settings.optimizer.learning_rate * factor;
        let context = StepContext {
            dataset: &dataset,
            settings,
            number: step + 1,
            steps,
        };
        let (updated, made) = context.make(
            student,
            &mut optimizer,
            &plan.steps[step % per_epoch],
            learning_rate,
            &training_device,
        )?;
        student = updated;
        step += 1;
        metrics.append(&json!({
            "step": made.step,
            "loss": made.loss,
            "learning_rate": made.learning_rate,
            "gradient_norm": made.gradient_norm,
            "pairs": made.pairs,
            "seconds": made.seconds,
        }))?;
        report(Event::Step(made));
    }
    drop((student, optimizer));

    report(Event::Stage("measuring"));
    let model = checkpoint::best_model(run.folder)?;
    let verdict = test.verdict(run, &collection, &model)?;
    retort_files::write_atomic(
        &run.folder.join("verdict.json"),
        &checkpoint::to_json(&verdict.to_json()),
    )?;
    let dev_ndcg = state.map_or(f64::NAN, |state| state.best_ndcg);
    Ok(Outcome {
        verdict,
        steps,
        dev_ndcg,
        model,
    })
}

/// The base model's tokenizer, cutting at a length that the model can read.
fn tokenizer(run: &Run) -> Result<PairTokenizer> {
    let max_tokens = run.settings.data.max_tokens;
    let positions = ModelConfig::read(run.base)?.max_tokens();
    if max_tokens > positions {
        return Err(Error::Setting {
            key: "data.max_tokens",
            problem: format!("is {max_tokens}, but the base model has {positions} positions"),
        });
    }
    Ok(PairTokenizer::open(run.base, max_tokens)?)
}

/// Digests of what a run was made from.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inputs {
    /// SHA-256 by role.
    sha256: std::collections::BTreeMap<String, String>,
}

impl Inputs {
    fn read(run: &Run) -> Result<Self> {
        let TrainSettings {
            data,
            evaluation,
            verdict,
            ..
        } = run.settings;
        let qrels = |split: &str| data.collection.join("qrels").join(format!("{split}.tsv"));
        let mut files = vec![
            ("tokenizer", run.base.join("tokenizer.json")),
            ("corpus", collection::file(&data.collection, "corpus.jsonl")),
            (
                "queries",
                collection::file(&data.collection, "queries.jsonl"),
            ),
            ("labels", data.labels.join(label_set::MANIFEST)),
            ("dev gains", qrels(&evaluation.split)),
            ("test gains", qrels(&verdict.split)),
            ("base config", run.base.join("config.json")),
            ("dev candidates", evaluation.candidates.clone()),
            ("test candidates", verdict.candidates.clone()),
        ];
        if let Some(labels) = &verdict.teacher_labels {
            files.push(("test labels", labels.join(label_set::MANIFEST)));
        }
        let mut sha256 = std::collections::BTreeMap::new();
        for (role, path) in files {
            // What reads a missing file says more than that it is missing.
            if path.exists() {
                sha256.insert(role.to_owned(), retort_files::sha256_file(&path)?);
            }
        }
        for (place, path) in retort_model::weight_files(run.base)?.iter().enumerate() {
            // The first is all of them, or the index of the others.
            let role = match place {
                0 => "base weights".to_owned(),
                _ => format!("base weights {place}"),
            };
            sha256.insert(role, retort_files::sha256_file(path)?);
        }
        Ok(Self { sha256 })
    }
}

struct Start {
    student: CrossEncoder,
    optimizer: AdamW,
    state: Option<State>,
}

const INPUTS: &str = "inputs.json";

/// A new run's folder and weights, or those of the last checkpoint.
fn start(run: &Run, inputs: &Inputs, dataset: &Dataset, device: &Device) -> Result<Start> {
    let dropout = Some(run.settings.model.dropout);
    let head = Head::New {
        seed: run.settings.seed,
    };
    if !run.folder.join(checkpoint::SETTINGS).exists() {
        let student = run.untrained(CrossEncoder::load(run.base, head, dropout, device)?)?;
        student.check(&dataset.pairs)?;
        retort_files::write_new_directory::<Error>(run.folder, |folder| {
            fs::write(folder.join(checkpoint::SETTINGS), to_toml(run.settings)?)?;
            fs::write(folder.join(INPUTS), checkpoint::to_json(inputs))?;
            Ok(fs::create_dir(folder.join("steps"))?)
        })?;
        return Ok(Start {
            student,
            optimizer: AdamW::new(&run.settings.optimizer),
            state: None,
        });
    }

    let problem = |problem| Error::Run {
        folder: run.folder.to_owned(),
        problem,
    };
    if checkpoint::settings(run.folder)? != *run.settings {
        return Err(problem(
            "was started with other settings: start a new run".to_owned(),
        ));
    }
    let started: Inputs = checkpoint::read_json(&run.folder.join(INPUTS))?;
    let differing = inputs
        .sha256
        .iter()
        .find(|(role, digest)| started.sha256.get(*role) != Some(digest));
    if let Some((role, _)) = differing {
        let hint = "put back what it was started with, or start a new run";
        return Err(problem(format!(
            "was started with another content of the {role}: {hint}"
        )));
    }
    for entry in fs::read_dir(run.folder.join("steps"))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            // A checkpoint that was being written when its process was killed.
            fs::remove_dir_all(entry.path())?;
        }
    }
    let Some((folder, state)) = checkpoint::last(run.folder)? else {
        let student = run.untrained(CrossEncoder::load(run.base, head, dropout, device)?)?;
        return Ok(Start {
            student,
            optimizer: AdamW::new(&run.settings.optimizer),
            state: None,
        });
    };
    let student = CrossEncoder::load(&folder, Head::Required, dropout, device)?;
    let optimizer = checkpoint::optimizer_file(&folder);
    let optimizer = AdamW::load(&run.settings.optimizer, &optimizer, &student, run.device)?;
    Ok(Start {
        student,
        optimizer,
        state: Some(state),
    })
}

fn to_toml(settings: &TrainSettings) -> Result<String> {
    toml::to_string(settings).map_err(|error| Error::Setting {
        key: "name",
        problem: error.to_string(),
    })
}

/// The steps of the epoch that the run is in.
struct Plan {
    epoch: usize,
    steps: Vec<Step>,
}

/// `metrics.jsonl`, which only grows; of a run that is gone on with, lines after its checkpoint
/// are dropped first, for they will be made again.
struct Metrics {
    file: fs::File,
}

impl Metrics {
    fn open(run: &Path, state: Option<&State>) -> Result<Self> {
        let path = run.join("metrics.jsonl");
        let step_of = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            line["step"].as_u64()
        };
        let kept = match state {
            Some(state) if path.exists() => {
                let text = fs::read_to_string(&path)?;
                let lines = text
                    .lines()
                    .take_while(|line| step_of(line).is_some_and(|step| step <= state.step as u64));
                lines.fold(String::new(), |kept, line| kept + line + "\n")
            }
            _ => String::new(),
        };
        retort_files::write_atomic(&path, kept.as_bytes())?;
        Ok(Self {
            file: fs::OpenOptions::new().append(true).open(&path)?,
        })
    }

    fn append(&mut self, line: &serde_json::Value) -> Result<()> {
        Ok(self.file.write_all(format!("{line}\n").as_bytes())?)
    }
}
