//! Views without a network: what agents push, what followers see of it, and where the bounds are.

use super::*;
use postern_wire::proto::postern::agent::{ViewEntry, ViewUpdate};
use tonic::{Code, Status};

const A: AgentId = AgentId(1);
const B: AgentId = AgentId(2);

fn entry(key: &str, json: &str) -> ViewEntry {
    ViewEntry { key: key.to_owned(), value: json.to_owned().into_bytes().into() }
}

fn update(entries: &[(&str, &str)], gone: &[&str]) -> ViewUpdate {
    ViewUpdate {
        view: "nodes".to_owned(),
        entries: entries.iter().map(|(key, json)| entry(key, json)).collect(),
        gone: gone.iter().map(ToString::to_string).collect(),
        ..ViewUpdate::default()
    }
}

fn whole(entries: &[(&str, &str)]) -> ViewUpdate {
    ViewUpdate { whole: true, ..update(entries, &[]) }
}

/// Entries `from..to`, each with so many bytes of text.
fn many(range: std::ops::Range<usize>, bytes: usize) -> Vec<ViewEntry> {
    range.map(|at| entry(&format!("n{at:05}"), &format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes)))).collect()
}

/// `key=json`, and `-key` for what is gone; `!` before all of it for a page that voids what came before.
fn shown(page: &Page) -> String {
    let gone = page.gone.iter().map(|key| format!("-{key}"));
    let entries = page.entries.iter().map(|(key, json)| format!("{key}={json}"));
    let parts: Vec<_> = page.whole.then(|| "!".to_owned()).into_iter().chain(gone).chain(entries).collect();
    parts.join(" ")
}

fn take(follower: &mut Follower) -> Option<String> {
    follower.take(PAGE).expect("the view is there").map(|page| shown(&page))
}

