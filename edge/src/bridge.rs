//! Kubernetes API requests that come over HTTP/2, handed to the HTTP/1.1 road.
//!
//! From `http2`, to `proxy`: an HTTP/1.1 connection inside the process, so that one set of phases serves kubectl
//! whatever it speaks. Decides nothing. Closing the stream closes the connection, which cancels at the cluster.

use crate::http2::{Peer, Stream};
use crate::life::Seat;
use crate::silence;
use crate::transport::Transport;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use pingora::apps::HttpServerApp;
use pingora::protocols::http::ServerSession;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Between the two protocols; a window's worth would only add delay.
const PIPE: usize = 64 * 1024;

/// How long an answer may wait, all in all, for a client to take it whose token no broker has accepted yet. What such a
/// client gets is an error or a page, so that no watch is meant, and no download.
const PATIENCE: Duration = Duration::from_secs(60);

/// Headers that mean something on one HTTP/1.1 connection only.
const HOP_BY_HOP: [&str; 5] =
    ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

/// Why a stream could not be carried to its end. All of them end in a reset.
#[derive(Debug, thiserror::Error)]
enum BridgeError {
    #[error("HTTP/2 stream")]
    Stream(#[from] h2::Error),
    #[error("HTTP/1.1 inside the process")]
    Inside(#[from] hyper::Error),
    #[error("the client left")]
    Left,
    #[error("a client without an accepted token did not take its answer within {PATIENCE:?}")]
    Untaken,
}

/// Serves one stream. `proxy` accounts for it.
pub async fn serve(stream: Stream) {
    let Stream { request, mut respond, peer } = stream;
    let Peer { worker, connection, socket, .. } = &*peer;
    if request.method() == Method::CONNECT {
        let mut refusal = Response::new(());
        *refusal.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        // Whoever asks an edge to CONNECT need not be told more.
        let _ = respond.send_response(refusal, true);
        return;
    }
    let (near, far) = tokio::io::duplex(PIPE);
    let transport = Transport::new(far, socket, connection.of_request(request.headers()));
    let served = {
        let worker = worker.clone();
        tokio::spawn(async move {
            let mut session = ServerSession::new_http1(Box::new(transport));
            session.set_keepalive(None);
            let served = worker.proxy.process_new_http(session, &worker.shutdown);
            silence::unless_silent(served).await;
        })
    };
    let mut out = None;
    let carried = carry(TokioIo::new(near), request, &mut respond, &mut out, &connection.seat).await;
    if let Err(error) = carried {
        tracing::debug!(client = %connection.client, %error, "stream ended early");
        match &mut out {
            Some(out) => out.send_reset(Reason::INTERNAL_ERROR),
            None => respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }
    // It sees the pipe close and ends by itself, after its dial at the latest; until then the stream's slot is taken.
    let _ = served.await;
}

async fn carry(
    near: TokioIo<tokio::io::DuplexStream>,
    request: Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
    out: &mut Option<SendStream<Bytes>>,
    seat: &Seat,
) -> Result<(), BridgeError> {
    let (mut inside, connection) = http1::handshake(near).await?;
    let driven = async {
        // Errors surface in the request or in its body.
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    let exchanged = async {
        let response = tokio::select! {
            response = inside.send_request(downgraded(request)) => response?,
            _ = poll_fn(|cx| respond.poll_reset(cx)) => return Err(BridgeError::Left),
        };
        let (head, mut body) = response.into_parts();
        let end = body.is_end_stream();
        let to = out.insert(respond.send_response(upgraded(head), end)?);
        if !end {
            copy(&mut body, to, seat).await?;
        }
        Ok(())
    };
    tokio::select! {
        exchanged = exchanged => exchanged,
        () = driven => Err(BridgeError::Left),
    }
}

/// The request as HTTP/1.1 says it.
fn downgraded(request: Request<RecvStream>) -> Request<RequestBody> {
    let (mut head, body) = request.into_parts();
    if let Some(authority) = head.uri.authority()
        && let Ok(host) = authority.as_str().parse()
    {
        head.headers.insert(header::HOST, host);
    }
    head.headers.remove(header::TE);
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    head.uri = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
    head.version = Version::HTTP_11;
    Request::from_parts(head, RequestBody(body))
}

fn upgraded(mut head: http::response::Parts) -> Response<()> {
    for name in HOP_BY_HOP {
        head.headers.remove(name);
    }
    head.version = Version::HTTP_2;
    Response::from_parts(head, ())
}

async fn copy(body: &mut Incoming, to: &mut SendStream<Bytes>, seat: &Seat) -> Result<(), BridgeError> {
    let mut patience = PATIENCE;
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            _ = poll_fn(|cx| to.poll_reset(cx)) => return Err(BridgeError::Left),
        };
        let Some(frame) = frame else { break };
        match frame?.into_data() {
            Ok(data) => send(to, data, seat, &mut patience).await?,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return Ok(to.send_trailers(trailers)?);
                }
            }
        }
    }
    Ok(to.send_data(Bytes::new(), true)?)
}

