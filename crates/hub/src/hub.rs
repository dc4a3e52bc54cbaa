//! The Hugging Face Hub, or a mirror of it.

use std::io::{self, Read};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use fs_err as fs;
use reqwest::blocking::{Client, Response};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{StatusCode, Url};

use crate::Error;
use crate::save::{FILES, JSON_FILES, save};

/// A closed network may swallow packets: this long and the next source is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Without an answer, or without a further byte of one.
const SILENCE_TIMEOUT: Duration = Duration::from_mins(1);
/// For one file.
const TOTAL_MINUTES: u64 = 60;
/// Waits before the second and the third try.
const RETRY_AFTER: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];

/// A client of one endpoint.
pub(crate) struct Hub {
    client: Client,
    endpoint: String,
}

impl Hub {
    /// A client of `endpoint` that shows `token` to it and to nobody else.
    pub(crate) fn new(endpoint: &str, token: Option<&str>) -> Result<Self, Error> {
        let bad_endpoint = || Error::BadEndpoint {
            endpoint: endpoint.to_owned(),
        };
        let url = Url::parse(endpoint).map_err(|_| bad_endpoint())?;
        if !["http", "https"].contains(&url.scheme()) {
            return Err(bad_endpoint());
        }
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            let mut bearer =
                HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| Error::BadToken)?;
            bearer.set_sensitive(true);
            // The Hub redirects to a content network for large files. reqwest follows, and leaves
            // Authorization out as soon as scheme, host or port differ.
            headers.insert(AUTHORIZATION, bearer);
        }
        let mut builder = Client::builder()
            .user_agent(concat!("retort/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .connect_timeout(CONNECT_TIMEOUT)
            // For each wait, not for the whole: that is how reqwest's blocking client has it.
            .timeout(SILENCE_TIMEOUT);
        if matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]")) {
            // No proxy knows the way to a mirror on this machine.
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(Error::Client)?;
        Ok(Self {
            client,
            endpoint: endpoint.to_owned(),
        })
    }

    /// Puts the model's files into `folder`.
    pub(crate) fn fetch(&self, name: &str, revision: &str, folder: &Path) -> Result<(), Error> {
        for (file, required) in FILES {
            let url = format!("{}/{name}/resolve/{revision}/{file}", self.endpoint);
            let path = folder.join(file);
            match self.fetch_file(file, &url, &path) {
                Err(Error::NotThere { .. }) if !required => continue,
                fetched => fetched?,
            }
            if JSON_FILES.contains(&file) {
                check_json(file, &path)?;
            }
        }
        Ok(())
    }

    fn fetch_file(&self, file: &'static str, url: &str, path: &Path) -> Result<(), Error> {
        let mut retries = RETRY_AFTER.iter();
        loop {
            let error = match self.try_file(file, url, path) {
                Err(error) if is_transient(&error) => error,
                done => return done,
            };
            let Some(wait) = retries.next() else {
                return Err(error);
            };
            tracing::warn!(%error, wait_ms = wait.as_millis(), "trying again");
            thread::sleep(*wait);
        }
    }

    fn try_file(&self, file: &'static str, url: &str, path: &Path) -> Result<(), Error> {
        let response = self
            .client
            .get(url)
            .send()
            .map_err(|source| Error::NoAnswer { file, source })?;
        let url = || url.to_owned();
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(Error::NotThere { file, url: url() }),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                return Err(Error::Refused {
                    url: url(),
                    status: status.as_u16(),
                });
            }
            status => {
                return Err(Error::Status {
                    url: url(),
                    status: status.as_u16(),
                });
            }
        }
        let megabytes = response.content_length().map(|bytes| bytes as f64 / 1e6);
        tracing::info!(file, megabytes, "downloading");
        let deadline = Instant::now() + Duration::from_mins(TOTAL_MINUTES);
        let mut body = Bounded { response, deadline };
        save(&mut body, path, |source| match source.kind() {
            io::ErrorKind::TimedOut if Instant::now() >= deadline => Error::TooSlow {
                url: url(),
                minutes: TOTAL_MINUTES,
            },
            _ => Error::BrokeOff { url: url(), source },
        })
    }
}

/// A body that ends with an error at a deadline: a server that sends one byte a minute is never
/// silent for long enough.
struct Bounded {
    response: Response,
    deadline: Instant,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if Instant::now() >= self.deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.response.read(buffer)
    }
}

