//! Paths of the Kubernetes API. Names come from manifests and so from strangers: nothing in them may leave its segment.

use super::{ClusterError, Kind};
use std::fmt::Write;

/// `/api/v1`, `/apis/apps/v1`.
pub(super) fn version(group: &str, version: &str) -> String {
    match group {
        "" => format!("/api/{}", segment(version)),
        group => format!("/apis/{}/{}", segment(group), segment(version)),
    }
}

/// All objects of a kind in a namespace; an empty one means all namespaces, or a kind without.
pub(super) fn objects(kind: &Kind, namespace: &str) -> Result<String, ClusterError> {
    let base = version(&kind.group, &kind.version);
    let plural = segment(&kind.plural);
    match (kind.namespaced, namespace) {
        (false, _) | (true, "") => Ok(format!("{base}/{plural}")),
        (true, namespace) => Ok(format!("{base}/namespaces/{}/{plural}", named("namespace", namespace)?)),
    }
}

/// One object.
pub(super) fn object(kind: &Kind, namespace: &str, name: &str) -> Result<String, ClusterError> {
    if kind.namespaced && namespace.is_empty() {
        let (what, problem) = (format!("{} {name}", kind.kind), "its namespace is not given".to_owned());
        return Err(ClusterError::Odd { what, problem });
    }
    Ok(format!("{}/{}", objects(kind, namespace)?, named("name", name)?))
}

/// A dot or two would be resolved away, and nothing at all would name the whole list.
fn named(field: &str, name: &str) -> Result<String, ClusterError> {
    match name {
        "" | "." | ".." => {
            let (what, problem) = (format!("{field} {name:?}"), "no object can have it".to_owned());
            Err(ClusterError::Odd { what, problem })
        }
        name => Ok(segment(name)),
    }
}

fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => {
                out.push(char::from(byte));
            }
            other => write!(out, "%{other:02X}").expect("a String takes everything"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_kubernetes_api() {
        let deployment = Kind::new("apps", "v1", "Deployment", "deployments", true);
        let role = Kind::new("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", false);
        let pod = Kind::new("", "v1", "Pod", "pods", true);
        assert_eq!(
            object(&deployment, "default", "web").unwrap(),
            "/apis/apps/v1/namespaces/default/deployments/web"
        );
        assert_eq!(
            object(&role, "", "system:node").unwrap(),
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node"
        );
        assert_eq!(objects(&pod, "").unwrap(), "/api/v1/pods");
        assert_eq!(objects(&pod, "a").unwrap(), "/api/v1/namespaces/a/pods");
    }

    #[test]
    fn a_name_does_not_leave_its_segment() {
        let pod = Kind::new("", "v1", "Pod", "pods", true);
        assert_eq!(
            object(&pod, "a", "../secrets/x?y#z").unwrap(),
            "/api/v1/namespaces/a/pods/..%2Fsecrets%2Fx%3Fy%23z"
        );
        for name in ["", ".", ".."] {
            assert!(object(&pod, "a", name).is_err(), "{name:?}");
            assert!(object(&pod, name, "x").is_err(), "{name:?}");
        }
    }
}
