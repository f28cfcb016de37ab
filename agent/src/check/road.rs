//! The steps to the broker: each is the very piece of code that the agent itself takes, with a stop after it. After
//! them: `access.rs`. The stream of the token and the tunnel end with their step.

use super::report::{Found, Silence, Steps, Trouble};
use crate::{
    PROGRAM,
    broker::{
        advice,
        connection::{self, Connection, Opened},
        dial::{self, Dial, DialError, Dialler, Io},
        gate::Refusal,
        tls::TlsError,
    },
    error,
    kubernetes_api::{Access, KubernetesApi},
    services::Services,
    tunnel,
};
use http::HeaderValue;
use postern_wire::{
    proto::gitlab::agent::{
        agent_configuration::rpc::{
            ConfigurationRequest, agent_configuration_client::AgentConfigurationClient,
        },
        agentcfg::AgentConfiguration,
        modshared::AgentMeta,
        reverse_tunnel::rpc::{
            ConnectRequest, Descriptor, connect_request, reverse_tunnel_client::ReverseTunnelClient,
        },
    },
    token::AgentToken,
};
use std::{net::IpAddr, time::Duration};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, codec::CompressionEncoding};

/// How long a tunnel has to stay open once the broker has taken it.
const STAYS: Duration = Duration::from_millis(300);
/// Go brokers take a stream without a word and refuse it with one: this much later it is not refused.
const REFUSAL: Duration = Duration::from_secs(2);
/// For the configuration, once the stream is accepted. An agent may well have none.
const CONFIGURATION: Duration = Duration::from_secs(1);
/// Of a name's addresses, those that are shown.
const ADDRESSES: usize = 5;

/// From a name to HTTP/2.
pub(super) async fn connect(steps: &mut Steps, dialler: &Dialler, token: &AgentToken) -> Option<Opened> {
    let address = &dialler.address;
    let proxy = dialler.proxies.to(address);
    let (host, port) = match &proxy {
        Some(proxy) => (proxy.host_and_port().0.to_owned(), proxy.host_and_port().1),
        None => (address.host(), address.port()),
    };
    let whom = proxy.as_ref().map_or_else(|| address.authority(), |proxy| format!("proxy {proxy}"));

    let silence = Silence { what: format!("no answer about {host}"), fix: advice::RESOLVE };
    let found = steps.run(silence, async {
        let found = dial::resolve(&host, port).await?;
        let shown: Vec<_> = found.iter().take(ADDRESSES).map(|at| at.ip().to_string()).collect();
        let finding = match host.parse::<IpAddr>() {
            Ok(_) => format!("{host} needs no resolving"),
            Err(_) => format!("{host} is {}", shown.join(", ")),
        };
        Ok(Found::new(found, finding))
    });
    let found = found.await?;

    let silence = Silence { what: format!("no connection to {whom}"), fix: advice::REACH };
    let tcp = steps.run(silence, async {
        let tcp = dial::connect(&host, port, found).await?;
        let peer = tcp.peer_addr().map_or_else(|_| whom.clone(), |peer| peer.to_string());
        Ok(Found::new(tcp, format!("connected to {peer}")))
    });
    let tcp = tcp.await?;

    let io: Box<dyn Io> = match &proxy {
        None => {
            steps.skip("no proxy for this address");
            Box::new(tcp)
        }
        Some(proxy) => {
            let silence =
                Silence { what: format!("no answer of {whom} to CONNECT"), fix: advice::PROXY_SILENT };
            let io = steps.run(silence, async {
                proxy.check().map_err(DialError::from)?;
                let io = dialler.through(proxy, tcp, address).await?;
                Ok(Found::new(io, format!("{proxy} leads to {}", address.authority())))
            });
            io.await?
        }
    };
    speak(steps, dialler, token, io).await
}

/// TLS, the upgrade, and HTTP/2 up to the broker's first frame.
async fn speak(steps: &mut Steps, dialler: &Dialler, token: &AgentToken, io: Box<dyn Io>) -> Option<Opened> {
    let (address, scheme) = (&dialler.address, dialler.address.scheme());
    // What the fifth step begins with.
    let mut io: Result<Box<dyn Io>, DialError> = Ok(io);
    if !scheme.tls() {
        steps.skip(format!("{scheme}:// is not encrypted, and the token is sent as it is"));
    } else if let Ok(clear) = io {
        let silence =
            Silence { what: format!("no TLS with {}", address.authority()), fix: advice::TLS_SILENT };
        let secured = async {
            let secured = match dialler.secure(clear, address).await {
                // That is for the next step to say.
                Err(error @ DialError::Tls(TlsError::NotHttp2 { .. })) => {
                    return Ok(Found::new(Err(error), "the server speaks TLS, and ends it over ALPN"));
                }
                secured => secured?,
            };
            let version = secured.version();
            if dialler.tls.skip_verify {
                let finding = format!("{version}; the certificate was not checked");
                let fix = "give the CA with --ca-cert-file and remove --kas-insecure-skip-tls-verify";
                return Ok(Found::new(secured.into_io(address), finding).but(fix));
            }
            Ok(Found::new(secured.into_io(address), format!("{version}, the certificate is trusted")))
        };
        io = steps.run(silence, secured).await?;
    }

    let silence = Silence { what: format!("no HTTP/2 from {address}"), fix: advice::SILENT };
    let opened = steps.run(silence, async {
        let dial = match scheme.websocket() {
            true => dialler.upgrade(io?, address).await?,
            false => Dial::Done(io?),
        };
        let dialled = dialler.arrive(dial).await?;
        let led_to = dialled.address.clone();
        let user_agent =
            HeaderValue::try_from(&dialler.user_agent).expect("a program's name is a header value");
        let opened = connection::open(dialled, token, &dialler.headers, &user_agent).await?;
        if led_to != *address {
            let finding = format!("redirected to {led_to}, which speaks HTTP/2");
            return Ok(Found::new(opened, finding).but(advice::REDIRECTED));
        }
        let how = if scheme.websocket() { "HTTP/2 in a WebSocket" } else { "HTTP/2" };
        Ok(Found::new(opened, format!("{address} speaks {how}")))
    });
    opened.await
}

