//! All fields of all kinds as one table, whatever the types of their values.
//!
//! Under `explain` and `diff`, which go through it. A field that is missing here cannot be explained.

use super::Effective;
use super::said::Said;
use crate::rules::Header;
use crate::{Choice, Kind, PolicySet, Rule, Ruled, Rules, Subject};
use std::sync::Arc;

/// One field.
pub(crate) struct Field {
    pub(crate) kind: Kind,
    /// As in the documents, under `spec`.
    pub(crate) name: &'static str,
    pub(crate) of: for<'a> fn(&'a PolicySet) -> &'a dyn AnyRules,
}

/// What one document says of one field.
#[derive(Clone, Debug)]
pub(crate) struct Document<'a> {
    pub(crate) rule: &'a Rule,
    pub(crate) header: &'a Arc<Header>,
    pub(crate) value: String,
}

/// A [`Rules`] of any type.
pub(crate) trait AnyRules {
    fn is_empty(&self) -> bool;
    fn documents(&self) -> Vec<Document<'_>>;
    /// In force, and reported.
    fn effective(&self, subject: &Subject<'_>) -> (Option<Effective>, Option<Effective>);
}

impl<T: Said> AnyRules for Rules<T> {
    fn is_empty(&self) -> bool {
        Rules::is_empty(self)
    }

    fn documents(&self) -> Vec<Document<'_>> {
        let entries = self.entries().iter();
        entries
            .map(|one| Document { rule: &one.rule, header: &one.header, value: one.value.said() })
            .collect()
    }

    fn effective(&self, subject: &Subject<'_>) -> (Option<Effective>, Option<Effective>) {
        let Choice { in_force, reported } = self.choose(subject);
        let said =
            |Ruled { value, rule }: Ruled<'_, T>| Effective { value: value.said(), rule: rule.clone() };
        (in_force.map(said), reported.map(said))
    }
}

impl Field {
    /// A subject, as far as whoever looks the field up tells. Which addresses may connect is asked without one.
    pub(crate) fn asked<'a>(&self, subject: &Subject<'a>) -> Subject<'a> {
        let is_asked = (self.kind, self.name) != (Kind::AccessPolicy, "clients");
        Subject { client: subject.client.filter(|_| is_asked), ..*subject }
    }
}

macro_rules! fields {
    ($($kind:ident $part:ident { $($name:literal $field:ident,)* })*) => {
        &[$($(Field {
            kind: Kind::$kind,
            name: $name,
            of: |set| &set.$part.$field,
        },)*)*]
    };
}

/// In the order in which the kinds and their fields are described.
pub(crate) const FIELDS: &[Field] = fields! {
    LimitPolicy limits {
        "requestsPerToken" requests_per_token,
        "streamsPerToken" streams_per_token,
        "requestsPerIp" requests_per_ip,
        "streamsPerIp" streams_per_ip,
        "connectionsPerIp" connections_per_ip,
        "requestsPerAgent" requests_per_agent,
        "streamsPerAgent" streams_per_agent,
        "bodyBytes" body_bytes,
        "agentCallsPerMinute" agent_calls_per_minute,
        "redisLost" redis_lost,
    }
    PollingPolicy polling {
        "configuration.period" configuration,
        "manifests.period" manifests,
        "jitterPercent" jitter_percent,
    }
    ConnectionPolicy connections {
        "maxAge" max_age,
        "jitterPercent" jitter_percent,
        "grace" grace,
        "idle" idle,
        "ping" ping,
        "drain.grace" drain_grace,
        "drain.connectionsPerSecond" drain_per_second,
    }
    AccessPolicy access {
        "clients" clients,
        "kubernetesApi" callers,
    }
    BackendPolicy backends {
        "gitaly.rate" gitaly,
        "gitaly.perServer" gitaly_per_server,
        "gitlab.rate" gitlab,
    }
    TunnelPolicy tunnels {
        "idlePerAgent" idle_per_agent,
        "maxIdle" max_idle,
        "agentWait" agent_wait,
    }
};
