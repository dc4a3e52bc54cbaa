use std::io::{ErrorKind, Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use retort_data::settings;
use retort_label::ledger::{OpenBatch, Reader, RecipeStatus, SentTo};
use retort_label::{
    Error, Format, LabelSettings, Merged, PositionBias, ProbeSettings, Sealed, position_bias,
};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::debias::audit_settings;
use crate::{debias, label, memory, progress};

/// What the ledger holds, and turning it into label sets.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Say what a ledger holds: teachers and prompts, how their questions ended, what it cost, how
    /// much left for which host
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
    /// Say what a label set is worth: agreement with gold gains, calibration, spread
    Audit(AuditArguments),
    /// Take out of a label set what its teacher gets wrong by habit, by the gold gains of a few queries
    Debias(debias::Arguments),
    /// Find out whether a teacher can be talked into a grade: ask it about irrelevant documents, then
    /// about the same with the query's words added, with orders to grade them high, and so on
    Probe(ProbeArguments),
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

        /// jsonl (which `labels import` reads), csv, or trec-qrels (pairs with a label, under their
        /// nearest grade)
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
        /// `problem`, `rationale`, `text` and `at`
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

#[derive(Args)]
struct AuditArguments {
    /// The label set's folder
    #[arg(value_name = "SET")]
    labels: PathBuf,

    /// The collection that was labelled, with its gold gains
    #[arg(long, value_name = "DIR")]
    collection: PathBuf,

    /// The gains of this split alone, not of all there are
    #[arg(long)]
    split: Option<String>,

    /// What is asked of the labels, as in configs/audit.toml; below it, the exit code is 80
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Override one setting; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    overrides: Vec<String>,
}

#[derive(Args)]
struct ProbeArguments {
    /// The labelling job whose teacher to ask; its budget, limits and ledger hold
    #[arg(long, value_name = "FILE", default_value = "configs/label.toml")]
    config: PathBuf,

    /// Override one setting of the job; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,

    /// How many documents to try, each with all changes
    #[arg(long, default_value_t = 50)]
    documents: usize,

    /// Another seed draws other documents
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// What is asked of the teacher, as in configs/audit.toml; below it, the exit code is 80
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,

    /// Send nothing: say what would be sent where, what it can cost at most, and show one request
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(arguments: &Arguments, as_json: bool) -> anyhow::Result<()> {
    match &arguments.verb {
        Verb::Status { ledger } => {
            let ledger = Reader::open(ledger)?;
            let (recipes, spent) = (ledger.recipes()?, ledger.spent()?);
            let hosts = ledger.sent()?;
            let batches = ledger.open_batches()?;
            let mut lines = Vec::new();
            let mut biases = Vec::new();
            for recipe in &recipes {
                let bias = position_bias(&ledger, recipe)?;
                lines.push(describe(recipe));
                lines.extend(bias.map(describe_bias));
                biases.push(bias);
            }
            lines.extend(batches.iter().map(describe_batch));
            lines.extend(hosts.iter().map(describe_sent));
            let (requests, tokens) = (spent.requests, spent.tokens);
            let money = spent.micros as f64 / 1e6;
            progress::summary(
                as_json,
                &format!(
                    "{}\n{requests} requests, {tokens} tokens, {money:.2} in money",
                    lines.join("\n")
                ),
                &json!({
                    "recipes": recipes,
                    "position_biases": biases,
                    "batches": batches,
                    "sent": hosts,
                    "spent": spent,
                }),
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
        Verb::Audit(arguments) => audit(arguments, as_json)?,
        Verb::Debias(arguments) => debias::run(arguments, as_json)?,
        Verb::Probe(arguments) => probe(arguments, as_json)?,
        Verb::Merge { sources, into } => merge(sources, into, as_json)?,
        Verb::Export {
            ledger,
            format,
            out,
            recipe,
        } => export(ledger, *recipe, *format, out.as_deref(), as_json)?,
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

fn merge(sources: &[PathBuf], into: &Path, as_json: bool) -> anyhow::Result<()> {
    let merged = retort_label::merge(sources, into)?;
    let Merged {
        judgements,
        requests,
        bought_twice,
        spent,
    } = &merged;
    let twice = match bought_twice {
        0 => String::new(),
        count => format!(
            "; {count} questions that are answered now are out in batches as well: what \
             comes back of them is paid for, and not kept"
        ),
    };
    let (tokens, money) = (spent.tokens, spent.micros as f64 / 1e6);
    progress::summary(
        as_json,
        &format!(
            "{}: {judgements} new judgements, {requests} new requests; it came to {tokens} \
             tokens and {money:.2}{twice}",
            into.display()
        ),
        &json!({"ledger": into, "merged": merged}),
    );
    Ok(())
}

fn export(
    ledger: &Path,
    recipe: Option<i64>,
    format: Format,
    out: Option<&Path>,
    as_json: bool,
) -> Result<(), Error> {
    if let Some(out) = out {
        let lines = retort_files::write_atomic_with(out, |file| {
            retort_label::export(ledger, recipe, format, file)
        })?;
        progress::summary(
            as_json,
            &format!("{}: {lines} judgements", out.display()),
            &json!({"out": out, "judgements": lines}),
        );
        return Ok(());
    }
    let mut out = std::io::BufWriter::new(stdout().lock());
    let written =
        retort_label::export(ledger, recipe, format, &mut out).and_then(|_| Ok(out.flush()?));
    match written {
        // Whoever reads has enough (`| head`).
        Err(Error::Io(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn audit(arguments: &AuditArguments, as_json: bool) -> anyhow::Result<()> {
    let AuditArguments {
        labels,
        collection,
        split,
        config,
        overrides,
    } = arguments;
    let settings = audit_settings(config.as_deref(), overrides)?;
    let audit = retort_label::audit(labels, collection, split.as_deref(), &settings)?;
    progress::summary(
        as_json,
        &format!("{}: {audit}", labels.display()),
        &json!({"set": labels, "audit": audit}),
    );
    Ok(audit.check(&settings)?)
}

fn probe(arguments: &ProbeArguments, as_json: bool) -> anyhow::Result<()> {
    let settings: LabelSettings = settings::read(&arguments.config, &arguments.overrides)?;
    let audit = audit_settings(arguments.audit.as_deref(), &[])?;
    memory::keep_private();
    let choice = ProbeSettings {
        documents: arguments.documents,
        seed: arguments.seed,
    };
    if arguments.dry_run {
        let plan = retort_label::plan_probe(&settings, choice)?;
        progress::summary(as_json, &label::describe(&plan), &json!(plan));
        return Ok(());
    }
    let bar = progress::bar(0, "probe");
    let runtime = Runtime::new().context("the asynchronous runtime did not start")?;
    let probed = runtime.block_on(retort_label::probe(
        &settings,
        &audit,
        choice,
        label::reporter(&bar),
        label::told_to_stop(),
    ));
    bar.finish_and_clear();
    let probed = probed?;
    progress::summary(as_json, &probed.to_string(), &json!({"probe": probed}));
    Ok(probed.check(&audit)?)
}

fn describe(recipe: &RecipeStatus) -> String {
    let RecipeStatus {
        id,
        digest,
        spec,
        outcomes,
        models,
        preflights,
    } = recipe;
    let ended: Vec<String> = outcomes
        .iter()
        .map(|(outcome, count)| format!("{count} {outcome}"))
        .collect();
    let said = |name: &str| spec[name].as_str().unwrap_or_default().to_owned();
    let probe = if spec["probe"].is_null() {
        ""
    } else {
        ", probed (no labels)"
    };
    let mut lines = vec![format!(
        "recipe {id} ({digest}): {} by {}, prompt {}{probe}",
        said("kind"),
        said("teacher"),
        said("prompt")
    )];
    if ended.is_empty() {
        lines.push("no question has ended yet".to_owned());
    } else {
        lines.push(ended.join(", "));
    }
    if !models.is_empty() {
        lines.push(format!("answered as {}", models.join(", ")));
    }
    for one in preflights {
        lines.push(format!("preflight of {}: {one}", one.at));
    }
    lines.join("\n  ")
}

fn describe_sent(to: &SentTo) -> String {
    let SentTo {
        host,
        requests,
        bytes,
        tokens,
        redacted,
    } = to;
    if host.is_empty() {
        return format!("in flight when runs were killed or stopped: up to {tokens} tokens");
    }
    let replaced = match label::redactions(redacted) {
        none if none.is_empty() => "nothing".to_owned(),
        counts => counts,
    };
    format!(
        "sent to {host}: {requests} requests, {bytes} bytes, {tokens} tokens; replaced before: \
         {replaced}"
    )
}

fn describe_bias(bias: PositionBias) -> String {
    let PositionBias {
        first,
        flipped,
        pairs,
    } = bias;
    let (first, flipped) = (100.0 * first, 100.0 * flipped);
    format!(
        "  {first:.1} % for the document shown first; of {pairs} pairs judged in both orders, \
         {flipped:.1} % came out the other way round"
    )
}

fn describe_batch(batch: &OpenBatch) -> String {
    let OpenBatch {
        recipe,
        endpoint,
        questions,
        most_tokens,
        most_micros,
        began_at,
        missing_at,
        ..
    } = batch;
    let name = batch.remote.as_ref().unwrap_or(&batch.name);
    let money = *most_micros as f64 / 1e6;
    let missing = match missing_at {
        Some(since) => format!("; not found since {since}"),
        None => String::new(),
    };
    format!(
        "batch {name} of recipe {recipe} is out: {questions} questions, at {endpoint} since \
         {began_at}; up to {most_tokens} tokens and {money:.2} are set aside for it{missing}"
    )
}
