//! Agents by the hundred, in this process: each dials a broker as agentk does, registers, waits for its configuration
//! and keeps its tunnels open on that one connection. What is asked through a tunnel is answered with the agent's number
//! and the path; there is no cluster. It shares the generated messages with agentk and nothing else.

use super::within;
use postern_wire::{
    proto::gitlab::agent::{
        agent_configuration::rpc::{
            ConfigurationRequest, agent_configuration_client::AgentConfigurationClient,
        },
        agent_registrar::rpc::{RegisterRequest, agent_registrar_client::AgentRegistrarClient},
        grpctool::{HttpRequest, HttpResponse, http_request, http_response},
        modshared::AgentMeta,
        prototool,
        reverse_tunnel::{
            info::{AgentDescriptor, Method, Service},
            rpc::{
                ConnectRequest, ConnectResponse, Descriptor, Header, Message, Trailer, connect_request::Msg,
                connect_response, reverse_tunnel_client::ReverseTunnelClient,
            },
        },
    },
    token::AgentToken,
};
use prost::Message as _;
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    codec::CompressionEncoding,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

const PROGRAM: &str = "gitlab-agent/v16.5.0/simulated";
const REGISTER_EVERY: Duration = Duration::from_secs(300);
/// What a broker allows that is not told otherwise: a connection, and any stream but a request's.
const CONNECTION_LIFE: Duration = Duration::from_secs(7200);
const STREAM_LIFE: Duration = Duration::from_secs(2160);
/// Of streams on a connection that is left.
const LINGER: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(500);
/// Thousands at once would be a stampede, which is not what is looked at here.
const DIALS_AT_ONCE: usize = 32;
const ALL_STAND: Duration = Duration::from_secs(120);
/// Enough to see what is wrong.
const FAILURES_KEPT: usize = 5;

/// Who an agent is.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) id: i64,
    pub(crate) token: AgentToken,
}

/// How agents live.
#[derive(Clone, Copy)]
pub(crate) struct Habits {
    /// Tunnels that each keeps.
    pub(crate) tunnels: usize,
    /// Connections, streams and registrations have all ages from the start and are renewed in time, as those of a fleet
    /// that has been up for days. Otherwise all of them are new and stay.
    pub(crate) aged: bool,
}

/// What has happened so far.
#[allow(dead_code, reason = "benchmarks print what tests do not ask for")]
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) registered: u64,
    pub(crate) renewed: u64,
    pub(crate) moved: u64,
    pub(crate) served: u64,
    pub(crate) failed: u64,
    /// The first few.
    pub(crate) failures: Vec<String>,
}

/// Agents at work; gone when dropped.
pub(crate) struct Agents {
    shared: Arc<Shared>,
    count: usize,
    tunnels: usize,
    _tasks: JoinSet<()>,
}

struct Shared {
    habits: Habits,
    brokers: Vec<SocketAddr>,
    dials: Semaphore,
    /// Whether a tunnel that has carried its request is replaced.
    replace: watch::Sender<bool>,
    standing: AtomicUsize,
    configured: AtomicUsize,
    registered: AtomicU64,
    renewed: AtomicU64,
    moved: AtomicU64,
    served: AtomicU64,
    failures: Mutex<(u64, Vec<String>)>,
}

