//! What happens, for people who watch: agents come and go, configurations and manifests are sent, refused or applied. Before it:
//! the modules in which it happens, which never wait here. After it: browsers, through Rails' cable ([`action_cable`])
//! or by themselves ([`server_sent`]). Nothing is kept for those who are not there, and no event carries a secret. One
//! agent's events are so many and no more (`allowance.rs`).

pub mod action_cable;
mod allowance;
pub mod server_sent;

use allowance::Allowances;
use postern_wire::ids::{AgentId, ProjectId};
use serde::Serialize;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{sync::broadcast, time::Instant};

/// Events that a slow watcher may be behind before it misses the oldest.
const BEHIND: usize = 1024;
/// Bytes of a refusal's reason; the whole of it is in the log.
const ERROR_MAX: usize = 1024;
/// Bytes of a project's path.
const PROJECT_MAX: usize = 1024;
/// Bytes of a commit id; SHA-256 in hexadecimal digits has as many.
const COMMIT_MAX: usize = 64;

/// The section of the configuration. Off unless it is there.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Publish to Rails' cable.
    pub action_cable: Option<action_cable::ActionCable>,
    /// Serve them on the API listener.
    pub server_sent_events: bool,
}

/// Something happened to an agent.
///
/// As JSON, whose keys and kinds stay what they are, though more may come: `kind` as in [`EventKind`]; `agent_id` and
/// `project_id`, numbers, the project being the one with the agent's configuration; `at`, RFC 3339 in UTC with at most
/// milliseconds; what the kind adds; and `dropped` if the agent made too many events at a time: how many of them were
/// left out before this one.
/// ```json
/// {"kind":"configuration_sent","commit_id":"4b825dc","agent_id":7,"project_id":3,"at":"2026-01-02T03:04:05.678Z"}
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// To whom.
    pub agent_id: AgentId,
    /// Where that agent's configuration is.
    pub project_id: ProjectId,
    /// When.
    pub at: SystemTime,
}

/// What can happen. The names in JSON are in snake case: `agent_connected`. An `error` is a text that the agent may
/// be told, never more, and is cut after 1 KiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventKind {
    /// The first stream of an agent is here.
    AgentConnected,
    /// The last stream of an agent ended.
    AgentDisconnected,
    /// An agent was sent its configuration.
    ConfigurationSent {
        /// Of that configuration.
        commit_id: String,
    },
    /// An agent's configuration cannot be used.
    ConfigurationRefused {
        /// Of that configuration.
        commit_id: String,
        /// What is wrong with it.
        error: String,
    },
    /// An agent was sent manifests.
    GitopsManifestsSent {
        /// Where they are, as the agent asked for it: a number or a full path.
        manifest_project: String,
        /// Of the manifests.
        commit_id: String,
    },
    /// An agent cannot be sent the manifests that it wants.
    GitopsRefused {
        /// Where they are, as the agent asked for it: a number or a full path.
        manifest_project: String,
        /// Why.
        error: String,
    },
    /// An agent runs by its configuration, as it says.
    AgentConfigurationApplied {
        /// Of that configuration.
        commit_id: String,
    },
    /// An agent does not, and runs by the one before.
    AgentConfigurationFailed {
        /// Of the configuration that it was sent.
        commit_id: String,
        /// The first of its problems.
        error: String,
    },
    /// All manifests of a project are in the agent's cluster, as it says.
    GitopsSynchronized {
        /// Where they are, as the agent's configuration names it.
        manifest_project: String,
        /// Of the manifests.
        commit_id: String,
    },
    /// Some are, others are not.
    GitopsDegraded {
        /// Where they are, as the agent's configuration names it.
        manifest_project: String,
        /// Of the manifests.
        commit_id: String,
        /// Objects that are not.
        failed: u32,
        /// All objects.
        objects: u32,
        /// The first problem.
        error: String,
    },
    /// Nothing of a commit was applied.
    GitopsFailed {
        /// Where they are, as the agent's configuration names it.
        manifest_project: String,
        /// Of the manifests.
        commit_id: String,
        /// Why.
        error: String,
    },
}

impl Event {
    /// It happened just now.
    pub fn now(kind: EventKind, agent_id: AgentId, project_id: ProjectId) -> Self {
        Self { kind, agent_id, project_id, at: SystemTime::now() }
    }
}

