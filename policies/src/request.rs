//! What a request to the Kubernetes API is about: the attributes that an API server would judge it by.
//!
//! From the broker, which has path and query; to [`crate::Callers`]. Reads a path as API servers do, and refuses to read
//! one that somebody on the way to the cluster might read in another way. Allocates nothing, knows no resource types.

mod judge;
mod path;
#[cfg(test)]
mod tests;

use crate::{Request, Resource};
pub use judge::Judged;
use path::Path;
pub(crate) use path::is_readable;

impl<'a> Request<'a> {
    /// The attributes of a request, without its caller. `path` is as it came, percent-encoded, without the query, and from
    /// the cluster's root: `/api/v1/pods`. `method` as HTTP has it, in capitals.
    ///
    /// A path that may be read in more than one way is [`Request::obscure`], and access rules deny it: segments `.` and
    /// `..` in any disguise, backslashes, control characters, broken percent-encodings; empty segments and encoded slashes,
    /// but for what follows a subresource (`.../services/web/proxy/any//thing`), which no API server reads; anything
    /// percent-encoded in what names a group, a resource, a subresource or a namespace.
    pub fn of(method: &'a str, path: &'a str, query: Option<&str>) -> Self {
        let plain = Self { verb: plain_verb(method), path, ..Self::default() };
        let obscure = Self { obscure: true, ..plain };
        let Some(read) = Path::read(path) else { return obscure };
        let (group, rest) = match read.parts() {
            ["api", _, rest @ ..] if !rest.is_empty() => ("", rest),
            ["apis", group, _, rest @ ..] if !rest.is_empty() => (*group, rest),
            // A server decodes before it looks.
            [first, ..] if first.contains('%') && (path::is(first, "api") || path::is(first, "apis")) => {
                return obscure;
            }
            _ if read.is_clean_to_the_end() => return plain,
            _ => return obscure,
        };
        let (by_prefix, rest) = match rest {
            ["watch" | "proxy"] => return obscure,
            [prefix @ ("watch" | "proxy"), rest @ ..] => (Some(*prefix), rest),
            _ => (None, rest),
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace] | ["namespaces", namespace, "status" | "finalize", ..] => {
                (Some(*namespace), rest)
            }
            ["namespaces", namespace, rest @ ..] => (Some(*namespace), rest),
            _ => (None, rest),
        };
        // Old proxy paths have no subresources: what follows the name is the path behind the proxy.
        let read_on = if by_prefix == Some("proxy") { 2 } else { 3 };
        let at = |index: usize| rest.get(index).filter(|_| index < read_on).copied();
        let (resource, name, subresource) = (at(0).unwrap_or_default(), at(1), at(2));
        let verb = match (by_prefix, method) {
            (Some(prefix), _) => prefix,
            (None, "GET" | "HEAD") if name.is_some() => "get",
            (None, "GET" | "HEAD") if path::asks_to_watch(query) => "watch",
            (None, "GET" | "HEAD") => "list",
            (None, "POST") => "create",
            (None, "PUT") => "update",
            (None, "PATCH") => "patch",
            (None, "DELETE") if name.is_none() => "deletecollection",
            (None, "DELETE") => "delete",
            _ => "",
        };
        let words = [Some(group), Some(resource), namespace, subresource];
        // An encoded percent sign in a name, which may have none, is for somebody who decodes twice.
        let disguised = words.into_iter().flatten().any(|word| word.contains('%'))
            || name.is_some_and(|name| name.contains("%25"))
            || !read.is_clean_before(rest, read_on);
        if disguised {
            return obscure;
        }
        Self {
            verb,
            resource: Some(Resource { group, name: resource, subresource }),
            namespace,
            name,
            ..plain
        }
    }
}

/// Of requests that are not about resources.
fn plain_verb(method: &str) -> &'static str {
    match method {
        "GET" => "get",
        "HEAD" => "head",
        "POST" => "post",
        "PUT" => "put",
        "PATCH" => "patch",
        "DELETE" => "delete",
        "OPTIONS" => "options",
        "TRACE" => "trace",
        "CONNECT" => "connect",
        _ => "",
    }
}
