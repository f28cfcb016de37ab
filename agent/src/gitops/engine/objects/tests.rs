use super::*;
use crate::{
    cluster::Kind,
    gitops::{
        engine::{
            likeness::Seen,
            progress::{Deed, Mark},
        },
        object::{Manifest, digest},
    },
};
use serde_json::json;

fn id(name: &str) -> ObjectId {
    ObjectId {
        group: "apps".to_owned(),
        kind: "Deployment".to_owned(),
        namespace: "a".to_owned(),
        name: name.to_owned(),
    }
}

fn wanted(name: &str, content: u64, needs: &[&str]) -> Wanted {
    let value = json!({"metadata": {"name": name}, "spec": content});
    let manifest = Manifest {
        id: id(name),
        version: "v1".to_owned(),
        digest: digest(&value),
        value: value.into(),
        file: "a.yaml".into(),
        line: 1,
    };
    Wanted {
        manifest,
        kind: Kind::new("apps", "v1", "Deployment", "deployments", true),
        definition: None,
        rank: needs.len(),
        needs: needs.iter().map(|need| id(need)).collect(),
    }
}

fn patience() -> Patience {
    Patience { reconcile: Duration::from_secs(3600), dry: false }
}

fn next(objects: &mut Objects, now: Instant) -> Option<String> {
    let place = objects.next(now, patience(), |_| None)?;
    Some(objects.at(place).id().name.clone())
}

/// It was applied, and is this far.
fn applied(objects: &mut Objects, name: &str, status: Status, now: Instant) {
    let place = objects.find(&id(name)).unwrap();
    let object = objects.at_mut(place);
    object.mark = Some(Mark { digest: object.wanted.manifest.digest, print: 1, likeness: None, at: now });
    object.known =
        Known::Present(Seen { print: 1, uid: "u".to_owned(), version: None, outline: json!({}), status });
    objects.succeeded(place);
}

