//! The policies that ask for alerts, as the cluster has them now. Before it: a list and a watch of CiliumNetworkPolicies.
//! After it: `matching.rs`, which asks for them in the order of their names. Bounded in number and in size.

use super::policy::{self, Effort, Policy, Read};
use crate::cluster::{Change, Cluster, Kind};
use futures::{StreamExt, stream, stream::BoxStream};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tracing::{info, warn};

/// Policies of one project that ask for alerts; more are left out.
pub(crate) const MOST: usize = 1_000;
/// Bytes of JSON of all of them together.
const MOST_BYTES: usize = 32 * 1024 * 1024;
/// What all of them together may cost each flow; `policy.rs` says these numbers.
const MOST_EFFORT: Effort = Effort { patterns: 200, texts: 20_000 };

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
    effort: Effort,
    /// By name, what has been said of those that alerts are asked of in vain; at most [`MOST`].
    said: BTreeMap<String, String>,
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
            effort: Effort::default(),
            said: BTreeMap::new(),
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
            Change::Deleted(object) => {
                let name = policy::name(&object);
                self.remove(&name);
                self.said.remove(&name);
            }
            Change::Listed => {
                self.listed = true;
                if let Some(seen) = self.listing.take() {
                    let gone: Vec<_> =
                        self.kept.keys().filter(|name| !seen.contains(*name)).cloned().collect();
                    gone.iter().for_each(|name| self.remove(name));
                    self.said.retain(|name, _| seen.contains(name));
                }
            }
        }
    }

    fn put(&mut self, object: &Value) {
        let name = policy::name(object);
        let before = self.kept.contains_key(&name);
        self.remove(&name);
        let policy = match policy::read(object, &self.project, MOST_EFFORT.without(self.effort)) {
            Read::Policy(policy) => policy,
            Read::NotOurs => {
                self.said.remove(&name);
                return;
            }
            Read::Unusable(why) => {
                if self.is_news(&name, why) {
                    warn!(policy = %name, why, "policy asks for alerts but cannot be compared with flows");
                }
                return;
            }
        };
        match &policy.bad_pattern {
            Some(pattern) if self.is_news(&name, pattern) => {
                warn!(policy = %name, %pattern, "pattern of an HTTP rule fits nothing: it is illegal or too large");
            }
            Some(_) => {}
            None => _ = self.said.remove(&name),
        }
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
        self.effort = self.effort.and(policy.effort);
        self.kept.insert(name, policy);
    }

    fn remove(&mut self, name: &str) {
        if let Some(policy) = self.kept.remove(name) {
            self.bytes -= policy.size;
            self.effort = self.effort.without(policy.effort);
        }
    }

    /// Whether it is to be said: policies change, in their status say, more often than what is wrong with them.
    fn is_news(&mut self, name: &str, what: &str) -> bool {
        if let Some(seen) = self.listing.as_mut().filter(|seen| seen.len() < 2 * MOST) {
            seen.insert(name.to_owned());
        }
        let room = self.said.len() < MOST || self.said.contains_key(name);
        room && self.said.insert(name.to_owned(), what.to_owned()).as_deref() != Some(what)
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

    fn with_paths(name: &str, count: usize) -> Arc<Value> {
        let mut object = Arc::unwrap_or_clone(object(name, "21"));
        let rules = json!({"http": vec![json!({"path": "/a"}); count]});
        object["spec"]["ingress"] = json!([{"toPorts": [{"rules": rules}]}]);
        Arc::new(object)
    }

    #[test]
    fn all_of_them_together_cost_a_flow_no_more_than_the_bound() {
        let mut policies = Policies::new(21);
        for name in ["a", "b", "c"] {
            policies.apply(Change::Applied(with_paths(name, 100)));
        }
        assert_eq!((names(&policies), policies.effort.patterns), (vec!["shop/a", "shop/b"], 200));
        policies.apply(Change::Applied(with_paths("d", 0)));
        // One of them again, smaller: there is room for another.
        policies.apply(Change::Applied(with_paths("a", 50)));
        policies.apply(Change::Applied(with_paths("c", 50)));
        assert_eq!(names(&policies), ["shop/a", "shop/b", "shop/c", "shop/d"]);
        policies.apply(Change::Applied(with_paths("a", 2_000)));
        assert_eq!(names(&policies), ["shop/b", "shop/c", "shop/d"]);
        for name in ["b", "c", "d"] {
            policies.apply(Change::Deleted(object(name, "21")));
        }
        assert_eq!(policies.effort, Effort::default());
    }

    #[test]
    fn what_is_wrong_with_a_policy_is_said_once() {
        let mut policies = Policies::new(21);
        assert!(policies.is_news("shop/a", "it is large") && !policies.is_news("shop/a", "it is large"));
        assert!(policies.is_news("shop/a", "it is empty"));
        policies.apply(Change::Applied(with_paths("b", 201)));
        assert_eq!(policies.said.keys().collect::<Vec<_>>(), ["shop/a", "shop/b"]);
        policies.apply(Change::Begun);
        policies.apply(Change::Found(with_paths("b", 201)));
        policies.apply(Change::Listed);
        assert_eq!(policies.said.keys().collect::<Vec<_>>(), ["shop/b"]);
        policies.apply(Change::Applied(with_paths("b", 1)));
        assert!(policies.said.is_empty());
        for number in 0..2 * MOST {
            policies.is_news(&number.to_string(), "x");
        }
        assert_eq!(policies.said.len(), MOST);
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
