//! One dial: name -> TCP -> proxy -> TLS -> WebSocket, as far as the address asks for it. Ends with a byte stream on
//! which HTTP/2 can be spoken (see `connection.rs`). It tries once; retries and logging belong to `broker.rs`.

use crate::{
    PROGRAM,
    broker::{
        address::{Address, BadAddress, Scheme},
        proxy::{Proxies, Proxy, ProxyError},
        tls::{Tls, TlsError},
    },
    config::Broker,
};
use futures::stream::{FuturesUnordered, StreamExt};
use http::HeaderMap;
use postern_certs::client::ClientTrust;
use postern_wire::ws;
use rustls::ProtocolVersion;
use std::{collections::VecDeque, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

/// Name and TCP together; a broker that takes longer is not there.
const CONNECT: Duration = Duration::from_secs(10);
/// The next address of a name is tried beside the first after this long (RFC 8305 recommends 250 ms).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// CONNECT and the WebSocket upgrade: the peer may have to ask others first.
const ANSWER: Duration = Duration::from_secs(20);
/// TCP keepalive, for the paths that HTTP/2 PINGs do not cover: the dial itself.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What HTTP/2 is spoken on.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Everything a dial needs to know.
pub struct Dialler {
    /// Where to.
    pub address: Address,
    /// `--kas-header`: sent with the WebSocket upgrade, and as metadata for `grpc` and `grpcs`.
    pub headers: HeaderMap,
    /// How servers are checked.
    pub tls: Tls,
    /// `--kas-tls-server-name`: the name to check instead of the host.
    pub tls_server_name: Option<String>,
    /// What the environment says about proxies.
    pub proxies: Proxies,
    /// `User-Agent` of the upgrade.
    pub user_agent: String,
}

impl Dialler {
    /// As the flags say. `trust` is what `--ca-cert-file` led to.
    pub fn new(broker: Broker, trust: Arc<ClientTrust>) -> Self {
        Self {
            address: broker.address,
            headers: broker.headers,
            tls: Tls { trust, skip_verify: broker.insecure_skip_tls_verify },
            tls_server_name: broker.tls_server_name,
            proxies: broker.proxies,
            user_agent: PROGRAM.to_string(),
        }
    }
}

/// Where a dial ended up.
pub struct Dialled {
    /// The way to the broker.
    pub io: Box<dyn Io>,
    /// Where it leads: not [`Dialler::address`] after a redirect.
    pub address: Address,
}

/// Why a dial failed.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// DNS has no answer.
    #[error("cannot resolve {host}")]
    Resolve {
        /// The broker or its proxy.
        host: String,
        #[source]
        source: io::Error,
    },
    /// Nothing listens there, or a firewall says so.
    #[error("cannot connect to {target}")]
    Connect {
        /// `host:port` of the broker or its proxy.
        target: String,
        #[source]
        source: io::Error,
    },
    /// No answer at all: usually a firewall that drops packets.
    #[error("no connection to {target} within {CONNECT:?}")]
    ConnectSlow {
        /// `host:port` of the broker or its proxy.
        target: String,
    },
    /// The proxy is the problem.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// TLS is the problem.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Proxy or broker accepted the connection and then said nothing.
    #[error("{target} did not answer {what} within {ANSWER:?}")]
    Silent {
        /// Who stayed silent.
        target: String,
        /// What was asked.
        what: &'static str,
    },
    /// The upgrade was answered with something else.
    #[error("{address} answered the WebSocket upgrade with HTTP {status}{reason}")]
    Upgrade {
        /// What was asked.
        address: Address,
        /// Status code.
        status: u16,
        /// The first characters of the body, in parentheses, or empty.
        reason: String,
    },
    /// The answer to the upgrade is not a proper one.
    #[error("{address} does not speak ws-tunnel")]
    WebSocket {
        /// What was asked.
        address: Address,
        #[source]
        source: ws::DialError,
    },
    /// One redirect is followed; two are a loop or a login page.
    #[error("{from} redirects to {to}, which redirects again (HTTP {status})")]
    RedirectedTwice {
        /// As configured.
        from: Address,
        /// Where it led.
        to: Address,
        /// Of the second answer.
        status: u16,
    },
    /// Following would send the token in clear.
    #[error("{from} redirects to {to}, which is not encrypted; refused")]
    Downgrade {
        /// As configured.
        from: Address,
        /// Where it led.
        to: Address,
    },
    /// Following would lead nowhere.
    #[error("{from} redirects (HTTP {status}) to nowhere")]
    BadRedirect {
        /// As configured.
        from: Address,
        /// Of the answer.
        status: u16,
        #[source]
        source: BadAddress,
    },
}

