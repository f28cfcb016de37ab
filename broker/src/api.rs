//! What GitLab Rails asks of a kas, on a listener of its own: who is connected, which agents a project configures, "this
//! project was pushed to", which version this is. Everything here wants a JWT of Rails' ([`jwt`]) before anything is
//! read; what is answered comes from [`crate::fleet::roster`] and [`crate::gitaly`]. Operators ask here too, over plain
//! HTTP: [`agents`], and what agents tell of themselves, [`agent_gitops`] and [`agent_views`]. No agent ever connects here.

mod agent_gitops;
pub(crate) mod agent_views;
mod agents;
mod configuration_files;
pub mod jwt;
mod services;

pub use self::services::OnPush;

use crate::{
    agent_reports::known::Known,
    config::ApiConfig,
    fleet::roster::Roster,
    gitaly::Gitaly,
    gitlab::{SecretError, SecretLength, ServiceSecret},
    listeners::{agents::accept_http, socket::Listener},
    observability::KnownMetrics,
};
use futures::future::BoxFuture;
use jwt::Checked;
use postern_wire::{
    metadata::Program,
    proto::gitlab::agent::{
        agent_tracker::rpc::agent_tracker_server::AgentTrackerServer,
        configuration_project::rpc::configuration_project_server::ConfigurationProjectServer,
        notifications::rpc::notifications_server::NotificationsServer,
        server_info::rpc::server_info_server::ServerInfoServer,
    },
};
use services::{AgentTrackerService, ConfigurationProjectService, NotificationsService, ServerInfoService};
use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{body::Body, codec::CompressionEncoding, service::Routes, transport::Server};

/// A list of ids, or where a repository is; in bytes.
const MAX_MESSAGE: usize = 64 * 1024;
/// A JWT and feature flags; in bytes.
const MAX_METADATA: u32 = 64 * 1024;
/// A process of Rails has one connection for all its threads.
const MAX_STREAMS: u32 = 1024;
/// kas' own numbers; load balancers cut idle connections after 60 s.
const KEEPALIVE: Duration = Duration::from_secs(50);
const KEEPALIVE_ACK: Duration = Duration::from_secs(20);
/// Rails waits 2 to 5 s; this is for callers that set no deadline.
const HEAD_LIMIT: Duration = Duration::from_secs(30);

/// What the answers come from.
pub struct Api {
    /// Rails signs its JWTs with it.
    pub secret: Arc<ServiceSecret>,
    /// Who is connected.
    pub roster: Roster,
    /// What agents told.
    pub known: Known,
    /// Counts who reads it.
    pub metrics: KnownMetrics,
    /// Where GitLab keeps repositories; absent: this broker has no GitLab.
    pub gitaly: Option<Arc<Gitaly>>,
    /// Told the full path of each project that was pushed to; it must not wait.
    pub on_push: OnPush,
    /// Which version this is.
    pub program: Program,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("secret", &self.secret)
            .field("roster", &self.roster)
            .finish_non_exhaustive()
    }
}

type Answer = BoxFuture<'static, http::Response<Body>>;

/// Something else over HTTP, of either version, on the same port and behind the same check.
#[derive(Clone)]
pub struct Beside {
    /// Begins with a slash; exactly this one, but for segments in braces, which stand for any.
    pub path: &'static str,
    /// Answers a request; it has to end what streams for long itself, at the latest when the broker stops.
    pub answer: Arc<dyn Fn(http::Request<Body>) -> Answer + Send + Sync>,
}

impl fmt::Debug for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beside").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Reads the secret that Rails signs with: base64 of at least a byte.
pub fn secret(config: &ApiConfig) -> Result<Arc<ServiceSecret>, SecretError> {
    let path = config.authentication_secret_file.clone();
    ServiceSecret::load_of(path, SecretLength::Any).map(Arc::new)
}

/// Serves on a bound listener until `closing`: new connections until `accepting` fires, then those that are open.
/// Certificate and secret are read anew when their files change. A connection is asked to end at `max_age`.
pub fn serve(
    listener: Arc<Listener>,
    api: Api,
    beside: Option<Beside>,
    max_age: Duration,
    (accepting, closing): (CancellationToken, CancellationToken),
    tasks: &TaskTracker,
) {
    tasks.spawn(Arc::clone(&api.secret).keep_fresh(closing.clone()));
    if let Some(identity) = &listener.identity {
        tasks.spawn(Arc::clone(identity).keep_fresh(closing.clone()));
    }
    let connections = accept_http(listener, true, accepting, closing.clone(), tasks);
    let server = Server::builder()
        .accept_http1(true)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_ACK))
        .http2_max_header_list_size(MAX_METADATA)
        .max_connection_age(max_age)
        .timeout(HEAD_LIMIT)
        .add_routes(routes(api, beside, &closing));
    tasks.spawn(async move {
        let served = server.serve_with_incoming_shutdown(connections, closing.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(error = %crate::error::chain(&error), "the API listener failed");
        }
    });
}

/// All that is served, behind the one check: what is not served is not told to strangers either.
fn routes(api: Api, beside: Option<Beside>, closing: &CancellationToken) -> Routes {
    let Api { secret, roster, known, metrics, gitaly, on_push, program } = api;
    let views = agent_views::beside(known.clone(), agent_views::WATCHERS, &metrics, closing.clone());
    let beside =
        [agents::beside(roster.clone()), agent_gitops::beside(known)].into_iter().chain(views).chain(beside);
    // Rails does not compress; a grpc library may be told to.
    let gzip = CompressionEncoding::Gzip;
    macro_rules! bounded {
        ($server:ident, $service:expr) => {
            $server::new($service).accept_compressed(gzip).max_decoding_message_size(MAX_MESSAGE)
        };
    }
    let mut served = Routes::new(bounded!(AgentTrackerServer, AgentTrackerService { roster }))
        .add_service(bounded!(ConfigurationProjectServer, ConfigurationProjectService::new(gitaly)))
        .add_service(bounded!(NotificationsServer, NotificationsService { on_push }))
        .add_service(bounded!(ServerInfoServer, ServerInfoService { program }));
    for beside in beside {
        let router = std::mem::take(served.axum_router_mut());
        *served.axum_router_mut() = router.route_service(beside.path, beside);
    }
    let checked = Checked::new(served.prepare(), secret, jwt::RAILS);
    Routes::from(Routes::default().into_axum_router().fallback_service(checked))
}

impl<B> tower_service::Service<http::Request<B>> for Beside
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let answer = (self.answer)(request.map(Body::new));
        Box::pin(async move { Ok(answer.await) })
    }
}

#[cfg(test)]
mod tests;
