//! The calls, one function each: its path, as whom it is asked, what a success is. Before it: whoever needs to know. After
//! it: the way that all questions go. An error says what GitLab said; what follows from it, the caller decides.

use super::{
    AgentEvents, AgentInfo, AllowedAgents, Asker, Call, Fault, JobToken, ProjectInfo, ProxyUser, Question,
    Rails, RailsError, Usage, UsageForm, answers::InfoDocument,
};
use crate::rate::Lane;
use http::{HeaderMap, Method};
use postern_wire::{
    ids::AgentId,
    token::{AgentToken, TokenKey},
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{collections::HashMap, fmt, sync::atomic::Ordering};
use url::form_urlencoded;

const KUBERNETES: &str = "api/v4/internal/kubernetes/";
/// Feature flags of one answer that are kept.
const FLAGS: usize = 100;

/// How a user proves who they are. `Debug` shows only which way it is.
pub enum ProxyAccess {
    /// A session cookie's value, encrypted as the browser has it, and the CSRF token that belongs to it.
    SessionCookie { key: String, csrf_token: String },
    /// A personal access token.
    PersonalAccessToken { key: String },
}

impl ProxyAccess {
    /// Tells credentials apart without keeping them; what separates the parts is in none of them.
    pub(super) fn key(&self) -> TokenKey {
        match self {
            Self::SessionCookie { key, csrf_token } => {
                TokenKey::of(format!("session_cookie\0{key}\0{csrf_token}").as_bytes())
            }
            Self::PersonalAccessToken { key } => {
                TokenKey::of(format!("personal_access_token\0{key}").as_bytes())
            }
        }
    }
}

impl fmt::Debug for ProxyAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SessionCookie { .. } => "SessionCookie",
            Self::PersonalAccessToken { .. } => "PersonalAccessToken",
        })
    }
}

fn get<'a>(name: &'static str, target: String, asker: Asker<'a>) -> Question<'a> {
    let lane = match asker {
        Asker::Job(_) => Lane::Callers,
        Asker::Agent(_) | Asker::Kas => Lane::Agents,
    };
    Question { name, method: Method::GET, target, asker, lane, document: None }
}

fn post(name: &'static str, document: Value) -> Question<'static> {
    let target = format!("{KUBERNETES}{name}");
    let (asker, lane) = (Asker::Kas, Lane::Agents);
    Question { name, method: Method::POST, target, asker, lane, document: Some(document) }
}

fn with_project(name: &str, project: &str) -> String {
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("id", project).finish();
    format!("{KUBERNETES}{name}?{query}")
}

impl Rails {
    /// Who this agent is.
    pub async fn agent_info(&self, token: &AgentToken, call: &Call) -> Result<AgentInfo, RailsError> {
        let name = "agent_info";
        let question = get(name, format!("{KUBERNETES}{name}"), Asker::Agent(token));
        let (_, info) = self.json::<InfoDocument>(question, call).await?;
        self.learn_age(&info);
        info.agent().map_err(|what| self.error(name, Fault::Malformed(what.to_owned())))
    }

    /// A project by number or `group/path`, if this agent may read it; else 404. Newest GitLab has this call no more.
    pub async fn project_info(
        &self,
        token: &AgentToken,
        project: &str,
        call: &Call,
    ) -> Result<ProjectInfo, RailsError> {
        let name = "project_info";
        let question = get(name, with_project(name, project), Asker::Agent(token));
        let (_, info) = self.json::<InfoDocument>(question, call).await?;
        self.learn_age(&info);
        info.project().map_err(|what| self.error(name, Fault::Malformed(what.to_owned())))
    }

    /// Once newer, it stays so: a project without a repository has no default branch anywhere.
    fn learn_age(&self, info: &InfoDocument) {
        if info.has_default_branch() {
            self.newer.store(true, Ordering::Relaxed);
        }
    }

    /// Whether this agent may read a project: 401, 403 and 404 are a no.
    pub async fn verify_project_access(
        &self,
        token: &AgentToken,
        project: &str,
        call: &Call,
    ) -> Result<(), RailsError> {
        let name = "verify_project_access";
        self.done(get(name, with_project(name, project), Asker::Agent(token)), call).await
    }

    /// Which agents a CI job may reach, and who it is; 401 once the job is over.
    pub async fn allowed_agents(&self, token: &JobToken, call: &Call) -> Result<AllowedAgents, RailsError> {
        let question = get("allowed_agents", "api/v4/job/allowed_agents".to_owned(), Asker::Job(token));
        let (headers, mut allowed) = self.json::<AllowedAgents>(question, call).await?;
        allowed.feature_flags = feature_flags(&headers);
        Ok(allowed)
    }

    /// Who a user is that wants to reach this agent, and as whom they may.
    pub async fn authorize_proxy_user(
        &self,
        agent: AgentId,
        access: &ProxyAccess,
        call: &Call,
    ) -> Result<ProxyUser, RailsError> {
        let document = match access {
            ProxyAccess::SessionCookie { key, csrf_token } => json!({
                "agent_id": agent.0,
                "access_type": "session_cookie",
                "access_key": key,
                "csrf_token": csrf_token,
            }),
            ProxyAccess::PersonalAccessToken { key } => json!({
                "agent_id": agent.0,
                "access_type": "personal_access_token",
                "access_key": key,
            }),
        };
        let name = "authorize_proxy_user";
        let question = Question { lane: Lane::Callers, ..post(name, document) };
        let (_, user) = self.json::<ProxyUser>(question, call).await?;
        if user.agent.id != agent.0 {
            let what = "it is about another agent than was asked for".to_owned();
            return Err(self.error(name, Fault::Malformed(what)));
        }
        Ok(user)
    }

    /// Reports what was counted; nothing is sent if that is nothing. Only after a success may it be subtracted.
    pub async fn usage_metrics(&self, usage: &Usage, form: UsageForm, call: &Call) -> Result<(), RailsError> {
        match usage.document(form) {
            Some(document) => self.done(post("usage_metrics", document), call).await,
            None => Ok(()),
        }
    }

    /// Reports the configuration that an agent has now: a document with the names that its file has.
    pub async fn agent_configuration(
        &self,
        agent: AgentId,
        configuration: &impl Serialize,
        call: &Call,
    ) -> Result<(), RailsError> {
        let name = "agent_configuration";
        let configuration = serde_json::to_value(configuration)
            .map_err(|_| self.error(name, Fault::Illegal("the configuration cannot be written as JSON")))?;
        let document = json!({"agent_id": agent.0, "agent_config": configuration});
        self.done(post(name, document), call).await
    }

    /// Reports events; nothing is sent if there are none.
    pub async fn agent_events(&self, events: &AgentEvents, call: &Call) -> Result<(), RailsError> {
        match events.document() {
            Some(document) => self.done(post("agent_events", document), call).await,
            None => Ok(()),
        }
    }
}

/// `a=true, b=false`
fn feature_flags(headers: &HeaderMap) -> HashMap<String, String> {
    let values = headers.get_all("gitlab-feature-flag").iter().filter_map(|value| value.to_str().ok());
    let flags = values.flat_map(|value| value.split(',')).filter_map(|flag| flag.split_once('='));
    flags.take(FLAGS).map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect()
}
