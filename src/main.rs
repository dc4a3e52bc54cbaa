//! `retort`: distils an LLM's relevance judgements into a small BERT cross-encoder reranker.
//!
//! One module a subcommand; the work is done in the crates. Data goes to stdout, logs and progress
//! to stderr.

mod candidates;
mod debias;
mod device;
mod doctor;
mod eval;
mod exit;
mod export;
mod generate;
mod import;
mod label;
mod labels;
mod memory;
mod progress;
mod score;
mod train;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

#[cfg(feature = "cuda")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Distils an LLM's relevance judgements into a small BERT cross-encoder reranker.
#[derive(Parser)]
#[command(name = "retort", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Print one machine-readable JSON summary on stdout instead of text
    #[arg(long, global = true)]
    json: bool,

    /// Say more on stderr
    #[arg(long, short, global = true)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Write a demo collection made from a seed
    Generate(generate::Arguments),
    /// Make a collection of files in another format
    Import(import::Arguments),
    /// Choose the documents worth judging for each query
    Candidates(candidates::Arguments),
    /// Collect a teacher's judgements over HTTP; run again to go on
    Label(label::Arguments),
    /// Say what a ledger of judgements holds; merge ledgers, seal label sets, export, import
    Labels(labels::Arguments),
    /// Train a student, measure it, and write its serving directory
    Train(train::Arguments),
    /// Measure what labels are worth to a student: a learning curve beside its teacher
    Eval(eval::Arguments),
    /// Write a run's serving directory
    Export(export::Arguments),
    /// Score pairs read as JSON lines from stdin
    Score(score::Arguments),
    /// Say what there is to compute on; check a job's settings and data, try its teacher
    Doctor(doctor::Arguments),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(cli.verbose);
    let done = match &cli.command {
        Command::Generate(arguments) => generate::run(arguments, cli.json),
        Command::Import(arguments) => import::run(arguments, cli.json),
        Command::Candidates(arguments) => candidates::run(arguments, cli.json),
        Command::Label(arguments) => label::run(arguments, cli.json),
        Command::Labels(arguments) => labels::run(arguments, cli.json),
        Command::Train(arguments) => train::run(arguments, cli.json),
        Command::Eval(arguments) => eval::run(arguments, cli.json),
        Command::Export(arguments) => export::run(arguments, cli.json),
        Command::Score(arguments) => score::run(arguments),
        Command::Doctor(arguments) => doctor::run(arguments, cli.json),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(exit::report(&error)),
    }
}

fn log_to_stderr(verbose: bool) {
    // What goes wrong in Burn's kernels comes back as an error; on the way they warn of each candidate
    // that tuning had no use for. What fails between GPUs is said there alone.
    let default = if verbose {
        "warn,retort=debug"
    } else {
        "warn,retort=info,burn=off,cube=off,cubecl_runtime::client=error,wgpu=off,turso=off"
    };
    let filter = EnvFilter::try_from_env("RETORT_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // No colours in files and pipes.
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false)
        .without_time()
        .init();
}
