//! The seam to usage counters: told of each request that was let in. Before it: the decision. After it: whoever counts.

use crate::{
    auth::caller::{CallerPermit, Kind},
    usage::{Usage, Way},
};
use postern_wire::ids::{AgentId, ProjectId};
use std::fmt;

/// A request that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authorised {
    /// How the caller proved who it is.
    pub kind: Kind,
    /// The user behind it; `None` for tokens of the identities file.
    pub user: Option<i64>,
    /// Whom it may reach.
    pub agent: AgentId,
    /// Where the agent is configured; `None` for tokens of the identities file.
    pub config_project: Option<ProjectId>,
}

impl From<&CallerPermit> for Authorised {
    fn from(permit: &CallerPermit) -> Self {
        Self {
            kind: permit.kind,
            user: permit.who.user_id(),
            agent: permit.agent,
            config_project: permit.config_project,
        }
    }
}

/// Whoever counts. Called on the request's way: it must not wait.
pub trait Counted: fmt::Debug + Send + Sync {
    /// Counts one.
    fn authorised(&self, request: &Authorised);
}

/// Counts nothing.
impl Counted for () {
    fn authorised(&self, _: &Authorised) {}
}

impl Counted for Usage {
    fn authorised(&self, request: &Authorised) {
        let way = match request.kind {
            Kind::Postern => None,
            Kind::CiJob => Some(Way::Ci),
            Kind::PersonalAccessToken => Some(Way::Pat),
            Kind::SessionCookie => Some(Way::User),
        };
        let project = request.config_project.unwrap_or(ProjectId(0));
        self.kubernetes_api_request(way, request.user, request.agent, project.0);
    }
}
