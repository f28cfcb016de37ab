//! Policies that change under connections that are open: what each does then, and that they do not do it all at once.

use super::*;
use crate::life::pace::pass_on;
use crate::transport::Connection;
use postern_policies::load_dir;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;
use tokio::sync::mpsc;
use tokio::time::sleep;

const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// One `ConnectionPolicy` for each pair of selectors and what it says.
fn policies(documents: &[(&str, &str)]) -> Arc<PolicySet> {
    let directory = tempfile::TempDir::new().unwrap();
    let written: Vec<_> = documents
        .iter()
        .enumerate()
        .map(|(index, (chosen, spec))| {
            format!(
                "apiVersion: postern/v1\nkind: ConnectionPolicy\nmetadata: {{name: p{index}}}\nmatch: {chosen}\nspec: {spec}\n"
            )
        })
        .collect();
    std::fs::write(directory.path().join("ours.yaml"), written.join("---\n")).unwrap();
    Arc::new(load_dir(directory.path()).unwrap_or_else(|problems| panic!("{problems}")))
}

fn say(roll: &Roll, spec: &str) {
    roll.terms.put(policies(&[("{}", spec)]));
}

/// A connection in a task of its own, with a stream that somebody waits for if it is `busy`; says when it is told.
fn serve(roll: &Arc<Roll>, busy: bool, told: &mpsc::Sender<(Instant, Why)>) {
    let (mut life, told) = (Life::new(roll, Arc::default(), CLIENT), told.clone());
    tokio::spawn(async move {
        if let Sentence::Leave(why) = next(&mut life, busy).await {
            told.send((Instant::now(), why)).await.unwrap();
        }
    });
}

/// The sentences of `count` connections of this age, once the policies changed to `spec`; and when that was.
async fn after(count: usize, age: Duration, busy: bool, spec: &str) -> (Instant, Vec<(Instant, Why)>) {
    let roll = terms(Some(2 * HOUR), 0, HOUR);
    let (told, mut hears) = mpsc::channel(count);
    (0..count).for_each(|_| serve(&roll, busy, &told));
    let passing = tokio::spawn({
        let roll = roll.clone();
        async move { pass_on(&roll).await }
    });
    sleep(age).await;
    assert!(hears.try_recv().is_err(), "told before anything changed");
    let change = Instant::now();
    say(&roll, spec);
    let mut heard = Vec::new();
    while heard.len() < count {
        heard.push(timeout(3 * HOUR, hears.recv()).await.expect("somebody stays").unwrap());
    }
    passing.abort();
    (change, heard)
}