#[test]
fn a_follower_gets_the_whole_and_then_what_changed_last() {
    let views = Views::default();
    let mut push = views.begin(A);
    assert!(views.follow(A, Kind::Nodes).is_none());
    push.apply(whole(&[("a", r#"{"x": 1}"#), ("b", "{}")])).unwrap();
    let mut early = views.follow(A, Kind::Nodes).unwrap();
    assert_eq!(take(&mut early).unwrap(), r#"! a={"x":1} b={}"#);
    assert_eq!(take(&mut early), None);
    push.apply(update(&[("a", r#"{"x":1}"#)], &["none"])).unwrap();
    assert_eq!(take(&mut early), None, "nothing changed");
    push.apply(update(&[("a", r#"{"x":2}"#)], &["b"])).unwrap();
    push.apply(update(&[("a", r#"{"x":3}"#), ("c", "{}")], &[])).unwrap();
    assert_eq!(take(&mut early).unwrap(), r#"-b a={"x":3} c={}"#, "only the last state of each");
    let mut late = views.follow(A, Kind::Nodes).unwrap();
    assert_eq!(take(&mut late).unwrap(), r#"! a={"x":3} c={}"#);
    // The same entry in one message: what is gone is gone first.
    push.apply(update(&[("c", r#"{"y":1}"#)], &["c"])).unwrap();
    assert_eq!(take(&mut late).unwrap(), r#"-c c={"y":1}"#);
    // A whole is told as what differs.
    push.apply(whole(&[("a", r#"{"x":3}"#), ("d", "{}")])).unwrap();
    assert_eq!(take(&mut late).unwrap(), "-c d={}");
    push.apply(ViewUpdate { truncated: true, ..update(&[], &[]) }).unwrap();
    let page = late.take(PAGE).unwrap().unwrap();
    assert!(page.truncated && page.entries.is_empty() && !page.whole, "{page:?}");
}

#[test]
fn a_whole_of_several_messages_is_put_in_place_at_once() {
    let views = Views::default();
    let mut push = views.begin(A);
    push.apply(whole(&[("a", "{}"), ("b", "{}")])).unwrap();
    let mut follower = views.follow(A, Kind::Nodes).unwrap();
    take(&mut follower);
    push.apply(ViewUpdate { more: true, ..whole(&[("b", "{}")]) }).unwrap();
    push.apply(ViewUpdate { more: true, ..update(&[("c", "{}")], &[]) }).unwrap();
    assert_eq!(take(&mut follower), None);
    push.apply(update(&[("d", "{}")], &[])).unwrap();
    assert_eq!(take(&mut follower).unwrap(), "-a c={} d={}");
    // Begun anew before it was whole.
    push.apply(ViewUpdate { more: true, ..whole(&[("x", "{}")]) }).unwrap();
    push.apply(whole(&[("y", "{}")])).unwrap();
    assert_eq!(take(&mut follower).unwrap(), "-b -c -d y={}");
    push.apply(whole(&[])).unwrap();
    assert_eq!(take(&mut follower).unwrap(), "-y");
    drop(push);
    let state = views.lock();
    assert_eq!(state.bytes, state.agents[&A].bytes, "nothing is on its way any more");
}

#[test]
fn a_large_view_comes_in_pages_and_what_changes_meanwhile_comes_later() {
    let views = Views::default();
    let mut push = views.begin(A);
    push.apply(ViewUpdate { entries: many(0..300, 1_000), ..whole(&[]) }).unwrap();
    let mut follower = views.follow(A, Kind::Nodes).unwrap();
    let first = follower.take(PAGE).unwrap().unwrap();
    assert!(first.whole && first.more && first.entries.len() < 100, "{}", first.entries.len());
    push.apply(update(&[("n00000", "{}"), ("new", "{}")], &["n00299"])).unwrap();
    let mut seen: BTreeMap<_, _> = first.entries.into_iter().collect();
    loop {
        let page = follower.take(PAGE).unwrap().unwrap();
        assert!(!page.whole);
        page.gone.iter().for_each(|key| drop(seen.remove(key)));
        seen.extend(page.entries);
        if !page.more {
            break;
        }
    }
    assert_eq!((seen.len(), &*seen["n00000"], &*seen["new"]), (300, "{}", "{}"));
    assert!(!seen.contains_key("n00299"));
    assert_eq!(take(&mut follower), None);
}

#[test]
fn a_follower_that_is_too_far_behind_begins_anew() {
    let views = Views::new(Limits { gone: 10, ..Limits::default() }, KnownMetrics::default());
    let mut push = views.begin(A);
    push.apply(whole(&[("a", "{}")])).unwrap();
    let mut follower = views.follow(A, Kind::Nodes).unwrap();
    take(&mut follower);
    for at in 0..100 {
        let key = format!("gone{at}");
        push.apply(update(&[(&key, "{}")], &[])).unwrap();
        push.apply(update(&[], &[&key])).unwrap();
    }
    let state = views.lock();
    let view = &state.agents[&A].views[&Kind::Nodes];
    assert!(view.log.len() <= 12, "{}", view.log.len());
    drop(state);
    assert_eq!(take(&mut follower).unwrap(), "! a={}");
    assert_eq!(take(&mut follower), None);
}

#[tokio::test(start_paused = true)]
async fn a_view_whose_stream_ended_is_stale_for_a_while_and_then_gone() {
    let views = Views::default();
    let mut push = views.begin(A);
    push.apply(whole(&[("a", "{}"), ("b", "{}")])).unwrap();
    let mut follower = views.follow(A, Kind::Nodes).unwrap();
    assert!(!follower.next().await.unwrap().stale);
    drop(push);
    let page = follower.next().await.unwrap();
    assert!(page.stale && !page.whole && page.entries.is_empty(), "{page:?}");
    tokio::time::advance(Duration::from_secs(59)).await;
    views.expire();
    assert!(views.summaries(A)[0].stale);
    // It comes back in time: nothing but what differs is told.
    let mut push = views.begin(A);
    push.apply(whole(&[("a", "{}")])).unwrap();
    let page = follower.next().await.unwrap();
    assert_eq!((page.stale, shown(&page)), (false, "-b".to_owned()));
    drop(push);
    assert!(follower.next().await.unwrap().stale);
    tokio::time::advance(Duration::from_secs(60)).await;
    views.expire();
    assert_eq!(follower.next().await, None);
    assert!(views.summaries(A).is_empty() && views.follow(A, Kind::Nodes).is_none());
    let state = views.lock();
    assert_eq!((state.bytes, state.views, state.agents.len()), (0, 0, 0));
}

#[test]
fn the_newest_stream_of_an_agent_is_the_one_that_counts() {
    let views = Views::default();
    let (mut old, mut new) = (views.begin(A), views.begin(A));
    let mut other = views.begin(B);
    old.apply(whole(&[("a", "{}")])).unwrap();
    other.apply(whole(&[("b", "{}")])).unwrap();
    new.apply(whole(&[("c", "{}")])).unwrap();
    for late in [update(&[("x", "{}")], &[]), whole(&[("x", "{}")])] {
        let refused = old.apply(late).unwrap_err();
        assert_eq!(refused, Refused::Superseded { view: "nodes" });
        assert_eq!(Status::from(refused).code(), Code::Aborted);
    }
    old.apply(ViewUpdate { ended: true, ..update(&[], &[]) }).unwrap();
    drop(old);
    let shown = |agent| take(&mut views.follow(agent, Kind::Nodes).unwrap()).unwrap();
    assert_eq!((shown(A).as_str(), shown(B).as_str()), ("! c={}", "! b={}"));
    assert!(!views.summaries(A)[0].stale);
    new.apply(ViewUpdate { ended: true, ..update(&[], &[]) }).unwrap();
    assert!(views.summaries(A).is_empty(), "it said so");
    assert!(new.apply(update(&[("c", "{}")], &[])).is_err(), "and has to begin anew");
    assert_eq!(views.summaries(B).len(), 1);
}

#[test]
fn what_no_agent_means_to_send_ends_its_stream() {
    let limits = Limits { entries: 10, per_agent: 20_000, ..Limits::default() };
    let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(8 << 10));
    let key = "k".repeat(513);
    let invalid = Code::InvalidArgument;
    let exhausted = Code::ResourceExhausted;
    for (what, updates, wanted) in [
        ("an array", vec![whole(&[("a", "[]")])], invalid),
        ("no JSON", vec![whole(&[("a", "{")])], invalid),
        ("a long value", vec![whole(&[("a", &long)])], invalid),
        ("no key", vec![whole(&[("", "{}")])], invalid),
        ("a long key", vec![whole(&[(&key, "{}")])], invalid),
        ("a key of two lines", vec![whole(&[("a\nb", "{}")])], invalid),
        ("a change of nothing", vec![update(&[("a", "{}")], &[])], invalid),
        ("too many entries", vec![ViewUpdate { entries: many(0..11, 1), ..whole(&[]) }], exhausted),
        ("too many that are gone", vec![whole(&[]), update(&[], &["a"; 11])], exhausted),
        (
            "too many entries one by one",
            vec![
                ViewUpdate { entries: many(0..10, 1), ..whole(&[]) },
                ViewUpdate { entries: many(10..11, 1), ..update(&[], &[]) },
            ],
            exhausted,
        ),
        (
            "too many entries in parts",
            vec![
                ViewUpdate { more: true, entries: many(0..10, 1), ..whole(&[]) },
                ViewUpdate { more: true, entries: many(10..11, 1), ..update(&[], &[]) },
            ],
            exhausted,
        ),
        (
            "too many bytes in two views",
            vec![
                ViewUpdate { entries: many(0..3, 5_000), ..whole(&[]) },
                ViewUpdate { view: "events".to_owned(), entries: many(0..3, 5_000), ..whole(&[]) },
            ],
            exhausted,
        ),
        (
            "too many bytes on their way",
            vec![
                ViewUpdate { more: true, entries: many(0..3, 5_000), ..whole(&[]) },
                ViewUpdate { more: true, entries: many(3..6, 5_000), ..update(&[], &[]) },
            ],
            exhausted,
        ),
    ] {
        let views = Views::new(limits, KnownMetrics::default());
        let mut push = views.begin(A);
        let mut ended = None;
        for update in updates {
            assert!(ended.is_none(), "{what}: ended before the last message");
            ended = push.apply(update).err();
        }
        let ended = ended.unwrap_or_else(|| panic!("{what} is taken"));
        assert_eq!(Status::from(ended).code(), wanted, "{what}");
        drop(push);
        let state = views.lock();
        assert_eq!(state.bytes, state.agents.get(&A).map_or(0, |agent| agent.bytes), "{what}");
    }
}

#[test]
fn what_is_gone_takes_no_room_from_the_agent_but_from_all() {
    let views = Views::new(Limits { per_agent: 20_000, ..Limits::default() }, KnownMetrics::default());
    let mut push = views.begin(A);
    for at in 0..50 {
        let (key, next) = (format!("{at:0500}"), format!("{:0500}", at + 1));
        push.apply(whole(&[(&key, "{}")])).unwrap();
        push.apply(update(&[(&next, "{}")], &[&key])).unwrap();
    }
    let state = views.lock();
    assert!(state.bytes > 20_000 && state.bytes == state.agents[&A].bytes, "{}", state.bytes);
}

#[test]
fn a_view_as_large_as_an_agent_may_have_can_be_replaced() {
    let views = Views::new(Limits { per_agent: 20_000, ..Limits::default() }, KnownMetrics::default());
    let mut push = views.begin(A);
    for _ in 0..3 {
        push.apply(ViewUpdate { entries: many(0..3, 6_000), ..whole(&[]) }).unwrap();
    }
}

#[test]
fn what_is_stale_makes_room_for_what_is_not() {
    let views = Views::new(Limits { in_all: 45_000, ..Limits::default() }, KnownMetrics::default());
    let push = |agent| {
        let mut push = views.begin(agent);
        push.apply(ViewUpdate { entries: many(0..3, 5_000), ..whole(&[]) }).map(|()| push)
    };
    let _one = push(AgentId(1)).unwrap();
    drop(push(AgentId(2)).unwrap());
    let _three = push(AgentId(3)).unwrap();
    assert!(views.summaries(AgentId(2)).is_empty());
    let refused = push(AgentId(4)).unwrap_err();
    assert_eq!(refused, Refused::Full { view: "nodes", limit: 45_000 });
    assert_eq!(Status::from(refused).code(), Code::ResourceExhausted);
    assert_eq!((views.summaries(AgentId(1)).len(), views.summaries(AgentId(3)).len()), (1, 1));
}

#[test]
fn views_of_other_names_are_left_to_newer_brokers() {
    let views = Views::default();
    let mut push = views.begin(A);
    push.apply(ViewUpdate { view: "pods".to_owned(), ..whole(&[("a", "{}")]) }).unwrap();
    assert!(views.summaries(A).is_empty());
}

#[tokio::test]
async fn whoever_wants_to_know_of_all_is_told_of_each_once() {
    let views = Views::default();
    let mut push = views.begin(A);
    push.apply(whole(&[("a", "{}")])).unwrap();
    views.mark_changes();
    assert_eq!(views.changed().await, [(A, Kind::Nodes)], "what is there already");
    push.apply(update(&[("b", "{}")], &[])).unwrap();
    push.apply(update(&[("c", "{}")], &[])).unwrap();
    assert_eq!(views.changed().await, [(A, Kind::Nodes)]);
    let changed = views.changed();
    tokio::pin!(changed);
    assert!(futures::poll!(&mut changed).is_pending());
    drop(push);
    assert_eq!(changed.await, [(A, Kind::Nodes)]);
}
