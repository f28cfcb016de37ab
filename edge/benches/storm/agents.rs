//! Agents by the thousand in one process, each a TLS WebSocket with one idle tunnel in it. Writes its own few frames, so
//! that twenty thousand of them fit beside what is measured. Moves when it is told to: dials anew first, then lets go.

use bytes::{BufMut, BytesMut};
use postern_wire::ws::WsStream;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Every agent dials from one of these many loopback addresses, or ports would run out.
const SOURCES: u32 = 8;
const DIAL: Duration = Duration::from_secs(30);
/// After a failed dial or a lost connection; doubled up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));
const TUNNEL: &str = "/gitlab.agent.reverse_tunnel.rpc.ReverseTunnel/Connect";

/// What has happened to the agents of this process.
#[derive(Default)]
pub(crate) struct Counts {
    /// Whose tunnel is answered, now.
    pub(crate) connected: AtomicU64,
    /// Dials that succeeded.
    pub(crate) dialled: AtomicU64,
    /// Agents that were told to move.
    pub(crate) told: AtomicU64,
    /// Connections that ended without a word.
    pub(crate) lost: AtomicU64,
    /// Dials that failed.
    pub(crate) failed: AtomicU64,
    /// Connections that the other side closed with 1001 in the end.
    pub(crate) closed: AtomicU64,
}

/// The wishes of one process of agents.
#[derive(Clone)]
pub(crate) struct Wish {
    pub(crate) edge: SocketAddr,
    pub(crate) count: u32,
    /// The number of its first agent.
    pub(crate) first: u32,
    /// First dials in a second.
    pub(crate) rate: u32,
}

pub(crate) fn connector(ca_pem: &[u8]) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem).unwrap()).unwrap();
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    Arc::new(config).into()
}

/// Starts them at their rate; they live as long as the process.
pub(crate) async fn start(wish: Wish, connector: TlsConnector, counts: Arc<Counts>) {
    let mut every = interval(Duration::from_secs(1) / wish.rate);
    for number in wish.first..wish.first + wish.count {
        every.tick().await;
        tokio::spawn(live(wish.edge, number, connector.clone(), counts.clone()));
    }
}

