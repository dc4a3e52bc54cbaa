//! A loopback server that plays the Hub.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// No test asks more often; a client gone wild meets a closed door.
const MOST_REQUESTS: usize = 64;

pub(crate) fn model_files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", br#"{"hidden_size": 4}"#.to_vec()),
        ("tokenizer.json", br#"{"version": "1.0"}"#.to_vec()),
        ("tokenizer_config.json", b"{}".to_vec()),
        ("special_tokens_map.json", b"{}".to_vec()),
        ("vocab.txt", b"[PAD]\nword\n".to_vec()),
        (
            "model.safetensors",
            (0..200_000_u32).flat_map(u32::to_le_bytes).collect(),
        ),
    ]
}

#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
}

pub(crate) struct Reply {
    status: u16,
    headers: String,
    length: usize,
    body: Vec<u8>,
}

impl Reply {
    pub(crate) fn ok(body: &[u8]) -> Self {
        Self {
            status: 200,
            headers: String::new(),
            length: body.len(),
            body: body.to_vec(),
        }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            headers: String::new(),
            length: 0,
            body: Vec::new(),
        }
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self {
            headers: format!("location: {to}\r\n"),
            ..Self::status(302)
        }
    }

    /// Announces more than it sends.
    pub(crate) fn cut_short() -> Self {
        Self {
            length: 100,
            ..Self::ok(b"{")
        }
    }
}

pub(crate) struct Server {
    address: SocketAddr,
    url: String,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(reply: impl Fn(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || {
                for stream in listener.incoming().take(MOST_REQUESTS) {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    // A client that went away is its own test's business.
                    let _ = stream.and_then(|stream| answer(stream, &seen, &reply));
                }
            }
        });
        let url = format!("http://{address}");
        Self {
            address,
            url,
            seen,
            stop,
            thread: Some(thread),
        }
    }

    /// What a Hub with one model at one revision says.
    pub(crate) fn hub(
        name: &str,
        revision: &str,
        files: Vec<(&'static str, Vec<u8>)>,
    ) -> impl Fn(&Request) -> Reply + Send + 'static {
        let prefix = format!("/{name}/resolve/{revision}/");
        move |request| {
            let file = request.path.strip_prefix(&prefix);
            match files.iter().find(|(name, _)| Some(*name) == file) {
                Some((_, bytes)) => Reply::ok(bytes),
                None => Reply::status(404),
            }
        }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread out of its wait for a connection.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Request>>,
    reply: &impl Fn(&Request) -> Reply,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = Request {
        path,
        authorization: None,
    };
    for line in lines {
        let line = line?;
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                request.authorization = Some(value.to_owned());
            }
            None => break,
            _ => {}
        }
    }
    let Reply {
        status,
        headers,
        length,
        body,
    } = reply(&request);
    seen.lock().unwrap().push(request);
    let head = format!(
        "HTTP/1.1 {status} Test\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)
}
