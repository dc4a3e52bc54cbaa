use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use indicatif::{HumanDuration, ProgressBar};
use retort_data::settings;
use retort_label::{Collected, LabelSettings, Plan, Progress, Shard};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::{memory, progress};

#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct Arguments {
    /// The job's settings
    #[arg(long, value_name = "FILE", default_value = "configs/label.toml")]
    config: PathBuf,

    /// Override one setting; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,

    /// Ask those pairs too that ended without a judgement for a reason of their own
    #[arg(long)]
    again: bool,

    /// Ask only part i of n, by a hash of each query, with i from 0 to n - 1; the part has a ledger
    /// of its own (labels.sqlite becomes labels-03-of-16.sqlite), rates and budget are the part's,
    /// and `labels merge` puts the ledgers together
    #[arg(long, value_name = "i/n")]
    shard: Option<Shard>,

    /// Ask through the teacher's batch interface (OpenAI, Azure, Anthropic, files for `vllm
    /// run-batch`): takes in what has ended, sends what nobody asked yet, and ends with 75 while
    /// something is out; run it again then
    #[arg(long)]
    batch: bool,

    /// Wait until all batches have come back
    #[arg(long, requires = "batch")]
    wait: bool,

    /// Send nothing: say what would be sent where, what it can cost at most, and show one request
    #[arg(long)]
    dry_run: bool,
}

/// Pairs between two lines where stderr is no terminal.
const PAIRS_PER_LINE: usize = 100;

pub(crate) fn run(arguments: &Arguments, as_json: bool) -> anyhow::Result<()> {
    let mut settings: LabelSettings = settings::read(&arguments.config, &arguments.overrides)?;
    if let Some(shard) = arguments.shard {
        settings = settings.for_shard(shard);
    }
    settings.in_batches = arguments.batch;
    memory::keep_private();
    if arguments.dry_run {
        let plan = retort_label::plan(&settings, arguments.again)?;
        progress::summary(as_json, &describe(&plan), &json!(plan));
        return Ok(());
    }
    let bar = progress::bar(0, "label");
    let started = Instant::now();
    let runtime = Runtime::new().context("the asynchronous runtime did not start")?;
    let (again, report, stop) = (arguments.again, reporter(&bar), told_to_stop());
    let collected = runtime.block_on(async {
        if arguments.batch {
            let wait = arguments.wait;
            retort_label::collect_in_batches(&settings, again, wait, report, stop).await
        } else {
            retort_label::collect(&settings, again, report, stop).await
        }
    });
    bar.finish_and_clear();
    let collected = collected?;
    let in_all = HumanDuration(started.elapsed());
    progress::summary(
        as_json,
        &format!(
            "{}: {} in {in_all}",
            settings.ledger.display(),
            in_words(&collected)
        ),
        &json!({"ledger": settings.ledger, "collected": collected}),
    );
    Ok(())
}

/// Shows how far a job is: on the bar, or in a line now and then where there is none. The rate is that
/// since the first report.
pub(crate) fn reporter(bar: &ProgressBar) -> impl FnMut(Progress) {
    let mut started = None;
    let mut lines = 0;
    move |now| {
        let started = *started.get_or_insert_with(Instant::now);
        let rate = now.done as f64 / started.elapsed().as_secs_f64().max(1e-3);
        let Progress {
            done,
            failed,
            total,
            tokens,
            micros,
        } = now;
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        let money = micros as f64 / 1e6;
        let so_far = format!("{rate:.1} pairs/s | {failed} failed | {tokens} tokens | {money:.2}");
        bar.set_message(so_far.clone());
        // A report may be of several pairs.
        if bar.is_hidden() && done > 0 && (done / PAIRS_PER_LINE > lines || done == total) {
            lines = done / PAIRS_PER_LINE;
            let left = (total - done) as f64 / rate / 60.0;
            tracing::info!("pair {done}/{total} | {so_far} | {left:.1} min left");
        }
    }
}

/// The name of the first signal to stop; a second one ends the process at once, which the ledger
/// survives too.
pub(crate) async fn told_to_stop() -> &'static str {
    let (sender, first) = oneshot::channel();
    // Beside the job, which may be at something that takes long.
    tokio::spawn(async {
        let signal = first_signal().await;
        tracing::warn!("{signal}: waiting for what is in flight; once more ends at once");
        // An error means that the job has ended already.
        let _ = sender.send(signal);
        let code = match first_signal().await {
            "SIGTERM" => 143,
            _ => 130,
        };
        #[expect(clippy::exit, reason = "asked for a second time")]
        std::process::exit(code);
    });
    match first.await {
        Ok(signal) => signal,
        Err(_) => std::future::pending().await,
    }
}

#[cfg(unix)]
async fn first_signal() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminated) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        Ok(()) = tokio::signal::ctrl_c() => "SIGINT",
        Some(()) = terminated.recv() => "SIGTERM",
    }
}

#[cfg(not(unix))]
async fn first_signal() -> &'static str {
    match tokio::signal::ctrl_c().await {
        Ok(()) => "SIGINT",
        Err(_) => std::future::pending().await,
    }
}

fn in_words(collected: &Collected) -> String {
    let Collected {
        questions,
        known,
        given_up,
        pending: _,
        ended,
        bought_twice,
        spent,
    } = collected;
    let asked: usize = ended.values().sum();
    let (tokens, money) = (spent.tokens, spent.micros as f64 / 1e6);
    let twice = match bought_twice {
        0 => String::new(),
        count => format!(" ({count} were answered by then: paid for, and not kept)"),
    };
    format!(
        "{questions} questions, {known} answered before, {given_up} given up before, {asked} asked \
         now{twice}; the ledger came to {tokens} tokens and {money:.2}"
    )
}

/// What a job would send where.
pub(crate) fn describe(plan: &Plan) -> String {
    let Plan {
        questions,
        known,
        given_up,
        pending,
        to_ask,
        preflight_requests,
        most_tokens,
        most_micros,
        redacted,
        destinations,
        first_request,
    } = plan;
    let destinations: Vec<String> = destinations
        .iter()
        .map(|one| format!("{} ({})", one.endpoint, one.reach))
        .collect();
    let destinations = destinations.join(", ");
    let out = match pending {
        0 => String::new(),
        pending => format!(", {pending} out in batches"),
    };
    let preflight = match preflight_requests {
        0 => String::new(),
        requests => format!(", after {requests} requests of the preflight"),
    };
    let money = *most_micros as f64 / 1e6;
    let redacted = match redactions(redacted) {
        none if none.is_empty() => none,
        counts => format!("\nreplaced in their texts: {counts}"),
    };
    let request = match first_request {
        Some(request) => format!("\nthe first request:\n{request:#}"),
        None => String::new(),
    };
    format!(
        "{questions} questions, {known} answered before, {given_up} given up before{out}\n\
         {to_ask} would be asked of {destinations}{preflight}\n\
         they can't take more than {most_tokens} tokens and {money:.2} in money{redacted}{request}"
    )
}

/// Counts by kind, in words.
pub(crate) fn redactions(counts: &BTreeMap<impl Display, u64>) -> String {
    let counts: Vec<String> = (counts.iter())
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    counts.join(", ")
}
