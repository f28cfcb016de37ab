//! Follows the flows that Cilium dropped, as a Hubble relay tells of them: opens the stream, opens it again whenever it
//! ends, from where it ended. Before it: `alerts.rs`, with an address. After it: `matching.rs`. It looks at no flow.

use crate::{backoff::Backoff, error, observability::Metrics};
use http::uri::Authority;
use postern_wire::proto::{
    flow::{EventTypeFilter, Flow, FlowFilter, Verdict},
    observer::{GetFlowsRequest, get_flows_response::ResponseTypes, observer_client::ObserverClient},
};
use prometheus_client::metrics::gauge::Gauge;
use prost_types::Timestamp;
use std::{
    fmt,
    time::{Duration, SystemTime},
};
use tokio::{sync::mpsc, time::Instant};
use tonic::{Code, Status, transport::Endpoint};
use tracing::{debug, info, warn};

/// Event types of Cilium's monitor: what a policy decided about a connection, and about a request.
const POLICY_VERDICT: i32 = 5;
const ACCESS_LOG: i32 = 129;
const CONNECT: Duration = Duration::from_secs(10);
/// Of a host that is gone without a word.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// Go servers close connections that are pinged more often than every five minutes.
const PING_EVERY: Duration = Duration::from_secs(6 * 60);
const PING_ANSWER: Duration = Duration::from_secs(20);
/// A flow with many labels and headers has a few KiB.
const MOST_FLOW: usize = 256 * 1024;
/// A stream that lived this long shows that the trouble before it is over.
const LIVED: Duration = Duration::from_secs(10 * 60);

/// How soon things are tried again: a stream of flows, and a post.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// After one that the relay ended with OK.
    pub again: Duration,
    /// After the first error; twice that after the next, and so on.
    pub first: Duration,
    /// Never longer than this.
    pub most: Duration,
    /// How soon GitLab is asked again to take an alert.
    pub post_again: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let soon = Duration::from_secs(10);
        Self {
            again: soon,
            first: soon,
            most: Duration::from_secs(5 * 60),
            post_again: Duration::from_secs(2),
        }
    }
}

/// Where a relay is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(Authority);

/// Why there is no relay at an address. What is none is not shown: it may be anything, a secret among it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cilium.hubble_relay_address is not an address: write host:port, as in hubble-relay.kube-system.svc:80; the relay is \
     spoken to without TLS"
)]
pub struct BadAddress;

/// Why a stream of flows ended.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot connect to the hubble relay")]
    Connect(#[from] tonic::transport::Error),
    #[error("{}", error::status(.0))]
    Status(Box<Status>),
}

impl Address {
    /// `host:port`, which the name of a gRPC resolver may stand before.
    ///
    /// # Errors
    /// Any other text.
    pub fn parse(given: &str) -> Result<Self, BadAddress> {
        let resolver =
            ["dns:///", "dns:", "passthrough:///"].iter().find_map(|name| given.strip_prefix(name));
        let authority: Authority = resolver.unwrap_or(given).parse().map_err(|_| BadAddress)?;
        let named = !authority.host().is_empty() && !authority.as_str().contains('@');
        let port = authority.port_u16().is_some_and(|port| port != 0);
        if named && port { Ok(Self(authority)) } else { Err(BadAddress) }
    }

    fn endpoint(&self) -> Result<Endpoint, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.0))?;
        Ok(endpoint
            .connect_timeout(CONNECT)
            .tcp_keepalive(Some(TCP_KEEPALIVE))
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_ANSWER))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A relay that is followed.
pub(crate) struct Relay<'a> {
    pub(crate) address: &'a Address,
    pub(crate) pace: Pace,
    pub(crate) metrics: &'a Metrics,
}

