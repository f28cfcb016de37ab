//! What GitLab answers, as types. Before it: JSON of any generation; unknown fields are ignored, missing ones empty. After
//! it: whoever asked. What names folders or decides about rights is checked here, before anything uses it.

use crate::gitaly::{self, GitalyToken};
use postern_wire::ids::{AgentId, ProjectId};
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// An answer that may be unusable although it is JSON.
pub(super) trait Check {
    /// Says what is wrong with it.
    fn check(&self) -> Result<(), &'static str>;
}

/// `null` is as good as nothing, as in Go.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn gitaly_token<'de, D: Deserializer<'de>>(from: D) -> Result<GitalyToken, D::Error> {
    Ok(GitalyToken::new(nullable::<D, String>(from)?))
}

/// The id of something in GitLab.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub struct Id {
    /// Positive.
    #[serde(default)]
    pub id: i64,
}

/// Where and how to ask Gitaly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct GitalyInfo {
    /// `tcp://`, `tls://`, `unix:` or `dns:`.
    #[serde(default, deserialize_with = "nullable")]
    pub address: String,
    /// Empty: no authentication.
    #[serde(default, deserialize_with = "gitaly_token")]
    pub token: GitalyToken,
    /// Whole gRPC metadata keys and their values.
    #[serde(default, deserialize_with = "nullable")]
    pub features: BTreeMap<String, String>,
}

/// A repository in Gitaly's terms; copied as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct GitalyRepository {
    #[serde(deserialize_with = "nullable")]
    pub storage_name: String,
    #[serde(deserialize_with = "nullable")]
    pub relative_path: String,
    #[serde(deserialize_with = "nullable")]
    pub gl_repository: String,
    #[serde(deserialize_with = "nullable")]
    pub gl_project_path: String,
}

/// A project and where it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectInfo {
    pub project_id: ProjectId,
    pub gitaly_info: GitalyInfo,
    pub gitaly_repository: GitalyRepository,
    /// Old Rails do not say.
    pub default_branch: Option<String>,
}

impl ProjectInfo {
    /// Where its repository is, in the terms of the client that asks there.
    pub fn source(&self) -> gitaly::Source {
        let repository = self.gitaly_repository.clone();
        gitaly::Source {
            server: gitaly::Server {
                address: self.gitaly_info.address.clone(),
                token: self.gitaly_info.token.clone(),
                features: self.gitaly_info.features.clone(),
            },
            repository: gitaly::GitalyRepository {
                storage_name: repository.storage_name,
                relative_path: repository.relative_path,
                gl_repository: repository.gl_repository,
                gl_project_path: repository.gl_project_path,
                ..Default::default()
            },
        }
    }
}

/// Who an agent is, and the project of its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentInfo {
    pub agent_id: AgentId,
    /// A DNS label: it names the folder of the configuration.
    pub agent_name: String,
    /// The configuration project.
    pub project: ProjectInfo,
}

/// Both of them, as JSON has them.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
pub(super) struct InfoDocument {
    project_id: i64,
    agent_id: i64,
    #[serde(deserialize_with = "nullable")]
    agent_name: String,
    #[serde(deserialize_with = "nullable")]
    gitaly_info: GitalyInfo,
    #[serde(deserialize_with = "nullable")]
    gitaly_repository: GitalyRepository,
    default_branch: Option<String>,
}

impl InfoDocument {
    pub(super) fn has_default_branch(&self) -> bool {
        self.default_branch.as_ref().is_some_and(|branch| !branch.is_empty())
    }

    pub(super) fn project(self) -> Result<ProjectInfo, &'static str> {
        if self.project_id <= 0 {
            return Err("project_id is missing");
        }
        Ok(ProjectInfo {
            project_id: ProjectId(self.project_id),
            gitaly_info: self.gitaly_info,
            gitaly_repository: self.gitaly_repository,
            default_branch: self.default_branch.filter(|branch| !branch.is_empty()),
        })
    }

    pub(super) fn agent(self) -> Result<AgentInfo, &'static str> {
        if self.agent_id <= 0 {
            return Err("agent_id is missing");
        }
        if !is_label(&self.agent_name) {
            return Err("agent_name is missing or no name of an agent");
        }
        let (agent_id, agent_name) = (AgentId(self.agent_id), self.agent_name.clone());
        Ok(AgentInfo { agent_id, agent_name, project: self.project()? })
    }
}

