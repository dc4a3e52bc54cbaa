//! The binary, a small training job for it, and a scripted teacher.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use retort_data::candidates::{self, Candidate};
use retort_data::collection::Collection;
use retort_data::label_set::{self, Label, LabelSet};

/// The repository's root, where the demo's data and configs are.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The binary, started in the repository's root.
pub(crate) fn retort() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_retort"));
    command
        .current_dir(root())
        .env_remove("RETORT_LOG")
        .stdin(Stdio::null());
    command
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Panics unless the command ended well.
pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", stderr(&output));
    output
}

/// Panics unless the command failed with that exit code; returns what it said.
pub(crate) fn fail(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{said}");
    assert!(said.contains("error: "), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// The demo's job on a part of its data, with the golden files' two-layer BERT as the base model:
/// some twenty steps, a few seconds.
pub(crate) struct SmallJob {
    pub(crate) folder: tempfile::TempDir,
}

impl SmallJob {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shop = root().join("training-data/shop");
        let mut labels = label_set::read(&shop.join("labels/train")).unwrap();
        labels.labels.truncate(480);
        seal(&folder.path().join("labels"), labels.clone());
        for (from, to, lines) in [
            ("candidates/dev.jsonl", "dev.jsonl", 100),
            ("candidates/test.jsonl", "test.jsonl", 120),
        ] {
            let text = std::fs::read_to_string(shop.join(from)).unwrap();
            let part: String = text.split_inclusive('\n').take(lines).collect();
            std::fs::write(folder.path().join(to), part).unwrap();
        }
        let test = folder.path().join("test.jsonl");
        let judged = LabelSet {
            labels: made_up_labels(&shop, &test),
            ..labels
        };
        seal(&folder.path().join("test-labels"), judged);
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `retort train` on this job, into a folder of it.
    pub(crate) fn train(&self, out: &str) -> Command {
        let mut command = retort();
        command.args(["train", "--device", "cpu", "--config", "configs/demo.toml"]);
        command.arg("--out").arg(self.path(out));
        for setting in self.settings() {
            command.arg("--set").arg(setting);
        }
        command
    }

    /// What differs from the demo's settings.
    pub(crate) fn settings(&self) -> Vec<String> {
        let files = [
            ("data.labels", "labels"),
            ("evaluation.candidates", "dev.jsonl"),
            ("verdict.candidates", "test.jsonl"),
            ("verdict.teacher_labels", "test-labels"),
        ];
        let files = files.map(|(key, file)| format!("{key}={}", self.path(file).display()));
        let others = [
            "model.init=tests/golden/bert",
            "model.dropout=0.1",
            "data.max_tokens=64",
            "optimizer.learning_rate=1e-3",
            "evaluation.every_steps=5",
            "schedule.epochs=2",
        ];
        let others = others.map(str::to_owned);
        files.into_iter().chain(others).collect()
    }
}

/// What a teacher might say of candidates: it likes short documents.
fn made_up_labels(collection: &Path, candidates: &Path) -> Vec<Label> {
    let collection = Collection::read(collection).unwrap();
    let label = |candidate: Candidate| {
        let query = collection.query(&candidate.query_id, candidates).unwrap();
        let document = collection
            .document(&candidate.document_id, candidates)
            .unwrap();
        let p = 1.0 / (1.0 + document.full_text().len() as f64 / 100.0);
        Label {
            grade: 3.0 * p,
            probabilities: vec![1.0 - p, 0.0, 0.0, p],
            mass: 1.0,
            samples: 1,
            text: label_set::text_digest(&query, &document),
            at: "2026-11-21T00:00:00Z".to_owned(),
            query_id: candidate.query_id,
            document_id: candidate.document_id,
        }
    };
    let candidates = candidates::read(candidates).unwrap();
    candidates.into_iter().map(label).collect()
}

/// Writes a label set.
pub(crate) fn seal(folder: &Path, set: LabelSet) {
    label_set::write(folder, set.manifest, set.labels.into_iter().map(Ok)).unwrap();
}

/// What the scripted teacher answers: a status, headers and a body.
pub(crate) type Reply = (u16, &'static str, String);

/// A server on loopback that answers each request by a script, and counts.
pub(crate) struct Teacher {
    pub(crate) url: String,
    pub(crate) requests: Arc<Mutex<Vec<serde_json::Value>>>,
    /// The head of the last request.
    pub(crate) head: Arc<Mutex<String>>,
}

impl Teacher {
    /// `script` gets the number of the request, from 0, and its body.
    pub(crate) fn start(
        script: impl Fn(usize, &serde_json::Value) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let last_head = Arc::new(Mutex::new(String::new()));
        let (seen, script) = (Arc::clone(&requests), Arc::new(script));
        let head = Arc::clone(&last_head);
        std::thread::spawn(move || {
            // Ends with the test's process.
            for stream in listener.incoming().flatten() {
                let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
                let head = Arc::clone(&head);
                let answer = move || answer(&stream, &seen, &head, &*script);
                std::thread::spawn(move || while answer().is_some() {});
            }
        });
        Self {
            url,
            requests,
            head: last_head,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

/// Reads one request and answers it; `None` when the client hung up.
fn answer(
    stream: &TcpStream,
    seen: &Mutex<Vec<serde_json::Value>>,
    last_head: &Mutex<String>,
    script: &(impl Fn(usize, &serde_json::Value) -> Reply + ?Sized),
) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        head += &line;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line == "\r\n" {
            break;
        }
    }
    *last_head.lock().unwrap() = head;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body: serde_json::Value = serde_json::from_slice(&body).ok()?;
    let number = {
        let mut seen = seen.lock().unwrap();
        seen.push(body.clone());
        seen.len() - 1
    };
    let (status, headers, reply) = script(number, &body);
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {status} Scripted\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n{headers}\r\n{reply}",
        reply.len()
    )
    .ok()
}

/// A chat completion whose alternatives have these probabilities.
pub(crate) fn completion(alternatives: &[(&str, f64)]) -> String {
    let alternatives: Vec<_> = alternatives
        .iter()
        .map(|(token, p)| serde_json::json!({"token": token, "logprob": p.ln()}))
        .collect();
    serde_json::json!({
        "choices": [{"logprobs": {"content": [{"top_logprobs": alternatives}]}}],
    })
    .to_string()
}
