//! Who may connect and who may call, from a YAML file: the embedded provider beside GitLab's. Reloaded when the
//! file changes; a bad change keeps the last good one. It holds hashes of tokens, never a token.

use crate::repositories::Place;
use arc_swap::ArcSwap;
use postern_certs::watch::FileWatch;
use postern_wire::{
    ids::{AgentId, ProjectId},
    token::TokenKey,
};
use serde::Deserialize;
use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// An agent, whoever says so: this file or GitLab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Positive and unique.
    pub id: AgentId,
    /// Names its folder in the repository: `.gitlab/agents/<name>/config.yaml`.
    pub name: String,
    /// The project of its configuration.
    pub project_id: ProjectId,
    /// `group/project`.
    pub project_path: String,
    /// Of its configuration.
    pub repository: Place,
}

/// A caller of the Kubernetes API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// For the audit log.
    pub name: String,
    /// The agents it may reach.
    pub agents: HashSet<AgentId>,
}

/// What became of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<T> {
    /// It is in force.
    Known(Arc<T>),
    /// It was in force once and is listed as revoked, of this agent if it was an agent's.
    Revoked(Option<AgentId>),
    /// Nobody has it.
    Unknown,
}

/// One version of the file, as meant.
#[derive(Debug, Default, PartialEq)]
pub struct Identities {
    agents: HashMap<TokenKey, Arc<Agent>>,
    callers: HashMap<TokenKey, Arc<Caller>>,
    revoked: HashMap<TokenKey, Option<AgentId>>,
    projects: HashMap<AgentId, ProjectId>,
}

impl Identities {
    /// The project of this agent's configuration; `None`: there is no such agent, or the file does not say.
    pub fn project(&self, agent: AgentId) -> Option<ProjectId> {
        self.projects.get(&agent).copied().filter(|project| project.0 != 0)
    }

    /// The agent that holds this token.
    pub fn agent(&self, key: &TokenKey) -> Verdict<Agent> {
        self.verdict(&self.agents, key)
    }

    /// The caller that holds this token.
    pub fn caller(&self, key: &TokenKey) -> Verdict<Caller> {
        self.verdict(&self.callers, key)
    }

    /// How many agents there are.
    pub fn agent_count(&self) -> usize {
        self.agents.values().map(|agent| agent.id).collect::<HashSet<_>>().len()
    }

    fn verdict<T>(&self, among: &HashMap<TokenKey, Arc<T>>, key: &TokenKey) -> Verdict<T> {
        if let Some(owner) = self.revoked.get(key) {
            return Verdict::Revoked(*owner);
        }
        among.get(key).map_or(Verdict::Unknown, |known| Verdict::Known(Arc::clone(known)))
    }
}

