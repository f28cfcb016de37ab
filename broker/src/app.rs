//! The wiring page: everything the broker runs, bound and started in one place, and drained in the order that
//! `drain` lists. `main.rs` and the tests use the same door.

mod drain;
mod fleet;
mod neighbours;
mod providers;

use crate::{
    agent_configuration::{self, ConfigurationService, report::Reports},
    agent_limit::AgentLimit,
    agent_registrar::RegistrarService,
    agent_reports::{ReportsService, board::Board, known::Known},
    auth::Admission,
    config::{Config, ListenAddress, Provider},
    drain::{Departures, Others, Running},
    events::Events,
    fleet::router::Router,
    gitaly::{ManifestLimits, poller},
    gitlab_access::GitlabAccessService,
    gitops::{GitopsService, Projects, Room},
    kubernetes_api::{Cors, KubernetesApi},
    listeners::{
        agents, kubernetes,
        observability::{self, Probes},
        socket::Listener,
    },
    observability::{Metrics, Readiness},
    per_agent::PerAgent,
    policies::{Ages, Pacing, Policies},
    redis::Redis,
    spans::Tracing,
    tunnel::{bounds::Bounds, connect::TunnelService, registry::Registry},
    usage::Usage,
};
use anyhow::Context;
use http::{HeaderMap, HeaderValue, header};
use postern_policies::Status;
use postern_wire::{
    metadata::Program,
    proto::gitlab::agent::{
        agent_configuration::rpc::agent_configuration_server::AgentConfigurationServer,
        agent_registrar::rpc::agent_registrar_server::AgentRegistrarServer,
        gitlab_access::rpc::gitlab_access_server::GitlabAccessServer,
        gitops::rpc::gitops_server::GitopsServer,
        reverse_tunnel::rpc::reverse_tunnel_server::ReverseTunnelServer,
    },
};
use providers::Providers;
use std::{future::Future, sync::Arc, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{codec::CompressionEncoding, transport::Server};

/// Who this program is on the wire.
pub const PROGRAM: Program = Program {
    name: "gitlab-kas",
    version: concat!("v", env!("CARGO_PKG_VERSION")),
    commit: match option_env!("POSTERN_COMMIT") {
        Some(commit) => commit,
        None => "unknown",
    },
};

/// One stream nobody reads must not stop its siblings, so the connection's window is as large as HTTP/2 allows: what is
/// held unread is bounded by the streams. h2 derives from it how many small unread frames it bears before it ends the
/// connection, which is an edge's and so many agents'; the stream's window bounds what one agent can add to that.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// More than an edge opens on one connection, so that none of its streams waits for another to end.
const MAX_STREAMS: u32 = 1024;
/// kas' own numbers; load balancers cut idle connections after 60 s.
const KEEPALIVE: Duration = Duration::from_secs(50);
const KEEPALIVE_ACK: Duration = Duration::from_secs(20);
/// For a call's message and the head of its answer; what streams afterwards has no limit. Tunnels wait 20 s themselves.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// The messages of calls that are not tunnels: versions, names, a commit. In bytes.
const MAX_UNARY: usize = 64 * 1024;
/// Four times what an edge admits: it encodes headers anew, Huffman code can be 3.5 times as long as the text, and h2
/// ends a connection whose header block has more frames than this allows for. In bytes.
const MAX_METADATA: u32 = 256 * 1024;
/// Streams that an edge's clients gave up before the broker got to them; h2's default of 20 ends the connection.
const MAX_ABANDONED: usize = 1024;

/// A running broker.
#[derive(Debug)]
pub struct Bound {
    /// Where agents connect.
    pub agents: ListenAddress,
    /// Where callers of the Kubernetes API connect.
    pub kubernetes_api: Option<ListenAddress>,
    /// Where probes and metrics are.
    pub observability: ListenAddress,
    /// Where GitLab Rails connects.
    pub api: Option<ListenAddress>,
    drain: drain::Drain,
}

/// In the order in which a drain fires them.
#[derive(Debug, Default)]
struct Stops {
    /// No new connections, but of other brokers and of probes.
    accepting: CancellationToken,
    /// Agents' connections take no new streams: GOAWAY.
    moving: CancellationToken,
    /// Other brokers' connections neither, and no new ones of theirs: nothing is left to ask for.
    gateway: CancellationToken,
    /// What is still open ends.
    streams: CancellationToken,
    background: CancellationToken,
}

#[derive(Debug, Default)]
struct Tasks {
    /// Those that accept callers.
    doors: TaskTracker,
    /// Requests under way, of callers and of other brokers.
    requests: Running,
    connections: TaskTracker,
    background: TaskTracker,
}

/// How a drain went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every request finished.
    Clean,
    /// So many were cut at the deadline.
    Cut(usize),
}

