//! Whether a broker is there: asked over and over, from discovery on until its last stream is gone.
//!
//! Beside the requests, which tell, too. With a `health` port configured the broker's own readiness decides; without,
//! that the port which serves says something. Never touches a connection that carries streams.

use super::{Broker, PROBE_EVERY, PROBE_WITHIN};
use crate::config::upstreams::Health;
use crate::decide::Route;
use crate::relay::pool;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// `HTTP/1.1 200`, of which the rest does not matter.
const STATUS_LINE: usize = 12;

/// Probes until nobody has any use for the broker.
pub(super) async fn watch(broker: Arc<Broker>) {
    let health = broker.settings.configured.health.as_ref();
    let (pause, limit) = match health {
        Some(health) => (health.every, health.within),
        None => (PROBE_EVERY, broker.settings.connect.min(PROBE_WITHIN)),
    };
    let mut every = interval(pause);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if broker.is_gone() && broker.streams() == 0 {
            return;
        }
        let answers = async {
            match (health, broker.settings.route) {
                (Some(health), _) => ready(&broker, health).await,
                // A process that hangs takes connections, too; HTTP/2 it does not speak.
                (None, Route::Agents) => pool::answers(&broker).await,
                (None, Route::KubernetesApi) => broker.tcp().await.is_ok(),
            }
        };
        let answered = timeout(limit, answers).await;
        if answered.is_err() {
            broker.note_error("no answer to a probe");
        }
        broker.set_answering(answered.is_ok());
        broker.set_up(answered == Ok(true));
    }
}

/// Whether the broker calls itself ready.
async fn ready(broker: &Broker, health: &Health) -> bool {
    match ask(SocketAddr::new(broker.address.ip(), health.port), &health.path).await {
        Ok(200..=299) => true,
        Ok(status) => {
            broker.note_error(format!("{} on port {} says {status}", health.path, health.port));
            false
        }
        Err(error) => {
            broker.note_error(format!("{} on port {}: {error}", health.path, health.port));
            false
        }
    }
}

/// The status of one answer; its body is left unread.
async fn ask(address: SocketAddr, path: &str) -> std::io::Result<u16> {
    let mut tcp = TcpStream::connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: postern-edge\r\nConnection: close\r\n\r\n"
    );
    tcp.write_all(request.as_bytes()).await?;
    let mut line = [0; STATUS_LINE];
    tcp.read_exact(&mut line).await?;
    let status =
        line.strip_prefix(b"HTTP/1.").and_then(|rest| std::str::from_utf8(&rest[2..]).ok()?.parse().ok());
    status.ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "not an HTTP answer"))
}
