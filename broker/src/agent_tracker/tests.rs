//! Who comes and goes, with the clock stopped.

use super::*;
use tokio::time::advance;

const A: AgentId = AgentId(1);
const B: AgentId = AgentId(2);
const P: ProjectId = ProjectId(10);

fn who(agent: AgentId, project: ProjectId) -> Who {
    Who { agent, project, name: "prod".to_owned(), address: "192.0.2.1:5000".to_owned() }
}

impl Tracker {
    fn by_agents<const N: usize>(&self, agents: [AgentId; N]) -> Vec<ConnectedAgentInfo> {
        self.infos(&Wanted::Of { agents: agents.into(), projects: BTreeSet::new() })
    }

    fn by_projects<const N: usize>(&self, projects: [ProjectId; N]) -> Vec<ConnectedAgentInfo> {
        self.infos(&Wanted::Of { agents: BTreeSet::new(), projects: projects.into() })
    }

    fn infos(&self, wanted: &Wanted) -> Vec<ConnectedAgentInfo> {
        let (found, more) = self.list(wanted, 10_000);
        assert!(!more);
        found.into_iter().map(|connected| Arc::unwrap_or_clone(connected.info)).collect()
    }
}

fn meta(pod: &str) -> AgentMeta {
    AgentMeta { pod_name: pod.to_owned(), ..AgentMeta::default() }
}

/// `+` or `-` and the agent's id.
type Told = Arc<Mutex<Vec<(char, i64)>>>;

/// A tracker, and what it told.
fn telling() -> (Tracker, Told) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&told);
    let tracker = Tracker::new(move |change| {
        sink.lock().unwrap().push(match change {
            Change::Connected(info) => ('+', info.agent_id),
            Change::Disconnected(info) => ('-', info.agent_id),
        });
    });
    (tracker, told)
}

fn pods(found: &[ConnectedAgentInfo]) -> Vec<&str> {
    found.iter().map(|info| info.agent_meta.as_ref().unwrap().pod_name.as_str()).collect()
}

