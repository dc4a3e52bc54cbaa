//! The training loop: set up or resume, then per step evaluate and save once in a while, update,
//! report.

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use burn::tensor::Device;
use retort_model::{CrossEncoder, Error as ModelError, Head, ModelConfig};
use serde_json::json;

use crate::batches::{Step, Steps};
use crate::checkpoint::{self, State};
use crate::event::{Event, Outcome, StepReport};
use crate::inputs::Inputs;
use crate::learner::Learner;
use crate::material::{Material, tokenizer};
use crate::metrics::Metrics;
use crate::schedule::learning_rate_factor;
use crate::sentinels::{Sentinels, resident_bytes};
use crate::settings::{HeadChoice, TrainSettings};
use crate::start::{Start, start};
use crate::step::{Last, StepContext};
use crate::warning::Warning;
use crate::{Error, Result};

/// A run, new or to be gone on with.
pub struct Run<'a> {
    /// What to do.
    pub settings: &'a TrainSettings,
    /// Where. New for a new run; of a run that is gone on with, the folder with its settings.
    pub folder: &'a Path,
    /// What may differ from what the run was started with: [`Change::key`](crate::Change::key)s.
    pub allowed_changes: &'a [String],
    /// The base model's folder.
    pub base: &'a Path,
    /// What to compute on.
    pub device: &'a Device,
    /// More devices of that kind, each of which has a share of every step's queries.
    pub others: &'a [Device],
}

impl Run<'_> {
    /// Reads the base model as a new run would, and holds the settings against it and the device;
    /// writes nothing.
    ///
    /// # Errors
    /// Those of [`train`] that are about the base model or the device.
    pub fn check_base(&self) -> Result<()> {
        self.settings.check_device(self.device)?;
        tokenizer(self)?;
        let dropout = Some(self.settings.model.dropout);
        let base = CrossEncoder::load(self.base, self.head()?, dropout, &Device::flex())?;
        self.untrained(base)?;
        Ok(())
    }

    /// The head that the student begins with.
    pub(crate) fn head(&self) -> Result<Head> {
        let has_one = ModelConfig::is_of_reranker(self.base);
        match self.settings.model.head {
            HeadChoice::Kept if has_one => Ok(Head::Required),
            HeadChoice::Kept => Err(Error::Setting {
                key: "model.head",
                problem: format!(
                    "is \"kept\", but {} is no cross-encoder of one label: leave it out for a new head",
                    self.settings.model.init
                ),
            }),
            HeadChoice::New => Ok(Head::New {
                seed: self.settings.seed,
            }),
        }
    }

    /// What computes on the device. That it fails is an error; that its memory is too small, one that
    /// names the settings.
    pub(crate) fn guarded<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        retort_model::guard(self.device, work).map_err(|error| match error {
            Error::Model(ModelError::OutOfMemory { said }) => Error::OutOfMemory {
                said,
                queries_per_step: self.settings.schedule.queries_per_step,
            },
            other => other,
        })
    }

    /// The student as it is before any step, from the base model with a new head.
    pub(crate) fn untrained(&self, base: CrossEncoder) -> Result<CrossEncoder> {
        match &self.settings.model.keep_layers {
            None => Ok(base),
            Some(layers) => Ok(base.keep_layers(layers)?),
        }
    }
}

/// Trains a student and measures it.
///
/// A folder that holds a run is gone on with from its last checkpoint; it must have been started
/// with the same settings and inputs, but for those that may change.
///
/// # Errors
/// Bad input, before anything is written; a run that was started from something else; a loss or a
/// gradient that is not finite, before it spoils the weights; a device that fails, or has too little
/// memory. What was kept of the run goes on to be whole.
pub fn train(run: &Run, mut report: impl FnMut(Event)) -> Result<Outcome> {
    run.guarded(|| {
        let Fitted {
            material,
            state,
            model,
        } = fit(run, &mut report)?;
        report(Event::Stage("measuring"));
        let verdict = material.test.verdict(run, &material.collection, &model)?;
        retort_files::write_atomic(
            &run.folder.join("verdict.json"),
            &checkpoint::to_json(&verdict.to_json()),
        )?;
        Ok(Outcome {
            verdict,
            steps: state.step,
            dev_ndcg: state.best_ndcg,
            model,
        })
    })
}