fn is_label(name: &str) -> bool {
    let letters = name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    letters && !name.is_empty() && !name.starts_with('-') && !name.ends_with('-')
}

/// What a CI job may reach, and who it is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AllowedAgents {
    /// Each for itself: an entry that makes no sense lets nobody in, and the others stay.
    #[serde(deserialize_with = "allowed_agents")]
    pub allowed_agents: Vec<AllowedAgent>,
    pub job: Id,
    pub pipeline: Id,
    pub project: JobProject,
    pub user: JobUser,
    /// Absent for jobs that have none.
    pub environment: Option<Environment>,
    /// From the answer's `Gitlab-Feature-Flag` header.
    #[serde(skip)]
    pub feature_flags: HashMap<String, String>,
}

/// One agent of [`AllowedAgents`].
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AllowedAgent {
    pub id: i64,
    pub config_project: Id,
    /// The entry of `ci_access` that lets the job in; old Rails do not say.
    #[serde(deserialize_with = "nullable")]
    pub configuration: CiAccess,
}

fn allowed_agents<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<AllowedAgent>, D::Error> {
    let entries: Vec<Value> = nullable(from)?;
    Ok(entries.into_iter().filter_map(AllowedAgent::of).collect())
}

impl AllowedAgent {
    /// `None`: nobody can tell whose entry it is. One that makes no sense otherwise is for its agent, and of no use.
    fn of(entry: Value) -> Option<Self> {
        let id = entry.get("id").and_then(Value::as_i64).filter(|id| *id > 0);
        let Some(id) = id else {
            tracing::warn!("GitLab lists an allowed agent without an id; it is left out");
            return None;
        };
        let problem = match serde_json::from_value::<Self>(entry) {
            Ok(agent) if agent.config_project.id > 0 => return Some(agent),
            Ok(_) => "no configuration project".to_owned(),
            Err(error) => error.to_string().chars().take(200).collect(),
        };
        tracing::warn!(
            agent_id = id,
            error = problem,
            "GitLab lists an allowed agent in a way that makes no sense"
        );
        let access_as = CiAccessAs::Unknown("malformed".to_owned());
        let configuration = CiAccess { access_as, ..CiAccess::default() };
        Some(Self { id, configuration, ..Self::default() })
    }
}

/// An entry of `ci_access`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct CiAccess {
    /// Empty: the cluster's own default.
    #[serde(deserialize_with = "nullable")]
    pub default_namespace: String,
    pub access_as: CiAccessAs,
}

/// As whom a CI job's requests reach the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum CiAccessAs {
    /// As the agent itself; also when nothing at all is said.
    #[default]
    Agent,
    /// As somebody who is named.
    Impersonate(Impersonation),
    /// As the job.
    CiJob,
    /// As the user who started the job.
    CiUser,
    /// In a way that is not known here: to be refused, never to be taken for the agent.
    Unknown(String),
}

/// Whom to impersonate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Impersonation {
    #[serde(deserialize_with = "nullable")]
    pub username: String,
    #[serde(deserialize_with = "nullable")]
    pub groups: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub uid: String,
    #[serde(deserialize_with = "nullable")]
    pub extra: Vec<ImpersonationExtra>,
}

/// An extra value of [`Impersonation`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ImpersonationExtra {
    pub key: String,
    #[serde(deserialize_with = "nullable")]
    pub val: Vec<String>,
}

/// A job's project.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct JobProject {
    pub id: i64,
    #[serde(deserialize_with = "nullable")]
    pub groups: Vec<Id>,
}

/// Who started a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct JobUser {
    pub id: i64,
    #[serde(deserialize_with = "nullable")]
    pub username: String,
    #[serde(deserialize_with = "nullable")]
    pub roles_in_project: Vec<String>,
}

