//! What agents told the fleet: this broker's own memory first, then that of the others, which are asked all at once.
//! Before it: the API listener. After it: [`super::board`], [`super::views`], and the other brokers' private API. No agent
//! and no cluster is ever asked.

use super::{
    board::{Board, Last},
    views::{Follower, Kind, Page, Summary, Views},
};
use crate::fleet::{PeerUrl, roster::PATIENCE};
use futures::{
    StreamExt,
    future::{BoxFuture, join_all},
    stream::BoxStream,
};
use postern_wire::{ids::AgentId, proto::postern::fleet::FollowRequest};
use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};

/// Another broker's view.
pub type Pages = BoxStream<'static, Result<Page, Status>>;

/// The other brokers, as far as this is concerned. `Unimplemented` is the answer of one that is no Postern, or an older one.
pub trait Others: Send + Sync {
    /// This broker, as the others know it.
    fn own(&self) -> PeerUrl;

    /// The others; those that are known to be gone are not among them.
    fn peers(&self) -> Vec<PeerUrl>;

    /// [`super::rpc::views`] over a connection to one of them.
    fn views(&self, peer: &PeerUrl, agent: AgentId) -> BoxFuture<'static, Result<Vec<Summary>, Status>>;

    /// [`super::rpc::reports`] over a connection to one of them.
    fn reports(&self, peer: &PeerUrl, agent: AgentId) -> BoxFuture<'static, Result<Vec<Last>, Status>>;

    /// [`super::rpc::follow`] over a connection to one of them.
    fn follow(&self, peer: &PeerUrl, request: FollowRequest) -> BoxFuture<'static, Result<Pages, Status>>;
}

/// Knows, and whom to ask. Clones are the same.
#[derive(Clone, Default)]
pub struct Known {
    board: Board,
    views: Views,
    others: Option<Arc<dyn Others>>,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alone = self.others.is_none();
        f.debug_struct("Known").field("alone", &alone).finish_non_exhaustive()
    }
}

/// Something that a broker knows; absent: there is one broker only.
pub type Of<T> = (T, Option<PeerUrl>);

/// What is known, and who did not say whether it knows more.
#[derive(Debug)]
pub struct Answer<T> {
    /// Each from the broker that heard of it last.
    pub found: Vec<Of<T>>,
    /// In order.
    pub missing: Vec<PeerUrl>,
}

/// Pages of one view from wherever it is.
pub struct Source {
    /// Absent: there is one broker only.
    pub broker: Option<PeerUrl>,
    pages: Place,
}

enum Place {
    Here(Follower),
    There(Pages),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("broker", &self.broker).finish_non_exhaustive()
    }
}

impl Source {
    /// The next page; `None`: the view is gone, or all of it was told and no more was asked for. Cancel safe.
    ///
    /// # Errors
    /// The broker that has it is lost.
    pub async fn next(&mut self) -> Result<Option<Page>, Status> {
        match &mut self.pages {
            Place::Here(follower) => Ok(follower.next().await),
            Place::There(pages) => pages.next().await.transpose(),
        }
    }
}

impl Known {
    /// Of a broker that is the only one.
    pub fn new(board: Board, views: Views) -> Self {
        Self { board, views, others: None }
    }

    /// With other brokers.
    #[must_use]
    pub fn among(mut self, others: Arc<dyn Others>) -> Self {
        self.others = Some(others);
        self
    }

    /// The last reports of an agent, in the order of projects; that about its configuration is the first.
    pub async fn reports(&self, agent: AgentId) -> Answer<Last> {
        let (told, missing) = self.ask(|others, peer| others.reports(peer, agent)).await;
        let own = (self.own(), self.board.of(agent));
        let mut newest: BTreeMap<Arc<str>, Of<Last>> = BTreeMap::new();
        for (broker, last) in told.into_iter().chain([own]) {
            for last in last {
                let known = newest.get(&last.project);
                if known.is_none_or(|(known, _)| known.heard_ago >= last.heard_ago) {
                    newest.insert(Arc::clone(&last.project), (last, broker.clone()));
                }
            }
        }
        Answer { found: newest.into_values().collect(), missing }
    }

    /// Which views there are of an agent.
    pub async fn views(&self, agent: AgentId) -> Answer<Summary> {
        let (told, missing) = self.ask(|others, peer| others.views(peer, agent)).await;
        let own = (self.own(), self.views.summaries(agent));
        let mut best: BTreeMap<Kind, Of<Summary>> = BTreeMap::new();
        for (broker, summaries) in told.into_iter().chain([own]) {
            for summary in summaries {
                let known = best.get(&summary.kind);
                if known.is_none_or(|(known, _)| rank(known) >= rank(&summary)) {
                    best.insert(summary.kind, (summary, broker.clone()));
                }
            }
        }
        Answer { found: best.into_values().collect(), missing }
    }