/// What the broker says to the token.
pub(super) struct Accepted {
    /// The agent's configuration, where it came soon.
    pub(super) latest: Option<AgentConfiguration>,
}

/// Asks for the agent's configuration, which registers nobody.
pub(super) async fn token(
    steps: &mut Steps,
    connection: &Connection,
    meta: AgentMeta,
    place: &str,
) -> Option<Accepted> {
    let request =
        ConfigurationRequest { commit_id: String::new(), agent_meta: Some(meta), skip_register: true };
    let mut client =
        AgentConfigurationClient::new(connection.clone()).accept_compressed(CompressionEncoding::Gzip);
    let silence = Silence { what: "no answer of the broker".to_owned(), fix: advice::SILENT };
    let asking = async {
        let none = |finding: &str| Ok(Found::new(Accepted { latest: None }, finding));
        let Ok(answer) = timeout(REFUSAL, client.get_configuration(request)).await else {
            return none("the broker does not refuse it, and has no configuration for the agent yet");
        };
        let message = match answer {
            Ok(answer) => timeout(CONFIGURATION, answer.into_inner().message()).await,
            Err(status) => Ok(Err(status)),
        };
        match message {
            Err(_) => none("accepted; the broker has no configuration for the agent yet"),
            Ok(Ok(None)) => none("accepted; the broker sends no configuration now"),
            Ok(Ok(Some(response))) => {
                let agent = response.configuration.as_ref().map_or(0, |configuration| configuration.agent_id);
                let finding =
                    format!("accepted, for agent {agent}; configuration of {:?}", response.commit_id);
                Ok(Found::new(Accepted { latest: response.configuration }, finding))
            }
            Ok(Err(status)) => {
                // The broker had to know the token to look for its file.
                let of_file = matches!(status.code(), Code::FailedPrecondition | Code::NotFound);
                if of_file && Refusal::of(&status).is_none() {
                    let finding = format!("accepted; no configuration: {}", error::status(&status));
                    let fix = "mend the agent's configuration file; what is wrong with it is in the finding";
                    return Ok(Found::new(Accepted { latest: None }, finding).but(fix));
                }
                Err(refused(&status, place, "the token"))
            }
        }
    };
    steps.run(silence, asking).await
}

/// Opens a tunnel and lets it go. Should a caller's request come just then, it is answered.
pub(super) async fn tunnel(
    steps: &mut Steps,
    connection: &Connection,
    access: Option<&Access>,
    place: &str,
) -> Option<()> {
    let services = access.map(|access| Services::new(KubernetesApi::new(access.clone(), PROGRAM)));
    let (outgoing, messages) = mpsc::channel(2);
    let descriptor = services.as_ref().map(Services::descriptor).unwrap_or_default();
    let descriptor = Descriptor { agent_descriptor: Some(descriptor) };
    outgoing
        .try_send(ConnectRequest { msg: Some(connect_request::Msg::Descriptor(descriptor)) })
        .expect("the channel is empty");
    let mut client =
        ReverseTunnelClient::new(connection.clone()).accept_compressed(CompressionEncoding::Gzip);
    let patience = steps.limit() / 2;
    let silence = Silence { what: "no answer of the broker".to_owned(), fix: advice::SILENT };
    let opening = async {
        let stands = |finding: &str| Ok(Found::new((), finding));
        let Ok(answer) = timeout(REFUSAL.min(patience), client.connect(ReceiverStream::new(messages))).await
        else {
            return stands("it stands: the broker does not refuse it");
        };
        let failed = |status: Status| refused(&status, place, "the tunnel");
        let mut incoming = answer.map_err(failed)?.into_inner();
        match timeout(STAYS, incoming.message()).await {
            Err(_) => stands("it stands, and stays open"),
            Ok(Ok(None)) => stands("the broker took it, and needs no more of them now"),
            Ok(Err(status)) => Err(failed(status)),
            Ok(Ok(Some(first))) => {
                if let Some(services) = &services {
                    // The caller is told how it ended; a watch is cut, and begun again by whoever watches.
                    let _ = timeout(patience, tunnel::answer(services, first, &mut incoming, outgoing)).await;
                }
                stands("it stands, and a caller's request came through it")
            }
        }
    };
    steps.run(silence, opening).await
}

fn refused(status: &Status, place: &str, what: &str) -> Trouble {
    let finding = format!("the broker refused {what}: {}", error::status(status));
    let fix = match (Refusal::of(status), status.code()) {
        (Some(Refusal::Later | Refusal::Limited), _) => {
            Refusal::of(status).map_or("", Refusal::advice).to_owned()
        }
        (Some(refusal), _) => format!("{}; it is read from {place}", refusal.advice()),
        (None, Code::Unimplemented | Code::Unknown) => advice::NO_BROKER.to_owned(),
        (None, Code::Unavailable | Code::DeadlineExceeded) => advice::BROKER_AWAY.to_owned(),
        (None, _) => advice::BROKER_LOG.to_owned(),
    };
    Trouble { finding, fix }
}
