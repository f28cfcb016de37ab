//! Field by field: where each value goes, and what it cannot be set for. Under `validate`.

use super::{Document, Spec};
use crate::written::{
    AccessSpec, BackendSpec, CallRateSpec, CallerRuleSpec, ClientsSpec, ConnectionSpec, KubernetesApiSpec,
    LimitSpec, Match, Network, PollingSpec, Several, TunnelSpec,
};
use crate::{CallerRule, Callers, Clients, PolicySet, Rules};
use postern_yaml::{Given, Place, WordsOf};
use std::net::IpAddr;

const EVERY: &[&str] = &["agentIds", "tokenHashes", "projectIds", "clientCidrs", "agentVersions"];
/// Callers have no version, and a token's addresses are judged before anything else is known of it.
const CALLERS: &[&str] = &["agentIds", "tokenHashes", "projectIds", "clientCidrs"];
/// Of agents alone: the broker that polls or holds a tunnel has no client before it.
const AGENTS: &[&str] = &["agentIds", "tokenHashes", "projectIds", "agentVersions"];

impl Spec for LimitSpec {
    const ASKS: &'static [&'static str] = EVERY;
    const REPORTS: bool = true;
    const SETS: &'static str = "requestsPerToken, streamsPerToken, requestsPerIp, streamsPerIp, connectionsPerIp, \
                                requestsPerAgent, streamsPerAgent, bodyBytes, agentCallsPerMinute, redisLost";

    fn selector(&self) -> &Option<Given<Match>> {
        &self.selector
    }

    fn put(&self, set: &mut PolicySet, document: &mut Document<'_>) {
        let limits = &mut set.limits;
        if let Some(place) = place(&self.connections_per_ip) {
            let wanted =
                "it is counted when nothing but the address is known; clientCidrs alone can be asked for";
            document.only(place, &["clientCidrs"], false, wanted);
        }
        let at_the_edge = [
            place(&self.requests_per_token),
            place(&self.streams_per_token),
            place(&self.requests_per_ip),
            place(&self.streams_per_ip),
            place(&self.requests_per_agent),
            place(&self.streams_per_agent),
            place(&self.body_bytes),
        ];
        for place in at_the_edge.into_iter().flatten() {
            let wanted = "edges count it, and know no projects; agentIds, tokenHashes, clientCidrs and agentVersions can be asked for";
            document.only(place, &["agentIds", "tokenHashes", "clientCidrs", "agentVersions"], true, wanted);
        }
        for place in [place(&self.agent_calls_per_minute), place(&self.redis_lost)].into_iter().flatten() {
            let wanted = "it is about agents' calls to brokers; agentIds, tokenHashes, projectIds and agentVersions can be asked for";
            document.only(place, AGENTS, true, wanted);
            document.enforced(place, "brokers report no calls; enforce is wanted");
        }
        document.set(&mut limits.requests_per_token, &self.requests_per_token, |rate| Some(rate.0));
        document.set(&mut limits.streams_per_token, &self.streams_per_token, |count| Some(count.narrow()));
        document.set(&mut limits.requests_per_ip, &self.requests_per_ip, |rate| Some(rate.0));
        document.set(&mut limits.streams_per_ip, &self.streams_per_ip, |count| Some(count.narrow()));
        document.set(&mut limits.connections_per_ip, &self.connections_per_ip, |count| Some(count.narrow()));
        document.set(&mut limits.requests_per_agent, &self.requests_per_agent, |rate| Some(rate.0));
        document.set(&mut limits.streams_per_agent, &self.streams_per_agent, |count| Some(count.narrow()));
        document.set(&mut limits.body_bytes, &self.body_bytes, |bytes| Some(bytes.0));
        document.set(&mut limits.agent_calls_per_minute, &self.agent_calls_per_minute, |calls| {
            Some(calls.narrow())
        });
        document.set(&mut limits.redis_lost, &self.redis_lost, |word| Some(word.0));
    }
}

