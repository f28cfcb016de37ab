//! A request over HTTP/1.1 whose broker falls silent before it answers: given up, for nothing on its connection would
//! ever say so. TCP goes on sending for a quarter of an hour, and no time limit may be set, since an answer may rightly
//! take as long as it likes. Around pingora's phases, which tell whom the request waits for; the probes in `upstream`
//! tell who is silent. What has no body went to another broker before that, by TCP's own limit (`Broker::peer`).
//!
//! The connection to the broker is shut down under pingora's feet, so that its phases go on from there as with any that
//! broke: another broker where that does no harm, else an answer for the caller.

use crate::upstream::Broker;
use nix::sys::socket::{Shutdown, shutdown};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// pingora notices at once; a request that is still there after this is dropped.
const NOTICE: Duration = Duration::from_secs(5);

tokio::task_local! {
    /// Whom the request of this task waits for.
    static WAITS: watch::Sender<Option<Waits>>;
}

/// A request that is on its way, and the connection it went on. That one is open as long as this is announced.
struct Waits {
    broker: Arc<Broker>,
    connection: RawFd,
}

/// The request is on its way to this broker, on the connection with this descriptor.
pub fn waits_for(broker: &Arc<Broker>, connection: RawFd) {
    announce(Some(Waits { broker: broker.clone(), connection }));
}

/// The answer has begun, or the connection has failed.
pub fn waits_no_more() {
    announce(None);
}

fn announce(waits: Option<Waits>) {
    // Outside of `unless_silent` nobody wants to know.
    let _ = WAITS.try_with(|now| now.send_replace(waits));
}

/// Runs one request, and fails its connection when its broker falls silent before the answer begins. `None` if even that
/// did not end it.
pub async fn unless_silent<T>(request: impl Future<Output = T>) -> Option<T> {
    let (waits, mut waiting) = watch::channel(None);
    let request = WAITS.scope(waits, request);
    tokio::pin!(request);
    loop {
        tokio::select! {
            // First, so that what it announces is heard before its connection is touched.
            biased;
            done = &mut request => return Some(done),
            connection = silence(&mut waiting) => {
                // One that has failed meanwhile needs nothing more.
                let _ = shutdown(connection, Shutdown::Both);
            }
        }
        tokio::select! {
            biased;
            done = &mut request => return Some(done),
            // It goes on, elsewhere or with an answer of ours.
            _ = waiting.changed() => {}
            () = tokio::time::sleep(NOTICE) => return None,
        }
    }
}

/// Returns the connection of a request whose broker is silent.
async fn silence(waiting: &mut watch::Receiver<Option<Waits>>) -> RawFd {
    loop {
        let waits =
            waiting.borrow_and_update().as_ref().map(|waits| (waits.broker.clone(), waits.connection));
        let silent = async {
            match &waits {
                Some((broker, connection)) => {
                    let upstream = broker.silent().await;
                    tracing::warn!(%upstream, "a request is given up: the broker does not answer, nor does its host");
                    *connection
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = waiting.changed() => if changed.is_err() {
                std::future::pending().await
            },
            connection = silent => return connection,
        }
    }
}
