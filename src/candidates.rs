use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::Args;
use retort_data::Error;
use retort_data::candidates::{self, Mix};
use retort_data::collection::{Collection, Query};
use retort_data::trec::Run;
use serde_json::json;

use crate::progress;

#[derive(Args)]
pub(crate) struct Arguments {
    /// The collection's folder (corpus.jsonl, queries.jsonl, qrels/)
    #[arg(long, value_name = "DIR")]
    collection: PathBuf,

    /// Whose queries: a file name in qrels/ without its ending; all queries where it is left out
    #[arg(long)]
    split: Option<String>,

    /// The file to write, one JSON object a line
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Documents from BM25 over words
    #[arg(long, default_value_t = 10)]
    bm25: usize,

    /// Documents from BM25 over trigrams, beyond those
    #[arg(long, default_value_t = 6)]
    trigrams: usize,

    /// What other systems found, as TREC runs
    #[arg(long = "run", value_name = "FILE", num_args = 1..)]
    runs: Vec<PathBuf>,

    /// Documents from each run, beyond those before: half from its top, half from strata below
    #[arg(long, value_name = "N", default_value_t = 10)]
    per_run: usize,

    /// The last rank of a run that is looked at
    #[arg(long, value_name = "RANK", default_value_t = 100)]
    depth: usize,

    /// Documents at random; more where a search or a run has too few, unless this is 0
    #[arg(long, default_value_t = 4)]
    random: usize,

    /// Take no document that has a gain for the query in any split: for candidates that serve as
    /// negatives, unjudged
    #[arg(long)]
    exclude_positives: bool,

    /// The same seed draws the same documents
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run(arguments: &Arguments, as_json: bool) -> anyhow::Result<()> {
    let out = &arguments.out;
    let collection = Collection::read(&arguments.collection)?;
    let mut queries: Vec<Query> = collection.queries().collect::<Result<_, _>>()?;
    queries.sort_by(|a, b| a.id.cmp(&b.id));
    if let Some(split) = &arguments.split {
        let gains = collection.qrels(split)?;
        queries.retain(|query| gains.contains_key(&query.id));
    }
    let mut excluded = BTreeMap::new();
    if arguments.exclude_positives {
        excluded = collection.positives()?;
    }

    let wanted: BTreeSet<&str> = queries.iter().map(|query| &*query.id).collect();
    let mut runs: Vec<Run> = Vec::new();
    for path in &arguments.runs {
        let run = Run::read(
            path,
            |id| wanted.contains(id),
            |id| collection.has_document(id),
        )?;
        if runs.iter().any(|other| other.name == run.name) {
            let problem = format!("--run: two are named {}: rename one of the files", run.name);
            return Err(Error::Setting(problem).into());
        }
        runs.push(run);
    }
    let mix = Mix {
        bm25: arguments.bm25,
        trigrams: arguments.trigrams,
        runs,
        per_run: arguments.per_run,
        depth: arguments.depth,
        random: arguments.random,
        excluded,
        seed: arguments.seed,
    };
    let drawn = candidates::draw(&collection, &queries, &mix)?;
    if drawn.is_empty() {
        let problem = match &arguments.split {
            Some(split) if queries.is_empty() => format!("--split: {split} has no query"),
            _ => "no pair was drawn: let --bm25, --trigrams, --run or --random have a share, and \
                  leave documents that are not excluded"
                .to_owned(),
        };
        return Err(Error::Setting(problem).into());
    }
    candidates::write(out, &drawn)?;

    let mut sources = BTreeMap::new();
    for candidate in &drawn {
        *sources.entry(candidate.source.to_string()).or_insert(0) += 1;
    }
    progress::summary(
        as_json,
        &format!(
            "{}: {} pairs for {} queries {sources:?}",
            out.display(),
            drawn.len(),
            queries.len()
        ),
        &json!({"out": out, "pairs": drawn.len(), "queries": queries.len(), "sources": sources}),
    );
    Ok(())
}
