//! The policy files of a directory, in force while they change.
//!
//! From `config` at start and from the file system later; to `limits`, through one closure. A bad change keeps the last
//! good one. What no policy says is as `edge.yaml` has it. Never touches a stream or refills a bucket.

use crate::config;
use crate::config::limits::Rate;
use postern_certs::watch::FileWatch;
use postern_policies::{Policy, Problems, RateLimit, load_dir};
use serde_json::{Value, json};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Without a change that could be seen: a network file system that was away comes back.
const RETRY: Duration = Duration::from_secs(30);

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
    /// `None`: only `edge.yaml`.
    directory: Option<PathBuf>,
    /// The lowest layer.
    limits: config::Limits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    policy: Policy,
    generation: u64,
    since: Instant,
    /// What is wrong with the files as they are now.
    problems: Vec<String>,
}

impl Policies {
    /// Reads the directory. Blocking; at start, when a problem is an error.
    pub fn load(directory: Option<&Path>, limits: &config::Limits) -> Result<Self, PolicyError> {
        let policy = match directory {
            None => Policy::default(),
            Some(directory) => load_dir(directory)
                .map_err(|source| PolicyError { directory: directory.to_owned(), source })?,
        };
        Ok(Self {
            directory: directory.map(Path::to_owned),
            limits: limits.clone(),
            state: Mutex::new(State { policy, generation: 1, since: Instant::now(), problems: Vec::new() }),
        })
    }

    /// The limits in force: what the policies say, on top of `edge.yaml`.
    pub fn limits(&self) -> config::Limits {
        layered(&self.limits, &self.state().policy)
    }

    /// Counts the changes that were put in force; the start is 1.
    pub fn generation(&self) -> u64 {
        self.state().generation
    }

    /// How long the present ones are in force.
    pub fn age(&self) -> Duration {
        self.state().since.elapsed()
    }

    /// How many problems keep the files as they are now from being in force.
    pub fn problems(&self) -> usize {
        self.state().problems.len()
    }

    /// For people: `generation`, `age_seconds`, what is in force and since which document, and what is wrong now.
    pub fn report(&self) -> Value {
        let state = self.state();
        let limits = layered(&self.limits, &state.policy);
        let rule = state.policy.requests_per_token.as_ref().map(|limit| limit.rule.as_str());
        json!({
            "directory": self.directory.as_ref().map(|directory| directory.display().to_string()),
            "generation": state.generation,
            "age_seconds": state.since.elapsed().as_secs_f64(),
            "requestsPerToken": {
                "perMinute": limits.per_token.rate.map(|rate| rate.per_minute),
                "burst": limits.per_token.rate.map(|rate| rate.burst),
                "rule": rule.unwrap_or("edge.yaml: limits"),
            },
            "problems": state.problems,
        })
    }

