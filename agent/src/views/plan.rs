//! Which views are kept and what has to be followed for them, from the `views` of the agent's configuration. Before it:
//! `configuration.rs`; after it: `keep.rs`. It computes; it asks nobody.

use postern_wire::proto::gitlab::agent::agentcfg::AgentConfiguration;
use std::collections::BTreeSet;

/// More namespaces than this are not watched one by one.
const ONE_BY_ONE: usize = 20;
/// Configurations with more are not applied.
const NAMESPACES: usize = 500;

/// One of the views there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum View {
    Nodes,
    Workloads,
    Events,
    Versions,
    Capacity,
}

/// A kind of objects that is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Watched {
    Nodes,
    Pods,
    Deployments,
    StatefulSets,
    DaemonSets,
    Events,
}

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    views: BTreeSet<View>,
    namespaces: BTreeSet<Box<str>>,
}

impl View {
    pub(crate) const ALL: [Self; 5] =
        [Self::Nodes, Self::Workloads, Self::Events, Self::Versions, Self::Capacity];

    /// As the configuration and the broker call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Workloads => "workloads",
            Self::Events => "events",
            Self::Versions => "versions",
            Self::Capacity => "capacity",
        }
    }

    /// What it is computed from.
    pub(crate) fn needs(self) -> &'static [Watched] {
        match self {
            Self::Nodes | Self::Versions => &[Watched::Nodes],
            Self::Workloads => {
                &[Watched::Deployments, Watched::StatefulSets, Watched::DaemonSets, Watched::Pods]
            }
            Self::Events => &[Watched::Events],
            Self::Capacity => &[Watched::Nodes, Watched::Pods],
        }
    }

    /// Whether `namespaces` is about it.
    fn is_of_namespaces(self) -> bool {
        matches!(self, Self::Workloads | Self::Events)
    }
}

impl Watched {
    /// Its group, version, kind, plural, and whether its objects are in namespaces.
    pub(crate) fn kind(self) -> (&'static str, &'static str, &'static str, &'static str, bool) {
        match self {
            Self::Nodes => ("", "v1", "Node", "nodes", false),
            Self::Pods => ("", "v1", "Pod", "pods", true),
            Self::Deployments => ("apps", "v1", "Deployment", "deployments", true),
            Self::StatefulSets => ("apps", "v1", "StatefulSet", "statefulsets", true),
            Self::DaemonSets => ("apps", "v1", "DaemonSet", "daemonsets", true),
            Self::Events => ("", "v1", "Event", "events", true),
        }
    }
}

impl Plan {
    /// What the configuration asks for; nothing without one.
    pub(crate) fn of(configuration: Option<&AgentConfiguration>) -> Self {
        let Some(asked) = configuration.and_then(|configuration| configuration.views.as_ref()) else {
            return Self::default();
        };
        let wanted = [asked.nodes, asked.workloads, asked.events, asked.versions, asked.capacity];
        let views = View::ALL.into_iter().zip(wanted).filter_map(|(view, wanted)| wanted.then_some(view));
        let namespaces = asked.namespaces.iter().take(NAMESPACES).map(|name| Box::from(name.as_str()));
        Self { views: views.collect(), namespaces: namespaces.collect() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.views.is_empty()
    }

    pub(crate) fn has(&self, view: View) -> bool {
        self.views.contains(&view)
    }

    pub(crate) fn views(&self) -> impl Iterator<Item = View> {
        self.views.iter().copied()
    }

    /// Whether `workloads` and `events` show what is in this namespace.
    pub(crate) fn shows(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.contains(namespace)
    }

    /// What is followed, `None`: in the whole cluster. Nothing twice.
    pub(crate) fn follows(&self) -> Vec<(Watched, Option<Box<str>>)> {
        let whole = |view: View| {
            !view.is_of_namespaces() || self.namespaces.is_empty() || self.namespaces.len() > ONE_BY_ONE
        };
        let mut follows = BTreeSet::new();
        for view in self.views() {
            for watched in view.needs() {
                let everywhere = self.views().any(|other| other.needs().contains(watched) && whole(other));
                if everywhere {
                    follows.insert((*watched, None));
                } else {
                    follows.extend(self.namespaces.iter().map(|name| (*watched, Some(name.clone()))));
                }
            }
        }
        follows.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_wire::proto::gitlab::agent::agentcfg::ViewsCf;

    fn configuration(views: ViewsCf) -> AgentConfiguration {
        AgentConfiguration { views: Some(views), ..AgentConfiguration::default() }
    }

    fn follows(views: ViewsCf) -> Vec<String> {
        let plan = Plan::of(Some(&configuration(views)));
        let text = |(watched, namespace): (Watched, Option<Box<str>>)| {
            format!("{}@{}", watched.kind().3, namespace.as_deref().unwrap_or("*"))
        };
        plan.follows().into_iter().map(text).collect()
    }

    #[test]
    fn only_what_configured_views_need_is_followed_and_nothing_twice() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let shop = names(&["shop", "shop"]);
        let many: Vec<String> = (0..21).map(|number| format!("n{number}")).collect();
        assert!(Plan::of(None).is_empty());
        assert!(Plan::of(Some(&AgentConfiguration::default())).is_empty());
        assert!(follows(ViewsCf { namespaces: shop.clone(), ..ViewsCf::default() }).is_empty());
        let nodes = ViewsCf { nodes: true, versions: true, ..ViewsCf::default() };
        assert_eq!(follows(nodes), ["nodes@*"]);
        let workloads = ViewsCf { workloads: true, namespaces: shop.clone(), ..ViewsCf::default() };
        assert_eq!(
            follows(workloads.clone()),
            ["pods@shop", "deployments@shop", "statefulsets@shop", "daemonsets@shop"]
        );
        // Capacity counts every Pod, whatever namespaces the workloads are of.
        assert_eq!(
            follows(ViewsCf { capacity: true, ..workloads }),
            ["nodes@*", "pods@*", "deployments@shop", "statefulsets@shop", "daemonsets@shop"]
        );
        assert_eq!(
            follows(ViewsCf { events: true, namespaces: shop, ..ViewsCf::default() }),
            ["events@shop"]
        );
        assert_eq!(follows(ViewsCf { events: true, namespaces: many, ..ViewsCf::default() }), ["events@*"]);
    }
}
