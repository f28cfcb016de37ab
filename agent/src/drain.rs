//! How the agent ends: not ready, idle tunnels called off, running requests finished until a deadline, exit.
//! A second signal ends it at once.

use std::{io, time::Duration};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Kubernetes kills after 30 s by default; five are left for everything else.
pub const DEADLINE: Duration = Duration::from_secs(25);

/// SIGTERM and SIGINT.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over; from here on they do not kill the process by themselves.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Returns at the first signal. The second ends the process.
    pub async fn first(mut self) {
        self.next().await;
        tokio::spawn(async move {
            self.next().await;
            warn!("second signal: ending at once");
            std::process::exit(1);
        });
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Drains: `draining` makes the agent unready and the pool let go of idle tunnels; `requests` returns when the last
/// request is done.
pub async fn drain(draining: &CancellationToken, requests: impl Future, deadline: Duration) {
    info!(deadline = ?deadline, "draining");
    draining.cancel();
    match tokio::time::timeout(deadline, requests).await {
        Ok(_) => info!("drained"),
        Err(_) => warn!("requests were cut: they did not finish in time"),
    }
}
