//! One server of a teacher: where requests go, how many at once, and what comes back.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Client, RequestBuilder, Url, redirect};
use tokio::time::Instant;

use crate::limits::Gate;
use crate::retry::Advice;
use crate::secret::Secret;
use crate::{Error, Result};

/// The most that a reply may hold: a grade with its log-probabilities takes a few kilobytes.
const MOST_BYTES: usize = 8 << 20;
/// The most that a file of replies may hold, and how long it may take.
const MOST_BYTES_OF_A_FILE: usize = 1 << 30;
const TIMEOUT_OF_A_FILE: Duration = Duration::from_mins(15);
/// What an endpoint may have in its query: Azure's deployments want it of every request.
const VERSION: &str = "api-version";

/// A reply, whatever its status, without the teacher's key.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) request_id: Option<String>,
    pub(crate) advice: Advice,
}

/// Why no reply came. All of these may pass.
pub(crate) enum NoReply {
    /// There was no connection.
    NotSent(String),
    /// A reply did not come, or broke off.
    Lost(String),
    /// More bytes than any answer has.
    TooLong,
}

pub(crate) struct Replica {
    client: Client,
    base: Url,
    headers: Vec<(HeaderName, HeaderValue)>,
    key: Option<Arc<Secret>>,
    pub(crate) gate: Gate,
    /// No request leaves before.
    paused_until: Mutex<Option<Instant>>,
}

impl Replica {
    /// Prepares a client; nothing is sent yet.
    pub(crate) fn new(
        endpoint: &str,
        headers: Vec<(HeaderName, HeaderValue)>,
        key: Option<Arc<Secret>>,
        timeout: Duration,
        concurrency: usize,
    ) -> Result<Self> {
        let setting = |problem: String| Error::Setting(format!("[teacher] {problem}"));
        let mut base = endpoint_url(endpoint).map_err(setting)?;
        // `join` would replace the last part of a path without a slash at its end.
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let client = if is_private(&base) {
            // What is near is not sent through a proxy, which may be far.
            Client::builder().no_proxy()
        } else {
            Client::builder()
        };
        let client = client
            .timeout(timeout)
            .connect_timeout(timeout.min(Duration::from_secs(10)))
            // A redirect would take the key, and the texts, to a host nobody named.
            .redirect(redirect::Policy::none())
            .pool_max_idle_per_host(concurrency)
            .build()
            .map_err(|error| setting(format!("the HTTP client: {error}")))?;
        Ok(Self {
            client,
            base,
            headers,
            key,
            gate: Gate::new(concurrency),
            paused_until: Mutex::new(None),
        })
    }

    /// Scheme, host and path: nothing secret.
    pub(crate) fn name(&self) -> &str {
        self.base.as_str()
    }

    /// Where it is and how texts travel there, in words.
    pub(crate) fn reach(&self) -> &'static str {
        match (is_private(&self.base), self.base.scheme()) {
            _ if is_loopback(&self.base) => "this machine",
            (true, "https") => "a private network, encrypted",
            (true, _) => "a private network, unencrypted",
            (false, "https") => "another host, encrypted",
            (false, _) => "another host, unencrypted",
        }
    }

    /// Posts a body of JSON and reads the whole reply.
    pub(crate) async fn post(&self, path: &str, body: String) -> Result<Reply, NoReply> {
        let request = self.client.post(self.url(path)?).body(body);
        let request = request.header(CONTENT_TYPE, "application/json");
        self.send(request, MOST_BYTES).await
    }

    /// Posts bytes that may be many.
    pub(crate) async fn upload(
        &self,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Reply, NoReply> {
        let request = self.client.post(self.url(path)?).body(body);
        let request = request.header(CONTENT_TYPE, content_type);
        self.send(request.timeout(TIMEOUT_OF_A_FILE), MOST_BYTES)
            .await
    }

    /// Gets what is at a path.
    pub(crate) async fn get(&self, path: &str) -> Result<Reply, NoReply> {
        self.send(self.client.get(self.url(path)?), MOST_BYTES)
            .await
    }

    /// Gets a file, which may be large.
    pub(crate) async fn download(&self, path: &str) -> Result<Reply, NoReply> {
        let request = self.client.get(self.url(path)?);
        self.send(request.timeout(TIMEOUT_OF_A_FILE), MOST_BYTES_OF_A_FILE)
            .await
    }

    fn url(&self, path: &str) -> Result<Url, NoReply> {
        if path.is_empty() {
            return Ok(self.base.clone());
        }
        let joined = self.base.join(path);
        let mut url = joined.map_err(|error| NoReply::NotSent(error.to_string()))?;
        if self.base.query().is_some() {
            url.query_pairs_mut().extend_pairs(self.base.query_pairs());
        }
        Ok(url)
    }

    async fn send(&self, mut request: RequestBuilder, most_bytes: usize) -> Result<Reply, NoReply> {
        let lost = |error: reqwest::Error| {
            let problem = describe(&error);
            if error.is_connect() {
                NoReply::NotSent(problem)
            } else {
                NoReply::Lost(problem)
            }
        };
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let mut response = request.send().await.map_err(lost)?;
        let headers = response.headers();
        let advice = Advice::of(headers, SystemTime::now());
        let request_id = ["x-request-id", "request-id"]
            .iter()
            .find_map(|name| Some(headers.get(*name)?.to_str().ok()?.to_owned()));
        let status = response.status().as_u16();
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            if bytes.len() + chunk.len() > most_bytes {
                return Err(NoReply::TooLong);
            }
            bytes.extend_from_slice(&chunk);
        }
        let mut reply = Reply {
            status,
            body: String::from_utf8_lossy(&bytes).into_owned(),
            request_id,
            advice,
        };
        if let Some(key) = &self.key {
            // Before anything reads, logs or stores it.
            reply.body = key.removed_from_reply(&reply.body);
            reply.request_id = reply.request_id.map(|id| key.removed_from(&id));
        }
        Ok(reply)
    }

    /// Lets nothing leave for a while.
    pub(crate) fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut paused = self
            .paused_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *paused = Some(paused.map_or(until, |already| already.max(until)));
    }

    /// How long nothing leaves from now on.
    pub(crate) fn pause_left(&self) -> Duration {
        let until = *self
            .paused_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        until.map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(Instant::now())
        })
    }

    /// Waits until the pause is over, if there is one.
    pub(crate) async fn wait_for_pause(&self) {
        loop {
            match self.pause_left() {
                Duration::ZERO => return,
                left => tokio::time::sleep(left).await,
            }
        }
    }
}

