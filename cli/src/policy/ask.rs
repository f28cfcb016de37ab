//! One GET of a process' page of policies, over HTTP/1.1 in clear text: what serves it listens inside a cluster. Every wait
//! has a deadline, every answer a bound, and every failure says what to look at.

use std::error::Error;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For one question: a process that takes longer to say what it has in force is in trouble.
const PATIENCE: Duration = Duration::from_secs(5);
/// Hundreds of problems are some hundred kilobytes.
const MAX_BODY: usize = 4 << 20;

/// Why a process did not say what it has in force.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("cannot connect; does the process run, and is its observability listener reachable from here?")]
    Connect(#[source] io::Error),
    #[error("no answer within {PATIENCE:?}; does the process hang, or does a firewall drop what goes there?")]
    Late,
    #[error("no HTTP/1.1 in clear text there; is it the observability listener?")]
    Http(#[source] hyper::Error),
    #[error("the answer broke off or is too long: {0}")]
    Body(Box<dyn Error + Send + Sync>),
    #[error("it answers {0}; is it the observability listener of an edge or broker of this version?")]
    Status(StatusCode),
    #[error("its answer is no page of policies; is it the observability listener of an edge or broker?")]
    Page,
}

/// Where one process says which policies it has in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// As given.
    pub(super) url: String,
    host: String,
    port: u16,
    path: String,
}

/// What a process has in force.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Page {
    pub(super) generation: u64,
    pub(super) fingerprint: String,
    pub(super) age: f64,
    pub(super) problems: Vec<String>,
    pub(super) bad_for: Option<f64>,
    pub(super) has_directory: bool,
}

impl FromStr for Process {
    type Err = String;

    fn from_str(url: &str) -> Result<Process, String> {
        let parsed = url.parse::<Uri>().ok().and_then(|uri| {
            uri.scheme().filter(|scheme| **scheme == Scheme::HTTP)?;
            let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
            let host = authority.host();
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            let port = match authority.port() {
                Some(port) => port.as_str().parse().ok().filter(|port| *port > 0)?,
                None if authority.as_str().len() > host.len() => return None,
                None => 80,
            };
            let path = if uri.path() == "/" { "/policies" } else { uri.path() };
            (!bare.is_empty() && uri.query().is_none()).then(|| Process {
                url: url.to_owned(),
                host: bare.to_owned(),
                port,
                path: path.to_owned(),
            })
        });
        parsed.ok_or_else(|| {
            "must be http://HOST:PORT, the address of a process' observability listener".to_owned()
        })
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl Process {
    pub(super) async fn ask(&self) -> Result<Page, AskError> {
        timeout(PATIENCE, self.get()).await.map_err(|_| AskError::Late)?
    }

    async fn get(&self) -> Result<Page, AskError> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(AskError::Connect)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await.map_err(AskError::Http)?;
        tokio::spawn(async move {
            // Whoever waits for an answer hears of it too.
            let _ = connection.await;
        });
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let request = Request::get(&self.path)
            .header(header::HOST, format!("{host}:{}", self.port))
            .header(header::USER_AGENT, concat!("postern/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "application/json")
            .body(Empty::<Bytes>::new())
            .expect("host and path were read from a URL");
        let (head, body) = sender.send_request(request).await.map_err(AskError::Http)?.into_parts();
        if head.status != StatusCode::OK {
            return Err(AskError::Status(head.status));
        }
        let body = Limited::new(body, MAX_BODY).collect().await.map_err(AskError::Body)?.to_bytes();
        page(&body).ok_or(AskError::Page)
    }
}

fn page(body: &[u8]) -> Option<Page> {
    let page: Value = serde_json::from_slice(body).ok()?;
    let problems = page["problems"].as_array()?;
    Some(Page {
        generation: page["generation"].as_u64()?,
        fingerprint: page["fingerprint"].as_str()?.to_owned(),
        age: page["age_seconds"].as_f64()?,
        problems: problems.iter().map(|problem| problem.as_str().unwrap_or_default().to_owned()).collect(),
        bad_for: page["bad_for_seconds"].as_f64(),
        has_directory: !page["directory"].is_null(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_given_by_a_url_and_its_page_has_a_known_path() {
        for (url, host, port, path) in [
            ("http://10.0.0.1:9090", "10.0.0.1", 9090, "/policies"),
            ("http://edge-0/", "edge-0", 80, "/policies"),
            ("http://[fd00::1]:8151/", "fd00::1", 8151, "/policies"),
            ("http://proxy:80/kas-0/policies", "proxy", 80, "/kas-0/policies"),
        ] {
            let process: Process = url.parse().unwrap();
            assert_eq!(
                (process.host.as_str(), process.port, process.path.as_str()),
                (host, port, path),
                "{url}"
            );
        }
        for url in [
            "",
            "edge:9090",
            "https://edge:9090",
            "http://",
            "http://edge:0",
            "http://edge:x",
            "http://u:p@edge",
            "http://edge?x",
        ] {
            assert!(url.parse::<Process>().unwrap_err().contains("http://HOST:PORT"), "{url}");
        }
    }

    #[test]
    fn only_a_page_of_policies_is_one() {
        let good = br#"{"directory": "/etc/p", "generation": 3, "fingerprint": "ab", "age_seconds": 1.5, "problems": ["x"],
            "bad_for_seconds": 2.0}"#;
        let page_of = page(good).unwrap();
        assert_eq!((page_of.generation, page_of.problems.len(), page_of.bad_for), (3, 1, Some(2.0)));
        for bad in ["", "{}", "[]", r#"{"generation": "3"}"#, "<html>"] {
            assert_eq!(page(bad.as_bytes()), None, "{bad}");
        }
    }
}
