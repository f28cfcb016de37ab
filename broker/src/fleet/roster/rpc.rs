//! `postern.fleet.Roster` on brokers' private API: a broker says who is connected to itself, in pages, and the asker
//! reads them up to a bound. Before the service: the check of the other broker's JWT, in the gateway. It never asks
//! anybody further.

use super::{Answer, LIST_MAX};
use crate::agent_tracker::{Connected, Kind, Tracker, Wanted};
use futures::{Stream, stream};
use http_body::Body as HttpBody;
use postern_wire::{
    ids::{AgentId, ProjectId},
    proto::postern::fleet::{
        ConnectedEntry, ConnectedPage, ConnectedRequest, roster_client::RosterClient, roster_server,
    },
};
use std::{pin::Pin, sync::Arc, time::Duration};
use tonic::{Request, Response, Status, async_trait, body::Body, client::GrpcService};

/// Entries of a page; each has 3 KiB at the most, as texts are bounded where they come in.
const PAGE: usize = 200;
/// Bytes of a page, with room for what other versions may add.
const PAGE_BYTES: usize = 2 << 20;

/// Says who is connected to this broker.
#[derive(Clone, Debug)]
pub struct RosterService {
    /// Who that is.
    pub tracker: Tracker,
}

type Pages = Pin<Box<dyn Stream<Item = Result<ConnectedPage, Status>> + Send>>;

#[async_trait]
impl roster_server::Roster for RosterService {
    type ConnectedStream = Pages;

    async fn connected(&self, request: Request<ConnectedRequest>) -> Result<Response<Pages>, Status> {
        let (connected, truncated) = self.tracker.list(&wanted(request.into_inner()), LIST_MAX);
        // A page when the last one is on its way, and one even if it is empty.
        let pages = stream::unfold(Some(connected.into_iter()), move |rest| async move {
            let mut rest = rest?;
            let entries = rest.by_ref().take(PAGE).map(written).collect();
            let over = rest.len() == 0;
            let page = ConnectedPage { entries, truncated: over && truncated };
            Some((Ok(page), (!over).then_some(rest)))
        });
        Ok(Response::new(Box::pin(pages)))
    }
}

/// Asks the broker at the other end of `channel`; whoever asks bounds the time.
///
/// # Errors
/// Whatever the call ends with; `Unimplemented` from a broker that is no Postern.
pub async fn ask<T>(channel: T, request: ConnectedRequest) -> Result<Answer, Status>
where
    T: GrpcService<Body>,
    T::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    T::ResponseBody: HttpBody<Data = bytes::Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let mut client = RosterClient::new(channel).max_decoding_message_size(PAGE_BYTES);
    let mut pages = client.connected(request).await?.into_inner();
    let mut answer = Answer::default();
    while let Some(page) = pages.message().await? {
        let room = LIST_MAX - answer.connected.len();
        answer.truncated |= page.truncated || page.entries.len() > room;
        answer.connected.extend(page.entries.into_iter().take(room).filter_map(read));
        if answer.truncated {
            break;
        }
    }
    Ok(answer)
}

pub(super) fn request(wanted: &Wanted) -> ConnectedRequest {
    match wanted {
        Wanted::All => ConnectedRequest { all: true, ..ConnectedRequest::default() },
        Wanted::Of { agents, projects } => ConnectedRequest {
            all: false,
            agent_ids: agents.iter().map(|agent| agent.0).collect(),
            project_ids: projects.iter().map(|project| project.0).collect(),
        },
    }
}

fn wanted(request: ConnectedRequest) -> Wanted {
    let ConnectedRequest { all, agent_ids, project_ids } = request;
    if all {
        return Wanted::All;
    }
    Wanted::Of {
        agents: agent_ids.into_iter().map(AgentId).collect(),
        projects: project_ids.into_iter().map(ProjectId).collect(),
    }
}

fn written(connected: Connected) -> ConnectedEntry {
    ConnectedEntry {
        info: Some(Arc::unwrap_or_clone(connected.info)),
        name: connected.name.to_string(),
        address: connected.address.to_string(),
        registered: connected.kind == Kind::Registered,
        heard_ms_ago: u64::try_from(connected.heard_ago.as_millis()).unwrap_or(u64::MAX),
    }
}

fn read(entry: ConnectedEntry) -> Option<Connected> {
    Some(Connected {
        info: Arc::new(entry.info?),
        name: entry.name.into(),
        address: entry.address.into(),
        kind: if entry.registered { Kind::Registered } else { Kind::Stream },
        heard_ago: Duration::from_millis(entry.heard_ms_ago),
    })
}
