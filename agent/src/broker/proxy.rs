//! Which forward proxy stands between the agent and an address, and how to get through it: CONNECT for every scheme.
//! Before it: a resolved name and a TCP connection to the proxy. After it: bytes that reach the broker itself.

use crate::broker::address::{Address, Scheme};
use base64::Engine as _;
use http::{HeaderValue, Uri, uri};
use hyper_util::client::proxy::matcher::Matcher;
use std::{fmt, io, net::IpAddr, sync::Arc};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A proxy's answer to CONNECT may have this many bytes of head; more is not a proxy.
const MAX_HEAD: usize = 16 * 1024;

/// What the environment says about proxies.
#[derive(Clone, Debug)]
pub struct Proxies(Arc<Matcher>);

/// One proxy to go through.
#[derive(Clone)]
pub struct Proxy {
    uri: Uri,
    authorization: Option<HeaderValue>,
}

/// Why a proxy did not let the agent through.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The environment names a proxy that is spoken to in a way this agent does not know.
    #[error("proxy {proxy} is of a kind the agent does not speak; HTTP and HTTPS proxies are")]
    Kind {
        /// The proxy, without credentials.
        proxy: String,
    },
    /// The proxy answered, and the answer is no.
    #[error("proxy {proxy} refused CONNECT {target}: {status}")]
    Refused {
        /// The proxy, without credentials.
        proxy: String,
        /// `host:port` of the broker.
        target: String,
        /// Code and reason.
        status: String,
    },
    /// What answered does not speak HTTP.
    #[error("proxy {proxy} answered CONNECT with something that is not HTTP")]
    NotHttp {
        /// The proxy, without credentials.
        proxy: String,
    },
    /// The proxy went away while it was asked.
    #[error("proxy {proxy} ended the connection during CONNECT {target}")]
    Io {
        /// The proxy, without credentials.
        proxy: String,
        /// `host:port` of the broker.
        target: String,
        #[source]
        source: io::Error,
    },
}

impl Proxies {
    /// Reads `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in capitals or not, through `env`.
    pub fn from_env(env: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| env(name).or_else(|| env(&name.to_lowercase())).unwrap_or_default();
        let matcher = Matcher::builder()
            .all(get("ALL_PROXY"))
            .http(get("HTTP_PROXY"))
            .https(get("HTTPS_PROXY"))
            .no(get("NO_PROXY"))
            .build();
        Self(Arc::new(matcher))
    }

    /// No proxy for anything.
    pub fn none() -> Self {
        Self::from_env(|_| None)
    }

    /// The proxy to the broker. Plain `grpc` follows `HTTPS_PROXY`, as it does in every gRPC library.
    pub fn to(&self, address: &Address) -> Option<Proxy> {
        let scheme = if address.scheme() == Scheme::Ws { "http" } else { "https" };
        let uri =
            Uri::builder().scheme(scheme).authority(address.authority()).path_and_query("/").build().ok()?;
        self.to_uri(&uri)
    }

    /// The proxy to an `http` or `https` URL. As in Go's programs, this machine itself is never behind a proxy.
    pub fn to_uri(&self, uri: &Uri) -> Option<Proxy> {
        if uri.host().is_none_or(is_this_machine) {
            return None;
        }
        let intercept = self.0.intercept(uri)?;
        Some(Proxy { uri: intercept.uri().clone(), authorization: intercept.basic_auth().cloned() })
    }
}

fn is_this_machine(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Proxy {
    /// A proxy that a kubeconfig names.
    pub fn from_uri(given: &Uri) -> Option<Self> {
        let authority = given.authority()?;
        let (userinfo, bare) = match authority.as_str().rsplit_once('@') {
            Some((userinfo, bare)) => (Some(userinfo), bare),
            None => (None, authority.as_str()),
        };
        let authorization = userinfo.and_then(|userinfo| {
            let text = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(userinfo));
            HeaderValue::try_from(text).ok()
        });
        let scheme = given.scheme().cloned().unwrap_or(uri::Scheme::HTTP);
        let uri = Uri::builder().scheme(scheme).authority(bare).path_and_query("/").build().ok()?;
        Some(Self { uri, authorization })
    }

    /// Where to connect to.
    pub fn host_and_port(&self) -> (&str, u16) {
        let port = self.uri.port_u16().unwrap_or(if self.tls() { 443 } else { 80 });
        (self.uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']'), port)
    }

    /// Whether the proxy itself is spoken to over TLS.
    pub fn tls(&self) -> bool {
        self.uri.scheme() == Some(&uri::Scheme::HTTPS)
    }

    /// Address and credentials, for clients that do CONNECT themselves.
    pub fn parts(&self) -> (&Uri, Option<&HeaderValue>) {
        (&self.uri, self.authorization.as_ref())
    }

    /// An error for proxies that are neither HTTP nor HTTPS, SOCKS for instance.
    pub fn check(&self) -> Result<(), ProxyError> {
        match self.uri.scheme_str() {
            Some("http" | "https") => Ok(()),
            _ => Err(ProxyError::Kind { proxy: self.to_string() }),
        }
    }

    /// Asks for a way to `target` (`host:port`). Afterwards `io` reaches the target.
    pub async fn connect<S>(&self, io: &mut S, target: &str) -> Result<(), ProxyError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let failed = |source| ProxyError::Io { proxy: self.to_string(), target: target.to_owned(), source };
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
        if let Some(authorization) = &self.authorization {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(authorization.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        io.write_all(&request).await.map_err(failed)?;
        io.flush().await.map_err(failed)?;

        // Byte by byte: what comes after the empty line belongs to the broker and must stay in the socket.
        let mut head = Vec::with_capacity(256);
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() == MAX_HEAD {
                return Err(ProxyError::NotHttp { proxy: self.to_string() });
            }
            head.push(io.read_u8().await.map_err(failed)?);
        }
        let line = String::from_utf8_lossy(&head);
        let line = line.lines().next().unwrap_or_default();
        let status = line
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.split_once(' '))
            .map(|(_, status)| status.trim());
        let Some(status) = status else {
            return Err(ProxyError::NotHttp { proxy: self.to_string() });
        };
        if status.starts_with('2') {
            return Ok(());
        }
        let status = status.chars().filter(|c| !c.is_control()).take(100).collect();
        Err(ProxyError::Refused { proxy: self.to_string(), target: target.to_owned(), status })
    }
}