/// A student that was trained.
pub(crate) struct Fitted {
    material: Material,
    state: State,
    /// Its best checkpoint.
    pub(crate) model: PathBuf,
}

/// Trains a student, or goes on with it.
pub(crate) fn fit(run: &Run, report: &mut impl FnMut(Event)) -> Result<Fitted> {
    report(Event::Stage("reading"));
    run.settings.check()?;
    run.settings.check_device(run.device)?;
    let inputs = Inputs::read(run)?;
    let material = Material::read(run)?;
    for warning in material.warnings(run.settings) {
        report(Event::Warning(&warning));
    }
    let device = run.device.clone().autodiff();
    let start = start(run, &inputs, &material.dataset, &device)?;
    let tensorboard = run.settings.evaluation.tensorboard;
    let mut metrics = Metrics::open(run.folder, start.state.as_ref(), tensorboard)?;
    for change in &start.changes {
        tracing::info!("goes on with another {change}");
        metrics.append(&json!({
            "step": start.state.map_or(0, |state| state.step),
            "changed": change.key,
            "then": change.then,
            "now": change.now,
        }))?;
    }

    let is_new = start.state.is_none() && run.settings.model.head == HeadChoice::New;
    if is_new && ModelConfig::is_of_reranker(run.base) {
        tracing::info!(
            "{} has a head of its own, which is passed over: model.head = \"kept\" goes on with it",
            run.settings.model.init
        );
    }
    report(Event::Stage("training"));
    let state = Course {
        run,
        material: &material,
        device: &device,
        metrics,
        sentinels: Sentinels::default(),
        report,
        since: Instant::now(),
        last: Last::default(),
    }
    .complete(start)?;
    Ok(Fitted {
        model: checkpoint::best_model(run.folder)?,
        material,
        state,
    })
}

/// The steps of a run, from where it begins.
struct Course<'a, R> {
    run: &'a Run<'a>,
    material: &'a Material,
    /// With autodiff.
    device: &'a Device,
    metrics: Metrics,
    sentinels: Sentinels,
    report: R,
    /// When the last step was made, or the evaluation after it.
    since: Instant,
    last: Last,
}