/// Whether the same request may succeed a moment later. A connection that cannot be made is not
/// worth a second time-out: it is what a closed network looks like.
fn is_transient(error: &Error) -> bool {
    match error {
        Error::NoAnswer { source, .. } => !source.is_connect() && !source.is_timeout(),
        Error::Status { status, .. } => *status == 429 || *status >= 500,
        Error::BrokeOff { .. } => true,
        _ => false,
    }
}

/// A log-in page or a proxy's notice comes with status 200 and must not pass for a model.
fn check_json(file: &'static str, path: &Path) -> Result<(), Error> {
    serde_json::from_slice::<serde::de::IgnoredAny>(&fs::read(path)?)
        .map_err(|source| Error::NotJson { file, source })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::testing::{Reply, Server, model_files};

    fn fetch(server: &Server, token: Option<&str>) -> Result<tempfile::TempDir, Error> {
        let folder = tempfile::tempdir().unwrap();
        Hub::new(server.url(), token)?.fetch("o/m", "r", folder.path())?;
        Ok(folder)
    }

    #[test]
    fn optional_files_may_be_absent() {
        let files = model_files()
            .into_iter()
            .filter(|(file, _)| *file != "vocab.txt")
            .collect();
        let folder = fetch(&Server::start(Server::hub("o/m", "r", files)), None).unwrap();
        assert!(folder.path().join("tokenizer_config.json").exists());
        assert!(!folder.path().join("vocab.txt").exists());
    }

    #[test]
    fn a_required_file_that_is_absent_is_named() {
        let files = model_files()
            .into_iter()
            .filter(|(file, _)| *file != "tokenizer.json")
            .collect();
        let server = Server::start(Server::hub("o/m", "r", files));
        let error = fetch(&server, None).unwrap_err();
        assert!(
            matches!(
                error,
                Error::NotThere {
                    file: "tokenizer.json",
                    ..
                }
            ),
            "{error}"
        );
        // The large file was not asked for.
        assert_eq!(server.requests().len(), 2);
    }

    #[test]
    fn a_refusal_points_at_the_token() {
        let error = fetch(&Server::start(|_| Reply::status(401)), None).unwrap_err();
        assert!(error.to_string().ends_with("needs HF_TOKEN"), "{error}");
    }

    #[test]
    fn a_token_goes_to_its_endpoint_and_not_along_with_a_redirect() {
        let network = Server::start(|_| Reply::ok(b"{}"));
        let elsewhere = network.url().to_owned();
        let server = Server::start(move |request| {
            let file = request.path.rsplit('/').next().unwrap_or_default();
            match file {
                "model.safetensors" => Reply::redirect(&format!("{elsewhere}/blob")),
                _ => Reply::ok(b"{}"),
            }
        });
        fetch(&server, Some("secret")).unwrap();
        let shown = |server: &Server| -> Vec<Option<String>> {
            server
                .requests()
                .into_iter()
                .map(|request| request.authorization)
                .collect()
        };
        assert_eq!(shown(&server), vec![Some("Bearer secret".to_owned()); 6]);
        assert_eq!(shown(&network), vec![None]);
        // Nor into the address, where logs would keep it.
        assert!(
            server
                .requests()
                .iter()
                .all(|request| !request.path.contains("secret"))
        );
    }

    #[test]
    fn a_passing_fault_is_tried_again_and_a_lasting_one_is_not_forever() {
        let count = AtomicUsize::new(0);
        let server = Server::start(move |_| match count.fetch_add(1, Ordering::Relaxed) {
            0 => Reply::status(503),
            1 => Reply::cut_short(),
            _ => Reply::ok(b"{}"),
        });
        fetch(&server, None).unwrap();
        assert_eq!(server.requests().len(), 2 + FILES.len());

        let server = Server::start(|_| Reply::status(500));
        let error = fetch(&server, None).unwrap_err();
        assert!(
            matches!(error, Error::Status { status: 500, .. }),
            "{error}"
        );
        assert_eq!(server.requests().len(), 3);
    }

    #[test]
    fn a_bad_endpoint_or_token_is_told_apart_from_a_bad_network() {
        for endpoint in ["", "mirror", "ftp://mirror"] {
            assert!(matches!(
                Hub::new(endpoint, None),
                Err(Error::BadEndpoint { .. })
            ));
        }
        let error = Hub::new("http://127.0.0.1", Some("a\nb")).err().unwrap();
        assert!(matches!(error, Error::BadToken) && !error.to_string().contains('\n'));
    }
}
