//! Training on a label set larger than the memory it may take: made-up labels, a small student, and a
//! limit of the process's own data that the kernel keeps (`ulimit -d`; Linux).
//!
//!   cargo bench --bench memory                                       4,000,000 labels, 100 MiB
//!   cargo bench --bench memory -- --labels 1000000 --limit 100       fewer
//!
//! It works in target/memory and leaves the label set there for another run.

#![allow(clippy::unwrap_used, reason = "a benchmark ends when something fails")]
#![allow(clippy::disallowed_methods, reason = "a panic names the line")]
#![allow(clippy::print_stdout, reason = "its result is what it prints")]

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use retort_data::collection::{Document, Query};
use retort_data::label_set::{self, FORMAT, Label, Manifest};
use serde_json::json;

/// Documents judged for each query.
const PER_QUERY: usize = 20;
const DOCUMENTS: usize = 20_000;
/// Grades from 0 to 10, each with a probability of its own.
const GRADES: usize = 11;
const WORDS_PER_DOCUMENT: usize = 40;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |flag: &str, default: usize| {
        let place = arguments.iter().position(|argument| argument == flag);
        place.map_or(default, |place| arguments[place + 1].parse().unwrap())
    };
    let (labels, limit) = (number("--labels", 4_000_000), number("--limit", 100));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join(format!(
        "target/memory/{labels}-labels-{DOCUMENTS}-documents-{GRADES}-grades"
    ));
    if !folder.join("labels").exists() {
        let _ = fs_err::remove_dir_all(&folder);
        make(root, &folder, labels);
    }
    let bytes: u64 = fs_err::read_dir(folder.join("labels"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    println!(
        "{labels} labels of {} queries: {} MiB of Parquet, {:.1} times the limit of {limit} MiB",
        labels / PER_QUERY,
        bytes >> 20,
        bytes as f64 / (limit << 20) as f64
    );
    train(root, &folder, limit);
}

/// A collection, its label set and one dev query's candidates.
fn make(root: &Path, folder: &Path, labels: usize) {
    let path = |name: &str| -> PathBuf { folder.join(name) };
    fs_err::create_dir_all(path("qrels")).unwrap();
    let vocabulary = fs_err::read_to_string(root.join("tests/golden/bert/vocab.txt")).unwrap();
    let words: Vec<&str> = vocabulary
        .lines()
        .filter(|word| word.len() > 1 && word.chars().all(char::is_alphabetic))
        .collect();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut text = |count: usize| {
        let drawn = (0..count).map(|_| words[rng.random_range(0..words.len())]);
        drawn.collect::<Vec<_>>().join(" ")
    };
    let documents: Vec<Document> = (0..DOCUMENTS)
        .map(|number| Document {
            id: format!("d{number:06}"),
            title: String::new(),
            text: text(WORDS_PER_DOCUMENT),
        })
        .collect();
    let queries = labels / PER_QUERY;
    let queries: Vec<Query> = (0..queries)
        .map(|number| Query {
            id: format!("q{number:08}"),
            text: text(4),
        })
        .collect();
    write_lines(&path("corpus.jsonl"), &documents);
    write_lines(&path("queries.jsonl"), &queries);
    let last = &queries[queries.len() - 1].id;
    let candidates = [0, 1].map(|document| {
        json!({"query_id": last, "document_id": documents[document].id, "source": "random"})
    });
    write_lines(&path("dev.jsonl"), &candidates);
    fs_err::write(path("qrels/dev.tsv"), format!("{last}\td000000\t1\n")).unwrap();

    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let label = |row: usize| {
        let query = &queries[row / PER_QUERY];
        let document = &documents[(row * 7919 + row / PER_QUERY) % DOCUMENTS];
        let odds: [f64; GRADES] = std::array::from_fn(|_| rng.random::<f64>().powi(4));
        let sum: f64 = odds.iter().sum();
        let probabilities = odds.map(|one| one / sum).to_vec();
        Ok(Label {
            query_id: query.id.clone(),
            document_id: document.id.clone(),
            grade: label_set::expected_grade(&probabilities),
            probabilities,
            mass: 0.9 + 0.1 * rng.random::<f64>(),
            samples: 1,
            text: label_set::text_digest(query, document),
            at: "2026-11-27T00:00:00Z".to_owned(),
        })
    };
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        top_grade: GRADES - 1,
        recipe: json!({"kind": "graded", "teacher": "made up"}),
        models: Vec::new(),
        preflights: Vec::new(),
        corrections: Vec::new(),
        rows: 0,
        shards: Vec::new(),
        sealed_by: "a benchmark".to_owned(),
        sealed_at: "2026-11-27T00:00:00Z".to_owned(),
    };
    label_set::write(&path("labels"), manifest, (0..labels).map(label)).unwrap();
}

