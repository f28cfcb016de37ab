//! Lists and watches: in pages, over restarts, over a lost past.

use super::*;

fn name(object: &Value) -> String {
    assert_eq!((&object["kind"], &object["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

/// All that is there, at the beginning of a list.
async fn listed(following: &mut Following) -> BTreeSet<String> {
    soon("a list", async {
        let mut found = None;
        loop {
            match (following.next().await, &mut found) {
                (Change::Begun, found) => *found = Some(BTreeSet::new()),
                (Change::Found(object), Some(found)) => assert!(found.insert(name(&object))),
                (Change::Listed, Some(found)) => return std::mem::take(found),
                (change, _) => panic!("{change:?} out of place"),
            }
        }
    })
    .await
}

async fn applied(following: &mut Following) -> String {
    match soon("a change", following.next()).await {
        Change::Applied(object) => name(&object),
        other => panic!("{other:?}"),
    }
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn objects_are_listed_in_pages_and_then_watched() {
    let (api, cluster) = start().await;
    for n in 0..1_200 {
        api.create(config_map(&format!("cm-{n:04}"), "1")).unwrap();
    }
    let mut following = cluster.follow(&config_maps(), None);
    assert_eq!(listed(&mut following).await.len(), 1_200);
    cluster.apply(&config_maps(), &config_map("more", "1"), false).await.unwrap();
    assert_eq!(applied(&mut following).await, "more");
    cluster.apply(&config_maps(), &config_map("more", "2"), false).await.unwrap();
    assert_eq!(applied(&mut following).await, "more");
    api.delete("v1", "ConfigMap", "default", "more").unwrap();
    let Change::Deleted(gone) = soon("a deletion", following.next()).await else { panic!() };
    assert_eq!(gone["data"]["key"], "2");
    // Three pages and a watch.
    assert_eq!(asked(&api, "/api/v1/configmaps"), 4);
    assert_eq!(cluster.calls(), 2);
    drop(following);
    soon("the end of the watch", async {
        while api.open_of("watch") > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn objects_of_one_namespace_are_followed_alone() {
    let (api, cluster) = start().await;
    let mut elsewhere = config_map("other", "1");
    elsewhere["metadata"]["namespace"] = json!("kube-system");
    api.create(elsewhere).unwrap();
    api.create(config_map("one", "1")).unwrap();
    let mut following = cluster.follow(&config_maps(), Some("default"));
    assert_eq!(listed(&mut following).await, names(&["one"]));
}

#[tokio::test]
async fn large_objects_come_in_shorter_pages() {
    let (api, cluster) = start().await;
    for n in 0..20 {
        api.create(config_map(&format!("cm-{n}"), &"x".repeat(1 << 20))).unwrap();
    }
    let mut following = cluster.follow(&config_maps(), None);
    // A page of 500 and one of 62 are too large, one of 7 is not.
    assert_eq!(listed(&mut following).await.len(), 20);
}

#[tokio::test]
async fn after_a_restart_of_the_server_only_what_changed_comes() {
    let (mut api, cluster) = start().await;
    api.create(config_map("one", "1")).unwrap();
    let mut following = cluster.follow(&config_maps(), None);
    assert_eq!(listed(&mut following).await, names(&["one"]));
    for round in 0..2 {
        api.stop().await;
        api.create(config_map(&format!("meanwhile-{round}"), "1")).unwrap();
        api.serve_again().await.unwrap();
        assert_eq!(applied(&mut following).await, format!("meanwhile-{round}"));
    }
}

#[tokio::test]
async fn a_lost_past_is_made_up_for_by_another_list() {
    let (mut api, cluster) = start().await;
    for name in ["stays", "goes"] {
        api.create(config_map(name, "1")).unwrap();
    }
    let mut following = cluster.follow(&config_maps(), None);
    assert_eq!(listed(&mut following).await, names(&["stays", "goes"]));
    api.stop().await;
    api.delete("v1", "ConfigMap", "default", "goes").unwrap();
    api.create(config_map("new", "1")).unwrap();
    api.forget_history();
    api.serve_again().await.unwrap();
    assert_eq!(listed(&mut following).await, names(&["stays", "new"]));
    api.create(config_map("newer", "1")).unwrap();
    assert_eq!(applied(&mut following).await, "newer");
}

#[tokio::test]
async fn a_list_whose_past_is_lost_between_pages_begins_anew() {
    let (api, cluster) = start().await;
    for n in 0..600 {
        api.create(config_map(&format!("cm-{n:04}"), "1")).unwrap();
    }
    let mut following = cluster.follow(&config_maps(), None);
    let Change::Begun = soon("the list", following.next()).await else { panic!() };
    let Change::Found(_) = soon("an object", following.next()).await else { panic!() };
    // The queue is shorter than the page, so the second page has not been asked for.
    api.forget_history();
    let mut found = 1;
    while let Change::Found(_) = soon("the rest of the page", following.next()).await {
        found += 1;
    }
    assert_eq!(found, 500, "then it begins anew");
    let mut again = 0;
    while let Change::Found(_) = soon("the second list", following.next()).await {
        again += 1;
    }
    assert_eq!(again, 600);
}

#[tokio::test]
async fn refusals_and_errors_are_lived_through() {
    let (api, cluster) = start().await;
    api.create(config_map("one", "1")).unwrap();
    for code in [StatusCode::FORBIDDEN, StatusCode::INTERNAL_SERVER_ERROR, StatusCode::TOO_MANY_REQUESTS] {
        api.refuse(1, code);
        let mut following = cluster.follow(&config_maps(), None);
        assert_eq!(listed(&mut following).await, names(&["one"]), "{code}");
    }
}

#[tokio::test]
async fn where_nothing_may_be_watched_lists_tell_what_has_changed() {
    let (api, cluster) = start().await;
    for n in 0..20 {
        api.create(config_map(&format!("cm-{n:02}"), "1")).unwrap();
    }
    let mut following = cluster.follow(&config_maps(), None);
    let Change::Begun = soon("the list", following.next()).await else { panic!() };
    let Change::Found(_) = soon("an object", following.next()).await else { panic!() };
    // The queue is shorter than the list, so the watch has not been asked for.
    api.refuse(1, StatusCode::FORBIDDEN);
    for _ in 1..20 {
        let Change::Found(_) = soon("the rest", following.next()).await else { panic!() };
    }
    let Change::Listed = soon("the end of the list", following.next()).await else { panic!() };
    let Change::Begun = soon("that nothing is watched", following.next()).await else { panic!() };
    api.create(config_map("one", "1")).unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(59)).await;
    tokio::time::resume();
    assert_eq!(listed(&mut following).await.len(), 21);
    cluster.apply(&config_maps(), &config_map("one", "2"), false).await.unwrap();
    assert_eq!(applied(&mut following).await, "one");
}