/// A job's environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Environment {
    #[serde(deserialize_with = "nullable")]
    pub slug: String,
    #[serde(deserialize_with = "nullable")]
    pub tier: String,
}

/// The one way of `access_as` that a document names, with its content, which is `null` only if that of all is; `None`
/// if it names none.
fn one_of<'de, D: Deserializer<'de>>(from: D) -> Result<Option<(String, Value)>, D::Error> {
    let ways: BTreeMap<String, Value> = nullable(from)?;
    let (nulls, mut ways): (Vec<_>, Vec<_>) = ways.into_iter().partition(|(_, content)| content.is_null());
    match ways.len() {
        0 => Ok(nulls.into_iter().next()),
        1 => Ok(ways.pop()),
        _ => Err(de::Error::custom("access_as names more than one way")),
    }
}

impl<'de> Deserialize<'de> for CiAccessAs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let Some((way, content)) = one_of(from)? else { return Ok(Self::Agent) };
        Ok(match way.as_str() {
            // Whoever wrote a way wanted something else than the agent's rights by saying nothing.
            _ if content.is_null() => Self::Unknown(way),
            "agent" => Self::Agent,
            "impersonate" => Self::Impersonate(serde_json::from_value(content).map_err(de::Error::custom)?),
            "ci_job" => Self::CiJob,
            "ci_user" => Self::CiUser,
            _ => Self::Unknown(way),
        })
    }
}

impl Check for AllowedAgents {
    fn check(&self) -> Result<(), &'static str> {
        let ids = [self.job.id, self.pipeline.id, self.project.id, self.user.id];
        if ids.iter().any(|id| *id <= 0) {
            return Err("the id of the job, its pipeline, project or user is missing");
        }
        Ok(())
    }
}

/// A user who may reach an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ProxyUser {
    pub agent: ProxyAgent,
    pub user: JobUser,
    pub access_as: UserAccessAs,
}

/// The agent of [`ProxyUser`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ProxyAgent {
    pub id: i64,
    pub config_project: Id,
}

/// As whom a user's requests reach the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UserAccessAs {
    /// As the agent itself.
    Agent,
    /// As the user, with the roles that let them in.
    User(UserRoles),
    /// Not said, or in a way that is not known here: to be refused.
    #[default]
    Unknown,
}

/// Where a user's roles come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct UserRoles {
    #[serde(deserialize_with = "nullable")]
    pub projects: Vec<Roles>,
    #[serde(deserialize_with = "nullable")]
    pub groups: Vec<Roles>,
}

/// A user's roles in one project or group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Roles {
    pub id: i64,
    #[serde(deserialize_with = "nullable")]
    pub roles: Vec<String>,
}

impl<'de> Deserialize<'de> for UserAccessAs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let Some((way, content)) = one_of(from)? else { return Ok(Self::Unknown) };
        Ok(match way.as_str() {
            _ if content.is_null() => Self::Unknown,
            "agent" => Self::Agent,
            "user" => Self::User(serde_json::from_value(content).map_err(de::Error::custom)?),
            _ => Self::Unknown,
        })
    }
}

impl Check for ProxyUser {
    fn check(&self) -> Result<(), &'static str> {
        let ids = [self.agent.id, self.agent.config_project.id, self.user.id];
        if ids.iter().any(|id| *id <= 0) || self.user.username.is_empty() {
            return Err("the agent, its project or the user is missing");
        }
        Ok(())
    }
}

