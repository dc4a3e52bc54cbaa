use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use retort_data::settings;
use retort_trainer::{CurveEvent, CurveSettings, Run, TrainSettings};
use serde_json::json;

use crate::device::{Ground, TrainingDeviceArguments};
use crate::progress;
use crate::train::Display;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Draw a learning curve into this folder: train a student for each number of labelled queries,
    /// and measure it against gold beside its teacher. Run again, it goes on where it was
    #[arg(long, value_name = "DIR")]
    curve: PathBuf,

    /// The training job whose label set to draw it of; its `[verdict]` says what is measured on, and
    /// `teacher_labels` there whose line to pass
    #[arg(long, value_name = "FILE", default_value = "configs/demo.toml")]
    config: PathBuf,

    /// Override one setting; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,

    /// Numbers of labelled queries; those of a smaller one are among those of a larger one
    /// [default: a thirtieth, a tenth, a third, all]
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    queries: Vec<usize>,

    /// Students for each number, each with another seed and other queries
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    students: u64,

    /// Pass over few labels no more often than over all; else every student makes about as many
    /// steps as all labels take
    #[arg(long)]
    same_epochs: bool,

    #[command(flatten)]
    device: TrainingDeviceArguments,
}

pub(crate) fn run(arguments: &Arguments, as_json: bool) -> anyhow::Result<()> {
    let started = Instant::now();
    let settings: TrainSettings = settings::read(&arguments.config, &arguments.overrides)?;
    settings.check()?;
    let Ground {
        device,
        others,
        base,
    } = arguments.device.prepare(&settings)?;

    let folder = &arguments.curve;
    let run = Run {
        settings: &settings,
        folder,
        allowed_changes: &[],
        base: &base,
        device: &device,
        others: &others,
    };
    let wanted = CurveSettings {
        queries: arguments.queries.clone(),
        students: arguments.students,
        same_epochs: arguments.same_epochs,
    };
    let mut display = Display::new(started);
    let curve = retort_trainer::curve(&run, &wanted, |event| match event {
        CurveEvent::Student { queries, seed } => {
            display = Display::new(Instant::now());
            display.say(&format!("a student of {queries} queries, seed {seed}"));
        }
        CurveEvent::Training(event) => display.show(&event),
        CurveEvent::Measured {
            queries,
            seed,
            ndcg,
        } => {
            display.bar.finish_and_clear();
            tracing::info!("{queries} queries, seed {seed}: nDCG@10 {ndcg:.4}");
        }
    });
    display.bar.finish_and_clear();
    let curve = curve?;
    let seconds = started.elapsed().as_secs_f64();
    progress::summary(
        as_json,
        &format!(
            "{curve}\n{seconds:.0} s. The curve is in {0}, curve.json and curve.svg.",
            folder.display()
        ),
        &json!({"folder": folder, "curve": curve, "seconds": seconds}),
    );
    Ok(())
}
