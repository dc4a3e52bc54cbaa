use std::path::{Path, PathBuf};

use clap::Args;
use retort_data::settings;
use retort_label::{AuditFile, AuditSettings, Debias, Method};
use serde_json::json;

use crate::progress;

#[derive(Args)]
pub(crate) struct Arguments {
    /// The label set to correct; it stays as it is
    #[arg(value_name = "SET")]
    labels: PathBuf,

    /// The collection that was labelled
    #[arg(long, value_name = "DIR")]
    collection: PathBuf,

    /// The split whose gains are gold: those of a few of the labelled queries will do
    #[arg(long, value_name = "SPLIT")]
    gold: String,

    /// The corrected label set's folder; must not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// residual (by length, overlap with the query, repetition and the like), or a map from label to
    /// gold alone: isotonic or platt
    #[arg(long, default_value = "residual")]
    method: Method,

    /// What counts as relevant, as in configs/audit.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Override one setting; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    overrides: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments, as_json: bool) -> anyhow::Result<()> {
    let Arguments {
        labels,
        collection,
        gold,
        out,
        method,
        config,
        overrides,
    } = arguments;
    let settings = audit_settings(config.as_deref(), overrides)?;
    let job = Debias {
        labels,
        collection,
        gold,
        method: *method,
        out,
    };
    let debiased = retort_label::debias(&job, &settings)?;
    progress::summary(
        as_json,
        &format!("{}: {debiased}", out.display()),
        &json!({"out": out, "debiased": debiased}),
    );
    for warning in debiased.warnings() {
        tracing::warn!("{warning}");
    }
    Ok(())
}

/// `[audit]` of a file, or what it is without one.
pub(crate) fn audit_settings(
    config: Option<&Path>,
    overrides: &[String],
) -> anyhow::Result<AuditSettings> {
    match config {
        None => Ok(AuditSettings::default()),
        Some(config) => Ok(settings::read::<AuditFile>(config, overrides)?.audit),
    }
}