impl Dialler {
    /// Dials, following one redirect.
    pub async fn dial(&self) -> Result<Dialled, DialError> {
        let dial = self.dial_once(&self.address).await?;
        self.arrive(dial).await
    }

    /// Where a dial to the configured address led, after one redirect at most.
    pub(crate) async fn arrive(&self, dial: Dial) -> Result<Dialled, DialError> {
        let from = &self.address;
        let (status, location) = match dial {
            Dial::Done(io) => return Ok(Dialled { io, address: from.clone() }),
            Dial::Redirected { status, location } => (status, location),
        };
        let to = from.redirected(&location).map_err(|source| DialError::BadRedirect {
            from: from.clone(),
            status,
            source,
        })?;
        if from.scheme().tls() && !to.scheme().tls() {
            return Err(DialError::Downgrade { from: from.clone(), to });
        }
        match self.dial_once(&to).await? {
            Dial::Done(io) => Ok(Dialled { io, address: to }),
            Dial::Redirected { status, .. } => {
                Err(DialError::RedirectedTwice { from: from.clone(), to, status })
            }
        }
    }

    async fn dial_once(&self, address: &Address) -> Result<Dial, DialError> {
        let mut io = self.reach(address).await?;
        if address.scheme().tls() {
            io = self.secure(io, address).await?.into_io(address)?;
        }
        if !address.scheme().websocket() {
            return Ok(Dial::Done(io));
        }
        self.upgrade(io, address).await
    }

    /// TCP to the broker, or through the proxy that stands before it.
    async fn reach(&self, address: &Address) -> Result<Box<dyn Io>, DialError> {
        let Some(proxy) = self.proxies.to(address) else {
            return Ok(Box::new(tcp(&address.host(), address.port()).await?));
        };
        proxy.check()?;
        let (host, port) = proxy.host_and_port();
        let io = tcp(host, port).await?;
        self.through(&proxy, io, address).await
    }

    /// From a connection to the proxy to one to the broker.
    pub(crate) async fn through(
        &self,
        proxy: &Proxy,
        io: TcpStream,
        address: &Address,
    ) -> Result<Box<dyn Io>, DialError> {
        let (host, _) = proxy.host_and_port();
        let mut io: Box<dyn Io> = match proxy.tls() {
            true => Box::new(self.tls.connect(io, &proxy.to_string(), host, &[b"http/1.1"]).await?),
            false => Box::new(io),
        };
        answered(&proxy.to_string(), "CONNECT", proxy.connect(&mut io, &address.authority())).await??;
        Ok(io)
    }

    /// TLS to the broker, with the protocol offered that the scheme needs.
    pub(crate) async fn secure(&self, io: Box<dyn Io>, address: &Address) -> Result<Secured, DialError> {
        let alpn: &[u8] = if address.scheme().websocket() { b"http/1.1" } else { b"h2" };
        let (target, name) = (address.authority(), self.server_name(address));
        Ok(Secured(self.tls.connect(io, &target, &name, &[alpn]).await?))
    }

