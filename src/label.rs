use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use retort_data::collect::{self, LabelSettings};
use retort_data::settings;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::progress;

#[derive(Args)]
pub(crate) struct Arguments {
    /// The job's settings
    #[arg(long, value_name = "FILE", default_value = "configs/label.toml")]
    config: PathBuf,

    /// Override one setting; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

/// Pairs between two lines where stderr is no terminal.
const PAIRS_PER_LINE: usize = 100;

pub(crate) fn run(arguments: &Arguments, as_json: bool) -> anyhow::Result<()> {
    let settings: LabelSettings = settings::read(&arguments.config, &arguments.overrides)?;
    let bar = progress::bar(0, "label");
    let started = Instant::now();
    let report = |now: collect::Progress| {
        let rate = now.done as f64 / started.elapsed().as_secs_f64();
        bar.set_length(now.total as u64);
        bar.set_position(now.done as u64);
        bar.set_message(format!("{rate:.1} pairs/s, {} failed", now.failed));
        if bar.is_hidden() && (now.done.is_multiple_of(PAIRS_PER_LINE) || now.done == now.total) {
            let left = (now.total - now.done) as f64 / rate / 60.0;
            tracing::info!(
                "pair {}/{} | {rate:.1} pairs/s | {} failed | {left:.1} min left",
                now.done,
                now.total,
                now.failed
            );
        }
    };
    let stop = async {
        // Without a handler an interrupt just ends the process, which the file survives too.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let runtime = Runtime::new().context("the asynchronous runtime did not start")?;
    let collected = runtime.block_on(collect::collect(&settings, report, stop));
    bar.finish_and_clear();
    let collected = collected?;
    progress::summary(
        as_json,
        &format!(
            "{}: {} pairs, {} judged before, {} now, in {:.0} s",
            settings.out.display(),
            collected.pairs,
            collected.known,
            collected.labelled,
            started.elapsed().as_secs_f64()
        ),
        &json!({"out": settings.out, "collected": collected}),
    );
    Ok(())
}
