use std::io::{ErrorKind, Write, stdout};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use retort_data::settings;
use retort_label::ledger::{Reader, RecipeStatus};
use retort_label::{Error, Format, LabelSettings, Merged, Sealed};
use serde_json::json;

use crate::progress;

/// What the ledger holds, and turning it into label sets.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Say what a ledger holds: teachers and prompts, how their questions ended, what it cost
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
    /// Put the ledgers of a job's shards, or of any jobs, together; merging again brings what is new
    Merge {
        /// The ledgers to merge; they stay as they are
        #[arg(value_name = "LEDGER", required = true)]
        sources: Vec<PathBuf>,

        /// The ledger to merge them into; is made if it is not there
        #[arg(long, value_name = "LEDGER")]
        into: PathBuf,
    },
    /// Write a teacher's judgements as text, one a line
    Export {
        /// The ledger
        #[arg(value_name = "LEDGER")]
        ledger: PathBuf,

        /// jsonl (which `labels import` reads), csv, or trec-qrels (answers alone, as the nearest
        /// grade)
        #[arg(long, value_name = "FORMAT", default_value = "jsonl")]
        format: Format,

        /// The file to write; stdout without it
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,

        /// Which teacher and prompt, by the number that `labels status` shows; not needed where
        /// there is only one
        #[arg(long)]
        recipe: Option<i64>,
    },
    /// Put judgements that were made elsewhere on the texts of a job into its ledger
    Import {
        /// One JSON object a line, as `labels export` writes them: with `query_id`, `document_id`
        /// and `probabilities` (or a reranker's `score`), and maybe `mass`, `sample`, `outcome`,
        /// `problem`, `text` and `at`
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
            let (recipes, spent, out) =
                (ledger.recipes()?, ledger.spent()?, ledger.open_batches()?);
            let mut lines: Vec<String> = recipes.iter().map(describe).collect();
            lines.extend(out.iter().map(|batch| {
                let name = batch.remote.as_ref().unwrap_or(&batch.name);
                let (count, to, at) = (batch.questions, &batch.endpoint, &batch.began_at);
                format!("batch {name} is out: {count} questions, sent to {to} at {at}")
            }));
            let (requests, tokens) = (spent.requests, spent.tokens);
            let money = spent.micros as f64 / 1e6;
            progress::summary(
                as_json,
                &format!(
                    "{}\n{requests} requests, {tokens} tokens, {money:.2} in money",
                    lines.join("\n")
                ),
                &json!({"recipes": recipes, "spent": spent, "batches": out}),
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
        Verb::Merge { sources, into } => {
            let merged = retort_label::merge(sources, into)?;
            let Merged {
                judgements,
                requests,
                spent,
            } = &merged;
            let (tokens, money) = (spent.tokens, spent.micros as f64 / 1e6);
            progress::summary(
                as_json,
                &format!(
                    "{}: {judgements} new judgements, {requests} new requests; it came to {tokens} \
                     tokens and {money:.2}",
                    into.display()
                ),
                &json!({"ledger": into, "merged": merged}),
            );
        }
        Verb::Export {
            ledger,
            format,
            out,
            recipe,
        } => match out {
            None => to_stdout(ledger, *recipe, *format)?,
            Some(out) => {
                let lines = retort_files::write_atomic_with(out, |file| {
                    retort_label::export(ledger, *recipe, *format, file)
                })?;
                progress::summary(
                    as_json,
                    &format!("{}: {lines} judgements", out.display()),
                    &json!({"out": out, "judgements": lines}),
                );
            }
        },
        Verb::Import {
            file,
            config,
            overrides,
        } => {
            let settings: LabelSettings = settings::read(config, overrides)?;
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

fn to_stdout(ledger: &Path, recipe: Option<i64>, format: Format) -> Result<(), Error> {
    let mut out = std::io::BufWriter::new(stdout().lock());
    let written = retort_label::export(ledger, recipe, format, &mut out)
        .and_then(|_| out.flush().map_err(Error::from));
    match written {
        // Whoever reads has enough (`| head`).
        Err(Error::Io(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn describe(recipe: &RecipeStatus) -> String {
    let RecipeStatus {
        id,
        digest,
        spec,
        outcomes,
        models,
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
