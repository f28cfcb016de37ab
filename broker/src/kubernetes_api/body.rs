//! Bodies: the caller's in pieces down the tunnel, the cluster's in pieces back, each waiting for the other side.

use super::{Account, Answer, Body, ExchangeError, Upload, grant::Grant, message, rules::Denied};
use crate::{
    error::{ApiFailure, chain},
    tunnel::stream::RequestHalf,
};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Method, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use postern_wire::{
    http::MAX_DATA,
    proto::gitlab::agent::grpctool::{http_request, http_response},
};
use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Sends the body and its trailer message; `received` counts its bytes.
pub(super) async fn send(
    to_agent: &RequestHalf,
    mut body: Incoming,
    received: &AtomicU64,
) -> Result<(), ExchangeError> {
    while let Some(frame) = body.frame().await {
        let Ok(mut data) = frame.map_err(ExchangeError::RequestBody)?.into_data() else { continue };
        received.fetch_add(data.len() as u64, Ordering::Relaxed);
        while !data.is_empty() {
            let data = data.split_to(data.len().min(MAX_DATA));
            to_agent.send(message(http_request::Message::Data(http_request::Data { data }))).await?;
        }
    }
    to_agent.send(message(http_request::Message::Trailer(http_request::Trailer {}))).await?;
    Ok(())
}

/// How many bytes of body the caller's side will read at the most; `None` if only the end of the stream tells.
pub(super) fn expected(method: &Method, status: StatusCode, headers: &HeaderMap) -> Option<u64> {
    let bodyless =
        method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if bodyless { Some(0) } else { length }
}

/// The answer's body. One piece waits for the caller; until it is taken, nothing more is read from the tunnel.
pub(super) fn stream(
    (expected, events): (Option<u64>, Events),
    answer: Answer,
    upload: Upload,
    grant: Grant,
    account: Account,
) -> Body {
    let (pieces, taken) = mpsc::channel::<Result<Frame<Bytes>, io::Error>>(1);
    tokio::spawn(pump(pieces, (expected, events), answer, upload, grant, account));
    StreamBody::new(ReceiverStream::new(taken).fuse()).boxed_unsync()
}

async fn pump(
    pieces: mpsc::Sender<Result<Frame<Bytes>, io::Error>>,
    (expected, mut events): (Option<u64>, Events),
    mut answer: Answer,
    mut upload: Upload,
    grant: Grant,
    mut account: Account,
) {
    let ended = grant.ended();
    tokio::pin!(ended);
    let cut = account.under_way.cut().clone();
    let end = loop {
        let next = tokio::select! {
            biased;
            // The server lets go of a body as soon as it has all the bytes that the head promised.
            () = pieces.closed() => break match expected {
                Some(expected) if account.sent >= expected => Ok(()),
                _ => Err(ExchangeError::CallerGone),
            },
            error = &mut ended => break Err(error),
            () = cut.cancelled() => break Err(ExchangeError::ShuttingDown),
            next = answer.next() => next,
            Ok(failed) = &mut upload.failed => Err(failed),
        };
        match next {
            Ok(Some(http_response::Message::Data(piece))) => {
                account.sent += piece.data.len() as u64;
                events.passed(&piece.data);
                // A send that fails is noticed above: the caller left, or has all it was promised.
                if !piece.data.is_empty() {
                    tokio::select! {
                        biased;
                        error = &mut ended => break Err(error),
                        () = cut.cancelled() => break Err(ExchangeError::ShuttingDown),
                        _ = pieces.send(Ok(Frame::data(piece.data))) => {}
                    }
                }
            }
            // The caller has all of it now; what is left is only between broker and agent.
            Ok(Some(http_response::Message::Trailer(_))) => break Ok(()),
            Ok(_) => break Err(ExchangeError::NoAnswer),
            Err(error) => break Err(error),
        }
    };
    match end {
        Ok(()) => {
            account.outcome = "complete";
            drop((account, pieces));
            finish(answer).await;
        }
        Err(error @ ExchangeError::CallerGone) => {
            tracing::debug!(trace_id = account.trace_id, error = %chain(&error), "request cancelled");
        }
        Err(error) => {
            account.ends(&error);
            let last = match &error {
                ExchangeError::Denied(denied) => events.last(denied, &account.trace_id),
                _ => None,
            };
            let error = chain(&error);
            account.broken(&error);
            tracing::warn!(trace_id = account.trace_id, agent_id = account.agent, error, "answer cut short");
            // Also for a caller that does not read: the cluster must not go on for it.
            drop((account, answer, upload));
            if let Some(event) = last {
                let _ = pieces.send(Ok(Frame::data(event))).await;
                return;
            }
            // Too late for a Status: the caller must see that the body is not whole.
            let _ = pieces.send(Err(io::Error::other(error))).await;
        }
    }
}

/// Whether an answer is a list of events in JSON, one a line, and so can end with one more that says why.
pub(super) struct Events {
    at_line_start: bool,
    are_lines: bool,
}

impl Events {
    pub(super) fn of(headers: &HeaderMap, grant: &Grant) -> Self {
        let json = headers.get(header::CONTENT_TYPE).is_some_and(|value| {
            let kind = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
            kind.trim_ascii().eq_ignore_ascii_case(b"application/json")
        });
        let whole =
            headers.contains_key(header::CONTENT_ENCODING) || headers.contains_key(header::CONTENT_LENGTH);
        Self { at_line_start: true, are_lines: json && !whole && grant.asked.is_watch() }
    }

    fn passed(&mut self, piece: &Bytes) {
        if let Some(last) = piece.last() {
            self.at_line_start = *last == b'\n';
        }
    }

    /// The one that ends a watch as an API server ends it: clients show it to their users, and list again.
    fn last(&self, denied: &Denied, trace_id: &str) -> Option<Bytes> {
        if !self.are_lines || !self.at_line_start {
            return None;
        }
        let failure = ApiFailure::new(StatusCode::FORBIDDEN, format!("Forbidden: {denied}"));
        let event = serde_json::json!({ "type": "ERROR", "object": failure.document(trace_id) });
        Some(Bytes::from(format!("{event}\n")))
    }
}

/// How long an agent may take to close its side of a tunnel whose answer is complete.
const FINISH: std::time::Duration = std::time::Duration::from_secs(10);

/// Reads the end of the tunnel, so that the agent sees OK and opens the next one at once.
pub(super) async fn finish(mut answer: Answer) {
    let _ = tokio::time::timeout(FINISH, async { while let Ok(Some(_)) = answer.next().await {} }).await;
}