impl Spec for PollingSpec {
    const ASKS: &'static [&'static str] = AGENTS;
    const SETS: &'static str = "configuration.period, manifests.period, jitterPercent";

    fn selector(&self) -> &Option<Given<Match>> {
        &self.selector
    }

    fn put(&self, set: &mut PolicySet, document: &mut Document<'_>) {
        let polling = &mut set.polling;
        let configuration = &Given::or_empty(&self.configuration).period;
        document.set(&mut polling.configuration, configuration, |period| Some(period.0));
        let manifests = &Given::or_empty(&self.manifests).period;
        document.set(&mut polling.manifests, manifests, |period| Some(period.0));
        document.set(&mut polling.jitter_percent, &self.jitter_percent, |share| u8::try_from(share.0).ok());
    }
}

impl Spec for ConnectionSpec {
    const ASKS: &'static [&'static str] = EVERY;
    const SETS: &'static str =
        "maxAge, jitterPercent, grace, idle, ping, drain.grace, drain.connectionsPerSecond";

    fn selector(&self) -> &Option<Given<Match>> {
        &self.selector
    }

    fn put(&self, set: &mut PolicySet, document: &mut Document<'_>) {
        let connections = &mut set.connections;
        if let Some(Given { place, .. }) = &self.drain {
            let wanted = "a process drains as a whole; a document without match and canary is wanted for it";
            document.only(place, &[], false, wanted);
        }
        for place in [place(&self.grace), place(&self.idle), place(&self.ping)].into_iter().flatten() {
            let wanted = "an edge knows address and token of a connection; tokenHashes and clientCidrs can be asked for";
            document.only(place, &["tokenHashes", "clientCidrs"], true, wanted);
        }
        document.set(&mut connections.max_age, &self.max_age, |age| Some(age.0));
        document
            .set(&mut connections.jitter_percent, &self.jitter_percent, |share| u8::try_from(share.0).ok());
        document.set(&mut connections.grace, &self.grace, |grace| Some(grace.0));
        document.set(&mut connections.idle, &self.idle, |idle| Some(idle.0));
        document.set(&mut connections.ping, &self.ping, |ping| Some(ping.0));
        let drain = Given::or_empty(&self.drain);
        document.set(&mut connections.drain_grace, &drain.grace, |grace| Some(grace.0));
        document.set(&mut connections.drain_per_second, &drain.per_second, |count| Some(count.narrow()));
    }
}

impl Spec for AccessSpec {
    const ASKS: &'static [&'static str] = CALLERS;
    const REPORTS: bool = true;
    const SETS: &'static str = "clients, kubernetesApi";

    fn selector(&self) -> &Option<Given<Match>> {
        &self.selector
    }

    fn put(&self, set: &mut PolicySet, document: &mut Document<'_>) {
        let access = &mut set.access;
        if let Some(Given { place, .. }) = &self.clients {
            let wanted = "addresses are judged before anything but the token is known; tokenHashes alone can be asked for";
            document.only(place, &["tokenHashes"], true, wanted);
        }
        document.set(&mut access.clients, &self.clients, |clients| Some(addresses(&clients.spec)));
        document.set(&mut access.callers, &self.kubernetes_api, |api| callers(&api.spec));
    }
}

/// Where a field stands, if it does.
fn place<T>(given: &Option<Given<T>>) -> Option<&Place> {
    given.as_ref().map(|given| &given.place)
}

fn addresses(written: &ClientsSpec) -> Clients {
    let list = |given: &Option<Given<Several<Network>>>| -> Vec<(IpAddr, u8)> {
        let networks = given.iter().flat_map(|given| &given.value.0);
        networks.map(|network| (network.0.address(), network.0.length())).collect()
    };
    Clients { allow: list(&written.allow), deny: list(&written.deny) }
}

/// `None`: something is missing, which was reported.
fn callers(written: &KubernetesApiSpec) -> Option<Callers> {
    let WordsOf(otherwise) = written.otherwise.as_ref()?.value;
    let rules = written.rules.iter().flat_map(|given| &given.value);
    let rules = rules.map(|rule| caller_rule(&rule.spec, rule.line)).collect::<Option<_>>()?;
    Some(Callers { rules, otherwise })
}