/// Why an identities file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentitiesError {
    /// Not there or not readable.
    #[error("cannot read the identities file {}", path.display())]
    Unreadable {
        /// As configured.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Not YAML, or a key that is not known; the message has the line.
    #[error("identities file {}: {message}", path.display())]
    Malformed {
        /// As configured.
        path: PathBuf,
        /// The parser's words, with line and column.
        message: String,
    },
    /// Everything that contradicts itself, in one text.
    #[error("identities file {}: {}", path.display(), problems.join("; "))]
    Invalid {
        /// As configured.
        path: PathBuf,
        /// All of them.
        problems: Vec<String>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    agents: Vec<AgentEntry>,
    #[serde(default)]
    callers: Vec<CallerEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentEntry {
    id: i64,
    name: String,
    #[serde(default)]
    project: ProjectEntry,
    repository: Option<PathBuf>,
    token_sha256: Vec<String>,
    #[serde(default)]
    revoked_token_sha256: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProjectEntry {
    #[serde(default)]
    id: i64,
    #[serde(default)]
    path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CallerEntry {
    name: String,
    agents: Vec<i64>,
    token_sha256: Vec<String>,
    #[serde(default)]
    revoked_token_sha256: Vec<String>,
}

/// Lower-case letters, digits and inner dashes, as GitLab names agents: it becomes part of a path.
fn is_agent_name(name: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

fn parse(text: &str, path: &Path) -> Result<Identities, IdentitiesError> {
    let file: File = serde_yaml::from_str(text).map_err(|error| IdentitiesError::Malformed {
        path: path.to_owned(),
        message: crate::error::yaml(&error),
    })?;
    let base = path.parent().unwrap_or(Path::new(""));
    let mut problems = Vec::new();
    let mut identities = Identities::default();
    let mut taken: HashSet<TokenKey> = HashSet::new();
    let mut keys = |problems: &mut Vec<String>, owner: &str, texts: &[String]| {
        let mut keys = Vec::new();
        for text in texts {
            match TokenKey::from_hex(text) {
                None => problems.push(format!("{owner}: token_sha256 wants 64 hexadecimal digits")),
                Some(key) if !taken.insert(key) => {
                    problems.push(format!("{owner}: the token {key}... is listed twice"));
                }
                Some(key) => keys.push(key),
            }
        }
        keys
    };
    let mut ids = HashSet::new();
    for entry in file.agents {
        let owner = format!("agent {}", entry.id);
        if entry.id <= 0 || !ids.insert(entry.id) {
            problems.push(format!("{owner}: id must be positive and unique"));
        }
        if !is_agent_name(&entry.name) {
            problems.push(format!("{owner}: name must be lower-case letters, digits and inner dashes"));
        }
        identities.projects.insert(AgentId(entry.id), ProjectId(entry.project.id));
        let agent = Arc::new(Agent {
            id: AgentId(entry.id),
            name: entry.name,
            project_id: ProjectId(entry.project.id),
            project_path: entry.project.path,
            repository: entry.repository.map_or(Place::Nowhere, |path| Place::Local(base.join(path))),
        });
        for key in keys(&mut problems, &owner, &entry.token_sha256) {
            identities.agents.insert(key, Arc::clone(&agent));
        }
        let revoked = keys(&mut problems, &owner, &entry.revoked_token_sha256);
        identities.revoked.extend(revoked.into_iter().map(|key| (key, Some(AgentId(entry.id)))));
    }
    for entry in file.callers {
        let owner = format!("caller {:?}", entry.name);
        for id in entry.agents.iter().filter(|id| !ids.contains(*id)) {
            problems.push(format!("{owner}: there is no agent {id}"));
        }
        let agents = entry.agents.into_iter().map(AgentId).collect();
        let caller = Arc::new(Caller { name: entry.name, agents });
        for key in keys(&mut problems, &owner, &entry.token_sha256) {
            identities.callers.insert(key, Arc::clone(&caller));
        }
        let revoked = keys(&mut problems, &owner, &entry.revoked_token_sha256);
        identities.revoked.extend(revoked.into_iter().map(|key| (key, None)));
    }
    if problems.is_empty() {
        Ok(identities)
    } else {
        Err(IdentitiesError::Invalid { path: path.to_owned(), problems })
    }
}

fn load(path: &Path) -> Result<Identities, IdentitiesError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| IdentitiesError::Unreadable { path: path.to_owned(), source })?;
    parse(&text, path)
}

/// The identities in force, and word of every change.
#[derive(Debug)]
pub struct IdentitySource {
    path: PathBuf,
    current: ArcSwap<Identities>,
    changed: watch::Sender<u64>,
}

impl IdentitySource {
    /// Reads the file for the first time; a bad file is an error now, later changes only log one.
    pub fn load(path: PathBuf) -> Result<Arc<Self>, IdentitiesError> {
        let current = ArcSwap::from_pointee(load(&path)?);
        Ok(Arc::new(Self { path, current, changed: watch::Sender::new(0) }))
    }

    /// What is in force now.
    pub fn current(&self) -> Arc<Identities> {
        self.current.load_full()
    }

    /// Wakes at every change, for streams that must notice a revoked token.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Follows the file until cancelled.
    pub async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        let mut watch = match FileWatch::new(vec![self.path.clone()]) {
            Ok(watch) => watch,
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "identities file cannot be watched");
                return;
            }
        };
        // What changed between the first reading and the watch.
        self.reload().await;
        while stop.run_until_cancelled(watch.changed()).await.is_some() {
            self.reload().await;
        }
    }

    async fn reload(&self) {
        let path = self.path.clone();
        let loaded = tokio::task::spawn_blocking(move || load(&path)).await;
        match loaded {
            Ok(Ok(identities)) if identities == *self.current() => {}
            Ok(Ok(identities)) => {
                tracing::info!(agents = identities.agent_count(), "identities reloaded");
                self.current.store(Arc::new(identities));
                self.changed.send_modify(|version| *version += 1);
            }
            Ok(Err(error)) => {
                tracing::error!(error = %crate::error::chain(&error), "identities not reloaded, the last good file stays in force");
            }
            Err(_) => tracing::error!("reading the identities file panicked"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(secret: &str) -> String {
        TokenKey::of(secret.as_bytes()).to_hex()
    }

    #[test]
    fn agents_and_callers_are_found_by_hash_only() {
        let text = format!(
            "agents: [{{id: 7, name: prod, token_sha256: [{}], revoked_token_sha256: [{}]}}]\n\
             callers: [{{name: ci, agents: [7], token_sha256: [{}]}}]",
            hash("a"),
            hash("old"),
            hash("c")
        );
        let identities = parse(&text, Path::new("x/ids.yaml")).unwrap();
        let Verdict::Known(agent) = identities.agent(&TokenKey::of(b"a")) else { panic!("known") };
        assert_eq!(agent.id, AgentId(7));
        assert_eq!(identities.agent(&TokenKey::of(b"old")), Verdict::Revoked(Some(AgentId(7))));
        assert_eq!(identities.agent(&TokenKey::of(b"c")), Verdict::Unknown);
        let Verdict::Known(caller) = identities.caller(&TokenKey::of(b"c")) else { panic!("known") };
        assert!(caller.agents.contains(&AgentId(7)));
    }

    #[test]
    fn contradictions_are_reported_together_and_show_no_token() {
        let text = format!(
            "agents: [{{id: 0, name: ../up, token_sha256: [{0}]}}, {{id: 2, name: b, token_sha256: [{0}, zz]}}]\n\
             callers: [{{name: ci, agents: [9], token_sha256: []}}]",
            hash("same")
        );
        let error = parse(&text, Path::new("ids.yaml")).unwrap_err().to_string();
        for wanted in ["positive", "lower-case", "twice", "64 hex", "no agent 9"] {
            assert!(error.contains(wanted), "{wanted} in {error}");
        }
        assert!(!error.contains(&hash("same")));
    }

    #[test]
    fn an_unknown_key_has_its_line() {
        let error = parse("agents:\n- {id: 1, nmae: x}\n", Path::new("i")).unwrap_err().to_string();
        assert!(error.contains("nmae") && error.contains("line 2"), "{error}");
    }
}
