use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;
use retort_data::settings;
use retort_export::Source;
use retort_model::Error as ModelError;
use retort_trainer::{Error, Event, Run, TrainSettings};
use serde_json::json;

use crate::device::{Ground, TrainingDeviceArguments};
use crate::progress;

#[derive(Args)]
pub(crate) struct Arguments {
    /// The job's settings [default: configs/demo.toml; with --resume, the run's]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Override one setting; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,

    /// Where the run goes; must not exist [default: checkpoints/NAME-TIME]
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    out: Option<PathBuf>,

    /// Go on with a run that was stopped, from its last checkpoint
    #[arg(long, value_name = "RUN")]
    resume: Option<PathBuf>,

    /// Go on although this setting (`section.key`) or input (`labels`) is not what the run was
    /// started with; may be given again
    #[arg(long = "allow-change", value_name = "KEY", requires = "resume")]
    allowed_changes: Vec<String>,

    #[command(flatten)]
    device: TrainingDeviceArguments,
}

/// Where runs go.
const RUNS: &str = "checkpoints";
/// The link to the newest of them.
const LATEST: &str = "latest";

pub(crate) fn run(arguments: &Arguments, as_json: bool) -> anyhow::Result<()> {
    let started = Instant::now();
    let (folder, settings) = match &arguments.resume {
        // By its own name: `latest` is a link that is about to be set.
        Some(run) => {
            let settings = resumed(run, arguments)?;
            (run.canonicalize()?, settings)
        }
        None => new_run(arguments)?,
    };
    let Ground {
        device,
        others,
        base,
    } = arguments.device.prepare(&settings)?;
    tracing::info!("run: {}", folder.display());

    let run = Run {
        settings: &settings,
        folder: &folder,
        allowed_changes: &arguments.allowed_changes,
        base: &base,
        device: &device,
        others: &others,
    };
    let mut display = Display::new(started);
    let outcome = retort_trainer::train(&run, |event| display.show(&event));
    display.bar.finish_and_clear();
    if let Err(error) = &outcome
        && can_be_gone_on_with(error)
        && let Some(step) = retort_trainer::last_step(&folder)
    {
        let folder = folder.display();
        tracing::info!("step {step} is kept: retort train --resume {folder} goes on from there");
    }
    let outcome = outcome?;
    link_latest(&folder);

    let export = folder.join("export");
    if !export.exists() {
        let source = Source {
            model: &outcome.model,
            max_tokens: settings.data.max_tokens,
            origin: &settings.name,
        };
        retort_export::export(&source, &export)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    progress::summary(
        as_json,
        &format!(
            "{}\n{:.0} s. The run is in {}, the serving directory in {}.",
            outcome.verdict,
            seconds,
            folder.display(),
            export.display()
        ),
        &json!({
            "run": folder,
            "export": export,
            "steps": outcome.steps,
            "dev_ndcg@10": outcome.dev_ndcg,
            "verdict": outcome.verdict.to_json(),
            "warnings": display.warnings,
            "seconds_to_first_step": display.to_first_step,
            "seconds": seconds,
        }),
    );
    Ok(())
}

/// Whether the run itself is as it should be, and what it ran on was not.
fn can_be_gone_on_with(error: &Error) -> bool {
    match error {
        Error::Io(_) | Error::OutOfMemory { .. } => true,
        Error::Model(error) => matches!(
            error,
            ModelError::Io(_)
                | ModelError::Device { .. }
                | ModelError::NoLibdevice
                | ModelError::OutOfMemory { .. }
        ),
        _ => false,
    }
}

/// What a run is to go on with.
fn resumed(run: &Path, arguments: &Arguments) -> anyhow::Result<TrainSettings> {
    let overrides = &arguments.overrides;
    // Also where other settings are given: it says whether the folder is a run's.
    let of_run = retort_trainer::settings(run, overrides)?;
    match &arguments.config {
        Some(config) => Ok(settings::read(config, overrides)?),
        None => Ok(of_run),
    }
}

fn new_run(arguments: &Arguments) -> anyhow::Result<(PathBuf, TrainSettings)> {
    let config = arguments.config.as_deref();
    let config = config.unwrap_or(Path::new("configs/demo.toml"));
    let settings: TrainSettings = settings::read(config, &arguments.overrides)?;
    settings.check()?;
    let folder = arguments.out.clone().unwrap_or_else(|| {
        let now = jiff::Zoned::now().strftime("%Y%m%d-%H%M%S");
        Path::new(RUNS).join(format!("{}-{now}", settings.name))
    });
    retort_files::refuse_existing(&folder)?;
    Ok((folder, settings))
}

/// Lets `checkpoints/latest` name the run. A convenience: that it fails is worth a line, no more.
fn link_latest(run: &Path) {
    #[cfg(unix)]
    if let (Some(runs), Some(name)) = (run.parent(), run.file_name())
        && runs.ends_with(RUNS)
    {
        let (link, fresh) = (runs.join(LATEST), runs.join(format!(".{LATEST}")));
        // One that an earlier process left behind.
        let _ = fs_err::remove_file(&fresh);
        let swapped = std::os::unix::fs::symlink(name, &fresh)
            .and_then(|()| retort_files::rename(&fresh, &link))
            .with_context(|| format!("{} was not updated", link.display()));
        if let Err(error) = swapped {
            tracing::warn!("{error:#}");
        }
    }
}

/// A bar where stderr is a terminal, else a line every few steps.
pub(crate) struct Display {
    pub(crate) bar: ProgressBar,
    /// When the command was.
    begun: Instant,
    /// Seconds from there to the end of the first step, which on GPUs has kernels to compile.
    to_first_step: Option<f64>,
    /// When the stage was.
    started: Instant,
    pairs: usize,
    steps: usize,
    smooth_loss: Option<f64>,
    warnings: Vec<String>,
}

/// Steps between two lines where stderr is no terminal.
const STEPS_PER_LINE: usize = 10;

impl Display {
    pub(crate) fn new(begun: Instant) -> Self {
        let bar = progress::bar(0, "train");
        Self {
            bar,
            begun,
            to_first_step: None,
            started: Instant::now(),
            pairs: 0,
            steps: 0,
            smooth_loss: None,
            warnings: Vec::new(),
        }
    }

    pub(crate) fn show(&mut self, event: &Event) {
        match event {
            Event::Stage(stage) => {
                tracing::info!("{stage}");
                self.started = Instant::now();
                self.bar.set_prefix((*stage).to_owned());
            }
            Event::Evaluated { step, ndcg, best } => {
                let best = if *best { " (best so far)" } else { "" };
                self.say(&format!("step {step} | dev nDCG@10 {ndcg:.4}{best}"));
            }
            Event::Warning(warning) => {
                self.bar.suspend(|| tracing::warn!("{warning}"));
                self.warnings.push(warning.to_string());
            }
            Event::Stopped { step, since_best } => {
                self.say(&format!(
                    "step {step} | stopped: {since_best} evaluations without a better one"
                ));
            }
            Event::Step(made) => {
                if self.to_first_step.is_none() {
                    let seconds = self.begun.elapsed().as_secs_f64();
                    self.to_first_step = Some(seconds);
                    self.say(&format!(
                        "the first step took {seconds:.1} s from the start"
                    ));
                }
                if let (true, Some(scale)) = (made.skipped, made.loss_scale) {
                    self.say(&format!(
                        "step {} | skipped: with a loss scaled by {scale}, the gradient overflows; \
                         the scale is halved",
                        made.step
                    ));
                }
                self.pairs += made.pairs;
                self.steps += 1;
                // The loss of one step is noisy; over some twenty steps it shows where it goes.
                let loss = self
                    .smooth_loss
                    .map_or(made.loss, |old| 0.9 * old + 0.1 * made.loss);
                self.smooth_loss = Some(loss);
                let seconds = self.started.elapsed().as_secs_f64();
                let left = seconds / self.steps as f64 * (made.steps - made.step) as f64;
                let rate = self.pairs as f64 / seconds;
                self.bar.set_length(made.steps as u64);
                self.bar.set_position(made.step as u64);
                self.bar
                    .set_message(format!("loss {loss:.4} | {rate:.1} pairs/s"));
                let line_due = made.step.is_multiple_of(STEPS_PER_LINE) || made.step == made.steps;
                if line_due && !stderr().is_terminal() {
                    self.say(&format!(
                        "step {}/{} | loss {loss:.4} | lr {:.2e} | grad {:.2} | {rate:.1} pairs/s \
                         | padding {:.0} % | {left:.0} s left",
                        made.step,
                        made.steps,
                        made.learning_rate,
                        made.gradient_norm,
                        100.0 * made.padding
                    ));
                }
            }
        }
    }

    /// A line that does not break the bar.
    pub(crate) fn say(&self, line: &str) {
        self.bar.suspend(|| tracing::info!("{line}"));
    }
}
