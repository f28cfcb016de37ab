//! The policies that ask for alerts, as the cluster has them now. Before it: a list and a watch of CiliumNetworkPolicies.
//! After it: `matching.rs`, which asks for them in the order of their names. Bounded in number and in size.

use super::policy::{self, Policy, Read};
use crate::cluster::{Change, Cluster, Kind};
use futures::{StreamExt, stream, stream::BoxStream};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tracing::{info, warn};

/// Policies of one project that ask for alerts; more are left out.
pub(crate) const MOST: usize = 1_000;
/// Bytes of JSON of all of them together.
const MOST_BYTES: usize = 32 * 1024 * 1024;

/// Where policies come from: every call lists them anew and then follows what becomes of them.
pub trait Source: Send + Sync + 'static {
    /// Never ends.
    fn follow(&self) -> BoxStream<'static, Change>;
}

impl Source for Cluster {
    fn follow(&self) -> BoxStream<'static, Change> {
        // Without looking the kind up: its definition may be installed long after the agent.
        let kind = Kind::new("cilium.io", "v2", "CiliumNetworkPolicy", "ciliumnetworkpolicies", true);
        let following = Cluster::follow(self, &kind, None);
        let next = |mut following: crate::cluster::Following| async move {
            let change = following.next().await;
            Some((change, following))
        };
        stream::unfold(following, next).boxed()
    }
}

/// What is kept of them.
#[derive(Debug)]
pub(crate) struct Policies {
    /// The configuration project's number, as their label has it.
    project: String,
    kept: BTreeMap<String, Policy>,
    bytes: usize,
    /// Names seen in a list that is not over yet.
    listing: Option<BTreeSet<String>>,
    listed: bool,
    /// Whether it has been said that some are left out.
    said_too_many: bool,
}

impl Policies {
    /// None yet.
    pub(crate) fn new(project_id: i64) -> Self {
        Self {
            project: project_id.to_string(),
            kept: BTreeMap::new(),
            bytes: 0,
            listing: None,
            listed: false,
            said_too_many: false,
        }
    }

    /// Whether they have all been seen once.
    pub(crate) fn listed(&self) -> bool {
        self.listed
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }

    /// By name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.kept.values()
    }

    /// Takes over what has changed.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Begun => self.listing = Some(BTreeSet::new()),
            Change::Found(object) | Change::Applied(object) => self.put(&object),
            Change::Deleted(object) => self.remove(&policy::name(&object)),
            Change::Listed => {
                self.listed = true;
                if let Some(seen) = self.listing.take() {
                    let gone: Vec<_> =
                        self.kept.keys().filter(|name| !seen.contains(*name)).cloned().collect();
                    gone.iter().for_each(|name| self.remove(name));
                }
            }
        }
    }

    fn put(&mut self, object: &Value) {
        let name = policy::name(object);
        let read = policy::read(object, &self.project);
        let before = self.kept.contains_key(&name);
        self.remove(&name);
        let policy = match read {
            Read::Policy(policy) => policy,
            Read::NotOurs => return,
            Read::Unusable(why) => {
                return warn!(policy = %name, why, "policy asks for alerts but cannot be compared with flows");
            }
        };
        if self.kept.len() >= MOST || self.bytes + policy.size > MOST_BYTES {
            if !std::mem::replace(&mut self.said_too_many, true) {
                warn!(
                    policy = %name, kept = self.kept.len(),
                    "too many policies ask for alerts, there will be none of this one and of later ones"
                );
            }
            return;
        }
        if !before {
            info!(policy = %name, "policy asks for alerts");
        }
        if let Some(seen) = &mut self.listing {
            seen.insert(name.clone());
        }
        self.bytes += policy.size;
        self.kept.insert(name, policy);
    }

    fn remove(&mut self, name: &str) {
        if let Some(policy) = self.kept.remove(name) {
            self.bytes -= policy.size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn object(name: &str, project: &str) -> Arc<Value> {
        Arc::new(json!({
            "metadata": {
                "namespace": "shop", "name": name,
                "labels": {"app.gitlab.com/proj": project}, "annotations": {"app.gitlab.com/alert": "true"},
            },
            "spec": {"endpointSelector": {}},
        }))
    }

    fn names(policies: &Policies) -> Vec<&str> {
        policies.iter().map(|policy| policy.name.as_str()).collect()
    }

    #[test]
    fn what_is_kept_follows_lists_and_changes() {
        let mut policies = Policies::new(21);
        policies.apply(Change::Begun);
        for (name, project) in [("b", "21"), ("a", "21"), ("other", "22")] {
            policies.apply(Change::Found(object(name, project)));
        }
        assert!(!policies.listed());
        policies.apply(Change::Listed);
        assert!(policies.listed());
        assert_eq!(names(&policies), ["shop/a", "shop/b"]);
        policies.apply(Change::Applied(object("c", "21")));
        policies.apply(Change::Applied(object("a", "22")));
        policies.apply(Change::Deleted(object("unknown", "21")));
        assert_eq!(names(&policies), ["shop/b", "shop/c"]);
        // While a watch begins anew nothing is forgotten, and at its end what has gone in between is.
        policies.apply(Change::Begun);
        policies.apply(Change::Found(object("c", "21")));
        assert_eq!(names(&policies), ["shop/b", "shop/c"]);
        policies.apply(Change::Listed);
        assert_eq!(names(&policies), ["shop/c"]);
        policies.apply(Change::Deleted(object("c", "21")));
        assert_eq!((policies.len(), policies.bytes), (0, 0));
    }

    #[test]
    fn there_are_never_more_than_the_bound() {
        let mut policies = Policies::new(21);
        for number in 0..MOST + 10 {
            policies.apply(Change::Applied(object(&format!("p{number}"), "21")));
        }
        assert_eq!(policies.len(), MOST);
        policies.apply(Change::Applied(object("p0", "21")));
        assert_eq!(policies.len(), MOST);
    }
}
