//! The connections of one worker, so that a drain can tell one after the other.
//!
//! `life` enters each; `pace` walks them. Bounded by `limits.connections`. The lock is taken when a connection begins and
//! ends, never for a frame or a stream.

use super::Why;
use postern_wire::token::TokenKey;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// Whom policies judge it by.
    whose: Mutex<Whose>,
    waker: Mutex<Option<Waker>>,
}

/// The one client of a connection, and the first token that came from there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Whose {
    /// `None`: the connection carries the requests of several.
    pub client: Option<IpAddr>,
    pub token: Option<TokenKey>,
}

/// Somebody waits for what this connection carries, while this is held.
#[derive(Debug)]
pub struct Busy(Arc<Seat>);

impl Seat {
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
    pub fn trust(&self) {
        // Said with every call, and read by all of them.
        if !self.trusted.load(Ordering::Relaxed) {
            self.trusted.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a broker has accepted a token of this connection.
    pub fn is_trusted(&self) -> bool {
        self.trusted.load(Ordering::Relaxed)
    }

    /// What comes from now on is this client's.
    pub fn note_client(&self, client: Option<IpAddr>) {
        *lock(&self.whose) = Whose { client, token: None };
    }

    /// A token with which something was asked for.
    pub fn note_token(&self, token: &TokenKey) {
        lock(&self.whose).token.get_or_insert(*token);
    }

    /// By whom the connection is judged.
    pub fn whose(&self) -> Whose {
        *lock(&self.whose)
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
#[derive(Debug, Default)]
pub struct Roll(Mutex<Book>);

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
    pub(super) fn enter(roll: &Arc<Self>, seat: Arc<Seat>) -> Entry {
        let mut book = roll.book();
        let index = book.free.pop().unwrap_or(book.seats.len());
        if index == book.seats.len() {
            book.seats.push(None);
        }
        book.seats[index] = Some(seat.clone());
        book.untold += 1;
        drop(book);
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
            let denied: Vec<_> = seats
                .filter(|seat| seat.verdict() != Verdict::Denied && is_denied(seat))
                .cloned()
                .collect();
            (denied, Some(from + count).filter(|next| *next < book.seats.len()))
        };
        // Woken tasks want the lock.
        denied.iter().for_each(|seat| seat.deny());
        (denied.len(), next)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
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
    }
}
