//! Closes the connections of clients that a policy denies from now on.
//!
//! After a change of the policies, beside the workers: looks at a few connections of each at a time, so that nobody else
//! waits while twenty thousand of them say goodbye. Who was only waiting to be accepted is judged by `accept`.

use super::Policies;
use crate::life::{Roll, Seat, Why};
use crate::observability::metrics::Metrics;
use std::sync::Arc;
use std::time::Duration;

/// Connections of one worker that are looked at, and at the most cut, in one go.
const STEP: usize = 64;
/// Each that is cut takes a worker some 50 us of writing.
const PAUSE: Duration = Duration::from_millis(5);

/// Follows the policies for as long as the process lives.
pub async fn keep_out(policies: &Policies, rolls: &[Arc<Roll>], metrics: &Metrics) {
    let mut changes = policies.live().changes();
    // Also at first: there may have been one before anybody looked.
    changes.mark_changed();
    while changes.changed().await.is_ok() {
        if policies.live().set().access.clients.is_empty() {
            continue;
        }
        let closed = expel(rolls, metrics, |seat| !policies.still_admit(seat)).await;
        if closed > 0 {
            tracing::info!(connections = closed, reason = Why::Denied.name(), "closed connections");
        }
    }
}

/// Cuts those that are denied, and returns how many.
pub(super) async fn expel(
    rolls: &[Arc<Roll>],
    metrics: &Metrics,
    is_denied: impl Fn(&Seat) -> bool,
) -> usize {
    let mut closed = 0;
    let mut places: Vec<_> = rolls.iter().map(|roll| (roll, 0)).collect();
    while !places.is_empty() {
        let mut cut = 0;
        places.retain_mut(|(roll, from)| {
            let (denied, next) = roll.deny_where(*from, STEP, &is_denied);
            cut += denied;
            *from = next.unwrap_or(0);
            next.is_some()
        });
        (0..cut).for_each(|_| metrics.departure("denied"));
        closed += cut;
        if cut > 0 {
            tokio::time::sleep(PAUSE).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
    closed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::life::{Life, Sentence, Terms};
    use crate::policy::tests::access;
    use postern_policies::PolicySet;
    use postern_wire::token::TokenKey;
    use std::future::poll_fn;
    use std::net::{IpAddr, Ipv4Addr};
    use std::task::Poll;
    use tokio::time::Instant;

    fn roll() -> Arc<Roll> {
        let connections = config::Connections { max_age: None, jitter_percent: 0, grace: PAUSE };
        let drain = config::Drain { pre: PAUSE, grace: PAUSE, connections_per_second: 1 };
        Roll::new(&Terms::new(&connections, Duration::from_secs(600), &drain, Arc::new(PolicySet::empty())))
    }

    fn open(roll: &Arc<Roll>, client: Option<IpAddr>) -> (Life, Arc<Seat>) {
        let seat = Arc::<Seat>::default();
        seat.note_client(client);
        let known_as = client.unwrap_or(Ipv4Addr::LOCALHOST.into());
        (Life::new(roll, seat.clone(), known_as), seat)
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_denied_are_cut_and_never_many_at_once() {
        const EACH: usize = 5_000;
        let good = IpAddr::from([192, 0, 2, 1]);
        let bad = IpAddr::from([198, 51, 100, 1]);
        let rolls = [roll(), roll()];
        let mut lives = Vec::new();
        for n in 0..2 * EACH {
            // Every other one, and now and then a proxy that comes for many.
            let client = if n % 100 == 7 { None } else { Some(if n / 2 % 2 == 0 { good } else { bad }) };
            lives.push((client, open(&rolls[n % 2], client)));
        }
        let denied = lives.iter().filter(|(client, _)| *client == Some(bad)).count();
        let (metrics, begin) = (Metrics::default(), Instant::now());
        let cut = || lives.iter().filter(|(_, (life, _))| life.is_leaving()).count();
        let paced = async {
            let mut before = 0;
            while before < denied {
                tokio::time::sleep(PAUSE).await;
                assert!(cut() - before <= 2 * 2 * STEP, "{} in {PAUSE:?}", cut() - before);
                before = cut();
            }
        };
        let (closed, ()) = tokio::join!(expel(&rolls, &metrics, |seat| seat.client() == Some(bad)), paced);
        println!("{closed} connections in {:?}", begin.elapsed());
        assert_eq!(closed, denied);
        for (client, (life, seat)) in &mut lives {
            let said = poll_fn(|cx| Poll::Ready(life.poll(cx, true, good))).await;
            if *client == Some(bad) {
                assert_eq!(said, Poll::Ready(Sentence::Cut(Why::Denied)));
                assert_eq!(seat.cut(), Some(Why::Denied));
            } else {
                assert_eq!(said, Poll::Pending);
            }
        }
        // A second look finds nobody, and nobody is counted twice.
        assert_eq!(expel(&rolls, &metrics, |seat| seat.client() == Some(bad)).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_denial_from_before_anybody_followed_the_policies_counts_too() {
        let bad = IpAddr::from([198, 51, 100, 1]);
        let token = TokenKey::of(b"theirs");
        let (_directory, policies) = access("{deny: [198.51.100.0/24]}", &token, "{allow: [0.0.0.0/0]}");
        let rolls = [roll()];
        let (life, seat) = open(&rolls[0], Some(bad));
        let (stays, _) = open(&rolls[0], Some(Ipv4Addr::LOCALHOST.into()));
        let metrics = Metrics::default();
        let closed = async {
            while !life.is_leaving() {
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! {
            () = keep_out(&policies, &rolls, &metrics) => panic!("it follows for ever"),
            done = tokio::time::timeout(Duration::from_secs(10), closed) => done.unwrap(),
        }
        assert_eq!((stays.is_leaving(), seat.client()), (false, Some(bad)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_serves_a_request_hears_of_a_denial_and_of_nothing_else() {
        let (mut life, seat) = open(&roll(), Some(Ipv4Addr::LOCALHOST.into()));
        let mut hear = async || poll_fn(|cx| Poll::Ready(life.poll_denied(cx))).await;
        assert_eq!(hear().await, Poll::Pending);
        seat.deny();
        assert_eq!(hear().await, Poll::Ready(()));
        assert_eq!((hear().await, seat.cut()), (Poll::Pending, Some(Why::Denied)));
    }
}
