//! Over a real gRPC connection: an agent's tunnels while the broker leaves.

use super::*;
use crate::{
    agent_limit::{LimitPolicy, RedisLost},
    drain::{Others, tests::Peers},
    gitlab,
    policies::{Base, Policies},
    rate::Rate,
    stage::{PolicyFile, Stage, TOKEN_A, agents, call_as, serve},
};
use postern_policies::Live;
use postern_wire::{
    ids::AgentId,
    metadata::RETRY_PUSHBACK,
    proto::gitlab::agent::reverse_tunnel::rpc::{
        ConnectResponse, Descriptor, connect_response, reverse_tunnel_client::ReverseTunnelClient,
        reverse_tunnel_server::ReverseTunnelServer,
    },
};
use stand_ins::rails::Options;
use std::collections::HashMap;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{service::Routes, transport::Channel};

const AGENT: AgentId = AgentId(1);
const SOON: Duration = Duration::from_secs(60);
/// How long a drain may take.
const DRAIN: Duration = Duration::from_secs(20);

/// Documents over a configuration of long-lived connections.
fn policies(live: Live) -> Policies {
    let base = Base {
        configuration: SOON,
        manifests: SOON,
        max_age: Duration::from_secs(7200),
        calls: LimitPolicy { per_minute: 0, redis_lost: RedisLost::Local },
        gitlab: Rate::default(),
        gitaly: Rate::default(),
        gitaly_per_server: Rate::default(),
    };
    Policies::new(live, base)
}

struct Field {
    departures: Departures,
    registry: Arc<Registry>,
    agent: ReverseTunnelClient<Channel>,
    _stage: Stage,
}

/// The agent's side of one tunnel.
struct Far {
    from_broker: Streaming<ConnectResponse>,
    _to_broker: mpsc::Sender<ConnectRequest>,
}

impl Field {
    async fn start() -> Self {
        Self::with(policies(Live::open(None).unwrap())).await
    }

    async fn with(policies: Policies) -> Self {
        let options = Options { agents: agents(|project| project), ..Options::default() };
        let stage = Stage::start(options, gitlab::Periods::default()).await;
        let (departures, registry) = (Departures::default(), Arc::clone(&stage.admission.registry));
        let service = TunnelService {
            registry: Arc::clone(&registry),
            bounds: Bounds::of(&policies),
            departures: departures.clone(),
            tasks: TaskTracker::new(),
        };
        let (bounded, stop) = (Arc::clone(&registry), stage.stop.clone());
        tokio::spawn(async move { bounded.keep_bounds(stop).await });
        let routes = Routes::new(stage.admission.guard(ReverseTunnelServer::new(service)));
        let agent = ReverseTunnelClient::new(serve(routes, &stage.stop).await);
        Self { departures, registry, agent, _stage: stage }
    }

