use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use retort_data::Error;
use retort_export::Scorer;
use retort_model::Precision;
use serde::Deserialize;

use crate::device::DeviceArguments;

#[derive(Args)]
pub(crate) struct Arguments {
    /// A serving directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    #[command(flatten)]
    device: DeviceArguments,
}

/// One line of input.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    query: String,
    document: String,
}

/// Pairs scored at a time: enough to sort by length, few enough to stream.
const PAIRS_AT_A_TIME: usize = 512;

/// Reads `{"query", "document"}` lines from stdin and writes `{"logit", "score"}` lines, in order.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (device, which) = arguments.device.choose(Precision::F32)?;
    tracing::info!("device: {which}");
    let scorer = Scorer::open(&arguments.directory, &device)?;
    let mut lines = io::stdin().lock().split(b'\n').enumerate();
    loop {
        let mut pairs = Vec::new();
        for (index, line) in lines.by_ref().take(PAIRS_AT_A_TIME) {
            let pair: Pair = serde_json::from_slice(&line?).map_err(|error| Error::Row {
                path: Path::new("standard input").into(),
                line: index + 1,
                problem: format!("{error}; expected {{\"query\": \"…\", \"document\": \"…\"}}"),
            })?;
            pairs.push(pair);
        }
        if pairs.is_empty() {
            return Ok(());
        }
        let texts: Vec<(&str, &str)> = pairs
            .iter()
            .map(|pair| (&*pair.query, &*pair.document))
            .collect();
        let mut out = io::stdout().lock();
        for score in scorer.score(&texts)? {
            serde_json::to_writer(&mut out, &score)?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
    }
}
