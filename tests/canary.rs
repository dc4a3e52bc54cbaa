//! A teacher's key is sent to the teacher and shows up nowhere else, whatever the teacher does with
//! it.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Reply, Teacher, completion, retort, root};
use retort_data::label_set;
use serde_json::{Value, json};

/// It has no part that anything else would say.
const KEY: &str = "sk-7f3kQz91-LmWx84TbVnRc20Yp";

/// All that could be shown of the key.
fn traces() -> [&'static str; 3] {
    [KEY, &KEY[..8], &KEY[KEY.len() - 8..]]
}

fn assert_clean(what: &str, bytes: &[u8]) {
    for trace in traces() {
        let found = bytes
            .windows(trace.len())
            .position(|part| part == trace.as_bytes());
        if let Some(place) = found {
            let around = &bytes[place.saturating_sub(200)..bytes.len().min(place + 200)];
            panic!("{what} shows the key: {}", String::from_utf8_lossy(around));
        }
    }
}

/// The headers of a server that says the key wherever it can.
fn headers(elsewhere: &str) -> &'static str {
    let headers = format!(
        "x-request-id: {KEY}\r\nrequest-id: {KEY}\r\nretry-after: {KEY}\r\nset-cookie: key={KEY}\r\n\
         location: http://{elsewhere}/?key={KEY}\r\nwww-authenticate: Bearer {KEY}\r\n"
    );
    Box::leak(headers.into_boxed_str())
}

/// A good answer with the key in every corner of it.
fn good() -> String {
    let answer = completion(&[("3", 0.6), ("0", 0.4), (KEY, 1e-9)]);
    let mut answer: Value = serde_json::from_str(&answer).unwrap();
    answer["model"] = KEY.into();
    answer["id"] = json!({KEY: [KEY]});
    // As some servers spell a text.
    answer
        .to_string()
        .replace("\"model\":\"sk-", "\"model\":\"\\u0073k\\u002d")
}

/// What is no answer, in many ways.
fn bad(number: usize, headers: &'static str) -> Reply {
    let masked = format!("{}****{}", &KEY[..9], &KEY[KEY.len() - 9..]);
    let said = |body: Value| body.to_string();
    let (status, body) = match number % 9 {
        0 => (500, format!("no, not with {KEY}")),
        1 => (200, format!("<html>{KEY} {masked}</html>")),
        2 => (
            200,
            said(json!({"choices": [{"message": {"refusal": KEY}}]})),
        ),
        3 => (200, completion(&[(KEY, 0.9), ("3", 0.1)])),
        4 => (
            400,
            said(json!({"error": {"code": "content_filter", "message": KEY}})),
        ),
        5 => (429, said(json!({"error": {"message": masked}}))),
        6 => (
            200,
            said(json!({"choices": [{"message": {"content": KEY}, "logprobs": null}]})),
        ),
        7 => (
            400,
            said(json!({"error": {"code": "context_length_exceeded", "message": KEY}})),
        ),
        _ => (200, good()),
    };
    (status, headers, body)
}

/// A job on a few pairs, with a key from one of the three places, and all logs there are.
struct Canary {
    folder: tempfile::TempDir,
    place: &'static str,
    /// Where nothing is to go: a proxy, and what redirects point to.
    elsewhere: TcpListener,
}

impl Canary {
    fn new(place: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let all = std::fs::read_to_string(root().join("training-data/shop/candidates/dev.jsonl"));
        let part: String = all.unwrap().split_inclusive('\n').take(18).collect();
        std::fs::create_dir(folder.path().join("work")).unwrap();
        std::fs::write(folder.path().join("work/candidates.jsonl"), part).unwrap();
        std::fs::write(folder.path().join("key"), format!("{KEY}\n")).unwrap();
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        elsewhere.set_nonblocking(true).unwrap();
        Self {
            folder,
            place,
            elsewhere,
        }
    }

