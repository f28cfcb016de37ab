//! A small Kubernetes API server in this process: what an agent forwards to when there is no cluster. Plain `kubectl`
//! can discover, get, apply, create, edit, delete, watch and read logs; nothing is scheduled and nothing runs. Listens
//! on loopback on a free port, in plain HTTP/1.1 or over TLS, and is gone when the `KubeApi` is dropped.

mod counters;
mod defaults;
mod knobs;
mod logs;
mod moods;
mod objects;
mod patch;
mod protobuf;
mod resources;
mod routes;
mod selectors;
mod status;
mod store;
mod table;
mod watch;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::StatusCode;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

use counters::Counters;
pub use counters::Seen;
use moods::Moods;
use store::Store;

const MAX_CONNECTIONS: usize = 4_096;
/// A peer that connects and says nothing is let go after this long.
const OPENING_TIMEOUT: Duration = Duration::from_secs(30);

/// How the stand-in is to behave; the default is plain HTTP, no token, a log line per second.
pub struct Options {
    /// `None`: plain HTTP.
    pub tls: Option<Tls>,
    /// The bearer token that every request but the health checks must carry; `None`: anyone may ask.
    pub token: Option<String>,
    /// Time between two lines of a pod's log.
    pub log_tick: Duration,
    /// Time between two bookmarks of a watch that asked for them.
    pub bookmark_every: Duration,
    /// Changes remembered for watches; older ones are answered with 410.
    pub history: usize,
}

/// A certificate for `127.0.0.1`, and the CA that a client must trust to believe it. All PEM.
pub struct Tls {
    pub certificate_pem: String,
    pub key_pem: String,
    pub ca_pem: String,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            tls: None,
            token: None,
            log_tick: Duration::from_secs(1),
            bookmark_every: Duration::from_secs(30),
            history: 4_096,
        }
    }
}

