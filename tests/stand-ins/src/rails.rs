//! A small GitLab Rails in this process: the internal API that a kas calls, with its order of checks, its statuses and
//! its JSON. Agents, projects and CI jobs are whatever [`Options`] say. Faults can be set per endpoint while it runs,
//! and every request is remembered, secrets as hashes only. Gone when the [`Rails`] is dropped.
//!
//! One module exists in no real GitLab: `stand_in_echo` sends headers and body back as they come.

mod faults;
mod fixtures;
pub mod jwt;
mod record;
mod routes;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use faults::{Faults, HangUp, Truncated};
pub use fixtures::{Agent, Job, Project, User};
use record::Records;
pub use record::{Endpoint, Seen};

const MAX_CONNECTIONS: usize = 4_096;
/// A peer that connects and says nothing is let go after this long.
const OPENING_TIMEOUT: Duration = Duration::from_secs(30);

/// What this GitLab knows and how it answers. The default knows nobody.
pub struct Options {
    /// Shared with the kas that calls; 32 bytes.
    pub secret: [u8; 32],
    /// `None`: plain HTTP.
    pub tls: Option<Tls>,
    /// Listens there, as one that was restarted; `None`: on a free port of 127.0.0.1.
    pub address: Option<SocketAddr>,
    /// Where GitLab is installed below the host, such as `/gitlab`; empty for the root.
    pub relative_path: String,
    /// Agents, by their tokens.
    pub agents: Vec<Agent>,
    /// Projects besides those of the agents.
    pub projects: Vec<Project>,
    /// CI jobs, by their tokens.
    pub jobs: Vec<Job>,
    /// Users, by their personal access tokens and session cookies.
    pub users: Vec<User>,
    /// Whether `default_branch` is in answers: newest Rails.
    pub default_branch: bool,
    /// What `aud` must contain: newest Rails check it, those of 14.x do not.
    pub check_audience: bool,
    /// Seconds by which this GitLab's clock is ahead.
    pub clock_ahead: f64,
}

/// A certificate for `127.0.0.1` and its key, PEM.
pub struct Tls {
    pub certificate_pem: String,
    pub key_pem: String,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            secret: std::array::from_fn(|index| u8::try_from(index).unwrap_or_default()),
            tls: None,
            address: None,
            relative_path: String::new(),
            agents: Vec::new(),
            projects: Vec::new(),
            jobs: Vec::new(),
            users: Vec::new(),
            default_branch: true,
            check_audience: true,
            clock_ahead: 0.0,
        }
    }
}

