//! Answers the head of one method's calls before its work is done. An agent sends on such a call for hours, while the
//! server gives a head 30 s, and what stands between may give it less. Before it: admission. After it: the service, whose
//! status and metadata come as trailers; the work ends with the call, also where nobody reads the answer.

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Frame;
use std::{
    convert::Infallible,
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, body::Body, server::NamedService};

/// A service one of whose methods is answered at once.
#[derive(Clone, Debug)]
pub struct Prompt<S> {
    inner: S,
    path: &'static str,
}

impl<S> Prompt<S> {
    /// `path` is the method's, with its slashes.
    pub fn new(inner: S, path: &'static str) -> Self {
        Self { inner, path }
    }
}

impl<S: NamedService> NamedService for Prompt<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> tower_service::Service<Request<B>> for Prompt<S>
where
    S: tower_service::Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if request.uri().path() != self.path {
            return Box::pin(self.inner.call(request));
        }
        let work = AbortOnDropHandle::new(tokio::spawn(self.inner.call(request)));
        let mut response = Response::new(Body::new(Later::Working(work)));
        let grpc = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(header::CONTENT_TYPE, grpc);
        Box::pin(async { Ok(response) })
    }
}

/// The body of an answer, and then what stood in its head.
enum Later {
    Working(AbortOnDropHandle<Result<Response<Body>, Infallible>>),
    Answering(Body, HeaderMap),
    Over,
}

impl http_body::Body for Later {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            match &mut *self {
                Self::Working(work) => {
                    let done = ready!(Pin::new(work).poll(cx));
                    let response = done.unwrap_or_else(|_| {
                        Ok(Status::internal("the work for this stream broke off").into_http())
                    });
                    let (head, body) = response.unwrap_or_else(|never| match never {}).into_parts();
                    *self = Self::Answering(body, head.headers);
                }
                Self::Answering(body, head) => {
                    let frame = ready!(Pin::new(body).poll_frame(cx));
                    let trailers = match frame {
                        Some(Ok(frame)) => match frame.into_trailers() {
                            Ok(trailers) => Some(trailers),
                            Err(data) => return Poll::Ready(Some(Ok(data))),
                        },
                        Some(Err(status)) => Some(status.into_http::<Body>().into_parts().0.headers),
                        // A refusal is all head.
                        None => None,
                    };
                    let mut end = std::mem::take(head);
                    end.extend(trailers.unwrap_or_default());
                    end.remove(header::CONTENT_TYPE);
                    *self = Self::Over;
                    return Poll::Ready(Some(Ok(Frame::trailers(end))));
                }
                Self::Over => return Poll::Ready(None),
            }
        }
    }
}
