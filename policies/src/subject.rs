//! Whom a decision is about, as far as the process that decides knows.

use std::net::IpAddr;

/// What is known of an agent, a caller or a connection when a value is looked up. A selector that asks for something that
/// is not known does not match.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject<'a> {
    pub agent_id: Option<u64>,
    pub project_id: Option<u64>,
    /// SHA-256 of the credential, as in logs.
    pub token_hash: Option<&'a [u8; 32]>,
    pub client: Option<IpAddr>,
    /// As the agent says it, such as `v16.11.2`.
    pub agent_version: Option<&'a str>,
}
