//! The broker (`kas`): agents connect to it, callers reach clusters through it.
//!
//! A request's way through the modules is the order in which they are listed.

pub mod app;
pub mod config;

// accept
pub mod listeners;

// decide
pub mod agent_limit;
pub mod auth;
pub mod identities;
pub mod policies;

// features, named as upstream names them
pub mod agent_configuration;
pub mod agent_registrar;
pub mod agent_reports;
pub mod agent_tracker;
pub mod api;
pub mod gitlab_access;
pub mod gitops;
pub mod kubernetes_api;
pub mod usage;

// route
pub mod fleet;
pub mod tunnel;

// account
pub mod events;
// what the features share
pub mod drain;
pub mod outgoing;
pub mod per_agent;
pub mod status_text;

// neighbours
pub mod gitaly;
pub mod gitlab;
pub mod rate;
pub mod repositories;

pub mod error;
pub mod observability;
pub mod spans;

use postern_redis as redis;

#[cfg(test)]
mod processor_time;
#[cfg(test)]
mod stage;
