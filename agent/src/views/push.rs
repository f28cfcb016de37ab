//! Keeps one stream `PushViews` to the broker and says who listens at its end. Before it: `keep.rs`, which fills the
//! stream; after it: the broker. Opens it anew where it ends, moves with the connection, and leaves brokers alone that do
//! not know it.

use super::keep::Line;
use crate::{
    backoff::Backoff,
    broker::{Road, connection::Connection, gate::Refusal},
    error, pushback,
};
use postern_wire::proto::postern::agent::agent_reports_client::AgentReportsClient;
use std::time::Duration;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{info, warn};

/// A broker that does not know views says so within this time; until then nothing is followed for it.
const TRIAL: Duration = Duration::from_millis(300);
/// A stream that ends politely sooner than this is not to be opened again at once.
const SHORTEST: Duration = Duration::from_secs(1);
const CONNECTION_END: Duration = Duration::from_millis(200);
/// Messages on their way; what changes meanwhile is put together with what changes later.
const QUEUE: usize = 2;
/// What is on its way when views end has this long to arrive.
const LAST: Duration = Duration::from_secs(2);

/// The stream's opener.
pub(crate) struct Pusher {
    pub(crate) road: Road,
    pub(crate) line: watch::Sender<Line>,
    /// Cancelled when nothing more will be sent.
    pub(crate) closing: CancellationToken,
}

/// How a stream ended.
enum End {
    /// With OK, and when the broker wants another one, if it said so.
    Politely(Option<Duration>),
    Moved,
    Closed,
    /// And whether anything may have been sent by then.
    Failed {
        status: Status,
        begun: bool,
    },
}

impl Pusher {
    /// Returns after `closing`.
    pub(crate) async fn push(self) {
        let mut quick = Backoff::new(Duration::from_millis(200), Duration::from_secs(20), 1.5);
        let mut slow = Backoff::new(Duration::from_secs(10), Duration::from_secs(300), 2.0);
        // Of the connection before: only one that has just been met is put to the trial.
        let mut wanted = false;
        loop {
            let connection = tokio::select! {
                connection = self.road.connection() => connection,
                () = self.closing.cancelled() => return,
            };
            let began = Instant::now();
            let end = self.stream(&connection, &mut wanted).await;
            self.line.send_replace(Line::Closed);
            if began.elapsed() > Duration::from_secs(60) {
                quick.reset();
                slow.reset();
            }
            let delay = match end {
                End::Moved => continue,
                End::Closed => return,
                End::Politely(pause) if began.elapsed() >= SHORTEST => pause.unwrap_or_default(),
                End::Politely(pause) => quick.step().max(pause.unwrap_or_default()),
                End::Failed { status, begun } => {
                    if connection.ends_within(CONNECTION_END, &status).await
                        || is_about_token(&status, begun) && self.road.refused(&connection, &status)
                    {
                        continue;
                    }
                    match status.code() {
                        Code::Unimplemented => {
                            wanted = false;
                            self.unwanted(&connection).await;
                            continue;
                        }
                        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => quick.step(),
                        _ => {
                            let delay = slow.step();
                            warn!(error = %error::status(&status), retry_in = ?delay, "the broker takes no views");
                            delay
                        }
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.closing.cancelled() => return,
            }
        }
    }

    async fn stream(&self, connection: &Connection, wanted: &mut bool) -> End {
        let (sender, updates) = mpsc::channel(QUEUE);
        let mut client = AgentReportsClient::new(connection.clone());
        let call = client.push_views(ReceiverStream::new(updates));
        tokio::pin!(call);
        let mut open = Some(sender);
        let trial = tokio::time::sleep(if *wanted { Duration::ZERO } else { TRIAL });
        tokio::pin!(trial);
        loop {
            tokio::select! {
                biased;
                answer = &mut call => return match answer {
                    Ok(response) => End::Politely(pushback::of(response.metadata())),
                    Err(status) => End::Failed { status, begun: open.is_none() },
                },
                () = connection.retired().cancelled() => return End::Moved,
                () = self.closing.cancelled() => {
                    // What was sent is finished by the end of the stream, which the broker answers.
                    drop(open.take());
                    self.line.send_replace(Line::Closed);
                    let _ = timeout(LAST, &mut call).await;
                    return End::Closed;
                }
                () = &mut trial, if open.is_some() => {
                    *wanted = true;
                    self.line.send_replace(open.take().map_or(Line::Closed, Line::Open));
                }
            }
        }
    }

    /// Until there is another connection.
    async fn unwanted(&self, connection: &Connection) {
        info!("this broker does not keep views: none are computed for it");
        self.line.send_replace(Line::Unwanted);
        tokio::select! {
            () = self.road.another_than(connection) => {}
            () = self.closing.cancelled() => {}
        }
    }
}

/// Whether the broker has something against the agent's token rather than against its views, which must not hold back
/// its tunnels.
fn is_about_token(status: &Status, begun: bool) -> bool {
    match Refusal::of(status) {
        Some(Refusal::Unauthenticated | Refusal::Later) => true,
        // Once there are views it is about their size.
        Some(_) => !begun,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_that_are_refused_do_not_hold_back_tunnels() {
        let table = [
            (Status::unauthenticated("who?"), true, true),
            (Status::resource_exhausted("too many streams of this token"), true, false),
            (Status::permission_denied("blocked"), true, false),
            (Status::unavailable("away"), false, false),
            (Status::unimplemented("what?"), false, false),
            (Status::aborted("another stream has taken over"), false, false),
        ];
        for (status, at_first, later) in table {
            assert_eq!(is_about_token(&status, false), at_first, "{status}");
            assert_eq!(is_about_token(&status, true), later, "{status}");
        }
    }
}
