//! Everything that can be said before a broker is asked, for both roads alike.
//!
//! After `decide`, before `relay` and `proxy`. Reads the head and asks the limits; answers nothing itself.

use crate::decide::{Decision, Route};
use crate::limits::{Admitted, Call, Counting, Permit, Reported};
use crate::listen::forwarded::Origin;
use crate::proxy::Shared;
use crate::reply::Reason;
use crate::token::Caller;
use crate::transport::Connection;
use http::header::USER_AGENT;
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use postern_wire::metadata::{HOP_PREFIX, INTERNAL_PREFIX};
use postern_wire::token::TokenKey;
use std::fmt;
use std::num::NonZeroU64;
use std::time::Instant;

/// Who calls, and whether the request may go on.
pub struct Admission {
    pub token: Option<TokenKey>,
    /// Whom a caller of the Kubernetes API wants to reach.
    pub agent: Option<u64>,
    /// The permit is held until the stream is over.
    pub verdict: Result<Permit, Reason>,
    /// To be awaited before a broker is asked: Redis' answer, where it decides. A tunnel has paid only when that is good, see
    /// [`Connection::paid`].
    pub counting: Option<Counting>,
    /// Policies of `mode: report` that would have refused it. They are counted.
    pub reported: Vec<Reported>,
    /// The most bytes of its body.
    pub body: Option<NonZeroU64>,
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("token", &self.token)
            .field("verdict", &self.verdict)
            .field("counting", &self.counting.is_some())
            .field("reported", &self.reported)
            .finish_non_exhaustive()
    }
}

/// Judges one request by its head.
pub fn admit(
    shared: &Shared,
    connection: Option<&Connection>,
    decision: Decision,
    version: Version,
    headers: &HeaderMap,
    query: Option<&str>,
) -> Admission {
    let Caller { key: token, agent } = Caller::of(headers, query);
    let agent = agent.filter(|_| decision.route == Route::KubernetesApi);
    let mut admission = Admission {
        token,
        agent,
        verdict: Ok(Permit::free()),
        counting: None,
        reported: Vec::new(),
        body: None,
    };
    let served = if !connection.is_none_or(|connection| connection.admits(headers)) {
        Err(Reason::Denied)
    } else if decision.route == Route::Agents && version != Version::HTTP_2 {
        Err(Reason::NeedsHttp2)
    } else if shared.upstreams.of(decision.route).is_empty() {
        Err(Reason::NotServed)
    } else if token.is_none() && decision.route == Route::Agents {
        // Who may do what at a cluster without a token is for the broker to say; agents may do nothing.
        Err(Reason::NoToken)
    } else {
        from_where(shared, connection, headers, &mut admission)
    };
    let call = Call {
        client: connection.map(|connection| connection.origin(headers).client.ip()),
        token,
        agent,
        version: agent_version(decision, headers),
        pays: true,
    };
    admission.verdict = served.and_then(|()| pay(shared, connection, decision, call, &mut admission));
    admission.body = shared.limits.body_bytes(decision.route, decision.purpose, &call);
    for reported in &admission.reported {
        shared.metrics.report(reported);
    }
    admission
}

/// What policies say of the client's address.
fn from_where(
    shared: &Shared,
    connection: Option<&Connection>,
    headers: &HeaderMap,
    admission: &mut Admission,
) -> Result<(), Reason> {
    let Some(connection) = connection.filter(|_| shared.policies.are_configured()) else { return Ok(()) };
    let Some(client) = connection.judged(headers) else { return Ok(()) };
    admission.reported.extend(shared.policies.admits(client, admission.token.as_ref())?);
    Ok(())
}

fn pay(
    shared: &Shared,
    connection: Option<&Connection>,
    decision: Decision,
    call: Call<'_>,
    admission: &mut Admission,
) -> Result<Permit, Reason> {
    let must_pay = |token| connection.is_none_or(|connection| connection.must_pay(decision.purpose, token));
    let call = Call { pays: call.token.as_ref().is_none_or(must_pay), ..call };
    let Admitted { permit, counting, reported } = shared.limits.admit(&call, Instant::now())?;
    if let (true, None, Some(connection), Some(token)) = (call.pays, &counting, connection, call.token) {
        connection.paid(decision.purpose, token);
    }
    admission.counting = counting;
    admission.reported.extend(reported);
    Ok(permit)
}

/// As agents of every generation name themselves: `agentk/v14.1.0/abc grpc-go/1.39.0`, later `gitlab-agent/`.
fn agent_version(decision: Decision, headers: &HeaderMap) -> Option<&str> {
    if decision.route != Route::Agents {
        return None;
    }
    let named = headers.get(USER_AGENT)?.to_str().ok()?;
    let named = named.strip_prefix("gitlab-agent/").or_else(|| named.strip_prefix("agentk/"))?;
    named.split(['/', ' ']).next()
}

/// Headers that only our own programs may set, and those that say who is in front of us.
pub fn is_ours(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with(INTERNAL_PREFIX)
        || name.starts_with(HOP_PREFIX)
        || name.starts_with("x-forwarded-")
        || matches!(name, "forwarded" | "x-real-ip")
}

/// What the broker shall know about the far end, once all that [`is_ours`] is gone from the request: who asks, through
/// which trusted proxies, and whether in the clear.
pub fn forwarded(origin: &Origin) -> impl Iterator<Item = (&'static str, HeaderValue)> + use<> {
    origin.headers()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide;

    #[test]
    fn an_agents_version_is_read_as_agents_of_every_generation_say_it() {
        let agents =
            Decision { route: Route::Agents, ..decide::decide(Version::HTTP_2, "/a/b", &HeaderMap::new()) };
        for (said, wanted) in [
            ("agentk/v14.1.0/abcdef grpc-go/1.39.0", Some("v14.1.0")),
            ("gitlab-agent/v17.0.1/abcdef grpc-go/1.62.1", Some("v17.0.1")),
            ("gitlab-agent/v17.0.1", Some("v17.0.1")),
            ("grpc-go/1.62.1", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static(said))]);
            assert_eq!(agent_version(agents, &headers), wanted, "{said}");
        }
        let callers = Decision { route: Route::KubernetesApi, ..agents };
        let headers = HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static("agentk/v1/a"))]);
        assert_eq!(agent_version(callers, &headers), None);
    }

    #[test]
    fn headers_of_our_own_programs_are_not_believed_from_outside() {
        for name in
            ["x-postern-agent", "kas-hop-routing-agent-id", "x-forwarded-for", "forwarded", "x-real-ip"]
        {
            assert!(is_ours(&HeaderName::from_static(name)), "{name}");
        }
        for name in ["authorization", "x-gitlab-correlation-id", "impersonate-user", "via"] {
            assert!(!is_ours(&HeaderName::from_static(name)), "{name}");
        }
    }
}