/// Scheme, host and port; never the credentials.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = self.host_and_port();
        write!(f, "{}://{host}:{port}", self.uri.scheme_str().unwrap_or("http"))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(vars: &'static [(&'static str, &'static str)]) -> Proxies {
        Proxies::from_env(move |name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn chosen(proxies: &Proxies, address: &str) -> Option<String> {
        proxies.to(&Address::parse(address).unwrap()).map(|proxy| proxy.to_string())
    }

    #[test]
    fn the_environment_decides_by_scheme_and_host() {
        let proxies = proxies(&[
            ("HTTPS_PROXY", "http://me:secret@secure.proxy:3128"),
            ("http_proxy", "plain.proxy:8080"),
            ("NO_PROXY", "internal.example.com,10.0.0.0/8"),
        ]);
        let secure = Some("http://secure.proxy:3128".to_owned());
        assert_eq!(chosen(&proxies, "wss://kas.example.com"), secure);
        assert_eq!(chosen(&proxies, "grpcs://kas.example.com"), secure);
        assert_eq!(chosen(&proxies, "grpc://kas.example.com"), secure);
        assert_eq!(chosen(&proxies, "ws://kas.example.com"), Some("http://plain.proxy:8080".to_owned()));
        assert_eq!(chosen(&proxies, "wss://kas.internal.example.com"), None);
        assert_eq!(chosen(&proxies, "grpc://10.1.2.3:8150"), None);
        assert_eq!(chosen(&proxies, "wss://localhost:8443"), None);
        assert_eq!(chosen(&proxies, "wss://127.0.0.1"), None);
        assert!(!format!("{proxies:?}").contains("secret"));
    }

    #[test]
    fn a_socks_proxy_is_refused_by_name() {
        let proxy =
            proxies(&[("ALL_PROXY", "socks5://s:1080")]).to(&Address::parse("wss://kas").unwrap()).unwrap();
        let error = proxy.check().unwrap_err().to_string();
        assert!(error.contains("socks5://s:1080"), "{error}");
    }

    async fn ask(answer: &'static [u8]) -> (Result<(), ProxyError>, Vec<u8>) {
        let proxy = proxies(&[("HTTPS_PROXY", "http://me:secret@p:3128")]);
        let proxy = proxy.to(&Address::parse("wss://kas").unwrap()).unwrap();
        let (mut near, mut far) = tokio::io::duplex(4096);
        let peer = tokio::spawn(async move {
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(far.read_u8().await.unwrap());
            }
            far.write_all(answer).await.unwrap();
            asked
        });
        let result = proxy.connect(&mut near, "kas:443").await;
        (result, peer.await.unwrap())
    }

    #[tokio::test]
    async fn a_proxy_that_agrees_is_asked_with_credentials() {
        let (result, asked) = ask(b"HTTP/1.0 200 Connection established\r\nX: y\r\n\r\n").await;
        result.unwrap();
        let asked = String::from_utf8(asked).unwrap();
        assert!(asked.starts_with("CONNECT kas:443 HTTP/1.1\r\nHost: kas:443\r\n"), "{asked}");
        assert!(asked.contains("Proxy-Authorization: Basic bWU6c2VjcmV0\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_is_named_with_its_status() {
        let (result, _) = ask(b"HTTP/1.1 403 Forbidden\r\n\r\n").await;
        let error = result.unwrap_err().to_string();
        assert!(error.contains("http://p:3128 refused CONNECT kas:443: 403 Forbidden"), "{error}");
        let (result, _) = ask(b"SSH-2.0-nonsense\r\n\r\n").await;
        assert!(matches!(result, Err(ProxyError::NotHttp { .. })));
    }
}