/// The most in any second.
fn peak(heard: &[(Instant, Why)]) -> usize {
    let from = |at: Instant| heard.iter().filter(|(told, _)| *told >= at && *told < at + SECOND).count();
    heard.iter().map(|(told, _)| from(*told)).max().unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn those_overdue_leave_one_after_the_other_and_never_faster_than_a_drain() {
    let (change, heard) = after(1000, 30 * MINUTE, true, "{maxAge: 10m}").await;
    assert!(heard.iter().all(|(_, why)| *why == Why::Age));
    assert!(peak(&heard) <= 50, "{} in a second at a rate of 50", peak(&heard));
    let last = heard.last().unwrap().0 - change;
    assert!(last >= 20 * SECOND && last <= 23 * SECOND, "{last:?}");
    assert!(heard[0].0 - change < SECOND, "the first waits {:?}", heard[0].0 - change);
}

#[tokio::test(start_paused = true)]
async fn those_overdue_spread_over_the_jitter_where_that_is_longer() {
    let (change, heard) = after(1000, 30 * MINUTE, true, "{maxAge: 10m, jitterPercent: 50}").await;
    let last = heard.last().unwrap().0 - change;
    assert!(last > 290 * SECOND && last <= 301 * SECOND, "{last:?}");
    assert!(peak(&heard) <= 6, "not even: {} in a second", peak(&heard));
}

#[tokio::test(start_paused = true)]
async fn those_idle_for_too_long_by_now_leave_one_after_the_other_as_well() {
    let (change, heard) = after(1000, 5 * MINUTE, false, "{idle: 1m}").await;
    assert!(heard.iter().all(|(_, why)| *why == Why::Idle));
    assert!(peak(&heard) <= 50, "{} in a second at a rate of 50", peak(&heard));
    let last = heard.last().unwrap().0 - change;
    assert!(last >= 20 * SECOND && last <= 23 * SECOND, "{last:?}");
}

#[tokio::test(start_paused = true)]
async fn who_is_not_overdue_leaves_at_the_new_age_and_an_idle_one_at_its_new_time() {
    let (change, heard) = after(3, 30 * MINUTE, true, "{maxAge: 1h}").await;
    assert!(heard.iter().all(|(told, _)| (*told - change).as_secs() == 30 * 60), "{heard:?}");
    let (change, heard) = after(3, MINUTE, false, "{idle: 2m}").await;
    assert!(heard.iter().all(|(told, why)| (*told - change).as_secs() == 60 && *why == Why::Idle));
    let (change, heard) = after(3, 5 * MINUTE, false, "{idle: 1h}").await;
    assert!(heard.iter().all(|(told, _)| (*told - change).as_secs() == 55 * 60), "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn a_longer_age_moves_the_end_also_of_who_had_a_turn_and_none_takes_it_away() {
    let roll = terms(Some(2 * HOUR), 0, HOUR);
    let mut lives: Vec<_> = (0..100).map(|_| Life::new(&roll, Arc::default(), CLIENT)).collect();
    let begin = Instant::now();
    advance(HOUR).await;
    say(&roll, "{maxAge: 10m, jitterPercent: 100}");
    for life in &mut lives {
        let _ = timeout(Duration::ZERO, next(life, true)).await;
    }
    say(&roll, "{maxAge: 3h}");
    assert_eq!(next(&mut lives[7], true).await, Sentence::Leave(Why::Age));
    assert_eq!(begin.elapsed().as_secs(), 3 * 3600);
    say(&roll, "{maxAge: 0s}");
    assert!(timeout(100 * HOUR, next(&mut lives[8], true)).await.is_err(), "for ever");
}

#[tokio::test(start_paused = true)]
async fn another_change_takes_nobodys_turn_and_moves_no_end() {
    let roll = terms(Some(2 * HOUR), 0, HOUR);
    let mut life = Life::new(&roll, Arc::default(), CLIENT);
    let _turns: Vec<_> = (0..5).map(|_| roll.terms.turn(Instant::now(), SECOND, None)).collect();
    advance(HOUR).await;
    say(&roll, "{maxAge: 10m, jitterPercent: 100}");
    let mut left = None;
    for seconds in 0..700 {
        if let Ok(sentence) = timeout(SECOND, next(&mut life, true)).await {
            left = Some((seconds, sentence));
            break;
        }
        say(&roll, &format!("{{maxAge: 10m, jitterPercent: 100, grace: {}s}}", seconds + 10));
    }
    let (seconds, sentence) = left.expect("each change puts it off");
    assert!(seconds < 600 && sentence == Sentence::Leave(Why::Age), "{seconds} {sentence:?}");
}

#[tokio::test(start_paused = true)]
async fn who_was_told_has_the_new_grace_and_always_a_moment() {
    for (spec, wanted) in
        [("{grace: 2h}", 7200), ("{grace: 20m}", 1200), ("{grace: 1m}", 605), ("{grace: 0s}", 605)]
    {
        let roll = terms(Some(HOUR), 0, HOUR);
        let seat = Arc::<Seat>::default();
        let _stream = seat.busy();
        let mut life = Life::new(&roll, seat, CLIENT);
        assert_eq!(next(&mut life, true).await, Sentence::Leave(Why::Age));
        let told = Instant::now();
        let _ = timeout(10 * MINUTE, next(&mut life, true)).await;
        say(&roll, spec);
        assert_eq!(next(&mut life, true).await, Sentence::Cut(Why::Age));
        assert_eq!(told.elapsed().as_secs(), wanted, "{spec}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_turns_out_later_brings_its_numbers_and_a_client_those_of_its_network() {
    let token = TokenKey::of(b"agent");
    let roll = terms(Some(2 * HOUR), 0, HOUR);
    roll.terms.put(policies(&[
        (&format!("{{tokenHashes: [{}]}}", &token.to_hex()[..8]), "{maxAge: 1h, ping: 10s}"),
        ("{clientCidrs: [192.0.2.0/24]}", "{maxAge: 90m, ping: 20s}"),
        ("{}", "{maxAge: 30m, ping: 0s}"),
    ]));
    let usual = Some(30 * SECOND);
    for (trusted, many, client, wanted, ping) in [
        (true, false, CLIENT, 60, Some(10 * SECOND)),
        (true, true, CLIENT, 90, Some(20 * SECOND)),
        (false, false, CLIENT, 90, Some(20 * SECOND)),
        (false, false, "::ffff:192.0.2.7".parse().unwrap(), 90, Some(20 * SECOND)),
        (false, false, Ipv4Addr::LOCALHOST.into(), 30, None),
    ] {
        let seat = Arc::new(Seat::new(many));
        let begin = Instant::now();
        let mut life = Life::new(&roll, seat.clone(), client);
        let _ = timeout(SECOND, poll_fn(|cx| life.poll(cx, true, client))).await;
        if trusted {
            seat.trust(Some(token));
            seat.trust(Some(TokenKey::of(b"another")));
        }
        assert_eq!(poll_fn(|cx| life.poll(cx, true, client)).await, Sentence::Leave(Why::Age));
        assert_eq!(begin.elapsed().as_secs() / 60, wanted, "{client} {trusted} {many}");
        assert_eq!(seat.rhythm().or(usual), ping);
    }
    assert_eq!(Seat::default().rhythm().or(usual), usual);
}

#[tokio::test(start_paused = true)]
async fn all_are_woken_a_few_at_a_time() {
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let roll = terms(None, 0, HOUR);
    let mut entries: Vec<_> = (0..1000).map(|_| Roll::enter(&roll, Arc::default())).collect();
    entries.retain({
        let mut index = 0;
        move |_| {
            index += 1;
            index % 10 != 0
        }
    });
    let count = Arc::new(Count(AtomicUsize::new(0)));
    entries.iter().for_each(|entry| entry.seat().wake_by(Arc::clone(&count).into()));
    tokio::spawn({
        let roll = roll.clone();
        async move { pass_on(&roll).await }
    });
    tokio::task::yield_now().await;
    let set = policies(&[("{}", "{idle: 1m}")]);
    roll.terms.put(set.clone());
    let (begin, mut before) = (Instant::now(), 0);
    let changes = roll.terms.changes();
    roll.terms.put(Arc::new(PolicySet::clone(&set)));
    assert!(!changes.has_changed().unwrap(), "the same again wakes nobody");
    while before < entries.len() {
        advance(Duration::from_millis(1)).await;
        tokio::task::yield_now().await;
        let now = count.0.load(Ordering::Relaxed);
        assert!(now - before <= 2 * 64, "{} in a millisecond", now - before);
        before = now;
        assert!(begin.elapsed() < 100 * SECOND, "{now} of {} woken", entries.len());
    }
    assert!(begin.elapsed() <= Duration::from_millis(40), "{:?}", begin.elapsed());
}

#[test]
fn a_connection_is_hardly_larger_for_it() {
    assert!(size_of::<Life>() <= 112, "{}", size_of::<Life>());
    // What each connection keeps here, with and without policies: 432 bytes before there were any.
    let kept = size_of::<Life>() + size_of::<Seat>() + size_of::<Connection>();
    assert!(kept <= 464, "{kept}");
}
