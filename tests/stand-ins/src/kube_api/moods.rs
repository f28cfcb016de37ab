//! A server in a bad mood: it takes requests and does not answer, or refuses the next ones, whatever they ask. Set by
//! tests through `KubeApi`, obeyed by `routes` before anything else.

use std::sync::{Mutex, PoisonError};

use http::StatusCode;
use tokio::sync::watch;

use super::status::Failure;

#[derive(Debug)]
pub(super) struct Moods {
    silent: watch::Sender<bool>,
    /// How many requests, and with what.
    refuse: Mutex<(u32, StatusCode)>,
}

impl Default for Moods {
    fn default() -> Moods {
        Moods { silent: watch::Sender::new(false), refuse: Mutex::new((0, StatusCode::OK)) }
    }
}

impl Moods {
    pub(super) fn be_silent(&self, silent: bool) {
        self.silent.send_replace(silent);
    }

    pub(super) fn refuse(&self, requests: u32, code: StatusCode) {
        *self.refuse.lock().unwrap_or_else(PoisonError::into_inner) = (requests, code);
    }

    /// Takes one refusal, if there are any left.
    pub(super) fn refusal(&self) -> Option<Failure> {
        let mut refuse = self.refuse.lock().unwrap_or_else(PoisonError::into_inner);
        refuse.0 = refuse.0.checked_sub(1)?;
        Some(Failure::wanted(refuse.1))
    }

    /// Waits until answers are given.
    pub(super) async fn answers(&self) {
        // The sender is here, so this fails never.
        let _ = self.silent.subscribe().wait_for(|silent| !silent).await;
    }
}
