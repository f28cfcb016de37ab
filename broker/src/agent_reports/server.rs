//! `AgentReports` over gRPC, with bounds of its own for each method: what is generated has one for all of them, and reads
//! the whole of a report before anybody can say no. Before it: [`super::Prompt`] and admission. After it:
//! [`ReportsService`], which reads a message when it is its turn.

use super::{
    ReportsService,
    codec::{self, Bounds, Counted, Told},
};
use futures::future::BoxFuture;
use http_body::Body;
use postern_wire::proto::postern::agent::agent_reports_server::SERVICE_NAME;
use prost::Message;
use std::{
    convert::Infallible,
    future::Future,
    task::{Context, Poll},
};
use tonic::{
    Request, Response, Status, Streaming,
    codegen::StdError,
    server::{ClientStreamingService, Grpc, NamedService},
};

const REPORT: &str = "/postern.agent.AgentReports/Report";
pub(super) const PUSH_VIEWS: &str = "/postern.agent.AgentReports/PushViews";

/// Serves both methods.
#[derive(Clone)]
pub struct Server(pub(super) ReportsService);

impl NamedService for Server {
    const NAME: &'static str = SERVICE_NAME;
}

impl<B> tower_service::Service<http::Request<B>> for Server
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let service = self.0.clone();
        match request.uri().path() {
            REPORT => {
                Box::pin(answer(
                    request,
                    codec::REPORT,
                    |request| async move { service.report(request).await },
                ))
            }
            PUSH_VIEWS => Box::pin(answer(request, codec::UPDATE, |request| async move {
                service.push_views(request).await
            })),
            _ => Box::pin(async { Ok(Status::unimplemented("there is no such method").into_http()) }),
        }
    }
}

/// A report is one message of a stream too, as far as the wire goes.
async fn answer<B, F, W, M, R>(
    request: http::Request<B>,
    bounds: Bounds,
    method: F,
) -> Result<http::Response<tonic::body::Body>, Infallible>
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
    F: FnOnce(Request<Streaming<Told<M>>>) -> W,
    W: Future<Output = Result<Response<R>, Status>>,
    M: Message + Default + 'static,
    R: Message + 'static,
{
    // Nothing compressed: agents do not send it here, and a few KiB of it become as much as is allowed.
    let mut grpc = Grpc::new(Counted::new(bounds)).apply_max_message_size_config(Some(bounds.bytes), None);
    Ok(grpc.client_streaming(Method(Some(method)), request).await)
}

/// Called once.
struct Method<F>(Option<F>);

impl<F, W, M, R> ClientStreamingService<Told<M>> for Method<F>
where
    F: FnOnce(Request<Streaming<Told<M>>>) -> W,
    W: Future<Output = Result<Response<R>, Status>>,
{
    type Response = R;
    type Future = W;

    fn call(&mut self, request: Request<Streaming<Told<M>>>) -> W {
        self.0.take().expect("a call has one method")(request)
    }
}
