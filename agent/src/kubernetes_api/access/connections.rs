//! Which connection to the API server a request takes. Over TLS a server that speaks HTTP/2 gets few connections with many
//! streams each: a watch then costs the agent a few KiB instead of a connection with buffers and TLS state of its own.
//! Before it: credentials and base URL. After it: TLS or plain TCP.
//!
//! Only what reads objects shares: it ends when its answer does, and may be asked for again. Bodies, logs, proxies and what
//! switches protocols have connections of their own over HTTP/1.1, and so has what no shared one has room for: nobody waits
//! for somebody else, who may take for ever.

use super::{ApiRequest, Limited, RequestBody};
use bytes::Bytes;
use http::{Method, Request, Response, Uri, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::Connection},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{Config, client::ConfigExt};
use rustls::pki_types::ServerName;
use std::{
    error::Error,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tower::{BoxError, Service};

/// Go's API server closes idle connections after a minute and a half; ours go before that.
const IDLE: Duration = Duration::from_secs(60);
/// HTTP/1.1 takes one connection per request in flight; a burst need not dial all of them anew.
const IDLE_CONNECTIONS: usize = 100;
/// Connections that are shared at most.
const SHARED: usize = 8;
/// Requests on one of them: as many as every server allows that heeds RFC 9113, section 6.5.2.
const STREAMS: usize = 100;
/// An API server answers within a minute, or says that it cannot. One that has not begun to may allow fewer streams than
/// that, and is asked again on a connection without any other.
const BEGINS: Duration = Duration::from_secs(75);
/// What the API server may send on a stream before its caller reads, in bytes.
const STREAM_WINDOW: u32 = 256 << 10;
/// Likewise on all of them together: no bound beyond theirs, or callers who do not read would hold up the others. h2 also
/// derives from it how many small frames it keeps before it gives up the connection.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Of an answer's head. Go allows its clients ten MiB; nothing of Kubernetes comes close.
const HEAD: u32 = 256 << 10;
/// A connection on which nothing comes for so long is asked whether it lives, as client-go does it,
const PING_AFTER: Duration = Duration::from_secs(30);
/// and ends without an answer in this time.
const PING_WAITS: Duration = Duration::from_secs(15);

/// All connections to one API server. Clones are the same ones.
#[derive(Clone)]
pub(super) struct Connections<C> {
    alone: Client<C>,
    shared: Arc<[Shared<C>]>,
    /// Within which a shared one begins an answer.
    begins: Duration,
}

type Client<C> = legacy::Client<Limited<HttpsConnector<C>>, RequestBody>;

struct Shared<C> {
    client: Client<C>,
    room: Arc<Semaphore>,
}

/// The body of an answer, which keeps its place on a shared connection until it is dropped.
pub(crate) struct AnswerBody {
    body: Incoming,
    _place: Option<OwnedSemaphorePermit>,
}

impl<C> Connections<C>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: hyper::rt::Read + hyper::rt::Write + Connection + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    /// None is open yet. The error is one line for the operator.
    pub(super) fn new(config: &Config, connector: C) -> Result<Self, String> {
        let tls = |error: kube::Error| super::explain(&error);
        let alone = config.rustls_https_connector_with_connector(connector.clone()).map_err(tls)?;
        let alone = builder().pool_max_idle_per_host(IDLE_CONNECTIONS).build(Limited(alone));
        // Without TLS nobody tells that the server knows HTTP/2.
        if config.cluster_url.scheme_str() != Some("https") {
            return Ok(Self { alone, shared: Arc::default(), begins: BEGINS });
        }
        let mut tls = HttpsConnectorBuilder::new()
            .with_tls_config(config.rustls_client_config().map_err(tls)?)
            .https_or_http();
        if let Some(name) = &config.tls_server_name {
            let name = ServerName::try_from(name.clone()).map_err(|_| {
                format!("{name:?} is not a name that a certificate can have (tls-server-name)")
            })?;
            tls = tls.with_server_name_resolver(FixedServerNameResolver::new(name));
        }
        let tls = Limited(tls.enable_all_versions().wrap_connector(connector));
        let shared = || {
            let client = builder()
                // Streams do not count as use; the server's end is noticed, and what it did not begin is asked for again.
                .pool_idle_timeout(None)
                .pool_max_idle_per_host(IDLE_CONNECTIONS)
                .timer(TokioTimer::new())
                .http2_initial_stream_window_size(STREAM_WINDOW)
                .http2_initial_connection_window_size(CONNECTION_WINDOW)
                .http2_max_header_list_size(HEAD)
                .http2_keep_alive_interval(PING_AFTER)
                .http2_keep_alive_timeout(PING_WAITS)
                // All callers may leave at once; what was on its way to them is no mistake of the server's.
                .http2_max_concurrent_reset_streams(STREAMS)
                .http2_max_local_error_reset_streams(None)
                .build(tls.clone());
            Shared { client, room: Arc::new(Semaphore::new(STREAMS)) }
        };
        Ok(Self { alone, shared: (0..SHARED).map(|_| shared()).collect(), begins: BEGINS })
    }

    /// The first with room, so that there are as few as can be.
    fn shared(&self) -> Option<(&Client<C>, OwnedSemaphorePermit)> {
        self.shared.iter().find_map(|shared| {
            let place = Arc::clone(&shared.room).try_acquire_owned().ok()?;
            Some((&shared.client, place))
        })
    }
}

fn builder() -> legacy::Builder {
    let mut builder = legacy::Builder::new(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE);
    builder
}

impl<C> Service<ApiRequest> for Connections<C>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: hyper::rt::Read + hyper::rt::Write + Connection + Send + Unpin + 'static,
    C::Future: Send + Unpin + 'static,
    C::Error: Into<BoxError> + Send + Sync,
{
    type Response = Response<AnswerBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: ApiRequest) -> Self::Future {
        let Some((again, (client, place))) = again(&request).zip(self.shared()) else {
            let answer = self.alone.request(request);
            return Box::pin(async move { Ok(answer.await?.map(|body| AnswerBody { body, _place: None })) });
        };
        let answer = timeout(self.begins, client.request(request));
        let alone = self.alone.clone();
        Box::pin(async move {
            match answer.await {
                Ok(Ok(answer)) => return Ok(answer.map(|body| AnswerBody { body, _place: Some(place) })),
                Ok(Err(error)) if !was_not_begun(&error) => return Err(error.into()),
                Ok(Err(_)) | Err(_) => drop(place),
            }
            Ok(alone.request(again).await?.map(|body| AnswerBody { body, _place: None }))
        })
    }
}

/// The same request once more, if it is one that may share a connection.
fn again(request: &ApiRequest) -> Option<ApiRequest> {
    let is_reading =
        matches!(*request.method(), Method::GET | Method::HEAD) && request.body().is_end_stream();
    // What programs in the cluster say comes in frames of any size, each of which takes memory until it is read.
    let is_of_objects =
        !request.uri().path().split('/').any(|part| matches!(part, "log" | "logs" | "proxy" | "exec"));
    if !is_reading || !is_of_objects || request.headers().contains_key(header::UPGRADE) {
        return None;
    }
    let mut again = Request::new(RequestBody::whole(Bytes::new()));
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    Some(again)
}

/// The server left the connection, or refused the stream, before it looked at the request.
fn was_not_begun(error: &legacy::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.is_remote()
                && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM));
        }
        cause = error.source();
    }
    false
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
