//! Follows one manifest project: opens a stream, waits for the next commit, publishes it whole, opens the next stream.
//! Before it: `gitops.rs`, which starts and aborts it. `stream.rs` reads a stream; what came of one that failed is
//! dropped there and never reaches this file.

use crate::{
    broker::{Road, connection::Connection, gate::Refusal},
    error,
    gitops::{
        Received,
        pace::Pace,
        stream::{self, Cause, End},
    },
    observability::Metrics,
    pushback,
};
use postern_wire::proto::gitlab::agent::{
    agentcfg::ManifestProjectCf,
    gitops::rpc::{ObjectsToSynchronizeRequest, gitops_client::GitopsClient},
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use tonic::{Code, Status, codec::CompressionEncoding};
use tracing::{info, warn};

const CONNECTION_END: Duration = Duration::from_millis(200);

/// What one project's task owns.
pub(crate) struct Task {
    pub(crate) road: Road,
    pub(crate) settings: Arc<ManifestProjectCf>,
    pub(crate) latest: watch::Sender<Option<Arc<Received>>>,
    pub(crate) metrics: Metrics,
}

impl Task {
    /// Never returns; it is stopped by aborting it.
    pub(crate) async fn receive(self) {
        let mut pace = Pace::default();
        let mut commit_id = String::new();
        loop {
            let connection = self.road.connection().await;
            let began = Instant::now();
            let (end, pause) = self.stream(&connection, &commit_id).await;
            let delay = match end {
                End::Moved => continue,
                End::Well(received) => {
                    self.road.admitted();
                    match received {
                        // Where the broker is about to leave, it says when to come again.
                        None => pace.quiet(began.elapsed()).max(pause),
                        // Published again, it would be applied again, for nothing.
                        Some(known) if known.commit_id == commit_id => Some(pace.repeated()),
                        Some(news) => {
                            let first = commit_id.is_empty();
                            commit_id.clone_from(&news.commit_id);
                            self.publish(news);
                            pace.news(began.elapsed(), first)
                        }
                    }
                }
                End::Failed { cause, discarded } => {
                    if let Cause::Status(status) = &cause
                        && (connection.ends_within(CONNECTION_END, status).await
                            || self.refused(&connection, status, discarded))
                    {
                        continue;
                    }
                    let delay = match &cause {
                        Cause::Status(status) => pace.failed(began.elapsed(), status.code()),
                        Cause::Stalled => pace.failed(began.elapsed(), Code::Unavailable),
                        Cause::Collect(_) => pace.broken(),
                    };
                    self.report(&cause, discarded, delay);
                    Some(delay)
                }
            };
            if let Some(delay) = delay {
                tokio::time::sleep(delay).await;
            }
        }
    }

    /// How it ended, and when the broker wants to be asked again, if it says so.
    async fn stream(&self, connection: &Connection, commit_id: &str) -> (End, Option<Duration>) {
        let request = ObjectsToSynchronizeRequest {
            project_id: self.settings.id.clone(),
            commit_id: commit_id.to_owned(),
            paths: self.settings.paths.clone(),
            r#ref: self.settings.r#ref.clone(),
        };
        let mut client = GitopsClient::new(connection.clone()).accept_compressed(CompressionEncoding::Gzip);
        let opened = tokio::select! {
            opened = client.get_objects_to_synchronize(request) => opened,
            () = connection.retired().cancelled() => return (End::Moved, None),
        };
        let mut stream = match opened {
            Ok(response) => response.into_inner(),
            Err(status) => return (End::Failed { cause: Cause::Status(status), discarded: 0 }, None),
        };
        let end = stream::read(&mut stream, &self.settings.id, connection.retired()).await;
        let pause = match end {
            End::Well(None) => pushback::after(&mut stream).await,
            _ => None,
        };
        (end, pause)
    }

    fn publish(&self, received: Received) {
        self.metrics.gitops_commits.inc();
        info!(
            project = %received.project,
            commit_id = %received.commit_id,
            files = received.files.len(),
            bytes = received.bytes(),
            "manifests received"
        );
        self.latest.send_replace(Some(Arc::new(received)));
    }

    /// Whether the broker has something against the agent's token, rather than against this project. A project that
    /// the agent may not read, or that does not exist, must not hold back its tunnels.
    fn refused(&self, connection: &Connection, status: &Status, discarded: usize) -> bool {
        let about_token = match Refusal::of(status) {
            Some(Refusal::Unauthenticated | Refusal::Later) => true,
            // In the middle of a commit it is about a message that is too large.
            Some(Refusal::Limited) => discarded == 0,
            _ => false,
        };
        about_token && self.road.refused(connection, status)
    }

    fn report(&self, cause: &Cause, discarded: usize, delay: Duration) {
        self.metrics.gitops_failures.inc();
        let advice = match cause {
            Cause::Status(status) => advice(status.code()),
            _ => "",
        };
        let project = &self.settings.id;
        warn!(%project, error = %error::chain(cause), discarded, retry_in = ?delay, %advice, "no manifests");
    }
}

/// What to do about a status, where its text alone would leave that open.
fn advice(code: Code) -> &'static str {
    match code {
        Code::PermissionDenied | Code::NotFound => {
            "does the project exist under this path, and may the agent's project read it?"
        }
        Code::Unimplemented => "this broker does not serve manifests: remove gitops from the configuration",
        _ => "",
    }
}
