//! A broker's agent listener (h2c) and Kubernetes API listener (HTTP/1.1), as far as the edge can tell.

use bytes::Bytes;
use h2::server::{self, SendResponse};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What `/drip` sends, a frame each: all but a window of the edge's.
pub(crate) const DRIPS: usize = 250_000;

/// Echoes every message; `/stall` reads nothing; `/drip` sends single
/// bytes; `/unknown` knows no token. Limits as the broker sets them.
#[derive(Clone)]
pub(crate) struct Agents {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Request<()>>>>,
    /// Those that carried a stream; probes carry none.
    pub(crate) connections: Arc<AtomicUsize>,
    /// Bytes that `/drip` has sent.
    pub(crate) dripped: Arc<AtomicUsize>,
    kill: CancellationToken,
    leave: CancellationToken,
    hang: CancellationToken,
}

impl Agents {
    pub(crate) async fn start() -> Self {
        Self::admitting(1024).await
    }

    /// With this limit of streams per connection.
    pub(crate) async fn admitting(streams: u32) -> Self {
        Self::serving(TcpListener::bind("127.0.0.1:0").await.unwrap(), streams)
    }

    /// Where another one was before.
    pub(crate) async fn at(address: SocketAddr) -> Self {
        Self::serving(TcpListener::bind(address).await.unwrap(), 1024)
    }

    fn serving(listener: TcpListener, streams: u32) -> Self {
        let address = listener.local_addr().unwrap();
        let (connections, dripped) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (kill, leave, hang) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let agents = Self { address, seen, connections, dripped, kill, leave, hang };
        let broker = agents.clone();
        tokio::spawn(agents.kill.clone().run_until_cancelled_owned(async move {
            let accepting = async {
                while let Ok((tcp, _)) = listener.accept().await {
                    let serving = serve(tcp, streams, broker.clone());
                    tokio::spawn(broker.kill.clone().run_until_cancelled_owned(serving));
                }
            };
            broker.leave.run_until_cancelled(accepting).await;
        }));
        agents
    }

    /// As a broker that drains: GOAWAY, and no new connections.
    pub(crate) fn leave(&self) {
        self.leave.cancel();
    }

    /// As a stopped process, or a host that vanished: nothing closes, nothing is answered.
    pub(crate) fn hang(&self) {
        self.hang.cancel();
    }

    /// As kill -9 would: nothing is said, every socket closes.
    pub(crate) fn kill(&self) {
        self.kill.cancel();
    }

    pub(crate) fn last(&self) -> Request<()> {
        self.seen.lock().unwrap().pop().expect("a request came")
    }
}

async fn serve(tcp: TcpStream, streams: u32, broker: Agents) {
    tcp.set_nodelay(true).unwrap();
    if broker.hang.is_cancelled() {
        let _held = tcp;
        return std::future::pending().await;
    }
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(64 * 1024)
        .initial_connection_window_size(8 << 20)
        .max_concurrent_streams(streams);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(tcp).await else { return };
    let (mut left, mut used) = (false, false);
    loop {
        let accepted = tokio::select! {
            biased;
            () = broker.hang.cancelled() => std::future::pending().await,
            () = broker.leave.cancelled(), if !left => {
                left = true;
                connection.graceful_shutdown();
                continue;
            }
            accepted = connection.accept() => accepted,
        };
        let Some(Ok((request, respond))) = accepted else { return };
        if !std::mem::replace(&mut used, true) {
            broker.connections.fetch_add(1, Ordering::Relaxed);
        }
        let (head, body) = request.into_parts();
        let (path, dripped) = (head.uri.path().to_owned(), broker.dripped.clone());
        broker.seen.lock().unwrap().push(Request::from_parts(head, ()));
        tokio::spawn(broker.kill.clone().run_until_cancelled_owned(async move {
            let _ = answer(&path, body, respond, &dripped).await;
        }));
    }
}

async fn answer(
    path: &str,
    mut body: RecvStream,
    mut respond: SendResponse<Bytes>,
    dripped: &AtomicUsize,
) -> Result<(), h2::Error> {
    let head = || Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    match path {
        "/stall" => {
            let _held = respond.send_response(head(), false)?;
            std::future::pending().await
        }
        "/drip" => {
            let mut out = respond.send_response(head(), false)?;
            for _ in 0..DRIPS {
                send_all(&mut out, Bytes::from_static(b"d")).await?;
                dripped.fetch_add(1, Ordering::Relaxed);
            }
            std::future::pending().await
        }
        "/unknown" => {
            let mut refused = head();
            refused.headers_mut().insert("grpc-status", "16".parse().unwrap());
            respond.send_response(refused, true)?;
        }
        "/trailers-only" => {
            let mut only = head();
            only.headers_mut().insert("grpc-status", "5".parse().unwrap());
            respond.send_response(only, true)?;
        }
        _ => {
            let mut out = respond.send_response(head(), false)?;
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
                send_all(&mut out, data).await?;
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            out.send_trailers(trailers)?;
        }
    }
    Ok(())
}

/// Sends as the window allows; each call at least one DATA frame.
pub(crate) async fn send_all(out: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        out.reserve_capacity(data.len());
        while out.capacity() == 0 {
            // Says only what changed since it was last asked.
            let changed = std::future::poll_fn(|cx| out.poll_capacity(cx)).await;
            changed.unwrap_or(Err(h2::Reason::CANCEL.into()))?;
        }
        out.send_data(data.split_to(out.capacity().min(data.len())), false)?;
    }
    Ok(())
}

/// Answers every request with its own head; echoes bytes after an upgrade; a watch never ends.
pub(crate) struct KubernetesApi {
    pub(crate) address: SocketAddr,
    /// Watches whose other side closed.
    pub(crate) watches_closed: watch::Receiver<usize>,
}

impl KubernetesApi {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (closed, watches_closed) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(while_requests(tcp, closed.clone()));
            }
        });
        Self { address, watches_closed }
    }
}

async fn while_requests(mut tcp: TcpStream, closed: watch::Sender<usize>) -> Option<()> {
    loop {
        let (head, mut rest) = read_head(&mut tcp).await?;
        let lower = head.to_ascii_lowercase();
        if let Some(protocol) = lower.lines().find_map(|line| line.strip_prefix("upgrade: ")) {
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
            );
            tcp.write_all(answer.as_bytes()).await.ok()?;
            tcp.write_all(&rest).await.ok()?;
            let (mut read, mut write) = tcp.split();
            tokio::io::copy(&mut read, &mut write).await.ok()?;
            return None;
        }
        if lower.contains("watch=1") {
            let begin = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nevent\n\r\n";
            tcp.write_all(begin).await.ok()?;
            while tcp.read_buf(&mut rest).await.is_ok_and(|read| read > 0) {}
            closed.send_modify(|closed| *closed += 1);
            return None;
        }
        let length =
            lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        while rest.len() < length {
            if tcp.read_buf(&mut rest).await.ok()? == 0 {
                return None;
            }
        }
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{head}",
            head.len()
        );
        tcp.write_all(answer.as_bytes()).await.ok()?;
    }
}

/// The head as text, and what was read behind it. `None` when the connection ends.
pub(crate) async fn read_head<S: tokio::io::AsyncRead + Unpin>(io: &mut S) -> Option<(String, Vec<u8>)> {
    let mut read = Vec::new();
    loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = read.split_off(end + 4);
            return Some((String::from_utf8(read).ok()?, rest));
        }
        if io.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
}
