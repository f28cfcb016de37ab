//! Tells the broker that this pod is there (`AgentRegistrar.Register`) and learns from the answer which generation the
//! broker is of. Runs beside the tunnels on the same road; nothing waits for it for long.

use crate::{
    backoff::Backoff,
    broker::{Road, connection::Connection},
    error,
};
use postern_wire::proto::gitlab::agent::{
    agent_registrar::rpc::{RegisterRequest, agent_registrar_client::AgentRegistrarClient},
    modshared::AgentMeta,
};
use rand::Rng;
use std::time::Duration;
use tokio::sync::watch;
use tonic::{Code, Status, codec::CompressionEncoding};
use tracing::{info, warn};

/// Brokers forget a pod that has been silent for longer than this and some slack.
const EVERY: Duration = Duration::from_secs(5 * 60);
const ANSWER: Duration = Duration::from_secs(30);
const CONNECTION_END: Duration = Duration::from_millis(200);

/// What is known of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Generation {
    /// It has not answered yet.
    #[default]
    Unknown,
    /// It does not know `Register`: before 16.5. It lists agents by their configuration stream.
    Old,
    /// It registers pods.
    Modern,
}

impl Generation {
    /// Idle tunnels that are enough: old brokers do not wait while an agent opens more.
    pub fn idle_tunnels(self) -> usize {
        if self == Self::Old { 10 } else { 2 }
    }
}

/// Registers on every new connection and every five minutes, for ever.
pub async fn keep_registered(road: Road, meta: AgentMeta, generation: watch::Sender<Generation>) {
    let pod_id = rand::rng().random_range(0..=i64::MAX);
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60), 2.0);
    loop {
        let connection = road.connection().await;
        let request = RegisterRequest { agent_meta: Some(meta.clone()), pod_id };
        let delay = match register(&connection, request).await {
            Ok(()) => {
                road.admitted();
                backoff.reset();
                generation.send_if_modified(|known| {
                    std::mem::replace(known, Generation::Modern) != Generation::Modern
                });
                EVERY
            }
            Err(status) if status.code() == Code::Unimplemented => {
                let news =
                    |known: &mut Generation| std::mem::replace(known, Generation::Old) != Generation::Old;
                if generation.send_if_modified(news) {
                    info!("the broker does not register pods; it is older than 16.5");
                }
                EVERY
            }
            Err(status) => {
                let known = connection.ends_within(CONNECTION_END, &status).await
                    || road.refused(&connection, &status);
                let delay = backoff.step();
                if !known {
                    warn!(error = %error::status(&status), retry_in = ?delay, "registration failed");
                }
                delay
            }
        };
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            // Another broker may be behind it, or one that has forgotten everything.
            () = road.another_than(&connection) => {}
        }
    }
}

async fn register(connection: &Connection, request: RegisterRequest) -> Result<(), Status> {
    let mut client =
        AgentRegistrarClient::new(connection.clone()).accept_compressed(CompressionEncoding::Gzip);
    let answer = tokio::time::timeout(ANSWER, client.register(request)).await;
    answer.map_err(|_| Status::deadline_exceeded("no answer"))?.map(|_| ())
}