fn why(objects: &Objects, name: &str) -> String {
    match &objects.at(objects.find(&id(name)).unwrap()).state {
        State::Blocked { why, .. } => why.clone(),
        state => panic!("{state:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_waits_until_what_it_needs_is_ready_and_says_why() {
    let now = Instant::now();
    let mut objects = Objects::default();
    objects
        .install(vec![wanted("a", 1, &[]), wanted("b", 1, &["a"]), wanted("c", 1, &["b"])], Instant::now());
    assert_eq!(next(&mut objects, now).as_deref(), Some("a"));
    assert_eq!(next(&mut objects, now), None);
    assert_eq!(why(&objects, "b"), "waits for apps/Deployment a/a: not ready yet: not applied yet");
    assert_eq!(objects.settled(now, patience()), Settled::No(None));
    applied(&mut objects, "a", Status::InProgress("1 of 2 pods".to_owned()), now);
    assert_eq!(next(&mut objects, now), None);
    assert!(why(&objects, "b").contains("1 of 2 pods"), "{}", why(&objects, "b"));
    assert!(why(&objects, "c").contains("which waits itself"));
    assert_eq!(objects.settled(now, patience()), Settled::No(Some(now + Duration::from_secs(3600))));
    let late = now + Duration::from_secs(3600);
    assert_eq!(objects.settled(late, patience()), Settled::Yes);
    objects.wake_dependents(0);
    assert_eq!(next(&mut objects, late), None);
    assert!(why(&objects, "b").contains("did not become ready within 3600s"));
    // Late is not too late.
    applied(&mut objects, "a", Status::Current, now);
    assert_eq!(next(&mut objects, late).as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn dependents_of_a_failed_object_wait_and_others_do_not() {
    let now = Instant::now();
    let mut objects = Objects::default();
    objects
        .install(vec![wanted("a", 1, &[]), wanted("b", 1, &["a"]), wanted("free", 1, &[])], Instant::now());
    assert_eq!(next(&mut objects, now).as_deref(), Some("a"));
    assert!(objects.failed(0, "no".to_owned(), false, now).1);
    assert_eq!(next(&mut objects, now).as_deref(), Some("free"));
    assert_eq!(next(&mut objects, now), None);
    assert_eq!(why(&objects, "b"), "waits for apps/Deployment a/a, which failed: no");
    applied(&mut objects, "free", Status::Current, now);
    // Nothing more can be done for now, although it will be tried again.
    assert_eq!(objects.settled(now, patience()), Settled::Yes);
    assert!(!objects.failed(0, "no".to_owned(), false, now).1);
}

#[tokio::test(start_paused = true)]
async fn trouble_that_passes_holds_pruning_back_for_a_minute() {
    let now = Instant::now();
    let mut objects = Objects::default();
    objects.install(vec![wanted("a", 1, &[])], Instant::now());
    next(&mut objects, now);
    objects.failed(0, "away".to_owned(), true, now);
    assert_eq!(objects.settled(now, patience()), Settled::No(Some(now + PASSING)));
    assert_eq!(objects.settled(now + PASSING, patience()), Settled::Yes);
}

#[tokio::test(start_paused = true)]
async fn pruning_waits_a_minute_for_what_is_not_ready_and_not_for_what_has_failed() {
    let now = Instant::now();
    let mut objects = Objects::default();
    objects.install(vec![wanted("a", 1, &[])], Instant::now());
    next(&mut objects, now);
    applied(&mut objects, "a", Status::InProgress(String::new()), now);
    assert_eq!(objects.settled(now, patience()), Settled::No(Some(now + PATIENCE)));
    assert_eq!(objects.settled(now + PATIENCE, patience()), Settled::Yes);
    applied(&mut objects, "a", Status::Failed(String::new()), now);
    assert_eq!(objects.settled(now, patience()), Settled::Yes);
}

#[tokio::test(start_paused = true)]
async fn another_commit_takes_up_only_what_it_changes() {
    let now = Instant::now();
    let mut objects = Objects::default();
    objects.install(vec![wanted("a", 1, &[]), wanted("b", 1, &[]), wanted("gone", 1, &[])], Instant::now());
    for name in ["a", "b", "gone"] {
        next(&mut objects, now);
        applied(&mut objects, name, Status::Current, now);
    }
    objects.install(vec![wanted("a", 1, &[]), wanted("b", 2, &[]), wanted("new", 1, &[])], Instant::now());
    assert_eq!(objects.at(0).deed, Some(Deed::Unchanged));
    assert_eq!(next(&mut objects, now).as_deref(), Some("b"));
    assert_eq!(next(&mut objects, now).as_deref(), Some("new"));
    assert_eq!(next(&mut objects, now), None);
    assert!(objects.find(&id("gone")).is_none());
}

#[tokio::test(start_paused = true)]
async fn the_first_fight_is_won_at_once_and_a_fighter_is_left_alone_longer_and_longer() {
    let mut now = Instant::now();
    let mut objects = Objects::default();
    objects.install(vec![wanted("a", 1, &[])], Instant::now());
    next(&mut objects, now);
    applied(&mut objects, "a", Status::Current, now);
    let mut delays = Vec::new();
    for _ in 0..10 {
        let delay = objects.disturb(0, now);
        delays.push(delay.as_secs());
        now += delay;
        objects.tick(now);
        assert_eq!(next(&mut objects, now).as_deref(), Some("a"));
        objects.at_mut(0).fought(now);
        applied(&mut objects, "a", Status::Current, now);
    }
    assert_eq!(delays[0], 0);
    assert!(delays[1] <= 1 && delays[9] >= 48, "{delays:?}");
    // After a truce it is put right at once.
    assert_eq!(objects.disturb(0, now + Duration::from_secs(400)), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_needs_many_is_looked_at_again_only_for_the_one_it_waits_for() {
    let now = Instant::now();
    let mut objects = Objects::default();
    let all = vec![wanted("a", 1, &[]), wanted("b", 1, &[]), wanted("c", 1, &["a", "b"])];
    objects.install(all, now);
    while next(&mut objects, now).is_some() {}
    applied(&mut objects, "b", Status::Current, now);
    assert!(matches!(objects.at(2).state, State::Blocked { .. }));
    applied(&mut objects, "a", Status::Current, now);
    assert_eq!(next(&mut objects, now).as_deref(), Some("c"));
}
