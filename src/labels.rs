use std::path::PathBuf;

use clap::{Args, Subcommand};
use retort_data::settings;
use retort_label::ledger::{Reader, RecipeStatus, SentTo};
use retort_label::{LabelSettings, Sealed};
use serde_json::json;

use crate::label::redactions;
use crate::{memory, progress};

/// What the ledger holds, and turning it into label sets.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Say what a ledger holds: teachers and prompts, how their questions ended, what it cost, and
    /// how much left for which host
    Status {
        /// The ledger
        #[arg(value_name = "LEDGER")]
        ledger: PathBuf,
    },
    /// Write a teacher's judgements as a label set that never changes: Parquet and a manifest
    Seal {
        /// The ledger
        #[arg(value_name = "LEDGER")]
        ledger: PathBuf,

        /// The label set's folder; must not exist
        #[arg(long, value_name = "DIR")]
        out: PathBuf,

        /// Which teacher and prompt, by the number that `labels status` shows; not needed where
        /// there is only one
        #[arg(long)]
        recipe: Option<i64>,

        /// Only the pairs that this file names, as `retort candidates` writes it
        #[arg(long, value_name = "FILE")]
        candidates: Option<PathBuf>,
    },
    /// Put judgements that were made elsewhere on the texts of a job into its ledger
    Import {
        /// One JSON object a line, with `query_id`, `document_id` and `probabilities`, and maybe
        /// `mass`, `text` and `at`
        #[arg(value_name = "FILE")]
        file: PathBuf,

        /// The labelling job whose teacher and prompt made them
        #[arg(long, value_name = "FILE", default_value = "configs/label.toml")]
        config: PathBuf,

        /// Override one setting; may be given again
        #[arg(long = "set", value_name = "KEY=VALUE")]
        overrides: Vec<String>,
    },
}

pub(crate) fn run(arguments: &Arguments, as_json: bool) -> anyhow::Result<()> {
    match &arguments.verb {
        Verb::Status { ledger } => {
            let ledger = Reader::open(ledger)?;
            let (recipes, spent, sent) = (ledger.recipes()?, ledger.spent()?, ledger.sent()?);
            let mut lines: Vec<String> = recipes.iter().map(describe).collect();
            lines.extend(sent.iter().map(departed));
            let (requests, tokens) = (spent.requests, spent.tokens);
            let money = spent.micros as f64 / 1e6;
            progress::summary(
                as_json,
                &format!(
                    "{}\n{requests} requests, {tokens} tokens, {money:.2} in money",
                    lines.join("\n")
                ),
                &json!({"recipes": recipes, "spent": spent, "sent": sent}),
            );
        }
        Verb::Seal {
            ledger,
            out,
            recipe,
            candidates,
        } => {
            let sealed = retort_label::seal(ledger, *recipe, candidates.as_deref(), out)?;
            let Sealed { rows, digest } = &sealed;
            progress::summary(
                as_json,
                &format!("{}: {rows} judgements, {digest}", out.display()),
                &json!({"out": out, "rows": rows, "digest": digest}),
            );
        }
        Verb::Import {
            file,
            config,
            overrides,
        } => {
            let settings: LabelSettings = settings::read(config, overrides)?;
            memory::keep_private();
            let imported = retort_label::import(file, &settings)?;
            progress::summary(
                as_json,
                &format!(
                    "{}: {imported} judgements imported",
                    settings.ledger.display()
                ),
                &json!({"ledger": settings.ledger, "imported": imported}),
            );
        }
    }
    Ok(())
}

fn departed(to: &SentTo) -> String {
    let SentTo {
        host,
        requests,
        bytes,
        tokens,
        redacted,
    } = to;
    if host.is_empty() {
        return format!("in flight when runs were killed: up to {tokens} tokens");
    }
    let replaced = match redactions(redacted) {
        none if none.is_empty() => "nothing".to_owned(),
        counts => counts,
    };
    format!(
        "sent to {host}: {requests} requests, {bytes} bytes, {tokens} tokens; replaced before: \
         {replaced}"
    )
}

fn describe(recipe: &RecipeStatus) -> String {
    let RecipeStatus {
        id,
        digest,
        spec,
        outcomes,
        models,
        probes: _,
    } = recipe;
    let ended: Vec<String> = outcomes
        .iter()
        .map(|(outcome, count)| format!("{count} {outcome}"))
        .collect();
    let said = |name: &str| spec[name].as_str().unwrap_or_default().to_owned();
    format!(
        "recipe {id} ({digest}): {} by {}, prompt {}\n  {}\n  answered as {}",
        said("kind"),
        said("teacher"),
        said("prompt"),
        ended.join(", "),
        models.join(", ")
    )
}
