//! Ten thousand random edits of a directory of policies, half of them broken: whatever happens to the files, what was good
//! last is in force, whole, and memory stays as it was. Most edits are read at once; some hundreds are left to the watch.

use super::*;
use crate::Subject;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::process::Command;
use std::time::Duration;
use world::{Broken, How, World};

mod world;

const EDITS: u32 = 10_000;
const WATCHED_EDITS: u32 = 200;
/// What memory may grow by: the allocator's own slack, far below what one leaked reading per edit would come to.
const MAX_GROWTH_KIB: u64 = 8 << 10;

/// The test runs in a process of its own, so that the memory is not that of other tests.
const ALONE: &str = "POSTERN_EDITS_ALONE";
const SEED: &str = "POSTERN_EDITS_SEED";

#[test]
fn ten_thousand_random_edits_leave_what_was_good_last_in_force() {
    if std::env::var_os(ALONE).is_none() {
        let program = std::env::current_exe().unwrap();
        let name = "live::edits::ten_thousand_random_edits_leave_what_was_good_last_in_force";
        let run =
            Command::new(program).args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
        println!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        assert!(run.status.success(), "{}", run.status);
        return;
    }
    let seed = std::env::var(SEED).map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("{SEED}={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    read_at_once(&mut random);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(watched(&mut random));
}

fn read_at_once(random: &mut StdRng) {
    // In memory where that can be had: ten thousand edits are a lot of work for some file systems.
    let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let mut world = World::new(root.path());
    world.good(How::Anew, 1);
    let live = Live::open(Some(&world.directory)).unwrap();
    let (mut good, mut broken, mut memory) = (1, 0, 0);
    for edit in 0..EDITS {
        if edit == EDITS / 10 {
            memory = resident_kib();
        }
        let how = *How::ALL.choose(random).unwrap();
        let next = random.random_range(1..=1000);
        let before = live.status();
        if random.random_bool(0.5) {
            world.good(how, next);
            let verdict = live.0.judge((live.0.load)(&world.directory));
            assert_eq!(verdict, Verdict::InForce, "edit {edit}, {how:?}: {:?}", live.status().problems);
            good = next;
            let status = live.status();
            let changed = u64::from(status.fingerprint != before.fingerprint);
            assert_eq!(status.generation, before.generation + changed, "edit {edit}, {how:?}");
        } else {
            let what = Broken::any(random);
            world.broken(how, what, next, random);
            broken += 1;
            let verdict = live.0.judge((live.0.load)(&world.directory));
            assert_eq!(verdict, Verdict::Bad, "edit {edit}, {how:?}, {what:?}");
            let status = live.status();
            assert!(!status.problems.is_empty() && status.bad_for.is_some());
            assert_eq!((status.generation, status.fingerprint), (before.generation, before.fingerprint));
        }
        assert_eq!(pair(&live), (good, good), "edit {edit}, {how:?}");
    }
    let after = resident_kib();
    println!(
        "{EDITS} edits, {broken} of them broken: {memory} KiB resident after a tenth, {after} KiB at the end"
    );
    assert!(after.saturating_sub(memory) < MAX_GROWTH_KIB, "from {memory} to {after} KiB");
}

async fn watched(random: &mut StdRng) {
    let root = tempfile::tempdir().unwrap();
    let mut world = World::new(root.path());
    world.good(How::Anew, 1);
    let live = Live::open(Some(&world.directory)).unwrap();
    let stop = CancellationToken::new();
    let following = tokio::spawn({
        let (live, stop) = (live.clone(), stop.clone());
        async move { live.keep_fresh(stop).await }
    });
    let looking = tokio::spawn({
        let (live, stop) = (live.clone(), stop.clone());
        async move {
            let mut looks = 0_u64;
            let mut ticks = tokio::time::interval(Duration::from_millis(1));
            while !stop.is_cancelled() {
                for _ in 0..100 {
                    let (one, other) = pair(&live);
                    assert_eq!(one, other, "half a policy is in force");
                    looks += 1;
                }
                ticks.tick().await;
            }
            looks
        }
    });
    let (mut good, memory) = (1, resident_kib());
    for edit in 0..WATCHED_EDITS {
        let how = *How::WHOLE.choose(random).unwrap();
        let next = random.random_range(1..=1000);
        let broken = random.random_bool(0.5).then(|| Broken::any(random));
        match broken {
            None => {
                world.good(how, next);
                good = next;
            }
            Some(what) => world.broken(how, what, next, random),
        }
        // Some edits follow the one before at once.
        if random.random_bool(0.1) && edit + 1 < WATCHED_EDITS {
            continue;
        }
        let is_so = || match broken {
            None => pair(&live) == (good, good) && live.status().problems.is_empty(),
            // A good edit that a broken one followed at once need never have been in force.
            Some(_) => !live.status().problems.is_empty(),
        };
        let wait = async {
            let mut looks = tokio::time::interval(Duration::from_millis(1));
            while !is_so() {
                looks.tick().await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(8), wait).await.is_err() {
            panic!("edit {edit}, {how:?}, {broken:?}, good is {good}: {:?}", live.status());
        }
        good = pair(&live).0;
    }
    let status = live.status();
    stop.cancel();
    following.await.unwrap();
    let (looks, after) = (looking.await.unwrap(), resident_kib());
    println!(
        "{WATCHED_EDITS} watched edits: generation {}, {looks} looks and never half of one, {memory} KiB resident before, \
         {after} KiB after",
        status.generation
    );
    assert!(after.saturating_sub(memory) < MAX_GROWTH_KIB, "from {memory} to {after} KiB");
}

/// Two values that every good directory has the same in two documents.
fn pair(live: &Live) -> (u32, u32) {
    let set = live.set();
    let everybody = Subject::default();
    let one = set.limits.streams_per_token.find(&everybody).map(|ruled| *ruled.value);
    let other = set.tunnels.idle_per_agent.find(&everybody).map(|ruled| *ruled.value);
    (one.unwrap_or_default(), other.unwrap_or_default())
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