impl Relay<'_> {
    /// Sends every flow there. Never returns while somebody receives.
    pub(crate) async fn follow(&self, mut since: Timestamp, flows: mpsc::Sender<Flow>) {
        let (address, pace) = (self.address, self.pace);
        let mut backoff = Backoff::new(pace.first, pace.most, 2.0);
        while !flows.is_closed() {
            let began = Instant::now();
            let ended = self.stream(&mut since, &flows).await;
            if began.elapsed() >= LIVED {
                backoff.reset();
            }
            let delay = match ended {
                Ok(()) => {
                    backoff.reset();
                    info!(%address, again_in = ?pace.again, "the hubble relay ended the stream of flows");
                    pace.again
                }
                Err(failure) => {
                    let delay = backoff.step();
                    warn!(%address, error = %error::chain(&failure), retry_in = ?delay, "no flows from the hubble relay");
                    delay
                }
            };
            tokio::time::sleep(delay).await;
        }
    }

    /// One stream, to its end. `since` is moved on with every message, so that the next stream begins there.
    async fn stream(&self, since: &mut Timestamp, flows: &mpsc::Sender<Flow>) -> Result<(), Failure> {
        let failed = |status| Failure::Status(Box::new(status));
        let channel = self.address.endpoint()?.connect().await?;
        let _connected = Connected::to(&self.metrics.alert_relay_connected);
        info!(address = %self.address, "following flows of the hubble relay");
        let mut client = ObserverClient::new(channel).max_decoding_message_size(MOST_FLOW);
        // A relay that has nothing to tell says nothing at all for as long as that lasts: there is no deadline.
        let mut stream = client.get_flows(request(*since)).await.map_err(failed)?.into_inner();
        loop {
            let message = stream.message().await;
            // Also by one that is too large: told of it again, this would never come further.
            let came = match &message {
                Ok(message) => message.is_some(),
                Err(status) => status.code() == Code::OutOfRange,
            };
            if came {
                *since = Timestamp::from(SystemTime::now());
            }
            let Some(message) = message.map_err(failed)? else {
                return Ok(());
            };
            match message.response_types {
                Some(ResponseTypes::Flow(flow)) => {
                    self.metrics.alert_flows.inc();
                    if flows.send(flow).await.is_err() {
                        return Ok(());
                    }
                }
                Some(ResponseTypes::LostEvents(lost)) => {
                    debug!(flows = lost.num_events_lost, node = %message.node_name, "flows were lost before the relay");
                }
                None => {}
            }
        }
    }
}

/// However a stream ends, the gauge says so.
struct Connected<'a>(&'a Gauge);

impl<'a> Connected<'a> {
    fn to(gauge: &'a Gauge) -> Self {
        gauge.set(1);
        Self(gauge)
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.set(0);
    }
}

fn request(since: Timestamp) -> GetFlowsRequest {
    let of_type = |r#type| EventTypeFilter { r#type, ..EventTypeFilter::default() };
    let filter = FlowFilter {
        verdict: vec![Verdict::Dropped as i32],
        event_type: vec![of_type(POLICY_VERDICT), of_type(ACCESS_LOG)],
    };
    GetFlowsRequest {
        follow: true,
        whitelist: vec![filter],
        since: Some(since),
        ..GetFlowsRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_that_grpc_programs_take() {
        let table = [
            ("hubble-relay.kube-system.svc:80", Some("hubble-relay.kube-system.svc:80")),
            ("10.0.0.1:4245", Some("10.0.0.1:4245")),
            ("[::1]:4245", Some("[::1]:4245")),
            ("dns:///hubble-relay:80", Some("hubble-relay:80")),
            ("dns:hubble-relay:80", Some("hubble-relay:80")),
            ("passthrough:///hubble-relay:80", Some("hubble-relay:80")),
            ("", None),
            (":80", None),
            ("relay", None),
            ("relay:", None),
            ("relay:0", None),
            ("relay:99999", None),
            ("::1", None),
            ("::1:80", None),
            ("[::1]", None),
            ("user@relay:80", None),
            ("https://relay:443", None),
            ("unix:///var/run/relay.sock", None),
            ("relay:80/path", None),
            ("two words:80", None),
        ];
        for (given, wanted) in table {
            let parsed = Address::parse(given);
            assert_eq!(parsed.ok().map(|address| address.to_string()).as_deref(), wanted, "{given:?}");
        }
    }
}
