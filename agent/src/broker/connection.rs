//! One HTTP/2 connection to a broker, and the tower service that the generated gRPC clients use it through: it sets
//! `:scheme`, `:authority`, the token and the user agent on every request. Dialling happened before (`dial.rs`);
//! choosing when to replace it happens in `broker.rs`.

use crate::broker::{
    address::Address,
    dial::{Dialled, Io},
    frames::{Seen, Watched},
};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, header, uri};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use postern_wire::token::AgentToken;
use std::{
    error::Error as _,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Status, body::Body};
use tower_service::Service;

/// kas allows one PING per 20 s; load balancers forget connections that are silent for a minute.
const PING_EVERY: Duration = Duration::from_secs(25);
const PING_ANSWER: Duration = Duration::from_secs(10);
/// After this long without a first frame the peer does not speak HTTP/2.
const FIRST_FRAME: Duration = Duration::from_secs(10);

/// Bytes a tunnel may receive ahead of its reader: 5 MB/s at 50 ms.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Room for the windows of all 500 tunnels, so that stalled ones never stop the others. h2 also grants small DATA
/// frames half of this before it takes them for an attack, which 64 KiB would not survive.
const CONNECTION_WINDOW: u32 = 128 * 1024 * 1024;
/// Bytes a tunnel may have in flight towards the broker.
const SEND_BUFFER: usize = 128 * 1024;

/// What answers in place of HTTP/2 and is known.
pub(super) const HTTP1: &str = "HTTP/1.1";
pub(super) const TLS: &str = "TLS";

/// A connection that streams can be opened on. Clones share it.
#[derive(Clone)]
pub struct Connection {
    sender: SendRequest<Body>,
    shared: Arc<Shared>,
}

struct Shared {
    scheme: uri::Scheme,
    authority: uri::Authority,
    headers: HeaderMap,
    leaving: CancellationToken,
    retired: CancellationToken,
    gone: CancellationToken,
}

/// A connection and what its keeper must know.
pub struct Opened {
    /// For streams.
    pub connection: Connection,
    /// Ends with the connection; dropping it ends the connection.
    pub driver: AbortOnDropHandle<Result<(), hyper::Error>>,
    /// Tells of GOAWAY.
    pub seen: watch::Receiver<Seen>,
}

/// Why a transport did not become a connection.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// HTTP/2 did not come to be.
    #[error("{address} ended the connection instead of speaking HTTP/2")]
    Ended {
        /// The broker.
        address: Address,
        #[source]
        source: Option<hyper::Error>,
    },
    /// It is something else.
    #[error("{address} speaks {protocol}, not HTTP/2")]
    OtherProtocol {
        /// The broker.
        address: Address,
        /// What it looks like.
        protocol: &'static str,
    },
    /// Nothing came.
    #[error("{address} accepted the connection but sent no HTTP/2 within {FIRST_FRAME:?}")]
    Silent {
        /// The broker.
        address: Address,
    },
}

/// Speaks HTTP/2 on a fresh transport and waits for the broker's first frame.
pub async fn open(
    dialled: Dialled,
    token: &AgentToken,
    headers: &HeaderMap,
    user_agent: &HeaderValue,
) -> Result<Opened, OpenError> {
    let Dialled { io, address } = dialled;
    let (io, mut seen) = Watched::new(io);
    let ended = |source| OpenError::Ended { address: address.clone(), source };
    let (sender, driver) = handshake(io).await.map_err(|source| ended(Some(source)))?;
    let gone = CancellationToken::new();
    let mut driver = AbortOnDropHandle::new(tokio::spawn({
        let gone = gone.clone().drop_guard();
        async move {
            let result = driver.await;
            drop(gone);
            result
        }
    }));
    let silent = tokio::time::sleep(FIRST_FRAME);
    tokio::select! {
        biased;
        Ok(first) = seen.wait_for(|seen| *seen != Seen::Nothing) => if let Seen::NotHttp2(bytes) = &*first {
            return Err(other_protocol(&address, bytes));
        },
        result = &mut driver => return Err(ended(result.ok().and_then(Result::err))),
        () = silent => return Err(OpenError::Silent { address }),
    }
    let origin = address.origin().into_parts();
    let shared = Shared {
        scheme: origin.scheme.unwrap_or(uri::Scheme::HTTP),
        authority: origin.authority.expect("an origin has an authority"),
        headers: metadata(&address, token, headers, user_agent),
        leaving: CancellationToken::new(),
        retired: CancellationToken::new(),
        gone,
    };
    Ok(Opened { connection: Connection { sender, shared: Arc::new(shared) }, driver, seen })
}

type Driver = http2::Connection<TokioIo<Watched<Box<dyn Io>>>, Body, TokioExecutor>;

async fn handshake(io: Watched<Box<dyn Io>>) -> Result<(SendRequest<Body>, Driver), hyper::Error> {
    http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .handshake(TokioIo::new(io))
        .await
}

/// What every request carries. Extra headers go with the upgrade where there is one, as metadata where there is none.
fn metadata(
    address: &Address,
    token: &AgentToken,
    headers: &HeaderMap,
    user_agent: &HeaderValue,
) -> HeaderMap {
    let mut all = if address.scheme().websocket() { HeaderMap::new() } else { headers.clone() };
    all.insert(header::AUTHORIZATION, token.bearer());
    all.insert(header::USER_AGENT, user_agent.clone());
    all
}

fn other_protocol(address: &Address, first: &[u8]) -> OpenError {
    let protocol = if first.starts_with(b"HTTP") {
        HTTP1
    } else if first.starts_with(&[0x15, 0x03]) || first.starts_with(&[0x16, 0x03]) {
        TLS
    } else {
        "something else"
    };
    OpenError::OtherProtocol { address: address.clone(), protocol }
}

impl Connection {
    /// Fires when a newer connection has taken over: idle tunnels and long polls move there, requests finish here.
    pub fn retired(&self) -> &CancellationToken {
        &self.shared.retired
    }

    /// The broker asked for another connection. What runs on this one goes on.
    pub fn leave(&self) {
        self.shared.leaving.cancel();
    }

    /// Whether streams can be opened on it.
    pub fn takes_streams(&self) -> bool {
        !self.is_gone() && !self.shared.leaving.is_cancelled()
    }

    /// Returns when the connection has ended.
    pub async fn ended(&self) {
        self.shared.gone.cancelled().await;
    }

    /// Whether the connection has ended: then errors of its streams say nothing about the broker.
    pub fn is_gone(&self) -> bool {
        self.shared.gone.is_cancelled()
    }

    /// Whether a stream's error is that of the whole connection, which takes a moment to be known.
    pub async fn ends_within(&self, moment: Duration, status: &Status) -> bool {
        // What a server says about one stream has no error behind it on this side.
        self.is_gone()
            || status.source().is_some()
                && tokio::time::timeout(moment, self.shared.gone.cancelled()).await.is_ok()
    }

    /// Whether two handles are of one connection.
    pub fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        let mut target = uri::Parts::default();
        target.scheme = Some(self.shared.scheme.clone());
        target.authority = Some(self.shared.authority.clone());
        target.path_and_query = head.uri.into_parts().path_and_query;
        head.uri = Uri::from_parts(target).expect("a gRPC method is a path");
        // Replaces what is there and keeps several values of one name.
        head.headers.extend(self.shared.headers.clone());
        Box::pin(self.sender.send_request(Request::from_parts(head, body)))
    }
}
