//! Manifests of a git repository, applied by the agent to the real control plane: what comes, what goes, what stays, and who
//! is told.

pub(crate) mod field;

use crate::harness::{until, within};
use field::{Gitops, MAPS, NAMESPACES, api, apply, config_map};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::{collections::BTreeSet, process::Stdio, time::Duration};
use tokio::{io::AsyncWriteExt, time::Instant};

/// Two hundred objects on two busy cores, in debug builds, beside other tests.
const CONVERGES: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_objects_converge_are_kept_so_and_go_as_the_repository_says() {
    let gitops = Gitops::start("", "").await;
    let prefix = gitops.prefix.clone();
    let objects = gitops.write_two_hundred();
    let commit = gitops.commit();
    let begin = Instant::now();
    let told = within(CONVERGES, "all objects are there", async || {
        let told = gitops.told().await;
        told["projects"]
            .as_array()?
            .iter()
            .find(|item| item["commit_id"] == commit && item["state"] == "synchronized")
            .cloned()
    })
    .await;
    let took = begin.elapsed();
    println!("{objects} objects in {took:.1?}: {:.0} applied a second", objects as f64 / took.as_secs_f64());
    assert_eq!(
        (told["objects"].as_u64(), told["failed"].as_u64()),
        (Some(objects as u64), Some(0)),
        "{told}"
    );
    for number in 0..NAMESPACES {
        let namespace = format!("{prefix}-{number}");
        let maps = gitops.config_maps(&namespace).await;
        assert!(maps.len() >= MAPS - 1, "{namespace}: {:?}", maps.keys());
        let things =
            api(&gitops.client, &format!("{prefix}.example.com"), "v1", "Thing", "things", Some(&namespace));
        assert_eq!(things.get("thing").await.unwrap().data["spec"]["number"], number);
    }

    // A commit that changes no manifest costs the API server nothing.
    let before = gitops.calls().await;
    std::fs::write(gitops.repository().join("README.md"), "changed\n").unwrap();
    let commit = gitops.commit();
    gitops.reaches(&commit, "synchronized").await;
    assert_eq!(gitops.calls().await - before, 0.0, "API calls for an unchanged commit");

    // Somebody changes, and somebody deletes, what is not his.
    let namespace = format!("{prefix}-3");
    let maps = api(&gitops.client, "", "v1", "ConfigMap", "configmaps", Some(&namespace));
    let edit = Patch::Merge(json!({"data": {"value": "by hand"}}));
    maps.patch("map-1", &PatchParams::default(), &edit).await.unwrap();
    maps.delete("map-2", &DeleteParams::default()).await.unwrap();
    let begin = Instant::now();
    within(CONVERGES, "the edited field is put back", async || {
        (maps.get("map-1").await.unwrap().data["data"]["value"] == "one").then_some(())
    })
    .await;
    println!("a hand-edited field was put back after {:?}", begin.elapsed());
    until("the deleted object is back", async || maps.get_opt("map-2").await.unwrap()).await;

    // Fifty go, and nothing else; one of them shall be kept.
    let all = every_map(&gitops).await;
    let keep =
        Patch::Merge(json!({"metadata": {"annotations": {"cli-utils.sigs.k8s.io/on-remove": "keep"}}}));
    api(&gitops.client, "", "v1", "ConfigMap", "configmaps", Some(&format!("{prefix}-0")))
        .patch("map-16", &PatchParams::default(), &keep)
        .await
        .unwrap();
    let mut gone = BTreeSet::new();
    for number in 0..5 {
        let namespace = format!("{prefix}-{number}");
        let file = gitops.repository().join(format!("manifests/n{number}/all.yaml"));
        let text = std::fs::read_to_string(&file).unwrap();
        let stay = text.split("---\n").filter(|document| {
            let name = (7..17).find(|map| document.contains(&format!("name: map-{map},")));
            if let Some(map) = name {
                gone.insert(format!("{namespace}/map-{map}"));
            }
            name.is_none()
        });
        let text = stay.collect::<Vec<_>>().join("---\n");
        std::fs::write(file, text).unwrap();
    }
    assert_eq!(gone.len(), 50);
    let commit = gitops.commit();
    let told = gitops.reaches(&commit, "synchronized").await;
    assert!(gone.remove(&format!("{prefix}-0/map-16")));
    let left = every_map(&gitops).await;
    assert_eq!(&all - &left, gone, "{told}");
    assert_eq!(left.iter().filter(|map| !all.contains(*map)).count(), 0);
}

