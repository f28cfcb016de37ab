//! `limits`: how much of the edge one token, one address and everybody together may use.

use super::Problems;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;

/// As kas' own `connections_per_token_per_minute`.
const DEFAULT_REQUESTS_PER_MINUTE: u32 = 40_000;
/// About 20 MiB when full.
const DEFAULT_TRACKED_TOKENS: u32 = 100_000;
/// An idle connection costs some 50 KiB; one whose bodies nobody takes may hold up to its window.
const DEFAULT_CONNECTIONS: u32 = 20_000;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limits {
    pub per_minute: NonZeroU32,
    pub burst: NonZeroU32,
    /// Tokens whose use is remembered; the stalest is forgotten first.
    pub tracked_tokens: usize,
    /// Connections in this process, of everybody together.
    pub connections: usize,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileLimits {
    requests_per_token_per_minute: Option<u32>,
    burst: Option<u32>,
    tracked_tokens: Option<u32>,
    connections: Option<u32>,
}

impl FileLimits {
    pub(super) fn meant(self, found: &mut Problems) -> Limits {
        let per_minute = found.positive(
            "limits.requests_per_token_per_minute",
            self.requests_per_token_per_minute.unwrap_or(DEFAULT_REQUESTS_PER_MINUTE),
        );
        // Without a burst of its own a token may use its minute at once, as under kas' counter per minute.
        let burst = found.positive("limits.burst", self.burst.unwrap_or(per_minute.get()));
        let tracked_tokens =
            found.positive("limits.tracked_tokens", self.tracked_tokens.unwrap_or(DEFAULT_TRACKED_TOKENS));
        let connections =
            found.positive("limits.connections", self.connections.unwrap_or(DEFAULT_CONNECTIONS));
        Limits {
            per_minute,
            burst,
            tracked_tokens: tracked_tokens.get() as usize,
            connections: connections.get() as usize,
        }
    }
}
