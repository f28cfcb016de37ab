//! `postern.fleet.AgentKnowledge` on brokers' private API: a broker says what agents told it, and another one asks. Before
//! the service: the check of the other broker's JWT, in the gateway. It never asks anybody further.

use super::{
    board::{Board, Last},
    known::Pages,
    views::{Follower, Kind, PAGE, Page, Summary, Views},
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http_body::Body as HttpBody;
use postern_wire::{
    ids::AgentId,
    proto::postern::fleet::{
        FollowRequest, FollowedEntry, FollowedPage, KnownReport, KnownReports, KnownRequest, KnownView,
        KnownViews, agent_knowledge_client::AgentKnowledgeClient, agent_knowledge_server::AgentKnowledge,
    },
};
use std::{pin::Pin, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, async_trait, body::Body, client::GrpcService};

/// Bytes of a page, with room for what other versions may add.
const PAGE_BYTES: usize = 4 << 20;
/// Reports of a page: each has some 300 KiB at the most.
const REPORTS: usize = 8;
/// Reports that are read of one broker; it has fewer of an agent.
const REPORTS_MAX: usize = 1_000;

/// Says what this broker was told.
#[derive(Clone, Debug)]
pub struct KnowledgeService {
    /// What became of configurations and manifests.
    pub board: Board,
    /// What clusters hold.
    pub views: Views,
    /// Ends those who follow.
    pub stop: CancellationToken,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[async_trait]
impl AgentKnowledge for KnowledgeService {
    type FollowStream = Answers<FollowedPage>;
    type ReportsStream = Answers<KnownReports>;

    async fn views(&self, request: Request<KnownRequest>) -> Result<Response<KnownViews>, Status> {
        let summaries = self.views.summaries(AgentId(request.into_inner().agent_id));
        Ok(Response::new(KnownViews { views: summaries.into_iter().map(summary_written).collect() }))
    }

    async fn follow(&self, request: Request<FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let FollowRequest { agent_id, view, follow } = request.into_inner();
        let follower = Kind::of(&view).and_then(|kind| self.views.follow(AgentId(agent_id), kind));
        let follower = follower.ok_or_else(|| Status::not_found("this broker does not keep this view"))?;
        Ok(Response::new(if follow { following(follower, self.stop.clone()) } else { once(follower) }))
    }

    async fn reports(&self, request: Request<KnownRequest>) -> Result<Response<Self::ReportsStream>, Status> {
        let reports =
            self.board.of(AgentId(request.into_inner().agent_id)).into_iter().map(|last| KnownReport {
                project: last.project.to_string(),
                value: last.json.to_string(),
                heard_ms_ago: millis(last.heard_ago),
            });
        let pages = stream::iter(reports).chunks(REPORTS).map(|reports| Ok(KnownReports { reports }));
        Ok(Response::new(Box::pin(pages)))
    }
}

/// What the view holds now.
fn once(follower: Follower) -> Answers<FollowedPage> {
    Box::pin(stream::unfold(Some(follower), async |follower| {
        let mut follower = follower?;
        let page = follower.take(PAGE).ok()??;
        let more = page.more;
        Some((Ok(written(page)), more.then_some(follower)))
    }))
}

fn following(follower: Follower, stop: CancellationToken) -> Answers<FollowedPage> {
    Box::pin(stream::unfold((follower, stop), async |(mut follower, stop)| {
        let page = stop.run_until_cancelled(follower.next()).await??;
        Some((Ok(written(page)), (follower, stop)))
    }))
}

/// Which views of this agent the broker at the other end of `channel` keeps; whoever asks bounds the time.
///
/// # Errors
/// Whatever the call ends with; `Unimplemented` from a broker that does not know the question.
pub async fn views<T>(channel: T, agent: AgentId) -> Result<Vec<Summary>, Status>
where
    T: GrpcService<Body>,
    T::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let mut client = AgentKnowledgeClient::new(channel);
    let answer = client.views(KnownRequest { agent_id: agent.0 }).await?.into_inner();
    Ok(answer.views.into_iter().filter_map(summary_read).collect())
}

/// The last reports of this agent that the broker has; as [`views`].
///
/// # Errors
/// As there.
pub async fn reports<T>(channel: T, agent: AgentId) -> Result<Vec<Last>, Status>
where
    T: GrpcService<Body>,
    T::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let mut client = AgentKnowledgeClient::new(channel).max_decoding_message_size(PAGE_BYTES);
    let mut pages = client.reports(KnownRequest { agent_id: agent.0 }).await?.into_inner();
    let mut last = Vec::new();
    while let Some(page) = pages.message().await? {
        let room = REPORTS_MAX.saturating_sub(last.len());
        last.extend(page.reports.into_iter().take(room).map(|report| Last {
            project: report.project.into(),
            json: report.value.into(),
            heard_ago: Duration::from_millis(report.heard_ms_ago),
        }));
        if last.len() >= REPORTS_MAX {
            break;
        }
    }
    Ok(last)
}

/// A view of the broker's, and then what changes in it if that is asked for; as [`views`].
///
/// # Errors
/// As there; `NotFound` where it does not keep the view.
pub async fn follow<T>(channel: T, request: FollowRequest) -> Result<Pages, Status>
where
    T: GrpcService<Body>,
    T::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let mut client = AgentKnowledgeClient::new(channel).max_decoding_message_size(PAGE_BYTES);
    let pages = client.follow(request).await?.into_inner();
    Ok(pages.map(|page| page.map(read)).boxed())
}

fn millis(ago: Duration) -> u64 {
    u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)
}

fn summary_written(summary: Summary) -> KnownView {
    let Summary { kind, stale, truncated, entries, heard_ago } = summary;
    KnownView {
        view: kind.name().to_owned(),
        stale,
        truncated,
        entries: u32::try_from(entries).unwrap_or(u32::MAX),
        heard_ms_ago: millis(heard_ago),
    }
}

fn summary_read(view: KnownView) -> Option<Summary> {
    Some(Summary {
        kind: Kind::of(&view.view)?,
        stale: view.stale,
        truncated: view.truncated,
        entries: view.entries as usize,
        heard_ago: Duration::from_millis(view.heard_ms_ago),
    })
}

fn written(page: Page) -> FollowedPage {
    let entry =
        |(key, value): (Arc<str>, Arc<str>)| FollowedEntry { key: key.to_string(), value: value.to_string() };
    FollowedPage {
        whole: page.whole,
        more: page.more,
        entries: page.entries.into_iter().map(entry).collect(),
        gone: page.gone.iter().map(ToString::to_string).collect(),
        stale: page.stale,
        truncated: page.truncated,
        epoch: page.epoch,
        revision: page.revision,
        heard_ms_ago: millis(page.heard_ago),
    }
}

fn read(page: FollowedPage) -> Page {
    Page {
        whole: page.whole,
        more: page.more,
        entries: page.entries.into_iter().map(|entry| (entry.key.into(), entry.value.into())).collect(),
        gone: page.gone.into_iter().map(Arc::from).collect(),
        stale: page.stale,
        truncated: page.truncated,
        epoch: page.epoch,
        revision: page.revision,
        heard_ago: Duration::from_millis(page.heard_ms_ago),
    }
}
