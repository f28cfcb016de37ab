//! Keeps the agent connected to its broker: dials, redials, moves on when the broker asks for it or the token changes.
//! One task dials for everybody ([`keep_connected`]); whoever wants a stream asks the [`Road`] for the connection of
//! the moment. It opens no stream itself.

pub mod address;
pub mod advice;
pub mod connection;
pub mod dial;
pub mod frames;
pub mod gate;
pub mod proxy;
pub mod tls;
pub mod token;

use crate::{backoff::Backoff, error, observability::Metrics};
use address::Address;
use advice::Failure;
use connection::{Connection, Opened};
use dial::Dialler;
use frames::Seen;
use gate::{Gate, Refusal};
use http::HeaderValue;
use postern_wire::token::AgentToken;
use rand::Rng;
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use tonic::Status;
use tracing::{info, warn};

/// Well under a second, so that a restarted broker has its agents back at once, and growing by a third: whatever the
/// outage lasted, the wait after it is about a third of that.
const FIRST_REDIAL: Duration = Duration::from_millis(200);
const LAST_REDIAL: Duration = Duration::from_secs(20);
const REDIAL_GROWTH: f64 = 1.3;
/// A connection that lived this long was a good one; the next outage begins with a short delay.
const LIVED: Duration = Duration::from_secs(10);
/// A broker that leaves asks all its agents at once for another connection. They dial within this time, each at a moment
/// of its own; sooner if anything needs the connection.
const MOVE_WITHIN: Duration = Duration::from_secs(1);

/// Where streams to the broker start.
#[derive(Clone)]
pub struct Road {
    current: watch::Receiver<Option<Connection>>,
    /// How many wait for a connection.
    wanted: watch::Sender<usize>,
    gate: Arc<Gate>,
    name: Arc<str>,
    token_place: Arc<str>,
}

/// What keeps the road open.
pub struct Keeper {
    dialler: Dialler,
    tokens: watch::Receiver<AgentToken>,
    current: watch::Sender<Option<Connection>>,
    wanted: watch::Receiver<usize>,
    gate: Arc<Gate>,
    metrics: Metrics,
}

/// A road, and the keeper that must run for it to lead anywhere. `token_place` is what a refused token's line names.
pub fn road(
    dialler: Dialler,
    tokens: watch::Receiver<AgentToken>,
    token_place: &str,
    metrics: Metrics,
) -> (Road, Keeper) {
    let (sender, current) = watch::channel(None);
    let (wanted, wanted_receiver) = watch::channel(0);
    let gate = Arc::new(Gate::default());
    let road = Road {
        current,
        wanted,
        gate: gate.clone(),
        name: dialler.address.to_string().into(),
        token_place: token_place.into(),
    };
    (road, Keeper { dialler, tokens, current: sender, wanted: wanted_receiver, gate, metrics })
}

/// Counts as one who waits for a connection.
struct Wants<'a>(&'a watch::Sender<usize>);

impl<'a> Wants<'a> {
    fn one(wanted: &'a watch::Sender<usize>) -> Self {
        wanted.send_modify(|wanted| *wanted += 1);
        Self(wanted)
    }
}

impl Drop for Wants<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|wanted| *wanted -= 1);
    }
}

/// Why another connection is needed.
enum Over {
    /// The broker asks for it, politely; what runs on this one goes on.
    Asked,
    /// The connection is lost, or given up, or of a token that is no longer in use.
    Gone,
}

impl Road {
    /// Waits for a connection on which the broker may be asked. Never ends while the keeper runs.
    pub async fn connection(&self) -> Connection {
        let mut current = self.current.clone();
        loop {
            self.gate.passed().await;
            let open = |current: &Option<Connection>| current.as_ref().is_some_and(|c| c.takes_streams());
            let _wants = (!open(&current.borrow())).then(|| Wants::one(&self.wanted));
            let Ok(found) = current.wait_for(open).await else {
                // The keeper has ended, and with it the process.
                return std::future::pending().await;
            };
            if let Some(connection) = found.as_ref() {
                return connection.clone();
            }
        }
    }

    /// Returns once there is a connection, and another than `known`.
    pub async fn another_than(&self, known: &Connection) {
        let mut current = self.current.clone();
        let other = |current: &Option<Connection>| current.as_ref().is_some_and(|c| !c.same_as(known));
        if current.wait_for(other).await.is_err() {
            std::future::pending().await
        }
    }

    /// Whether there is a connection now, be it one that is about to be replaced.
    pub fn is_connected(&self) -> bool {
        self.current.borrow().as_ref().is_some_and(|connection| !connection.is_gone())
    }

    /// Whether the broker has refused or limited the token, so that no stream is opened for the moment.
    pub fn is_held_back(&self) -> bool {
        self.gate.is_closed()
    }

    /// Takes note of a stream's status. `true` if it was a refusal of the token, which has been logged and makes
    /// [`Road::connection`] wait; nobody else needs to wait or to log.
    pub fn refused(&self, connection: &Connection, status: &Status) -> bool {
        let Some(refusal) = Refusal::of(status) else {
            return false;
        };
        if self.current.borrow().as_ref().is_some_and(|current| !current.same_as(connection)) {
            // It was about a token that is no longer in use.
            return true;
        }
        if let Some(delay) = self.gate.close(refusal, gate::hint(status)) {
            let broker = &self.name;
            let (status, place, advice) = (error::status(status), &self.token_place, refusal.advice());
            match refusal {
                Refusal::Limited => {
                    warn!(error = %status, retry_in = ?delay, %advice, "token limited by {broker}");
                }
                Refusal::Later => {
                    warn!(error = %status, retry_in = ?delay, %advice, "sent away for a while by {broker}");
                }
                _ => {
                    warn!(error = %status, retry_in = ?delay, token_from = %place, %advice, "token refused by {broker}")
                }
            }
        }
        true
    }

