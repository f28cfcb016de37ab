//! After `101 Switching Protocols`: bytes of the caller's connection as `UpgradeData` messages, both ways, whatever
//! protocol they speak (SPDY/3.1, WebSocket). An end on one side is passed on; no side waits on a timer. A WebSocket that a
//! policy ends is told why.

mod frames;

use super::{Account, Answer, ExchangeError, Upload, body::finish, grant::Grant, message};
use crate::{error::chain, tunnel::stream::RequestHalf};
use bytes::BytesMut;
use frames::Frames;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use postern_wire::{
    http::MAX_DATA,
    proto::gitlab::agent::grpctool::{http_request, http_response},
};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub(super) async fn run(
    (client, websocket): (OnUpgrade, bool),
    mut answer: Answer,
    upload: Upload,
    grant: Grant,
    mut account: Account,
) {
    let Upload { keep, task, .. } = upload;
    let received = account.received();
    let cut = account.under_way.cut().clone();
    let copied = async {
        let client = client.await.map_err(|_| ExchangeError::CallerGone)?;
        let to_agent = keep.await.map_err(|_| ExchangeError::NoAnswer)?;
        let (mut read, mut write) = tokio::io::split(TokioIo::new(client));
        let upstream = towards_agent(&mut read, to_agent, &received);
        let mut frames = websocket.then(Frames::default);
        let downstream = towards_caller(&mut write, &mut answer, &mut account.sent, frames.as_mut());
        // The cluster's end is the end; the caller's end is only half of it.
        let ended = tokio::select! {
            ended = downstream => ended,
            Err(error) = upstream => Err(error),
            error = grant.ended() => Err(error),
            () = cut.cancelled() => Err(ExchangeError::ShuttingDown),
        };
        if let (Err(ExchangeError::Denied(denied)), Some(frames)) = (&ended, &frames)
            && let Some(close) = frames.close(&denied.to_string())
        {
            // A caller that does not read is not waited for.
            let _ = tokio::time::timeout(LAST_WORDS, async {
                write.write_all(&close).await?;
                write.shutdown().await
            })
            .await;
        }
        ended
    };
    let ended: Result<(), ExchangeError> = copied.await;
    drop(task);
    match ended {
        Ok(()) => {
            account.outcome = "complete";
            drop(account);
            finish(answer).await;
        }
        Err(error) => {
            account.ends(&error);
            let error = chain(&error);
            account.broken(&error);
            tracing::debug!(trace_id = account.trace_id, error, "upgraded connection ended");
        }
    }
}

/// An idle exec session holds no more than this; a transfer that fills it gets [`MAX_DATA`] next time.
const SMALL_READ: usize = 1024;
/// For the last frame of a WebSocket.
const LAST_WORDS: Duration = Duration::from_millis(500);

async fn towards_agent(
    caller: &mut (impl AsyncRead + Unpin),
    to_agent: RequestHalf,
    received: &AtomicU64,
) -> Result<std::convert::Infallible, ExchangeError> {
    let mut room = SMALL_READ;
    loop {
        let mut buffer = BytesMut::with_capacity(room);
        let read = caller.read_buf(&mut buffer).await.map_err(ExchangeError::Upgraded)?;
        if read == 0 {
            break;
        }
        received.fetch_add(read as u64, Ordering::Relaxed);
        room = if read == room { MAX_DATA } else { SMALL_READ };
        let data = buffer.freeze();
        let data = http_request::UpgradeData { data };
        to_agent.send(message(http_request::Message::UpgradeData(data))).await?;
    }
    to_agent.close().await?;
    // The agent's answer decides when the exchange is over.
    std::future::pending().await
}

async fn towards_caller(
    caller: &mut (impl AsyncWrite + Unpin),
    answer: &mut Answer,
    sent: &mut u64,
    mut frames: Option<&mut Frames>,
) -> Result<(), ExchangeError> {
    while let Some(next) = answer.next().await? {
        let data = match next {
            // The trailer of the (empty) answer body marks the switch.
            http_response::Message::Trailer(_) => continue,
            http_response::Message::UpgradeData(piece) => piece.data,
            http_response::Message::Data(piece) if piece.data.is_empty() => continue,
            _ => return Err(ExchangeError::NoAnswer),
        };
        *sent += data.len() as u64;
        if let Some(frames) = &mut frames {
            frames.begins();
        }
        caller.write_all(&data).await.map_err(ExchangeError::Upgraded)?;
        caller.flush().await.map_err(ExchangeError::Upgraded)?;
        if let Some(frames) = &mut frames {
            frames.passed(&data);
        }
    }
    caller.shutdown().await.map_err(ExchangeError::Upgraded)
}
