//! The connections of one worker, so that a drain can tell one after the other, and all can learn what holds from now on.
//!
//! `life` enters each; `pace` walks them. Bounded by `limits.connections`. The lock is taken when a connection begins and
//! ends, never for a frame or a stream.

use super::{Rhythm, Terms, Why};
use postern_wire::token::TokenKey;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;

/// What the drain decided about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Stay,
    Leave,
    Cut,
    /// By a policy.
    Denied,
}

/// One connection, as its streams and the drain see it.
#[derive(Debug, Default)]
pub struct Seat {
    verdict: AtomicU8,
    told: AtomicBool,
    /// Why the edge ended it by force, plus one; 0: it did not.
    cut: AtomicU8,
    busy: AtomicU32,
    parked: AtomicU32,
    /// A broker has accepted a token of this connection.
    trusted: AtomicBool,
    /// Whom policies judge it by; `None`: it carries the requests of several.
    client: Mutex<Option<IpAddr>>,
    /// Several clients come on this connection, through a proxy: no token stands for it.
    many: bool,
    /// [`Rhythm`], for who pings.
    rhythm: AtomicU32,
    /// The first token that a broker accepted.
    token: OnceLock<TokenKey>,
    waker: Mutex<Option<Waker>>,
}

/// Somebody waits for what this connection carries, while this is held.
#[derive(Debug)]
pub struct Busy(Arc<Seat>);

impl Seat {
    /// `many`: the connection is that of a proxy, whose clients each have tokens of their own.
    pub fn new(many: bool) -> Self {
        Self { many, ..Self::default() }
    }

    /// Counts something that must not be cut.
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// A stream that was busy only waits now.
    pub(crate) fn park(&self) {
        self.busy.fetch_sub(1, Ordering::Relaxed);
        self.parked.fetch_add(1, Ordering::Relaxed);
    }

