use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use retort_data::Error;
use retort_data::import::{self, Columns, Files, Format, OnBadRow, Shape, Source, Summary};
use serde_json::json;

use crate::progress;

/// Makes a collection, a folder in BEIR layout, of files in another format. Files may be packed with
/// gzip or zstd, whatever their names.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// BEIR: a folder that is read as it is, but has rows that are wrong or fields to join
    Beir(Beir),
    /// TREC: documents and topics in SGML, JSONL or TSV; qrels and runs separated by white space
    Trec(Tables),
    /// MS MARCO: collection.tsv, queries.tsv, qrels, and maybe a top 1000 or triples of ids
    Msmarco {
        #[command(flatten)]
        tables: Tables,

        /// Lines of the ids of a query, a positive and a negative; become a run
        #[arg(long, value_name = "FILE", num_args = 1..)]
        triples: Vec<PathBuf>,
    },
    /// One JSON object a line
    Jsonl(Tables),
    /// Comma-separated, with column names on top; fields may be quoted
    Csv {
        #[command(flatten)]
        tables: Tables,

        /// What separates the fields
        #[arg(long, default_value_t = ',')]
        delimiter: char,
    },
    /// Tab-separated, with column names on top; quotes stand for themselves
    Tsv(Tables),
    /// Parquet
    Parquet(Tables),
    /// FlagEmbedding's training files: query, pos, neg, maybe scores
    Flagembedding(Examples),
    /// Tevatron's training files: query, positive and negative passages
    Tevatron(Examples),
}

