//! Everything that can be said before a broker is asked, for both roads alike.
//!
//! After `decide`, before `relay` and `proxy`. Reads the head and the token's bucket; answers nothing itself.

use crate::decide::{Decision, Route};
use crate::limits::{Limits, Permit};
use crate::listen::forwarded::Origin;
use crate::reply::Reason;
use crate::token::Caller;
use crate::transport::Connection;
use crate::upstream::Upstreams;
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use postern_wire::metadata::{HOP_PREFIX, INTERNAL_PREFIX};
use postern_wire::token::TokenKey;
use std::time::Instant;

/// Who calls, and whether the request may go on.
#[derive(Debug)]
pub struct Admission {
    pub token: Option<TokenKey>,
    /// The permit is held until the stream is over.
    pub verdict: Result<Permit, Reason>,
}

/// Judges one request by its head.
pub fn admit(
    upstreams: &Upstreams,
    limits: &Limits,
    connection: Option<&Connection>,
    decision: Decision,
    version: Version,
    headers: &HeaderMap,
) -> Admission {
    let token = Caller::of(headers).key();
    let verdict = if !connection.is_none_or(|connection| connection.admits(headers)) {
        Err(Reason::Denied)
    } else if decision.route == Route::Agents && version != Version::HTTP_2 {
        Err(Reason::NeedsHttp2)
    } else if upstreams.of(decision.route).is_empty() {
        Err(Reason::NotServed)
    } else {
        match token {
            Some(token) => pay(limits, connection, decision, token),
            // Who may do what without a token is for the broker and its cluster to say; agents may do nothing.
            None if decision.route == Route::Agents => Err(Reason::NoToken),
            None => Ok(Permit::free()),
        }
    };
    Admission { token, verdict }
}

fn pay(
    limits: &Limits,
    connection: Option<&Connection>,
    decision: Decision,
    token: TokenKey,
) -> Result<Permit, Reason> {
    if !connection.is_none_or(|connection| connection.must_pay(decision.purpose, &token)) {
        return Ok(Permit::free());
    }
    let permit = limits
        .decide(&token, Instant::now())
        .map_err(|refusal| Reason::TooMany { retry_after: refusal.retry_after })?;
    if let Some(connection) = connection {
        connection.paid(decision.purpose, token);
    }
    Ok(permit)
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