    /// A stream that only waited is busy now.
    pub(crate) fn wake(&self) {
        self.parked.fetch_sub(1, Ordering::Relaxed);
        self.busy.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn open(&self) {
        self.busy.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn close(&self, parked: bool) {
        if parked { &self.parked } else { &self.busy }.fetch_sub(1, Ordering::Relaxed);
    }

    /// A broker served a request, so it accepts the token.
    pub fn trust(&self, token: Option<TokenKey>) {
        // Said with every call, and read by all of them.
        if !self.trusted.load(Ordering::Relaxed) {
            self.trusted.store(true, Ordering::Relaxed);
        }
        if let Some(token) = token.filter(|_| !self.many && self.token.get().is_none()) {
            // Of two at once either is the first.
            let _ = self.token.set(token);
        }
    }

    /// By which token selectors know the connection.
    pub fn token(&self) -> Option<&TokenKey> {
        self.token.get()
    }

    /// How often policies have it pinged.
    pub fn rhythm(&self) -> Rhythm {
        Rhythm(self.rhythm.load(Ordering::Relaxed))
    }

    pub(super) fn set_rhythm(&self, rhythm: Rhythm) {
        self.rhythm.store(rhythm.0, Ordering::Relaxed);
    }

    /// Whether a broker has accepted a token of this connection.
    pub fn is_trusted(&self) -> bool {
        self.trusted.load(Ordering::Relaxed)
    }

    /// What comes from now on is this client's.
    pub fn note_client(&self, client: Option<IpAddr>) {
        *lock(&self.client) = client;
    }

    /// The one client of the connection.
    pub fn client(&self) -> Option<IpAddr> {
        *lock(&self.client)
    }

    /// A policy denies the client: the connection ends now.
    pub fn deny(&self) {
        self.decide(Verdict::Denied);
    }

    /// Whether the client was told to leave.
    pub fn is_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// Why the edge ended the connection by force, if it did.
    pub fn cut(&self) -> Option<Why> {
        [Why::Age, Why::Idle, Why::Drain, Why::Denied]
            .into_iter()
            .find(|why| *why as u8 + 1 == self.cut.load(Ordering::Relaxed))
    }

    pub(super) fn note_cut(&self, why: Why) {
        self.cut.store(why as u8 + 1, Ordering::Relaxed);
    }

    pub(super) fn verdict(&self) -> Verdict {
        match self.verdict.load(Ordering::SeqCst) {
            0 => Verdict::Stay,
            1 => Verdict::Leave,
            2 => Verdict::Cut,
            _ => Verdict::Denied,
        }
    }

    pub(super) fn wake_by(&self, waker: Waker) {
        *self.waker() = Some(waker);
    }

    fn decide(&self, verdict: Verdict) {
        self.verdict.fetch_max(verdict as u8, Ordering::SeqCst);
        self.rouse();
    }

    /// Has the connection look at what is new.
    fn rouse(&self) {
        if let Some(waker) = &*self.waker() {
            waker.wake_by_ref();
        }
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        lock(&self.waker)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The connections of one worker.
#[derive(Debug)]
pub struct Roll {
    /// What holds for them, and for those of all other workers.
    pub(super) terms: Arc<Terms>,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    seats: Vec<Option<Arc<Seat>>>,
    free: Vec<usize>,
    /// Where the walk goes on.
    cursor: usize,
    /// How many were not told yet.
    untold: usize,
}

/// A place on the roll.
#[derive(Debug)]
pub(super) struct Entry {
    roll: Arc<Roll>,
    seat: Arc<Seat>,
    index: usize,
}

impl Roll {
    pub fn new(terms: &Arc<Terms>) -> Arc<Self> {
        Arc::new(Self { terms: terms.clone(), book: Mutex::default() })
    }

    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    pub(super) fn enter(roll: &Arc<Self>, seat: Arc<Seat>) -> Entry {
        let mut book = roll.book();
        let index = book.free.pop().unwrap_or(book.seats.len());
        if index == book.seats.len() {
            book.seats.push(None);
        }
        book.seats[index] = Some(seat.clone());
        book.untold += 1;
        drop(book);
        roll.terms.enter();
        Entry { roll: roll.clone(), seat, index }
    }

    /// How many connections there are, and how many of them were not told to leave.
    pub fn count(&self) -> (usize, usize) {
        let book = self.book();
        (book.seats.len() - book.free.len(), book.untold)
    }

    /// Tells one connection to leave; `false` if there is none that does not know.
    pub fn tell_next(&self) -> bool {
        let mut book = self.book();
        if book.untold == 0 {
            return false;
        }
        let length = book.seats.len();
        for step in 0..length {
            let index = (book.cursor + step) % length;
            let Some(seat) = &book.seats[index] else { continue };
            if seat.told.swap(true, Ordering::Relaxed) {
                continue;
            }
            let seat = seat.clone();
            book.cursor = index + 1;
            book.untold -= 1;
            drop(book);
            seat.decide(Verdict::Leave);
            return true;
        }
        false
    }

    /// Wakes the connections of `count` places from this one on. Returns where to go on; `None`: those were the last.
    pub(super) fn rouse(&self, from: usize, count: usize) -> Option<usize> {
        let book = self.book();
        let next = from + count;
        let places = book.seats.get(from..next.min(book.seats.len()))?;
        // Woken tasks may want this lock.
        let seats: Vec<_> = places.iter().flatten().cloned().collect();
        let more = next < book.seats.len();
        drop(book);
        seats.iter().for_each(|seat| seat.rouse());
        more.then_some(next)
    }

    /// Cuts every connection.
    pub fn cut_all(&self) {
        // Woken tasks want this lock.
        let seats: Vec<_> = self.book().seats.iter().flatten().cloned().collect();
        for seat in seats {
            seat.decide(Verdict::Cut);
        }
    }

    /// Looks at `count` places from `from` on, and cuts the connections that are denied. Returns how many, and where to
    /// go on.
    pub fn deny_where(
        &self,
        from: usize,
        count: usize,
        is_denied: impl Fn(&Seat) -> bool,
    ) -> (usize, Option<usize>) {
        let (denied, next) = {
            let book = self.book();
            let seats = book.seats.iter().skip(from).take(count).flatten();
            let denied: Vec<_> =
                seats.filter(|seat| seat.verdict() != Verdict::Denied && is_denied(seat)).cloned().collect();
            (denied, Some(from + count).filter(|next| *next < book.seats.len()))
        };
        // Woken tasks want the lock.
        denied.iter().for_each(|seat| seat.deny());
        (denied.len(), next)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    pub(super) fn terms(&self) -> &Terms {
        &self.roll.terms
    }

    pub(super) fn seat(&self) -> &Seat {
        &self.seat
    }

    /// Whether any stream is more than an idle tunnel. `open`: whether there is a stream at all; one that is not yet, or
    /// no longer, counted has bytes on the way.
    pub(super) fn is_waited_for(&self, open: bool) -> bool {
        let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        open && (count(&self.seat.busy) > 0 || count(&self.seat.parked) == 0)
    }

    /// The connection was told, by the drain or by its own clock.
    pub(super) fn tell(&self) {
        let mut book = self.roll.book();
        if !self.seat.told.swap(true, Ordering::Relaxed) {
            book.untold -= 1;
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut book = self.roll.book();
        book.seats[self.index] = None;
        book.free.push(self.index);
        if !self.seat.told.load(Ordering::Relaxed) {
            book.untold -= 1;
        }
        drop(book);
        self.roll.terms.exit();
    }
}
