//! Puts the messages of one GitOps stream together into the files of one commit. Before it: `project.rs`, which reads
//! the stream. It gives a commit out only whole, holds no more than the limits below, and never looks into a file.

#[cfg(test)]
mod tests;

use crate::gitops::{File, Received};
use bytes::Bytes;
use postern_wire::{
    order::{ObjectsOrder, OutOfOrder},
    proto::gitlab::agent::gitops::rpc::{
        ObjectsToSynchronizeResponse,
        objects_to_synchronize_response::{Header, Message, Object},
    },
};
use std::collections::HashSet;

/// The most bytes of one file: kas' own limit unless its operator raises it.
pub const FILE: usize = 5 << 20;
/// The most bytes of all files of a commit; again kas' own. Names come on top, at most [`FILES`] times [`NAME`].
pub const TOTAL: usize = 20 << 20;
/// The most files of a commit; again kas' own.
pub const FILES: usize = 1000;
/// The most bytes of a file's path, as Linux has it.
pub const NAME: usize = 4096;

/// Why what came is not a commit. Nothing of it is used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectError {
    /// A message came, or the stream ended, at the wrong time.
    #[error("the broker broke the order of the stream")]
    Order(#[from] OutOfOrder),
    /// The header names no commit.
    #[error("the broker sent manifests of a commit without an id")]
    NoCommit,
    /// A piece names no file.
    #[error("the broker sent a manifest without a file name")]
    NoName,
    /// A name is longer than any file's.
    #[error("the broker sent a file name of more than {NAME} bytes")]
    LongName,
    /// A file began again after another one.
    #[error("the broker sent the file {file:?} twice")]
    Twice {
        /// Its path.
        file: String,
    },
    /// One file is too large.
    #[error(
        "the file {file:?} is larger than {} MiB, which is the most that this agent takes; split it, or exclude it with the project's paths",
        FILE >> 20
    )]
    LargeFile {
        /// Its path.
        file: String,
    },
    /// All files together are too large.
    #[error(
        "the manifests are larger than {} MiB together, which is the most that this agent takes; narrow the project's paths",
        TOTAL >> 20
    )]
    LargeTotal,
    /// Too many files.
    #[error(
        "there are more than {FILES} manifests, the most that this agent takes; narrow the project's paths"
    )]
    ManyFiles,
}

/// One stream's messages so far.
#[derive(Debug, Default)]
pub struct Collector {
    order: ObjectsOrder,
    header: Option<Header>,
    files: Vec<File>,
    names: HashSet<String>,
    current: Option<(String, Vec<u8>)>,
    total: usize,
}

impl Collector {
    /// Whether a commit has begun to come.
    pub fn has_begun(&self) -> bool {
        self.header.is_some()
    }

    /// Files that came so far, the last one perhaps in part.
    pub fn files(&self) -> usize {
        self.files.len() + usize::from(self.current.is_some())
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// What is wrong with it; the stream is then to be given up.
    pub fn accept(&mut self, message: ObjectsToSynchronizeResponse) -> Result<(), CollectError> {
        self.order.accept(&message)?;
        match message.message {
            Some(Message::Header(header)) if header.commit_id.is_empty() => Err(CollectError::NoCommit),
            Some(Message::Header(header)) => {
                self.header = Some(header);
                Ok(())
            }
            Some(Message::Object(object)) => self.take(object),
            Some(Message::Trailer(_)) | None => Ok(()),
        }
    }

    /// The stream ended with OK: the commit, or `None` if there was no news.
    ///
    /// # Errors
    /// It ended in the middle of a commit.
    pub fn finish(mut self, project: &str) -> Result<Option<Received>, CollectError> {
        self.order.finish()?;
        self.complete();
        let files = self.files;
        Ok(self.header.map(|header| Received {
            project: project.to_owned(),
            project_id: header.project_id,
            commit_id: header.commit_id,
            files,
        }))
    }

    fn take(&mut self, Object { source, data }: Object) -> Result<(), CollectError> {
        if self.current.as_ref().is_none_or(|(name, _)| *name != source) {
            self.begin(source)?;
        }
        let Some((name, content)) = &mut self.current else {
            return Ok(());
        };
        if data.len() > FILE - content.len() {
            return Err(CollectError::LargeFile { file: std::mem::take(name) });
        }
        if data.len() > TOTAL - self.total {
            return Err(CollectError::LargeTotal);
        }
        // Copied: a piece is a window into a buffer that may be much larger.
        content.extend_from_slice(&data);
        self.total += data.len();
        Ok(())
    }

    fn begin(&mut self, name: String) -> Result<(), CollectError> {
        if name.is_empty() {
            return Err(CollectError::NoName);
        }
        if name.len() > NAME {
            return Err(CollectError::LongName);
        }
        self.complete();
        if self.files.len() == FILES {
            return Err(CollectError::ManyFiles);
        }
        if !self.names.insert(name.clone()) {
            return Err(CollectError::Twice { file: name });
        }
        self.current = Some((name, Vec::new()));
        Ok(())
    }

    fn complete(&mut self) {
        if let Some((source, mut data)) = self.current.take() {
            // It is kept for as long as the commit is the latest; what it grew into is not needed.
            data.shrink_to_fit();
            self.files.push(File { source, data: Bytes::from(data) });
        }
    }
}