    /// Reads the files again whenever they change, until `stop`. `apply` gets the limits that are in force from then on.
    pub async fn keep_fresh(&self, apply: impl Fn(&config::Limits), stop: CancellationToken) {
        let Some(directory) = &self.directory else { return };
        let mut complaint = String::new();
        loop {
            // Watched first, so that no change falls between the look and the watch; anew each time, for files come.
            let mut watch = match FileWatch::new(watched(directory)) {
                Ok(watch) => watch,
                Err(error) => {
                    tracing::error!(directory = %directory.display(), %error, "policies cannot be watched; changes need a restart");
                    return;
                }
            };
            let failed = match load_dir(directory) {
                Ok(policy) => {
                    if self.put_in_force(policy) {
                        let limits = self.limits();
                        apply(&limits);
                        tracing::info!(
                            generation = self.generation(),
                            requests_per_token_per_minute =
                                limits.per_token.rate.map(|rate| rate.per_minute.get()),
                            burst = limits.per_token.rate.map(|rate| rate.burst.get()),
                            "policies reloaded"
                        );
                    } else if !complaint.is_empty() {
                        tracing::info!("the policies are as they were when they were last good");
                    }
                    complaint.clear();
                    false
                }
                Err(problems) => {
                    self.state().problems = problems.0.iter().map(ToString::to_string).collect();
                    let said = problems.to_string();
                    if said != complaint {
                        for problem in &problems.0 {
                            tracing::error!(%problem, "bad policy; the last good ones stay in force");
                        }
                        complaint = said;
                    }
                    true
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = watch.changed() => {}
                () = tokio::time::sleep(RETRY), if failed => {}
            }
        }
    }

    /// Whether that changed anything.
    fn put_in_force(&self, policy: Policy) -> bool {
        let mut state = self.state();
        state.problems.clear();
        if state.policy == policy {
            return false;
        }
        state.policy = policy;
        state.generation += 1;
        state.since = Instant::now();
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What changes when a policy does: the files, the directory's own entries, and the link that Kubernetes swaps.
fn watched(directory: &Path) -> Vec<PathBuf> {
    let mut paths = vec![directory.to_owned(), directory.join("..data")];
    if let Ok(entries) = std::fs::read_dir(directory) {
        let files = entries.flatten().map(|entry| entry.path());
        paths.extend(files.filter(|path| {
            path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
        }));
    }
    paths
}

fn layered(base: &config::Limits, policy: &Policy) -> config::Limits {
    let mut limits = base.clone();
    if let Some(limit) = &policy.requests_per_token {
        let rate = Rate { per_minute: per_minute(&limit.rate), burst: limit.rate.burst() };
        limits.per_token.rate = Some(rate);
    }
    limits
}

fn per_minute(rate: &RateLimit) -> NonZeroU32 {
    // The interval was cut to whole nanoseconds: the nearest number is the one that was written.
    let interval = rate.interval().as_nanos();
    let count = (60_000_000_000 + interval / 2) / interval;
    NonZeroU32::new(u32::try_from(count).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::Arc;
    use tempfile::TempDir;
    use tokio::sync::mpsc;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn base() -> config::Limits {
        let text = "listen: [{address: '127.0.0.1:0'}]\nupstreams: {agents: {addresses: ['kas:8150']}}\n\
                    limits: {requests_per_token_per_minute: 60, burst: 6}\n";
        config::Config::meant(serde_yaml::from_str(text).unwrap(), Path::new("")).unwrap().limits
    }

    fn document(rate: &str) -> String {
        format!(
            "apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {{name: ours}}\nspec:\n  requestsPerToken: {rate}\n"
        )
    }

    fn numbers(limits: &config::Limits) -> (u32, u32) {
        let rate = limits.per_token.rate.unwrap();
        (rate.per_minute.get(), rate.burst.get())
    }

    #[test]
    fn what_no_policy_says_is_as_edge_yaml_has_it() {
        let policies = Policies::load(None, &base()).unwrap();
        assert_eq!(policies.limits(), base());
        assert_eq!(policies.report()["requestsPerToken"]["rule"], "edge.yaml: limits");
    }

    #[test]
    fn written_rates_come_out_as_they_were_written() {
        for (written, meant) in [
            ("{perMinute: 40000}", (40_000, 40_000)),
            ("{perMinute: 7}", (7, 7)),
            ("{perMinute: 59999}", (59_999, 59_999)),
            ("{rate: 100, burst: 500}", (6000, 500)),
            ("{rate: 3, burst: 1}", (180, 1)),
        ] {
            let directory = TempDir::new().unwrap();
            fs::write(directory.path().join("a.yaml"), document(written)).unwrap();
            let policies = Policies::load(Some(directory.path()), &base()).unwrap();
            assert_eq!(numbers(&policies.limits()), meant, "{written}");
            assert_eq!(policies.report()["requestsPerToken"]["rule"], "ours");
        }
    }

    #[test]
    fn a_start_with_bad_policies_says_everything_that_is_wrong() {
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("a.yaml"), document("{perMinute: 0}")).unwrap();
        fs::write(directory.path().join("b.yaml"), "kind: 5").unwrap();
        let error = Policies::load(Some(directory.path()), &base()).unwrap_err();
        let problems = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(problems.lines().count(), 2, "{problems}");
    }

    #[tokio::test]
    async fn files_may_be_rewritten_added_swapped_and_broken() {
        let directory = TempDir::new().unwrap();
        let path = |name: &str| directory.path().join(name);
        // As Kubernetes mounts a ConfigMap.
        for (data, rate) in [("..1", "{perMinute: 100}"), ("..2", "{perMinute: 200}")] {
            fs::create_dir(path(data)).unwrap();
            fs::write(path(data).join("a.yaml"), document(rate)).unwrap();
        }
        std::os::unix::fs::symlink("..1", path("..data")).unwrap();
        std::os::unix::fs::symlink("..data/a.yaml", path("a.yaml")).unwrap();

        let policies = Arc::new(Policies::load(Some(directory.path()), &base()).unwrap());
        assert_eq!(numbers(&policies.limits()), (100, 100));
        let (tell, mut told) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let (policies, stop) = (policies.clone(), stop.clone());
            async move { policies.keep_fresh(move |limits| tell.try_send(numbers(limits)).unwrap(), stop).await }
        });
        let mut next =
            async || tokio::time::timeout(DEADLINE, told.recv()).await.expect("no change").unwrap();

        std::os::unix::fs::symlink("..2", path("..new")).unwrap();
        fs::rename(path("..new"), path("..data")).unwrap();
        assert_eq!(next().await, (200, 200));

        fs::remove_file(path("a.yaml")).unwrap();
        fs::write(path("b.yaml"), document("{perMinute: 300}")).unwrap();
        assert_eq!(next().await, (300, 300));

        fs::write(path("b.yaml"), document("{perMinute: many}")).unwrap();
        tokio::time::timeout(DEADLINE, async {
            while policies.problems() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the problem is not seen");
        assert_eq!(numbers(&policies.limits()), (300, 300));
        assert_eq!(policies.generation(), 3);

        fs::write(path(".b"), document("{rate: 1, burst: 9}")).unwrap();
        fs::rename(path(".b"), path("b.yaml")).unwrap();
        assert_eq!(next().await, (60, 9));
        assert_eq!(policies.problems(), 0);
        stop.cancel();
        task.await.unwrap();
    }
}
