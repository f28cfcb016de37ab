//! Orders of small commits as tables, of random ones as properties.

use super::*;
use crate::gitops::{cost::Cost, object::digest};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::json;
use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

/// `apps/Deployment a/web`.
fn id(text: &str) -> ObjectId {
    let (kind, name) = text.split_once(' ').unwrap();
    let (group, kind) = kind.split_once('/').unwrap_or(("", kind));
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    let [group, kind, namespace, name] = [group, kind, namespace, name].map(str::to_owned);
    ObjectId { group, kind, namespace, name }
}

fn manifest(id: ObjectId, value: Value, line: usize) -> Manifest {
    let digest = digest(&value);
    Manifest { id, version: "v1".to_owned(), value: value.into(), file: "a.yaml".into(), line, digest }
}

/// An object that depends on these.
fn object(text: &str, needs: &[&str]) -> Manifest {
    let needs: Vec<_> = needs.iter().map(|needed| depends_on::written(&id(needed))).collect();
    let mut value = json!({});
    if !needs.is_empty() {
        value = json!({"metadata": {"annotations": {DEPENDS_ON: needs.join(", ")}}});
    }
    manifest(id(text), value, 1)
}

/// The definition of this kind.
fn definition(group: &str, kind: &str) -> Manifest {
    let name = format!("apiextensions.k8s.io/CustomResourceDefinition {}s.{group}", kind.to_lowercase());
    manifest(id(&name), json!({"spec": {"group": group, "names": {"kind": kind}}}), 1)
}

type Shown = (Vec<Vec<String>>, Vec<(String, String)>);

fn shown(objects: Vec<Manifest>) -> Shown {
    let Waves { waves, problems, .. } = waves(objects);
    let waves = waves.iter().map(|wave| wave.iter().map(|object| object.id.to_string()).collect());
    (
        waves.collect(),
        problems.into_iter().map(|(object, problem)| (object.id.to_string(), problem)).collect(),
    )
}

fn wanted(waves: &[&[&str]], problems: &[(&str, &str)]) -> Shown {
    let waves = waves.iter().map(|wave| wave.iter().map(|&id| id.to_owned()).collect());
    (waves.collect(), problems.iter().map(|&(id, problem)| (id.to_owned(), problem.to_owned())).collect())
}

#[test]
fn namespaces_go_first_then_definitions_then_the_rest() {
    let objects = vec![
        object("admissionregistration.k8s.io/ValidatingWebhookConfiguration w", &[]),
        object("apps/Deployment a/web", &[]),
        object("b.c/Thing a/t", &[]),
        object("Secret a/s", &[]),
        definition("b.c", "Thing"),
        object("ServiceAccount elsewhere/s", &[]),
        object("Namespace b", &[]),
        object("Namespace a", &[]),
    ];
    let wanted = wanted(
        &[
            &["Namespace a", "Namespace b"],
            &["apiextensions.k8s.io/CustomResourceDefinition things.b.c"],
            &[
                "ServiceAccount elsewhere/s",
                "Secret a/s",
                "apps/Deployment a/web",
                "b.c/Thing a/t",
                "admissionregistration.k8s.io/ValidatingWebhookConfiguration w",
            ],
        ],
        &[],
    );
    assert_eq!(shown(objects.clone()), wanted);
    assert_eq!(shown(objects.into_iter().rev().collect()), wanted);
    assert_eq!(shown(vec![]), (vec![], vec![]));
}

#[test]
fn what_is_needed_goes_before_what_needs_it() {
    let objects = vec![
        object("Pod a/1", &["Pod a/2", "Pod b/3", "Pod a/2"]),
        object("Pod a/2", &["Pod b/3"]),
        object("Pod b/3", &[]),
        object("Namespace b", &["ConfigMap a/late"]),
        object("ConfigMap a/late", &[]),
    ];
    let order: &[&[&str]] =
        &[&["ConfigMap a/late"], &["Namespace b"], &["Pod b/3"], &["Pod a/2"], &["Pod a/1"]];
    assert_eq!(shown(objects.clone()), wanted(order, &[]));
    let needs = waves(objects).needs;
    assert_eq!(needs.len(), 4);
    let of = |text: &str| needs[&id(text)].iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    assert_eq!(of("Pod b/3"), ["Namespace b".to_owned()].into());
    assert_eq!(of("Pod a/1"), ["Pod a/2".to_owned(), "Pod b/3".to_owned()].into());
}