impl Agents {
    /// One for each identity, spread over the brokers in turn.
    pub(crate) fn start(brokers: &[SocketAddr], identities: &[Identity], habits: Habits) -> Self {
        let shared = Arc::new(Shared {
            habits,
            brokers: brokers.to_vec(),
            dials: Semaphore::new(DIALS_AT_ONCE),
            replace: watch::Sender::new(true),
            standing: AtomicUsize::default(),
            configured: AtomicUsize::default(),
            registered: AtomicU64::default(),
            renewed: AtomicU64::default(),
            moved: AtomicU64::default(),
            served: AtomicU64::default(),
            failures: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for (number, identity) in identities.iter().cloned().enumerate() {
            let (shared, pod_id) = (Arc::clone(&shared), rand::random_range(0..=i64::MAX));
            let agent = Arc::new(Agent { identity, number, of: identities.len(), pod_id, shared });
            tasks.spawn(agent.live());
        }
        Self { shared, count: identities.len(), tunnels: habits.tunnels, _tasks: tasks }
    }

    /// Waits until each has registered, has its configuration stream and all of its tunnels.
    pub(crate) async fn stand(&self) {
        let shared = &self.shared;
        let stand = async || {
            let all = shared.standing.load(Ordering::SeqCst) >= self.count * self.tunnels
                && shared.configured.load(Ordering::SeqCst) >= self.count
                && shared.registered.load(Ordering::SeqCst) >= self.count as u64;
            all.then_some(())
        };
        tokio::select! {
            () = within(ALL_STAND, "all agents stand", stand) => {}
            // What they met with says more than the time that has passed.
            () = async { while self.tally().failed < 10 * FAILURES_KEPT as u64 { sleep(RETRY).await; } } => {
                panic!("agents cannot stand: {:?}", self.tally().failures)
            }
        }
    }

    /// Whether a tunnel that has carried its request is replaced; those that were not are, once this is `true` again.
    pub(crate) fn replace_used(&self, replace: bool) {
        self.shared.replace.send_replace(replace);
    }

    pub(crate) fn tally(&self) -> Tally {
        let (failed, failures) = self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let of = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Tally {
            registered: of(&self.shared.registered),
            renewed: of(&self.shared.renewed),
            moved: of(&self.shared.moved),
            served: of(&self.shared.served),
            failed,
            failures,
        }
    }
}

impl Shared {
    fn failed(&self, agent: i64, what: &str, error: &dyn std::fmt::Display) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.0 += 1;
        if failures.1.len() < FAILURES_KEPT {
            failures.1.push(format!("agent {agent}, {what}: {error}"));
        }
    }
}

/// Counts while it is held.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn on(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::SeqCst);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How a stream came to its end.
enum End {
    /// Its time was up, for the agent or for the broker.
    Renewed,
    /// It carried a request.
    Served,
}

struct Agent {
    identity: Identity,
    number: usize,
    /// How many there are.
    of: usize,
    pod_id: i64,
    shared: Arc<Shared>,
}

impl Agent {
    /// One connection after the other, each to the next broker, the new one before the old one is left.
    async fn live(self: Arc<Self>) {
        let brokers = &self.shared.brokers;
        let mut broker = self.number;
        let mut left: Option<JoinSet<()>> = None;
        let mut life = self.remaining(CONNECTION_LIFE, 0, 1);
        loop {
            let channel = self.dial(brokers[broker % brokers.len()]).await;
            let streams = self.open(&channel, left.is_none());
            if left.is_some() {
                sleep(LINGER).await;
            }
            drop(left.take());
            passed(life).await;
            life = self.whole(CONNECTION_LIFE);
            broker += 1;
            left = Some(streams);
            self.shared.moved.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// What is left of the first one of a kind of which an agent has so many: evenly spread over all agents.
    fn remaining(&self, life: Duration, at: usize, kinds: usize) -> Option<Duration> {
        let phase = (at * self.of + self.number) as f64 + 0.5;
        self.shared.habits.aged.then(|| life.mul_f64(phase / (kinds * self.of) as f64))
    }

    fn whole(&self, life: Duration) -> Option<Duration> {
        self.shared.habits.aged.then_some(life)
    }

    async fn dial(&self, broker: SocketAddr) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{broker}"))
            .and_then(|endpoint| endpoint.user_agent(PROGRAM))
            .expect("a legal address and value")
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(16 * 1024 * 1024)
            .http2_keep_alive_interval(Duration::from_secs(25))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .connect_timeout(Duration::from_secs(10));
        loop {
            let _turn = self.shared.dials.acquire().await.expect("it is never closed");
            match endpoint.connect().await {
                Ok(channel) => return channel,
                Err(error) => self.shared.failed(self.identity.id, "dial", &error),
            }
            sleep(RETRY).await;
        }
    }

    /// Everything an agent has on a connection. Streams of the first one are of any age.
    fn open(self: &Arc<Self>, channel: &Channel, first: bool) -> JoinSet<()> {
        let mut streams = JoinSet::new();
        streams.spawn(Arc::clone(self).keep_registered(channel.clone(), first));
        let kinds = self.shared.habits.tunnels + 1;
        let life = |at| if first { self.remaining(STREAM_LIFE, at, kinds) } else { self.whole(STREAM_LIFE) };
        streams.spawn(Arc::clone(self).keep_configured(channel.clone(), life(0)));
        for at in 1..kinds {
            streams.spawn(Arc::clone(self).keep_tunnel(channel.clone(), life(at)));
        }
        streams
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let bearer = MetadataValue::try_from(self.identity.token.bearer().as_bytes());
        request.metadata_mut().insert("authorization", bearer.expect("a legal value"));
        request
    }

    fn meta(&self) -> Option<AgentMeta> {
        Some(AgentMeta {
            version: "v16.5.0".into(),
            commit_id: "simulated".into(),
            pod_namespace: "gitlab-agent".into(),
            pod_name: format!("gitlab-agent-{}-7d9f8b6c5-x2k4q", self.identity.id),
            kubernetes_version: None,
        })
    }

    async fn keep_registered(self: Arc<Self>, channel: Channel, first: bool) {
        let mut client = AgentRegistrarClient::new(channel).accept_compressed(CompressionEncoding::Gzip);
        let mut pause = self.remaining(REGISTER_EVERY, 0, 1).filter(|_| first).unwrap_or(REGISTER_EVERY);
        loop {
            let request = RegisterRequest { agent_meta: self.meta(), pod_id: self.pod_id };
            match client.register(self.request(request)).await {
                Ok(_) => {
                    self.shared.registered.fetch_add(1, Ordering::SeqCst);
                    sleep(std::mem::replace(&mut pause, REGISTER_EVERY)).await;
                }
                Err(status) => {
                    self.shared.failed(self.identity.id, "register", &status);
                    sleep(RETRY).await;
                }
            }
        }
    }

    async fn keep_configured(self: Arc<Self>, channel: Channel, mut life: Option<Duration>) {
        let mut commit_id = String::new();
        loop {
            let configured = tokio::select! {
                configured = self.configured(channel.clone(), &mut commit_id) => configured,
                () = passed(life) => Ok(()),
            };
            self.ended("configuration", configured.map(|()| End::Renewed)).await;
            life = self.whole(STREAM_LIFE);
        }
    }

    async fn configured(&self, channel: Channel, commit_id: &mut String) -> Result<(), Status> {
        let request = ConfigurationRequest {
            commit_id: commit_id.clone(),
            agent_meta: self.meta(),
            skip_register: true,
        };
        let mut client = AgentConfigurationClient::new(channel).accept_compressed(CompressionEncoding::Gzip);
        let mut stream = client.get_configuration(self.request(request)).await?.into_inner();
        let _configured = Counted::on(&self.shared.configured);
        while let Some(response) = stream.message().await? {
            *commit_id = response.commit_id;
        }
        Ok(())
    }

    async fn keep_tunnel(self: Arc<Self>, channel: Channel, mut life: Option<Duration>) {
        let mut replace = self.shared.replace.subscribe();
        loop {
            let end = self.tunnel(channel.clone(), life).await;
            self.ended("tunnel", end).await;
            let _ = replace.wait_for(|replace| *replace).await;
            life = self.whole(STREAM_LIFE);
        }
    }

    /// Counts; after a failure, waits.
    async fn ended(&self, what: &str, end: Result<End, Status>) {
        let shared = &self.shared;
        match end {
            Ok(End::Renewed) => drop(shared.renewed.fetch_add(1, Ordering::SeqCst)),
            Ok(End::Served) => drop(shared.served.fetch_add(1, Ordering::SeqCst)),
            Err(status) => {
                shared.failed(self.identity.id, what, &status);
                sleep(RETRY).await;
            }
        }
    }

    async fn tunnel(&self, channel: Channel, life: Option<Duration>) -> Result<End, Status> {
        let (to_broker, messages) = mpsc::channel(2);
        to_broker.try_send(descriptor()).expect("there is room");
        let mut client = ReverseTunnelClient::new(channel).accept_compressed(CompressionEncoding::Gzip);
        let request = self.request(ReceiverStream::new(messages));
        let mut from_broker = client.connect(request).await?.into_inner();
        let standing = Counted::on(&self.shared.standing);
        let first = tokio::select! {
            biased;
            first = from_broker.message() => first?,
            () = passed(life) => None,
        };
        let Some(first) = first else {
            return Ok(End::Renewed);
        };
        drop(standing);
        let path = request_path(first, &mut from_broker).await?;
        self.answer(to_broker, &path).await.map_err(|_| Status::cancelled("the broker is gone"))?;
        while from_broker.message().await?.is_some() {}
        Ok(End::Served)
    }

    async fn answer(
        &self,
        to_broker: mpsc::Sender<ConnectRequest>,
        path: &str,
    ) -> Result<(), mpsc::error::SendError<ConnectRequest>> {
        let put = async |msg| to_broker.send(ConnectRequest { msg: Some(msg) }).await;
        let message = async |message| {
            let data = HttpResponse { message: Some(message) }.encode_to_vec().into();
            put(Msg::Message(Message { data })).await
        };
        let response =
            prototool::HttpResponse { status_code: 200, status: "200 OK".into(), ..Default::default() };
        put(Msg::Header(Header::default())).await?;
        message(http_response::Message::Header(http_response::Header { response: Some(response) })).await?;
        let data = format!("{} {path}", self.identity.id).into();
        message(http_response::Message::Data(http_response::Data { data })).await?;
        message(http_response::Message::Trailer(http_response::Trailer {})).await?;
        put(Msg::Trailer(Trailer::default())).await
    }
}

/// Never, where there is no time.
async fn passed(life: Option<Duration>) {
    match life {
        Some(life) => sleep(life).await,
        None => std::future::pending().await,
    }
}

fn descriptor() -> ConnectRequest {
    let methods = vec![Method { name: "MakeRequest".into() }];
    let services = vec![Service { name: "gitlab.agent.kubernetes_api.rpc.KubernetesApi".into(), methods }];
    let descriptor = Descriptor { agent_descriptor: Some(AgentDescriptor { services }) };
    ConnectRequest { msg: Some(Msg::Descriptor(descriptor)) }
}

/// Takes the request to its end.
async fn request_path(
    first: ConnectResponse,
    from_broker: &mut Streaming<ConnectResponse>,
) -> Result<String, Status> {
    let (mut next, mut path) = (first, String::new());
    loop {
        match next.msg {
            Some(connect_response::Msg::CloseSend(_)) => return Ok(path),
            Some(connect_response::Msg::Message(message)) => {
                let request = HttpRequest::decode(message.data)
                    .map_err(|error| Status::invalid_argument(error.to_string()))?;
                if let Some(http_request::Message::Header(header)) = request.message {
                    path = header.request.unwrap_or_default().url_path;
                }
            }
            _ => {}
        }
        let message = from_broker.message().await?;
        next = message.ok_or_else(|| Status::cancelled("the broker ended the tunnel"))?;
    }
}
