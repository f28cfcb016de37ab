//! The one origin behind all four proxies: HTTP/2 in the clear, and WebSockets with the same HTTP/2 inside, on one port.
//!
//! After a proxy: ours ends WebSockets and arrives as HTTP/2, the others pass them through. A thread of its own; what it uses
//! is never counted.

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, server};
use http::{HeaderMap, HeaderValue, Request, Response};
use postern_wire::{
    sniff::{Limits, Opening, Rewound, sniff},
    ws::{self, WsStream},
};
use std::net::TcpListener;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

/// No message; the answer is a head and few bytes.
pub(crate) const BARE: &str = "/bench.Origin/Bare";
/// One message, and an answer as gRPC's: head, message, trailers.
pub(crate) const UNARY: &str = "/bench.Origin/Unary";
/// Every byte comes back.
pub(crate) const ECHO: &str = "/bench.Origin/Echo";
/// As many bytes as an empty message with its length in front, and some.
pub(crate) const ANSWER: Bytes = Bytes::from_static(b"\0\0\0\0\x0bhello world");

/// Starts it; returns its port.
pub(crate) fn start() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(accept(listener))
    });
    port
}

async fn accept(listener: TcpListener) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        tcp.set_nodelay(true).unwrap();
        tokio::spawn(async move {
            // Proxies come and go as they like.
            let _ = open(tcp).await;
        });
    }
}

async fn open(tcp: TcpStream) -> Option<()> {
    let mut socket = Rewound::new(tcp, BytesMut::new());
    match sniff(&mut socket, Limits::default()).await.ok()? {
        Opening::Http2 { read } => {
            let (tcp, rest) = socket.into_inner();
            assert!(rest.is_empty(), "sniff leaves nothing behind");
            serve(Rewound::new(tcp, read)).await
        }
        Opening::Http1 { head, mut read } => {
            let accepted = ws::accept(&head, &HeaderMap::new()).ok()?;
            let rest = read.split_off(head.size()).freeze();
            let (mut tcp, _) = socket.into_inner();
            tcp.write_all(&accepted.response).await.ok()?;
            serve(WsStream::listener(tcp, rest, None)).await
        }
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> Option<()> {
    let mut connection =
        server::Builder::new().max_concurrent_streams(1000).handshake::<_, Bytes>(io).await.ok()?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted.ok()?;
        tokio::spawn(answer(request, respond));
    }
    Some(())
}

async fn answer(request: Request<RecvStream>, mut respond: server::SendResponse<Bytes>) -> Option<()> {
    let (head, mut body) = request.into_parts();
    let grpc = Response::builder().header("content-type", "application/grpc").body(()).ok()?;
    match head.uri.path() {
        BARE => {
            let mut send = respond.send_response(grpc, false).ok()?;
            send.send_data(ANSWER, true).ok()
        }
        UNARY => {
            while let Some(data) = body.data().await {
                body.flow_control().release_capacity(data.ok()?.len()).ok()?;
            }
            let mut send = respond.send_response(grpc, false).ok()?;
            send.send_data(ANSWER, false).ok()?;
            send.send_trailers(HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("0"),
            )]))
            .ok()
        }
        _ => {
            let mut send = respond.send_response(grpc, false).ok()?;
            while let Some(data) = body.data().await {
                let data = data.ok()?;
                body.flow_control().release_capacity(data.len()).ok()?;
                send.send_data(data, false).ok()?;
            }
            send.send_data(Bytes::new(), true).ok()
        }
    }
}
