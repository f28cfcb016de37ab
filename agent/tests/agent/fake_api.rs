//! A Kubernetes API as far as an agent can tell: HTTP/1.1 on 127.0.0.1, behaviour by path.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header, request::Parts};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{mpsc, watch},
};

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// Serves until it is dropped with its runtime.
pub(crate) struct FakeApi {
    url: String,
    state: Arc<State>,
    heads: mpsc::Receiver<Parts>,
}

struct State {
    heads: mpsc::Sender<Parts>,
    watchers: watch::Sender<i64>,
    pieces_read: watch::Sender<usize>,
    /// The one Lease there may be; whoever asks for it last has it.
    lease: Mutex<Option<Bytes>>,
    denied: Mutex<Vec<&'static str>>,
}

impl FakeApi {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (sender, heads) = mpsc::channel(1000);
        let state = Arc::new(State {
            heads: sender,
            watchers: watch::Sender::new(0),
            pieces_read: watch::Sender::new(0),
            lease: Mutex::default(),
            denied: Mutex::default(),
        });
        tokio::spawn(accept(listener, state.clone()));
        Self { url, state, heads }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The head of the next request, as it arrived.
    pub(crate) async fn head(&mut self) -> Parts {
        self.heads.recv().await.expect("the fake keeps its sender")
    }

    /// Answers that nothing may be done with this resource.
    pub(crate) fn deny(&self, resource: &'static str) {
        self.state.denied.lock().expect("no panic holds the lock").push(resource);
    }

    /// How many `/watch` answers are open.
    pub(crate) fn watchers(&self) -> watch::Receiver<i64> {
        self.state.watchers.subscribe()
    }

    /// How many pieces of a body `/slow` has read.
    pub(crate) fn pieces_read(&self) -> watch::Receiver<usize> {
        self.state.pieces_read.subscribe()
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    loop {
        let (io, _) = listener.accept().await.expect("the listener lives");
        let state = state.clone();
        let answer = move |request| {
            let state = state.clone();
            async move { Ok::<_, Infallible>(answer(request, state).await) }
        };
        tokio::spawn(
            hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(io), service_fn(answer))
                .with_upgrades(),
        );
    }
}

async fn answer(mut request: Request<Incoming>, state: Arc<State>) -> Answer {
    let (parts, ()) = {
        let mut copy = Request::new(());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        copy.into_parts()
    };
    let (path, method) = (parts.uri.path().to_owned(), parts.method.clone());
    let _ = state.heads.try_send(parts);
    match path.as_str() {
        "/echo" => Response::new(request.into_body().map_err(std::io::Error::other).boxed_unsync()),
        "/watch" => {
            state.watchers.send_modify(|open| *open += 1);
            Response::new(Watch { said: false, state }.boxed_unsync())
        }
        lease if lease.contains("/leases") => {
            let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let mut lease = state.lease.lock().expect("no panic holds the lock");
            if method != Method::GET {
                *lease = Some(body);
            }
            match &*lease {
                Some(lease) => json(StatusCode::OK, lease),
                None => json(
                    StatusCode::NOT_FOUND,
                    br#"{"kind":"Status","reason":"NotFound","message":"no lease"}"#,
                ),
            }
        }
        "/early" => {
            let mut refused = text("not you");
            *refused.status_mut() = StatusCode::FORBIDDEN;
            refused
        }
        "/slow" => {
            // Takes one piece and then no more.
            let _ = request.body_mut().frame().await;
            state.pieces_read.send_modify(|count| *count += 1);
            std::future::pending().await
        }
        "/cut" => Response::new(Cut { said: 0 }.boxed_unsync()),
        "/redirect" => {
            let mut away = text("");
            *away.status_mut() = StatusCode::FOUND;
            away.headers_mut().insert(header::LOCATION, "/elsewhere".parse().expect("legal"));
            away
        }
        "/exec" | "/both-ways" => {
            let upgrading = hyper::upgrade::on(&mut request);
            if path == "/exec" {
                tokio::spawn(echo_upgraded(upgrading));
            } else {
                tokio::spawn(talk_and_listen(upgrading));
            }
            let mut switching = text("");
            *switching.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            switching.headers_mut().insert(header::UPGRADE, "SPDY/3.1".parse().expect("legal"));
            switching.headers_mut().insert(header::CONNECTION, "Upgrade".parse().expect("legal"));
            switching
        }
        "/version" => text("{\"gitVersion\":\"v1.34.1\"}"),
        "/apis/authentication.k8s.io/v1/selfsubjectreviews" => {
            text("{\"status\":{\"userInfo\":{\"username\":\"system:serviceaccount:postern:agentk\"}}}")
        }
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" => {
            let asked = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let asked = String::from_utf8_lossy(&asked).into_owned();
            let denied = state.denied.lock().expect("no panic holds the lock");
            let allowed =
                !denied.iter().any(|resource| asked.contains(&format!("\"resource\":\"{resource}\"")));
            text(&format!("{{\"status\":{{\"allowed\":{allowed}}}}}"))
        }
        _ => {
            let collected =
                request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let mut answer = text(&format!("{{\"path\":\"{path}\",\"body\":{}}}", collected.len()));
            answer.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().expect("legal"));
            answer
        }
    }
}

/// Says `echo:` and then everything it hears, until it hears the end; then `bye`.
async fn echo_upgraded(upgrading: hyper::upgrade::OnUpgrade) {
    let mut io = TokioIo::new(upgrading.await.expect("the client switches too"));
    io.write_all(b"echo:").await.expect("the client reads");
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match io.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                if io.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
    let _ = io.write_all(b"bye").await;
    let _ = io.shutdown().await;
}

/// What each side says on `/both-ways`: more than all buffers on the way hold.
pub(crate) const BOTH_WAYS: usize = 250 * 32 * 1024;

/// Says all it has to say while it hears as much, neither waiting for the other.
async fn talk_and_listen(upgrading: hyper::upgrade::OnUpgrade) {
    let io = TokioIo::new(upgrading.await.expect("the client switches too"));
    let (mut read, mut write) = tokio::io::split(io);
    let mut heard = vec![0; BOTH_WAYS];
    let said = vec![b's'; BOTH_WAYS];
    let (_, _) = tokio::join!(write.write_all(&said), read.read_exact(&mut heard));
    let _ = write.shutdown().await;
}

fn text(text: &str) -> Answer {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes()));
    Response::new(body.map_err(|never| match never {}).boxed_unsync())
}

fn json(status: StatusCode, body: &[u8]) -> Answer {
    let body = Full::new(Bytes::copy_from_slice(body));
    let mut answer = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().expect("legal"));
    answer
}

/// One event, then silence for as long as anybody listens.
struct Watch {
    said: bool,
    state: Arc<State>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.state.watchers.send_modify(|open| *open -= 1);
    }
}

impl Body for Watch {
    type Data = Bytes;
    type Error = std::io::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        if std::mem::replace(&mut self.said, true) {
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"{\"type\":\"ADDED\"}\n")))))
    }
}

/// Begins a body and, once that is on its way, breaks off.
struct Cut {
    said: u8,
}

impl Body for Cut {
    type Data = Bytes;
    type Error = std::io::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        self.said += 1;
        match self.said {
            1 => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"half"))))),
            2 => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            _ => Poll::Ready(Some(Err(std::io::Error::other("broken off")))),
        }
    }
}
