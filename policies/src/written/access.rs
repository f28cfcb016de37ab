//! `AccessPolicy`: which addresses may connect, and what callers may do. Under `written`.

use super::{Id, Match, Network, Several, is_label};
use crate::{Effect, request::is_readable};
use postern_yaml::{Cursor, Node, Read, Value, Words, WordsOf, section, words};

/// Each request goes through them in their order.
const MAX_RULES: usize = 1_000;

impl Words for Effect {
    const WORDS: &'static [(&'static str, Self)] = &[("allow", Self::Allow), ("deny", Self::Deny)];
}

words!(Access { Any = "*", Ci = "ci", Pat = "pat", Session = "session", Postern = "postern" });

impl Access {
    pub(crate) fn word(self) -> &'static str {
        word(self)
    }
}

words!(
    /// What a request does: to resources in Kubernetes' words, to other paths in HTTP's.
    Verb {
        Any = "*",
        Get = "get", List = "list", Watch = "watch", Create = "create", Update = "update", Patch = "patch",
        Delete = "delete", DeleteCollection = "deletecollection", Head = "head", Post = "post", Put = "put",
        Options = "options",
    }
);

impl Verb {
    pub(crate) fn word(self) -> &'static str {
        word(self)
    }
}

fn word<T: Words + PartialEq>(value: T) -> &'static str {
    let known = T::WORDS.iter().find(|(_, known)| *known == value);
    known.map(|(word, _)| *word).expect("every member has a word")
}

section!(AccessSpec {
    selector = "match": Match,
    clients: Complete<ClientsSpec>,
    kubernetes_api = "kubernetesApi": Complete<KubernetesApiSpec>,
});
section!(ClientsSpec { allow: Several<Network>, deny: Several<Network> });
section!(KubernetesApiSpec { rules: Vec<Complete<CallerRuleSpec>>, otherwise: WordsOf<Effect> });
section!(CallerRuleSpec {
    effect: WordsOf<Effect>,
    access: Several<WordsOf<Access>>,
    user_ids = "userIds": Several<Id>,
    project_ids = "projectIds": Several<Id>,
    verbs: Several<WordsOf<Verb>>,
    resources: Several<ResourceName>,
    namespaces: Several<Namespace>,
    paths: Several<UrlPattern>,
});

/// A mapping in which nothing is missing, and the line where it begins.
#[derive(Debug)]
pub(crate) struct Complete<T> {
    pub(crate) spec: T,
    pub(crate) line: usize,
}

trait Whole: Read {
    /// Reports what is missing, or too much.
    fn judge(&self, node: &Node, cursor: &mut Cursor<'_>) -> Option<()>;
}

impl<T: Whole> Read for Complete<T> {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        let before = cursor.reported();
        let spec = T::read(node, cursor)?;
        spec.judge(node, cursor)?;
        (cursor.reported() == before).then_some(Self { spec, line: node.at.line })
    }
}

impl Whole for ClientsSpec {
    fn judge(&self, node: &Node, cursor: &mut Cursor<'_>) -> Option<()> {
        if entries(node)?.is_empty() {
            cursor.problem(node.at, "an empty mapping", "allow, deny or both are wanted");
        }
        Some(())
    }
}

impl Whole for KubernetesApiSpec {
    fn judge(&self, node: &Node, cursor: &mut Cursor<'_>) -> Option<()> {
        cursor.needs(entries(node)?, node.at, "otherwise");
        if let Some(rules) = self.rules.as_ref().filter(|rules| rules.value.len() > MAX_RULES) {
            let found = format!("{} rules", rules.value.len());
            let wanted = format!("{MAX_RULES} at most are wanted");
            cursor.within("rules", |cursor| cursor.problem(rules.place.at, found, wanted));
        }
        Some(())
    }
}

impl Whole for CallerRuleSpec {
    fn judge(&self, node: &Node, cursor: &mut Cursor<'_>) -> Option<()> {
        cursor.needs(entries(node)?, node.at, "effect");
        Some(())
    }
}

fn entries(node: &Node) -> Option<&[postern_yaml::Entry]> {
    match &node.value {
        Value::Mapping(entries) => Some(entries),
        _ => None,
    }
}

/// `pods`, `pods/log`, `deployments.apps`, `*.apps`, `pods/*`, `*`.
#[derive(Debug)]
pub(crate) struct ResourceName(pub(crate) String);

impl Read for ResourceName {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        const WANTED: &str = "a resource such as pods, pods/log, deployments.apps or *.apps is wanted";
        let text = String::read(node, cursor)?;
        if is_resource(&text) {
            return Some(Self(text));
        }
        let lower = text.to_lowercase();
        let wanted = match is_resource(&lower) {
            true => format!("{WANTED}; did you mean `{lower}`?"),
            false => WANTED.to_owned(),
        };
        cursor.problem(node.at, node.shown(), wanted);
        None
    }
}

fn is_resource(text: &str) -> bool {
    let (resource, subresource) = match text.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource)),
        None => (text, None),
    };
    let (name, group) = match resource.split_once('.') {
        Some((name, group)) => (name, Some(group)),
        None => (resource, None),
    };
    let word = |text: &str| text == "*" || is_label(text);
    let group = group.is_none_or(|group| group.len() <= 253 && group.split('.').all(is_label));
    word(name) && group && subresource.is_none_or(word)
}

/// A trailing `*` stands for any end.
#[derive(Debug)]
pub(crate) struct Namespace(pub(crate) String);

impl Read for Namespace {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        let text = String::read(node, cursor)?;
        let known = match text.strip_suffix('*') {
            // `team-*`: what stands before the star may end with a hyphen.
            Some(beginning) => beginning.is_empty() || is_label(&format!("{beginning}x")),
            None => is_label(&text),
        };
        if !known {
            return cursor.mismatch(node, "a namespace, or the beginning of one and a *,");
        }
        Some(Self(text))
    }
}

/// `/healthz`, `/version*`; percent-encoded as in requests.
#[derive(Debug)]
pub(crate) struct UrlPattern(pub(crate) String);

impl Read for UrlPattern {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        let text = String::read(node, cursor)?;
        let star = text.find('*').is_none_or(|at| at + 1 == text.len());
        if !text.starts_with('/') || !star || text.contains(['?', '#', ' ']) {
            let wanted = "a path that begins with a slash, without a query and with a * at its end only,";
            return cursor.mismatch(node, wanted);
        }
        if !is_readable(&text) {
            return cursor.mismatch(node, "a path with two hexadecimal digits behind each %,");
        }
        Some(Self(text))
    }
}

#[cfg(test)]
mod tests {
    use super::is_resource;

    #[test]
    fn resources_are_named_as_kubernetes_does() {
        for text in ["pods", "pods/log", "pods/*", "*", "*.apps", "deployments.apps/scale", "x.y.example.com"]
        {
            assert!(is_resource(text), "{text}");
        }
        for text in
            ["", "Pods", "apps/v1/deployments", "pods/", "/log", "pods.", ".apps", "p*", "pods.*", "a b"]
        {
            assert!(!is_resource(text), "{text}");
        }
    }
}
