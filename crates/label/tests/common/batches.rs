//! A scripted batch interface on loopback: OpenAI's files and batches, Anthropic's message batches.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use retort_label::{Collected, Error, LabelSettings, Progress, collect_in_batches};
use serde_json::{Value, json};

use super::{Job, grades, read_request};

pub(crate) const PAIRS: usize = 40;

pub(crate) async fn run_and(wait: bool, settings: &LabelSettings) -> Result<Collected, Error> {
    let never = std::future::pending();
    collect_in_batches(settings, false, wait, |_: Progress| (), never).await
}

pub(crate) async fn run(settings: &LabelSettings) -> Result<Collected, Error> {
    run_and(false, settings).await
}

/// Runs it until nothing is out any more, as a scheduler would.
pub(crate) async fn run_until_done(settings: &LabelSettings) -> Result<Collected, Error> {
    for _ in 0..10 {
        match run(settings).await {
            Err(Error::Pending { .. } | Error::Unlabelled { passing: true, .. }) => {}
            done => return done,
        }
    }
    panic!("it does not end");
}

pub(crate) fn job(server: &BatchServer, more: &str) -> (Job, LabelSettings) {
    let job = Job::new(PAIRS);
    let settings = toml::from_str(&job.toml(&server.url, more)).unwrap();
    (job, settings)
}

pub(crate) fn assert_pending(done: &Result<Collected, Error>, expected: usize) {
    assert!(
        matches!(done, Err(Error::Pending { questions }) if *questions == expected),
        "{done:?}"
    );
}

/// How often each document should have been asked about, where these were lost once.
pub(crate) fn asked_again(lost: impl Fn(usize) -> bool) -> BTreeMap<usize, usize> {
    (0..PAIRS)
        .map(|one| (one, 1 + usize::from(lost(one))))
        .collect()
}

/// What comes of a batch.
pub(crate) struct End {
    pub(crate) status: &'static str,
    pub(crate) output: File,
    pub(crate) errors: File,
}

/// A file of a batch that ended.
pub(crate) enum File {
    /// Its id is null.
    Null,
    /// Its id is "".
    Nameless,
    Lines(Vec<String>),
}

/// All is answered.
pub(crate) fn all_answered(requests: &[Value]) -> End {
    End {
        status: "completed",
        output: File::Lines(requests.iter().map(answered).collect()),
        errors: File::Null,
    }
}

pub(crate) fn completed(output: File) -> End {
    End {
        status: "completed",
        output,
        errors: File::Null,
    }
}

/// A line for each request.
pub(crate) fn lines(requests: &[Value], of_one: impl Fn(usize, &Value) -> String) -> File {
    let line = |request| of_one(document(request), request);
    File::Lines(requests.iter().map(line).collect())
}

/// The number of the document that a request is about.
pub(crate) fn document(request: &Value) -> usize {
    let body = match &request["body"] {
        Value::Null => &request["params"],
        body => body,
    };
    let text = body["messages"].as_array().unwrap().last().unwrap()["content"].as_str();
    let number = text.unwrap().split_once("document ").unwrap().1;
    number.split(' ').next().unwrap().parse().unwrap()
}

/// The line that a request should get.
pub(crate) fn answered(request: &Value) -> String {
    line(request, 200, &grades(document(request)), &Value::Null)
}

/// A line of OpenAI's.
pub(crate) fn line(request: &Value, status: u16, body: &Value, error: &Value) -> String {
    let response = json!({"status_code": status, "request_id": "r", "body": body});
    json!({"custom_id": request["custom_id"], "response": response, "error": error}).to_string()
}

/// Settings for Anthropic's dialect, which gives no log-probabilities.
pub(crate) const ANTHROPIC: &str = "dialect = 'anthropic'\nlog_probabilities = false\n";

/// What Anthropic's interface makes of a batch: one in five expires, all else is answered.
pub(crate) fn of_messages(number: usize, requests: &[Value]) -> End {
    completed(lines(requests, |document, one| {
        let message = json!({
            "model": "scripted-1",
            "content": [{"type": "text", "text": (document % 2).to_string()}],
            "usage": {"input_tokens": 40, "output_tokens": 1},
        });
        let result = match document % 5 {
            0 if number == 0 => json!({"type": "expired"}),
            _ => json!({"type": "succeeded", "message": message}),
        };
        json!({"custom_id": one["custom_id"], "result": result}).to_string()
    }))
}

/// Which requests go wrong on the way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    None,
    /// A file is taken, and then there is no reply.
    AfterUpload,
    /// The connection breaks before a batch is made.
    BreakBeforeCreation,
    /// A batch is made, and then there is no reply.
    AfterCreation,
    /// A batch is made, and the connection breaks.
    BreakAfterCreation,
    /// The download of a file answers with 502.
    Download,
}

type Script = dyn Fn(usize, &[Value]) -> End + Send + Sync;