#[test]
fn objects_wait_for_the_namespace_and_the_definition_they_need_only_if_these_are_in_the_commit() {
    let late = || object("ConfigMap late", &[]);
    let mut thing = definition("b.c", "Thing");
    thing.value = json!({
        "metadata": {"annotations": {DEPENDS_ON: "/ConfigMap/late"}},
        "spec": {"group": "b.c", "names": {"kind": "Thing"}},
    })
    .into();
    let objects = vec![object("b.c/Thing a/t", &[]), object("b.d/Thing a/t", &[]), late(), thing.clone()];
    let wanted = wanted(
        &[
            &["ConfigMap late", "b.d/Thing a/t"],
            &["apiextensions.k8s.io/CustomResourceDefinition things.b.c"],
            &["b.c/Thing a/t"],
        ],
        &[],
    );
    assert_eq!(shown(objects), wanted);
    thing.value = json!({"spec": {"group": 5}}).into();
    assert_eq!(shown(vec![thing, object("b.c/Thing a/t", &[])]).0.len(), 2);
}

#[test]
fn what_cannot_be_ordered_is_a_problem_of_those_that_need_it_only() {
    let twice = || object("Pod twice", &[]);
    let mut odd = object("Pod odd", &[]);
    odd.value = json!({"metadata": {"annotations": {DEPENDS_ON: "Pod/x"}}}).into();
    let (shown_waves, problems) = shown(vec![
        object("Pod good", &[]),
        object("Pod missing", &["Pod good", "Pod nowhere"]),
        object("Pod after-missing", &["Pod missing"]),
        object("Pod far-after-missing", &["Pod after-missing"]),
        object("Pod near", &["apps/Deployment web"]),
        object("apps/Deployment a/web", &[]),
        object("Pod self", &["Pod self"]),
        object("Pod x", &["Pod y"]),
        object("Pod y", &["Pod z", "Pod good"]),
        object("Pod z", &["Pod x"]),
        object("Pod after-x", &["Pod x"]),
        odd,
        object("Namespace n", &["Pod n/inside"]),
        object("Pod n/inside", &[]),
        twice(),
        twice(),
        object("Pod after-twice", &["Pod twice"]),
    ]);
    assert_eq!(
        shown_waves,
        wanted(&[&["Pod good", "Pod twice", "apps/Deployment a/web"], &["Pod after-twice"]], &[]).0
    );
    let wanted = [
        ("Pod missing", "it depends on Pod nowhere, which is not among the manifests"),
        ("Pod after-missing", "it depends on Pod missing, which cannot be applied"),
        ("Pod far-after-missing", "it depends on Pod after-missing, which cannot be applied"),
        (
            "Pod near",
            "it depends on apps/Deployment web, which is not among the manifests; did you mean \
             apps/namespaces/a/Deployment/web?",
        ),
        ("Pod self", "it depends on itself: Pod self -> Pod self"),
        ("Pod x", "it depends on itself: Pod x -> Pod y -> Pod z -> Pod x"),
        ("Pod y", "it depends on itself: Pod y -> Pod z -> Pod x -> Pod y"),
        ("Pod z", "it depends on itself: Pod z -> Pod x -> Pod y -> Pod z"),
        ("Pod after-x", "it depends on objects that depend on themselves: Pod x -> Pod y -> Pod z -> Pod x"),
        (
            "Pod odd",
            "config.kubernetes.io/depends-on has \"Pod/x\"; group/namespaces/namespace/Kind/name is wanted, or \
             group/Kind/name of an object that belongs to the whole cluster, where the core group is empty: \
             /namespaces/default/ConfigMap/a",
        ),
        ("Namespace n", "it depends on itself: Namespace n -> Pod n/inside -> Namespace n"),
        ("Pod n/inside", "it depends on itself: Pod n/inside -> Namespace n -> Pod n/inside"),
        ("Pod twice", "Pod twice is written twice, first in a.yaml:1; that one is used"),
    ];
    let wanted: Vec<_> = wanted.map(|(id, problem)| (id.to_owned(), problem.to_owned())).into();
    assert_eq!(problems, wanted);
}