async fn live(edge: SocketAddr, number: u32, connector: TlsConnector, counts: Arc<Counts>) {
    let mut pause = RETRY.0;
    loop {
        let dialled = timeout(DIAL, open(edge, number, &connector)).await;
        let Ok(Ok(io)) = dialled else {
            counts.failed.fetch_add(1, Ordering::Relaxed);
            sleep(pause.mul_f64(0.5 + f64::from(number % 100) / 100.0)).await;
            pause = (pause * 2).min(RETRY.1);
            continue;
        };
        pause = RETRY.0;
        counts.dialled.fetch_add(1, Ordering::Relaxed);
        counts.connected.fetch_add(1, Ordering::Relaxed);
        let mut tunnel = Tunnel { io, buffer: BytesMut::new() };
        let told = matches!(tunnel.idle().await, Ok(()));
        counts.connected.fetch_sub(1, Ordering::Relaxed);
        if told {
            counts.told.fetch_add(1, Ordering::Relaxed);
            let counts = counts.clone();
            // The old one stays until the edge closes it.
            tokio::spawn(async move {
                while timeout(Duration::from_secs(120), tunnel.frame()).await.is_ok_and(|frame| frame.is_ok())
                {
                }
                counts.closed.fetch_add(1, Ordering::Relaxed);
            });
        } else {
            counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

type Io = WsStream<TlsStream<TcpStream>>;

struct Tunnel {
    io: Io,
    buffer: BytesMut,
}

impl Tunnel {
    /// Answers what must be answered; `Ok` when the other side wants it to move.
    async fn idle(&mut self) -> io::Result<()> {
        loop {
            let (kind, flags, payload) = self.frame().await?;
            match (kind, flags & 1) {
                (GOAWAY, _) => return Ok(()),
                (PING, 0) => self.say(PING, 1, 0, &payload).await?,
                (SETTINGS, 0) => self.say(SETTINGS, 1, 0, &[]).await?,
                (RST_STREAM, _) => return Err(io::ErrorKind::ConnectionReset.into()),
                (HEADERS, 1) => return Err(io::ErrorKind::PermissionDenied.into()),
                _ => {}
            }
        }
    }

    async fn frame(&mut self) -> io::Result<(u8, u8, BytesMut)> {
        loop {
            if let Some(head) = self.buffer.first_chunk::<9>() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let (kind, flags) = (head[3], head[4]);
                if self.buffer.len() >= 9 + length {
                    let payload = self.buffer.split_to(9 + length).split_off(9);
                    if self.buffer.is_empty() {
                        // Nothing is kept for a tunnel that idles.
                        self.buffer = BytesMut::new();
                    }
                    return Ok((kind, flags, payload));
                }
            }
            let mut read = [0; 512];
            let count = self.io.read(&mut read).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.buffer.extend_from_slice(&read[..count]);
        }
    }

    async fn say(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        put(&mut bytes, kind, flags, stream, payload);
        self.io.write_all(&bytes).await?;
        self.io.flush().await
    }
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

fn put(out: &mut BytesMut, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.put_uint(payload.len() as u64, 3);
    out.put_slice(&[kind, flags]);
    out.put_u32(stream);
    out.put_slice(payload);
}

/// Dials, opens its tunnel, and waits until that is answered.
async fn open(edge: SocketAddr, number: u32, connector: &TlsConnector) -> io::Result<Io> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::from(0x7f01_0001 + number % SOURCES), 0).into())?;
    let tcp = socket.connect(edge).await?;
    tcp.set_nodelay(true)?;
    let mut tls = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await?;
    let ask = "GET /-/kubernetes-agent/ HTTP/1.1\r\nHost: kas.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
               Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
               Sec-WebSocket-Protocol: ws-tunnel\r\n\r\n";
    tls.write_all(ask.as_bytes()).await?;
    tls.flush().await?;
    let mut answer = BytesMut::new();
    let end = loop {
        if let Some(at) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if tls.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    if !answer.starts_with(b"HTTP/1.1 101") {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let rest = answer.split_off(end).freeze();
    let mut tunnel = Tunnel { io: WsStream::dialler(tls, rest), buffer: BytesMut::new() };
    let mut block = BytesMut::from(&[0x83, 0x86][..]);
    for (name, value) in [
        (":path", TUNNEL),
        (":authority", "kas.example.com"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("authorization", &format!("Bearer storm-{number}")),
    ] {
        block.put_u8(0);
        for text in [name, value] {
            block.put_u8(u8::try_from(text.len()).expect("short"));
            block.put_slice(text.as_bytes());
        }
    }
    let mut bytes = BytesMut::from(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]);
    put(&mut bytes, SETTINGS, 0, 0, &[]);
    put(&mut bytes, HEADERS, 4, 1, &block);
    tunnel.io.write_all(&bytes).await?;
    tunnel.io.flush().await?;
    loop {
        match tunnel.frame().await? {
            (HEADERS, flags, _) if flags & 1 == 0 => return Ok(tunnel.io),
            (SETTINGS, flags, _) if flags & 1 == 0 => tunnel.say(SETTINGS, 1, 0, &[]).await?,
            (PING, flags, payload) if flags & 1 == 0 => tunnel.say(PING, 1, 0, &payload).await?,
            (HEADERS | RST_STREAM | GOAWAY, ..) => return Err(io::ErrorKind::ConnectionRefused.into()),
            _ => {}
        }
    }
}

/// The child's whole life: agents, and a line about them ten times a second.
pub(crate) async fn child(wish: Wish, ca_pem: Vec<u8>) {
    let counts = Arc::new(Counts::default());
    tokio::spawn(start(wish, connector(&ca_pem), counts.clone()));
    let begin = Instant::now();
    let mut every = interval(Duration::from_millis(100));
    loop {
        every.tick().await;
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        println!(
            "{} {} {} {} {} {} {}",
            begin.elapsed().as_millis(),
            now(&counts.connected),
            now(&counts.dialled),
            now(&counts.told),
            now(&counts.lost),
            now(&counts.failed),
            now(&counts.closed),
        );
    }
}
