//! Serves `AgentReports`: what an agent tells of its own accord, what became of its configuration and manifests
//! ([`board`]) and what its cluster holds ([`views`]). Before it: admission, which says whose words these are. After it:
//! the log, events, and the API listener, which asks [`known`]. A stranger's text is cut and cleaned, a stranger's JSON
//! parsed and written anew; nothing of one agent is ever kept under another's id.

pub mod board;
pub mod cable;
mod clean;
mod codec;
pub mod known;
mod pace;
mod prompt;
mod report;
pub mod rpc;
mod server;
#[cfg(test)]
pub(crate) mod tests;
pub mod views;

pub use prompt::Prompt;

use crate::{
    auth,
    drain::Departures,
    events::{Event, Events},
    identities::Agent,
    observability::KnownMetrics,
    per_agent::PerAgent,
    policies::Ages,
};
use board::Board;
use codec::Told;
use pace::Paces;
use postern_wire::{
    metadata::set_retry_pushback,
    proto::postern::agent::{PushViewsResponse, ReportRequest, ReportResponse, ViewUpdate},
};
use server::Server;
use std::{sync::Arc, time::Duration};
use tonic::{Code, Request, Response, Status, Streaming};
use views::Views;

/// Streams of views that one agent may have open: that of its leader, and those of leaders that were.
pub const STREAMS_PER_AGENT: usize = 4;
/// Reports of one agent on their way at once; each of its replicas tells one after the other.
const CALLS: usize = 16;
/// Of those, how many are read at once; the others wait, unread.
///
/// What reading takes at the worst, for an agent: two reports of less than 3 MiB each and four messages of views of less
/// than 4 MiB each ([`codec`] says why), so 22 MiB, over however many connections. What waits its turn is unread, and so
/// no more than the windows of its streams, 128 KiB each: 2.5 MiB for an agent here, 128 MiB for a connection with the
/// 1,024 streams of all its agents and methods.
const REPORTS_READ: usize = 2;
/// Reports of one agent at once; each of its projects may tell once a second for a while.
const REPORTS: (u32, Duration) = (200, Duration::from_millis(50));
/// Messages about views of one agent at once, and how often in the long run: five views, ten times a second each, twice.
const UPDATES: (u32, Duration) = (500, Duration::from_millis(10));
/// Bytes of those messages, in KiB, at once and in the long run: all that an agent may have in views and a quarter more,
/// then 2 MiB a second. Each byte is parsed and written anew.
const KIB: (u32, Duration) = (20 << 10, Duration::from_nanos(1_000_000_000 / (2 << 10)));

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
    calls: PerAgent,
    reading: PerAgent,
    reports: Arc<Paces>,
    updates: Arc<Paces>,
    kib: Arc<Paces>,
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
            calls: PerAgent::new(CALLS),
            reading: PerAgent::new(REPORTS_READ),
            reports: Arc::new(Paces::new(REPORTS)),
            updates: Arc::new(Paces::new(UPDATES)),
            kib: Arc::new(Paces::new(KIB)),
        }
    }

    /// As it is served behind admission.
    pub fn server(self) -> Prompt<Server> {
        Prompt::new(Server(self), server::PUSH_VIEWS)
    }

    /// The next message, if it is within its bounds.
    async fn next<M>(&self, messages: &mut Streaming<Told<M>>) -> Result<Option<Told<M>>, Status> {
        messages.message().await.inspect_err(|status| {
            // Else it is the connection's trouble.
            if status.code() == Code::OutOfRange {
                self.metrics.refused.inc();
            }
        })
    }

    async fn report(
        &self,
        request: Request<Streaming<Told<ReportRequest>>>,
    ) -> Result<Response<ReportResponse>, Status> {
        let permit = auth::permit(&request)?;
        let agent = &permit.agent;
        let Some(_call) = self.calls.try_enter(agent.id) else {
            self.metrics.refused.inc();
            return Err(Status::resource_exhausted(format!(
                "{CALLS} reports of this agent are on their way already"
            )));
        };
        if self.reports.take(agent.id).is_err() {
            self.metrics.refused.inc();
            return Err(Status::resource_exhausted(
                "reports come faster than 20 a second; send the latest only",
            ));
        }
        let _turn = self.reading.enter(agent.id).await;
        let mut reports = request.into_inner();
        let one = || Status::invalid_argument("one report is wanted, and then the end of the call");
        let told = self.next(&mut reports).await?.ok_or_else(one)?;
        self.keep(agent, told.message)?;
        // Whoever keeps the end to himself keeps his own turn, and nothing that he told is held for it.
        match self.next(&mut reports).await? {
            None => Ok(Response::new(ReportResponse {})),
            Some(_) => Err(one()),
        }
    }

    /// Puts it where it is asked for, and says what is news.
    fn keep(&self, agent: &Agent, request: ReportRequest) -> Result<(), Status> {
        let report = report::read(request).inspect_err(|_| {
            self.metrics.refused.inc();
        })?;
        self.metrics.reported(report.outcome);
        let is_news = self.board.put(agent.id, report.kept());
        report.log(agent.id, is_news);
        if is_news && let Some(kind) = report.event {
            self.events.publish(Event::now(kind, agent.id, agent.project_id));
        }
        Ok(())
    }

    async fn push_views(
        &self,
        request: Request<Streaming<Told<ViewUpdate>>>,
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
        let evicted = push.evicted();
        let mut updates = request.into_inner();
        let pushed = async {
            loop {
                // Before it is read: what waits fills the agent's own window only.
                self.updates.turn(agent).await;
                self.kib.turn(agent).await;
                let Some(update) = self.next(&mut updates).await? else { return Ok::<_, Status>(()) };
                self.kib.spend(agent, u32::try_from(update.bytes >> 10).unwrap_or(u32::MAX));
                push.apply(update.message).inspect_err(|error| {
                    self.metrics.refused.inc();
                    tracing::warn!(agent_id = %agent, %error, "views of an agent are not taken");
                })?;
            }
        };
        let mut response = Response::new(PushViewsResponse {});
        tokio::select! {
            biased;
            status = permit.withdrawn() => return Err(status),
            () = life.over() => {}
            goodbye = stay.stream_over() => set_retry_pushback(response.metadata_mut(), goodbye.pause),
            refused = evicted => return Err(refused.into()),
            pushed = pushed => pushed?,
        }
        Ok(response)
    }
}
