//! The calls of generated gRPC clients on the connections of `peers`: for small questions and answers between brokers.
//! Under `peers`; the roster uses it. It waits as long as its caller does.

use super::{BROKER, PeerError, Peers, call::strip_details, connection::Place};
use crate::fleet::PeerUrl;
use bytes::Bytes;
use futures::future::BoxFuture;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response, uri::PathAndQuery};
use http_body::{Body as _, Frame};
use std::{
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};
use tonic::body::Body;

/// What a generated client calls through.
#[derive(Clone, Debug)]
pub struct Channel {
    peers: Arc<Peers>,
    peer: PeerUrl,
}

impl Channel {
    pub(super) fn new(peers: Arc<Peers>, peer: PeerUrl) -> Self {
        Self { peers, peer }
    }
}

impl tower_service::Service<Request<Body>> for Channel {
    type Response = Response<RecvBody>;
    type Error = PeerError;
    type Future = BoxFuture<'static, Result<Self::Response, PeerError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), PeerError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { peers, peer } = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let path = parts.uri.path_and_query().cloned();
            let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
            let (response, send, place) = peers.open(&peer, path, parts.headers).await?;
            let mut sending = pin!(send_all(body, send));
            let mut sent = false;
            let mut response = pin!(response);
            let answered = loop {
                tokio::select! {
                    biased;
                    answered = &mut response => break answered,
                    // If it breaks off, the answer says why.
                    _ = &mut sending, if !sent => sent = true,
                }
            };
            let lost = |source| PeerError::Lost { broker: peer.clone(), source: Arc::new(source) };
            let (mut head, stream) = answered.map_err(lost)?.into_parts();
            if head.headers.contains_key(BROKER) {
                place.ours.store(true, Ordering::Relaxed);
            }
            strip_details(&mut head.headers);
            Ok(Response::from_parts(head, RecvBody { stream, ended: false, _place: place }))
        })
    }
}

async fn send_all(body: Body, mut send: SendStream<Bytes>) -> Option<()> {
    let mut body = pin!(body);
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let Ok(mut data) = frame.ok()?.into_data() else { continue };
        while !data.is_empty() {
            send.reserve_capacity(data.len());
            while send.capacity() == 0 {
                poll_fn(|cx| send.poll_capacity(cx)).await?.ok()?;
            }
            let part = data.split_to(send.capacity().min(data.len()));
            send.send_data(part, false).ok()?;
        }
    }
    send.send_data(Bytes::new(), true).ok()
}

/// The answer, as it comes.
pub struct RecvBody {
    stream: RecvStream,
    ended: bool,
    _place: Place,
}

impl fmt::Debug for RecvBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvBody").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl http_body::Body for RecvBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(data) = ready!(self.stream.poll_data(cx)?) {
            // Fails only for a stream that is over, whose window does not matter.
            let _ = self.stream.flow_control().release_capacity(data.len());
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers: Option<HeaderMap> = ready!(self.stream.poll_trailers(cx)?);
        self.ended = true;
        Poll::Ready(trailers.map(|mut trailers| {
            strip_details(&mut trailers);
            Ok(Frame::trailers(trailers))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