fn caller_rule(written: &CallerRuleSpec, line: usize) -> Option<CallerRule> {
    fn list<T, U>(given: &Option<Given<Several<T>>>, meant: impl Fn(&T) -> U) -> Vec<U> {
        given.iter().flat_map(|given| &given.value.0).map(meant).collect()
    }
    let WordsOf(effect) = written.effect.as_ref()?.value;
    Some(CallerRule {
        effect,
        access: list(&written.access, |access| access.0.word().to_owned()),
        user_ids: list(&written.user_ids, |id| id.0),
        project_ids: list(&written.project_ids, |id| id.0),
        verbs: list(&written.verbs, |verb| verb.0.word().to_owned()),
        resources: list(&written.resources, |resource| resource.0.clone()),
        namespaces: list(&written.namespaces, |namespace| namespace.0.clone()),
        paths: list(&written.paths, |path| path.0.clone()),
        line,
    })
}

impl Spec for BackendSpec {
    const ASKS: &'static [&'static str] = &[];
    const SETS: &'static str = "gitaly.rate, gitaly.perServer, gitlab.rate";

    fn selector(&self) -> &Option<Given<Match>> {
        &self.selector
    }

    fn put(&self, set: &mut PolicySet, document: &mut Document<'_>) {
        let backends = &mut set.backends;
        let rate = |rate: &CallRateSpec| Some(rate.0);
        let gitaly = Given::or_empty(&self.gitaly);
        document.set(&mut backends.gitaly, &gitaly.rate, rate);
        document.set(&mut backends.gitaly_per_server, &gitaly.per_server, rate);
        document.set(&mut backends.gitlab, &Given::or_empty(&self.gitlab).rate, rate);
    }
}

impl Spec for TunnelSpec {
    const ASKS: &'static [&'static str] = AGENTS;
    const SETS: &'static str = "idlePerAgent, maxIdle, agentWait";

    fn selector(&self) -> &Option<Given<Match>> {
        &self.selector
    }

    fn put(&self, set: &mut PolicySet, document: &mut Document<'_>) {
        let tunnels = &mut set.tunnels;
        if let Some(place) = place(&self.agent_wait) {
            let wanted = "the agent is not there, and only its id and project are known; agentIds and projectIds can be asked for";
            document.only(place, &["agentIds", "projectIds"], false, wanted);
        }
        document.set(&mut tunnels.idle_per_agent, &self.idle_per_agent, |count| Some(count.narrow()));
        document.set(&mut tunnels.max_idle, &self.max_idle, |idle| Some(idle.0));
        document.set(&mut tunnels.agent_wait, &self.agent_wait, |wait| Some(wait.0));
    }
}

/// All rules, ready to be asked.
pub(super) fn sealed(mut set: PolicySet) -> PolicySet {
    fn seal<T>(rules: &mut Rules<T>) {
        *rules = std::mem::take(rules).seal();
    }
    let PolicySet { limits, polling, connections, access, backends, tunnels } = &mut set;
    seal(&mut limits.requests_per_token);
    seal(&mut limits.streams_per_token);
    seal(&mut limits.requests_per_ip);
    seal(&mut limits.streams_per_ip);
    seal(&mut limits.connections_per_ip);
    seal(&mut limits.requests_per_agent);
    seal(&mut limits.streams_per_agent);
    seal(&mut limits.body_bytes);
    seal(&mut limits.agent_calls_per_minute);
    seal(&mut limits.redis_lost);
    seal(&mut polling.configuration);
    seal(&mut polling.manifests);
    seal(&mut polling.jitter_percent);
    seal(&mut connections.max_age);
    seal(&mut connections.jitter_percent);
    seal(&mut connections.grace);
    seal(&mut connections.idle);
    seal(&mut connections.ping);
    seal(&mut connections.drain_grace);
    seal(&mut connections.drain_per_second);
    seal(&mut access.clients);
    seal(&mut access.callers);
    seal(&mut backends.gitaly);
    seal(&mut backends.gitaly_per_server);
    seal(&mut backends.gitlab);
    seal(&mut tunnels.idle_per_agent);
    seal(&mut tunnels.max_idle);
    seal(&mut tunnels.agent_wait);
    set
}
