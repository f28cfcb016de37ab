//! Connections by broker: one is dialled however many calls want it, another one when the first is full, none for a
//! while where the last dial failed. Under `peers`; `connection` dials and watches. Brokers come from Redis, where
//! anybody with its password can write, so their number here is bounded.

use super::{
    Limits, PeerError, Target,
    connection::{self, Connection, Place},
};
use crate::fleet::PeerUrl;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Brokers with a connection, or whose last dial failed.
const PEERS: usize = 64;
/// To one broker.
const CONNECTIONS: usize = 32;

pub(super) struct Pool {
    slots: Arc<Slots>,
    limits: Limits,
}

#[derive(Default)]
struct Slots(Mutex<HashMap<PeerUrl, Slot>>);

struct Slot {
    open: Vec<Connection>,
    /// Tells the outcome of the dial that is under way.
    dialling: Option<watch::Receiver<Option<Dialled>>>,
    failed: Option<Failed>,
    used: Instant,
}

type Dialled = Result<(), PeerError>;

struct Failed {
    until: Instant,
    pause: Duration,
    why: PeerError,
}

enum Found {
    Place(Place),
    Dialling(watch::Receiver<Option<Dialled>>),
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, HashMap<PeerUrl, Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of a connection that carries nothing; `false` if it does.
    fn retire(&self, peer: &PeerUrl, held: &Weak<()>) -> bool {
        let mut slots = self.lock();
        let Some(slot) = slots.get_mut(peer) else { return true };
        let before = slot.open.len();
        slot.open.retain(|connection| !connection.has(held) || !connection.is_idle());
        let retired = slot.open.len() < before || !slot.open.iter().any(|connection| connection.has(held));
        if slot.open.is_empty() && slot.dialling.is_none() {
            slots.remove(peer);
        }
        retired
    }
}

impl Pool {
    pub(super) fn new(limits: Limits) -> Self {
        Self { slots: Arc::default(), limits }
    }

    /// A place on a connection to this broker.
    pub(super) async fn place(&self, target: &Target) -> Result<Place, PeerError> {
        loop {
            let mut outcome = match self.find(target)? {
                Found::Place(place) => return Ok(place),
                Found::Dialling(outcome) => outcome,
            };
            match outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone()) {
                Ok(Some(Err(why))) => return Err(why),
                Ok(_) => {}
                // Only when the runtime ends.
                Err(_) => return Err(PeerError::Ended { broker: target.url.clone() }),
            }
        }
    }

    /// The connection is going away: nobody else gets a place on it.
    pub(super) fn forget(&self, peer: &PeerUrl, place: &Place) {
        if let Some(slot) = self.slots.lock().get_mut(peer) {
            slot.open.retain(|connection| !connection.is_of(place));
        }
    }

    #[cfg(test)]
    pub(super) fn connections(&self) -> usize {
        self.slots.lock().values().map(|slot| slot.open.len()).sum()
    }

    #[cfg(test)]
    pub(super) fn brokers(&self) -> usize {
        self.slots.lock().len()
    }

    fn find(&self, target: &Target) -> Result<Found, PeerError> {
        let mut slots = self.slots.lock();
        if !slots.contains_key(&target.url) {
            make_room(&mut slots, target)?;
        }
        let slot = slots.entry(target.url.clone()).or_insert_with(|| Slot {
            open: Vec::new(),
            dialling: None,
            failed: None,
            used: Instant::now(),
        });
        slot.used = Instant::now();
        slot.open.retain(Connection::is_alive);
        if let Some(place) = slot.open.iter().find_map(Connection::place) {
            return Ok(Found::Place(place));
        }
        if let Some(dialling) = &slot.dialling {
            return Ok(Found::Dialling(dialling.clone()));
        }
        if let Some(failed) = &slot.failed
            && Instant::now() < failed.until
        {
            return Err(failed.why.clone());
        }
        if slot.open.len() >= CONNECTIONS {
            return Err(PeerError::Full { broker: target.url.clone(), limit: CONNECTIONS });
        }
        let (outcome, dialling) = watch::channel(None);
        slot.dialling = Some(dialling.clone());
        tokio::spawn(dial(Arc::downgrade(&self.slots), target.clone(), self.limits, outcome));
        Ok(Found::Dialling(dialling))
    }
}

/// A task of its own: the call that asked first may leave while others wait.
async fn dial(slots: Weak<Slots>, target: Target, limits: Limits, outcome: watch::Sender<Option<Dialled>>) {
    let (pool, peer) = (slots.clone(), target.url.clone());
    let retire = move |held: &Weak<()>| pool.upgrade().is_none_or(|slots| slots.retire(&peer, held));
    let dialled = connection::dial(&target, limits, retire).await;
    let Some(slots) = slots.upgrade() else { return };
    let mut slots = slots.lock();
    // A slot with a dial under way is never removed.
    let Some(slot) = slots.get_mut(&target.url) else { return };
    slot.dialling = None;
    let dialled = match dialled {
        Ok(connection) => {
            slot.failed = None;
            slot.open.push(connection);
            Ok(())
        }
        Err(why) => {
            let (first, longest) = limits.pause;
            let pause = slot.failed.as_ref().map_or(first, |failed| (failed.pause * 2).min(longest));
            slot.failed = Some(Failed { until: Instant::now() + pause, pause, why: why.clone() });
            tracing::debug!(broker = %target.url, error = %crate::error::chain(&why), "not dialled");
            Err(why)
        }
    };
    outcome.send_replace(Some(dialled));
}

/// Drops the broker that was wanted longest ago, if there are as many as there may be.
fn make_room(slots: &mut HashMap<PeerUrl, Slot>, target: &Target) -> Result<(), PeerError> {
    if slots.len() < PEERS {
        return Ok(());
    }
    let unused =
        |slot: &Slot| slot.dialling.is_none() && slot.open.iter().all(|c| c.is_idle() || !c.is_alive());
    let oldest = slots.iter().filter(|(_, slot)| unused(slot)).min_by_key(|(_, slot)| slot.used);
    let Some(oldest) = oldest.map(|(peer, _)| peer.clone()) else {
        return Err(PeerError::TooManyPeers { broker: target.url.clone(), limit: PEERS });
    };
    slots.remove(&oldest);
    Ok(())
}
