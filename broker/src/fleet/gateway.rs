//! The private API's server: another broker, or a kas, asks for a tunnel of an agent, and its request runs through one
//! that this process holds. Before it: the router's `peers` of another broker. After it: `tunnel`. It looks only at its
//! own registry, so a request makes one hop at the most; and it reads nothing before the caller's JWT was good.

mod codec;
mod request;

use super::{jwt, peers::BROKER};
use crate::{
    api::jwt::Checked,
    drain::Running,
    gitlab::ServiceSecret,
    listeners::{agents, socket::Listener},
    tunnel::registry::Registry,
};
use codec::Raw;
use futures::future::BoxFuture;
use http::HeaderValue;
use postern_wire::metadata::Program;
use request::MakeRequest;
use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Status,
    body::Body,
    codec::CompressionEncoding,
    server::{Grpc, NamedService},
    service::Routes,
    transport::Server,
};

/// One stream nobody reads must not stop its siblings, so the connection's window is as large as HTTP/2 allows: what is
/// held unread is bounded by the streams. h2 derives from it how many small unread frames it bears before it ends the
/// connection, and all of a broker's requests with it.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Brokers of ours open another connection when one is full; a kas' calls would wait behind hour-long ones.
const MAX_STREAMS: u32 = 4096;
/// Of callers that vanished, whose tunnels are free only then.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_ACK: Duration = Duration::from_secs(10);
/// A request's metadata as it came to the other broker, and a JWT. In bytes.
const MAX_METADATA: u32 = 256 * 1024;
/// Streams that lost a race before this broker got to them; h2's default of 20 ends the connection.
const MAX_ABANDONED: usize = 4096;
/// For a unary call. What streams has its own limits.
const HEAD_LIMIT: Duration = Duration::from_secs(30);

/// Where tunnels come from, and who may ask.
#[derive(Debug)]
pub struct Gateway {
    /// Brokers sign their JWTs with it.
    pub secret: Arc<ServiceSecret>,
    /// The tunnels of this process.
    pub registry: Arc<Registry>,
    /// Which version this is.
    pub program: Program,
    /// Every request under way; a drain waits for them, and cuts them in the end.
    pub running: Running,
}

/// Serves on a bound listener until `closing`: new connections until `accepting` fires, then those that are open; what
/// waits for a tunnel ends when the registry drains. `beside` is served behind the same check. Certificate and secret
/// are read anew when their files change. A connection is asked to end at `max_age`.
pub fn serve(
    listener: Arc<Listener>,
    gateway: Gateway,
    beside: Routes,
    max_age: Duration,
    (accepting, closing): (CancellationToken, CancellationToken),
    tasks: &TaskTracker,
) {
    tasks.spawn(Arc::clone(&gateway.secret).keep_fresh(closing.clone()));
    if let Some(identity) = &listener.identity {
        tasks.spawn(Arc::clone(identity).keep_fresh(closing.clone()));
    }
    let connections = agents::accept_http(listener, false, accepting, closing.clone(), tasks);
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_ACK))
        .http2_max_header_list_size(MAX_METADATA)
        .http2_max_pending_accept_reset_streams(Some(MAX_ABANDONED))
        .max_connection_age(max_age)
        .timeout(HEAD_LIMIT)
        .add_routes(routes(gateway, beside));
    tasks.spawn(async move {
        let served = server.serve_with_incoming_shutdown(connections, closing.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(error = %crate::error::chain(&error), "the private API's listener failed");
        }
    });
}

/// All that is served, behind the one check.
fn routes(gateway: Gateway, beside: Routes) -> Routes {
    let Gateway { secret, registry, program, running } = gateway;
    let version = HeaderValue::from_static(program.version);
    let requests = KubernetesApi { requests: MakeRequest { registry, running }, version };
    let served = beside.add_service(requests);
    let checked = Checked::new(served.prepare(), secret, jwt::EXPECTED);
    Routes::from(Routes::default().into_axum_router().fallback_service(checked))
}

/// The agent's own service, every message of it as it is.
#[derive(Clone)]
struct KubernetesApi {
    requests: MakeRequest,
    version: HeaderValue,
}

impl NamedService for KubernetesApi {
    const NAME: &'static str = "gitlab.agent.kubernetes_api.rpc.KubernetesApi";
}

impl tower_service::Service<http::Request<Body>> for KubernetesApi {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Self { requests, version } = self.clone();
        Box::pin(async move {
            if request.uri().path() != request::METHOD {
                return Ok(Status::unimplemented("").into_http());
            }
            let mut response = Grpc::new(Raw)
                .accept_compressed(CompressionEncoding::Gzip)
                .max_decoding_message_size(super::peers::MAX_MESSAGE)
                .streaming(requests, request)
                .await;
            response.headers_mut().insert(BROKER, version);
            Ok(response)
        })
    }
}

#[cfg(test)]
mod tests;
