//! A new connection to a broker's agent listener: TCP, then TLS, then a WebSocket, as configured. What comes out
//! carries HTTP/2.
//!
//! Under `relay::pool`, which speaks HTTP/2 over it, and `health`. Sets no time limit; the caller does. The details of a
//! failure go to the broker's record, for the operator; callers get its kind.

use super::Broker;
use crate::config::upstreams::Protocol;
use http::HeaderMap;
use postern_certs::client::explain;
use postern_wire::ws::{self, Handshake};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use std::error::Error;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What HTTP/2 runs over.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

pub type Io = Box<dyn Wire>;

const USER_AGENT: &str = concat!("postern-edge/", env!("CARGO_PKG_VERSION"));

impl Broker {
    /// Connects. The error says what failed, for people.
    pub async fn dial(&self) -> Result<Io, &'static str> {
        let tcp = self.tcp().await?;
        let protocol = self.settings.configured.protocol;
        let alpn: &[&[u8]] = if protocol == Protocol::Wss { &[] } else { &[b"h2"] };
        let io: Io = match &self.settings.secure {
            Some(secure) => {
                let name = ServerName::try_from(self.server_name().to_owned())
                    .map_err(|_| "the server name is not valid")?;
                let connector = TlsConnector::from(secure.config(alpn));
                let tls = connector.connect(name, tcp).await.map_err(|error| {
                    let said = explain(&error, secure.ca_given()).unwrap_or_else(|| error.to_string());
                    self.failed("TLS handshake failed", said.replace("--ca-cert-file", "tls.ca_file"))
                })?;
                if protocol == Protocol::Tls && tls.get_ref().1.alpn_protocol() != Some(b"h2") {
                    let said = "the broker's TLS listener does not offer HTTP/2 (ALPN)";
                    return Err(self.failed("TLS handshake failed", said.to_owned()));
                }
                Box::new(tls)
            }
            None => Box::new(tcp),
        };
        if !matches!(protocol, Protocol::Ws | Protocol::Wss) {
            return Ok(io);
        }
        let host = if self.server_name().contains(':') {
            format!("[{}]:{}", self.server_name(), self.address.port())
        } else {
            format!("{}:{}", self.server_name(), self.address.port())
        };
        let handshake = Handshake {
            host: &host,
            path_and_query: &self.settings.configured.websocket_path,
            user_agent: USER_AGENT,
            headers: &HeaderMap::new(),
        };
        match ws::dial(io, handshake).await {
            Ok(tunnel) => Ok(Box::new(tunnel)),
            Err(error) => {
                let mut said = error.to_string();
                if let Some(cause) = error.source() {
                    said = format!("{said}: {cause}");
                }
                Err(self.failed("WebSocket handshake failed", said))
            }
        }
    }

    /// Connects, and no more than that.
    pub(super) async fn tcp(&self) -> Result<TcpStream, &'static str> {
        let tcp = TcpStream::connect(self.address).await.map_err(|error| {
            let what = match error.kind() {
                std::io::ErrorKind::ConnectionRefused => "connection refused",
                std::io::ErrorKind::TimedOut => "connect timed out",
                std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable => {
                    "no route to host"
                }
                _ => "connect failed",
            };
            self.note_error(what);
            what
        })?;
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10))
            .with_retries(3);
        // A socket without these options still works.
        let _ = tcp.set_nodelay(true);
        let _ = SockRef::from(&tcp).set_tcp_keepalive(&keepalive);
        Ok(tcp)
    }

    /// Remembers what failed, for the operator; returns its kind.
    pub fn failed(&self, what: &'static str, said: String) -> &'static str {
        tracing::debug!(upstream = %self.address, error = said, what);
        self.note_error(format!("{what}: {said}"));
        what
    }
}
