//! What the admin listener tells about brokers. No secrets, and nothing of requests.

use super::{Broker, Upstreams};
use crate::config::upstreams::Protocol;
use crate::decide::Route;
use crate::upstream::discover::describe;
use serde_json::{Value, json};

impl Upstreams {
    /// Every broker of every route, as it stands: for people and scripts, read when somebody asks.
    pub fn report(&self) -> Value {
        let routes = [Route::Agents, Route::KubernetesApi].map(|route| {
            let group = self.of(route);
            let configured = &group.settings.configured;
            let now = group.settings.now();
            let known = group.brokers();
            let gone = group.gone();
            let brokers: Vec<_> = known.iter().chain(&gone).map(|broker| about(broker, now)).collect();
            let protocol = match (configured.protocol, route) {
                (Protocol::Clear, Route::Agents) => "h2c",
                (Protocol::Tls, Route::Agents) => "h2s",
                (Protocol::Clear, Route::KubernetesApi) => "http",
                (Protocol::Tls, Route::KubernetesApi) => "https",
                (Protocol::Ws, _) => "ws",
                (Protocol::Wss, _) => "wss",
            };
            let report = json!({
                "source": describe(&configured.source),
                "protocol": protocol,
                "max_streams": configured.max_streams,
                "max_pending": configured.max_pending,
                "brokers": brokers,
            });
            (route.name().to_owned(), report)
        });
        Value::Object(routes.into_iter().collect())
    }
}

fn about(broker: &Broker, now: u64) -> Value {
    let record = broker.record();
    json!({
        "address": broker.address.to_string(),
        "up": broker.is_up(),
        "leaving": broker.is_leaving(now),
        "ejected": broker.is_ejected(now),
        "ejections": record.ejected,
        "gone": broker.is_gone(),
        "share_percent": broker.share(now) / 10,
        "streams": broker.streams(),
        "pending": broker.pending(),
        "since_seconds": now.saturating_sub(record.up_changed.max(1)) / 1000,
        "last_error": record.last_error,
    })
}
