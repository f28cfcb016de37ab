//! What GitLab is told without having asked: usage counters in both forms, and events. Before it: whoever counts. After
//! it: a JSON document, or none if there is nothing to say.

use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Which generation of Rails reads the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageForm {
    /// Up to 14.x: one flat object; unique counters do not exist.
    Flat,
    /// Since 15.x: `counters` and `unique_counters`.
    Structured,
}

/// Counted since the last report that GitLab took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By the names of the form that will be used.
    pub counters: BTreeMap<String, u64>,
    /// Ids of users, agents or projects.
    pub unique: BTreeMap<String, BTreeSet<i64>>,
}

impl Usage {
    /// Without zeros and empty sets; `None` if nothing is left.
    pub(super) fn document(&self, form: UsageForm) -> Option<Value> {
        let counters: Map<String, Value> = self
            .counters
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| (name.clone(), json!(count)))
            .collect();
        if form == UsageForm::Flat {
            return (!counters.is_empty()).then_some(Value::Object(counters));
        }
        let unique: Map<String, Value> = self
            .unique
            .iter()
            .filter(|(_, ids)| !ids.is_empty())
            .map(|(name, ids)| (name.clone(), json!(ids)))
            .collect();
        let parts = [("counters", counters), ("unique_counters", unique)];
        let parts: Map<String, Value> = parts
            .into_iter()
            .filter(|(_, part)| !part.is_empty())
            .map(|(name, part)| (name.to_owned(), Value::Object(part)))
            .collect();
        (!parts.is_empty()).then_some(Value::Object(parts))
    }
}

/// What happened, for GitLab's own statistics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AgentEvents {
    /// Users whose CI jobs used the Kubernetes API.
    #[serde(
        rename = "k8s_api_proxy_requests_unique_users_via_ci_access",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    pub users_via_ci: BTreeSet<UserEvent>,
    /// Users who used it with a session cookie.
    #[serde(
        rename = "k8s_api_proxy_requests_unique_users_via_user_access",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    pub users_via_user: BTreeSet<UserEvent>,
    /// Users who used it with a personal access token.
    #[serde(
        rename = "k8s_api_proxy_requests_unique_users_via_pat_access",
        skip_serializing_if = "BTreeSet::is_empty"
    )]
    pub users_via_pat: BTreeSet<UserEvent>,
    /// Agents that registered.
    #[serde(rename = "register_agent_at_kas", skip_serializing_if = "Vec::is_empty")]
    pub registered: Vec<RegisteredEvent>,
}

/// A user reached an agent of this project.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct UserEvent {
    pub user_id: i64,
    /// The agent's configuration project.
    pub project_id: i64,
}

/// An agent registered.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RegisteredEvent {
    pub project_id: i64,
    pub agent_version: String,
    pub architecture: String,
    pub agent_id: i64,
    pub kubernetes_version: String,
    /// `installation_method`, `helm_chart_version`.
    pub extra_telemetry_data: BTreeMap<String, String>,
}

impl AgentEvents {
    pub(super) fn document(&self) -> Option<Value> {
        (*self != Self::default()).then(|| json!({"events": self}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_two_forms_and_zeros_are_left_out() {
        let usage = Usage {
            counters: [("gitops_sync_count".to_owned(), 5), ("zero".to_owned(), 0)].into(),
            unique: [("agents".to_owned(), [7, 3].into()), ("none".to_owned(), BTreeSet::new())].into(),
        };
        assert_eq!(usage.document(UsageForm::Flat), Some(json!({"gitops_sync_count": 5})));
        assert_eq!(
            usage.document(UsageForm::Structured),
            Some(json!({"counters": {"gitops_sync_count": 5}, "unique_counters": {"agents": [3, 7]}}))
        );
        let zeros = Usage { counters: [("zero".to_owned(), 0)].into(), ..Usage::default() };
        assert_eq!(zeros.document(UsageForm::Flat), None);
        assert_eq!(zeros.document(UsageForm::Structured), None);
    }

    #[test]
    fn events_are_named_as_gitlab_names_them() {
        assert_eq!(AgentEvents::default().document(), None);
        let events = AgentEvents {
            users_via_pat: [UserEvent { user_id: 1, project_id: 2 }].into(),
            ..AgentEvents::default()
        };
        let name = "k8s_api_proxy_requests_unique_users_via_pat_access";
        assert_eq!(events.document(), Some(json!({"events": {name: [{"user_id": 1, "project_id": 2}]}})));
    }
}
