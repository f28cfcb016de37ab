//! The other brokers' private APIs as a client sees them: few HTTP/2 connections, shared by many calls, each call with
//! this broker's JWT. The router and the roster come before it; after it, another broker's `gateway`, or a kas. It
//! decides nothing about agents.

mod call;
mod channel;
mod connection;
mod error;
mod pool;

pub use channel::{Channel, RecvBody};
pub use error::PeerError;

pub(super) use call::{BROKER, Call, CallError, MAX_MESSAGE, Receiving, Sending};

use super::{PeerUrl, jwt::Signer, remote::Knock};
use crate::gitlab::ServiceSecret;
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use connection::Place;
use h2::{SendStream, client::ResponseFuture};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header,
    uri::{self, PathAndQuery},
};
use pool::Pool;
use postern_certs::client::ClientTrust;
use postern_wire::{
    ids::AgentId,
    metadata::{self, Program, ROUTING_AGENT_ID},
    proto::gitlab::agent::prototool::Values,
};
use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// What this broker is to the others.
#[derive(Debug)]
pub struct PeersConfig {
    /// `private_api.listen.authentication_secret_file`.
    pub secret: Arc<ServiceSecret>,
    /// Who may vouch for brokers with TLS; absent: none of them can be reached.
    pub trust: Option<Arc<ClientTrust>>,
    /// Which name their certificates have; absent: that of their URL.
    pub server_name: Option<String>,
    /// This broker's own private API has TLS, and so others without it are refused: what stands in Redis may not choose
    /// that a JWT goes out in clear.
    pub requires_tls: bool,
    /// Who says so.
    pub program: Program,
}

/// Times of connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// TCP, TLS and the first answer in HTTP/2.
    pub(super) dial: Duration,
    /// Between two pings of a broker of ours while streams are open.
    pub(super) ping_busy: Duration,
    /// Between two pings otherwise; a kas bears no more than one in 20 s.
    pub(super) ping_idle: Duration,
    /// For the answer to a ping.
    pub(super) pong: Duration,
    /// After so long without a stream a connection is closed.
    pub(super) idle: Duration,
    /// A broker that could not be dialled is left alone for the first, then twice as long up to the second.
    pub(super) pause: (Duration, Duration),
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            dial: Duration::from_secs(2),
            ping_busy: Duration::from_secs(5),
            ping_idle: Duration::from_secs(21),
            pong: Duration::from_secs(5),
            idle: Duration::from_secs(600),
            pause: (Duration::from_millis(100), Duration::from_secs(1)),
        }
    }
}

/// Who is dialled, and how.
#[derive(Clone, Debug)]
struct Target {
    url: PeerUrl,
    trust: Option<Arc<ClientTrust>>,
    server_name: Option<String>,
}

/// The other brokers.
pub struct Peers {
    config: PeersConfig,
    user_agent: HeaderValue,
    signer: Signer,
    pool: Pool,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A call can meet a connection that is just going away; the next one is new.
const ATTEMPTS: usize = 3;

impl Peers {
    /// Dials nobody yet.
    pub fn new(config: PeersConfig) -> Self {
        Self::with(config, Limits::default())
    }

    pub(super) fn with(config: PeersConfig, limits: Limits) -> Self {
        let user_agent = HeaderValue::try_from(config.program.to_string());
        let user_agent = user_agent.expect("the program's name is visible ASCII");
        Self { signer: Signer::new(Arc::clone(&config.secret)), user_agent, pool: Pool::new(limits), config }
    }

    /// Asks a broker for a tunnel of this agent: dials or reuses a connection, and opens a stream. What the broker
    /// answers [`Knock::answer`] tells. Of `meta`, what may reach an agent goes along.
    ///
    /// # Errors
    /// The broker cannot be reached, or was not a moment ago.
    pub async fn knock(
        &self,
        peer: &PeerUrl,
        agent: AgentId,
        method: &'static str,
        meta: &HashMap<String, Values>,
    ) -> Result<Knock, PeerError> {
        let mut headers = header_entries(meta);
        headers.insert(ROUTING_AGENT_ID, HeaderValue::from(agent.0));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        let (response, send, place) = self.open(peer, PathAndQuery::from_static(method), headers).await?;
        Ok(Knock::new(Call::new(response, send, place), peer.clone()))
    }

    /// For unary calls with generated clients: same connections, same JWT. The caller bounds how long it waits.
    pub fn channel(self: &Arc<Self>, peer: &PeerUrl) -> Channel {
        Channel::new(Arc::clone(self), peer.clone())
    }

    /// A stream on which the head of a request was sent.
    async fn open(
        &self,
        peer: &PeerUrl,
        path: PathAndQuery,
        headers: HeaderMap,
    ) -> Result<(ResponseFuture, SendStream<Bytes>, Place), PeerError> {
        let target = Target {
            url: peer.clone(),
            trust: self.config.trust.clone(),
            server_name: self.config.server_name.clone(),
        };
        if self.config.requires_tls && matches!(peer, PeerUrl::Tcp { tls: false, .. }) {
            return Err(PeerError::Clear { broker: peer.clone() });
        }
        let mut attempts = 1..=ATTEMPTS;
        loop {
            let place = self.pool.place(&target).await?;
            let request = self.request(&target, path.clone(), headers.clone());
            let failed = match place.send.clone().ready().await {
                Ok(mut send) => match send.send_request(request, false) {
                    Ok((response, stream)) => return Ok((response, stream, place)),
                    Err(failed) => failed,
                },
                Err(failed) => failed,
            };
            // Going away, as its task will notice soon.
            self.pool.forget(peer, &place);
            attempts.next();
            if attempts.is_empty() {
                return Err(PeerError::Lost { broker: peer.clone(), source: Arc::new(failed) });
            }
        }
    }

    fn request(&self, target: &Target, path: PathAndQuery, mut headers: HeaderMap) -> Request<()> {
        headers.insert(header::USER_AGENT, self.user_agent.clone());
        headers.insert(header::AUTHORIZATION, self.signer.bearer(SystemTime::now()));
        let (scheme, authority) = match &target.url {
            PeerUrl::Unix(_) => (uri::Scheme::HTTP, "localhost".to_owned()),
            PeerUrl::Tcp { host, port, tls } => {
                let scheme = if *tls { uri::Scheme::HTTPS } else { uri::Scheme::HTTP };
                let host = target.server_name.as_ref().filter(|_| *tls).unwrap_or(host);
                let bracketed = host.contains(':').then(|| format!("[{host}]:{port}"));
                (scheme, bracketed.unwrap_or_else(|| format!("{host}:{port}")))
            }
        };
        let mut parts = uri::Parts::default();
        parts.path_and_query = Some(path);
        parts.scheme = Some(scheme);
        // What is no authority can be a host name for the system all the same.
        parts.authority = authority.parse().ok().or_else(|| "broker".parse().ok());
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_parts(parts).expect("scheme, authority and path make a URI");
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = headers;
        request
    }
}

/// What of this may go to an agent, as headers.
fn header_entries(meta: &HashMap<String, Values>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (key, values) in meta.iter().filter(|(key, _)| metadata::may_reach_agent(key)) {
        let Ok(name) = HeaderName::try_from(key) else { continue };
        for value in &values.value {
            let value = match name.as_str().ends_with("-bin") {
                true => HeaderValue::try_from(STANDARD_NO_PAD.encode(value)),
                false => HeaderValue::try_from(value),
            };
            if let Ok(value) = value {
                headers.append(name.clone(), value);
            }
        }
    }
    headers
}

#[cfg(test)]
mod tests;
