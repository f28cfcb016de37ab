//! The wiring page: what an agent consists of, what starts when, and what knows of what.

use crate::{
    COMMIT, PROGRAM, VERSION,
    alerts::{self, Alerts},
    broker::{self, Road, dial::Dialler},
    cluster::{Cluster, leader},
    config::{Config, Pod},
    configuration, drain, error,
    gitops::{
        self,
        engine::{Engine, api::Led},
    },
    kubernetes_api::{Access, KubernetesApi, limits::Limits},
    observability::{Metrics, Observability, Readiness, logging::LogLevel},
    registrar::{self, Generation},
    report,
    services::Services,
    tunnel::{
        self, Tunnels,
        pool::{self, Counts},
    },
    views::Views,
};
use anyhow::Context as _;
use postern_certs::client::ClientTrust;
use postern_telemetry::{Exporter, Settings};
use postern_wire::proto::gitlab::agent::modshared::AgentMeta;
use std::sync::Arc;
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// An agent that has everything it needs and has not dialled yet.
pub struct Agent {
    observability: Observability,
    road: Road,
    tunnels: Tunnels,
    receiver: configuration::Receiver,
    latest: configuration::Latest,
    gitops: gitops::Receiver,
    manifests: gitops::Manifests,
    cluster: Cluster,
    engine: Engine<Led<Cluster>>,
    leads: watch::Sender<bool>,
    term: leader::Term,
    generation: watch::Sender<Generation>,
    meta: AgentMeta,
    metrics: Metrics,
    /// Run until the end; one that ends early is a defect.
    always: JoinSet<()>,
    stop: CancellationToken,
    exporting: Exporting,
}

/// Spans on their way out.
struct Exporting {
    exporter: Option<Exporter>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Exporting {
    fn start(settings: Option<Settings>) -> anyhow::Result<Self> {
        let stop = CancellationToken::new();
        let (exporter, keeper) = settings.map(Exporter::new).transpose()?.unzip();
        let task = keeper.map(|keeper| tokio::spawn(keeper.run(stop.clone())));
        Ok(Self { exporter, stop, task })
    }

    /// Sends what is left, which has a deadline of its own.
    async fn finish(self) {
        self.stop.cancel();
        if let Some(task) = self.task {
            let _ = task.await;
        }
    }
}

/// Starts an agent and runs it until `shutdown`, then drains it.
///
/// # Errors
/// What keeps it from starting. Once started it fails only by a defect.
pub async fn run(config: Config, log_level: LogLevel, shutdown: impl Future) -> anyhow::Result<()> {
    Agent::start(config, log_level).await?.run(shutdown).await
}

impl Agent {
    /// Binds the listener, reads tokens, certificates and credentials.
    pub async fn start(config: Config, log_level: LogLevel) -> anyhow::Result<Self> {
        postern_certs::install_provider();
        let Config { broker, kubernetes, observability, pod, tracing } = config;
        info!(version = VERSION, commit = COMMIT, kas_address = %broker.address, "agentk starting");

        let observability = Observability::bind(&observability).await?;
        let trust = ClientTrust::load(broker.ca_cert_file.clone()).context("--ca-cert-file")?;
        let token = broker.token.read()?;
        let access = Access::load(kubernetes).await?;

        let exporting = Exporting::start(tracing)?;
        let metrics = Metrics::default();
        let stop = CancellationToken::new();
        let mut always = JoinSet::new();
        tokio::spawn(trust.keep_fresh(stop.clone()));
        let (token_sender, tokens) = watch::channel(token);
        let token_place = broker.token.to_string();
        always.spawn(broker.token.clone().keep_fresh(token_sender));
        let dialler = Dialler::new(broker, trust);
        let (road, keeper) = broker::road(dialler, tokens, &token_place, metrics.clone());
        always.spawn(keeper.keep_connected());

        let (reports, sending) = report::reports();
        always.spawn(sending.send(road.clone(), pod.name.clone()));
        let limits = Limits::new(metrics.clone());

        let meta = pod.meta();
        let (generation, known) = watch::channel(Generation::Unknown);
        let (latest_sender, latest) = watch::channel(None);
        let receiver = configuration::Receiver {
            road: road.clone(),
            meta: meta.clone(),
            generation: known,
            latest: latest_sender,
            log_level,
            limits: limits.clone(),
            reports: reports.clone(),
            metrics: metrics.clone(),
        };
        let (manifests_sender, manifests) = watch::channel(gitops::Projects::default());
        let leads = watch::Sender::new(false);
        let gitops = gitops::Receiver {
            road: road.clone(),
            configuration: latest.clone(),
            leads: leads.subscribe(),
            manifests: manifests_sender,
            metrics: metrics.clone(),
        };
        let (cluster, recorder) = Cluster::new(access.clone(), &pod.name, &metrics);
        always.spawn(recorder.run());
        let term = leader::Term::default();
        let engine = Engine {
            cluster: Led { cluster: cluster.clone(), term: term.clone() },
            manifests: manifests.clone(),
            configuration: latest.clone(),
            leads: leads.subscribe(),
            tell: Arc::new(reports),
            metrics: metrics.clone(),
        };
        let kubernetes_api = KubernetesApi::new(access, PROGRAM).limited(limits);
        let services = Services::new(kubernetes_api.traced(exporting.exporter.clone()));
        let tunnels = Tunnels { road: road.clone(), services, metrics: metrics.clone() };
        Ok(Self {
            observability,
            road,
            tunnels,
            receiver,
            latest,
            gitops,
            manifests,
            cluster,
            engine,
            leads,
            term,
            generation,
            meta,
            metrics,
            always,
            stop,
            exporting,
        })
    }

