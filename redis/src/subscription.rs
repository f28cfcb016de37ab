//! A connection of its own that listens to channels and is opened again whenever it ends. Before it: Redis publishes.
//! After it: one reader, who is told of every gap. It holds a bounded number of messages; a reader that is slower than
//! that is told of a gap, too. It sends a PING when the connection for commands had to be opened anew, else nothing.

use super::{RedisError, backoff::Backoff, dial::Dialler, server::Server};
use ::redis::{
    Value,
    aio::{PubSub, PubSubSink, PubSubStream},
};
use futures::StreamExt;
use std::{future::pending, sync::Arc, time::Duration};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        watch,
    },
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

/// Messages that wait for the reader.
const WAITING: usize = 4096;
/// Bytes of one.
const PAYLOAD_MAX: usize = 4096;

/// Ends with the value.
pub struct Subscription {
    heard: mpsc::Receiver<Heard>,
    _listener: AbortOnDropHandle<Option<()>>,
}

/// What a subscription has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Subscribed, for the first time or again: anything may have been missed.
    Connected,
    /// Somebody published it.
    Message {
        /// Where.
        channel: Vec<u8>,
        /// What.
        payload: Vec<u8>,
    },
    /// The connection is gone; it is being opened again.
    Lost,
}

impl Subscription {
    pub(super) fn new(listener: Listener) -> Self {
        let (sender, heard) = mpsc::channel(WAITING);
        let listener = tokio::spawn(listener.listen(sender));
        Self { heard, _listener: AbortOnDropHandle::new(listener) }
    }

    /// What is next. It never ends, and a call that is dropped loses nothing.
    pub async fn next(&mut self) -> Heard {
        match self.heard.recv().await {
            Some(heard) => heard,
            // The runtime shuts down.
            None => pending().await,
        }
    }
}

pub(super) struct Listener {
    pub(super) dialler: Arc<Dialler>,
    pub(super) channels: Vec<Vec<u8>>,
    /// Of a cluster, where any node will do. Otherwise none: the configuration says where.
    pub(super) nodes: Option<watch::Receiver<Vec<Server>>>,
    pub(super) openings: watch::Receiver<u64>,
    /// How long an answer may take.
    pub(super) answer: Duration,
}

impl Listener {
    /// Until the reader is gone.
    async fn listen(mut self, sender: mpsc::Sender<Heard>) -> Option<()> {
        let mut backoff = Backoff::default();
        // Brokers spread over a cluster; where one node fails, the next one is tried.
        let mut at: usize = rand::random_range(0..1024);
        loop {
            let node = self.nodes.as_ref().and_then(|nodes| {
                let nodes = nodes.borrow();
                nodes.get(at.checked_rem(nodes.len())?).cloned()
            });
            at = at.wrapping_add(1);
            // Room first: what is published while the reader is not told would have to wait somewhere.
            let (connected, lost) = (sender.reserve().await.ok()?, sender.reserve().await.ok()?);
            self.openings.mark_unchanged();
            match self.dialler.listen(node.as_ref(), &self.channels).await {
                Ok((listening, server)) => {
                    let begin = Instant::now();
                    tracing::debug!(%server, "listening to redis");
                    connected.send(Heard::Connected);
                    let why = self.hear(listening, &sender).await;
                    lost.send(Heard::Lost);
                    tracing::info!(%server, why, "no longer listening to redis");
                    backoff.lost(begin.elapsed());
                }
                Err(error) => {
                    self.say(&error);
                    backoff.failed();
                }
            }
            backoff.pause().await;
        }
    }

    fn say(&self, error: &RedisError) {
        tracing::debug!(error = %crate::error::chain(error), "cannot listen to redis");
    }

    /// Until the connection is of no use any more; why.
    async fn hear(&mut self, listening: PubSub, sender: &mpsc::Sender<Heard>) -> &'static str {
        let (sink, stream) = listening.split();
        tokio::select! {
            why = forward(stream, sender) => why,
            () = watch(sink, &mut self.openings, self.answer) => "redis does not answer there any more",
        }
    }
}

async fn forward(mut stream: PubSubStream, sender: &mpsc::Sender<Heard>) -> &'static str {
    while let Some(message) = stream.next().await {
        // Nobody listens for more, and so many may wait.
        if message.get_payload_bytes().len() > PAYLOAD_MAX {
            tracing::debug!(
                length = message.get_payload_bytes().len(),
                "a message that is too long was ignored"
            );
            continue;
        }
        let channel = message.get_channel().unwrap_or_default();
        let payload = message.get_payload_bytes().to_vec();
        match sender.try_send(Heard::Message { channel, payload }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return "messages come faster than they are read",
            Err(TrySendError::Closed(_)) => break,
        }
    }
    "the connection ended"
}

/// Whenever another connection had to be opened anew, this one may be dead as well; until it is found so.
async fn watch(mut sink: PubSubSink, openings: &mut watch::Receiver<u64>, answer: Duration) {
    while openings.changed().await.is_ok() {
        match timeout(answer, sink.ping::<Value>()).await {
            Ok(Ok(_)) => {}
            _ => return,
        }
    }
    pending().await
}
