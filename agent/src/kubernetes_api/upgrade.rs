//! exec, attach, cp, port-forward: after the API server has switched protocols, bytes go both ways as they are,
//! whatever the protocol (SPDY/3.1, WebSocket). The inner trailer marks the switch.

use super::{AnswerBody, Requests, response, unavailable, unavailable_error};
use crate::{error, services::Replies};
use bytes::BytesMut;
use http::Response;
use hyper_util::rt::TokioIo;
use postern_wire::{
    http::MAX_DATA,
    proto::gitlab::agent::grpctool::{http_request, http_response},
};
use std::pin::pin;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tonic::Status;

/// Carries an upgraded connection until the API server ends it.
pub(super) async fn carry(
    response_101: Response<AnswerBody>,
    mut requests: Requests,
    replies: Replies,
) -> Result<(), Status> {
    let upgraded = hyper::upgrade::on(response_101).await.map_err(unavailable_error)?;
    replies.send(&response(http_response::Message::Trailer(http_response::Trailer {}))).await?;
    let (mut from_api, to_api) = tokio::io::split(TokioIo::new(upgraded));

    // Each direction on its own: a caller that writes before it reads must not wait for itself.
    let mut writing = pin!(write(&mut requests, to_api));
    let mut reading = pin!(read(&mut from_api, &replies));
    let mut written = false;
    loop {
        tokio::select! {
            ended = &mut reading => return ended,
            result = &mut writing, if !written => {
                written = true;
                result?;
            }
        }
    }
}

/// Moves the API server's bytes until it ends the connection.
async fn read(mut api: impl AsyncRead + Unpin, replies: &Replies) -> Result<(), Status> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(MAX_DATA);
        match api.read_buf(&mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(_) => {
                while !buffer.is_empty() {
                    let data = buffer.split_to(buffer.len().min(MAX_DATA)).freeze();
                    let data = http_response::UpgradeData { data };
                    replies.send(&response(http_response::Message::UpgradeData(data))).await?;
                }
            }
            Err(cause) => return Err(unavailable(error::chain(&cause))),
        }
    }
}

/// Moves the caller's bytes. When the caller has closed its side, so do we: to the API server that is what a client
/// of its own would look like, and without it an abandoned `exec` would live on.
async fn write(requests: &mut Requests, mut api: impl AsyncWrite + Unpin) -> Result<(), Status> {
    while let Some(message) = requests.next().await? {
        let http_request::Message::UpgradeData(data) = message else {
            return Err(Status::internal("unexpected message after the upgrade"));
        };
        let sent = async {
            api.write_all(&data.data).await?;
            api.flush().await
        };
        if sent.await.is_err() {
            // The reading side learns why and says so.
            return Ok(());
        }
    }
    let _ = api.shutdown().await;
    Ok(())
}