async fn send(
    to: &mut SendStream<Bytes>,
    mut data: Bytes,
    seat: &Seat,
    patience: &mut Duration,
) -> Result<(), BridgeError> {
    while !data.is_empty() {
        to.reserve_capacity(data.len());
        while to.capacity() == 0 {
            let more = poll_fn(|cx| to.poll_capacity(cx));
            let more = if seat.is_trusted() {
                more.await
            } else {
                let since = Instant::now();
                let more = timeout(*patience, more).await;
                *patience = patience.saturating_sub(since.elapsed());
                match more {
                    Ok(more) => more,
                    // Another stream of the connection was served meanwhile.
                    Err(_) if seat.is_trusted() => continue,
                    Err(_) => return Err(BridgeError::Untaken),
                }
            };
            match more {
                Some(more) => drop(more?),
                None => return Err(BridgeError::Left),
            }
        }
        to.send_data(data.split_to(to.capacity().min(data.len())), false)?;
    }
    Ok(())
}

/// A request body as hyper wants it. The window opens as hyper takes the bytes.
struct RequestBody(RecvStream);

impl Body for RequestBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match self.0.poll_data(cx) {
            Poll::Ready(Some(Ok(data))) => {
                let released = self.0.flow_control().release_capacity(data.len());
                Poll::Ready(Some(released.map(|()| Frame::data(data))))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
            Poll::Ready(None) => self.0.poll_trailers(cx).map(|trailers| {
                trailers.map(|trailers: Option<HeaderMap>| trailers.map(Frame::trailers)).transpose()
            }),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use h2::{client, server};

    /// A response whose client admits no byte of its body, and what keeps it open.
    async fn unread() -> (SendStream<Bytes>, impl Sized) {
        let (near, far) = tokio::io::duplex(PIPE);
        let mut builder = client::Builder::new();
        builder.initial_window_size(0);
        let handshakes = tokio::join!(builder.handshake::<_, Bytes>(near), server::handshake(far));
        let ((mut send, connection), mut server) = (handshakes.0.unwrap(), handshakes.1.unwrap());
        tokio::spawn(connection);
        let request = Request::get("http://h/").body(()).unwrap();
        let (response, _) = send.send_request(request, true).unwrap();
        let (_, mut respond) = server.accept().await.unwrap().unwrap();
        let out = respond.send_response(Response::new(()), false).unwrap();
        let driven = tokio::spawn(async move { while let Some(Ok(_)) = server.accept().await {} });
        let response = response.await.unwrap();
        (out, (send, response, driven))
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_a_minute_for_a_stranger_and_for_ever_for_whom_a_broker_knows() {
        let (mut out, _held) = unread().await;
        let (seat, mut patience) = (Seat::default(), PATIENCE);
        let begin = Instant::now();
        let sent = send(&mut out, Bytes::from_static(b"page"), &seat, &mut patience).await;
        assert!(matches!(sent, Err(BridgeError::Untaken)), "{sent:?}");
        assert_eq!(begin.elapsed().as_secs(), PATIENCE.as_secs());
        // Trusted while it waits.
        patience = PATIENCE;
        let sending = send(&mut out, Bytes::from_static(b"event"), &seat, &mut patience);
        let trusting = async {
            tokio::time::sleep(PATIENCE / 2).await;
            seat.trust(None);
            std::future::pending::<()>().await;
        };
        let waits = timeout(100 * PATIENCE, async {
            tokio::select! { sent = sending => sent, () = trusting => Ok(()) }
        });
        assert!(waits.await.is_err(), "a watch whose kubectl is suspended was cut");
    }
}
