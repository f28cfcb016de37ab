//! The policies in force at this broker: what the documents say, and where they say nothing the configuration file.
//!
//! Before it: `config`, and files that change while the broker runs (`postern_policies::Live`). After it: pollers, clients of
//! GitLab and Gitaly, limits and streams, which ask for each value. It enforces nothing and counts nothing.

mod lifetime;
mod pace;

pub use lifetime::{Ages, Lifetime, STREAM_SHARE};
pub use pace::{Follower, Pacing};
pub(crate) use pace::{Followers, Rhythm};

use crate::{
    agent_limit::{LimitPolicy, RedisLost},
    config::{Config, Provider},
    rate::Rate,
};
use postern_policies::{CallRate, Live, PolicySet, Problems, Rules, Subject};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// Each look at a repository is up to so much earlier, unless a policy says otherwise.
const POLL_JITTER: u8 = 20;

/// The directory holds no policies that could be put in force.
#[derive(Debug, thiserror::Error)]
#[error("policies.directory {}", directory.display())]
pub struct PolicyError {
    directory: PathBuf,
    /// One problem a line.
    #[source]
    source: Problems,
}

/// Reads the directory of the configuration file. Blocking; at start, when a problem is an error.
///
/// # Errors
/// Every problem of every file.
pub fn open(directory: Option<&Path>) -> Result<Live, PolicyError> {
    let path = directory.unwrap_or(Path::new("")).to_owned();
    Live::open(directory).map_err(|source| PolicyError { directory: path, source })
}

/// An agent, as far as policies ask about it, for as long as anything of it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// Its id.
    pub agent_id: Option<u64>,
    /// That of its configuration project.
    pub project_id: Option<u64>,
    /// SHA-256 of its token.
    pub token_hash: [u8; 32],
    /// As it says it itself, such as `v16.11.2`.
    pub version: Option<Arc<str>>,
}

impl Who {
    /// The same, to look a value up.
    pub fn subject(&self) -> Subject<'_> {
        Subject {
            agent_id: self.agent_id,
            project_id: self.project_id,
            token_hash: Some(&self.token_hash),
            client: None,
            agent_version: self.version.as_deref(),
        }
    }
}

/// When to look at a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// At most so long between two looks.
    pub period: Duration,
    /// Each is up to this much of the period earlier, at random.
    pub jitter_percent: u8,
}

/// What is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// An agent's configuration.
    Configuration,
    /// Manifests.
    Manifests,
}

/// How long agents' streams live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// `None`: as long as somebody reads them.
    pub most: Option<Duration>,
    /// Up to this much of it is left out, at random; `None`: as the configuration file has it, a twentieth more or less.
    pub jitter_percent: Option<u8>,
}

/// What holds where no document says anything: the configuration file's values.
#[derive(Clone, Copy, Debug)]
pub struct Base {
    /// `agent.configuration.poll_period`.
    pub configuration: Duration,
    /// `agent.gitops.poll_period`.
    pub manifests: Duration,
    /// `agent.listen.max_connection_age`.
    pub max_age: Duration,
    /// Calls of one agent token.
    pub calls: LimitPolicy,
    /// `gitlab.api_rate_limit`.
    pub gitlab: Rate,
    /// `gitaly.global_api_rate_limit`.
    pub gitaly: Rate,
    /// `gitaly.per_server_api_rate_limit`.
    pub gitaly_per_server: Rate,
}

impl Base {
    fn of(config: &Config) -> Self {
        let agents = &config.agents;
        let calls = LimitPolicy {
            per_minute: agents.connections_per_token_per_minute,
            redis_lost: agents.redis_lost,
        };
        let (configuration, max_age) = (agents.poll_period, agents.max_connection_age);
        match &config.provider {
            Provider::GitLab(section) => Self {
                configuration,
                manifests: section.gitops_poll_period,
                max_age,
                calls,
                gitlab: section.rate,
                gitaly: section.gitaly_rate,
                gitaly_per_server: section.gitaly_rate_per_server,
            },
            // One follower looks at a local repository for both.
            Provider::Embedded { .. } => Self {
                configuration,
                manifests: configuration,
                max_age,
                calls,
                gitlab: Rate::default(),
                gitaly: Rate::default(),
                gitaly_per_server: Rate::default(),
            },
        }
    }
}

