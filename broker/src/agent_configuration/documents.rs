//! Files as they were understood a moment ago: once per commit, however many agents' streams ask. Between `document.rs`
//! and the streams. Understanding a file may cost a second of a processor if somebody made it so; it happens apart from
//! everything else and for few files at a time.

use super::document::{self, Parsed};
use crate::repositories::CommitId;
use bytes::Bytes;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Semaphore;

/// Files that are remembered; all agents of a project change with one commit.
const KEPT: usize = 64;
/// Files at a time.
const AT_A_TIME: usize = 2;

/// What a file says, or what is wrong with it.
pub(super) type Understood = Arc<Result<Parsed, String>>;

/// A commit and a path name a content, wherever they are.
type Key = (CommitId, String);

/// Shared by all streams.
#[derive(Debug)]
pub struct Documents {
    known: Mutex<HashMap<Key, Understood>>,
    turns: Semaphore,
}

impl Default for Documents {
    fn default() -> Self {
        Self { known: Mutex::default(), turns: Semaphore::new(AT_A_TIME) }
    }
}

impl Documents {
    /// What this file at this commit says.
    pub(super) async fn understand(&self, commit: &CommitId, file: &str, content: Bytes) -> Understood {
        let key = (Arc::clone(commit), file.to_owned());
        if let Some(known) = self.known(&key) {
            return known;
        }
        let _turn = self.turns.acquire().await.expect("this semaphore is never closed");
        // Somebody else may have had the turn before for the same file.
        if let Some(known) = self.known(&key) {
            return known;
        }
        let parsed = tokio::task::spawn_blocking(move || {
            document::parse(&content).map_err(|problems| problems.to_string())
        });
        let understood = Arc::new(
            parsed.await.unwrap_or_else(|_| Err("reading it failed; please report this".to_owned())),
        );
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(key, Arc::clone(&understood));
        understood
    }

    fn known(&self, key: &Key) -> Option<Understood> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_understood_once_per_commit_and_not_too_many_are_kept() {
        let documents = Documents::default();
        let commit: CommitId = "c0".into();
        let content = Bytes::from_static(b"cilium: {hubble_relay_address: x}");
        let first = documents.understand(&commit, "a", content.clone()).await;
        assert!(first.is_ok());
        let again = documents.understand(&commit, "a", Bytes::from_static(b"never looked at: [")).await;
        assert!(Arc::ptr_eq(&first, &again));
        let wrong = documents.understand(&commit, "b", Bytes::from_static(b"cilum: {}")).await;
        assert!(wrong.as_ref().as_ref().unwrap_err().contains("did you mean `cilium`?"));
        for number in 0..2 * KEPT {
            documents.understand(&format!("c{number}").into(), "a", content.clone()).await;
        }
        assert!(documents.known.lock().unwrap().len() <= KEPT);
    }
}
