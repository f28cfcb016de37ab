//! HTTP/2 clients: over TCP, TLS, WebSocket; one of them writes its own frames.

use crate::harness::{DEADLINE, Edge, status};
use crate::upstreams::{read_head, send_all};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{self, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use postern_wire::ws::WsStream;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// Anything HTTP/2 can run on.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Wire for T {}

pub(crate) async fn tcp(address: SocketAddr) -> TcpStream {
    let tcp = TcpStream::connect(address).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp
}

/// Trusts the edge's CA only.
pub(crate) async fn tls(edge: &Edge, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(edge.ca.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp(edge.tls).await).await.unwrap()
}

/// Upgrades as agentk does.
pub(crate) async fn websocket<S: Wire>(mut io: S) -> WsStream<S> {
    let request = "GET /-/kubernetes-agent/ HTTP/1.1\r\nHost: kas.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                   Sec-WebSocket-Protocol: ws-tunnel\r\n\r\n";
    io.write_all(request.as_bytes()).await.unwrap();
    let (head, rest) = read_head(&mut io).await.expect("an answer");
    assert_eq!(status(&head), 101, "{head}");
    WsStream::dialler(io, rest)
}

/// A client with windows as large as the edge's, so that only the edge can be the bottleneck.
pub(crate) async fn h2(io: impl Wire) -> SendRequest<Bytes> {
    let mut builder = client::Builder::new();
    builder.initial_window_size(1 << 20).initial_connection_window_size(64 << 20);
    let (client, connection) = builder.handshake(io).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(crate) fn grpc(path: &str, token: Option<&str>) -> Request<()> {
    let mut request = Request::post(format!("http://kas.example.com{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(token) = token {
        request = request.header("authorization", token);
    }
    request.body(()).unwrap()
}

/// An open stream.
pub(crate) struct Call {
    pub(crate) out: SendStream<Bytes>,
    pub(crate) response: Response<RecvStream>,
}

/// Opens a stream and waits for the response's head.
pub(crate) async fn call(client: &SendRequest<Bytes>, request: Request<()>) -> Call {
    let mut client = client.clone().ready().await.unwrap();
    let (response, out) = client.send_request(request, false).unwrap();
    let response = tokio::time::timeout(DEADLINE, response).await.expect("no response").unwrap();
    Call { out, response }
}

impl Call {
    pub(crate) async fn send(&mut self, message: &[u8]) {
        send_all(&mut self.out, Bytes::copy_from_slice(message)).await.unwrap();
    }

    /// Exactly this many bytes of the response.
    pub(crate) async fn read(&mut self, count: usize) -> Vec<u8> {
        let body = self.response.body_mut();
        let mut read = Vec::new();
        while read.len() < count {
            let data = tokio::time::timeout(DEADLINE, body.data())
                .await
                .unwrap_or_else(|_| panic!("no data after {} bytes", read.len()))
                .expect("too early an end");
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            read.extend_from_slice(&data);
        }
        read
    }

    /// The status of a response without body, or of its trailers.
    pub(crate) async fn status(mut self) -> (u32, String) {
        let from = |headers: &HeaderMap| {
            let code = headers.get("grpc-status")?.to_str().unwrap().parse().unwrap();
            let message = headers.get("grpc-message").map_or("", |value| value.to_str().unwrap());
            Some((code, message.to_owned()))
        };
        if let Some(status) = from(self.response.headers()) {
            assert!(self.response.body().is_end_stream(), "a status in the head must be the end");
            return status;
        }
        let body = self.response.body_mut();
        while let Some(data) = tokio::time::timeout(DEADLINE, body.data()).await.expect("no end") {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        let trailers = body.trailers().await.unwrap().expect("trailers");
        from(&trailers).expect("a status in the trailers")
    }
}

/// One echo on a stream of its own: sends, reads back, ends with OK.
pub(crate) async fn echo(client: &SendRequest<Bytes>, token: &str) {
    let mut stream = call(client, grpc("/echo.Echo/Echo", Some(token))).await;
    stream.send(b"hello").await;
    assert_eq!(stream.read(5).await, b"hello");
    stream.out.send_data(Bytes::new(), true).unwrap();
    assert_eq!(stream.status().await.0, 0);
}

/// A gRPC request whose `:authority` no well-behaved client would send, in frames of our own. Echoes `payload`.
pub(crate) async fn echo_with_authority(
    mut io: impl Wire,
    authority: &str,
    token: &str,
    payload: &[u8],
) -> Vec<u8> {
    let mut block = BytesMut::new();
    block.put_u8(0x83); // :method POST
    block.put_u8(0x86); // :scheme http
    literal(&mut block, ":path", "/echo.Echo/Echo");
    literal(&mut block, ":authority", authority);
    literal(&mut block, "content-type", "application/grpc");
    literal(&mut block, "te", "trailers");
    literal(&mut block, "authorization", token);
    let mut bytes = BytesMut::from(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]);
    frame(&mut bytes, 4, 0, 0, &[]);
    // In two parts, as clients with much metadata send it.
    let half = block.len() / 2;
    frame(&mut bytes, 1, 0, 1, &block[..half]);
    frame(&mut bytes, 9, 4, 1, &block[half..]);
    frame(&mut bytes, 0, 1, 1, payload);
    // Cut where no frame ends.
    for part in bytes.chunks(97) {
        io.write_all(part).await.unwrap();
        io.flush().await.unwrap();
    }
    let mut echoed = Vec::new();
    loop {
        let mut header = [0; 9];
        tokio::time::timeout(DEADLINE, io.read_exact(&mut header)).await.expect("no frame").unwrap();
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let mut body = vec![0; length];
        io.read_exact(&mut body).await.unwrap();
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        match (header[3], stream) {
            (0, 1) => echoed.extend_from_slice(&body),
            (3, 1) => panic!("the stream was reset: {body:?}"),
            (7, _) => panic!("the connection was closed: {body:?}"),
            _ => {}
        }
        if stream == 1 && matches!(header[3], 0 | 1) && header[4] & 1 == 1 {
            return echoed;
        }
    }
}

fn frame(out: &mut BytesMut, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.put_uint(payload.len() as u64, 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
    out.put_slice(payload);
}

/// Literal without indexing, both strings as they are; values below 127 bytes.
fn literal(out: &mut BytesMut, name: &str, value: &str) {
    out.put_u8(0);
    for text in [name, value] {
        assert!(text.len() < 127);
        out.put_u8(text.len() as u8);
        out.put_slice(text.as_bytes());
    }
}