fn write_lines<T: serde::Serialize>(path: &Path, rows: &[T]) {
    let mut file = BufWriter::new(fs_err::File::create(path).unwrap());
    for row in rows {
        serde_json::to_writer(&mut file, row).unwrap();
        file.write_all(b"\n").unwrap();
    }
    file.flush().unwrap();
}

/// `retort train` within the limit, watched.
fn train(root: &Path, folder: &Path, limit: usize) {
    let run = folder.join("run");
    let _ = fs_err::remove_dir_all(&run);
    let mut retort = Command::new("sh");
    retort.current_dir(root).args([
        "-c",
        &format!("ulimit -d {}; exec \"$@\"", limit << 10),
        "sh",
        env!("CARGO_BIN_EXE_retort"),
        "train",
        "--device",
        "cpu",
        "--out",
    ]);
    retort.arg(&run);
    let path = |name: &str| folder.join(name).display().to_string();
    for (key, value) in [
        ("data.collection", folder.display().to_string()),
        ("data.labels", path("labels")),
        ("data.share", "0.01".to_owned()),
        ("data.max_tokens", "64".to_owned()),
        ("model.init", "tests/golden/bert".to_owned()),
        ("evaluation.candidates", path("dev.jsonl")),
        ("evaluation.every_steps", "500".to_owned()),
        ("verdict.split", "dev".to_owned()),
        ("verdict.candidates", path("dev.jsonl")),
        ("verdict.relevant_gain", "1".to_owned()),
    ] {
        retort.args(["--set", &format!("{key}={value}")]);
    }
    // The demo's teacher judged other queries.
    let config = fs_err::read_to_string(root.join("configs/demo.toml")).unwrap();
    let lines = config
        .lines()
        .filter(|line| !line.starts_with("teacher_labels"));
    let config = folder.join("config.toml");
    fs_err::write(&config, lines.collect::<Vec<_>>().join("\n")).unwrap();
    retort.args(["--config", &config.display().to_string()]);
    let started = Instant::now();
    let mut child = retort.stderr(Stdio::piped()).spawn().unwrap();
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let said = BufReader::new(child.stderr.take().unwrap());
    let training = AtomicBool::new(false);
    let (mut reading, mut stepping) = (0, 0);
    std::thread::scope(|scope| {
        let training = &training;
        scope.spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                if line.ends_with(" training") {
                    training.store(true, Ordering::Relaxed);
                }
                println!("{line}");
            }
        });
        while child.try_wait().unwrap().is_none() {
            let memory = of_process(&status);
            let most = if training.load(Ordering::Relaxed) {
                &mut stepping
            } else {
                &mut reading
            };
            *most = memory.max(*most);
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let ended = child.wait().unwrap();
    println!(
        "{ended} after {:.0} s; memory of its own at most {} MiB while it read, {} MiB while it \
         trained",
        started.elapsed().as_secs_f64(),
        reading >> 10,
        stepping >> 10
    );
    assert!(ended.success());
}

/// What a process has in memory that is no file's, in KiB.
fn of_process(status: &Path) -> u64 {
    let status = fs_err::read_to_string(status).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}
