//! Why a question to Gitaly has no answer: what happened, where, what to do, and whose fault it is. Nothing here
//! carries a token.

use super::dial::DialError;
use std::{error::Error, time::Duration};
use tonic::{Code, Status};

/// Whose fault a failure is, and so whether to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// What the agent's owner wrote is wrong: tell the agent; only a new commit or another request helps.
    User,
    /// The server or the way to it: log it and try again later.
    Transient,
}

/// Why a question to Gitaly has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GitalyError {
    /// The poller has not had its first answer; no reader ever sees it.
    #[error("Gitaly was not asked yet")]
    NotAsked,
    /// Rails handed out an address that is none.
    #[error("{address:?} is not a Gitaly address: {reason}; correct it in GitLab's repository storages")]
    Address {
        /// As Rails wrote it.
        address: String,
        /// What is wrong, and what was wanted.
        reason: String,
    },
    /// The server's turn is later than the caller can wait.
    #[error(
        "{rpc} at Gitaly {address}: rate limited, its turn is in {wait:?}; raise gitaly.per_server_api_rate_limit or global_api_rate_limit if this lasts"
    )]
    Throttled {
        /// The server.
        address: String,
        /// The call.
        rpc: &'static str,
        /// Until its turn.
        wait: Duration,
    },
    /// No complete answer before the caller's deadline.
    #[error("{rpc} at Gitaly {address}: no answer in time; is the server overloaded?")]
    TimedOut {
        /// The server.
        address: String,
        /// The call.
        rpc: &'static str,
    },
    /// No connection to the server.
    #[error("{rpc} at Gitaly {address}: {reason}")]
    Unreachable {
        /// The server.
        address: String,
        /// The call.
        rpc: &'static str,
        /// What failed and what to look at.
        reason: String,
    },
    /// The server answered with an error.
    #[error("{rpc} at Gitaly {address}: {message} ({code:?}){}", advice(*code))]
    Rpc {
        /// The server.
        address: String,
        /// The call.
        rpc: &'static str,
        /// gRPC's.
        code: Code,
        /// The server's words.
        message: String,
    },
    /// The answer makes no sense.
    #[error("{rpc} at Gitaly {address}: {reason}; is it a Gitaly server?")]
    Protocol {
        /// The server.
        address: String,
        /// The call.
        rpc: &'static str,
        /// What makes no sense.
        reason: &'static str,
    },
    /// The repository is empty, or its `HEAD` names no branch and there is no `master`.
    #[error("{repository} has no commit on its default branch yet; push one")]
    NoDefaultBranch {
        /// The project's path.
        repository: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{repository} has no {reference}; push it or correct the ref in the agent's configuration")]
    NoSuchReference {
        /// The project's path.
        repository: String,
        /// Full name, or the commit's id.
        reference: String,
    },
    /// The server lacks the commit whose files were asked for, so it cannot know which there are.
    #[error(
        "Gitaly {address} has no commit {commit} of {repository}; if this lasts: was the repository moved or restored?"
    )]
    NoSuchCommit {
        /// The server.
        address: String,
        /// The project's path.
        repository: String,
        /// The commit that was to be read.
        commit: String,
    },
    /// There is something under that name which is not a regular file.
    #[error("{file} at {commit} is not a regular file")]
    NotAFile {
        /// From the repository's root.
        file: String,
        /// The commit that was read.
        commit: String,
    },
    /// The file is larger than allowed.
    #[error(
        "{file} at {commit} has more than the {limit} bytes that are allowed; make it smaller or split it"
    )]
    TooLarge {
        /// From the repository's root.
        file: String,
        /// The commit that was read.
        commit: String,
        /// In bytes.
        limit: u64,
    },
    /// The files are larger than allowed, together.
    #[error(
        "the manifests have more than the {limit} bytes that are allowed together, at {file}; select fewer"
    )]
    AllTooLarge {
        /// The first one that does not fit.
        file: String,
        /// In bytes.
        limit: u64,
    },
    /// A file was listed a moment ago and is gone.
    #[error("{file} does not exist at {commit}")]
    Missing {
        /// From the repository's root.
        file: String,
        /// The commit that was read.
        commit: String,
    },
    /// The pattern is malformed.
    #[error("{glob:?} is not a valid glob: {reason}")]
    Glob {
        /// As the agent's configuration says.
        glob: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More patterns than allowed.
    #[error("maximum number of GitOps paths per manifest project is {limit}, but {count} was requested")]
    TooManyPaths {
        /// In the request.
        count: usize,
        /// Allowed.
        limit: usize,
    },
    /// The directories of the patterns hold more files than allowed, counting those that no pattern matches.
    #[error("more than {limit} files to look at; name directories with fewer files in the globs")]
    TooManyFiles {
        /// Allowed.
        limit: usize,
    },
    /// Two patterns select the same file.
    #[error("{file} is selected by more than one glob; make them disjoint")]
    SelectedTwice {
        /// From the repository's root.
        file: String,
    },
    /// A selected file's name cannot be told to the agent.
    #[error("the path of {file} is not UTF-8 or has more than 4096 bytes; rename it")]
    Name {
        /// With replacement characters.
        file: String,
    },
}

impl GitalyError {
    /// Whether the server is away, rather than of another opinion: it may be back at any moment.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } => true,
            Self::Rpc { code, .. } => matches!(code, Code::Unavailable | Code::DeadlineExceeded),
            _ => false,
        }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::NotAsked
            | Self::Address { .. }
            | Self::Throttled { .. }
            | Self::TimedOut { .. }
            | Self::Unreachable { .. }
            | Self::Rpc { .. }
            | Self::Protocol { .. }
            | Self::NoDefaultBranch { .. }
            | Self::NoSuchReference { .. }
            | Self::NoSuchCommit { .. } => Fault::Transient,
            Self::NotAFile { .. }
            | Self::TooLarge { .. }
            | Self::AllTooLarge { .. }
            | Self::Missing { .. }
            | Self::Glob { .. }
            | Self::TooManyPaths { .. }
            | Self::TooManyFiles { .. }
            | Self::SelectedTwice { .. }
            | Self::Name { .. } => Fault::User,
        }
    }
}

fn advice(code: Code) -> &'static str {
    match code {
        Code::Unauthenticated => "; the server wants a token, and GitLab hands out none for it",
        Code::PermissionDenied => {
            "; does GitLab hand out the server's token, and do the clocks agree within 30 s?"
        }
        Code::NotFound => "; was the repository moved or removed?",
        _ => "",
    }
}

pub(super) fn of_status(address: &str, rpc: &'static str, status: &Status) -> GitalyError {
    let address = address.to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<DialError>() {
            return GitalyError::Unreachable { address, rpc, reason: error.to_string() };
        }
        cause = error.source();
    }
    GitalyError::Rpc { address, rpc, code: status.code(), message: words(status) }
}

/// The server's words, or what broke below gRPC.
fn words(status: &Status) -> String {
    match status.source() {
        Some(cause) => crate::error::chain(cause),
        None => status.message().to_owned(),
    }
}