#[test]
fn long_chains_and_rings_cost_little() {
    let name = |at: usize| format!("Pod a/{at}");
    let chain = |length: usize, last: &str| -> Vec<_> {
        (0..length)
            .map(|at| if at == 0 { object(&name(0), &[last]) } else { object(&name(at), &[&name(at - 1)]) })
            .collect()
    };
    let cost = Cost::begin();
    let mut line = chain(10_000, "Pod b/0");
    line.push(object("Pod b/0", &[]));
    let Waves { waves: ordered, problems, .. } = waves(line);
    assert_eq!((ordered.len(), problems.len()), (10_001, 0));
    let Waves { waves: ordered, problems, .. } = waves(chain(10_000, &name(9_999)));
    assert_eq!((ordered.len(), problems.len()), (0, 10_000));
    assert!(problems.iter().all(|(_, problem)| problem.len() < 300 && problem.contains(" -> 9992 more -> ")));
    let ids: Vec<_> = (0..10_000).map(|at| (id(&name(at)), vec![id(&name((at + 1) % 10_000))])).collect();
    assert_eq!(prune_order(ids).len(), 10_000);
    let pairs = (0..10_000_usize).map(|at| (id(&name(at)), vec![id(&name(at ^ 1))]));
    assert_eq!(prune_order(pairs.collect()).iter().map(Vec::len).sum::<usize>(), 10_000);
    assert!(cost.so_far() < Duration::from_secs(30), "{:?}", cost.so_far());
}

/// Objects of all sorts that depend on each other at random; on what is there only, if so wanted, and then mostly without
/// rings.
fn random_objects(random: &mut StdRng, only_known: bool) -> Vec<Manifest> {
    let count = random.random_range(0..30_usize);
    let mut ids: Vec<ObjectId> = (0..count)
        .map(|_| match random.random_range(0..6) {
            0 => id(&format!("Namespace n{}", random.random_range(0..4))),
            1 => id(&format!(
                "apiextensions.k8s.io/CustomResourceDefinition k{}s.g",
                random.random_range(0..3)
            )),
            2 => id(&format!(
                "g/K{} n{}/x{}",
                random.random_range(0..3),
                random.random_range(0..4),
                random.random_range(0..9)
            )),
            _ => id(&format!("Pod n{}/x{}", random.random_range(0..4), random.random_range(0..9))),
        })
        .collect();
    if only_known {
        ids.sort();
        ids.dedup();
        ids.shuffle(random);
        ids.sort_by_key(base);
    }
    let only_back = only_known && random.random_bool(0.7);
    let mut objects = Vec::new();
    for (at, id) in ids.iter().enumerate() {
        let mut references = Vec::new();
        let choice = if only_back { at } else { ids.len() };
        for _ in 0..random.random_range(0..3).min(choice) {
            let needed = match random.random_range(0..20) {
                0 if !only_known => "/Pod/nowhere".to_owned(),
                1 if !only_known => "odd".to_owned(),
                _ => depends_on::written(&ids[random.random_range(0..choice)]),
            };
            references.push(needed);
        }
        let mut value = json!({});
        if !references.is_empty() {
            value = json!({"metadata": {"annotations": {DEPENDS_ON: references.join(",")}}});
        }
        if let Some(name) = id.name.strip_suffix("s.g").filter(|_| is_definition(id)) {
            value["spec"] = json!({"group": "g", "names": {"kind": name.to_uppercase()}});
        }
        objects.push(manifest(id.clone(), value, at));
    }
    objects
}

/// What an object needs, worked out without any of the code under test but the annotation's reader.
fn needed(object: &Manifest, all: &HashSet<ObjectId>) -> Vec<ObjectId> {
    let mut needed = depends_on(&object.value).unwrap_or_default();
    let implied = [
        id(&format!("Namespace {}", object.id.namespace)),
        id(&format!("apiextensions.k8s.io/CustomResourceDefinition {}s.g", object.id.kind.to_lowercase())),
    ];
    let [namespace, definition] = implied;
    needed.extend(Some(namespace).filter(|id| all.contains(id)));
    needed.extend(Some(definition).filter(|id| object.id.group == "g" && all.contains(id)));
    needed
}

#[test]
fn random_commits_are_ordered_with_every_object_in_one_place() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..3_000 {
        let objects = random_objects(&mut random, false);
        let all: HashSet<_> = objects.iter().map(|object| object.id.clone()).collect();
        let mut lines: Vec<_> = objects.iter().map(|object| object.line).collect();
        let Waves { waves, problems, needs } = waves(objects.clone());
        let context = || format!("seed {seed}: {objects:#?}");

        let placed = waves.iter().flatten().chain(problems.iter().map(|(object, _)| object));
        let mut found: Vec<_> = placed.map(|object| object.line).collect();
        found.sort_unstable();
        lines.sort_unstable();
        assert_eq!(found, lines, "{}", context());
        assert!(waves.iter().all(|wave| !wave.is_empty()), "{}", context());
        assert!(problems.iter().all(|(_, problem)| !problem.is_empty()), "{}", context());

        let mut before = HashSet::new();
        for wave in &waves {
            for object in wave {
                let wanted: BTreeSet<_> = needed(object, &all).into_iter().collect();
                assert!(wanted.iter().all(|id| before.contains(id)), "{} {}", object.id, context());
                let told = needs.get(&object.id).cloned().unwrap_or_default();
                assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), wanted, "{} {}", object.id, context());
            }
            before.extend(wave.iter().map(|object| object.id.clone()));
        }
        // Nothing is a problem without a reason.
        let good = before;
        for (object, problem) in &problems {
            let needed = needed(object, &all);
            let reason = needed.iter().any(|id| !good.contains(id))
                || depends_on(&object.value).is_err()
                || problem.contains("written twice");
            assert!(reason, "{} {problem} {}", object.id, context());
        }
    }
}