/// Binds every listener, loads the identities, and serves.
pub async fn start(config: Config) -> anyhow::Result<Bound> {
    postern_certs::install_provider();
    for path in &config.not_in_force {
        tracing::warn!(key = path, "this configuration key is accepted and not in force yet");
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let policies = Policies::open(&config)?;
    if let Status { directory: Some(directory), fingerprint, .. } = policies.live().status() {
        tracing::info!(directory = %directory.display(), fingerprint, "policies are in force");
    }
    let (stop, tasks) = (Stops::default(), Tasks::default());
    let (registry, metrics, readiness) =
        (Arc::new(Registry::default()), Arc::new(Metrics::default()), Readiness::default());
    let (events, usage) = (Arc::new(Events::default()), Arc::new(Usage::default()));
    let departures = Departures::default();
    let Providers { identities, repositories, gitlab } =
        Providers::open(&config, &policies, &stop.background, &tasks.background)?;
    let tracing = match &config.observability.tracing {
        Some(section) => {
            let opened = Tracing::open(section, PROGRAM.version, |name| std::env::var(name).ok());
            let (tracing, keeper) = opened.context("observability.tracing")?;
            tasks.background.spawn(keeper.run(stop.background.clone()));
            Some(tracing)
        }
        None => None,
    };
    let redis = config.redis.clone().map(Redis::open).transpose().context("redis")?;
    let limit = redis
        .as_ref()
        .map(|redis| AgentLimit::under(Arc::clone(redis), redis.key_prefix(), policies.clone()));
    tasks.background.spawn({
        let (policies, stop) = (policies.clone(), stop.background.clone());
        async move { policies.live().keep_fresh(stop).await }
    });
    let (board, views) = (Board::default(), neighbours::views(&metrics, &stop, &tasks));
    neighbours::cable(config.events.as_ref(), (&events, &views), &metrics, &stop, &tasks)?;
    let agents_listener = Arc::new(Listener::bind(&config.agents.listen, "agents").await?);
    let kubernetes_listener = match &config.kubernetes_api {
        Some(api) => Some(Arc::new(Listener::bind(&api.listen, "kubernetes_api").await?)),
        None => None,
    };
    let probes_listener = Arc::new(Listener::bind(&config.observability.listen, "observability").await?);
    let door = fleet::Door::open(config.private_api.as_ref()).await?;

    let api_listener = match &config.api {
        Some(api) => Some(Arc::new(Listener::bind(&api.listen, "api").await?)),
        None => None,
    };
    let addresses = (
        agents_listener.address.clone(),
        kubernetes_listener.as_ref().map(|listener| listener.address.clone()),
        probes_listener.address.clone(),
        api_listener.as_ref().map(|listener| listener.address.clone()),
    );

    for listener in [Some(&agents_listener), kubernetes_listener.as_ref()].into_iter().flatten() {
        if let Some(identity) = &listener.identity {
            tasks.background.spawn(Arc::clone(identity).keep_fresh(stop.background.clone()));
        }
    }

    let in_fleet = door.is_some() && redis.is_some();
    let tracker = neighbours::tracker(&events, &registry, in_fleet, &stop, &tasks);
    let local = fleet::Local { registry: &registry, tracker: &tracker, board: &board, views: &views };
    let fleet = fleet::start(&config, door, redis.as_ref(), local, &stop, &tasks)?;
    let on_push = neighbours::pushes(fleet.as_ref(), (&repositories, gitlab.as_ref()), &stop, &tasks);
    if let Some(gitlab) = &gitlab {
        neighbours::usage(&usage, gitlab, config.usage_reporting_period, &stop, &tasks);
    }
    if let (Some(section), Some(listener)) = (&config.api, api_listener) {
        let watched = config.events.as_ref().is_some_and(|config| config.server_sent_events);
        let known = Known::new(board.clone(), views.clone());
        let known = match &fleet {
            Some(fleet) => known.among(Arc::new(fleet.clone())),
            None => known,
        };
        neighbours::serve_api(
            (listener, section),
            (neighbours::roster(&tracker, &registry, fleet.as_ref()), known, metrics.known()),
            gitlab.as_ref(),
            on_push,
            watched.then_some(&events),
            &stop,
            &tasks,
        )?;
    }

    let ages = Ages::of(&policies);
    let manifests = GitopsService {
        projects: match &gitlab {
            Some(gitlab) => {
                Projects::GitLab { rails: Arc::clone(&gitlab.rails), pollers: Arc::clone(&gitlab.manifests) }
            }
            None => Projects::Local(Arc::clone(&repositories)),
        },
        limits: match &config.provider {
            Provider::GitLab(section) => section.manifests,
            Provider::Embedded { .. } => ManifestLimits::default(),
        },
        pacing: Pacing::of(&policies),
        periods: gitlab.as_ref().map(|gitlab| gitlab.manifest_periods).unwrap_or_default(),
        ages: ages.clone(),
        departures: departures.clone(),
        room: Room::default(),
        usage: Arc::clone(&usage),
        events: Arc::clone(&events),
    };
    let rails = gitlab.as_ref().map(|gitlab| Arc::clone(gitlab.rails.rails()));
    let access = GitlabAccessService::new(rails.clone(), stop.background.clone());
    let registrar = RegistrarService { tracker: tracker.clone(), usage: Arc::clone(&usage) };
    let reports = ReportsService::new(
        (board, views),
        Arc::clone(&events),
        metrics.known(),
        ages.clone(),
        departures.clone(),
    );
    let configuration = ConfigurationService {
        repositories,
        registry: Arc::clone(&registry),
        tracker,
        events,
        reports: rails.map(|rails| Reports::new(rails, stop.background.clone(), tasks.background.clone())),
        external_url: match &config.provider {
            Provider::GitLab(section) => {
                section.external_url.as_ref().unwrap_or(&section.address).to_string()
            }
            Provider::Embedded { .. } => String::new(),
        },
        documents: Arc::default(),
        streams: PerAgent::new(agent_configuration::STREAMS_PER_AGENT),
        retry: poller::Periods::default(),
        max_file_size: config.agents.max_configuration_file_size,
        ages,
        departures: departures.clone(),
    };
    let tunnels = TunnelService {
        registry: Arc::clone(&registry),
        bounds: Bounds::of(&policies),
        departures: departures.clone(),
        tasks: tasks.connections.clone(),
    };
    tasks.background.spawn({
        let (registry, stop) = (Arc::clone(&registry), stop.background.clone());
        async move { registry.keep_bounds(stop).await }
    });
    let admission = Admission { identities: identities.clone(), registry: Arc::clone(&registry), limit };
    // Agents of both generations compress every message; answers need not be.
    let gzip = CompressionEncoding::Gzip;
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_ACK))
        .http2_max_header_list_size(MAX_METADATA)
        .http2_max_pending_accept_reset_streams(Some(MAX_ABANDONED))
        .max_connection_age(config.agents.max_connection_age)
        .timeout(HEAD_LIMIT)
        .add_service(
            admission.guard(
                AgentConfigurationServer::new(configuration)
                    .accept_compressed(gzip)
                    .max_decoding_message_size(MAX_UNARY),
            ),
        )
        .add_service(admission.guard(
            AgentRegistrarServer::new(registrar).accept_compressed(gzip).max_decoding_message_size(MAX_UNARY),
        ))
        .add_service(
            admission.guard(
                GitopsServer::new(manifests).accept_compressed(gzip).max_decoding_message_size(MAX_UNARY),
            ),
        )
        .add_service(admission.guard(GitlabAccessServer::new(access).accept_compressed(gzip)))
        .add_service(admission.guard(reports.server()))
        .add_service(admission.guard(ReverseTunnelServer::new(tunnels).accept_compressed(gzip)));
    let server_name =
        HeaderValue::try_from(PROGRAM.to_string()).expect("the program's name is visible ASCII");
    let connections = agents::accept(
        agents_listener,
        config.agents.websocket,
        HeaderMap::from_iter([(header::SERVER, server_name)]),
        stop.accepting.clone(),
        stop.moving.clone(),
        &tasks.connections,
    );
    let closing = stop.moving.clone().cancelled_owned();
    tasks.connections.spawn(async move {
        if let Err(error) = server.serve_with_incoming_shutdown(connections, closing).await {
            tracing::error!(error = %crate::error::chain(&error), "the agent listener failed");
        }
    });

    let shutdown_grace = config.shutdown_grace;
    let listen_grace = config.listen_grace;
    if let (Some(section), Some(listener)) = (config.kubernetes_api, kubernetes_listener) {
        let cors = match &config.provider {
            Provider::Embedded { .. } => Cors::NoCookies,
            Provider::GitLab(gitlab) => Cors::only(gitlab.external_url.as_ref().unwrap_or(&gitlab.address)),
        };
        let api = Arc::new(KubernetesApi {
            identities,
            cors,
            counted: usage,
            router: Router { registry: Arc::clone(&registry), fleet: fleet.clone() },
            url_path_prefix: section.url_path_prefix,
            policies: policies.live().clone(),
            agent_wait: section.agent_wait,
            proxies: section.trusted_proxies,
            program: PROGRAM,
            metrics: Arc::clone(&metrics),
            under_way: tasks.requests.clone(),
            tracing,
        });
        let connections = tasks.connections.clone();
        tasks.doors.spawn(kubernetes::serve(listener, api, stop.accepting.clone(), connections));
    }
    let probes = Arc::new(Probes {
        config: config.observability,
        metrics,
        registry: Arc::clone(&registry),
        directory: fleet.as_ref().map(|fleet| Arc::clone(&fleet.directory)),
        policies: policies.live().clone(),
        readiness: readiness.clone(),
    });
    let connections = tasks.background.clone();
    tasks.background.spawn(observability::serve(
        probes_listener,
        probes,
        stop.background.clone(),
        connections,
    ));

    readiness.ready();
    tracing::info!("ready");
    let (agents, kubernetes_api, observability, api) = addresses;
    Ok(Bound {
        agents,
        kubernetes_api,
        observability,
        api,
        drain: drain::Drain {
            readiness,
            registry,
            departures,
            others: fleet.map(|fleet| Arc::new(fleet) as Arc<dyn Others>),
            stop,
            tasks,
            listen_grace,
            shutdown_grace,
        },
    })
}

impl Bound {
    /// Serves until `shutdown` resolves, then drains.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Drained {
        shutdown.await;
        self.drain().await
    }
}