    /// Where probes and metrics are.
    pub fn observability_address(&self) -> &str {
        &self.observability.address
    }

    /// The latest agent configuration, for features and tests.
    pub fn configuration(&self) -> configuration::Latest {
        self.latest.clone()
    }

    /// The manifests of every configured project, for what is to apply them and for tests.
    pub fn manifests(&self) -> gitops::Manifests {
        self.manifests.clone()
    }

    /// The agent's own way into its cluster, for features and tests.
    pub fn cluster(&self) -> Cluster {
        self.cluster.clone()
    }

    /// Whether this replica does what only one may do.
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    /// Runs until `shutdown`, then drains.
    pub async fn run(self, shutdown: impl Future) -> anyhow::Result<()> {
        let Self {
            observability,
            road,
            tunnels,
            receiver,
            latest,
            gitops,
            cluster,
            engine,
            leads,
            term,
            generation,
            meta,
            metrics,
            mut always,
            stop,
            exporting,
            ..
        } = self;
        let _stop = stop.clone().drop_guard();
        let draining = CancellationToken::new();
        let (counts_sender, counts) = watch::channel(Counts::default());
        let readiness = Readiness { road: road.clone(), counts: counts.clone(), draining: draining.clone() };
        always.spawn(observability.serve(metrics.registry(&PROGRAM), readiness, stop));
        let (least_sender, least) = watch::channel(Generation::Unknown.idle_tunnels());
        always.spawn(keep_least(generation.subscribe(), least_sender));
        let alerts = Alerts {
            road: road.clone(),
            configuration: latest.clone(),
            leads: leads.subscribe(),
            policies: cluster.clone(),
            pace: alerts::Pace::default(),
            metrics: metrics.clone(),
        };
        let views = Views {
            road: road.clone(),
            cluster: cluster.clone(),
            configuration: latest.clone(),
            leads: leads.subscribe(),
        };
        let place = Pod { namespace: meta.pod_namespace.clone(), name: meta.pod_name.clone() };
        always.spawn(registrar::keep_registered(road, meta, generation));
        always.spawn(receiver.receive());
        always.spawn(gitops.receive());
        always.spawn(alerts.run());
        always.spawn(views.keep());
        always.spawn(engine.run());
        always.spawn(measure(counts, metrics.clone()));
        always.spawn(leader::measure(leads.subscribe(), metrics));
        let resigning = CancellationToken::new();
        let mut election = JoinSet::new();
        election.spawn(leader::elect(cluster, latest, place, leads, term, resigning.clone()));

        let open = tunnel::opener(Arc::new(tunnels));
        let mut pool = JoinSet::new();
        pool.spawn(pool::keep(open, least, counts_sender, draining.clone()));
        let failed = tokio::select! {
            _ = shutdown => None,
            Some(ended) = always.join_next() => Some(ended),
            Some(ended) = pool.join_next() => Some(ended),
            Some(ended) = election.join_next() => Some(ended),
        };
        if let Some(ended) = failed {
            let cause = ended.err().map_or("it ended".to_owned(), |failed| error::chain(&failed));
            anyhow::bail!("a part of the agent failed, this is a defect: {cause}");
        }
        resigning.cancel();
        drain::drain(&draining, pool.join_next(), drain::DEADLINE).await;
        // Another replica waits for it; this has a deadline of its own.
        election.join_next().await;
        exporting.finish().await;
        Ok(())
    }
}

/// How many idle tunnels the pool keeps follows from what the broker is.
async fn keep_least(mut generation: watch::Receiver<Generation>, least: watch::Sender<usize>) {
    loop {
        let now = generation.borrow_and_update().idle_tunnels();
        least.send_if_modified(|least| std::mem::replace(least, now) != now);
        if generation.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

async fn measure(mut counts: watch::Receiver<Counts>, metrics: Metrics) {
    loop {
        metrics.tunnels(*counts.borrow_and_update());
        if counts.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
