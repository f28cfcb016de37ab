//! Opens what says who is who and where repositories are, as the config wants it: files on this machine, or GitLab's
//! Rails and Gitaly. `app.rs` comes before it; it connects to nothing yet.

use super::PROGRAM;
use crate::{
    auth::Identities,
    config::{Config, GitLabConfig, Provider},
    gitaly::{
        self, Gitaly,
        poller::{self, Pollers},
    },
    gitlab::{self, Rails, Remembered},
    identities::IdentitySource,
    policies::{Followed, Pacing, Policies},
    repositories::{Repositories, local},
};
use anyhow::Context;
use postern_certs::client::ClientTrust;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A kas' own for GitOps; a manifest repository that cannot be read is looked at less and less often.
const GITOPS_RETRY_MAX: Duration = Duration::from_secs(300);

/// Everything that is asked.
pub(super) struct Providers {
    pub(super) identities: Identities,
    /// Of agents' configurations.
    pub(super) repositories: Arc<Repositories>,
    /// What only GitLab offers.
    pub(super) gitlab: Option<GitLab>,
}

/// What only GitLab offers.
pub(super) struct GitLab {
    pub(super) rails: Arc<Remembered>,
    pub(super) gitaly: Arc<Gitaly>,
    /// Of manifest projects, which are looked at in periods of their own.
    pub(super) manifests: Arc<Pollers>,
    pub(super) manifest_periods: poller::Periods,
}

impl Providers {
    pub(super) fn open(
        config: &Config,
        policies: &Policies,
        stop: &CancellationToken,
        tasks: &TaskTracker,
    ) -> anyhow::Result<Self> {
        let local = local::Repositories::new(Pacing::of(policies), stop.clone(), tasks.clone());
        match &config.provider {
            Provider::Embedded { identities_file } => {
                let identities = IdentitySource::load(identities_file.clone())?;
                tasks.spawn(Arc::clone(&identities).keep_fresh(stop.clone()));
                let repositories = Arc::new(Repositories { local, gitaly: None });
                Ok(Self { identities: Identities::File(identities), repositories, gitlab: None })
            }
            Provider::GitLab(section) => {
                let gitlab = GitLab::open(section, policies, stop, tasks)?;
                let pollers = Pollers::new(
                    Arc::clone(&gitlab.gitaly),
                    poller::Periods::default(),
                    (Pacing::of(policies), Followed::Configuration),
                    stop.clone(),
                    tasks.clone(),
                );
                let repositories = Arc::new(Repositories { local, gitaly: Some(pollers) });
                let identities = Identities::GitLab(Arc::clone(&gitlab.rails));
                Ok(Self { identities, repositories, gitlab: Some(gitlab) })
            }
        }
    }
}

impl GitLab {
    fn open(
        section: &GitLabConfig,
        policies: &Policies,
        stop: &CancellationToken,
        tasks: &TaskTracker,
    ) -> anyhow::Result<Self> {
        let trust =
            ClientTrust::load(section.ca_certificate_file.clone()).context("gitlab.ca_certificate_file")?;
        if section.ca_certificate_file.is_some() {
            let (trust, stop) = (Arc::clone(&trust), stop.clone());
            tasks.spawn(trust.keep_fresh(stop));
        }
        let rails = Rails::new(gitlab::Config {
            address: section.address.clone(),
            authentication_secret_file: section.authentication_secret_file.clone(),
            trust: Arc::clone(&trust),
            program: PROGRAM,
            rate: policies.gitlab(),
            limits: gitlab::Limits::default(),
        })?;
        tasks.spawn(rails.keep_fresh(stop.clone()));
        let rails = Arc::new(Remembered::new(Arc::new(rails), section.periods, stop, tasks));
        let (global, per_server) = policies.gitaly();
        let options = gitaly::Options {
            user_agent: PROGRAM.to_string(),
            global,
            per_server,
            ..gitaly::Options::default()
        };
        // Gitaly of an installation with a CA of its own has a certificate of that CA, too.
        let gitaly = Arc::new(Gitaly::new(options, trust));
        let periods = poller::Periods { retry_max: GITOPS_RETRY_MAX, ..Default::default() };
        let manifests = Arc::new(Pollers::new(
            Arc::clone(&gitaly),
            periods,
            (Pacing::of(policies), Followed::Manifests),
            stop.clone(),
            tasks.clone(),
        ));
        tasks.spawn({
            let (policies, rails, gitaly) =
                (policies.clone(), Arc::clone(rails.rails()), Arc::clone(&gitaly));
            // Before the task begins, which may be a change later.
            let changes = policies.live().changes();
            let apply = move || {
                rails.set_rate(policies.gitlab());
                let (global, per_server) = policies.gitaly();
                gitaly.set_rates(global, per_server);
            };
            stop.clone().run_until_cancelled_owned(keep_rates(changes, apply))
        });
        Ok(Self { rails, gitaly, manifests, manifest_periods: periods })
    }
}

/// Calls are made as often as the policies in force say.
async fn keep_rates(mut changes: watch::Receiver<u64>, apply: impl Fn()) {
    loop {
        // At first, too: the policies may have changed since the rates were read.
        apply();
        if changes.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::Cell, pin::pin};

    #[tokio::test]
    async fn rates_that_change_before_they_are_kept_are_applied_too() {
        let (policies, changes) = watch::channel(1);
        let (seen, now) = (Cell::new(0), policies.subscribe());
        let mut keeping = pin!(keep_rates(changes, || seen.set(*now.borrow())));
        for generation in [2, 3] {
            policies.send_replace(generation);
            assert!(futures::poll!(&mut keeping).is_pending());
            assert_eq!(seen.get(), generation);
        }
        drop(policies);
        keeping.await;
    }
}
