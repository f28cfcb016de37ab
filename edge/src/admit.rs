//! Everything that can be said before a broker is asked, for both roads alike.
//!
//! After `decide`, before `relay` and `proxy`. Reads the head and asks the limits; answers nothing itself.

use crate::decide::{Decision, Route};
use crate::limits::{Call, Counting, Limits, Permit};
use crate::listen::forwarded::Origin;
use crate::reply::Reason;
use crate::token::Caller;
use crate::transport::Connection;
use crate::upstream::Upstreams;
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use postern_wire::metadata::{HOP_PREFIX, INTERNAL_PREFIX};
use postern_wire::token::TokenKey;
use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

/// Who calls, and whether the request may go on.
pub struct Admission {
    pub token: Option<TokenKey>,
    /// The permit is held until the stream is over.
    pub verdict: Result<Permit, Reason>,
    /// To be awaited before a broker is asked: Redis' answer, where it decides. A tunnel has paid only when that is good, see
    /// [`Connection::paid`].
    pub counting: Option<Counting>,
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("token", &self.token)
            .field("verdict", &self.verdict)
            .field("counting", &self.counting.is_some())
            .finish()
    }
}

/// Judges one request by its head.
pub fn admit(
    upstreams: &Upstreams,
    limits: &Limits,
    connection: Option<&Connection>,
    decision: Decision,
    version: Version,
    headers: &HeaderMap,
    query: Option<&str>,
) -> Admission {
    let Caller { key: token, agent } = Caller::of(headers, query);
    let verdict = if !connection.is_none_or(|connection| connection.admits(headers)) {
        Err(Reason::Denied)
    } else if decision.route == Route::Agents && version != Version::HTTP_2 {
        Err(Reason::NeedsHttp2)
    } else if upstreams.of(decision.route).is_empty() {
        Err(Reason::NotServed)
    } else if token.is_none() && decision.route == Route::Agents {
        // Who may do what at a cluster without a token is for the broker to say; agents may do nothing.
        Err(Reason::NoToken)
    } else {
        let agent = agent.filter(|_| decision.route == Route::KubernetesApi);
        let client = connection.map(|connection| connection.origin(headers).client.ip());
        pay(limits, connection, client, decision, token, agent)
    };
    match verdict {
        Ok((permit, counting)) => Admission { token, verdict: Ok(permit), counting },
        Err(reason) => Admission { token, verdict: Err(reason), counting: None },
    }
}

fn pay(
    limits: &Limits,
    connection: Option<&Connection>,
    client: Option<IpAddr>,
    decision: Decision,
    token: Option<TokenKey>,
    agent: Option<u64>,
) -> Result<(Permit, Option<Counting>), Reason> {
    let must_pay = |token| connection.is_none_or(|connection| connection.must_pay(decision.purpose, token));
    let call = Call { client, token, agent, pays: token.as_ref().is_none_or(must_pay) };
    let admitted = limits.admit(&call, Instant::now())?;
    if let (true, None, Some(connection), Some(token)) = (call.pays, &admitted.1, connection, token) {
        connection.paid(decision.purpose, token);
    }
    Ok(admitted)
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
