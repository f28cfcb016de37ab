//! What a configuration asks to be received: its manifest projects by path, with the agent's defaults filled in.
//! After it: `gitops.rs`, which starts and stops tasks. It asks nobody and does not judge how manifests are applied.

use postern_wire::proto::gitlab::agent::agentcfg::{AgentConfiguration, ManifestProjectCf, PathCf, path_cf};
use std::collections::BTreeMap;

/// More projects than this are a mistake. Each may hold two commits: the latest and the one that comes.
pub const PROJECTS: usize = 100;
/// What is received of a project whose paths nobody chose.
const EVERYTHING: &str = "**/*.{yaml,yml,json}";

/// Why manifest projects cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Two entries would fight over the same objects.
    #[error("the manifest project {project:?} is configured twice; join the paths of both entries into one")]
    Twice {
        /// Its path.
        project: String,
    },
    /// An entry without `id` means the configuration's project, which old brokers do not name.
    #[error(
        "a manifest project has no id, and the broker does not say which project the configuration is in"
    )]
    Nameless,
    /// More than [`PROJECTS`].
    #[error("{count} manifest projects are configured, and this agent follows at most {PROJECTS}")]
    Many {
        /// As configured.
        count: usize,
    },
}

/// By project path.
///
/// # Errors
/// What is wrong with the configuration as a whole; no part of it is to be followed then.
pub fn plan(configuration: &AgentConfiguration) -> Result<BTreeMap<String, ManifestProjectCf>, PlanError> {
    let projects = configuration.gitops.as_ref().map_or(&[][..], |gitops| &gitops.manifest_projects);
    if projects.len() > PROJECTS {
        return Err(PlanError::Many { count: projects.len() });
    }
    let mut plan = BTreeMap::new();
    for project in projects {
        let mut project = project.clone();
        if project.id.is_empty() {
            project.id.clone_from(&configuration.project_path);
        }
        if project.id.is_empty() {
            return Err(PlanError::Nameless);
        }
        if project.paths.is_empty() {
            let glob = path_cf::Path::Glob(EVERYTHING.to_owned());
            project.paths.push(PathCf { path: Some(glob) });
        }
        let id = project.id.clone();
        if plan.insert(id.clone(), project).is_some() {
            return Err(PlanError::Twice { project: id });
        }
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_wire::proto::gitlab::agent::agentcfg::GitopsCf;

    fn configuration(ids: &[&str], project_path: &str) -> AgentConfiguration {
        let project = |id: &&str| ManifestProjectCf { id: (*id).to_owned(), ..Default::default() };
        AgentConfiguration {
            gitops: Some(GitopsCf { manifest_projects: ids.iter().map(project).collect() }),
            project_path: project_path.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn defaults_are_the_configurations_project_and_every_manifest() {
        let plan = plan(&configuration(&["group/a", ""], "group/config")).unwrap();
        assert_eq!(plan.keys().collect::<Vec<_>>(), ["group/a", "group/config"]);
        assert_eq!(plan["group/config"].id, "group/config");
        let glob = path_cf::Path::Glob("**/*.{yaml,yml,json}".to_owned());
        assert_eq!(plan["group/a"].paths, [PathCf { path: Some(glob) }]);
    }

    #[test]
    fn chosen_paths_stay_as_they_are() {
        let mut chosen = configuration(&["group/a"], "");
        let paths = vec![PathCf { path: Some(path_cf::Path::File("one.yaml".to_owned())) }];
        chosen.gitops.as_mut().unwrap().manifest_projects[0].paths.clone_from(&paths);
        assert_eq!(plan(&chosen).unwrap()["group/a"].paths, paths);
    }

    #[test]
    fn what_cannot_be_followed_is_refused_as_a_whole() {
        let twice = PlanError::Twice { project: "a".to_owned() };
        assert_eq!(plan(&configuration(&["a", "b", "a"], "")), Err(twice.clone()));
        assert_eq!(plan(&configuration(&["a", ""], "a")), Err(twice));
        assert_eq!(plan(&configuration(&[""], "")), Err(PlanError::Nameless));
        assert_eq!(plan(&configuration(&["a"; 101], "")), Err(PlanError::Many { count: 101 }));
        assert_eq!(plan(&AgentConfiguration::default()), Ok(BTreeMap::new()));
    }
}