#[derive(Args)]
struct Beir {
    /// The folder, with corpus.jsonl, queries.jsonl and qrels/, of which each file is a split
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// How fields become a document's text: a field's name, or a template as in
    /// '{{ title }} | {{ brand }}\n{{ text }}'; \n is a line break
    #[arg(long, value_name = "TEMPLATE")]
    text: Option<String>,

    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Tables {
    /// Documents
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    corpus: Vec<PathBuf>,

    /// Queries
    #[arg(long, visible_alias = "topics", value_name = "FILE", required = true, num_args = 1..)]
    queries: Vec<PathBuf>,

    /// Gold gains: TREC's four columns, BEIR's three, or rows with the columns `query_id`,
    /// `document_id` and `grade`
    #[arg(long, value_name = "FILE", num_args = 1..)]
    qrels: Vec<PathBuf>,

    /// What another system found, for `retort candidates`: TREC's six columns or MS MARCO's three
    #[arg(long = "run", value_name = "FILE", num_args = 1..)]
    runs: Vec<PathBuf>,

    /// The column of the documents' ids, where it is not called `id` or the like
    #[arg(long, value_name = "COLUMN")]
    id: Option<String>,

    /// How columns become a document's text: a column's name, or a template as in
    /// '{{ title }} | {{ brand }}\n{{ description }}'; \n is a line break. Without it the columns `title` and `text` are the title and the text
    #[arg(long, value_name = "TEMPLATE")]
    text: Option<String>,

    /// The column of the queries' ids, where it is not called `query_id` or the like
    #[arg(long, value_name = "COLUMN")]
    query_id: Option<String>,

    /// The column of the queries' text, where it is not called `query` or the like
    #[arg(long, value_name = "COLUMN")]
    query: Option<String>,

    /// What the split of the gains is called; one for all files, or one for each in their order
    #[arg(long = "split", value_name = "NAME", default_value = "train")]
    splits: Vec<String>,

    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Examples {
    /// The training files
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// What the split of the gains is called; one for all files, or one for each in their order
    #[arg(long = "split", value_name = "NAME", default_value = "train")]
    splits: Vec<String>,

    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Common {
    /// The collection's folder; it must not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// What to do about a row that is wrong; `skip` counts them and shows the first few
    #[arg(long, value_name = "WHAT", default_value = "fail")]
    on_bad_row: BadRow,
}

#[derive(Clone, Copy, ValueEnum)]
enum BadRow {
    Fail,
    Skip,
}

pub(crate) fn run(arguments: &Arguments, as_json: bool) -> anyhow::Result<()> {
    let by_content = Format::ByContent;
    let (source, common) = match &arguments.what {
        What::Beir(beir) => of_beir(beir),
        What::Trec(tables) => of_tables(tables, by_content, &[])?,
        What::Msmarco { tables, triples } => of_tables(tables, by_content, triples)?,
        What::Jsonl(tables) => of_tables(tables, Format::Jsonl, &[])?,
        What::Csv { tables, delimiter } => {
            let delimiter = *delimiter;
            of_tables(tables, Format::Csv { delimiter }, &[])?
        }
        What::Tsv(tables) => of_tables(tables, Format::Tsv, &[])?,
        What::Parquet(tables) => of_tables(tables, Format::Parquet, &[])?,
        What::Flagembedding(examples) => of_examples(examples, Shape::FlagEmbedding)?,
        What::Tevatron(examples) => of_examples(examples, Shape::Tevatron)?,
    };
    let on_bad_row = match common.on_bad_row {
        BadRow::Fail => OnBadRow::Fail,
        BadRow::Skip => OnBadRow::Skip,
    };
    let out = &common.out;
    let summary = import::import(&source, out, on_bad_row)?;
    if summary.bad_rows > 0 {
        tracing::warn!(
            "{} bad rows were skipped, of which the first:",
            summary.bad_rows
        );
        for bad in &summary.first_bad {
            tracing::warn!("{bad}");
        }
    }
    let text = format!("{}: {}", out.display(), describe(&summary));
    progress::summary(as_json, &text, &json!({"out": out, "imported": summary}));
    Ok(())
}

fn of_beir(beir: &Beir) -> (Source, &Common) {
    let source = Source::Tables {
        format: Format::Jsonl,
        files: Files::of_beir(&beir.folder),
        columns: Columns {
            text: beir.text.clone(),
            ..Columns::default()
        },
    };
    (source, &beir.common)
}

fn of_tables<'a>(
    tables: &'a Tables,
    format: Format,
    triples: &[PathBuf],
) -> Result<(Source, &'a Common), Error> {
    let source = Source::Tables {
        format,
        files: Files {
            corpus: tables.corpus.clone(),
            queries: tables.queries.clone(),
            qrels: split(&tables.qrels, &tables.splits)?,
            runs: tables.runs.clone(),
            triples: triples.to_vec(),
        },
        columns: Columns {
            id: tables.id.clone(),
            text: tables.text.clone(),
            query_id: tables.query_id.clone(),
            query: tables.query.clone(),
        },
    };
    Ok((source, &tables.common))
}

fn of_examples(examples: &Examples, shape: Shape) -> Result<(Source, &Common), Error> {
    let files = split(&examples.files, &examples.splits)?;
    Ok((Source::Examples { shape, files }, &examples.common))
}

/// Each file with the name of its split.
fn split(files: &[PathBuf], splits: &[String]) -> Result<Vec<(String, PathBuf)>, Error> {
    if splits.len() != 1 && splits.len() != files.len() {
        return Err(Error::Setting(format!(
            "--split: {} names for {} files: give one for all, or one for each",
            splits.len(),
            files.len()
        )));
    }
    let splits = splits.iter().cycle().cloned();
    Ok(splits.zip(files.iter().cloned()).collect())
}

fn describe(summary: &Summary) -> String {
    let mut said = vec![
        format!("{} documents", summary.documents),
        format!("{} queries", summary.queries),
    ];
    let gains = summary.gains.iter();
    said.extend(gains.map(|(split, count)| format!("{count} gains in {split}")));
    let ranked = summary.ranked.iter();
    said.extend(ranked.map(|(run, count)| format!("{count} places in runs/{run}.tsv")));
    for (count, what) in [
        (summary.without_text, "documents without text"),
        (summary.below_zero, "grades below 0 taken as 0"),
        (summary.repeated, "repeats kept once"),
        (summary.bad_rows, "bad rows skipped"),
    ] {
        if count > 0 {
            said.push(format!("{count} {what}"));
        }
    }
    said.join(", ")
}
