//! A ledger of many judgements: inserting, finding out what is left to ask, sealing; and how near
//! the collector comes to a rate limit.
//!
//!   cargo bench -p retort-label --bench ledger            a million rows, a minute of requests
//!   cargo bench -p retort-label --bench ledger -- 10000   fewer rows, a tenth of a minute

#![allow(clippy::unwrap_used, reason = "a benchmark ends when something fails")]
#![allow(clippy::disallowed_methods, reason = "a panic names the line")]
#![allow(clippy::print_stdout, reason = "its result is what it prints")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use common::{Job, Server, graded};
use retort_label::ledger::{Batch, Entry, Key, Ledger, Record};
use serde_json::json;

fn main() {
    let rows = std::env::args()
        .nth(1)
        .and_then(|rows| rows.parse().ok())
        .unwrap_or(1_000_000);
    of_rows(rows);
    of_rate(if rows < 1_000_000 { 600 } else { 6000 });
}

fn key(row: usize) -> Key {
    Key::new(
        &[7; 32],
        0,
        &format!("query {}", row / 20),
        &[&format!("document {row}")],
    )
}

fn of_rows(rows: usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    println!("{rows} judgements, with a reply of 2 kB each");
    let mut ledger = Ledger::open(&path).unwrap();
    let recipe = ledger
        .recipe(&[7; 32], &json!({"kind": "graded", "grades": 4}))
        .unwrap();
    let reply = common::completion(
        &[("3", 0.5), ("2", 0.3), ("1", 0.15), ("0", 0.05)],
        (300, 1),
    );
    let reply = format!("{reply}{}", " ".repeat(1500));
    let started = Instant::now();
    for first in (0..rows).step_by(64) {
        // As many as a collector with 64 requests in flight commits together.
        let records: Vec<Record> = (first..(first + 64).min(rows))
            .map(|row| {
                Record::Batch(Batch {
                    recipe,
                    model: Some("scripted-1".into()),
                    entries: vec![Entry {
                        key: key(row),
                        query_id: format!("q{}", row / 20),
                        document_ids: vec![format!("d{row}")],
                        sample: 0,
                        text: "sha256:0123456789abcdef".into(),
                        ended: Ok(json!({"probabilities": [0.05, 0.15, 0.3, 0.5], "mass": 1.0})),
                        at: "2026-11-21T00:00:00Z".into(),
                    }],
                    reply: Some(reply.clone()),
                    request_id: None,
                })
            })
            .collect();
        ledger.commit(&records).unwrap();
    }
    say("inserted, 64 a commit", rows, started);
    ledger.close().unwrap();

    let ledger = Ledger::open(&path).unwrap();
    let started = Instant::now();
    let known = (0..rows)
        .filter(|row| ledger.find(&key(*row)).unwrap().is_some())
        .count();
    assert_eq!(known, rows);
    say("looked up, as a job that goes on does", rows, started);
    ledger.close().unwrap();

    let started = Instant::now();
    let out = folder.path().join("set");
    let sealed = retort_label::seal(&path, None, None, &out).unwrap();
    assert_eq!(sealed.rows, rows);
    say("sealed", rows, started);
    println!(
        "  the ledger: {} MB",
        path.metadata().unwrap().len() / 1_000_000
    );
}

fn of_rate(limit: u32) {
    println!("a limit of {limit} requests a minute, one minute's worth of them");
    let pairs = limit as usize;
    let job = Job::new(pairs);
    let server = Server::start(|seen| {
        std::thread::sleep(std::time::Duration::from_millis(200));
        graded(seen.document)
    });
    let more = format!("concurrency = 256\nrequests_per_minute = {limit}\n");
    let settings = job.settings(&server, &more);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let started = Instant::now();
    let collecting = retort_label::collect(&settings, false, |_| (), std::future::pending());
    runtime.block_on(collecting).unwrap();
    let share = pairs as f64 / started.elapsed().as_secs_f64() * 60.0 / f64::from(limit);
    say("labelled", pairs, started);
    println!("  {:.1} % of the limit", 100.0 * share);
}

fn say(what: &str, rows: usize, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .map_or("unknown", str::trim);
    println!(
        "  {what}: {seconds:.1} s, {:.0} a second, peak memory {peak}",
        rows as f64 / seconds
    );
}