impl EventKind {
    /// As in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AgentConnected => "agent_connected",
            Self::AgentDisconnected => "agent_disconnected",
            Self::ConfigurationSent { .. } => "configuration_sent",
            Self::ConfigurationRefused { .. } => "configuration_refused",
            Self::GitopsManifestsSent { .. } => "gitops_manifests_sent",
            Self::GitopsRefused { .. } => "gitops_refused",
            Self::AgentConfigurationApplied { .. } => "agent_configuration_applied",
            Self::AgentConfigurationFailed { .. } => "agent_configuration_failed",
            Self::GitopsSynchronized { .. } => "gitops_synchronized",
            Self::GitopsDegraded { .. } => "gitops_degraded",
            Self::GitopsFailed { .. } => "gitops_failed",
        }
    }

    /// What strangers chose is of bounded length before it is kept.
    fn cut(&mut self) {
        match self {
            Self::AgentConnected | Self::AgentDisconnected => {}
            Self::ConfigurationSent { commit_id } | Self::AgentConfigurationApplied { commit_id } => {
                cut(commit_id, COMMIT_MAX);
            }
            Self::ConfigurationRefused { commit_id, error }
            | Self::AgentConfigurationFailed { commit_id, error } => {
                cut(commit_id, COMMIT_MAX);
                cut(error, ERROR_MAX);
            }
            Self::GitopsManifestsSent { manifest_project, commit_id }
            | Self::GitopsSynchronized { manifest_project, commit_id } => {
                cut(manifest_project, PROJECT_MAX);
                cut(commit_id, COMMIT_MAX);
            }
            Self::GitopsRefused { manifest_project, error } => {
                cut(manifest_project, PROJECT_MAX);
                cut(error, ERROR_MAX);
            }
            Self::GitopsDegraded { manifest_project, commit_id, error, .. }
            | Self::GitopsFailed { manifest_project, commit_id, error } => {
                cut(manifest_project, PROJECT_MAX);
                cut(commit_id, COMMIT_MAX);
                cut(error, ERROR_MAX);
            }
        }
    }
}

fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        let end = (0..=max).rev().find(|&at| text.is_char_boundary(at));
        text.truncate(end.unwrap_or_default());
        text.shrink_to_fit();
    }
}

/// An event as all watchers get it.
#[derive(Debug)]
pub struct Published {
    /// Counts the events of this process that somebody watched, from 1.
    pub number: u64,
    /// What happened.
    pub event: Event,
    /// The event as JSON, on one line.
    pub json: String,
}

impl Published {
    fn new(number: u64, mut event: Event, dropped: u64) -> Self {
        #[derive(Serialize)]
        struct Document<'a> {
            #[serde(flatten)]
            kind: &'a EventKind,
            agent_id: i64,
            project_id: i64,
            at: String,
            #[serde(skip_serializing_if = "is_none")]
            dropped: u64,
        }

        event.kind.cut();
        let at = OffsetDateTime::from(event.at);
        let at = at.replace_nanosecond(at.nanosecond() / 1_000_000 * 1_000_000).unwrap_or(at);
        let document = Document {
            kind: &event.kind,
            agent_id: event.agent_id.0,
            project_id: event.project_id.0,
            at: at.format(&Rfc3339).unwrap_or_default(),
            dropped,
        };
        let json = serde_json::to_string(&document).expect("texts and numbers are JSON");
        Self { number, event, json }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_none(dropped: &u64) -> bool {
    *dropped == 0
}

/// Where events are handed in and watched. What a watcher is behind is bounded: it misses the oldest and is told how
/// many those were.
#[derive(Debug)]
pub struct Events {
    watchers: broadcast::Sender<Arc<Published>>,
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    /// Of the last event.
    number: u64,
    allowances: Allowances,
}

impl Default for Events {
    fn default() -> Self {
        Self::behind(BEHIND)
    }
}

impl Events {
    fn behind(events: usize) -> Self {
        Self { watchers: broadcast::Sender::new(events), line: Mutex::default() }
    }

    /// Shows an event to everybody who watches now, unless its agent made too many of late: then the next one says how
    /// many were left out. It never waits, and does nothing when nobody watches.
    pub fn publish(&self, event: Event) {
        if self.watchers.receiver_count() == 0 {
            return;
        }
        // Held until it is sent, or numbers could overtake each other.
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(dropped) = line.allowances.take(event.agent_id, Instant::now()) else { return };
        line.number += 1;
        // An error means that the last watcher has just left.
        let _ = self.watchers.send(Arc::new(Published::new(line.number, event, dropped)));
    }

    /// Everything from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Published>> {
        self.watchers.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn json(kind: EventKind, at: SystemTime) -> String {
        let event = Event { kind, agent_id: AgentId(7), project_id: ProjectId(3), at };
        Published::new(1, event, 0).json
    }