    /// From bytes that reach the broker to a WebSocket.
    pub(crate) async fn upgrade(&self, io: Box<dyn Io>, address: &Address) -> Result<Dial, DialError> {
        // Such headers are often secrets (cookies, access proxies' tokens), meant for the host that was configured.
        let none = HeaderMap::new();
        let headers = if address.same_host(&self.address) { &self.headers } else { &none };
        let host = address.host_header();
        let handshake = ws::Handshake {
            host: &host,
            path_and_query: address.target(),
            user_agent: &self.user_agent,
            headers,
        };
        match answered(&address.to_string(), "the WebSocket upgrade", ws::dial(io, handshake)).await? {
            Ok(stream) => Ok(Dial::Done(Box::new(stream))),
            Err(ws::DialError::Redirected { status, location }) => {
                Ok(Dial::Redirected { status: status.as_u16(), location })
            }
            Err(ws::DialError::Refused { status, reason }) => Err(DialError::Upgrade {
                address: address.clone(),
                status: status.as_u16(),
                reason: if reason.is_empty() { reason } else { format!(" ({reason})") },
            }),
            Err(source) => Err(DialError::WebSocket { address: address.clone(), source }),
        }
    }

    fn server_name(&self, address: &Address) -> String {
        match &self.tls_server_name {
            Some(name) if address.same_host(&self.address) => name.clone(),
            _ => address.host(),
        }
    }
}

/// What became of dialling one address.
pub(crate) enum Dial {
    Done(Box<dyn Io>),
    Redirected { status: u16, location: String },
}

/// TLS to the broker.
pub(crate) struct Secured(TlsStream<Box<dyn Io>>);

impl Secured {
    /// The version that was agreed on.
    pub(crate) fn version(&self) -> &'static str {
        match self.0.get_ref().1.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLS 1.2",
            Some(ProtocolVersion::TLSv1_3) => "TLS 1.3",
            _ => "TLS",
        }
    }

    /// The stream, if what was agreed on is enough for the scheme.
    pub(crate) fn into_io(self, address: &Address) -> Result<Box<dyn Io>, DialError> {
        let chosen = self.0.get_ref().1.alpn_protocol();
        if address.scheme() == Scheme::Grpcs && chosen != Some(b"h2") {
            return Err(TlsError::NotHttp2 { host: address.authority() }.into());
        }
        Ok(Box::new(self.0))
    }
}

async fn answered<T>(target: &str, what: &'static str, ask: impl Future<Output = T>) -> Result<T, DialError> {
    timeout(ANSWER, ask).await.map_err(|_| DialError::Silent { target: target.to_owned(), what })
}

/// Resolves and connects, both within one deadline.
async fn tcp(host: &str, port: u16) -> Result<TcpStream, DialError> {
    let connecting = async { connect(host, port, resolve(host, port).await?).await };
    let slow = |_| DialError::ConnectSlow { target: target(host, port) };
    timeout(CONNECT, connecting).await.map_err(slow)?
}

/// The addresses of a name.
pub(crate) async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
    let failed = |source| DialError::Resolve { host: host.to_owned(), source };
    Ok(tokio::net::lookup_host((host, port)).await.map_err(failed)?.collect())
}

/// Connects to one of the addresses of a name. They are tried in order, each a little after the one before, until one
/// answers.
pub(crate) async fn connect(host: &str, port: u16, found: Vec<SocketAddr>) -> Result<TcpStream, DialError> {
    let failed = |source| DialError::Connect { target: target(host, port), source };
    let stream = race(found.into()).await.map_err(failed)?;
    // Failing to set these costs latency or the detection of dead peers, not the connection.
    let _ = stream.set_nodelay(true);
    Ok(keep_alive(stream))
}

fn target(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

async fn race(mut addresses: VecDeque<SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no addresses");
    loop {
        if let Some(address) = addresses.pop_front() {
            attempts.push(TcpStream::connect(address));
        }
        if attempts.is_empty() {
            return Err(failure);
        }
        let next = async {
            match addresses.is_empty() {
                true => std::future::pending().await,
                false => tokio::time::sleep(NEXT_ADDRESS).await,
            }
        };
        tokio::select! {
            Some(attempt) = attempts.next() => match attempt {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            },
            () = next => {}
        }
    }
}

fn keep_alive(stream: TcpStream) -> TcpStream {
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    stream
}
