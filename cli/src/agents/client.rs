//! One GET to a broker's API listener over HTTP/1.1, in clear text or over TLS with the system's roots and the operator's
//! CA. Every wait has a deadline, every answer a bound, and every failure says what to look at.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header, uri::Scheme};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use postern_certs::CertError;
use postern_certs::client::{ClientTrust, explain};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// A broker waits less than a second for the others.
const PATIENCE: Duration = Duration::from_secs(20);
/// As much as ten thousand agents may say.
const MAX_BODY: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error(
        "--api must be http://HOST:PORT or https://HOST:PORT, the address of a broker's API listener (api.listen)"
    )]
    Url,
    #[error(
        "cannot connect to {0}; is a broker's API listener (api.listen) there, and is it reachable from here?"
    )]
    Connect(String, #[source] io::Error),
    #[error("--ca-cert-file")]
    Trust(#[source] CertError),
    #[error("no TLS with {0}: {1}")]
    Tls(String, String),
    #[error("{0} has not answered within {PATIENCE:?}")]
    Late(String),
    #[error("{0} speaks no HTTP/1.1 in clear text there; if the listener has a certificate, say https://")]
    Clear(String, #[source] hyper::Error),
    #[error("the connection to {0} broke off")]
    Http(String, #[source] hyper::Error),
    #[error("the answer of {0} broke off or is too long: {1}")]
    Body(String, Box<dyn std::error::Error + Send + Sync>),
}

/// Where to ask.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broker {
    tls: bool,
    /// An IPv6 address without its brackets.
    host: String,
    port: u16,
}

/// What a broker says.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) is_json: bool,
    pub(super) body: Bytes,
}

impl Broker {
    pub(super) fn parse(url: &str) -> Result<Broker, ClientError> {
        let parsed = url.parse::<Uri>().ok().and_then(|uri| {
            let tls = match uri.scheme()? {
                scheme if *scheme == Scheme::HTTP => false,
                scheme if *scheme == Scheme::HTTPS => true,
                _ => return None,
            };
            let whole = matches!(uri.path(), "" | "/") && uri.query().is_none();
            let authority = uri.authority().filter(|authority| whole && !authority.as_str().contains('@'))?;
            let host = authority.host();
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            let port = match authority.port() {
                Some(port) => port.as_str().parse().ok().filter(|port| *port > 0)?,
                None if authority.as_str().len() > host.len() => return None,
                None => {
                    if tls {
                        443
                    } else {
                        80
                    }
                }
            };
            (!bare.is_empty()).then(|| Broker { tls, host: bare.to_owned(), port })
        });
        parsed.ok_or(ClientError::Url)
    }

    /// Host and port, as in a URL.
    fn name(&self) -> String {
        let Broker { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Asks, and reads the whole answer.
    pub(super) async fn get(
        &self,
        path: &str,
        jwt: &HeaderValue,
        ca_file: Option<PathBuf>,
    ) -> Result<Answer, ClientError> {
        let asked = timeout(PATIENCE, async {
            let connect = TcpStream::connect((self.host.as_str(), self.port)).await;
            let tcp = connect.map_err(|error| ClientError::Connect(self.name(), error))?;
            if !self.tls {
                return self.ask(tcp, path, jwt).await;
            }
            let trust = ClientTrust::load(ca_file).map_err(ClientError::Trust)?;
            let name = ServerName::try_from(self.host.clone()).map_err(|_| {
                ClientError::Tls(self.name(), "no certificate can be for such a host".to_owned())
            })?;
            let connector = TlsConnector::from(trust.config(&[b"http/1.1"]));
            let tls = connector.connect(name, tcp).await.map_err(|error| {
                let why = explain(&error, trust.ca_given()).unwrap_or_else(|| error.to_string());
                ClientError::Tls(self.name(), why)
            })?;
            self.ask(tls, path, jwt).await
        });
        asked.await.map_err(|_| ClientError::Late(self.name()))?
    }

    async fn ask<S>(&self, io: S, path: &str, jwt: &HeaderValue) -> Result<Answer, ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let failed = |error: hyper::Error| {
            if !self.tls && (error.is_parse() || error.is_incomplete_message()) {
                ClientError::Clear(self.name(), error)
            } else {
                ClientError::Http(self.name(), error)
            }
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(failed)?;
        tokio::spawn(async move {
            // Whoever waits for an answer hears of it too.
            let _ = connection.await;
        });
        let request = Request::get(path)
            .header(header::HOST, self.name())
            .header(header::USER_AGENT, concat!("postern/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "application/json")
            .header(header::AUTHORIZATION, jwt)
            .body(Empty::<Bytes>::new())
            .expect("the path has letters and digits, and the host was read from a URL");
        let (head, body) = sender.send_request(request).await.map_err(failed)?.into_parts();
        let kind = head.headers.get(header::CONTENT_TYPE);
        let is_json = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
        let body = Limited::new(body, MAX_BODY).collect().await;
        let body = body.map_err(|error| ClientError::Body(self.name(), error))?.to_bytes();
        Ok(Answer { status: head.status, is_json, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_given_by_a_url_without_a_path() {
        for (url, tls, name) in [
            ("http://kas:8153", false, "kas:8153"),
            ("https://kas.example.com/", true, "kas.example.com:443"),
            ("http://127.0.0.1", false, "127.0.0.1:80"),
            ("https://[fd00::1]:8153", true, "[fd00::1]:8153"),
        ] {
            let broker = Broker::parse(url).unwrap();
            assert_eq!((broker.tls, broker.name().as_str()), (tls, name), "{url}");
        }
        for url in [
            "",
            "kas:8153",
            "grpc://kas:8153",
            "http://",
            "http://:8153",
            "http://kas:0",
            "http://kas:99999",
            "http://kas:8153/api",
            "http://kas?x",
            "http://user:hush@kas:8153",
        ] {
            let error = Broker::parse(url).unwrap_err().to_string();
            assert!(error.contains("api.listen") && !error.contains("hush"), "{url}: {error}");
        }
    }
}
