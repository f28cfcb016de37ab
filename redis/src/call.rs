//! One call on one connection: sent, waited for, and what its failure means for the connection. Before it: [`super::Redis`]
//! with a connection out of the pool. It never tries a second time.

use super::{RedisError, cluster::Asking, pool::Lease};
use ::redis::{Cmd, Pipeline, ServerErrorKind, Value, aio::ConnectionLike};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// What is sent: all of it concerns one key, or none.
#[derive(Clone, Copy)]
pub(super) enum Call<'a> {
    Command(&'a Cmd),
    Pipeline(&'a Pipeline),
}

impl Call<'_> {
    async fn send(self, connection: &mut impl ConnectionLike) -> ::redis::RedisResult<Value> {
        match self {
            Self::Command(command) => command.query_async(connection).await,
            Self::Pipeline(pipeline) => pipeline.query_async(connection).await,
        }
    }

    /// Waits until `end` for the answer; `limit` is how long that was.
    pub(super) async fn on(self, lease: &Lease, end: Instant, limit: Duration) -> Result<Value, RedisError> {
        judge(lease, limit, timeout_at(end, self.send(&mut lease.commands.clone())).await.ok())
    }

    /// The same at the node of a cluster that the key is moving to.
    pub(super) async fn asking_on(
        self,
        lease: &Lease,
        end: Instant,
        limit: Duration,
    ) -> Result<Value, RedisError> {
        judge(lease, limit, timeout_at(end, self.send(&mut Asking(lease.commands.clone()))).await.ok())
    }
}

fn judge(
    lease: &Lease,
    limit: Duration,
    answer: Option<::redis::RedisResult<Value>>,
) -> Result<Value, RedisError> {
    let server = || lease.server.as_ref().to_owned();
    match answer {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(source)) => {
            // A replica says these: the master has moved.
            let moved =
                said(&source, |kind| matches!(kind, ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown));
            if moved || source.is_unrecoverable_error() {
                lease.broken.cancel();
            }
            Err(RedisError::Failed { server: server(), source })
        }
        None => {
            lease.broken.cancel();
            Err(RedisError::Silent { server: server(), limit })
        }
    }
}

/// Whether the answer is such an error, or that to one command of a pipeline or transaction.
pub(super) fn said(source: &::redis::RedisError, such: impl Fn(ServerErrorKind) -> bool) -> bool {
    let errors = source.clone().into_server_errors();
    errors.is_some_and(|errors| errors.iter().any(|(_, error)| error.kind().is_some_and(&such)))
}
