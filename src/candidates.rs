use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use retort_data::candidates::{self, Mix};
use retort_data::collection::Collection;
use serde_json::json;

use crate::progress;

#[derive(Args)]
pub(crate) struct Arguments {
    /// The collection's folder (corpus.jsonl, queries.jsonl, qrels/)
    #[arg(long, value_name = "DIR")]
    collection: PathBuf,

    /// Whose queries: a file name in qrels/ without its ending
    #[arg(long)]
    split: String,

    /// The file to write, one JSON object a line
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Documents from BM25 over words
    #[arg(long, default_value_t = 10)]
    bm25: usize,

    /// Documents from BM25 over trigrams, beyond those
    #[arg(long, default_value_t = 6)]
    trigrams: usize,

    /// Documents at random; more where a search finds too few
    #[arg(long, default_value_t = 4)]
    random: usize,

    /// The same seed draws the same documents
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run(arguments: &Arguments, as_json: bool) -> anyhow::Result<()> {
    let Arguments {
        collection,
        split,
        out,
        bm25,
        trigrams,
        random,
        seed,
    } = arguments;
    let collection = Collection::read(collection)?;
    let qrels = collection.qrels(split)?;
    let mix = Mix {
        bm25: *bm25,
        trigrams: *trigrams,
        random: *random,
    };
    let drawn = candidates::draw(
        &collection,
        &qrels,
        &collection.qrels_path(split),
        mix,
        *seed,
    )?;
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
            qrels.len()
        ),
        &json!({"out": out, "pairs": drawn.len(), "queries": qrels.len(), "sources": sources}),
    );
    Ok(())
}
