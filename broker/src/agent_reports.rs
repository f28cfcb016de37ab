//! Serves `AgentReports`: what an agent tells of its own accord, what became of its configuration and manifests
//! ([`board`]) and what its cluster holds ([`views`]). Before it: admission, which says whose words these are. After it:
//! the log, events, and the API listener, which asks [`known`]. A stranger's text is cut and cleaned, a stranger's JSON
//! parsed and written anew; nothing of one agent is ever kept under another's id.

pub mod board;
pub mod cable;
mod clean;
pub mod known;
mod pace;
mod prompt;
mod report;
pub mod rpc;
#[cfg(test)]
pub(crate) mod tests;
pub mod views;

pub use prompt::Prompt;

use crate::{
    auth,
    drain::Departures,
    events::{Event, Events},
    observability::KnownMetrics,
    per_agent::PerAgent,
    policies::Ages,
};
use board::Board;
use pace::Paces;
use postern_wire::{
    metadata::set_retry_pushback,
    proto::postern::agent::{
        PushViewsResponse, ReportRequest, ReportResponse, ViewUpdate,
        agent_reports_server::{AgentReports, AgentReportsServer},
    },
};
use std::{sync::Arc, time::Duration};
use tonic::{Request, Response, Status, Streaming, async_trait, codec::CompressionEncoding};
use views::Views;

/// Streams of views that one agent may have open: that of its leader, and those of leaders that were.
pub const STREAMS_PER_AGENT: usize = 4;
/// One message, decompressed, in bytes.
const MESSAGE_MAX: usize = 4 << 20;
/// Reports of one agent at once; each of its projects may tell once a second for a while.
const REPORTS: (u32, Duration) = (200, Duration::from_millis(50));
/// Messages about views of one agent at once, and how often in the long run: five views, ten times a second each, twice.
const UPDATES: (u32, Duration) = (500, Duration::from_millis(10));

/// The service. Clones share everything.
#[derive(Clone)]
pub struct ReportsService {
    board: Board,
    views: Views,
    events: Arc<Events>,
    metrics: KnownMetrics,
    ages: Ages,
    departures: Departures,
    streams: PerAgent,
    reports: Arc<Paces>,
    updates: Arc<Paces>,
}

impl ReportsService {
    /// Puts what agents tell into `board` and `views`. Streams of views end as `ages` and `departures` say.
    pub fn new(
        (board, views): (Board, Views),
        events: Arc<Events>,
        metrics: KnownMetrics,
        ages: Ages,
        departures: Departures,
    ) -> Self {
        Self {
            board,
            views,
            events,
            metrics,
            ages,
            departures,
            streams: PerAgent::new(STREAMS_PER_AGENT),
            reports: Arc::new(Paces::new(REPORTS)),
            updates: Arc::new(Paces::new(UPDATES)),
        }
    }

    /// As it is served behind admission.
    pub fn server(self) -> Prompt<AgentReportsServer<Self>> {
        let server = AgentReportsServer::new(self);
        let bounded =
            server.accept_compressed(CompressionEncoding::Gzip).max_decoding_message_size(MESSAGE_MAX);
        Prompt::new(bounded, "/postern.agent.AgentReports/PushViews")
    }
}

#[async_trait]
impl AgentReports for ReportsService {
    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        let permit = auth::permit(&request)?;
        let agent = &permit.agent;
        if self.reports.take(agent.id).is_err() {
            self.metrics.refused.inc();
            return Err(Status::resource_exhausted(
                "reports come faster than 20 a second; send the latest only",
            ));
        }
        let report = report::read(request.into_inner()).inspect_err(|_| {
            self.metrics.refused.inc();
        })?;
        self.metrics.reported(report.outcome);
        let is_news = self.board.put(agent.id, report.kept());
        report.log(agent.id, is_news);
        if is_news && let Some(kind) = report.event {
            self.events.publish(Event::now(kind, agent.id, agent.project_id));
        }
        Ok(Response::new(ReportResponse {}))
    }

    async fn push_views(
        &self,
        request: Request<Streaming<ViewUpdate>>,
    ) -> Result<Response<PushViewsResponse>, Status> {
        let permit = auth::permit(&request)?;
        let agent = permit.agent.id;
        let Some(_slot) = self.streams.try_enter(agent) else {
            return Err(Status::resource_exhausted(format!(
                "this agent has {STREAMS_PER_AGENT} streams of views open already"
            )));
        };
        let mut life = self.ages.begin(permit.who());
        let stay = self.departures.stay(agent);
        let mut push = self.views.begin(agent);
        let mut updates = request.into_inner();
        let pushed = async {
            while let Some(update) = updates.message().await? {
                self.updates.turn(agent).await;
                push.apply(update).inspect_err(|error| {
                    self.metrics.refused.inc();
                    tracing::warn!(agent_id = %agent, %error, "views of an agent are not taken");
                })?;
            }
            Ok::<_, Status>(())
        };
        let mut response = Response::new(PushViewsResponse {});
        tokio::select! {
            biased;
            status = permit.withdrawn() => return Err(status),
            () = life.over() => {}
            goodbye = stay.stream_over() => set_retry_pushback(response.metadata_mut(), goodbye.pause),
            pushed = pushed => pushed?,
        }
        Ok(response)
    }
}
