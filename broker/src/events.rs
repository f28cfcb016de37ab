//! What agents do, told to browsers: through Rails' ActionCable, or as server-sent events of the broker's API.

use crate::redis;

/// Where events go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Absent: Rails hears nothing.
    pub action_cable: Option<ActionCable>,
    /// Whether the API serves them.
    pub server_sent_events: bool,
}

/// The Redis that Rails' cable adapter subscribes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActionCable {
    /// Often another one than kas' own.
    pub redis: redis::Config,
    /// As in Rails' cable configuration.
    pub channel_prefix: Option<String>,
}
