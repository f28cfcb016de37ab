//! Pushes to projects, which GitLab announces to one broker and all must hear of, in the form of a kas of 16 and later.
//! Before it: the API for GitLab, or Redis. After it: whoever polls repositories. Nothing is kept for those who are late.

use super::schema::EVENTS;
use crate::redis::Redis;
use ::redis::cmd;
use postern_wire::proto::gitlab::agent::event::GitPushEvent;
use prost::Message;
use prost_types::Any;
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::broadcast, time::Instant};

const TYPE_URL: &str = "type.googleapis.com/gitlab.agent.event.GitPushEvent";
/// Pushes that a receiver may be behind.
const WAITING: usize = 256;
/// Redis gives back our own publication at once or never.
pub(super) const ECHO: Duration = Duration::from_secs(2);
const ECHOES: usize = 256;
/// Project paths are shorter.
const PAYLOAD_MAX: usize = 4096;

#[derive(Debug)]
pub(super) struct Events {
    pushes: broadcast::Sender<GitPushEvent>,
    /// Published here, not heard back yet.
    echoes: Mutex<VecDeque<(Instant, Vec<u8>)>>,
    /// They come back within so long.
    echo: Duration,
}

impl Events {
    pub(super) fn new(echo: Duration) -> Self {
        Self { pushes: broadcast::Sender::new(WAITING), echoes: Mutex::default(), echo }
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<GitPushEvent> {
        self.pushes.subscribe()
    }

    pub(super) async fn publish(&self, redis: &Redis, event: GitPushEvent) {
        let any = Any { type_url: TYPE_URL.to_owned(), value: event.encode_to_vec() };
        let payload = any.encode_to_vec();
        let _ = self.pushes.send(event);
        {
            let mut echoes = self.echoes();
            echoes.push_back((Instant::now() + self.echo, payload.clone()));
            if echoes.len() > ECHOES {
                echoes.pop_front();
            }
        }
        if let Err(error) = redis.command::<()>(cmd("PUBLISH").arg(EVENTS).arg(&payload)).await {
            self.take_echo(&payload);
            tracing::warn!(
                error = %crate::error::chain(&error),
                "a push was not told to the other brokers; they see it when they poll next"
            );
        }
    }

    /// A message came from Redis.
    pub(super) fn hear(&self, payload: &[u8]) {
        if payload.len() > PAYLOAD_MAX || self.take_echo(payload) {
            return;
        }
        let event = Any::decode(payload).ok().filter(|any| any.type_url == TYPE_URL);
        match event.and_then(|any| GitPushEvent::decode(any.value.as_slice()).ok()) {
            Some(event) => drop(self.pushes.send(event)),
            None => {
                tracing::debug!(length = payload.len(), "an event of a kind that is not known was ignored")
            }
        }
    }

    /// The echoes do not come any more.
    pub(super) fn doubt(&self) {
        self.echoes().clear();
    }

    fn take_echo(&self, payload: &[u8]) -> bool {
        let now = Instant::now();
        let mut echoes = self.echoes();
        echoes.retain(|(until, _)| now < *until);
        let at = echoes.iter().position(|(_, echo)| echo == payload);
        at.is_some_and(|at| echoes.remove(at).is_some())
    }

    fn echoes(&self) -> MutexGuard<'_, VecDeque<(Instant, Vec<u8>)>> {
        self.echoes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
