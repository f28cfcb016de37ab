//! The agent token: read from its file and again whenever that changes, or once from the environment.
//! Every new connection takes the current one. It never goes anywhere but into a request's `authorization`.

use crate::error;
use postern_certs::watch::FileWatch;
use postern_wire::token::{AgentToken, InvalidToken};
use std::{fmt, io, path::PathBuf};
use tokio::sync::watch;
use tracing::{error, info, warn};

/// Where the token comes from.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// `--token-file`: re-read when it changes.
    File(PathBuf),
    /// `AGENTK_TOKEN`: as it was at start.
    Environment(AgentToken),
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the agent token from {path}")]
    Read {
        /// As given to `--token-file`.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file does not hold a token.
    #[error("{path} does not hold an agent token")]
    Invalid {
        /// As given to `--token-file`.
        path: PathBuf,
        #[source]
        source: InvalidToken,
    },
}

/// For advice: which place to look at.
impl fmt::Display for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(_) => f.write_str("AGENTK_TOKEN"),
        }
    }
}

impl TokenSource {
    /// The token as it is now.
    pub fn read(&self) -> Result<AgentToken, TokenError> {
        match self {
            Self::Environment(token) => Ok(token.clone()),
            Self::File(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| TokenError::Read { path: path.clone(), source })?;
                AgentToken::new(text).map_err(|source| TokenError::Invalid { path: path.clone(), source })
            }
        }
    }

    /// Puts every new token into `tokens`, for ever. A file that has become unusable keeps the last good token.
    pub async fn keep_fresh(self, tokens: watch::Sender<AgentToken>) {
        let Self::File(path) = &self else {
            return std::future::pending().await;
        };
        let mut file = match FileWatch::new(vec![path.clone()]) {
            Ok(file) => file,
            Err(error) => {
                warn!(error = %error::chain(&error), "token file is not watched; restart the agent to change it");
                return std::future::pending().await;
            }
        };
        let mut first = true;
        loop {
            // Once without waiting: the file may have changed between its first reading and the watch.
            if !std::mem::take(&mut first) {
                file.changed().await;
            }
            match self.read() {
                Ok(token) => {
                    let changed = |current: &mut AgentToken| {
                        let differs = current.key() != token.key();
                        *current = token.clone();
                        differs
                    };
                    if tokens.send_if_modified(changed) {
                        info!(token = %token.key(), "agent token changed");
                    }
                }
                Err(error) => {
                    error!(error = %error::chain(&error), "token file is unusable; the last good one stays")
                }
            }
        }
    }
}
