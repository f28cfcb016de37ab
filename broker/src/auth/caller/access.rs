//! As whom a caller's requests reach the cluster: as the agent itself, or as an identity whose names clusters' role bindings
//! refer to. Made from what GitLab answered; after it, the agent turns the identity into impersonation headers. What is not
//! understood is refused, never taken for the agent.

use crate::gitlab::{AllowedAgent, AllowedAgents, CiAccessAs, Impersonation, ProxyUser, UserAccessAs};
use postern_wire::proto::gitlab::agent::kubernetes_api::rpc::{ExtraKeyVal, ImpersonationConfig};
use std::{collections::BTreeSet, sync::Arc};

/// As whom. Equal where a cluster would make no difference: the order of groups has no meaning, and GitLab keeps none.
#[derive(Clone, Debug)]
pub enum Access {
    /// With the agent's own rights; the caller may impersonate as far as the agent may.
    Agent,
    /// As somebody else, and nobody else.
    As {
        /// As `access_as` spells it.
        mode: &'static str,
        /// Whom.
        identity: Arc<ImpersonationConfig>,
    },
}

impl Access {
    /// For logs.
    pub fn mode(&self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::As { mode, .. } => mode,
        }
    }
}

impl PartialEq for Access {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Agent, Self::Agent) => true,
            (Self::As { mode, identity }, Self::As { mode: other_mode, identity: other }) => {
                mode == other_mode
                    && (&identity.username, &identity.uid) == (&other.username, &other.uid)
                    && set(&identity.groups) == set(&other.groups)
                    && extras(identity) == extras(other)
            }
            _ => false,
        }
    }
}

fn set(values: &[String]) -> BTreeSet<&str> {
    values.iter().map(String::as_str).collect()
}

fn extras(identity: &ImpersonationConfig) -> BTreeSet<(&str, BTreeSet<&str>)> {
    identity.extra.iter().map(|extra| (extra.key.as_str(), set(&extra.val))).collect()
}

/// Why nobody can be found to send the request as.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Nobody {
    #[error("access_as of this agent's configuration is {0:?}, which this broker does not know")]
    Unknown(String),
    #[error("access_as of this agent's configuration is missing or not known to this broker")]
    Unsaid,
    /// A cluster would take it for the agent itself, or refuse it.
    #[error("access_as: {0} names no user")]
    Nameless(&'static str),
}

/// A CI job's.
pub(super) fn of_job(allowed: &AllowedAgents, agent: &AllowedAgent) -> Result<Access, Nobody> {
    let (mode, identity) = match &agent.configuration.access_as {
        CiAccessAs::Agent => return Ok(Access::Agent),
        CiAccessAs::Impersonate(who) => ("impersonate", configured(who)),
        CiAccessAs::CiJob => ("ci_job", job(allowed, agent)),
        CiAccessAs::CiUser => ("ci_user", job_user(allowed, agent)),
        CiAccessAs::Unknown(way) => return Err(Nobody::Unknown(way.chars().take(64).collect())),
    };
    named(mode, identity)
}

/// A user's. `access_type` is GitLab's word for how they proved who they are.
pub(super) fn of_user(user: &ProxyUser, access_type: &str) -> Result<Access, Nobody> {
    let roles = match &user.access_as {
        UserAccessAs::Agent => return Ok(Access::Agent),
        UserAccessAs::User(roles) => roles,
        UserAccessAs::Unknown => return Err(Nobody::Unsaid),
    };
    let mut groups = vec!["gitlab:user".to_owned()];
    for project in &roles.projects {
        groups.extend(project.roles.iter().map(|role| format!("gitlab:project_role:{}:{role}", project.id)));
    }
    for group in &roles.groups {
        groups.extend(group.roles.iter().map(|role| format!("gitlab:group_role:{}:{role}", group.id)));
    }
    let extra = vec![
        extra("id", user.agent.id.to_string()),
        extra("username", user.user.username.clone()),
        extra("access_type", access_type.to_owned()),
        extra("config_project_id", user.agent.config_project.id.to_string()),
    ];
    let username = user_name(&user.user.username);
    named("user", ImpersonationConfig { username, groups, uid: String::new(), extra })
}

