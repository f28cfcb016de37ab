//! How one project's manifests are to be applied: the options of the configuration, typed, with every default filled
//! in. Before it: `plan.rs`, which says which projects there are. After it: whatever applies, which finds nothing left
//! to guess. It asks nobody, and an option that it does not understand is an error, never a default.

use crate::{cluster::Propagation, gitops::inventory::Policy};
use postern_wire::proto::gitlab::agent::agentcfg::{ManifestProjectCf, manifest_project_cf::PruneOneof};
use std::{fmt, time::Duration};

/// Where objects go that name no namespace.
const NAMESPACE: &str = "default";
/// How long is waited for objects to become ready, and to be gone, where nobody says.
const TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// Whoever asks for more means something else; and no clock overflows within it.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// What a project's entry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where objects go that belong into a namespace and name none; also where the inventory is.
    pub default_namespace: String,
    /// How long applied objects may take to become ready. Zero: nobody waits for them.
    pub reconcile_timeout: Duration,
    /// What is sent at all.
    pub dry_run: DryRun,
    /// Whether objects that left the commit are deleted.
    pub prune: bool,
    /// How long deleted objects may take to be gone. Zero: nobody waits for them.
    pub prune_timeout: Duration,
    /// What happens to what deleted objects own.
    pub propagation: Propagation,
    /// Which objects that exist already may be taken over.
    pub policy: Policy,
}

/// How much of a synchronisation reaches the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DryRun {
    /// All of it.
    #[default]
    None,
    /// Nothing but questions.
    Client,
    /// Every request, marked so that the API server judges it and keeps nothing.
    Server,
}

impl DryRun {
    /// Whether the cluster stays as it is.
    pub fn is_dry(self) -> bool {
        self != Self::None
    }
}

/// Why a project's options cannot be followed. Says which project, which option and what may stand there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A word nobody knows.
    #[error("manifest project {project:?}: {option} is {value:?}; it must be one of {words}", words = Words(.known))]
    Word {
        /// Its path.
        project: String,
        /// As in the configuration file.
        option: &'static str,
        /// What was said.
        value: String,
        /// What may be said.
        known: &'static [&'static str],
    },
    /// A namespace that no cluster can have.
    #[error(
        "manifest project {project:?}: default_namespace is {value:?}; a namespace is at most 63 characters, \
         each of them a-z, 0-9 or '-', with no '-' at either end"
    )]
    Namespace {
        /// Its path.
        project: String,
        /// What was said.
        value: String,
    },
    /// A duration below nothing, or longer than makes sense.
    #[error("manifest project {project:?}: {option} must be between 0s and 366 days, as in \"3600s\"")]
    Time {
        /// Its path.
        project: String,
        /// As in the configuration file.
        option: &'static str,
    },
}

/// Words as a sentence lists them.
struct Words<'a>(&'a [&'a str]);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, word) in self.0.iter().enumerate() {
            let before = match at {
                0 => "",
                at if at + 1 == self.0.len() => " and ",
                _ => ", ",
            };
            write!(f, "{before}{word}")?;
        }
        Ok(())
    }
}

impl Settings {
    /// Of the project's entry; what it leaves out is filled in.
    ///
    /// # Errors
    /// The first option that cannot be followed. Nothing of the entry is to be followed then.
    pub fn of(project: &ManifestProjectCf) -> Result<Self, SettingsError> {
        let default_namespace = match project.default_namespace.as_str() {
            "" => NAMESPACE.to_owned(),
            name if is_label(name) => name.to_owned(),
            name => {
                return Err(SettingsError::Namespace { project: project.id.clone(), value: name.to_owned() });
            }
        };
        let dry_run = match project.dry_run_strategy.as_str() {
            "" | "none" => DryRun::None,
            "client" => DryRun::Client,
            "server" => DryRun::Server,
            other => return Err(word(project, "dry_run_strategy", other, &["none", "client", "server"])),
        };
        let propagation = match project.prune_propagation_policy.as_str() {
            "" | "foreground" => Propagation::Foreground,
            "background" => Propagation::Background,
            "orphan" => Propagation::Orphan,
            other => {
                let known = &["orphan", "background", "foreground"];
                return Err(word(project, "prune_propagation_policy", other, known));
            }
        };
        let policy = match project.inventory_policy.as_str() {
            "" | "must_match" => Policy::MustMatch,
            "adopt_if_no_inventory" => Policy::AdoptIfNoInventory,
            "adopt_all" => Policy::AdoptAll,
            other => {
                let known = &["must_match", "adopt_if_no_inventory", "adopt_all"];
                return Err(word(project, "inventory_policy", other, known));
            }
        };
        let prune = match project.prune_oneof {
            None => true,
            Some(PruneOneof::Prune(prune)) => prune,
        };
        let reconcile_timeout = time(project, "reconcile_timeout", project.reconcile_timeout.as_ref())?;
        let prune_timeout = time(project, "prune_timeout", project.prune_timeout.as_ref())?;
        Ok(Self { default_namespace, reconcile_timeout, dry_run, prune, prune_timeout, propagation, policy })
    }
}

fn word(
    project: &ManifestProjectCf,
    option: &'static str,
    value: &str,
    known: &'static [&'static str],
) -> SettingsError {
    SettingsError::Word { project: project.id.clone(), option, value: value.to_owned(), known }
}

/// A duration that is not said is the default; one of zero is zero.
fn time(
    project: &ManifestProjectCf,
    option: &'static str,
    value: Option<&prost_types::Duration>,
) -> Result<Duration, SettingsError> {
    let Some(value) = value else { return Ok(TIMEOUT) };
    match Duration::try_from(*value) {
        Ok(time) if time <= LONGEST => Ok(time),
        _ => Err(SettingsError::Time { project: project.id.clone(), option }),
    }
}

/// Whether it is a DNS label, which is what namespaces are named with.
fn is_label(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.len() <= 63 && name.bytes().all(legal) && !name.starts_with('-') && !name.ends_with('-')
}

#[cfg(test)]
mod tests;
