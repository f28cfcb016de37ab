//! Paths beside the Kubernetes API for tests of what lies in between: slow and endless bodies, swallowed and unread
//! ones, an upgrade that echoes. Each keeps its request counted for as long as it is open.
//!
//! `/slow?bytes=N&chunk=M&every=MS`, `/stream-forever?every=MS`, `/sink`, `/never-reads?seconds=N`, `/echo` with any `Upgrade`.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::counters::{OpenGuard, ResponseBody, guarded};
use super::routes::Query;
use super::status::Failure;

const MAX_CHUNK: u64 = 1 << 20;
const MAX_SLOW_BYTES: u64 = 16 << 30;

/// A body of exactly `bytes` bytes in chunks of `chunk`, with a pause of `every` milliseconds between two.
pub(super) fn slow(query: &Query, guard: OpenGuard) -> Response<ResponseBody> {
    let total = query.number("bytes").unwrap_or(1 << 20).min(MAX_SLOW_BYTES);
    let chunk = query.number("chunk").unwrap_or(16 << 10).clamp(1, MAX_CHUNK);
    let every = query.number("every").map(Duration::from_millis);
    let block = Bytes::from(vec![b'.'; usize::try_from(chunk).unwrap_or_default()]);
    let body = stream::unfold(0u64, move |sent| {
        let block = block.clone();
        async move {
            let left = total - sent;
            if left == 0 {
                return None;
            }
            if let Some(pause) = every.filter(|_| sent > 0) {
                tokio::time::sleep(pause).await;
            }
            let now = left.min(chunk);
            let piece = block.slice(..usize::try_from(now).unwrap_or_default());
            Some((Ok(Frame::data(piece)), sent + now))
        }
    });
    let mut response = Response::new(guarded(StreamBody::new(body).boxed_unsync(), guard));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(total));
    response
}

/// A line every `every` milliseconds (100) until the client leaves.
pub(super) fn stream_forever(
    query: &Query,
    guard: OpenGuard,
    stop: CancellationToken,
) -> Response<ResponseBody> {
    let every = Duration::from_millis(query.number("every").unwrap_or(100).max(1));
    let body = stream::unfold((0u64, stop), move |(count, stop)| async move {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = stop.cancelled() => return None,
        }
        Some((Ok(Frame::data(Bytes::from(format!("tick {count}\n")))), (count + 1, stop)))
    });
    Response::new(guarded(StreamBody::new(body).boxed_unsync(), guard))
}

/// Reads the whole body and answers its length and FNV-1a (64 bit) checksum as JSON.
pub(super) async fn sink(mut body: Incoming) -> Result<serde_json::Value, Failure> {
    let (mut length, mut checksum) = (0u64, 0xcbf2_9ce4_8422_2325u64);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::bad_request(format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len() as u64;
        for byte in data {
            checksum = (checksum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    Ok(json!({"length": length, "fnv1a": format!("{checksum:016x}")}))
}

/// Holds the body without reading a byte of it, then answers 408. While nothing is read the server cannot see the client
/// leave, so this ends after `seconds` (30) at the latest.
pub(super) async fn never_reads(query: &Query, body: Incoming, stop: CancellationToken) -> Failure {
    let patience = Duration::from_secs(query.number("seconds").unwrap_or(30).min(3_600));
    let _ = tokio::time::timeout(patience, stop.cancelled()).await;
    drop(body);
    Failure::new(StatusCode::REQUEST_TIMEOUT, "Timeout", "the body was not read, as asked")
}

/// Switches to the protocol asked for, whichever it is, and sends every byte back until the client closes its side.
pub(super) fn echo(
    mut request: Request<Incoming>,
    empty: ResponseBody,
    guard: OpenGuard,
    stop: CancellationToken,
) -> Result<Response<ResponseBody>, Failure> {
    let protocol = request.headers().get(header::UPGRADE).cloned();
    let protocol = protocol.ok_or_else(|| Failure::bad_request("/echo wants an Upgrade header"))?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _guard = guard;
        let echo = async {
            let upgraded = upgrade.await.map_err(io::Error::other)?;
            echo_bytes(TokioIo::new(upgraded)).await
        };
        tokio::select! {
            ended = echo => if let Err(error) = ended {
                tracing::debug!(%error, "echo ended");
            },
            () = stop.cancelled() => {}
        }
    });
    let mut response = Response::new(empty);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::UPGRADE, protocol);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    Ok(response)
}

async fn echo_bytes(mut io: TokioIo<hyper::upgrade::Upgraded>) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = io.read(&mut buffer).await?;
        if read == 0 {
            return io.shutdown().await;
        }
        io.write_all(&buffer[..read]).await?;
        io.flush().await?;
    }
}