fn named(mode: &'static str, identity: ImpersonationConfig) -> Result<Access, Nobody> {
    if identity.username.is_empty() {
        return Err(Nobody::Nameless(mode));
    }
    Ok(Access::As { mode, identity: Arc::new(identity) })
}

/// Empty if there is no name, so that it is refused.
fn user_name(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!("gitlab:user:{name}") }
}

fn configured(who: &Impersonation) -> ImpersonationConfig {
    let extra = who.extra.iter().map(|extra| ExtraKeyVal { key: extra.key.clone(), val: extra.val.clone() });
    ImpersonationConfig {
        username: who.username.clone(),
        groups: who.groups.clone(),
        uid: who.uid.clone(),
        extra: extra.collect(),
    }
}

fn job(allowed: &AllowedAgents, agent: &AllowedAgent) -> ImpersonationConfig {
    let environment = allowed.environment.as_ref();
    let slug = environment.map(|environment| environment.slug.as_str()).filter(|slug| !slug.is_empty());
    let tier = environment.map(|environment| environment.tier.as_str()).filter(|tier| !tier.is_empty());
    let mut groups = vec!["gitlab:ci_job".to_owned()];
    for group in &allowed.project.groups {
        groups.push(format!("gitlab:group:{}", group.id));
        groups.extend(tier.map(|tier| format!("gitlab:group_env_tier:{}:{tier}", group.id)));
    }
    let project = allowed.project.id;
    groups.push(format!("gitlab:project:{project}"));
    groups.extend(slug.map(|slug| format!("gitlab:project_env:{project}:{slug}")));
    groups.extend(tier.map(|tier| format!("gitlab:project_env_tier:{project}:{tier}")));
    ImpersonationConfig {
        username: format!("gitlab:ci_job:{}", allowed.job.id),
        groups,
        uid: String::new(),
        extra: job_extra(allowed, agent),
    }
}

/// Documented nowhere that could be read: named like a user who came on their own, described like the job. The answer has
/// the roles in the job's project and no others.
fn job_user(allowed: &AllowedAgents, agent: &AllowedAgent) -> ImpersonationConfig {
    let project = allowed.project.id;
    let roles = allowed.user.roles_in_project.iter();
    let roles = roles.map(|role| format!("gitlab:project_role:{project}:{role}"));
    ImpersonationConfig {
        username: user_name(&allowed.user.username),
        groups: std::iter::once("gitlab:user".to_owned()).chain(roles).collect(),
        uid: String::new(),
        extra: job_extra(allowed, agent),
    }
}

fn job_extra(allowed: &AllowedAgents, agent: &AllowedAgent) -> Vec<ExtraKeyVal> {
    let mut all = vec![
        extra("id", agent.id.to_string()),
        extra("config_project_id", agent.config_project.id.to_string()),
        extra("project_id", allowed.project.id.to_string()),
        extra("ci_pipeline_id", allowed.pipeline.id.to_string()),
        extra("ci_job_id", allowed.job.id.to_string()),
        extra("username", allowed.user.username.clone()),
    ];
    if let Some(environment) = &allowed.environment {
        let known = [("environment_slug", &environment.slug), ("environment_tier", &environment.tier)];
        let known = known.into_iter().filter(|(_, value)| !value.is_empty());
        all.extend(known.map(|(key, value)| extra(key, value.clone())));
    }
    all
}

