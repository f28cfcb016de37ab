//! How the Kubernetes API is reached and with whose credentials: kubeconfig, flags or the pod's service account, loaded
//! by `kube`. The HTTP client on top is our own: kube's would decompress bodies, retry, buffer and log queries.

mod connections;
mod credentials;

pub(crate) use connections::AnswerBody;
use connections::Connections;
pub use credentials::{AccessError, Overrides, Settings};

use super::{ApiRequest, RequestBody};
use crate::{broker::proxy::Proxy, error};
use arc_swap::ArcSwap;
use http::{Response, Uri};
use hyper_util::client::legacy::{
    self,
    connect::{HttpConnector, proxy::Tunnel},
};
use kube::{
    Config,
    client::{AuthError, ConfigExt},
};
use std::{
    error::Error,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};
use tower::{BoxError, Layer, Service, ServiceExt, util::BoxCloneSyncService};

/// TCP to the API server.
const CONNECT: Duration = Duration::from_secs(10);
/// TCP, proxy and TLS together.
const HANDSHAKES: Duration = Duration::from_secs(20);
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Certificates of credential plugins are replaced this long before they expire.
const EXPIRES_SOON: Duration = Duration::from_secs(30);

type Client = BoxCloneSyncService<ApiRequest, Response<AnswerBody>, BoxError>;

/// The way to one cluster's API. Clones are the same way, connections and credentials included.
#[derive(Clone)]
pub struct Access(Arc<Way>);

struct Way {
    settings: Settings,
    loaded: ArcSwap<Loaded>,
    reloading: tokio::sync::Mutex<()>,
}

struct Loaded {
    client: Client,
    expires: Option<SystemTime>,
    impersonates: bool,
}

/// A request that the API server did not answer. One line, safe to show to the caller.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unanswered(String);

impl Access {
    /// Reads the credentials and prepares a client; does not talk to the API server yet.
    pub async fn load(settings: Settings) -> Result<Self, AccessError> {
        let loaded = Loaded::new(&settings).await?;
        let (loaded, reloading) = (ArcSwap::from_pointee(loaded), tokio::sync::Mutex::new(()));
        Ok(Self(Arc::new(Way { settings, loaded, reloading })))
    }

    /// `--request-timeout`: how long a whole request may take.
    pub fn request_timeout(&self) -> Option<Duration> {
        self.0.settings.request_timeout
    }

    /// Whether the credentials impersonate somebody already.
    pub fn impersonates(&self) -> bool {
        self.0.loaded.load().impersonates
    }

    /// Sends a request whose URI is a path; answers with the head, the body is still to come.
    pub(crate) async fn send(&self, request: ApiRequest) -> Result<Response<AnswerBody>, Unanswered> {
        self.0.refresh().await?;
        let client = self.0.loaded.load().client.clone();
        client.oneshot(request).await.map_err(|error| Unanswered(explain(&*error)))
    }
}

impl Way {
    async fn refresh(&self) -> Result<(), Unanswered> {
        if !self.loaded.load().expired() {
            return Ok(());
        }
        let _one_at_a_time = self.reloading.lock().await;
        if self.loaded.load().expired() {
            let loaded = Loaded::new(&self.settings).await.map_err(|error| Unanswered(explain(&error)))?;
            self.loaded.store(Arc::new(loaded));
        }
        Ok(())
    }
}

impl Loaded {
    async fn new(settings: &Settings) -> Result<Self, AccessError> {
        let (config, proxy) = settings.read().await?;
        let impersonates = config.auth_info.impersonate.is_some() || !config.headers.is_empty();
        let build = move || -> Result<(Client, Option<SystemTime>), AccessError> {
            let client = client(&config, proxy)?;
            // Only plugins' certificates expire under a client; kube refreshes tokens by itself.
            let expires = match config.auth_info.exec.is_some() && config.auth_info.token.is_none() {
                true => {
                    let probe = kube::Client::try_from(config).map_err(AccessError::client)?;
                    probe.valid_until().map(SystemTime::from)
                }
                false => None,
            };
            Ok((client, expires))
        };
        // Credential plugins are programs that are waited for.
        let built = tokio::task::spawn_blocking(build).await;
        let (client, expires) = built.map_err(|_| AccessError::Plugin)??;
        Ok(Self { client, expires, impersonates })
    }

    fn expired(&self) -> bool {
        self.expires.is_some_and(|at| SystemTime::now() + EXPIRES_SOON >= at)
    }
}

fn client(config: &Config, proxy: Option<Proxy>) -> Result<Client, AccessError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_connect_timeout(Some(CONNECT));
    let Some(proxy) = proxy else {
        return stack(config, tcp);
    };
    proxy.check().map_err(AccessError::Proxy)?;
    let (uri, authorization) = proxy.parts();
    if proxy.tls() {
        let tls = config.rustls_https_connector_with_connector(tcp).map_err(AccessError::client)?;
        return stack(config, with_auth(Tunnel::new(uri.clone(), tls), authorization));
    }
    stack(config, with_auth(Tunnel::new(uri.clone(), tcp), authorization))
}

fn with_auth<C>(tunnel: Tunnel<C>, authorization: Option<&http::HeaderValue>) -> Tunnel<C> {
    match authorization {
        Some(value) => tunnel.with_auth(value.clone()),
        None => tunnel,
    }
}

/// TLS, connections, impersonation, credentials and base URL around a connector, in kube's order.
fn stack<C>(config: &Config, connector: C) -> Result<Client, AccessError>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: hyper::rt::Read + hyper::rt::Write + legacy::connect::Connection + Send + Unpin + 'static,
    C::Future: Send + Unpin + 'static,
    C::Error: Into<BoxError> + Send + Sync + 'static,
{
    let service = Connections::new(config, connector).map_err(|what| AccessError::Client { what })?;
    let service = config.extra_headers_layer().map_err(AccessError::client)?.layer(service);
    let base = config.base_uri_layer();
    Ok(match config.auth_layer().map_err(AccessError::client)? {
        Some(auth) => BoxCloneSyncService::new(base.layer(auth.layer(service))),
        None => BoxCloneSyncService::new(base.layer(service)),
    })
}

/// Bounds a connector: a peer that accepts and then says nothing must not hold a request for ever.
#[derive(Clone)]
struct Limited<C>(C);

impl<C> Service<Uri> for Limited<C>
where
    C: Service<Uri>,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = tokio::time::timeout(HANDSHAKES, self.0.call(uri));
        Box::pin(async move {
            match connecting.await {
                Ok(connected) => connected.map_err(Into::into),
                Err(_) => Err(format!("no connection to the API server within {HANDSHAKES:?}").into()),
            }
        })
    }
}

/// One line without a credential plugin's arguments and output: either may well hold the credential.
fn explain(error: &(dyn Error + 'static)) -> String {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(AuthError::AuthExecRun { status, .. }) = error.downcast_ref::<AuthError>() {
            return format!(
                "the credential plugin of the kubeconfig failed: {status}; run kubectl with it to see why"
            );
        }
        cause = error.source();
    }
    error::chain(error)
}