/// Why the stand-in did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No loopback port could be had.
    #[error("the stand-in API server cannot listen on 127.0.0.1")]
    Listen(#[source] io::Error),
    /// The certificate or key is not PEM.
    #[error("the stand-in API server's certificate or key is not valid PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// The certificate and key do not fit together or cannot be used.
    #[error("the stand-in API server's certificate and key cannot be used")]
    Tls(#[source] rustls::Error),
}

/// An object that the stand-in does not take; says why, as the API would.
#[derive(Debug, thiserror::Error)]
#[error("the stand-in API server does not take this object: {0}")]
pub struct Refused(String);

/// A running stand-in; stops when dropped.
pub struct KubeApi {
    address: SocketAddr,
    state: Arc<State>,
    ca_pem: Option<String>,
    acceptor: Option<TlsAcceptor>,
    /// Absent while the server is down.
    serving: Option<Serving>,
}

struct Serving {
    accepting: JoinHandle<()>,
    _stop: DropGuard,
}

/// What all connections share.
#[derive(Clone)]
struct State {
    store: Arc<Store>,
    counters: Arc<Counters>,
    moods: Arc<Moods>,
    token: Option<String>,
    log_tick: Duration,
    bookmark_every: Duration,
    /// Numbers for `generateName`.
    generated: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl KubeApi {
    /// Listens on a free port of 127.0.0.1 and serves until dropped. Must be called in a Tokio runtime.
    pub async fn start(options: Options) -> Result<KubeApi, StartError> {
        let acceptor = options.tls.as_ref().map(acceptor).transpose()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(StartError::Listen)?;
        let address = listener.local_addr().map_err(StartError::Listen)?;
        let stop = CancellationToken::new();
        let state = Arc::new(State {
            store: Arc::new(Store::new(options.history.max(1))),
            counters: Arc::new(Counters::default()),
            moods: Arc::default(),
            token: options.token,
            log_tick: options.log_tick.max(Duration::from_millis(1)),
            bookmark_every: options.bookmark_every,
            generated: Arc::default(),
            stop: stop.clone(),
        });
        for namespace in ["default", "kube-system", "kube-public"] {
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
            objects::create_directly(&state, object).expect("the first namespaces are valid and new");
        }
        let accepting = tokio::spawn(accept(listener, acceptor.clone(), state.clone()));
        let ca_pem = options.tls.map(|tls| tls.ca_pem);
        let serving = Some(Serving { accepting, _stop: stop.drop_guard() });
        Ok(KubeApi { address, state, ca_pem, acceptor, serving })
    }

    /// Ends all connections and refuses new ones, as a server that restarts does.
    pub async fn stop(&mut self) {
        if let Some(Serving { accepting, _stop }) = self.serving.take() {
            drop(_stop);
            let _ = accepting.await;
        }
    }

    /// Serves again after [`KubeApi::stop`], at the same address and with the same objects.
    pub async fn serve_again(&mut self) -> Result<(), StartError> {
        let listener = TcpListener::bind(self.address).await.map_err(StartError::Listen)?;
        let stop = CancellationToken::new();
        self.state = Arc::new(State { stop: stop.clone(), ..(*self.state).clone() });
        let accepting = tokio::spawn(accept(listener, self.acceptor.clone(), self.state.clone()));
        self.serving = Some(Serving { accepting, _stop: stop.drop_guard() });
        Ok(())
    }

    /// Takes requests and answers none until this is called with `false`. Answers that have begun go on.
    pub fn be_silent(&self, silent: bool) {
        self.state.moods.be_silent(silent);
    }

    /// Refuses the next requests, whatever they ask for, with a `Retry-After` of a second.
    pub fn refuse(&self, requests: u32, code: StatusCode) {
        self.state.moods.refuse(requests, code);
    }

    /// Forgets what changed up to now: watches that begin before it, and lists that go on from before it, get a 410.
    pub fn forget_history(&self) {
        self.state.store.compact();
    }

    /// Deletes an object without a request.
    pub fn delete(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Result<(), Refused> {
        objects::delete_directly(&self.state, api_version, kind, namespace, name).map(|_| ()).map_err(refused)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:<port>` or `https://..`.
    pub fn url(&self) -> String {
        let scheme = if self.ca_pem.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// A kubeconfig for this server, token included: give its file mode 0600.
    pub fn kubeconfig(&self) -> String {
        let mut cluster = json!({"server": self.url()});
        if let Some(pem) = &self.ca_pem {
            cluster["certificate-authority-data"] = json!(BASE64.encode(pem));
        }
        let user = match &self.state.token {
            Some(token) => json!({"token": token}),
            None => json!({}),
        };
        let name = "stand-in";
        let document = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        });
        // JSON is YAML; written as YAML because people read kubeconfigs.
        serde_yaml::to_string(&document).unwrap_or_else(|_| document.to_string())
    }

    /// Creates an object (in `default` if it names no namespace) without a request.
    pub fn create(&self, object: Value) -> Result<(), Refused> {
        objects::create_directly(&self.state, object).map(|_| ()).map_err(refused)
    }

    /// The last requests that arrived, oldest first; bounded.
    pub fn requests(&self) -> Vec<Seen> {
        self.state.counters.seen()
    }

    /// Requests that are open now: all, whatever they ask for.
    pub fn open(&self) -> u64 {
        self.state.counters.open_in_all()
    }

    /// Requests of one kind that are open now: `watch`, `log`, `read`, `write`, `slow`, `stream-forever`, `sink`,
    /// `never-reads` or `echo`.
    pub fn open_of(&self, kind: &str) -> u64 {
        self.state.counters.open_of(kind)
    }
}

fn refused(failure: status::Failure) -> Refused {
    Refused(failure.status()["message"].as_str().unwrap_or_default().to_owned())
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
                tracing::warn!(%error, "stand-in API server cannot accept");
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
                                tracing::debug!(%error, "stand-in API server: TLS handshake failed")
                            }
                            Err(_) => tracing::debug!("stand-in API server: TLS handshake took too long"),
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
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(routes::answer(state, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(OPENING_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "stand-in API server: connection ended");
    }
}
