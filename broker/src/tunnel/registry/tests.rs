//! The registry without any network: tunnels are made of bare channels.

use super::*;
use crate::tunnel::stream::tests::tunnel;

const AGENT: AgentId = AgentId(1);
const OTHER: AgentId = AgentId(2);

/// Puts one idle tunnel into the registry and serves its claim in a task.
fn idle(registry: &Arc<Registry>, agent: AgentId) -> PresenceGuard {
    let guard = registry.present(agent, "here".into(), true);
    let Offer::Idle(ticket, claimed) = registry.offer(agent) else { panic!("nobody waits") };
    tokio::spawn(async move {
        let _ticket = ticket;
        if let Ok(claim) = claimed.await {
            let _ = claim.send(tunnel(agent));
        }
    });
    guard
}

#[tokio::test(start_paused = true)]
async fn a_request_takes_an_idle_tunnel_of_its_own_agent_only() {
    let registry = Arc::new(Registry::default());
    tokio::time::advance(START_GRACE).await;
    let _guard = idle(&registry, OTHER);
    let refused = registry.find(AGENT, Duration::from_secs(20)).await.unwrap_err();
    assert_eq!(refused, FindError::NeverSeen { agent: AGENT, up: START_GRACE });
    assert_eq!(registry.find(OTHER, Duration::ZERO).await.unwrap().agent(), OTHER);
    assert_eq!(registry.census().idle, 0);
}

#[tokio::test(start_paused = true)]
async fn an_agent_never_seen_is_refused_at_once_after_the_start_grace() {
    let registry = Arc::new(Registry::default());
    let start = Instant::now();
    assert!(registry.find(AGENT, Duration::from_secs(20)).await.is_err());
    assert_eq!(start.elapsed(), START_GRACE);
    let start = Instant::now();
    assert!(registry.find(AGENT, Duration::from_secs(20)).await.is_err());
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_an_agent_that_was_here_and_says_so_when_it_does_not_return() {
    let registry = Arc::new(Registry::default());
    drop(registry.present(AGENT, "192.0.2.1:5".into(), true));
    tokio::time::advance(Duration::from_secs(60)).await;
    let wait = Duration::from_secs(20);
    let refused = registry.find(AGENT, wait).await.unwrap_err();
    let FindError::Gone { waited, ago, ref from, .. } = refused else { panic!("{refused}") };
    assert_eq!((waited, ago.as_secs(), from.as_str()), (wait, 80, "192.0.2.1:5"));
}

#[tokio::test(start_paused = true)]
async fn a_refused_agent_is_reported_with_the_reason_until_it_is_let_in_again() {
    let registry = Arc::new(Registry::default());
    drop(registry.present(AGENT, "here".into(), true));
    registry.refused(AGENT, "its token was revoked".into());
    let refused = registry.find(AGENT, Duration::ZERO).await.unwrap_err().to_string();
    assert!(refused.contains("last refused: its token was revoked"), "{refused}");
    drop(registry.present(AGENT, "here".into(), true));
    let gone = registry.find(AGENT, Duration::ZERO).await.unwrap_err().to_string();
    assert!(!gone.contains("refused"), "{gone}");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_request_gets_the_tunnel_as_it_arrives() {
    let registry = Arc::new(Registry::default());
    let _busy = registry.present(AGENT, "here".into(), true);
    let finding = tokio::spawn({
        let registry = Arc::clone(&registry);
        async move { registry.find(AGENT, Duration::from_secs(20)).await.map(|tunnel| tunnel.agent()) }
    });
    tokio::task::yield_now().await;
    assert_eq!(registry.census().waiting, 1);
    let Offer::Wanted(claim) = registry.offer(AGENT) else { panic!("a request waits") };
    claim.send(tunnel(AGENT)).unwrap();
    assert_eq!(finding.await.unwrap(), Ok(AGENT));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_went_away_does_not_swallow_a_tunnel() {
    let registry = Arc::new(Registry::default());
    let _busy = registry.present(AGENT, "here".into(), true);
    let impatient = registry.find(AGENT, Duration::from_secs(1)).await;
    assert!(matches!(impatient, Err(FindError::Busy { busy: 1, .. })));
    assert!(matches!(registry.offer(AGENT), Offer::Idle(..)));
}

#[tokio::test(start_paused = true)]
async fn a_dead_idle_tunnel_is_skipped() {
    let registry = Arc::new(Registry::default());
    let _alive = idle(&registry, AGENT);
    let _guard = registry.present(AGENT, "here".into(), true);
    let Offer::Idle(ticket, claimed) = registry.offer(AGENT) else { panic!("nobody waits") };
    drop(claimed);
    assert_eq!(registry.find(AGENT, Duration::ZERO).await.unwrap().agent(), AGENT);
    drop(ticket);
}

#[tokio::test(start_paused = true)]
async fn waiting_requests_are_bounded_and_released_by_a_drain() {
    let registry = Arc::new(Registry::default());
    let _busy = registry.present(AGENT, "here".into(), true);
    let mut finding = tokio::task::JoinSet::new();
    for _ in 0..MAX_WAITING {
        let registry = Arc::clone(&registry);
        finding.spawn(async move { registry.find(AGENT, Duration::from_secs(20)).await.map(|_| ()) });
    }
    while registry.census().waiting < MAX_WAITING {
        tokio::task::yield_now().await;
    }
    let refused = registry.find(AGENT, Duration::from_secs(20)).await.unwrap_err();
    assert_eq!(refused, FindError::TooManyWaiting { agent: AGENT });
    registry.drain();
    while let Some(found) = finding.join_next().await {
        assert_eq!(found.unwrap(), Err(FindError::Draining));
    }
    assert_eq!(registry.find(AGENT, Duration::ZERO).await.unwrap_err(), FindError::Draining);
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_an_agent_that_nobody_has_seen_leaves_nothing_behind() {
    let registry = Arc::new(Registry::default());
    tokio::time::advance(START_GRACE).await;
    assert!(registry.take(AGENT).await.is_none());
    let waited = tokio::time::timeout(Duration::from_secs(1), registry.wait(AGENT)).await;
    assert!(waited.is_err());
    assert!(registry.slots().agents.is_empty());
    assert_eq!(registry.presence(AGENT), None);
}

#[tokio::test(start_paused = true)]
async fn an_agents_first_and_last_tunnel_are_told_of_once() {
    let registry = Arc::new(Registry::default());
    let first = registry.present(AGENT, "here".into(), true);
    let second = registry.present(AGENT, "here".into(), true);
    let _stream = registry.present(OTHER, "there".into(), false);
    assert_eq!(registry.changed().await, [AGENT]);
    assert_eq!((registry.held(), registry.holds(OTHER)), (vec![AGENT], false));
    drop(first);
    let told = tokio::time::timeout(Duration::from_secs(1), registry.changed()).await;
    assert!(told.is_err(), "one tunnel is left");
    drop(second);
    assert_eq!(registry.changed().await, [AGENT]);
    let presence = registry.presence(AGENT).unwrap();
    assert_eq!((presence.tunnels, presence.streams, presence.last.1.as_str()), (0, 0, "here"));
}

#[tokio::test]
async fn a_lease_that_is_dropped_unopened_comes_back_and_one_that_is_used_does_not() {
    let (lease, returned) = Lease::of(tunnel(AGENT).take());
    drop(lease);
    let (lease, used) = Lease::of(returned.await.unwrap());
    lease.take().close(Ok(()));
    assert!(used.await.is_err());
}