/// What is in force. A clone is the same.
#[derive(Clone, Debug)]
pub struct Policies {
    live: Live,
    changes: watch::Receiver<u64>,
    base: Arc<Base>,
}

impl Policies {
    /// Reads the directory that the configuration names. Blocking; at start, when a problem is an error.
    ///
    /// # Errors
    /// Every problem of every file.
    pub fn open(config: &Config) -> Result<Self, PolicyError> {
        Ok(Self::new(open(config.policies.as_deref())?, Base::of(config)))
    }

    /// These documents over this configuration.
    pub fn new(live: Live, base: Base) -> Self {
        Self { changes: live.changes(), live, base: Arc::new(base) }
    }

    /// The documents, and when they change.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Counts the changes that were put in force.
    pub fn generation(&self) -> u64 {
        *self.changes.borrow()
    }

    /// What a document says of someone, else what the configuration says.
    fn value<T: Copy>(&self, subject: &Subject<'_>, rules: impl Fn(&PolicySet) -> &Rules<T>) -> Option<T> {
        let set = self.live.set();
        rules(&set).find(subject).map(|ruled| *ruled.value)
    }

    /// How often someone's repository is looked at.
    pub fn pace(&self, followed: Followed, who: &Subject<'_>) -> Pace {
        let (period, base) = match followed {
            Followed::Configuration => {
                (self.value(who, |set| &set.polling.configuration), self.base.configuration)
            }
            Followed::Manifests => (self.value(who, |set| &set.polling.manifests), self.base.manifests),
        };
        let jitter = self.value(who, |set| &set.polling.jitter_percent);
        Pace { period: period.unwrap_or(base), jitter_percent: jitter.unwrap_or(POLL_JITTER) }
    }

    /// How long an agent's connections may live.
    pub fn max_age(&self, who: &Subject<'_>) -> Age {
        let most = self.value(who, |set| &set.connections.max_age).unwrap_or(self.base.max_age);
        let jitter_percent = self.value(who, |set| &set.connections.jitter_percent);
        Age { most: Some(most).filter(|most| !most.is_zero()), jitter_percent }
    }

    /// How many calls someone's token may begin.
    pub fn agent_calls(&self, who: &Subject<'_>) -> LimitPolicy {
        let per_minute = self.value(who, |set| &set.limits.agent_calls_per_minute);
        let redis_lost = self.value(who, |set| &set.limits.redis_lost).map(|lost| match lost {
            postern_policies::RedisLost::Local => RedisLost::Local,
            postern_policies::RedisLost::Deny => RedisLost::Deny,
            postern_policies::RedisLost::Allow => RedisLost::Allow,
        });
        LimitPolicy {
            per_minute: per_minute.unwrap_or(self.base.calls.per_minute),
            redis_lost: redis_lost.unwrap_or(self.base.calls.redis_lost),
        }
    }

    /// Calls to Rails.
    pub fn gitlab(&self) -> Rate {
        self.rate(|set| &set.backends.gitlab, self.base.gitlab)
    }

    /// Calls to all Gitaly servers together, and to one of them.
    pub fn gitaly(&self) -> (Rate, Rate) {
        (
            self.rate(|set| &set.backends.gitaly, self.base.gitaly),
            self.rate(|set| &set.backends.gitaly_per_server, self.base.gitaly_per_server),
        )
    }

    fn rate(&self, rules: impl Fn(&PolicySet) -> &Rules<CallRate>, base: Rate) -> Rate {
        let rate = self.value(&PolicySet::everybody(), rules);
        rate.map_or(base, |rate| Rate { per_second: rate.per_second, burst: rate.burst.get() })
    }
}

#[cfg(test)]
mod tests;