    /// A view, from where its stream is, or was last; with what changes later if `follow`.
    ///
    /// # Errors
    /// Nobody has it but perhaps these brokers, which did not answer.
    pub async fn find(&self, agent: AgentId, kind: Kind, follow: bool) -> Result<Source, Vec<PeerUrl>> {
        let own = self.views.summaries(agent).into_iter().find(|summary| summary.kind == kind);
        if own.is_some_and(|own| !own.stale)
            && let Some(source) = self.here(agent, kind)
        {
            return Ok(source);
        }
        let Answer { found, mut missing } = self.views(agent).await;
        let found = found.into_iter().find(|(summary, _)| summary.kind == kind);
        let there = found.and_then(|(_, broker)| broker).filter(|broker| Some(broker) != self.own().as_ref());
        if let (Some(broker), Some(others)) = (there, &self.others) {
            let request = FollowRequest { agent_id: agent.0, view: kind.name().to_owned(), follow };
            let pages = timeout_at(Instant::now() + PATIENCE, others.follow(&broker, request)).await;
            match pages {
                Ok(Ok(pages)) => {
                    return Ok(Source { broker: Some(broker), pages: Place::There(pages) });
                }
                // It has gone meanwhile.
                Ok(Err(status)) if status.code() == Code::NotFound => {}
                _ => missing.push(broker),
            }
        }
        self.here(agent, kind).ok_or(missing)
    }

    /// A view whose stream is open, if there is one by now.
    pub async fn find_live(&self, agent: AgentId, kind: Kind) -> Option<Source> {
        let found = self.views(agent).await.found;
        let live = found.iter().any(|(summary, _)| summary.kind == kind && !summary.stale);
        if live { self.find(agent, kind, true).await.ok() } else { None }
    }

    fn here(&self, agent: AgentId, kind: Kind) -> Option<Source> {
        let follower = self.views.follow(agent, kind)?;
        Some(Source { broker: self.own(), pages: Place::Here(follower) })
    }

    fn own(&self) -> Option<PeerUrl> {
        self.others.as_ref().map(|others| others.own())
    }

    /// What the other brokers say in time, and those who do not.
    async fn ask<T: Ages>(
        &self,
        ask: impl Fn(&dyn Others, &PeerUrl) -> BoxFuture<'static, Result<Vec<T>, Status>>,
    ) -> (Vec<(Option<PeerUrl>, Vec<T>)>, Vec<PeerUrl>) {
        let Some(others) = &self.others else { return (Vec::new(), Vec::new()) };
        let deadline = Instant::now() + PATIENCE;
        let asked = others.peers().into_iter().map(|peer| {
            let answer = timeout_at(deadline, ask(&**others, &peer));
            async move { (peer, answer.await, Instant::now()) }
        });
        let (mut told, mut missing) = (Vec::new(), Vec::new());
        for (peer, answer, at) in join_all(asked).await {
            match answer {
                Ok(Ok(mut answer)) => {
                    // It was so old when it came; the slowest was waited for since then.
                    let waited = at.elapsed();
                    answer.iter_mut().for_each(|known| known.age(waited));
                    told.push((Some(peer), answer));
                }
                // Agents tell it nothing.
                Ok(Err(status)) if status.code() == Code::Unimplemented => {}
                Ok(Err(status)) => {
                    let (code, error) = (status.code(), status.message());
                    tracing::debug!(%peer, ?code, error, "a broker did not say what agents told it");
                    missing.push(peer);
                }
                Err(_) => {
                    tracing::debug!(%peer, "a broker did not say in time what agents told it");
                    missing.push(peer);
                }
            }
        }
        missing.sort_unstable();
        (told, missing)
    }
}

/// What gets older while something else is waited for.
trait Ages {
    fn age(&mut self, by: Duration);
}

impl Ages for Last {
    fn age(&mut self, by: Duration) {
        self.heard_ago = self.heard_ago.saturating_add(by);
    }
}

impl Ages for Summary {
    fn age(&mut self, by: Duration) {
        self.heard_ago = self.heard_ago.saturating_add(by);
    }
}

/// The least is the best.
fn rank(summary: &Summary) -> (bool, Duration) {
    (summary.stale, summary.heard_ago)
}
