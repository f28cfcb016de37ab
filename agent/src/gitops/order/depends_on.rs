//! The annotation with which an object names those it needs. Before it: `order.rs`, and the engine with live objects that
//! it will remove. It only reads what is written; whether such objects exist is up to whoever asked.

use crate::gitops::object::ObjectId;
use serde_json::Value;

/// Its name.
pub const DEPENDS_ON: &str = "config.kubernetes.io/depends-on";

/// Of the annotation's text, in bytes: what the API server takes for all annotations of an object.
const MOST_TEXT: usize = 256 << 10;
/// References of one object.
const MOST: usize = 500;
/// Longer text is cut where messages quote it, in characters.
const QUOTED: usize = 120;

/// What an object says it needs: references such as `apps/namespaces/default/Deployment/web` and
/// `rbac.authorization.k8s.io/ClusterRole/reader`, separated by commas. The core group is empty: `/Namespace/a`.
///
/// # Errors
/// Text for people: one of them is not of this form, or there are too many.
pub fn depends_on(object: &Value) -> Result<Vec<ObjectId>, String> {
    let annotations = object.get("metadata").and_then(|metadata| metadata.get("annotations"));
    let Some(text) = annotations.and_then(|annotations| annotations.get(DEPENDS_ON)).and_then(Value::as_str)
    else {
        return Ok(Vec::new());
    };
    if text.len() > MOST_TEXT || text.split(',').nth(MOST).is_some() {
        return Err(format!(
            "{DEPENDS_ON} has more than {MOST} references, or more than {} KiB",
            MOST_TEXT >> 10
        ));
    }
    text.split(',')
        .map(|reference| parse(reference.trim()).ok_or_else(|| illegal(reference.trim())))
        .collect()
}

fn parse(reference: &str) -> Option<ObjectId> {
    let mut fields = [""; 5];
    let mut count = 0;
    for field in reference.split('/') {
        *fields.get_mut(count)? = field;
        count += 1;
    }
    let (group, namespace, kind, name) = match fields {
        [group, kind, name, ..] if count == 3 => (group, "", kind, name),
        [group, "namespaces", namespace, kind, name] if count == 5 && !namespace.is_empty() => {
            (group, namespace, kind, name)
        }
        _ => return None,
    };
    if kind.is_empty() || name.is_empty() {
        return None;
    }
    let [group, namespace, kind, name] = [group, namespace, kind, name].map(str::to_owned);
    Some(ObjectId { group, kind, namespace, name })
}

fn illegal(reference: &str) -> String {
    let shown: String = reference.chars().take(QUOTED).collect();
    format!(
        "{DEPENDS_ON} has {shown:?}; group/namespaces/namespace/Kind/name is wanted, or group/Kind/name of an object \
         that belongs to the whole cluster, where the core group is empty: /namespaces/default/ConfigMap/a"
    )
}

/// How a reference to this object is written.
pub(super) fn written(id: &ObjectId) -> String {
    let ObjectId { group, kind, namespace, name } = id;
    if namespace.is_empty() {
        format!("{group}/{kind}/{name}")
    } else {
        format!("{group}/namespaces/{namespace}/{kind}/{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(text: &str) -> Result<Vec<String>, String> {
        let object = json!({"metadata": {"annotations": {DEPENDS_ON: text}}});
        depends_on(&object).map(|ids| ids.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn references_are_read_as_they_are_written_for_kubectl_and_its_kin() {
        for (text, wanted) in [
            ("apps/namespaces/default/Deployment/web", vec!["apps/Deployment default/web"]),
            ("/namespaces/a/ConfigMap/b", vec!["ConfigMap a/b"]),
            ("/Namespace/a", vec!["Namespace a"]),
            (
                "rbac.authorization.k8s.io/ClusterRole/x:y, /Namespace/a ,\n/Namespace/b",
                vec!["rbac.authorization.k8s.io/ClusterRole x:y", "Namespace a", "Namespace b"],
            ),
        ] {
            assert_eq!(of(text), Ok(wanted.into_iter().map(str::to_owned).collect()), "{text:?}");
        }
        for object in
            [json!({}), json!(null), json!({"metadata": null}), json!({"metadata": {"annotations": []}})]
        {
            assert_eq!(depends_on(&object), Ok(Vec::new()));
        }
    }

    #[test]
    fn other_forms_are_refused_with_the_right_one() {
        for text in [
            "",
            ",",
            "web",
            "Deployment/web",
            "a/b/c/d",
            "apps/namespace/default/Deployment/web",
            "/Namespace/",
            "//a",
            "apps/namespaces//Deployment/web",
            "a/b/c/d/e/f",
            "/Namespace/a,",
            "apps/v1/namespaces/a/Deployment/b",
        ] {
            let problem = of(text).unwrap_err();
            assert!(
                problem.contains("group/namespaces/namespace/Kind/name is wanted"),
                "{text:?}: {problem}"
            );
        }
    }

    #[test]
    fn there_are_never_more_references_than_the_bound() {
        let references = |count| vec!["/Namespace/a"; count].join(",");
        assert_eq!(of(&references(MOST)).map(|ids| ids.len()), Ok(MOST));
        let long = format!("/Namespace/{}", "a".repeat(MOST_TEXT));
        for text in [references(MOST + 1), long] {
            assert!(of(&text).unwrap_err().contains("more than 500 references, or more than 256 KiB"));
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["apps/namespaces/default/Deployment/web", "/namespaces/a/ConfigMap/b", "/Namespace/a"] {
            assert_eq!(written(&parse(text).unwrap()), text);
        }
    }
}
