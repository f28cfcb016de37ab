//! For tests of brokers among themselves: a broker that is a registry and a private API on a real socket, agents that
//! are pairs of channels, and a wire between brokers that can be cut or go silent.

use super::{
    PeerUrl,
    gateway::{self, Gateway},
    peers::{Limits, Peers, PeersConfig},
};
use crate::{
    config::{ListenAddress, ListenConfig},
    drain::Running,
    gitlab::{SecretLength, ServiceSecret},
    listeners::socket::Listener,
    tunnel::{
        registry::{Offer, Registry},
        stream::{
            Lease, Tunnel,
            tests::{Agent, pair_of, says},
        },
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use postern_certs::{CertFiles, client::ClientTrust};
use postern_wire::{
    ids::AgentId,
    metadata::Program,
    proto::gitlab::agent::reverse_tunnel::rpc::{self, connect_request, connect_response},
};
use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::service::Routes;

pub(crate) const AGENT: AgentId = AgentId(1);
pub(crate) const METHOD: &str = "/gitlab.agent.kubernetes_api.rpc.KubernetesApi/MakeRequest";
pub(crate) const PROGRAM: Program = Program { name: "gitlab-kas", version: "v1.2.3", commit: "abc" };

/// Fails the test instead of hanging.
pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("it happens within a minute")
}

pub(crate) fn secret(bytes: &[u8]) -> Arc<ServiceSecret> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(STANDARD.encode(bytes).as_bytes()).unwrap();
    Arc::new(ServiceSecret::load_of(file.path().to_owned(), SecretLength::Any).unwrap())
}

pub(crate) fn peers() -> Arc<Peers> {
    peers_of(b"ours", None, Limits::default())
}

pub(crate) fn peers_of(key: &[u8], trust: Option<Arc<ClientTrust>>, limits: Limits) -> Arc<Peers> {
    let config =
        PeersConfig { secret: secret(key), trust, server_name: None, requires_tls: false, program: PROGRAM };
    Arc::new(Peers::with(config, limits))
}

pub(crate) struct Broker {
    pub(crate) registry: Arc<Registry>,
    pub(crate) url: PeerUrl,
    pub(crate) running: Running,
    _stop: (DropGuard, DropGuard),
}

impl Broker {
    pub(crate) async fn start() -> Self {
        Self::start_with(None, Routes::default()).await
    }

    pub(crate) async fn start_with(tls: Option<CertFiles>, beside: Routes) -> Self {
        let address = ListenAddress::Tcp((Ipv4Addr::LOCALHOST, 0).into());
        let scheme = if tls.is_some() { "grpcs" } else { "grpc" };
        let listener = Listener::bind(&ListenConfig { address, tls }, "private_api").await.unwrap();
        let url = format!("{scheme}://{}", listener.address).parse().unwrap();
        let (registry, running) = (Arc::new(Registry::default()), Running::default());
        let (accepting, closing) = (CancellationToken::new(), CancellationToken::new());
        let gateway = Gateway {
            secret: secret(b"ours"),
            registry: Arc::clone(&registry),
            program: PROGRAM,
            running: running.clone(),
        };
        let ends = (accepting.clone(), closing.clone());
        let age = Duration::from_secs(7200);
        gateway::serve(Arc::new(listener), gateway, beside, age, ends, &TaskTracker::new());
        let stop = (accepting.drop_guard(), closing.drop_guard());
        Self { registry, url, running, _stop: stop }
    }

    /// An agent with one tunnel to this broker.
    pub(crate) fn agent(&self) -> Agent {
        let (tunnel, agent) = pair_of(Some((16, 5)));
        tokio::spawn(keep(Arc::clone(&self.registry), tunnel));
        agent
    }

    pub(crate) fn address(&self) -> SocketAddr {
        let PeerUrl::Tcp { host, port, .. } = &self.url else { panic!("bound to TCP") };
        format!("{host}:{port}").parse().unwrap()
    }
}

/// As the tunnel's service keeps an idle one.
pub(crate) async fn keep(registry: Arc<Registry>, mut tunnel: Tunnel) {
    loop {
        let claim = match registry.offer(AGENT) {
            Offer::Wanted(claim) => claim,
            Offer::Idle(_ticket, claimed) => match claimed.await {
                Ok(claim) => claim,
                Err(_) => return tunnel.close(Ok(())),
            },
        };
        let (lease, returned) = Lease::of(tunnel);
        drop(claim.send(lease));
        match returned.await {
            Ok(returned) => tunnel = returned,
            Err(_) => return,
        }
    }
}

impl Agent {
    pub(crate) async fn says(&self, msg: connect_request::Msg) {
        within(self.send.send(says(msg))).await.unwrap();
    }

    pub(crate) async fn answers(&self, data: impl Into<Bytes>) {
        self.says(connect_request::Msg::Message(rpc::Message { data: data.into() })).await;
    }

    pub(crate) async fn begins(&self) {
        self.says(connect_request::Msg::Header(rpc::Header::default())).await;
    }

    pub(crate) async fn ends(&self) {
        self.says(connect_request::Msg::Trailer(rpc::Trailer::default())).await;
    }

    pub(crate) async fn hears_info(&mut self) -> rpc::RequestInfo {
        match within(self.hears()).await {
            connect_response::Msg::RequestInfo(info) => info,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn hears_data(&mut self) -> Bytes {
        match within(self.hears()).await {
            connect_response::Msg::Message(message) => message.data,
            other => panic!("{other:?}"),
        }
    }
}

/// A stretch of network in front of a broker.
pub(crate) struct Wire {
    pub(crate) url: PeerUrl,
    /// How often it was dialled.
    pub(crate) dials: Arc<AtomicUsize>,
    /// Closes its connections.
    pub(crate) cut: CancellationToken,
    /// Carries nothing any more, and closes nothing.
    pub(crate) silent: CancellationToken,
}

impl Wire {
    pub(crate) async fn to(broker: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("grpc://{}", listener.local_addr().unwrap()).parse().unwrap();
        let dials = Arc::new(AtomicUsize::new(0));
        let (cut, silent) = (CancellationToken::new(), CancellationToken::new());
        let wire = Self { url, dials: Arc::clone(&dials), cut: cut.clone(), silent: silent.clone() };
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                dials.fetch_add(1, Ordering::SeqCst);
                let (cut, silent) = (cut.clone(), silent.clone());
                tokio::spawn(cut.run_until_cancelled_owned(async move {
                    let mut far = TcpStream::connect(broker).await.unwrap();
                    let carried = tokio::io::copy_bidirectional(&mut near, &mut far);
                    if silent.run_until_cancelled(carried).await.is_none() {
                        std::future::pending::<()>().await;
                    }
                }));
            }
        });
        wire
    }
}