    /// A tunnel that is idle at the broker.
    async fn tunnel(&mut self) -> Far {
        let idle = self.registry.census().idle;
        let far = self.open().await;
        let stands = async {
            while self.registry.census().idle <= idle {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, stands).await.expect("it stands");
        far
    }

    async fn open(&mut self) -> Far {
        let (to_broker, messages) = mpsc::channel(1);
        let descriptor = connect_request::Msg::Descriptor(Descriptor::default());
        to_broker.send(ConnectRequest { msg: Some(descriptor) }).await.unwrap();
        let connected = self.agent.connect(call_as(TOKEN_A, ReceiverStream::new(messages))).await;
        let from_broker = connected.expect("the agent is known").into_inner();
        Far { from_broker, _to_broker: to_broker }
    }
}

impl Far {
    /// The end with OK: the pause that the agent is asked for.
    async fn ended(&mut self) -> u64 {
        let message = timeout(SOON, self.from_broker.message()).await.expect("it ends");
        assert_eq!(message.expect("with OK"), None);
        let trailers = self.from_broker.trailers().await.unwrap().expect("trailers");
        trailers.get(RETRY_PUSHBACK).expect("a hint").to_str().unwrap().parse().unwrap()
    }
}

#[tokio::test]
async fn half_of_an_agents_tunnels_serve_until_it_stands_elsewhere() {
    let mut field = Field::start().await;
    let mut tunnels = [field.tunnel().await, field.tunnel().await];
    let others: Arc<dyn Others> = Peers::new();
    field.departures.begin(1, Some(others), Instant::now() + DRAIN);
    let [one, two] = &mut tunnels;
    let (first_pause, stays) = tokio::select! {
        pause = one.ended() => (pause, two),
        pause = two.ended() => (pause, one),
    };
    assert_eq!(first_pause, 0);
    assert_eq!(field.registry.census().idle, 1);
    // A request takes the other one, leaves it, and takes it again; a drain is no reason to refuse it.
    drop(field.registry.take(AGENT).await.expect("one is left"));
    let taken = timeout(SOON, async {
        loop {
            if let Some(tunnel) = field.registry.take(AGENT).await {
                return tunnel;
            }
            tokio::task::yield_now().await;
        }
    });
    let (request, _response) =
        taken.await.expect("it came back").take().open("/s/m", HashMap::new()).await.unwrap();
    let message = timeout(SOON, stays.from_broker.message()).await.unwrap().unwrap().unwrap();
    assert!(matches!(message.msg, Some(connect_response::Msg::RequestInfo(_))));
    // It is no longer idle: the drain lets it finish.
    field.departures.gone().await;
    drop(request);

    // One that comes late is sent on at once.
    assert_eq!(field.open().await.ended().await, 0);
    field.departures.gone().await;
}

#[tokio::test]
async fn a_broker_that_is_alone_asks_its_agents_to_pause() {
    let mut field = Field::start().await;
    let (mut one, mut two) = (field.tunnel().await, field.tunnel().await);
    field.departures.begin(1, None, Instant::now() + DRAIN);
    assert!(one.ended().await < 1000);
    assert!(two.ended().await < 1000);
    field.departures.gone().await;
}

fn tunnel_policy(spec: &str) -> String {
    format!(
        "apiVersion: postern/v1\nkind: TunnelPolicy\nmetadata: {{name: tunnels}}\nmatch: {{agentIds: [1]}}\nspec: {spec}\n"
    )
}

/// `agentk` of GitLab rests for ten seconds and more after any other end.
#[tokio::test]
async fn one_idle_tunnel_too_many_ends_the_oldest_with_ok() {
    let file = PolicyFile::new(&tunnel_policy("{idlePerAgent: 2}"));
    let mut field = Field::with(policies(file.live.clone())).await;
    let (mut first, _second) = (field.tunnel().await, field.tunnel().await);
    let _third = field.open().await;
    assert!((1000..2000).contains(&first.ended().await), "who can is asked to wait a moment");
    assert_eq!(field.registry.census().idle, 2);
    // One that carries a request is none of the idle ones.
    let _busy = field.registry.take(AGENT).await.unwrap().take().open("/s/m", HashMap::new()).await.unwrap();
    let _fourth = field.tunnel().await;
    assert_eq!(field.registry.census().idle, 2);
}

#[tokio::test]
async fn an_edit_bounds_the_tunnels_that_are_open_already() {
    let file = PolicyFile::new(&tunnel_policy("{idlePerAgent: 10}"));
    let mut field = Field::with(policies(file.live.clone())).await;
    let mut tunnels = Vec::new();
    for _ in 0..4 {
        tunnels.push(field.tunnel().await);
    }
    file.edit(&tunnel_policy("{idlePerAgent: 1}")).await;
    for surplus in &mut tunnels[..3] {
        surplus.ended().await;
    }
    assert_eq!(field.registry.census().idle, 1);
}

#[tokio::test]
async fn an_edit_ends_the_tunnels_that_are_too_old_now_and_no_others() {
    let file = PolicyFile::new(&tunnel_policy("{maxIdle: 1h}"));
    let mut field = Field::with(policies(file.live.clone())).await;
    let (mut one, mut two) = (field.tunnel().await, field.tunnel().await);
    file.edit(&tunnel_policy("{maxIdle: 30m}")).await;
    file.edit(&tunnel_policy("{maxIdle: 1s}")).await;
    for old in [&mut one, &mut two] {
        let message = timeout(SOON, old.from_broker.message()).await.expect("it ends");
        assert_eq!(message.expect("with OK"), None);
    }
    file.edit(&tunnel_policy("{maxIdle: 1h}")).await;
    let mut young = field.tunnel().await;
    assert!(timeout(Duration::from_secs(2), young.from_broker.message()).await.is_err(), "it stays");
}