#[test]
fn random_removals_end_with_what_others_need() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut without_rings = 0;
    for _ in 0..3_000 {
        let objects = random_objects(&mut random, true);
        let all: HashSet<_> = objects.iter().map(|object| object.id.clone()).collect();
        let ids: Vec<_> = objects
            .iter()
            .map(|object| (object.id.clone(), depends_on(&object.value).unwrap_or_default()))
            .collect();
        let ordered = prune_order(ids);
        let context = || format!("seed {seed}: {objects:#?} {ordered:#?}");
        let flat: Vec<_> = ordered.iter().flatten().collect();
        assert_eq!(flat.len(), all.len(), "{}", context());
        assert!(flat.iter().all(|id| all.contains(id)), "{}", context());
        // The name of a definition tells its group only, so a definition waits for more, and rings are more frequent.
        let in_group = |object: &Manifest| {
            let definitions = all.iter().filter(|id| is_definition(id) && object.id.group == "g").cloned();
            needed(object, &all).into_iter().chain(definitions).collect::<Vec<_>>()
        };
        let needs: HashMap<_, _> =
            objects.iter().map(|object| (object.id.clone(), in_group(object))).collect();
        let mut open: HashSet<_> = needs.keys().collect();
        while let Some(&next) = open.iter().find(|id| needs[**id].iter().all(|needed| !open.contains(needed)))
        {
            open.remove(next);
        }
        if !open.is_empty() {
            continue;
        }
        without_rings += 1;
        let wave = |id: &ObjectId| ordered.iter().position(|wave| wave.contains(id)).unwrap();
        for (id, needs) in &needs {
            assert!(needs.iter().all(|needed| wave(needed) > wave(id)), "{id} {}", context());
        }
    }
    assert!(without_rings > 1_000, "{without_rings}");
}

#[test]
fn objects_are_removed_before_what_they_live_in_and_need() {
    let ids = [
        ("Namespace a", vec![]),
        ("apiextensions.k8s.io/CustomResourceDefinition things.b.c", vec![]),
        ("b.c/Thing a/t", vec!["Secret a/s"]),
        ("Secret a/s", vec!["Pod gone"]),
        ("Secret b/s", vec![]),
        ("apps/Deployment a/web", vec!["b.c/Thing a/t"]),
        ("Secret a/s", vec![]),
    ];
    let ids = ids.map(|(text, needs)| (id(text), needs.into_iter().map(id).collect()));
    let order: Vec<Vec<_>> =
        prune_order(ids.into()).iter().map(|wave| wave.iter().map(ToString::to_string).collect()).collect();
    let wanted: &[&[&str]] = &[
        &["apps/Deployment a/web"],
        &["b.c/Thing a/t"],
        &["Secret b/s", "Secret a/s"],
        &["apiextensions.k8s.io/CustomResourceDefinition things.b.c"],
        &["Namespace a"],
    ];
    assert_eq!(order, self::wanted(wanted, &[]).0);
    assert_eq!(prune_order(vec![]), Vec::<Vec<ObjectId>>::new());
}

#[test]
fn a_commit_whose_objects_name_too_many_others_fails_from_there_on() {
    let free: Vec<_> = (0..500).map(|at| format!("Pod a/{at}")).collect();
    let named: Vec<_> = free.iter().map(String::as_str).collect();
    let mut objects: Vec<_> = named.iter().map(|name| object(name, &[])).collect();
    objects.extend((0..201).map(|at| object(&format!("Pod b/{at:03}"), &named)));
    let Waves { waves, problems, .. } = waves(objects);
    assert_eq!(waves.iter().map(Vec::len).collect::<Vec<_>>(), [500, 200]);
    let [(left_out, problem)] = &problems[..] else { panic!("{problems:?}") };
    assert_eq!(left_out.id, id("Pod b/200"));
    assert!(problem.contains("more than 100000 references"), "{problem}");
}
