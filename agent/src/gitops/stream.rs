//! Reads one GitOps stream to its end: nothing for minutes, then perhaps a commit. Before it: `project.rs`, which opens
//! the stream and acts on its end. Messages go through `collect.rs`. It logs nothing and never waits for ever for the
//! rest of a commit.

use crate::{
    error,
    gitops::{
        Received,
        collect::{CollectError, Collector},
    },
};
use futures::{Stream, StreamExt};
use postern_wire::proto::gitlab::agent::gitops::rpc::ObjectsToSynchronizeResponse;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// A broker that has begun a commit goes on within this time, however slow its repositories are. Before that it may be
/// silent for as long as there is no news.
const STALLED: Duration = Duration::from_secs(120);

/// How a stream ended.
#[derive(Debug)]
pub(crate) enum End {
    /// With OK, and a commit unless there was no news.
    Well(Option<Received>),
    /// Another connection has taken over before anything came.
    Moved,
    /// What came, so many files, is not used.
    Failed { cause: Cause, discarded: usize },
}

/// Why a stream failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    /// The broker says so, or the connection does.
    #[error("{}", error::status(.0))]
    Status(Status),
    /// What came is not a commit.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// The rest of a commit did not come.
    #[error("the broker began a commit and then sent nothing for {STALLED:?}")]
    Stalled,
}

/// Reads until the end, or until `moved` if nothing has come by then: a commit that comes is finished where it began.
pub(crate) async fn read(
    mut stream: impl Stream<Item = Result<ObjectsToSynchronizeResponse, Status>> + Unpin,
    project: &str,
    moved: &CancellationToken,
) -> End {
    let mut collector = Collector::default();
    loop {
        let discarded = collector.files();
        let failed = |cause| End::Failed { cause, discarded };
        let message = if collector.has_begun() {
            match timeout(STALLED, stream.next()).await {
                Ok(message) => message,
                Err(_) => return failed(Cause::Stalled),
            }
        } else {
            tokio::select! {
                message = stream.next() => message,
                () = moved.cancelled() => return End::Moved,
            }
        };
        match message {
            Some(Ok(message)) => {
                if let Err(error) = collector.accept(message) {
                    return failed(error.into());
                }
            }
            Some(Err(status)) => return failed(Cause::Status(status)),
            None => {
                return collector.finish(project).map_or_else(|error| failed(error.into()), End::Well);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_wire::proto::gitlab::agent::gitops::rpc::objects_to_synchronize_response::{
        Header, Message, Object, Trailer,
    };
    use tokio::{sync::mpsc, time::Instant};
    use tokio_stream::wrappers::ReceiverStream;

    type Item = Result<ObjectsToSynchronizeResponse, Status>;

    fn item(message: Message) -> Item {
        Ok(ObjectsToSynchronizeResponse { message: Some(message) })
    }

    fn header() -> Item {
        item(Message::Header(Header { commit_id: "c1".to_owned(), project_id: 0 }))
    }

    fn file() -> Item {
        item(Message::Object(Object { source: "a.yaml".to_owned(), data: "a".into() }))
    }

    async fn read_all(items: Vec<Item>) -> End {
        read(futures::stream::iter(items), "p", &CancellationToken::new()).await
    }

    #[tokio::test]
    async fn nothing_of_a_stream_that_ends_badly_is_given_out() {
        let refused = || Err(Status::failed_precondition("too many files"));
        let trailer = || item(Message::Trailer(Trailer {}));
        for items in [
            vec![refused()],
            vec![header(), refused()],
            vec![header(), file(), refused()],
            // Trailer, but no OK.
            vec![header(), file(), trailer(), refused()],
            vec![header(), file()],
            vec![header(), file(), trailer(), trailer()],
        ] {
            assert!(matches!(read_all(items).await, End::Failed { .. }));
        }
        let whole = read_all(vec![header(), file(), trailer()]).await;
        assert!(matches!(whole, End::Well(Some(received)) if received.files.len() == 1));
        assert!(matches!(read_all(Vec::new()).await, End::Well(None)));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_patience_before_a_commit_and_a_failure_within_one() {
        let began = Instant::now();
        let (sender, items) = mpsc::channel(4);
        let moved = CancellationToken::new();
        let reading = read(ReceiverStream::new(items), "p", &moved);
        let sending = async {
            tokio::time::advance(Duration::from_secs(13 * 60)).await;
            sender.send(header()).await.unwrap();
            sender.send(file()).await.unwrap();
            std::future::pending::<()>().await;
        };
        let end = tokio::select! { end = reading => end, () = sending => unreachable!("it waits") };
        assert!(matches!(end, End::Failed { cause: Cause::Stalled, discarded: 1 }), "{end:?}");
        assert!(began.elapsed() >= Duration::from_secs(15 * 60));
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_stream_without_a_commit_moves() {
        let moved = CancellationToken::new();
        moved.cancel();
        let end = read(futures::stream::pending(), "p", &moved).await;
        assert!(matches!(end, End::Moved));
        let begun = futures::stream::iter([header(), file()]).chain(futures::stream::pending());
        let later = CancellationToken::new();
        let end = tokio::join!(read(begun, "p", &later), async {
            tokio::task::yield_now().await;
            later.cancel();
        });
        assert!(matches!(end.0, End::Failed { cause: Cause::Stalled, .. }));
    }
}
