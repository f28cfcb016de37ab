//! What is used of the limits right now, for the admin listener.
//!
//! Beside `limits`: reads its tables, a part at a time. Numbers only; tokens by the first digits of their hash.

use super::Inner;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Tokens that are named.
const TOP: usize = 10;

pub(super) fn of(limits: &Inner, now: u64) -> Value {
    let (mut good, mut failed, mut streams) = (0u64, 0u64, 0u64);
    let mut top = BinaryHeap::new();
    limits.tokens.each(|id, token| {
        good += u64::from(token.good);
        failed += u64::from(token.failed_until > now);
        streams += u64::from(token.streams);
        // By what it has used of its rate, then by what it has open.
        let used = token.level.full_at().saturating_sub(now);
        if used > 0 || token.streams > 0 {
            top.push(Reverse((used, token.streams, [id[0], id[1], id[2], id[3]])));
            if top.len() > TOP {
                top.pop();
            }
        }
    });
    let top = top.into_sorted_vec().into_iter().map(|Reverse((used, streams, id))| {
        json!({
            "token": format!("{:08x}", u32::from_be_bytes(id)),
            "streams": streams,
            "bucket_full_in_ms": used / 1_000_000,
        })
    });
    let top: Vec<Value> = top.collect();
    let (mut blocked, mut connections, mut waiting) = (0u64, 0u64, 0u64);
    limits.addresses.each(|_, address| {
        blocked += u64::from(address.blocked_until > now);
        connections += u64::from(address.connections);
        waiting += u64::from(address.waiting);
    });
    let mut towards = 0u64;
    limits.agents.each(|_, agent| towards += u64::from(agent.streams));
    json!({
        "tokens": {
            "tracked": limits.tokens.len(), "room": limits.tokens.capacity(),
            "good": good, "failed": failed, "streams": streams, "top": top,
        },
        "addresses": {
            "tracked": limits.addresses.len(), "room": limits.addresses.capacity(),
            "blocked": blocked, "connections": connections, "waiting": waiting,
        },
        "agents": {
            "tracked": limits.agents.len(), "room": limits.agents.capacity(), "streams": towards,
        },
        "fleet": limits.fleet.as_ref().map(|fleet| fleet.report()),
    })
}
