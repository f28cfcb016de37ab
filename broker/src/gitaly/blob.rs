//! One file at a commit, as `TreeEntry` streams it. The next message is read when the caller asks for it, so a slow
//! caller slows the server down. It keeps one message, and believes no size that it has not counted.

use super::{Call, GitalyError};
use bytes::Bytes;
use postern_wire::proto::gitaly::{
    TreeEntryRequest, TreeEntryResponse, commit_service_client::CommitServiceClient,
    tree_entry_response::ObjectType,
};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Streaming};

pub(super) const TREE_ENTRY: &str = "TreeEntry";
/// The mode of a symbolic link; its content is its target.
const LINK: i32 = 0o120_000;

pub(super) enum Opened {
    Missing,
    TooLarge,
    Blob(Box<Blob>),
}

pub(super) struct Blob {
    stream: Streaming<TreeEntryResponse>,
    /// The data of the first message, until it was handed out.
    first: Option<Bytes>,
    mode: i32,
    remaining: u64,
    address: String,
}

impl Blob {
    pub(super) async fn open(
        call: &Call<'_>,
        commit: &str,
        file: &str,
        limit: u64,
    ) -> Result<Opened, GitalyError> {
        let request = call.request(TreeEntryRequest {
            repository: Some(call.source.repository.clone()),
            revision: Bytes::copy_from_slice(commit.as_bytes()),
            path: Bytes::copy_from_slice(file.as_bytes()),
            limit: 0,
            // 0 would be no limit.
            max_size: i64::try_from(limit.max(1)).unwrap_or(i64::MAX),
        });
        let mut client = CommitServiceClient::new(call.connection.channel.clone());
        let opening = async {
            let mut stream = client.tree_entry(request).await?.into_inner();
            let first = stream.message().await?;
            Ok((stream, first))
        };
        let (stream, first) = match call.answer(opening).await {
            Ok((stream, Some(first))) => (stream, first),
            Ok((_, None)) => return Err(call.protocol("an answer without a message")),
            Err(GitalyError::Rpc { code: Code::NotFound, .. }) => return Ok(Opened::Missing),
            Err(GitalyError::Rpc { code: Code::FailedPrecondition, .. }) => return Ok(Opened::TooLarge),
            Err(error) => return Err(error),
        };
        if first.r#type != i32::from(ObjectType::Blob) {
            return Err(GitalyError::NotAFile { file: file.to_owned(), commit: commit.to_owned() });
        }
        let Ok(size) = u64::try_from(first.size) else { return Err(call.protocol("a negative size")) };
        if size > limit {
            return Ok(Opened::TooLarge);
        }
        let address = call.source.server.address.clone();
        let blob = Self { stream, first: Some(first.data), mode: first.mode, remaining: size, address };
        Ok(Opened::Blob(Box::new(blob)))
    }

    pub(super) fn size(&self) -> u64 {
        self.remaining
    }

    pub(super) fn is_link(&self) -> bool {
        self.mode == LINK
    }

    /// The next bytes; `None` after the last. Safe to cancel.
    pub(super) async fn piece(&mut self, deadline: Instant) -> Result<Option<Bytes>, GitalyError> {
        let timed_out = || GitalyError::TimedOut { address: self.address.clone(), rpc: TREE_ENTRY };
        let protocol =
            |reason| GitalyError::Protocol { address: self.address.clone(), rpc: TREE_ENTRY, reason };
        loop {
            let data = match self.first.take() {
                Some(data) => data,
                None => match timeout_at(deadline, self.stream.message()).await {
                    Ok(Ok(Some(message))) => message.data,
                    Ok(Ok(None)) if self.remaining == 0 => return Ok(None),
                    Ok(Ok(None)) => return Err(protocol("the file ends early")),
                    Ok(Err(status)) => {
                        return Err(super::error::of_status(&self.address, TREE_ENTRY, &status));
                    }
                    Err(_) => return Err(timed_out()),
                },
            };
            self.remaining = (self.remaining.checked_sub(data.len() as u64))
                .ok_or_else(|| protocol("the file is longer than its size"))?;
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }
}
