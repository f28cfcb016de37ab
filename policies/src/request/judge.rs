//! Whether a caller may make a request: the first rule that matches.
//!
//! After `request`, which says what it is about; the broker refuses, counts and writes it down. Decides only.

use super::path::decoded;
use crate::{CallerRule, Callers, Effect, Request, Resource};

/// What rules say of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    pub effect: Effect,
    /// Where the rule stands that decided; `None`: none matched, or the path cannot be judged ([`Request::obscure`]).
    pub rule_line: Option<usize>,
}

/// What spans all namespaces and yet is about none of them: cluster-wide types of Kubernetes itself, by group.
const CLUSTER_WIDE: &[(&str, &[&str])] = &[
    ("", &["componentstatuses", "namespaces", "nodes", "persistentvolumes"]),
    (
        "admissionregistration.k8s.io",
        &[
            "mutatingadmissionpolicies",
            "mutatingadmissionpolicybindings",
            "mutatingwebhookconfigurations",
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
            "validatingwebhookconfigurations",
        ],
    ),
    ("apiextensions.k8s.io", &["customresourcedefinitions"]),
    ("apiregistration.k8s.io", &["apiservices"]),
    ("certificates.k8s.io", &["certificatesigningrequests", "clustertrustbundles"]),
    ("flowcontrol.apiserver.k8s.io", &["flowschemas", "prioritylevelconfigurations"]),
    ("metrics.k8s.io", &["nodes"]),
    ("networking.k8s.io", &["ingressclasses", "ipaddresses", "servicecidrs"]),
    ("node.k8s.io", &["runtimeclasses"]),
    ("policy", &["podsecuritypolicies"]),
    ("rbac.authorization.k8s.io", &["clusterrolebindings", "clusterroles"]),
    ("resource.k8s.io", &["deviceclasses", "resourceslices"]),
    ("scheduling.k8s.io", &["priorityclasses"]),
    (
        "storage.k8s.io",
        &["csidrivers", "csinodes", "storageclasses", "volumeattachments", "volumeattributesclasses"],
    ),
];

impl Callers {
    /// The first rule that matches decides, `otherwise` where none does. What cannot be judged by its path is denied
    /// whatever the rules say. Allocates nothing.
    pub fn judge(&self, request: &Request<'_>) -> Judged {
        if request.obscure {
            return Judged { effect: Effect::Deny, rule_line: None };
        }
        match self.rules.iter().find(|rule| rule.matches(request)) {
            Some(rule) => Judged { effect: rule.effect, rule_line: Some(rule.line) },
            None => Judged { effect: self.otherwise, rule_line: None },
        }
    }
}

impl CallerRule {
    /// A rule with resources or namespaces is about resources, one with paths about other paths, one with neither about
    /// all; one with both is about both.
    fn matches(&self, request: &Request<'_>) -> bool {
        let id = |ids: &[u64], id: Option<u64>| ids.is_empty() || id.is_some_and(|id| ids.contains(&id));
        let word = |words: &[String], word: &str| {
            words.is_empty() || words.iter().any(|one| one == "*" || one == word)
        };
        word(&self.access, request.access)
            && id(&self.user_ids, request.user_id)
            && id(&self.project_ids, request.project_id)
            && word(&self.verbs, request.verb)
            && self.is_about(request)
    }

    fn is_about(&self, request: &Request<'_>) -> bool {
        let (of_resources, of_paths) =
            (!self.resources.is_empty() || !self.namespaces.is_empty(), !self.paths.is_empty());
        match request.resource {
            _ if !of_resources && !of_paths => true,
            Some(resource) => {
                of_resources
                    && (self.resources.is_empty()
                        || self.resources.iter().any(|one| is_resource(one, &resource)))
                    && (self.namespaces.is_empty() || self.is_in(request, &resource))
            }
            None => of_paths && self.paths.iter().any(|one| is_path(one, request.path)),
        }
    }

    /// A request for all namespaces at once is in none that a rule allows, and in each that one denies.
    fn is_in(&self, request: &Request<'_>, resource: &Resource<'_>) -> bool {
        match request.namespace {
            Some(namespace) => self.namespaces.iter().any(|one| match one.strip_suffix('*') {
                Some(beginning) => namespace.starts_with(beginning),
                None => one == namespace,
            }),
            None => {
                self.effect == Effect::Deny
                    && request.name.is_none()
                    && matches!(request.verb, "list" | "watch" | "deletecollection")
                    && !is_cluster_wide(resource)
            }
        }
    }
}

fn is_cluster_wide(resource: &Resource<'_>) -> bool {
    CLUSTER_WIDE.iter().any(|(group, names)| *group == resource.group && names.contains(&resource.name))
}

/// `*` is everything, `*.GROUP` all of a group, both with subresources. `NAME` and `NAME.GROUP` are a resource without its
/// subresources, with `/SUBRESOURCE` one of these, with `/*` each of these. Without a group it is the core group.
fn is_resource(pattern: &str, resource: &Resource<'_>) -> bool {
    let (typed, subresource) = match pattern.split_once('/') {
        Some((typed, subresource)) => (typed, Some(subresource)),
        None => (pattern, None),
    };
    let (name, group) = match typed.split_once('.') {
        Some((name, group)) => (name, Some(group)),
        None => (typed, None),
    };
    let in_group = match (name, group) {
        ("*", None) => true,
        (_, group) => group.unwrap_or("") == resource.group,
    };
    let of_subresource = match (name, subresource, resource.subresource) {
        ("*", None, _) => true,
        (_, None, there) => there.is_none(),
        (_, Some("*"), there) => there.is_some(),
        (_, Some(wanted), there) => there == Some(wanted),
    };
    in_group && of_subresource && (name == "*" || name == resource.name)
}

/// Compared as the server reads both: decoded, and one slash at the end is none.
fn is_path(pattern: &str, path: &str) -> bool {
    if let Some(beginning) = pattern.strip_suffix('*') {
        let mut path = decoded(path);
        return decoded(beginning).all(|byte| byte.is_some() && path.next() == Some(byte));
    }
    decoded(without_slash(pattern)).eq(decoded(without_slash(path)))
}

fn without_slash(path: &str) -> &str {
    path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(path)
}
