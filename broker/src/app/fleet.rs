//! Makes this broker one of several: what Redis knows of the others, connections to them, and the private API where
//! they ask for tunnels that are here. `app.rs` comes before it; without Redis or without `private_api` there is nothing
//! of this. What it starts is not on the way of a request whose agent is connected here.

use super::{PROGRAM, Stops, Tasks};
use crate::{
    agent_reports::{
        board::{Board, Last},
        known::{self, Pages},
        rpc::{self, KnowledgeService},
        views::{Summary, Views},
    },
    agent_tracker::Tracker,
    config::{Config, PrivateApiConfig, interface_addresses},
    drain::Others,
    fleet::{
        PeerUrl,
        directory::{Directory, Options},
        gateway::{self, Gateway},
        peers::{Peers, PeersConfig},
        roster::{self, Answer, LastSeen, RosterService},
        router::Fleet,
    },
    gitlab::{SecretLength, ServiceSecret},
    listeners::socket::Listener,
    redis::Redis,
    tunnel::registry::Registry,
};
use anyhow::Context;
use futures::{FutureExt, future::BoxFuture};
use postern_certs::client::ClientTrust;
use postern_wire::{
    ids::AgentId,
    proto::postern::fleet::{
        ConnectedRequest, FollowRequest, agent_knowledge_server::AgentKnowledgeServer,
        roster_server::RosterServer,
    },
};
use std::sync::Arc;
use tonic::{Status, service::Routes};

/// Where other brokers will connect; bound before anybody is told of it.
pub(super) struct Door {
    listener: Arc<Listener>,
    own: PeerUrl,
}

impl Door {
    /// Binds the private API, if there is one.
    pub(super) async fn open(config: Option<&PrivateApiConfig>) -> anyhow::Result<Option<Self>> {
        let Some(config) = config else { return Ok(None) };
        let listener = Arc::new(Listener::bind(&config.listen, "private_api").await?);
        let own = config.own_url(&listener.address, interface_addresses)?;
        Ok(Some(Self { listener, own }))
    }
}

/// What this broker has, and others ask for.
pub(super) struct Local<'a> {
    pub(super) registry: &'a Arc<Registry>,
    pub(super) tracker: &'a Tracker,
    pub(super) board: &'a Board,
    pub(super) views: &'a Views,
}

/// Starts everything that makes a fleet of brokers; `None` for one that is alone.
pub(super) fn start(
    config: &Config,
    door: Option<Door>,
    redis: Option<&Arc<Redis>>,
    local: Local<'_>,
    stop: &Stops,
    tasks: &Tasks,
) -> anyhow::Result<Option<Fleet>> {
    let (Some(section), Some(Door { listener, own }), Some(redis)) = (&config.private_api, door, redis)
    else {
        return Ok(None);
    };
    let Local { registry, tracker, board, views } = local;
    let secret = ServiceSecret::load_of(section.authentication_secret_file.clone(), SecretLength::Any);
    let secret = Arc::new(secret.context("private_api.listen.authentication_secret_file")?);
    let trust = ClientTrust::load(section.ca_certificate_file.clone());
    let trust = trust.context("private_api.listen.ca_certificate_file")?;
    if section.ca_certificate_file.is_some() {
        tasks.background.spawn(trust.keep_fresh(stop.background.clone()));
    }
    let gateway = Gateway {
        secret: Arc::clone(&secret),
        registry: Arc::clone(registry),
        program: PROGRAM,
        running: tasks.requests.clone(),
    };
    let knowledge =
        KnowledgeService { board: board.clone(), views: views.clone(), stop: stop.gateway.clone() };
    let beside = Routes::new(RosterServer::new(RosterService { tracker: tracker.clone() }))
        .add_service(AgentKnowledgeServer::new(knowledge));
    let ends = (stop.gateway.clone(), stop.gateway.clone());
    gateway::serve(listener, gateway, beside, section.max_connection_age, ends, &tasks.connections);
    let peers = Arc::new(Peers::new(PeersConfig {
        secret,
        trust: Some(trust),
        server_name: section.server_name.clone(),
        requires_tls: matches!(own, PeerUrl::Tcp { tls: true, .. }),
        program: PROGRAM,
    }));
    tracing::info!(url = %own, "other brokers find this one");
    let options = Options { own, ttl: config.redis_conn_info.ttl, refresh: config.redis_conn_info.refresh };
    let directory = Directory::start(
        Arc::clone(redis),
        Arc::clone(registry),
        options,
        &stop.background,
        &tasks.background,
    );
    let told = Arc::downgrade(&directory);
    registry.tell_refusals(move |agent, why| {
        if let Some(directory) = told.upgrade() {
            directory.refused(agent, why);
        }
    });
    Ok(Some(Fleet { directory, peers }))
}

impl Others for Fleet {
    fn begin(&self) {
        self.directory.begin_leave();
    }

    fn any(&self) -> bool {
        !self.directory.alive().is_empty()
    }

    fn moved(&self, agent: AgentId) -> BoxFuture<'_, ()> {
        self.directory.moved(agent).boxed()
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        self.directory.finish_leave().boxed()
    }
}

impl roster::Fleet for Fleet {
    fn own(&self) -> PeerUrl {
        self.directory.own().clone()
    }

    fn peers(&self) -> Vec<PeerUrl> {
        // Each that is gone would cost every list its patience.
        self.directory.alive()
    }

    fn last_seen(&self, agent: AgentId) -> BoxFuture<'_, Option<LastSeen>> {
        self.directory.last_seen(agent).boxed()
    }

    fn ask(&self, peer: &PeerUrl, request: ConnectedRequest) -> BoxFuture<'static, Result<Answer, Status>> {
        roster::ask(self.peers.channel(peer), request).boxed()
    }
}

impl known::Others for Fleet {
    fn own(&self) -> PeerUrl {
        self.directory.own().clone()
    }

    fn peers(&self) -> Vec<PeerUrl> {
        self.directory.alive()
    }

    fn views(&self, peer: &PeerUrl, agent: AgentId) -> BoxFuture<'static, Result<Vec<Summary>, Status>> {
        rpc::views(self.peers.channel(peer), agent).boxed()
    }

    fn reports(&self, peer: &PeerUrl, agent: AgentId) -> BoxFuture<'static, Result<Vec<Last>, Status>> {
        rpc::reports(self.peers.channel(peer), agent).boxed()
    }

    fn follow(&self, peer: &PeerUrl, request: FollowRequest) -> BoxFuture<'static, Result<Pages, Status>> {
        rpc::follow(self.peers.channel(peer), request).boxed()
    }
}