fn empty(tracker: &Tracker) -> bool {
    let state = tracker.shared.lock();
    state.agents.is_empty() && state.projects.is_empty()
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_connected_while_its_guard_lives_and_only_first_and_last_are_told() {
    let (tracker, told) = telling();
    let one = tracker.connected(who(A, P), meta("one"));
    let two = tracker.connected(who(A, P), meta("two"));
    let other = tracker.connected(who(B, ProjectId(20)), meta("other"));
    let found = tracker.by_agents([A, A, AgentId(9)]);
    assert_eq!(found.len(), 2, "asked for twice, listed once");
    assert!(found.iter().all(|info| info.connection_id >= 0 && info.project_id == 10));
    assert_eq!(pods(&tracker.by_projects([ProjectId(20), ProjectId(30)])), ["other"]);
    assert_eq!(tracker.by_agents([A, B]).len(), 3);
    drop(one);
    assert_eq!(pods(&tracker.by_projects([P])), ["two"]);
    // However long it lasts, a stream does not expire.
    advance(Duration::from_secs(86_400)).await;
    tracker.expire(Instant::now(), false, |_| true);
    assert_eq!(tracker.by_agents([A]).len(), 1);
    drop(two);
    drop(other);
    assert_eq!(*told.lock().unwrap(), [('+', 1), ('+', 2), ('-', 1), ('-', 2)]);
    assert!(empty(&tracker));
}

#[tokio::test(start_paused = true)]
async fn a_registration_lasts_past_the_next_one_and_keeps_when_it_began() {
    let (tracker, told) = telling();
    tracker.registered(who(A, P), meta("one"), 7);
    let first = tracker.by_agents([A]).remove(0);
    assert_eq!((first.connection_id, first.agent_id, first.project_id), (7, 1, 10));
    for _ in 0..3 {
        advance(Duration::from_secs(320)).await;
        tracker.expire(Instant::now(), false, |_| true);
        tracker.registered(who(A, P), meta("renamed"), 7);
    }
    let found = tracker.by_agents([A]);
    assert_eq!(pods(&found), ["renamed"]);
    assert_eq!(found[0].connected_at, first.connected_at);
    advance(REGISTRATION).await;
    assert!(tracker.by_agents([A]).is_empty(), "gone before anybody cleans up");
    assert!(tracker.by_projects([P]).is_empty());
    assert!(!empty(&tracker));
    tracker.expire(Instant::now(), false, |_| true);
    assert!(empty(&tracker));
    assert_eq!(*told.lock().unwrap(), [('+', 1), ('-', 1)]);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_expired_unnoticed_and_comes_back_is_told_to_have_left() {
    let (tracker, told) = telling();
    for _ in 0..2 {
        advance(REGISTRATION).await;
        tracker.registered(who(A, P), meta("one"), 7);
        tracker.expire(Instant::now(), false, |_| true);
    }
    assert_eq!(*told.lock().unwrap(), [('+', 1), ('-', 1), ('+', 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_and_a_replica_with_the_same_number_are_two() {
    let (tracker, told) = telling();
    let stream = tracker.connected(who(A, P), meta("stream"));
    let Key::Stream(id) = stream.key else { panic!("a stream") };
    tracker.registered(who(A, P), meta("pod"), id);
    assert_eq!(tracker.by_agents([A]).len(), 2);
    drop(stream);
    assert_eq!(pods(&tracker.by_agents([A])), ["pod"]);
    assert_eq!(*told.lock().unwrap(), [('+', 1)]);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_moves_to_another_project_is_found_there_only() {
    let tracker = Tracker::default();
    tracker.registered(who(A, P), meta("one"), 7);
    tracker.registered(who(A, ProjectId(20)), meta("one"), 7);
    assert!(tracker.by_projects([P]).is_empty());
    assert_eq!(tracker.by_projects([P, ProjectId(20)]).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_agent_has_so_many_entries_and_no_longer_texts() {
    let (tracker, told) = telling();
    let stream = tracker.connected(who(A, P), meta("first"));
    for pod in 0..CONNECTIONS_MAX + 5 {
        tracker.registered(who(A, P), meta(&"ä".repeat(1000)), i64::try_from(pod).unwrap());
        // Heard of again and again, so never the oldest.
        tracker.registered(who(A, P), meta("known"), 0);
    }
    let found = tracker.by_agents([A]);
    assert_eq!(found.len(), LISTED_MAX);
    let entries = || tracker.shared.lock().agents[&A].entries.len();
    assert_eq!(entries(), CONNECTIONS_MAX + 1, "registrations make no room by ending streams");
    assert!(!pods(&found).contains(&"first"), "the newest are listed");
    assert!(pods(&found).iter().all(|pod| pod.len() <= TEXT_MAX));
    drop(stream);
    assert_eq!(entries(), CONNECTIONS_MAX);
    let mut streams: Vec<_> =
        (0..CONNECTIONS_MAX + 5).map(|_| tracker.connected(who(A, P), meta("stream"))).collect();
    assert_eq!(entries(), 2 * CONNECTIONS_MAX);
    // Its guard no longer has anything to remove.
    drop(streams.remove(0));
    assert_eq!(entries(), 2 * CONNECTIONS_MAX);
    assert_eq!(*told.lock().unwrap(), [('+', 1)]);
}

/// What the tracker lists of an agent, after so many seconds with a look every five.
async fn after(tracker: &Tracker, seconds: u64, in_fleet: bool, present: bool) -> usize {
    for _ in 0..seconds / 5 {
        advance(Duration::from_secs(5)).await;
        tracker.expire(Instant::now(), in_fleet, |_| present);
    }
    tracker.by_agents([A]).len()
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_registers_elsewhere_is_listed_while_it_has_a_stream_here_and_between_two() {
    let (tracker, told) = telling();
    let first = tracker.configured(who(A, P), meta("one")).unwrap();
    let since = tracker.by_agents([A])[0].connected_at;
    assert_eq!(after(&tracker, 600, true, true).await, 1, "no registration ever came");
    drop(first);
    assert_eq!(after(&tracker, 10, true, false).await, 1, "its next stream is on its way");
    let second = tracker.configured(who(A, P), meta("one")).unwrap();
    let found = tracker.by_agents([A]);
    assert_eq!((found.len(), found[0].connected_at), (1, since));
    tracker.registered(who(A, P), meta("one"), 7);
    let found = tracker.by_agents([A]);
    assert_eq!((found.len(), found[0].connection_id, found[0].connected_at), (1, 7, since));
    assert_eq!(*told.lock().unwrap(), [('+', 1)], "it was here all the time");
    drop(second);
    assert_eq!(after(&tracker, 15, true, false).await, 1);
    assert_eq!(after(&tracker, 5, true, false).await, 0);
    assert_eq!(*told.lock().unwrap(), [('+', 1), ('-', 1)]);
    assert!(empty(&tracker));
    assert!(tracker.configured(who(A, P), meta("")).is_none(), "nothing would tell whose registration it is");
}

#[tokio::test(start_paused = true)]
async fn an_agent_whose_configuration_is_refused_is_listed_while_anything_of_it_is_here() {
    let (tracker, told) = telling();
    drop(tracker.configured(who(A, P), meta("one")));
    assert_eq!(after(&tracker, 3600, true, true).await, 1, "its tunnels are here");
    assert_eq!(after(&tracker, 15, true, false).await, 1);
    assert_eq!(after(&tracker, 5, true, false).await, 0);
    assert_eq!(*told.lock().unwrap(), [('+', 1), ('-', 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_registration_whose_streams_are_elsewhere_lasts_until_the_next_one_and_is_no_event() {
    let (tracker, told) = telling();
    for _ in 0..3 {
        tracker.registered(who(A, P), meta("one"), 7);
        assert_eq!(after(&tracker, 300, true, false).await, 1);
    }
    assert_eq!(after(&tracker, 60, true, false).await, 0);
    assert!(empty(&tracker));
    assert!(told.lock().unwrap().is_empty());
    // A broker that is alone knows that it is nowhere else.
    tracker.registered(who(A, P), meta("one"), 7);
    assert_eq!(after(&tracker, 20, false, false).await, 0);
    // One in a fleet cannot know where it went, but that its streams were here: who has them now lists it.
    tracker.registered(who(A, P), meta("one"), 7);
    assert_eq!(after(&tracker, 5, true, true).await, 1);
    assert_eq!(after(&tracker, 20, true, false).await, 0);
    assert_eq!(*told.lock().unwrap(), [('+', 1), ('-', 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_replica_whose_agent_has_had_no_stream_for_a_while_is_gone() {
    let tracker = Tracker::default();
    tracker.registered(who(AgentId(1), ProjectId(1)), AgentMeta::default(), 5);
    let look = async |present: bool, later: u64| {
        tokio::time::advance(Duration::from_secs(later)).await;
        tracker.expire(Instant::now(), false, |_| present);
        tracker.by_agents([AgentId(1)]).len()
    };
    assert_eq!(look(false, 5).await, 1, "its first stream may be on its way");
    assert_eq!(look(true, 100).await, 1);
    assert_eq!(look(false, 5).await, 1, "it registered long ago, and is between two connections");
    assert_eq!(look(true, 5).await, 1);
    assert_eq!(look(false, 5).await, 1);
    assert_eq!(look(false, 14).await, 1);
    assert_eq!(look(false, 1).await, 0);
    assert_eq!(tracker.agents(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_listed_with_where_it_comes_from_and_when_it_was_heard_of() {
    let tracker = Tracker::default();
    let _stream = tracker.connected(who(B, P), meta("stream"));
    tracker.registered(who(A, P), meta("pod"), 7);
    advance(Duration::from_secs(200)).await;
    tracker.registered(Who { address: "192.0.2.2".to_owned(), ..who(A, P) }, meta("pod"), 7);
    advance(Duration::from_secs(30)).await;
    let (found, more) = tracker.list(&Wanted::All, 2);
    assert!(!more);
    let seen: Vec<_> = found
        .iter()
        .map(|c| (c.info.agent_id, &*c.name, &*c.address, c.kind, c.heard_ago.as_secs()))
        .collect();
    assert_eq!(
        seen,
        [(1, "prod", "192.0.2.2", Kind::Registered, 30), (2, "prod", "192.0.2.1:5000", Kind::Stream, 230)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_list_has_so_many_entries_and_says_that_there_are_more() {
    let tracker = Tracker::default();
    for agent in (0..600).rev() {
        tracker.registered(who(AgentId(agent), P), meta("pod"), agent);
    }
    let ids = |(found, more): (Vec<Connected>, bool)| {
        (found.iter().map(|connected| connected.info.agent_id).collect::<Vec<_>>(), more)
    };
    assert_eq!(ids(tracker.list(&Wanted::All, 599)), ((0..599).collect(), true));
    assert_eq!(ids(tracker.list(&Wanted::All, 600)), ((0..600).collect(), false));
    let both = Wanted::Of { agents: [A, AgentId(999)].into(), projects: [P].into() };
    assert_eq!(ids(tracker.list(&both, 600)), ((0..600).collect(), false));
    let nobody = Wanted::Of { agents: BTreeSet::new(), projects: BTreeSet::new() };
    assert_eq!(ids(tracker.list(&nobody, 600)), (vec![], false));
}