fn extra(key: &str, value: String) -> ExtraKeyVal {
    ExtraKeyVal { key: format!("agent.gitlab.com/{key}"), val: vec![value] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn job_of(configuration: Value, environment: Value) -> AllowedAgents {
        serde_json::from_value(json!({
            "allowed_agents": [
                {"id": 17, "config_project": {"id": 20}, "configuration": configuration}
            ],
            "job": {"id": 7}, "pipeline": {"id": 8},
            "project": {"id": 150, "groups": [{"id": 23}, {"id": 25}]},
            "user": {"id": 5, "username": "ada", "roles_in_project": ["guest", "developer"]},
            "environment": environment,
        }))
        .unwrap()
    }

    fn access(configuration: Value, environment: Value) -> Result<Access, Nobody> {
        let allowed = job_of(configuration, environment);
        of_job(&allowed, &allowed.allowed_agents[0])
    }

    fn identity(access: Result<Access, Nobody>, wanted: &str) -> Arc<ImpersonationConfig> {
        let Ok(Access::As { mode, identity }) = access else { panic!("{access:?}") };
        assert_eq!(mode, wanted);
        identity
    }

    fn pairs(identity: &ImpersonationConfig) -> Vec<(&str, &str)> {
        let one = |extra: &'_ ExtraKeyVal| assert_eq!(extra.val.len(), 1);
        identity.extra.iter().for_each(one);
        identity.extra.iter().map(|extra| (extra.key.as_str(), extra.val[0].as_str())).collect()
    }

    #[test]
    fn without_a_word_a_job_comes_as_the_agent() {
        for configuration in [Value::Null, json!({}), json!({"access_as": {"agent": {}}})] {
            assert_eq!(access(configuration, Value::Null), Ok(Access::Agent));
        }
    }

    #[test]
    fn a_job_is_its_project_its_groups_and_its_environment() {
        let as_job = || json!({"access_as": {"ci_job": {}}});
        let plain = identity(access(as_job(), Value::Null), "ci_job");
        assert_eq!(plain.username, "gitlab:ci_job:7");
        assert_eq!(
            plain.groups,
            ["gitlab:ci_job", "gitlab:group:23", "gitlab:group:25", "gitlab:project:150"]
        );
        let mut wanted = vec![
            ("agent.gitlab.com/id", "17"),
            ("agent.gitlab.com/config_project_id", "20"),
            ("agent.gitlab.com/project_id", "150"),
            ("agent.gitlab.com/ci_pipeline_id", "8"),
            ("agent.gitlab.com/ci_job_id", "7"),
            ("agent.gitlab.com/username", "ada"),
        ];
        assert_eq!(pairs(&plain), wanted);
        assert!(plain.uid.is_empty());

        let environment = json!({"slug": "prod", "tier": "production"});
        let deploying = identity(access(as_job(), environment), "ci_job");
        assert_eq!(
            deploying.groups,
            [
                "gitlab:ci_job",
                "gitlab:group:23",
                "gitlab:group_env_tier:23:production",
                "gitlab:group:25",
                "gitlab:group_env_tier:25:production",
                "gitlab:project:150",
                "gitlab:project_env:150:prod",
                "gitlab:project_env_tier:150:production",
            ]
        );
        wanted.push(("agent.gitlab.com/environment_slug", "prod"));
        wanted.push(("agent.gitlab.com/environment_tier", "production"));
        assert_eq!(pairs(&deploying), wanted);

        let old = identity(access(as_job(), json!({"slug": "prod"})), "ci_job");
        assert_eq!(old.groups.last().unwrap(), "gitlab:project_env:150:prod");
    }

    #[test]
    fn somebody_configured_is_taken_as_configured() {
        let who = json!({"access_as": {"impersonate": {
            "username": "u", "groups": ["g", "h"], "uid": "i", "extra": [{"key": "k", "val": ["v", "w"]}]
        }}});
        let identity = identity(access(who, Value::Null), "impersonate");
        let extra = vec![ExtraKeyVal { key: "k".into(), val: vec!["v".into(), "w".into()] }];
        let wanted = ImpersonationConfig {
            username: "u".into(),
            groups: vec!["g".into(), "h".into()],
            uid: "i".into(),
            extra,
        };
        assert_eq!(*identity, wanted);
    }

    #[test]
    fn a_jobs_user_has_their_roles_in_its_project() {
        let identity = identity(access(json!({"access_as": {"ci_user": {}}}), Value::Null), "ci_user");
        assert_eq!(identity.username, "gitlab:user:ada");
        assert_eq!(
            identity.groups,
            ["gitlab:user", "gitlab:project_role:150:guest", "gitlab:project_role:150:developer"]
        );
        assert!(pairs(&identity).contains(&("agent.gitlab.com/ci_job_id", "7")));
    }

    #[test]
    fn whoever_is_not_named_is_nobody() {
        let robot = access(json!({"access_as": {"robot": {}}}), Value::Null);
        assert_eq!(robot, Err(Nobody::Unknown("robot".into())));
        let nameless = access(json!({"access_as": {"impersonate": {"groups": ["g"]}}}), Value::Null);
        assert_eq!(nameless, Err(Nobody::Nameless("impersonate")));
        let mut anonymous = job_of(json!({"access_as": {"ci_user": {}}}), Value::Null);
        anonymous.user.username.clear();
        assert_eq!(of_job(&anonymous, &anonymous.allowed_agents[0]), Err(Nobody::Nameless("ci_user")));
    }

    #[test]
    fn a_user_has_all_roles_that_let_them_in() {
        let user = |access_as: Value| -> ProxyUser {
            serde_json::from_value(json!({
                "agent": {"id": 17, "config_project": {"id": 20}},
                "user": {"id": 5, "username": "ada"},
                "access_as": access_as,
            }))
            .unwrap()
        };
        let roles = json!({"user": {
            "projects": [{"id": 1, "roles": ["developer", "maintainer"]}],
            "groups": [{"id": 2, "roles": ["guest"]}],
        }});
        let identity = identity(of_user(&user(roles), "session_cookie"), "user");
        assert_eq!(identity.username, "gitlab:user:ada");
        assert_eq!(
            identity.groups,
            [
                "gitlab:user",
                "gitlab:project_role:1:developer",
                "gitlab:project_role:1:maintainer",
                "gitlab:group_role:2:guest"
            ]
        );
        assert_eq!(
            pairs(&identity),
            [
                ("agent.gitlab.com/id", "17"),
                ("agent.gitlab.com/username", "ada"),
                ("agent.gitlab.com/access_type", "session_cookie"),
                ("agent.gitlab.com/config_project_id", "20"),
            ]
        );
        assert_eq!(of_user(&user(json!({"agent": {}})), "x"), Ok(Access::Agent));
        assert_eq!(of_user(&user(json!({})), "x"), Err(Nobody::Unsaid));
    }

    #[test]
    fn an_access_is_the_same_in_whatever_order_gitlab_names_roles_and_groups() {
        let user = |projects: Value| -> ProxyUser {
            serde_json::from_value(json!({
                "agent": {"id": 17, "config_project": {"id": 20}},
                "user": {"id": 5, "username": "ada"},
                "access_as": {"user": {"projects": projects, "groups": []}},
            }))
            .unwrap()
        };
        let of = |projects: Value| of_user(&user(projects), "session_cookie").unwrap();
        let one = of(json!([{"id": 1, "roles": ["developer", "reporter"]}, {"id": 2, "roles": ["guest"]}]));
        let same = of(json!([{"id": 2, "roles": ["guest"]}, {"id": 1, "roles": ["reporter", "developer"]}]));
        let less = of(json!([{"id": 1, "roles": ["developer"]}, {"id": 2, "roles": ["guest"]}]));
        assert_eq!(one, same);
        assert_ne!(one, less, "a role that was taken away is");

        let job = |groups: Value| {
            let mut allowed = job_of(json!({"access_as": {"ci_job": {}}}), Value::Null);
            allowed.project.groups = serde_json::from_value(groups).unwrap();
            of_job(&allowed, &allowed.allowed_agents[0]).unwrap()
        };
        assert_eq!(job(json!([{"id": 1}, {"id": 2}])), job(json!([{"id": 2}, {"id": 1}])));
        assert_ne!(job(json!([{"id": 1}, {"id": 2}])), job(json!([{"id": 2}])));
    }
}
