//! The broker as GitLab's kas: Rails, Gitaly and Redis beside it, the first two as stand-ins in this process. What
//! agents, CI jobs, users and Rails itself get, and what becomes of it when one of them is unwell.

/// CI jobs, personal access tokens and browsers, through the edge to the cluster.
mod callers;
/// Commits, announced and polled, good and broken, and what Rails hears of them.
mod configuration;
/// Agents that come and go, told to Redis and to listeners.
mod events;
/// Rails and Gitaly down, slow, switched off or not themselves.
mod faults;
/// What one agent must not get of another.
mod isolation;
/// Rails calls the broker, and is told what was counted.
mod rails;
/// Tokens that are no longer good.
mod revocation;
/// A thousand agents of one project.
mod scale;
/// No secret is ever in a log.
mod secrets;
/// Whole configuration files, of both generations.
mod start;

use crate::harness::{
    AGENT, Field, PATIENCE, Process,
    http::{self, Client, full},
    until, within,
};
use http_body_util::BodyExt;
use serde_json::Value;
use std::time::Duration;
use tokio::{sync::watch, task::JoinHandle};

const FILE: &str = ".gitlab/agents/test/config.yaml";

/// The agent's word that it has the configuration of a commit.
async fn received(agent: &mut Process, commit: &str) -> Value {
    agent.logged("configuration received", |line| line["commit_id"] == commit).await
}

/// What a CI job says to reach the agent.
fn ci(token: &str) -> String {
    format!("Bearer ci:{AGENT}:{token}")
}

/// The status of a GET by whoever says this.
async fn status_of(field: &Field, authorization: &str) -> u16 {
    http::get(field, "/version", &[("authorization", authorization)]).await.status().as_u16()
}

/// A watch that somebody reads, whatever else happens.
struct Running {
    frames: watch::Receiver<u64>,
    reader: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Running {
    /// An endless answer of the cluster to whoever says this; returns once it streams.
    async fn open(field: &Field, authorization: &str) -> Self {
        let mut client = Client::new(field).await;
        let request = hyper::Request::get("/k8s-proxy/stream-forever?every=20")
            .header("host", "localhost")
            .header("authorization", authorization);
        let response = client.raw(request.body(full("")).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        let (count, frames) = watch::channel(0);
        let mut body = response.into_body();
        let reader = tokio::spawn(async move {
            let _client = client;
            while let Some(Ok(_)) = body.frame().await {
                count.send_modify(|count| *count += 1);
            }
        });
        let mut running = Self { frames, reader };
        running.goes_on().await;
        running
    }

    /// Waits until more has come, all of it from now on.
    async fn goes_on(&mut self) {
        let wanted = *self.frames.borrow() + 10;
        let more = self.frames.wait_for(|count| *count >= wanted);
        tokio::time::timeout(PATIENCE, more).await.expect("in time").expect("the watch goes on");
    }

    /// Waits until it is over.
    async fn ends(&mut self, patience: Duration) {
        within(patience, "the watch ends", async || self.reader.is_finished().then_some(())).await;
    }
}

/// A number among the broker's metrics.
async fn metric(field: &Field, name: &str) -> Option<i64> {
    let (_, text) = http::text(field.addresses.broker_probes, "/metrics").await?;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Waits until so many tunnels wait at the broker.
async fn idle_tunnels(field: &Field, wanted: impl Fn(i64) -> bool) {
    until("the number of idle tunnels", async || {
        metric(field, "postern_broker_tunnels_idle").await.filter(|count| wanted(*count)).map(|_| ())
    })
    .await;
}
