//! Where an attack happens: how a stranger connects, from an address of its own, and what it has sent so far.

use bytes::{BufMut, BytesMut};
use postern_wire::ws::WsStream;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;

/// Where the strangers of an attack come from; tenants come from 127.0.0.1.
#[derive(Debug, Clone, Copy)]
pub(crate) enum From {
    /// One address, which no other attack has.
    One(u8),
    /// For each connection another one.
    Everywhere,
}

/// Addresses used so far.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// Client preface and empty SETTINGS.
pub(crate) const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_HEADERS: u8 = 4;

/// The edge as strangers see it. Clones share the counts.
#[derive(Clone)]
pub(crate) struct Ground {
    plain: SocketAddr,
    tls: SocketAddr,
    from: From,
    connector: tokio_rustls::TlsConnector,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    bytes: AtomicU64,
}

impl Ground {
    pub(crate) fn new(plain: SocketAddr, tls: SocketAddr, ca_pem: &str, from: From) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self { plain, tls, from, connector: Arc::new(config).into(), counts: Arc::default() }
    }

    /// Connections made and bytes sent.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.counts.connections.load(Ordering::Relaxed), self.counts.bytes.load(Ordering::Relaxed))
    }

    pub(crate) async fn tcp(&self) -> Option<TcpStream> {
        self.dial(self.plain).await
    }

    /// TCP to the TLS port, without any TLS yet.
    pub(crate) async fn bare(&self) -> Option<TcpStream> {
        self.dial(self.tls).await
    }

    pub(crate) async fn tls(&self) -> Option<TlsStream<TcpStream>> {
        let tcp = self.bare().await?;
        self.connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.ok()
    }

    /// A WebSocket, whose frames the attacker writes itself.
    pub(crate) async fn websocket(&self) -> Option<TcpStream> {
        let mut tcp = self.tcp().await?;
        let ask = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: ws-tunnel\r\n\r\n";
        tcp.write_all(ask).await.ok()?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(tcp.read_u8().await.ok()?);
        }
        answer.starts_with(b"HTTP/1.1 101").then_some(tcp)
    }

    /// A WebSocket whose content the attacker writes.
    pub(crate) async fn tunnel(&self) -> Option<WsStream<TcpStream>> {
        Some(WsStream::dialler(self.websocket().await?, Vec::new()))
    }

    async fn dial(&self, address: SocketAddr) -> Option<TcpStream> {
        let socket = TcpSocket::new_v4().ok()?;
        let own = match self.from {
            From::One(last) => Ipv4Addr::new(127, 0, 1, last),
            From::Everywhere => {
                let [.., a, b, c] = COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
                Ipv4Addr::new(127, 64 | a & 63, b, c)
            }
        };
        socket.bind((own, 0).into()).ok()?;
        let tcp = socket.connect(address).await.ok()?;
        self.counts.connections.fetch_add(1, Ordering::Relaxed);
        Some(tcp)
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.counts.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Writes all of it, or ends.
    pub(crate) async fn send(&self, io: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> Option<()> {
        io.write_all(bytes).await.ok()?;
        io.flush().await.ok()?;
        self.sent(bytes.len());
        Some(())
    }
}

/// Appends one HTTP/2 frame.
pub(crate) fn frame(out: &mut BytesMut, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.put_uint(payload.len() as u64, 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
    out.put_slice(payload);
}

/// A header block that every edge takes for a gRPC request of `token`.
pub(crate) fn request(token: &str) -> BytesMut {
    let mut block = BytesMut::new();
    block.put_u8(0x83); // :method POST
    block.put_u8(0x86); // :scheme http
    literal(&mut block, ":path", "/echo.Echo/Echo");
    literal(&mut block, ":authority", "kas.example.com");
    literal(&mut block, "content-type", "application/grpc");
    literal(&mut block, "te", "trailers");
    literal(&mut block, "authorization", token);
    block
}

/// Literal without indexing, both strings as they are.
pub(crate) fn literal(out: &mut BytesMut, name: &str, value: &str) {
    out.put_u8(0);
    string(out, name);
    string(out, value);
}

pub(crate) fn string(out: &mut BytesMut, text: &str) {
    let length = text.len();
    if length < 127 {
        out.put_u8(length as u8);
    } else {
        out.put_u8(127);
        let mut rest = length - 127;
        while rest >= 128 {
            out.put_u8((rest % 128) as u8 | 128);
            rest /= 128;
        }
        out.put_u8(rest as u8);
    }
    out.put_slice(text.as_bytes());
}
