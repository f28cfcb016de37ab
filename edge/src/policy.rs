//! The policies in force at this edge: what they say on top of `edge.yaml`.
//!
//! From `config` at start and from the file system later (`postern_policies::Live`); to `limits`. What no policy says is as
//! `edge.yaml` has it. Never touches a stream or refills a bucket.

use crate::config;
use crate::config::limits::Rate;
use postern_policies::{Live, PolicySet, Problems, RateLimit};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The directory does not hold policies that could be put in force.
#[derive(Debug, thiserror::Error)]
#[error("policies.directory {}", directory.display())]
pub struct PolicyError {
    directory: PathBuf,
    /// One problem per line.
    #[source]
    source: Problems,
}

/// What is in force.
#[derive(Debug)]
pub struct Policies {
    live: Live,
    /// The lowest layer.
    limits: config::Limits,
}

impl Policies {
    /// Reads the directory. Blocking; at start, when a problem is an error.
    pub fn load(directory: Option<&Path>, limits: &config::Limits) -> Result<Self, PolicyError> {
        let live = Live::open(directory).map_err(|source| PolicyError {
            directory: directory.unwrap_or(Path::new("")).to_owned(),
            source,
        })?;
        Ok(Self { live, limits: limits.clone() })
    }

    /// What the documents say.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// The limits in force for everybody: what the policies say, on top of `edge.yaml`.
    pub fn limits(&self) -> config::Limits {
        layered(&self.limits, &self.live.set())
    }

    /// Counts the changes that were put in force; the start is 1.
    pub fn generation(&self) -> u64 {
        self.live.status().generation
    }

    /// How long the present ones are in force.
    pub fn age(&self) -> Duration {
        self.live.status().age
    }

    /// How many problems keep the files as they are now from being in force.
    pub fn problems(&self) -> usize {
        let status = self.live.status();
        status.problems.len() + status.more_problems
    }

    /// For people.
    pub fn report(&self) -> Value {
        let status = self.live.status();
        json!({
            "directory": status.directory,
            "generation": status.generation,
            "fingerprint": status.fingerprint,
            "age_seconds": status.age.as_secs_f64(),
            "problems": status.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    }

    /// Reads the files again whenever they change, until `stop`. `apply` gets the limits that are in force from then on.
    pub async fn keep_fresh(&self, apply: impl Fn(&config::Limits), stop: CancellationToken) {
        let mut changes = self.live.changes();
        let applied = async {
            while changes.changed().await.is_ok() {
                apply(&self.limits());
            }
        };
        tokio::select! {
            () = self.live.keep_fresh(stop) => {}
            () = applied => {}
        }
    }
}

fn layered(base: &config::Limits, set: &PolicySet) -> config::Limits {
    let mut limits = base.clone();
    if let Some(ruled) = set.limits.requests_per_token.find(&PolicySet::everybody()) {
        limits.per_token.rate = ruled.value.map(|RateLimit { per_minute, burst }| Rate { per_minute, burst });
    }
    limits
}