impl Check for InfoDocument {
    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn agent(document: Value) -> Result<AgentInfo, &'static str> {
        serde_json::from_value::<InfoDocument>(document).unwrap().agent()
    }

    #[test]
    fn an_agent_has_ids_and_a_name_that_can_be_a_folder() {
        let good = agent(json!({"project_id": 1, "agent_id": 2, "agent_name": "a-1", "gitaly_info": null}));
        assert_eq!(good.unwrap().project.project_id, ProjectId(1));
        for name in ["", "../a", "a/b", "A", "-a", "a-", "a_b", "."] {
            assert!(agent(json!({"project_id": 1, "agent_id": 2, "agent_name": name})).is_err(), "{name}");
        }
        assert!(agent(json!({"project_id": 0, "agent_id": 2, "agent_name": "a"})).is_err());
        assert!(agent(json!({"project_id": 1, "agent_name": "a"})).is_err());
    }

    #[test]
    fn what_access_as_does_not_say_clearly_is_never_the_agent() {
        let ci = |document: Value| serde_json::from_value::<CiAccessAs>(document);
        assert_eq!(ci(json!({})).unwrap(), CiAccessAs::Agent);
        assert_eq!(ci(Value::Null).unwrap(), CiAccessAs::Agent);
        assert_eq!(ci(json!({"ci_job": {}})).unwrap(), CiAccessAs::CiJob);
        assert_eq!(ci(json!({"ci_user": {}})).unwrap(), CiAccessAs::CiUser);
        assert_eq!(ci(json!({"robot": {}})).unwrap(), CiAccessAs::Unknown("robot".to_owned()));
        assert!(ci(json!({"agent": {}, "ci_job": {}})).is_err());
        assert!(ci(json!({"impersonate": {"groups": "g"}})).is_err());
        let somebody = json!({"impersonate": {"username": "u", "extra": [{"key": "k", "val": ["v"]}]}});
        assert!(matches!(ci(somebody).unwrap(), CiAccessAs::Impersonate(who) if who.extra.len() == 1));
        for (document, way) in [
            (json!({"ci_job": null}), "ci_job"),
            (json!({"agent": null}), "agent"),
            (json!({"b": null, "a": null}), "a"),
        ] {
            assert_eq!(ci(document).unwrap(), CiAccessAs::Unknown(way.to_owned()));
        }
        assert_eq!(ci(json!({"agent": null, "ci_job": {}})).unwrap(), CiAccessAs::CiJob);
        let user = |document: Value| serde_json::from_value::<UserAccessAs>(document).unwrap();
        assert_eq!(user(json!({"agent": null})), UserAccessAs::Unknown);
        assert_eq!(user(json!({})), UserAccessAs::Unknown);
        assert_eq!(user(json!({"agent": {}})), UserAccessAs::Agent);
    }

    #[test]
    fn an_entry_that_makes_no_sense_is_refused_and_the_others_stay() {
        let entry = |id: Value, configuration: Value| json!({"id": id, "config_project": {"id": 10}, "configuration": configuration});
        let allowed: AllowedAgents = serde_json::from_value(json!({
            "allowed_agents": [
                entry(json!(1), json!({"access_as": {"impersonate": {"groups": "g"}}})),
                entry(json!(2), json!({"access_as": {"agent": {}, "ci_job": {}}})),
                entry(json!(3), json!({"access_as": "agent"})),
                entry(json!(4), json!("x")),
                {"id": 5, "config_project": null},
                {"id": 6},
                entry(json!("7"), Value::Null),
                entry(json!(-8), Value::Null),
                "x",
                null,
                entry(json!(9), json!({"access_as": {"ci_job": {}}})),
                entry(json!(10), Value::Null),
            ],
            "job": {"id": 7}, "pipeline": {"id": 8}, "user": {"id": 5}, "project": {"id": 10},
        }))
        .unwrap();
        assert_eq!(allowed.check(), Ok(()));
        let refused = CiAccessAs::Unknown("malformed".to_owned());
        let found: Vec<_> =
            allowed.allowed_agents.iter().map(|a| (a.id, &a.configuration.access_as)).collect();
        let mut wanted: Vec<_> = (1..=6).map(|id| (id, &refused)).collect();
        wanted.extend([(9, &CiAccessAs::CiJob), (10, &CiAccessAs::Agent)]);
        assert_eq!(found, wanted);
    }

    #[test]
    fn gitalys_token_cannot_be_printed() {
        let info = GitalyInfo { token: GitalyToken::new("SECRET"), ..GitalyInfo::default() };
        assert!(!format!("{info:?}").contains("SECRET"));
    }
}