/// Why the stand-in did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No loopback port could be had, or not the one that was asked for.
    #[error("the stand-in GitLab cannot listen on 127.0.0.1")]
    Listen(#[source] io::Error),
    /// The certificate or key is not PEM.
    #[error("the stand-in GitLab's certificate or key is not valid PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// The certificate and key do not fit together or cannot be used.
    #[error("the stand-in GitLab's certificate and key cannot be used")]
    Tls(#[source] rustls::Error),
}

/// A running stand-in; stops when dropped.
pub struct Rails {
    address: SocketAddr,
    tls: bool,
    state: Arc<State>,
    _stop: DropGuard,
}

/// What all connections share.
struct State {
    options: Options,
    changing: Mutex<Changing>,
    records: Records,
    stop: CancellationToken,
}

/// What a test turns while the stand-in runs.
struct Changing {
    feature_enabled: bool,
    revoked: Vec<String>,
    faults: BTreeMap<Endpoint, Faults>,
    /// Sums of counters and the newest sets of unique ones.
    usage: BTreeMap<String, i64>,
    /// The newest configuration of each agent.
    configurations: BTreeMap<i64, Value>,
}

impl State {
    fn changing(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rails {
    /// Listens and serves until dropped. Must be called in a Tokio runtime.
    pub async fn start(options: Options) -> Result<Rails, StartError> {
        let acceptor = options.tls.as_ref().map(acceptor).transpose()?;
        let wanted = options.address.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 0).into());
        let listener = TcpListener::bind(wanted).await.map_err(StartError::Listen)?;
        let address = listener.local_addr().map_err(StartError::Listen)?;
        let stop = CancellationToken::new();
        let changing = Changing {
            feature_enabled: true,
            revoked: Vec::new(),
            faults: BTreeMap::new(),
            usage: BTreeMap::new(),
            configurations: BTreeMap::new(),
        };
        let state = Arc::new(State {
            options,
            changing: Mutex::new(changing),
            records: Records::default(),
            stop: stop.clone(),
        });
        let tls = acceptor.is_some();
        tokio::spawn(accept(listener, acceptor, state.clone()));
        Ok(Rails { address, tls, state, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What stands in `gitlab.address`: scheme, host, port and the relative path.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.address, self.state.options.relative_path)
    }

    /// What stands in `gitlab.authentication_secret_file`.
    pub fn secret_file(&self) -> String {
        format!("{}\n", BASE64.encode(self.state.options.secret))
    }

    /// From now on an endpoint behaves like this; `Faults::default()` makes it well again.
    pub fn set_faults(&self, endpoint: Endpoint, faults: Faults) {
        self.state.changing().faults.insert(endpoint, faults);
    }

    /// A token of an agent, a job or a user, or a session's cookie, that is no longer good.
    pub fn revoke(&self, token: &str) {
        self.state.changing().revoked.push(token.to_owned());
    }

    /// The feature flag of Rails 14.1; off: everything internal is 404.
    pub fn set_feature(&self, state: Feature) {
        self.state.changing().feature_enabled = state == Feature::On;
    }

    /// The last requests that arrived, oldest first; bounded.
    pub fn requests(&self) -> Vec<Seen> {
        self.state.records.seen()
    }

    /// How many requests of this endpoint have ever arrived.
    pub fn calls(&self, endpoint: Endpoint) -> u64 {
        self.state.records.calls(endpoint)
    }

    /// Changes whenever a request arrives, for tests that wait for one.
    pub fn arrivals(&self) -> watch::Receiver<u64> {
        self.state.records.arrivals()
    }

    /// The sum of a usage counter, whichever form it came in.
    pub fn usage(&self, counter: &str) -> i64 {
        self.state.changing().usage.get(counter).copied().unwrap_or(0)
    }

    /// The configuration that was last reported for an agent.
    pub fn configuration(&self, agent_id: i64) -> Option<Value> {
        self.state.changing().configurations.get(&agent_id).cloned()
    }
}

/// Whether `kubernetes_agent_internal_api` is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    On,
    Off,
}

fn acceptor(tls: &Tls) -> Result<TlsAcceptor, StartError> {
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(tls.certificate_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(StartError::Pem)?;
    let key = PrivateKeyDer::from_pem_slice(tls.key_pem.as_bytes()).map_err(StartError::Pem)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(StartError::Tls)?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(StartError::Tls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, state: Arc<State>) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = free.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = state.stop.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: the next try must not spin.
                tracing::warn!(%error, "stand-in GitLab cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (acceptor, state) = (acceptor.clone(), state.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let stop = state.stop.clone();
            let connection = async {
                match acceptor {
                    None => serve(stream, state).await,
                    Some(acceptor) => {
                        match tokio::time::timeout(OPENING_TIMEOUT, acceptor.accept(stream)).await {
                            Ok(Ok(stream)) => serve(stream, state).await,
                            Ok(Err(error)) => {
                                tracing::debug!(%error, "stand-in GitLab: TLS handshake failed")
                            }
                            Err(_) => tracing::debug!("stand-in GitLab: TLS handshake took too long"),
                        }
                    }
                }
            };
            tokio::select! {
                () = connection => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, state: Arc<State>) {
    // An error of the service is the knob that closes the connection without an answer.
    let service = service_fn(move |request| routes::answer(state.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(OPENING_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "stand-in GitLab: connection ended");
    }
}
