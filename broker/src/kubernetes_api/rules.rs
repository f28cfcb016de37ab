//! What access policies say of a request: judged once before it gets a tunnel, and again at every change of the policies while
//! it runs. Before it: an admitted caller, and the very message that would go to the cluster. After it: the tunnel, or a
//! `Status` that says who may not do what. Where a path could mean something else to the cluster than to a rule, it is denied.

use super::{client::Client, head::Sent};
use crate::auth::caller::{CallerPermit, Kind, Who};
use http::{HeaderMap, Method};
use postern_policies::{Callers, Effect, Live, PolicySet, Request, Ruled, Subject};
use postern_wire::{
    ids::{AgentId, ProjectId},
    token::TokenKey,
};
use tokio::sync::watch;

/// Characters of a name or a path that a message repeats.
const MAX_TEXT: usize = 128;
/// Kubernetes' own; servers behind it may know more, and rules do not.
const METHODS: [Method; 6] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
/// With these, some servers take a request for one of another method.
const OVERRIDES: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];

/// One request, as far as rules ask about it, for as long as it runs.
#[derive(Debug)]
pub(super) struct Asked {
    /// For people.
    who: String,
    access: &'static str,
    user_id: Option<u64>,
    job_project: Option<u64>,
    agent: AgentId,
    agent_project: Option<u64>,
    token: TokenKey,
    client: Client,
    method: String,
    sent: Sent,
    odd: Option<Odd>,
}

/// A request that rules do not let through.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct Denied {
    /// For the caller: who, what, and the name of the policy.
    message: String,
    /// The policy's name.
    pub(super) policy: String,
    /// Where it says so, for the log.
    pub(super) place: String,
}

/// What the policies say of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// It must not go on.
    pub(super) denied: Option<Denied>,
    /// A policy of `mode: report` would not let it.
    pub(super) reported: Option<Denied>,
}

/// Why nobody can be sure what a request means to the cluster, or which rules it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Odd {
    Method,
    Override(&'static str),
    Path,
    Client,
}

impl Asked {
    pub(super) fn new(
        permit: &CallerPermit,
        token: TokenKey,
        agent_project: Option<ProjectId>,
        client: Client,
        (method, headers): (&Method, &HeaderMap),
        sent: Sent,
    ) -> Self {
        let id = |id: i64| u64::try_from(id).ok();
        let (who, job_project) = match &permit.who {
            Who::Job { job, project, username, .. } => (format!("job {job} of {username}"), id(*project)),
            Who::User { user, username } if username.is_empty() => (format!("user {user}"), None),
            named => (named.to_string(), None),
        };
        let odd = Odd::of(method, headers, &sent);
        Self {
            who: shortened(&who),
            access: access(permit.kind),
            user_id: permit.who.user_id().and_then(id),
            job_project,
            agent: permit.agent,
            agent_project: agent_project.and_then(|project| id(project.0)).filter(|id| *id > 0),
            token,
            client,
            method: method.as_str().to_owned(),
            sent,
            odd,
        }
    }

    pub(super) fn subject(&self) -> Subject<'_> {
        Subject {
            agent_id: u64::try_from(self.agent.0).ok(),
            project_id: self.agent_project,
            token_hash: Some(self.token.as_bytes()),
            client: self.client.address(),
            agent_version: None,
        }
    }

    /// Whether the answer is a list of events.
    pub(super) fn is_watch(&self) -> bool {
        self.request().verb == "watch"
    }

    /// What these policies say.
    pub(super) fn judge(&self, set: &PolicySet) -> Verdict {
        let callers = &set.access.callers;
        if callers.is_empty() {
            return Verdict::default();
        }
        let subject = self.subject();
        let choice = callers.choose(&subject);
        // Whoever can make a proxy say something unreadable must not get past the rules for addresses by it.
        let hinging = (self.client == Client::Hidden).then(|| callers.hinging_on_client(&subject));
        let against = |hinging: Option<Ruled<'_, Callers>>, chosen: Option<Ruled<'_, Callers>>| match hinging
        {
            Some(ruled) => self.against(&ruled, Some(Odd::Client)),
            None => chosen.and_then(|ruled| self.against(&ruled, self.odd)),
        };
        let denied = against(hinging.and_then(|hinging| hinging.in_force), choice.in_force);
        let reported = against(hinging.and_then(|hinging| hinging.reported), choice.reported);
        Verdict { denied, reported }
    }

    /// Waits until the policies no longer let it through. Looks at each change that `changes` has not seen.
    pub(super) async fn denied(&self, live: &Live, mut changes: watch::Receiver<u64>) -> Denied {
        loop {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Some(denied) = self.judge(&live.set()).denied {
                return denied;
            }
        }
    }

    fn request(&self) -> Request<'_> {
        Request {
            access: self.access,
            user_id: self.user_id,
            project_id: self.job_project,
            ..self.sent.request(&self.method)
        }
    }

    fn against(&self, ruled: &Ruled<'_, Callers>, odd: Option<Odd>) -> Option<Denied> {
        let Ruled { value, rule } = ruled;
        let (who, policy) = (&self.who, &rule.name);
        let (message, line) = match odd {
            Some(odd) => {
                let (method, path) = (shortened(&self.method), shortened(self.sent.path()));
                let why = odd.words();
                let message = format!("AccessPolicy {policy} does not let {who} {method} {path:?}: {why}");
                (message, rule.line)
            }
            None => {
                let request = self.request();
                let judged = value.judge(&request);
                if judged.effect == Effect::Allow {
                    return None;
                }
                let (what, agent) = (what(&request), self.agent);
                let message = format!("AccessPolicy {policy} does not let {who} {what} at agent {agent}");
                (message, judged.rule_line.unwrap_or(rule.line))
            }
        };
        Some(Denied { message, policy: policy.clone(), place: format!("{}:{line}", rule.file.display()) })
    }
}

/// The words of policies.
fn access(kind: Kind) -> &'static str {
    match kind {
        Kind::Postern => "postern",
        Kind::CiJob => "ci",
        Kind::PersonalAccessToken => "pat",
        Kind::SessionCookie => "session",
    }
}

fn what(request: &Request<'_>) -> String {
    let verb = shortened(request.verb);
    let Some(resource) = &request.resource else {
        return format!("{verb} the path {:?}", shortened(request.path));
    };
    let mut name = shortened(resource.name);
    if !resource.group.is_empty() {
        name = format!("{name}.{}", shortened(resource.group));
    }
    if let Some(subresource) = resource.subresource {
        name = format!("{name}/{}", shortened(subresource));
    }
    match request.namespace {
        Some(namespace) => format!("{verb} {name} in namespace {}", shortened(namespace)),
        None => format!("{verb} {name}"),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

impl Odd {
    fn of(method: &Method, headers: &HeaderMap, sent: &Sent) -> Option<Self> {
        if !METHODS.contains(method) {
            return Some(Self::Method);
        }
        if let Some(name) = OVERRIDES.into_iter().find(|name| headers.contains_key(*name)) {
            return Some(Self::Override(name));
        }
        sent.request(method.as_str()).obscure.then_some(Self::Path)
    }

    fn words(self) -> String {
        match self {
            Self::Method => "rules know no such method".to_owned(),
            Self::Override(name) => format!("the header {name} may stand for another method; leave it out"),
            Self::Path => {
                "the path may mean one thing to the cluster and another to a rule; ask for the plain one, \
                           without `..`, `//`, backslashes and needless percent-encoding"
                    .to_owned()
            }
            Self::Client => {
                "it is for some addresses, and the proxy in between says none in X-Forwarded-For that can be read"
                    .to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests;
