use super::*;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

fn named(name: &str) -> Caller {
    Caller::Named(name.into())
}

/// Requests that are open, and callers that are known.
fn counts(limits: &Limits) -> (u32, usize) {
    let open = limits.open();
    (open.in_all, open.callers.len())
}

fn limits(in_all: u32, per_caller: u32) -> Limits {
    let limits = Limits::default();
    limits.set(Most { in_all, per_caller });
    limits
}

#[test]
fn without_limits_everybody_is_let_in_and_forgotten_again() {
    let limits = limits(0, 0);
    let permits: Vec<_> =
        (0..1000).map(|n| limits.enter(named(&(n % 7).to_string())).ok().unwrap()).collect();
    assert_eq!(counts(&limits), (1000, 7));
    drop(permits);
    assert_eq!(counts(&limits), (0, 0));
}

#[test]
fn one_caller_at_its_limit_does_not_stand_in_the_way_of_another() {
    let limits = limits(3, 2);
    let first = limits.enter(named("anna")).ok().unwrap();
    let _second = limits.enter(named("anna")).ok().unwrap();
    assert_eq!(limits.enter(named("anna")).err(), Some(Busy::Caller(2)));
    let _agents = limits.enter(Caller::Agent).ok().unwrap();
    assert_eq!(limits.enter(named("otto")).err(), Some(Busy::All(3)));
    drop(first);
    assert!(limits.enter(named("otto")).is_ok());
}

#[test]
fn limits_change_while_requests_are_open() {
    let limits = limits(0, 0);
    let mut open: Vec<_> = (0..4).map(|_| limits.enter(Caller::Agent).ok().unwrap()).collect();
    limits.set(Most { in_all: 0, per_caller: 3 });
    assert_eq!(limits.enter(Caller::Agent).err(), Some(Busy::Caller(3)));
    // Nobody was cut off; the next is let in once there are fewer than allowed now.
    open.truncate(3);
    assert_eq!(limits.enter(Caller::Agent).err(), Some(Busy::Caller(3)));
    open.truncate(2);
    open.push(limits.enter(Caller::Agent).ok().unwrap());
    limits.set(Most::default());
    assert!(limits.enter(Caller::Agent).is_ok());
}

/// Any order of beginnings, ends and changes, against a list of who is in.
#[test]
fn whatever_happens_the_numbers_are_those_of_the_open_requests() {
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let limits = limits(0, 0);
        let mut most = Most::default();
        let mut open: Vec<Permit> = Vec::new();
        let callers: Vec<_> = (0..5).map(|n| named(&n.to_string())).chain([Caller::Agent]).collect();
        for _ in 0..300 {
            match random.random_range(0..10) {
                0 => {
                    most = Most { in_all: random.random_range(0..12), per_caller: random.random_range(0..5) };
                    limits.set(most);
                }
                1..=4 if !open.is_empty() => drop(open.swap_remove(random.random_range(0..open.len()))),
                _ => {
                    let caller = callers.choose(&mut random).unwrap();
                    let mine = open.iter().filter(|permit| permit.caller == *caller).count() as u32;
                    let all = open.len() as u32;
                    let full = |most: u32, open: u32| most != 0 && open >= most;
                    let of_all = full(most.in_all, all).then_some(Busy::All(most.in_all));
                    let of_caller = full(most.per_caller, mine).then_some(Busy::Caller(most.per_caller));
                    let wanted = of_all.or(of_caller);
                    match limits.enter(caller.clone()) {
                        Ok(permit) => {
                            assert_eq!(wanted, None, "seed {seed}");
                            open.push(permit);
                        }
                        Err(busy) => assert_eq!(wanted, Some(busy), "seed {seed}"),
                    }
                }
            }
            let now = limits.open();
            assert_eq!(now.in_all as usize, open.len(), "seed {seed}");
            assert_eq!(now.callers.values().sum::<u32>(), now.in_all, "seed {seed}");
            assert!(now.callers.values().all(|count| *count > 0), "seed {seed}");
        }
        open.clear();
        assert_eq!(counts(&limits), (0, 0), "seed {seed}");
    }
}

#[test]
fn a_limit_for_a_caller_above_that_for_all_is_a_mistake() {
    let configuration = |max_concurrent_requests, max_concurrent_requests_per_caller| AgentConfiguration {
        kubernetes_api: Some(KubernetesApiCf { max_concurrent_requests, max_concurrent_requests_per_caller }),
        ..Default::default()
    };
    for (in_all, per_caller, good) in [(0, 0, true), (0, 9, true), (9, 0, true), (9, 9, true), (9, 10, false)]
    {
        assert_eq!(check(&configuration(in_all, per_caller)).is_empty(), good, "{in_all} {per_caller}");
    }
    assert_eq!(Most::of(&AgentConfiguration::default()), Most::default());
}

#[test]
fn the_answer_is_a_status_that_says_which_limit_it_was() {
    let body: serde_json::Value = serde_json::from_str(&Busy::Caller(5).body()).unwrap();
    assert_eq!((body["kind"].as_str(), body["code"].as_u64()), (Some("Status"), Some(429)));
    assert_eq!(body["reason"], "TooManyRequests");
    assert_eq!(body["details"]["retryAfterSeconds"], 1);
    assert!(body["message"].as_str().unwrap().contains("max_concurrent_requests_per_caller"));
    assert!(Busy::All(5).to_string().contains("(kubernetes_api.max_concurrent_requests)"));
}