    /// Takes note that the broker let a stream through.
    pub fn admitted(&self) {
        self.gate.admitted();
    }
}

impl Keeper {
    /// Dials and redials for ever.
    pub async fn keep_connected(mut self) {
        let user_agent =
            HeaderValue::try_from(&self.dialler.user_agent).expect("a program's name is a header value");
        let mut backoff = Backoff::new(FIRST_REDIAL, LAST_REDIAL, REDIAL_GROWTH);
        // The one before, until its successor is there: make before break.
        let mut old: Option<Connection> = None;
        let mut led_to = self.dialler.address.clone();
        let mut used = None;
        loop {
            let token = self.tokens.borrow_and_update().clone();
            let opened = self.open(&token, &user_agent, &mut led_to).await;
            let delay = match opened {
                Ok(opened) => {
                    let since = Instant::now();
                    let connection = opened.connection.clone();
                    self.current.send_replace(Some(connection.clone()));
                    // Only now: through an open gate the streams would go to the connection with the old token.
                    if used.replace(token.key()) != Some(token.key()) {
                        self.gate.open();
                    }
                    if let Some(old) = old.replace(connection) {
                        old.retired().cancel();
                    }
                    self.metrics.connected.set(1);
                    let now = opened.connection.clone();
                    let over = self.attend(opened).await;
                    if since.elapsed() >= LIVED {
                        backoff.reset();
                        if matches!(over, Over::Asked) {
                            self.until_needed(&now).await;
                            continue;
                        }
                    }
                    backoff.step()
                }
                Err(failure) => {
                    let delay = backoff.step();
                    self.metrics.dial_failures.inc();
                    warn!(error = %failure.line(), retry_in = ?delay, "dial failed");
                    delay
                }
            };
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                Ok(()) = self.tokens.changed() => {}
            }
        }
    }

    async fn open(
        &self,
        token: &AgentToken,
        user_agent: &HeaderValue,
        led_to: &mut Address,
    ) -> Result<Opened, Failure> {
        let dialled = self.dialler.dial().await?;
        let address = dialled.address.clone();
        if address != *led_to {
            warn!(from = %self.dialler.address, to = %address, "redirected; give the final address to --kas-address");
            *led_to = address.clone();
        }
        let opened = connection::open(dialled, token, &self.dialler.headers, user_agent).await?;
        self.metrics.connections.inc();
        info!(address = %address, scheme = %address.scheme(), "connected to the broker");
        Ok(opened)
    }

    /// Returns when another connection is needed. Streams of this one that still run are left to finish.
    async fn attend(&mut self, opened: Opened) -> Over {
        let Opened { connection, mut driver, mut seen } = opened;
        let goodbye = |seen: &Seen| matches!(seen, Seen::GoAway { .. });
        let over = tokio::select! {
            biased;
            Ok(seen) = seen.wait_for(goodbye) => {
                let asked = match &*seen {
                    Seen::GoAway { code: 0, .. } => true,
                    Seen::GoAway { code, text } => {
                        warn!(code = %h2_reason(*code), text = %text, "the broker gives the connection up");
                        false
                    }
                    _ => false,
                };
                if asked {
                    info!("the broker asks for a new connection");
                }
                connection.leave();
                // No stream can be opened on it any more; those that run go on, and requests still come through them.
                self.current.send_modify(|_| {});
                driver.detach();
                if asked { Over::Asked } else { Over::Gone }
            }
            result = &mut driver => {
                let cause = match &result {
                    Ok(Err(error)) => error::chain(error),
                    Ok(Ok(())) => "the broker closed it".to_owned(),
                    Err(error) => error::chain(error),
                };
                warn!(error = %cause, "connection lost");
                self.current.send_replace(None);
                Over::Gone
            }
            Ok(()) = self.tokens.changed() => {
                info!("connecting anew with the new token");
                driver.detach();
                Over::Gone
            }
        };
        let open = self.current.borrow().as_ref().is_some_and(Connection::takes_streams);
        self.metrics.connected.set(i64::from(open));
        over
    }

    /// While the connection before still brings requests there is no hurry.
    async fn until_needed(&mut self, before: &Connection) {
        let moment = MOVE_WITHIN.mul_f64(rand::rng().random_range(0.0..1.0));
        tokio::select! {
            () = tokio::time::sleep(moment) => {}
            () = before.ended() => {}
            Ok(_) = self.wanted.wait_for(|wanted| *wanted > 0) => {}
            Ok(()) = self.tokens.changed() => {}
        }
    }
}

fn h2_reason(code: u32) -> String {
    // The names of RFC 9113, section 7, that a server uses towards a client that it is displeased with.
    match code {
        1 => "PROTOCOL_ERROR".to_owned(),
        2 => "INTERNAL_ERROR".to_owned(),
        3 => "FLOW_CONTROL_ERROR".to_owned(),
        7 => "REFUSED_STREAM".to_owned(),
        11 => "ENHANCE_YOUR_CALM".to_owned(),
        code => format!("code {code}"),
    }
}