/// The server.
pub(crate) struct BatchServer {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

struct Shared {
    script: Box<Script>,
    state: Mutex<State>,
}

struct State {
    files: BTreeMap<String, String>,
    batches: Vec<Made>,
    /// Whether batches have ended.
    ended: bool,
    /// What goes wrong next, once.
    fault: Fault,
    /// Paths that nothing is found at.
    lost: Vec<String>,
}

struct Made {
    id: String,
    metadata: Value,
    requests: Vec<Value>,
}

impl BatchServer {
    /// `script` gets the number of a batch and its requests.
    pub(crate) fn start(script: impl Fn(usize, &[Value]) -> End + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            script: Box::new(script),
            state: Mutex::new(State {
                files: BTreeMap::new(),
                batches: Vec::new(),
                ended: false,
                fault: Fault::None,
                lost: Vec::new(),
            }),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            // Ends with the test's process.
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || while shared.serve(&stream).is_some() {});
            }
        });
        Self { url, shared }
    }

    /// Batches end, those that are there and those to come.
    pub(crate) fn end(&self) {
        self.shared.state.lock().unwrap().ended = true;
    }

    /// The next request of its kind goes wrong.
    pub(crate) fn break_next(&self, fault: Fault) {
        self.shared.state.lock().unwrap().fault = fault;
    }

    /// Nothing is found at these paths until they are others.
    pub(crate) fn lose(&self, paths: &[&str]) {
        let paths = paths.iter().map(|&path| path.to_owned());
        self.shared.state.lock().unwrap().lost = paths.collect();
    }

    /// Waits until the fault was met.
    pub(crate) async fn broken(&self) {
        while self.shared.state.lock().unwrap().fault != Fault::None {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A batch of somebody else's.
    pub(crate) fn add_foreign(&self, requests: usize) {
        let mut state = self.shared.state.lock().unwrap();
        let id = format!("foreign_{}", state.batches.len());
        let request = |number| json!({"custom_id": format!("theirs-{number}")});
        state.batches.push(Made {
            id,
            metadata: json!({"retort": "theirs"}),
            requests: (0..requests).map(request).collect(),
        });
    }

    /// Batches that were made of our questions.
    pub(crate) fn count(&self) -> usize {
        let state = self.shared.state.lock().unwrap();
        let ours = |made: &&Made| !made.id.starts_with("foreign");
        state.batches.iter().filter(ours).count()
    }

    /// How often each document was asked about.
    pub(crate) fn asked(&self) -> BTreeMap<usize, usize> {
        let state = self.shared.state.lock().unwrap();
        let mut asked = BTreeMap::new();
        for made in &state.batches {
            for request in made
                .requests
                .iter()
                .filter(|one| one.as_object().unwrap().len() > 1)
            {
                *asked.entry(document(request)).or_insert(0) += 1;
            }
        }
        asked
    }
}

/// Batches on a page of the list: few, so that there are pages.
const PAGE: usize = 2;

impl Shared {
    fn serve(&self, mut stream: &TcpStream) -> Option<()> {
        let (headers, body) = read_request(stream)?;
        let mut words = headers.split_whitespace();
        let (method, target) = (words.next()?, words.next()?.strip_prefix("/v1/")?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut state = self.state.lock().unwrap();
        let met = match (method, path, state.fault) {
            ("POST", "files", Fault::AfterUpload)
            | (
                "POST",
                "batches" | "messages/batches",
                Fault::BreakBeforeCreation | Fault::AfterCreation | Fault::BreakAfterCreation,
            ) => true,
            ("GET", path, Fault::Download) => path.ends_with("/content"),
            _ => false,
        };
        let fault = if met {
            std::mem::replace(&mut state.fault, Fault::None)
        } else {
            Fault::None
        };
        let (status, reply) = match fault {
            Fault::Download => (502, "<html>".to_owned()),
            Fault::BreakBeforeCreation => (0, String::new()),
            _ if state.lost.iter().any(|lost| lost == path) => (404, "{}".to_owned()),
            _ => match (method, path.split('/').collect::<Vec<_>>().as_slice()) {
                ("POST", ["files"]) => (200, state.take_file(&body)),
                ("POST", ["batches"]) => (200, state.make(&serde_json::from_slice(&body).unwrap())),
                ("POST", ["messages", "batches"]) => (
                    200,
                    state.make_of_messages(&serde_json::from_slice(&body).unwrap()),
                ),
                ("GET", ["batches"] | ["messages", "batches"]) => (200, state.page(query)),
                ("GET", ["batches", id]) => (200, self.openai(&mut state, id)),
                ("GET", ["files", id, "content"]) => (200, state.files[*id].clone()),
                ("GET", ["messages", "batches", id]) => (200, state.message_batch(id).to_string()),
                ("GET", ["messages", "batches", id, "results"]) => (200, self.results(&state, id)),
                _ => (404, "{}".to_owned()),
            },
        };
        drop(state);
        match fault {
            Fault::AfterUpload | Fault::AfterCreation => {
                std::thread::sleep(Duration::from_mins(1));
                return None;
            }
            Fault::BreakBeforeCreation | Fault::BreakAfterCreation => {
                let _ = stream.shutdown(Shutdown::Both);
                return None;
            }
            Fault::None | Fault::Download => {}
        }
        let length = reply.len();
        let head = format!("HTTP/1.1 {status} Scripted\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(format!("{head}{reply}").as_bytes()).ok()
    }

    /// A batch of OpenAI's as it stands.
    fn openai(&self, state: &mut State, id: &str) -> String {
        let place = state.batches.iter().position(|made| made.id == id).unwrap();
        if !state.ended {
            return json!({"id": id, "status": "in_progress"}).to_string();
        }
        let End {
            status,
            output,
            errors,
        } = (self.script)(place, &state.batches[place].requests);
        let completed = match &output {
            File::Lines(lines) => lines.len(),
            _ => 0,
        };
        let mut file = |kind: &str, file: File| match file {
            File::Null => Value::Null,
            File::Nameless => "".into(),
            File::Lines(lines) => {
                let name = format!("{kind}-{place}");
                state.files.insert(name.clone(), lines.join("\n") + "\n");
                name.into()
            }
        };
        json!({
            "id": id,
            "status": status,
            "output_file_id": file("output", output),
            "error_file_id": file("error", errors),
            "request_counts": {"completed": completed},
            "errors": {"data": [{"code": "token_limit_exceeded", "message": "too much"}]},
        })
        .to_string()
    }

    /// The results of a message batch: the script's lines, in Anthropic's form.
    fn results(&self, state: &State, id: &str) -> String {
        let place = state.batches.iter().position(|made| made.id == id).unwrap();
        if id.starts_with("foreign") {
            return json!({"custom_id": "theirs-0", "result": {"type": "expired"}}).to_string();
        }
        let end = (self.script)(place, &state.batches[place].requests);
        let mut text = String::new();
        for file in [end.output, end.errors] {
            if let File::Lines(lines) = file {
                text += &(lines.join("\n") + "\n");
            }
        }
        text
    }
}

impl State {
    fn take_file(&mut self, form: &[u8]) -> String {
        let form = String::from_utf8(form.to_vec()).unwrap();
        let boundary = form.lines().next().unwrap();
        let parts: Vec<&str> = form.split(boundary).collect();
        assert!(
            parts[1].contains("name=\"purpose\"\r\n\r\nbatch\r\n"),
            "{form}"
        );
        assert!(parts[2].contains("filename="), "{form}");
        assert_eq!(parts[3], "--\r\n", "{form}");
        let content = parts[2].split_once("\r\n\r\n").unwrap().1;
        let id = format!("file-{}", self.files.len());
        let content = content.strip_suffix("\r\n").unwrap();
        self.files.insert(id.clone(), content.to_owned());
        json!({"id": id}).to_string()
    }

    fn make(&mut self, body: &Value) -> String {
        let file = &self.files[body["input_file_id"].as_str().unwrap()];
        let requests = file.lines().map(|line| serde_json::from_str(line).unwrap());
        let requests: Vec<Value> = requests.collect();
        for request in &requests {
            assert_eq!(request["url"], body["endpoint"]);
        }
        self.push(requests, body["metadata"].clone())
    }

    fn make_of_messages(&mut self, body: &Value) -> String {
        self.push(body["requests"].as_array().unwrap().clone(), Value::Null)
    }

    fn push(&mut self, requests: Vec<Value>, metadata: Value) -> String {
        let id = format!("batch_{}", self.batches.len());
        self.batches.push(Made {
            id: id.clone(),
            metadata,
            requests,
        });
        json!({"id": id}).to_string()
    }

    /// The newest first.
    fn page(&self, query: &str) -> String {
        let after = ["&after=", "&after_id="];
        let after = after
            .iter()
            .find_map(|name| Some(query.split_once(name)?.1));
        let newest: Vec<&Made> = self.batches.iter().rev().collect();
        let from = after.map_or(0, |after| {
            newest.iter().position(|made| made.id == after).unwrap() + 1
        });
        let data: Vec<Value> = newest[from..]
            .iter()
            .take(PAGE)
            .map(|made| self.listed(made))
            .collect();
        json!({"data": data, "has_more": newest.len() > from + PAGE}).to_string()
    }

    /// A batch with what both interfaces say of it in a list, but for the time: OpenAI's is a
    /// number.
    fn listed(&self, made: &Made) -> Value {
        let mut listed = self.message_batch(&made.id);
        listed["metadata"] = made.metadata.clone();
        listed
    }

    fn message_batch(&self, id: &str) -> Value {
        let made = self.batches.iter().find(|made| made.id == id).unwrap();
        json!({
            "id": id,
            "created_at": "2100-01-01T00:00:00Z",
            "processing_status": if self.ended { "ended" } else { "in_progress" },
            "request_counts": {"processing": made.requests.len()},
        })
    }
}