async fn every_map(gitops: &Gitops) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for number in 0..NAMESPACES {
        let namespace = format!("{}-{number}", gitops.prefix);
        all.extend(gitops.config_maps(&namespace).await.keys().map(|name| format!("{namespace}/{name}")));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_manifest_is_told_with_its_line_and_everything_else_applies_and_nothing_goes() {
    let gitops = Gitops::start("", "").await;
    let namespace = gitops.prefix.clone();
    gitops.write("a.yaml", &config_map(&namespace, "a", "one"));
    gitops.write("b.yaml", &config_map(&namespace, "b", "one"));
    gitops.reaches(&gitops.commit(), "synchronized").await;

    gitops.write("a.yaml", &config_map(&namespace, "a", "two"));
    gitops.write("b.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b\n");
    gitops.write(
        "c.yaml",
        &format!(
            "{}---\napiVersion: v1\nkind: Nothing\nmetadata: {{name: none}}\n",
            config_map(&namespace, "c", "new")
        ),
    );
    let told = gitops.reaches(&gitops.commit(), "degraded").await;
    let problems = told["problems"].to_string();
    assert!(problems.contains("manifests/b.yaml"), "{told}");
    assert!(
        told["problems"].as_array().unwrap().iter().any(|problem| problem["line"].as_u64() >= Some(3)),
        "{told}"
    );
    assert!(told.to_string().contains("Nothing") && told.to_string().contains("manifests/c.yaml"), "{told}");
    let maps = gitops.config_maps(&namespace).await;
    assert_eq!(maps["a"].data["data"]["value"], "two");
    assert_eq!(maps["c"].data["data"]["value"], "new");
    // Its file cannot be read, so nobody knows whether it shall go.
    assert_eq!(maps["b"].data["data"]["value"], "one");

    gitops.remove("b.yaml");
    gitops.write("c.yaml", &config_map(&namespace, "c", "new"));
    gitops.reaches(&gitops.commit(), "synchronized").await;
    assert_eq!(gitops.config_maps(&namespace).await.keys().collect::<Vec<_>>(), ["a", "c"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_changes_nothing() {
    for how in ["client", "server"] {
        let gitops = Gitops::start(&format!(", dry_run_strategy: {how}"), "").await;
        let namespace = gitops.prefix.clone();
        apply(
            &gitops.client,
            &json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "there", "namespace": namespace}, "data": {"value": "before"}}),
        )
        .await;
        let versions = async || {
            let maps = api(&gitops.client, "", "v1", "ConfigMap", "configmaps", Some(&namespace));
            let all = maps.list(&ListParams::default()).await.unwrap();
            all.items
                .into_iter()
                .map(|map| (map.metadata.name, map.metadata.resource_version))
                .collect::<BTreeSet<_>>()
        };
        let before = versions().await;
        gitops.write("a.yaml", &config_map(&namespace, "new", "one"));
        gitops.write(
            "b.yaml",
            &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}-new}}\n"),
        );
        let told = gitops.reaches(&gitops.commit(), "synchronized").await;
        assert_eq!(told["dry_run"], true, "{told}");
        assert_eq!(versions().await, before, "{how}");
        let namespaces = api(&gitops.client, "", "v1", "Namespace", "namespaces", None);
        assert!(namespaces.get_opt(&format!("{namespace}-new")).await.unwrap().is_none(), "{how}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_never_both_act_and_a_leader_that_is_killed_leaves_nothing_undone() {
    let mut gitops = Gitops::start("", "").await;
    let namespace = gitops.prefix.clone();
    gitops.write("a.yaml", &config_map(&namespace, "a", "one"));
    gitops.reaches(&gitops.commit(), "synchronized").await;
    let (mut second, probes) = gitops.replica("agent-1").await;
    until("the second is connected", async || {
        (crate::harness::http::probe(probes, "/readiness").await == Some(200)).then_some(())
    })
    .await;
    let leads = async |probes| gitops.metric(probes, "agentk_leading").await;
    let begin = Instant::now();
    let mut looks = 0;
    while begin.elapsed() < Duration::from_secs(3) {
        assert_eq!((leads(None).await, leads(Some(probes)).await), (1.0, 0.0));
        looks += 1;
    }
    assert!(looks > 10, "{looks}");
    assert_eq!(gitops.applied(Some(probes)).await, 0.0);

    // Killed in the middle of a commit: the other one finishes it.
    for number in 0..100 {
        gitops.write(&format!("m{number}.yaml"), &config_map(&namespace, &format!("map-{number}"), "one"));
    }
    gitops.remove("a.yaml");
    let commit = gitops.commit();
    until("some are there", async || (gitops.config_maps(&namespace).await.len() > 5).then_some(())).await;
    gitops.field.agent.kill().await;
    assert!(gitops.config_maps(&namespace).await.contains_key("a"), "the first one had finished already");
    let begin = Instant::now();
    within(CONVERGES, "the other replica finishes", async || {
        let told = gitops.told().await;
        let items = told["projects"].as_array()?;
        let finished = |item: &Value| {
            item["commit_id"] == commit && item["state"] == "synchronized" && item["pod_name"] == "agent-1"
        };
        items.iter().any(finished).then_some(())
    })
    .await;
    println!("finished {:?} after the leader was killed", begin.elapsed());
    let maps = gitops.config_maps(&namespace).await;
    assert_eq!((maps.len(), maps.contains_key("a")), (100, false));
    assert!(second.alive());
}

