//! A scripted teacher over real sockets, and a job for it.

#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod batches;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// What the server does with a request.
pub(crate) enum Act {
    /// A whole reply: status, further headers, body.
    Reply(u16, String, String),
    /// These bytes as they are, then the end of the connection.
    Raw(Vec<u8>),
    /// A reply that is this many bytes long.
    Gigantic(usize),
    /// Nothing, for so long.
    Stall(Duration),
    /// The connection is reset.
    Reset,
}

/// One request as the server saw it.
pub(crate) struct Seen {
    /// How many requests came before, of any pair.
    pub(crate) number: usize,
    /// How many requests about this pair came before.
    pub(crate) attempt: usize,
    /// The number in the document's text; the first document's, where there are several. 0 in
    /// preflights, whose texts have none.
    pub(crate) document: usize,
    /// With the line that names the path.
    pub(crate) headers: String,
    pub(crate) body: Value,
}

/// A teacher that acts by a script and counts.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) requests: Arc<AtomicUsize>,
    pub(crate) most_at_once: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) fn start(script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let most_at_once = Arc::new(AtomicUsize::new(0));
        let shared = Arc::new(Shared {
            script: Box::new(script),
            attempts: Mutex::new(HashMap::new()),
            at_once: AtomicUsize::new(0),
            requests: Arc::clone(&requests),
            most_at_once: Arc::clone(&most_at_once),
        });
        std::thread::spawn(move || {
            // Ends with the test's process.
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || while shared.serve(&stream).is_some() {});
            }
        });
        Self {
            url,
            requests,
            most_at_once,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

struct Shared {
    script: Box<dyn Fn(&Seen) -> Act + Send + Sync>,
    attempts: Mutex<HashMap<String, usize>>,
    at_once: AtomicUsize,
    requests: Arc<AtomicUsize>,
    most_at_once: Arc<AtomicUsize>,
}

impl Shared {
    /// Reads one request and acts on it; `None` when the connection is over.
    fn serve(&self, stream: &TcpStream) -> Option<()> {
        let (headers, body) = read_request(stream)?;
        let body: Value = serde_json::from_slice(&body).ok()?;
        let question = match body["messages"].as_array() {
            Some(messages) => messages.last()?["content"].as_str()?.to_owned(),
            None => body.to_string(),
        };
        let document = documents(&question).first().copied().unwrap_or_default();
        let attempt = {
            let mut attempts = self.attempts.lock().unwrap();
            let count = attempts.entry(question).or_insert(0);
            *count += 1;
            *count - 1
        };
        let seen = Seen {
            number: self.requests.fetch_add(1, Ordering::SeqCst),
            attempt,
            document,
            headers,
            body,
        };
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(now, Ordering::SeqCst);
        let act = (self.script)(&seen);
        let goes_on = carry_out(act, stream);
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        goes_on
    }
}

/// The first line and the headers of a request, and its body; `None` when the connection is over.
fn read_request(stream: &TcpStream) -> Option<(String, Vec<u8>)> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    let mut headers = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line == "\r\n" {
            break;
        }
        headers += &line;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((headers, body))
}

fn carry_out(act: Act, mut stream: &TcpStream) -> Option<()> {
    match act {
        Act::Reply(status, headers, body) => {
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status} Scripted\r\ncontent-type: application/json\r\n\
                 content-length: {length}\r\n{headers}\r\n"
            );
            stream.write_all(format!("{head}{body}").as_bytes()).ok()
        }
        Act::Raw(bytes) => {
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Both);
            None
        }
        Act::Gigantic(bytes) => {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n");
            stream.write_all(head.as_bytes()).ok()?;
            let block = vec![b' '; 1 << 16];
            for _ in 0..bytes.div_ceil(block.len()) {
                stream.write_all(&block).ok()?;
            }
            None
        }
        Act::Stall(time) => {
            std::thread::sleep(time);
            None
        }
        Act::Reset => {
            // Closing with unread input makes the kernel send a reset; a lingering time of zero
            // does too, but std has no way to set it.
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-le");
            let _ = stream.shutdown(std::net::Shutdown::Both);
            None
        }
    }
}

/// The texts that a reranker is asked to score.
pub(crate) fn texts(body: &Value) -> Option<&Vec<Value>> {
    body["texts"].as_array().or(body["documents"].as_array())
}

/// The numbers of the documents that a text shows, in their order.
pub(crate) fn documents(text: &str) -> Vec<usize> {
    let after = text.split("document ").skip(1);
    let number = |after: &str| {
        after
            .split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    };
    after.filter_map(number).collect()
}