    #[test]
    fn the_documents_are_as_promised() {
        let commit_id = || "4b825dc".to_owned();
        let (error, manifest_project) = ("no \"a\"\n".to_owned(), "group/project".to_owned());
        for (kind, wanted) in [
            (EventKind::AgentConnected, r#"{"kind":"agent_connected","#),
            (EventKind::AgentDisconnected, r#"{"kind":"agent_disconnected","#),
            (
                EventKind::ConfigurationSent { commit_id: commit_id() },
                r#"{"kind":"configuration_sent","commit_id":"4b825dc","#,
            ),
            (
                EventKind::ConfigurationRefused { commit_id: commit_id(), error: error.clone() },
                r#"{"kind":"configuration_refused","commit_id":"4b825dc","error":"no \"a\"\n","#,
            ),
            (
                EventKind::GitopsManifestsSent {
                    manifest_project: manifest_project.clone(),
                    commit_id: commit_id(),
                },
                r#"{"kind":"gitops_manifests_sent","manifest_project":"group/project","commit_id":"4b825dc","#,
            ),
            (
                EventKind::GitopsRefused { manifest_project: manifest_project.clone(), error: error.clone() },
                r#"{"kind":"gitops_refused","manifest_project":"group/project","error":"no \"a\"\n","#,
            ),
            (
                EventKind::AgentConfigurationApplied { commit_id: commit_id() },
                r#"{"kind":"agent_configuration_applied","commit_id":"4b825dc","#,
            ),
            (
                EventKind::AgentConfigurationFailed { commit_id: commit_id(), error: error.clone() },
                r#"{"kind":"agent_configuration_failed","commit_id":"4b825dc","error":"no \"a\"\n","#,
            ),
            (
                EventKind::GitopsSynchronized {
                    manifest_project: manifest_project.clone(),
                    commit_id: commit_id(),
                },
                r#"{"kind":"gitops_synchronized","manifest_project":"group/project","commit_id":"4b825dc","#,
            ),
            (
                EventKind::GitopsDegraded {
                    manifest_project: manifest_project.clone(),
                    commit_id: commit_id(),
                    failed: 1,
                    objects: 2,
                    error: String::new(),
                },
                r#"{"kind":"gitops_degraded","manifest_project":"group/project","commit_id":"4b825dc","failed":1,"objects":2,"error":"","#,
            ),
            (
                EventKind::GitopsFailed { manifest_project, commit_id: commit_id(), error },
                r#"{"kind":"gitops_failed","manifest_project":"group/project","commit_id":"4b825dc","error":"no \"a\"\n","#,
            ),
        ] {
            let name = kind.name();
            let found = json(kind, UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456));
            let wanted = format!(r#"{wanted}"agent_id":7,"project_id":3,"at":"2023-11-14T22:13:20.123Z"}}"#);
            assert_eq!(found, wanted);
            assert!(found.contains(&format!(r#""kind":"{name}""#)), "{name}");
        }
    }

    #[test]
    fn a_full_second_has_no_fraction() {
        assert!(json(EventKind::AgentConnected, UNIX_EPOCH).contains(r#""at":"1970-01-01T00:00:00Z""#));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let kind = EventKind::ConfigurationRefused {
            commit_id: "c".repeat(1 << 20),
            error: format!("a{}", "ä".repeat(1 << 20)),
        };
        let event = Event::now(kind, AgentId(7), ProjectId(3));
        let Published { event, json, .. } = Published::new(1, event, 0);
        let EventKind::ConfigurationRefused { commit_id, error } = event.kind else { unreachable!() };
        assert_eq!((commit_id.len(), error.len()), (COMMIT_MAX, ERROR_MAX - 1));
        assert!(json.len() < 2 * ERROR_MAX);
    }

    #[tokio::test]
    async fn a_watcher_gets_what_happens_while_it_watches_and_learns_what_it_missed() {
        let events = Events::behind(2);
        let publish = || events.publish(Event::now(EventKind::AgentConnected, AgentId(7), ProjectId(3)));
        publish();
        let mut watcher = events.subscribe();
        publish();
        assert_eq!(watcher.recv().await.unwrap().number, 1, "the first was for nobody");
        (0..5).for_each(|_| publish());
        assert_eq!(watcher.recv().await.unwrap_err(), broadcast::error::RecvError::Lagged(3));
        assert_eq!(watcher.recv().await.unwrap().number, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_makes_too_many_does_not_drown_the_others() {
        let events = Events::default();
        let mut watcher = events.subscribe();
        let publish = |agent| events.publish(Event::now(EventKind::AgentConnected, agent, ProjectId(3)));
        (0..BEHIND * 2).for_each(|_| publish(AgentId(7)));
        publish(AgentId(8));
        for _ in 0..allowance::BURST {
            assert_eq!(watcher.recv().await.unwrap().event.agent_id, AgentId(7));
        }
        let other = watcher.recv().await.unwrap();
        assert_eq!(other.event.agent_id, AgentId(8));
        assert!(!other.json.contains("dropped"));
        tokio::time::advance(allowance::INTERVAL).await;
        publish(AgentId(7));
        let dropped = BEHIND * 2 - allowance::BURST as usize;
        let next = watcher.recv().await.unwrap().json.clone();
        assert!(next.ends_with(&format!(r#","dropped":{dropped}}}"#)), "{next}");
    }
}