    fn elsewhere(&self) -> String {
        self.elsewhere.local_addr().unwrap().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn loud(&self) -> Command {
        let mut command = retort();
        let proxy = format!("http://{}", self.elsewhere());
        command.arg("--verbose").envs([
            ("HTTP_PROXY", &*proxy),
            ("http_proxy", &proxy),
            ("ALL_PROXY", &proxy),
            ("RUST_LOG", "trace"),
            ("RETORT_LOG", "trace"),
            ("RUST_BACKTRACE", "full"),
        ]);
        command
    }

    fn about(&self, command: &str, url: &str) -> Command {
        let mut retort = self.loud();
        retort.args([command, "--config", "configs/label.toml"]);
        let file = self.path("key").display().to_string();
        let key = match self.place {
            "env" => "teacher.api_key.env=CANARY".to_owned(),
            "file" => format!("teacher.api_key.file={file}"),
            _ => format!("teacher.api_key.command=['cat', {file:?}]"),
        };
        if self.place == "env" {
            retort.env("CANARY", KEY);
        }
        for setting in [
            key,
            format!(
                "candidates={}",
                self.path("work/candidates.jsonl").display()
            ),
            format!("ledger={}", self.path("work/ledger.sqlite").display()),
            format!("teacher.endpoints=[{url:?}]"),
            "teacher.retries=1".to_owned(),
            "teacher.on_model_change=warn".to_owned(),
        ] {
            retort.arg("--set").arg(setting);
        }
        retort
    }

    /// Looks at every byte that was written, and into what is compressed.
    fn look_at_files(&self) {
        for file in files(&self.path("work")) {
            assert_clean(&file.display().to_string(), &std::fs::read(&file).unwrap());
        }
        let ledger = self.path("work/ledger.sqlite");
        let db = rusqlite::Connection::open(ledger).unwrap();
        let mut replies = db.prepare("SELECT zstd FROM reply").unwrap();
        let replies = replies
            .query_map([], |row| row.get::<_, Vec<u8>>(0))
            .unwrap();
        for reply in replies {
            let reply = zstd::decode_all(&*reply.unwrap()).unwrap();
            assert_clean("a reply in the ledger", &reply);
        }
    }
}

/// Runs a command to its end and looks at all it said.
fn heard(what: &str, command: &mut Command) -> Option<i32> {
    let output = command.output().unwrap();
    assert_clean(&format!("{what}, stdout"), &output.stdout);
    assert_clean(&format!("{what}, stderr"), &output.stderr);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{what}: {said}");
    output.status.code()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_key_shows_up_nowhere_wherever_it_comes_from() {
    for place in ["env", "file", "command"] {
        let canary = Canary::new(place);
        let headers = headers(&canary.elsewhere());
        let teacher = Teacher::start(move |number, _| bad(number, headers));
        let dry = heard(
            "a dry run",
            canary.about("label", &teacher.url).arg("--dry-run"),
        );
        assert_eq!((dry, teacher.count()), (Some(0), 0));
        // Preflights meet a few of its ways, the job itself all of them.
        for _ in 0..3 {
            let code = heard("doctor", &mut canary.about("doctor", &teacher.url));
            assert!(matches!(code, Some(75 | 78)), "{code:?}");
        }
        let mut label = canary.about("label", &teacher.url);
        let code = heard("a job", label.args(["--again", "--set", "preflight=false"]));
        assert!(matches!(code, Some(1 | 75)), "{code:?}");
        assert!(
            teacher.head.lock().unwrap().contains(KEY),
            "the key was sent"
        );
        assert!(teacher.count() > 18);

        for status in [301, 302, 307, 400, 401, 402, 403, 404] {
            let teacher = Teacher::start(move |_, _| {
                let body = json!({"error": {"message": format!("{KEY} is no key")}});
                (status, headers, body.to_string())
            });
            for command in ["label", "doctor"] {
                let code = heard("a refusal", &mut canary.about(command, &teacher.url));
                assert!(matches!(code, Some(69 | 77)), "{code:?}");
            }
        }
        let teacher = Teacher::start(move |_, _| (200, headers, good()));
        let mut label = canary.about("label", &teacher.url);
        let code = heard(
            "a good job",
            label.args(["--again", "--set", "preflight=false"]),
        );
        assert_eq!(code, Some(0));
        let ledger = canary.path("work/ledger.sqlite");
        for (what, more) in [
            ("status", vec!["--json"]),
            ("status", vec![]),
            ("seal", vec!["--out"]),
        ] {
            let mut labels = canary.loud();
            labels.args(["labels", what]).arg(&ledger).args(&more);
            if what == "seal" {
                labels.arg(canary.path("work/set"));
            }
            assert_eq!(heard(what, &mut labels), Some(0));
        }
        let set = label_set::read(&canary.path("work/set")).unwrap();
        assert_eq!(set.labels.len(), 18);
        assert_clean("the label set", format!("{set:?}").as_bytes());
        let visitor = canary.elsewhere.accept();
        assert!(visitor.is_err(), "a redirect was followed or a proxy used");
        canary.look_at_files();
    }
}

#[test]
fn a_killed_job_leaves_no_key_in_its_write_ahead_log() {
    let canary = Canary::new("env");
    let headers = headers(&canary.elsewhere());
    let teacher = Teacher::start(move |number, _| {
        std::thread::sleep(Duration::from_millis(30));
        match number % 3 {
            0 => bad(2, headers),
            _ => (200, headers, good()),
        }
    });
    let mut label = canary.about("label", &teacher.url);
    label.args(["--set", "preflight=false", "--set", "teacher.concurrency=1"]);
    let mut child = label
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while teacher.count() < 8 {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let log = canary.path("work/ledger.sqlite-wal").metadata().unwrap();
    assert!(log.len() > 0, "nothing was in flight");
    canary.look_at_files();
}
