//! Single objects: applied, read, deleted, refused, and what happens when nobody answers.

use super::*;

#[tokio::test]
async fn an_object_is_applied_read_and_deleted() {
    let (api, cluster) = start().await;
    let kind = config_maps();
    assert_eq!(cluster.get(&kind, "default", "a").await.unwrap(), None);
    let created = cluster.apply(&kind, &config_map("a", "1"), false).await.unwrap();
    let changed = cluster.apply(&kind, &config_map("a", "2"), false).await.unwrap();
    assert_eq!(created["metadata"]["uid"], changed["metadata"]["uid"]);
    assert_eq!(cluster.get(&kind, "default", "a").await.unwrap().unwrap(), changed);
    let uid = changed["metadata"]["uid"].as_str().unwrap();
    cluster.delete(&kind, "default", "a", uid, Propagation::Background, false).await.unwrap();
    assert_eq!(cluster.get(&kind, "default", "a").await.unwrap(), None);
    cluster.delete(&kind, "default", "a", uid, Propagation::Background, false).await.unwrap();
    assert_eq!(cluster.calls(), 7);
    let patch = api.requests().into_iter().find(|seen| seen.method == Method::PATCH).unwrap();
    assert_eq!(
        patch.uri.to_string(),
        "/api/v1/namespaces/default/configmaps/a?fieldManager=agentk&force=true&fieldValidation=Warn"
    );
    assert_eq!(patch.headers["content-type"], "application/apply-patch+yaml");
    assert_eq!(patch.headers["user-agent"], crate::PROGRAM.to_string());
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let (_api, cluster) = start().await;
    let kind = config_maps();
    cluster.apply(&kind, &config_map("new", "1"), true).await.unwrap();
    assert_eq!(cluster.get(&kind, "default", "new").await.unwrap(), None);
    let kept = cluster.apply(&kind, &config_map("old", "1"), false).await.unwrap();
    let answer = cluster.apply(&kind, &config_map("old", "2"), true).await.unwrap();
    assert_eq!(answer["data"]["key"], "2");
    cluster.delete(&kind, "default", "old", "", Propagation::Foreground, true).await.unwrap();
    assert_eq!(cluster.get(&kind, "default", "old").await.unwrap().unwrap(), kept);
}

#[tokio::test]
async fn another_object_of_the_same_name_is_not_deleted() {
    let (_api, cluster) = start().await;
    let kind = config_maps();
    cluster.apply(&kind, &config_map("a", "1"), false).await.unwrap();
    cluster.delete(&kind, "default", "a", "of-another", Propagation::Background, false).await.unwrap();
    assert!(cluster.get(&kind, "default", "a").await.unwrap().is_some());
}

#[tokio::test]
async fn replacing_what_has_changed_in_between_is_a_conflict() {
    let (_api, cluster) = start().await;
    let kind = config_maps();
    let first = cluster.create(&kind, &config_map("a", "1")).await.unwrap();
    assert!(cluster.create(&kind, &config_map("a", "1")).await.unwrap_err().is_conflict());
    let mut next = first.clone();
    next["data"]["key"] = json!("2");
    cluster.replace(&kind, &next).await.unwrap();
    assert!(cluster.replace(&kind, &next).await.unwrap_err().is_conflict());
}

#[tokio::test]
async fn what_is_refused_says_what_and_why() {
    let (_api, cluster) = start().await;
    let kind = config_maps();
    let error = cluster.apply(&kind, &config_map("Not-Legal", "1"), false).await.unwrap_err();
    assert!(error.is_invalid() && !error.passes(), "{error}");
    let said = error.to_string();
    assert!(said.starts_with("cannot apply ConfigMap default/Not-Legal: ConfigMap"), "{said}");
    assert!(said.ends_with("(422 Invalid)"), "{said}");
    let mut homeless = config_map("a", "1");
    homeless["metadata"]["namespace"] = json!("nowhere");
    let error = cluster.apply(&kind, &homeless, false).await.unwrap_err();
    assert!(error.is_not_found() && !error.passes(), "{error}");
    assert!(error.to_string().contains("namespaces \"nowhere\" not found"), "{error}");
    homeless["metadata"]["namespace"] = Value::Null;
    let error = cluster.apply(&kind, &homeless, false).await.unwrap_err();
    assert_eq!(error.to_string(), "ConfigMap a: its namespace is not given");
}

#[tokio::test]
async fn a_throttling_server_is_given_the_time_it_asks_for() {
    let (api, cluster) = start().await;
    api.refuse(1, StatusCode::TOO_MANY_REQUESTS);
    let began = Instant::now();
    cluster.get(&config_maps(), "default", "a").await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
    api.refuse(1, StatusCode::SERVICE_UNAVAILABLE);
    let error = cluster.get(&config_maps(), "default", "a").await.unwrap_err();
    assert!(error.passes(), "{error}");
}

#[tokio::test]
async fn a_server_that_says_nothing_holds_no_call_for_ever() {
    let (api, cluster) = start().await;
    cluster.version().await.unwrap();
    api.be_silent(true);
    let call = tokio::spawn(async move { cluster.get(&config_maps(), "default", "a").await });
    soon("the request", async {
        while api.open() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    tokio::time::pause();
    let began = Instant::now();
    let error = call.await.unwrap().unwrap_err();
    // Paused clocks tick in whole milliseconds.
    assert!(began.elapsed() <= Duration::from_secs(31));
    assert!(error.passes(), "{error}");
    assert_eq!(
        error.to_string(),
        "cannot get ConfigMap default/a: the Kubernetes API does not answer: no complete answer within 30s"
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_is_said_to_be_unreachable() {
    let (mut api, cluster) = start().await;
    api.stop().await;
    let error = cluster.get(&config_maps(), "default", "a").await.unwrap_err();
    assert!(matches!(error, ClusterError::Unreachable { .. }) && error.passes(), "{error}");
    api.serve_again().await.unwrap();
    cluster.get(&config_maps(), "default", "a").await.unwrap();
}