/// A ConfigMap as another inventory's agent left it.
fn owned(namespace: &str, name: &str, inventory: Option<&str>) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace}, "data": {"value": "before"}});
    if let Some(inventory) = inventory {
        object["metadata"]["annotations"] = json!({"config.k8s.io/owning-inventory": inventory});
    }
    object
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inventory_of_cli_utils_is_adopted_under_each_policy() {
    // Of `mine`, `nobody` and `other`, which are applied; and whether what was mine and is not in the repository goes.
    for (policy, applied) in [
        ("must_match", ["now", "before", "before"]),
        ("adopt_if_no_inventory", ["now", "now", "before"]),
        ("adopt_all", ["now", "now", "now"]),
    ] {
        let mut gitops = Gitops::start(&format!(", inventory_policy: {policy}"), "").await;
        // Until everything is there nobody looks.
        gitops.field.agent.signal("TERM").await;
        gitops.field.agent.ended().await;
        let namespace = gitops.prefix.clone();
        let own = "7-1";
        for (name, inventory) in [
            ("mine", Some(own)),
            ("gone", Some(own)),
            ("nobody", None),
            ("other", Some("9-9")),
            ("lost", Some("9-9")),
        ] {
            apply(&gitops.client, &owned(&namespace, name, inventory)).await;
        }
        // What the real agentk leaves behind.
        let entries =
            ["mine", "gone", "lost"].map(|name| (format!("{namespace}_{name}__ConfigMap"), json!("")));
        apply(
            &gitops.client,
            &json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "inventory-7-1", "namespace": namespace,
                "labels": {"cli-utils.sigs.k8s.io/inventory-id": own}},
            "data": serde_json::Map::from_iter(entries)}),
        )
        .await;
        for name in ["mine", "nobody", "other"] {
            gitops.write(&format!("{name}.yaml"), &config_map(&namespace, name, "now"));
        }
        let mine = gitops.config_maps(&namespace).await["mine"].metadata.uid.clone();
        let commit = gitops.commit();
        gitops.field.restart_agent().await;
        let state = if policy == "adopt_all" { "synchronized" } else { "degraded" };
        let told = gitops.reaches(&commit, state).await;
        let maps = gitops.config_maps(&namespace).await;
        let found = ["mine", "nobody", "other"]
            .map(|name| maps[name].data["data"]["value"].as_str().unwrap().to_owned());
        assert_eq!(found, applied, "{policy}: {told}");
        assert!(!maps.contains_key("gone"), "{policy}: {told}");
        // It belongs to another inventory.
        assert_eq!(maps.contains_key("lost"), policy != "adopt_all", "{policy}: {told}");
        assert_eq!(maps["mine"].metadata.uid, mine, "{policy}: it was made anew instead of adopted");
        let inventory = api(&gitops.client, "", "v1", "ConfigMap", "configmaps", Some(&namespace));
        let inventory = inventory.get("inventory-7-1").await.unwrap();
        let kept: BTreeSet<_> = inventory.data["data"].as_object().unwrap().keys().cloned().collect();
        assert!(kept.contains(&format!("{namespace}_mine__ConfigMap")), "{kept:?}");
        assert!(!kept.contains(&format!("{namespace}_gone__ConfigMap")), "{kept:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_commits_in_a_minute_lead_to_the_newest_state() {
    // CI has a thousand in twenty seconds; `POSTERN_SOAK_SECONDS=3600` has a thousand a minute for an hour.
    let soak: Option<u32> =
        std::env::var("POSTERN_SOAK_SECONDS").ok().map(|text| text.parse().expect("seconds"));
    let length = Duration::from_secs(soak.unwrap_or(20).into());
    let commits = soak.map_or(1000, |seconds| seconds * 1000 / 60);
    let gitops = Gitops::start("", "").await;
    let namespace = gitops.prefix.clone();
    gitops.write("a.yaml", &config_map(&namespace, "a", "first"));
    gitops.reaches(&gitops.commit(), "synchronized").await;
    let before = gitops.applied(None).await;
    let begin = Instant::now();
    let mut import = tokio::process::Command::new("git")
        .args(["fast-import", "--quiet", "--force"])
        .current_dir(gitops.repository())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = import.stdin.take().unwrap();
    let mut pace = tokio::time::interval(length / commits);
    let mut levels = Vec::new();
    for number in 0..commits {
        pace.tick().await;
        if number % commits.div_ceil(20) == 0 {
            levels.push(gitops.field.agent.resident());
            println!(
                "after {number} commits and {:.0?}: {} KiB resident",
                begin.elapsed(),
                levels[levels.len() - 1]
            );
        }
        let text = config_map(&namespace, "a", &number.to_string());
        let from = if number == 0 { "from refs/heads/main^0\n" } else { "" };
        let commit = format!(
            "commit refs/heads/main\ncommitter t <t@example.com> {} +0000\ndata 1\nx\n{from}M 100644 inline \
             manifests/a.yaml\ndata {}\n{text}\ncheckpoint\n\n",
            1_700_000_000 + number,
            text.len()
        );
        input.write_all(commit.as_bytes()).await.unwrap();
        input.flush().await.unwrap();
    }
    drop(input);
    assert!(import.wait().await.unwrap().success());
    let took = begin.elapsed();
    gitops.reaches(&gitops.head(), "synchronized").await;
    let maps = gitops.config_maps(&namespace).await;
    assert_eq!(maps["a"].data["data"]["value"], (commits - 1).to_string());
    let applied = gitops.applied(None).await - before;
    let resident = gitops.field.agent.resident();
    println!("{commits} commits in {took:.1?}, {applied} applied; {resident} KiB resident");
    // The broker looks once a second, so the agent hears of some; it is not behind with any of those.
    assert!(applied >= 1.0 && applied < f64::from(commits) / 4.0, "{applied}");
    let quarter = levels[levels.len() / 4];
    assert!(resident < quarter + 4 * 1024, "memory grew after the first quarter: {levels:?}, {resident} KiB");
}