impl<R: FnMut(Event)> Course<'_, R> {
    /// Makes all steps, or as many as patience lasts for. The state after the last evaluation.
    fn complete(mut self, start: Start) -> Result<State> {
        let Start {
            mut learner,
            mut state,
            lock: _lock,
            ..
        } = start;
        let TrainSettings {
            schedule,
            evaluation,
            seed,
            ..
        } = self.run.settings;
        let mut data = Steps::of(&self.material.dataset, schedule, *seed);
        let steps = data.count();
        let mut step = state.map_or(0, |state| state.step);
        let mut next = None::<Result<Step>>;
        let first = step + 1;
        loop {
            let is_due = step.is_multiple_of(evaluation.every_steps) || step == steps;
            // And of the first, for it is said how long it took.
            if is_due || step == first {
                self.end_of_step()?;
            }
            let now = match state {
                Some(state) if (state.step == step && state.is_measured()) || !is_due => state,
                before => self.evaluate(&learner, before, step)?,
            };
            state = Some(now);
            if step >= steps {
                return Ok(self.ended(now));
            }
            let since_best = now.since_best;
            if evaluation.patience.is_some_and(|most| since_best >= most) {
                (self.report)(Event::Stopped { step, since_best });
                return Ok(self.ended(now));
            }

            let groups = next.take().unwrap_or_else(|| data.after(step));
            if groups.is_err() {
                self.end_of_step()?;
            }
            let groups = groups?;
            learner = thread::scope(|threads| {
                // The next step is read while this one is made.
                let reading = (step + 1 < steps).then(|| threads.spawn(|| data.after(step + 1)));
                let made = self.step(learner, &groups, step, steps);
                next = reading.map(|it| it.join().unwrap_or_else(|panic| resume_unwind(panic)));
                made
            })?;
            step += 1;
        }
    }

    /// Says so if all steps were in vain.
    fn ended(&mut self, state: State) -> State {
        if state.best_step == 0 && state.step > 0 {
            (self.report)(Event::Warning(&Warning::NoBetter {
                step: state.step,
                queries: self.material.dev.queries.len(),
                ndcg: state.best_ndcg,
            }));
        }
        state
    }

    /// Measures the model on the dev queries and keeps it.
    fn evaluate(&mut self, learner: &Learner, before: Option<State>, step: usize) -> Result<State> {
        let Run {
            settings,
            folder,
            base,
            ..
        } = self.run;
        let Material { dev, dev_pairs, .. } = self.material;
        let passes = settings.schedule.tokens_per_pass;
        let ndcg = dev.of_scores(learner.kept().score(dev_pairs, passes)?, 1);
        let ndcg = ndcg.mean_ndcg();
        let now = State::evaluated(before, step, ndcg);
        self.metrics
            .append(&json!({"step": step, "dev_ndcg@10": ndcg}))?;
        let best = now.best_step == step;
        (self.report)(Event::Evaluated { step, ndcg, best });
        if let Some(warning) = self.sentinels.evaluation(step, ndcg) {
            (self.report)(Event::Warning(&warning));
        }
        checkpoint::save(folder, base, learner, now, settings.evaluation.keep)?;
        self.since = Instant::now();
        Ok(now)
    }

    /// Makes the step after so many of all steps.
    fn step(
        &mut self,
        learner: Learner,
        groups: &Step,
        step: usize,
        steps: usize,
    ) -> Result<Learner> {
        let settings = self.run.settings;
        let context = StepContext {
            settings,
            number: step + 1,
            steps,
            since: self.since,
        };
        let factor = learning_rate_factor(step, steps, &settings.schedule);
        let learning_rate = settings.optimizer.learning_rate * factor;
        let made = context.make(learner, groups, learning_rate, self.device, &mut self.last);
        self.since = Instant::now();
        // Of the step before, whatever came of this one.
        if let Some(before) = self.last.report() {
            self.tell_of(before)?;
        }
        let learner = made?;
        if !self.last.is_asked_for() {
            self.end_of_step()?;
        }
        Ok(learner)
    }

    /// Waits for what became of the last step, if that is still to come, and tells of it.
    fn end_of_step(&mut self) -> Result<()> {
        let ended = self.last.end();
        let waited = self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
        ended?;
        if let Some(made) = self.last.report() {
            let seconds = made.seconds + waited;
            self.tell_of(StepReport { seconds, ..made })?;
        }
        Ok(())
    }

    fn tell_of(&mut self, made: StepReport) -> Result<()> {
        let mut line = json!({
            "step": made.step,
            "loss": made.loss,
            "constant_loss": made.constant_loss,
            "teacher_loss": made.teacher_loss,
            "spread": made.spread,
            "teacher_spread": made.teacher_spread,
            "learning_rate": made.learning_rate,
            "gradient_norm": made.gradient_norm,
            "pairs": made.pairs,
            "seconds": made.seconds,
        });
        if let Some(scale) = made.loss_scale {
            line["loss_scale"] = json!(scale);
        }
        if made.skipped {
            line["skipped"] = json!(true);
        }
        self.metrics.append(&line)?;
        (self.report)(Event::Step(made));
        for warning in self.sentinels.step(&made, resident_bytes()) {
            (self.report)(Event::Warning(&warning));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_memory_names_the_settings() {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/demo.toml");
        let settings: TrainSettings = retort_data::settings::read(&config, &[]).unwrap();
        let run = Run {
            settings: &settings,
            folder: Path::new("run"),
            allowed_changes: &[],
            base: Path::new("base"),
            device: &Device::flex(),
            others: &[],
        };
        let said = "can't allocate buffer of size: 144000000".to_owned();
        let error = run.guarded::<()>(|| Err(ModelError::OutOfMemory { said }.into()));
        let said = error.unwrap_err().to_string();
        assert!(said.contains("144000000"), "{said}");
        let advice = "Lower schedule.queries_per_step, now 4, and raise schedule.accumulate";
        assert!(said.contains(advice), "{said}");
    }
}