/// A chat completion whose alternatives have these probabilities.
pub(crate) fn completion(alternatives: &[(&str, f64)], tokens: (u64, u64)) -> Value {
    let alternatives: Vec<_> = alternatives
        .iter()
        .map(|(token, p)| json!({"token": token, "logprob": p.ln()}))
        .collect();
    json!({
        "model": "scripted-1",
        "choices": [{
            "finish_reason": "length",
            "message": {"content": "3"},
            "logprobs": {"content": [{"top_logprobs": alternatives}]},
        }],
        "usage": {"prompt_tokens": tokens.0, "completion_tokens": tokens.1},
    })
}

/// The reply that a document should get.
pub(crate) fn graded(document: usize) -> Act {
    Act::Reply(200, String::new(), grades(document).to_string())
}

/// What it holds.
pub(crate) fn grades(document: usize) -> Value {
    let p = 0.2 + 0.7 * (document % 97) as f64 / 97.0;
    completion(&[("1", p), ("0", 1.0 - p)], (40, 1))
}

/// A collection of `pairs` documents, twenty a query, and a job about it.
pub(crate) struct Job {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) pairs: usize,
}

impl Job {
    pub(crate) fn new(pairs: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lines = |name: &str, lines: Vec<Value>| {
            let text = lines
                .iter()
                .fold(String::new(), |text, line| text + &line.to_string() + "\n");
            std::fs::write(folder.path().join(name), text).unwrap();
        };
        let documents = 0..pairs;
        lines(
            "corpus.jsonl",
            documents
                .clone()
                .map(|d| json!({"_id": format!("d{d}"), "title": "", "text": format!("document {d} of some length")}))
                .collect(),
        );
        lines(
            "queries.jsonl",
            (0..pairs.div_ceil(20))
                .map(|q| json!({"_id": format!("q{q}"), "text": format!("query {q}")}))
                .collect(),
        );
        lines(
            "candidates.jsonl",
            documents
                .map(|d| json!({"query_id": format!("q{}", d / 20), "document_id": format!("d{d}"), "source": "bm25"}))
                .collect(),
        );
        let prompt =
            "answers = ['0', '1']\nsystem = 'Grade.'\nuser = '{{ query }}: {{ document }}'";
        std::fs::write(folder.path().join("prompt.toml"), prompt).unwrap();
        Self { folder, pairs }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.path("ledger.sqlite")
    }

    /// The job's settings, without a preflight; `more` is TOML for `[teacher]` and whatever follows
    /// it.
    pub(crate) fn settings(&self, server: &Server, more: &str) -> retort_label::LabelSettings {
        toml::from_str(&self.toml(&server.url, more)).unwrap()
    }

    pub(crate) fn toml(&self, url: &str, more: &str) -> String {
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        format!(
            "collection = {}\ncandidates = {}\nledger = {}\nprompt = {}\npreflight = false\n\
             [teacher]\nname = 'scripted'\nmodel = 'scripted'\nendpoints = [{url:?}]\n{more}",
            quoted(self.folder.path()),
            quoted(&self.path("candidates.jsonl")),
            quoted(&self.ledger()),
            quoted(&self.path("prompt.toml")),
        )
    }
}

/// Every row of a ledger: document and how it ended.
pub(crate) fn rows(ledger: &Path) -> Vec<(usize, String)> {
    let db = rusqlite::Connection::open(ledger).unwrap();
    let mut select = db
        .prepare("SELECT document_ids, outcome FROM judgement ORDER BY key")
        .unwrap();
    let rows = select
        .query_map([], |row| {
            let ids: String = row.get(0)?;
            let number = ids.trim_matches(|c: char| !c.is_ascii_digit());
            Ok((number.parse().unwrap(), row.get(1)?))
        })
        .unwrap();
    rows.map(Result::unwrap).collect()
}

/// Every row of every table of a ledger, as text.
pub(crate) fn dump(ledger: &Path) -> Vec<String> {
    let db = rusqlite::Connection::open(ledger).unwrap();
    let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name";
    let mut select = db.prepare(tables).unwrap();
    let tables = select.query_map([], |row| row.get(0)).unwrap();
    let mut rows = Vec::new();
    for table in tables {
        let table: String = table.unwrap();
        let mut select = db.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = select.column_count();
        let of_table = select
            .query_map([], |row| {
                let values =
                    (0..columns).map(|column| row.get::<_, rusqlite::types::Value>(column));
                let values: Vec<_> = values.collect::<rusqlite::Result<_>>()?;
                Ok(format!("{table}: {values:?}"))
            })
            .unwrap();
        rows.extend(of_table.map(Result::unwrap));
    }
    rows.sort();
    rows
}
