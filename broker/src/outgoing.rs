//! Messages on their way to one agent, at its pace: the work that makes them waits until there is room for one. Before
//! it: a service whose answer is a stream. After it: gRPC. An agent that leaves ends the work, and one that stopped
//! reading does not hold it: the work looks after its own ends (tokens, time limits) whether anybody reads or not.

use futures::{Stream, stream};
use std::{pin::Pin, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tonic::Status;

/// What a service answers with.
pub type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Where the work puts its messages.
#[derive(Debug)]
pub struct Sender<T> {
    messages: mpsc::Sender<T>,
    /// How long it waits for room.
    patience: Duration,
}

/// Room for one message.
#[derive(Debug)]
pub struct Room<'a, T>(mpsc::Permit<'a, T>);

impl<T> Room<'_, T> {
    /// Fills it.
    pub fn send(self, message: T) {
        self.0.send(message);
    }
}

impl<T> Sender<T> {
    /// Waits until the agent took the message before. Whoever reads from somewhere does it first, so that no more than
    /// one message is held.
    ///
    /// # Errors
    /// `Unavailable` if the agent took nothing for too long.
    pub async fn room(&self) -> Result<Room<'_, T>, Status> {
        match timeout(self.patience, self.messages.reserve()).await {
            Ok(Ok(permit)) => Ok(Room(permit)),
            // The agent is gone; nobody hears this.
            Ok(Err(_)) => Err(Status::cancelled("the agent left")),
            Err(_) => Err(Status::unavailable(format!(
                "unavailable: the agent took no message for {:?}",
                self.patience
            ))),
        }
    }

    /// [`Sender::room`] and [`Room::send`].
    pub async fn send(&self, message: T) -> Result<(), Status> {
        self.room().await?.send(message);
        Ok(())
    }
}

/// Runs `work` beside the stream it fills. The stream ends as the work does; the work is dropped when the stream is.
pub fn outgoing<T, F>(patience: Duration, work: impl FnOnce(Sender<T>) -> F) -> Outgoing<T>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (messages, receiver) = mpsc::channel(1);
    let (end, ended) = oneshot::channel();
    let left = messages.clone();
    let work = work(Sender { messages, patience });
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = left.closed() => {}
            result = work => drop(end.send(result)),
        }
    });
    Box::pin(stream::unfold(Some((receiver, ended)), |state| async {
        let (mut receiver, ended) = state?;
        if let Some(message) = receiver.recv().await {
            return Some((Ok(message), Some((receiver, ended))));
        }
        match ended.await {
            Ok(Ok(())) => None,
            Ok(Err(status)) => Some((Err(status), None)),
            // It must not look like a proper end.
            Err(_) => Some((Err(Status::internal("the work for this stream broke off")), None)),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn messages_come_in_order_and_the_end_is_that_of_the_work() {
        let good = outgoing(PATIENCE, |sender| async move {
            sender.send(1).await?;
            sender.send(2).await
        });
        assert_eq!(good.map(Result::unwrap).collect::<Vec<_>>().await, [1, 2]);
        let mut bad = outgoing(PATIENCE, |sender| async move {
            sender.send(1).await?;
            Err(Status::not_found("no"))
        });
        assert_eq!(bad.next().await.unwrap().unwrap(), 1);
        assert_eq!(bad.next().await.unwrap().unwrap_err().code(), tonic::Code::NotFound);
        assert!(bad.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_nobody_reads_stops_at_one_message_and_ends_in_time() {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let mut stream = outgoing(PATIENCE, |sender| async move {
            loop {
                let room = sender.room().await?;
                room.send(count.fetch_add(1, Ordering::Relaxed));
            }
        });
        tokio::time::advance(PATIENCE / 2).await;
        tokio::task::yield_now().await;
        assert_eq!(made.load(Ordering::Relaxed), 1);
        tokio::time::sleep(PATIENCE * 2).await;
        assert_eq!(stream.next().await.unwrap().unwrap(), 0);
        assert_eq!(stream.next().await.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_leaves_ends_the_work() {
        let (held, dropped) = oneshot::channel::<()>();
        let stream = outgoing::<u8, _>(PATIENCE, |_sender| async move {
            let _held = held;
            std::future::pending().await
        });
        drop(stream);
        assert!(dropped.await.is_err());
    }
}