/// Checks an endpoint as far as that goes without asking it.
pub(crate) fn endpoint_url(endpoint: &str) -> Result<Url, String> {
    let url = Url::parse(endpoint).map_err(|error| format!("endpoint {endpoint:?}: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!(
            "endpoint {endpoint:?}: expected http:// or https://"
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("endpoint: a key belongs into [teacher.api_key], not into the URL".to_owned());
    }
    // It is shown and stored, so it holds nothing that could be a secret.
    if url.query_pairs().any(|(name, _)| name != VERSION) || url.fragment().is_some() {
        return Err(format!(
            "endpoint: expected a URL without a query, or with `?{VERSION}=…` alone: a key belongs \
             into [teacher.api_key]"
        ));
    }
    Ok(url)
}

/// Whether a URL's host is this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match address(url) {
        Some(address) => address.is_loopback(),
        None => url.host_str() == Some("localhost"),
    }
}

/// The host and port of an endpoint; empty of what is none.
pub(crate) fn host(endpoint: &str) -> String {
    let Ok(url) = Url::parse(endpoint) else {
        return String::new();
    };
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Whether a URL's host is this machine or one on a private network, by its address: a name could
/// resolve to anything.
pub(crate) fn is_private(url: &Url) -> bool {
    is_loopback(url)
        || match address(url) {
            Some(IpAddr::V4(address)) => address.is_private() || address.is_link_local(),
            Some(IpAddr::V6(address)) => {
                address.is_unique_local() || address.is_unicast_link_local()
            }
            None => false,
        }
}

fn address(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.trim_matches(['[', ']']).parse().ok()
}

/// An error with its causes: reqwest's own message stops at "error sending request".
fn describe(error: &reqwest::Error) -> String {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_plain_url() {
        assert!(endpoint_url("http://127.0.0.1:8080/v1").is_ok());
        let azure = "https://a/openai/deployments/d?api-version=2024-10-21";
        let replica = Replica::new(azure, Vec::new(), None, Duration::from_secs(1), 1).unwrap();
        for (path, expected) in [
            (
                "chat/completions",
                "chat/completions?api-version=2024-10-21",
            ),
            ("batches?limit=2", "batches?limit=2&api-version=2024-10-21"),
        ] {
            let url = replica.url(path).ok().unwrap();
            assert_eq!(
                url.as_str(),
                format!("https://a/openai/deployments/d/{expected}")
            );
        }
        assert!(endpoint_url("ftp://a/v1").unwrap_err().contains("http://"));
        assert!(endpoint_url("localhost:8080").is_err());
        for secret in [
            "https://u:p@a/v1",
            "https://a/v1?key=p",
            "https://a/v1?api-version=1&key=p",
            "https://a/v1#p",
        ] {
            let problem = endpoint_url(secret).unwrap_err();
            assert!(!problem.contains("//"), "{problem} shows the URL");
        }
    }

    #[test]
    fn where_texts_go_is_said_in_words() {
        let reach = |url: &str| {
            let second = Duration::from_secs(1);
            let replica = Replica::new(url, Vec::new(), None, second, 1).unwrap();
            (replica.reach(), host(replica.name()))
        };
        for (url, expected, at) in [
            ("http://localhost:80/v1", "this machine", "localhost"),
            ("http://[::1]:8080", "this machine", "[::1]:8080"),
            (
                "http://10.0.0.1:8000/v1",
                "a private network, unencrypted",
                "10.0.0.1:8000",
            ),
            (
                "https://192.168.1.2/v1",
                "a private network, encrypted",
                "192.168.1.2",
            ),
            (
                "https://api.example.com/v1",
                "another host, encrypted",
                "api.example.com",
            ),
            (
                "http://api.example.com/v1",
                "another host, unencrypted",
                "api.example.com",
            ),
        ] {
            assert_eq!(reach(url), (expected, at.to_owned()), "{url}");
        }
    }

    #[test]
    fn private_hosts_are_told_by_their_address() {
        let private = |url: &str| is_private(&Url::parse(url).unwrap());
        for url in [
            "http://localhost/",
            "http://127.0.0.9/",
            "http://[::1]/",
            "http://10.1.2.3/",
            "http://192.168.0.1/",
            "http://[fd00::1]/",
        ] {
            assert!(private(url), "{url}");
        }
        for url in [
            "https://api.example.com/",
            "http://8.8.8.8/",
            "http://10.example.com/",
        ] {
            assert!(!private(url), "{url}");
        }
    }
}
