//! A request over HTTP/1.1 whose broker falls silent before it answers: given up, for nothing on its connection would
//! ever say so. TCP goes on sending for a quarter of an hour, and no time limit may be set, since an answer may rightly
//! take as long as it likes. Around pingora's phases, which tell whom the request waits for; the probes in `upstream`
//! tell who is silent. What has no body went to another broker before that, by TCP's own limit (`Broker::peer`).

use crate::decide::Route;
use crate::upstream::Upstreams;
use std::net::SocketAddr;
use tokio::sync::watch;

tokio::task_local! {
    /// Whom the request of this task waits for.
    static WAITS: watch::Sender<Option<SocketAddr>>;
}

/// The request is on its way to this broker, or its answer has begun.
pub fn waits_for(broker: Option<SocketAddr>) {
    // Outside of `unless_silent` nobody wants to know.
    let _ = WAITS.try_with(|waits| waits.send_replace(broker));
}

/// Runs one request; `None` if its broker fell silent before the answer began.
pub async fn unless_silent<T>(upstreams: &Upstreams, request: impl Future<Output = T>) -> Option<T> {
    let (waits, waiting) = watch::channel(None);
    tokio::select! {
        done = WAITS.scope(waits, request) => Some(done),
        broker = silence(upstreams, waiting) => {
            tracing::warn!(upstream = %broker, "a request is given up: the broker does not answer, nor does its host");
            None
        }
    }
}

async fn silence(upstreams: &Upstreams, mut waiting: watch::Receiver<Option<SocketAddr>>) -> SocketAddr {
    loop {
        let broker = *waiting.borrow_and_update();
        let silent = async {
            match broker.and_then(|address| upstreams.of(Route::KubernetesApi).find(address)) {
                Some(broker) => broker.silent().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            address = silent => return address,
            changed = waiting.changed() => if changed.is_err() {
                std::future::pending().await
            }
        }
    }
}
