use std::path::PathBuf;

use clap::Args;
use retort_export::Source;
use serde_json::json;

use crate::progress;

#[derive(Args)]
pub(crate) struct Arguments {
    /// The run to export: its best checkpoint is taken
    #[arg(value_name = "RUN")]
    run: PathBuf,

    /// The folder to write; it must not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(crate) fn run(arguments: &Arguments, as_json: bool) -> anyhow::Result<()> {
    let Arguments { run, out } = arguments;
    let settings = retort_trainer::settings(run, &[])?;
    let model = retort_trainer::best_model(run)?;
    let max_tokens = settings.data.max_tokens;
    retort_export::export(
        &Source {
            model: &model,
            max_tokens,
            origin: &settings.name,
        },
        out,
    )?;
    progress::summary(
        as_json,
        &format!(
            "{}: a serving directory, {max_tokens} tokens",
            out.display()
        ),
        &json!({"out": out, "model": model, "max_tokens": max_tokens}),
    );
    Ok(())
}
