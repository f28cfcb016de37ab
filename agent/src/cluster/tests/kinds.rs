//! Which kinds the cluster serves, and how often it is asked.

use super::*;

#[tokio::test]
async fn kinds_are_looked_up_once() {
    let (api, cluster) = start().await;
    let deployment = Kind::new("apps", "v1", "Deployment", "deployments", true);
    for version in ["v1", "", "v1", ""] {
        assert_eq!(cluster.kind("apps", version, "Deployment").await.unwrap(), deployment);
        assert_eq!(cluster.kind("apps", version, "ReplicaSet").await.unwrap().plural, "replicasets");
    }
    let namespace = Kind::new("", "v1", "Namespace", "namespaces", false);
    assert_eq!(cluster.kind("", "v1", "Namespace").await.unwrap(), namespace);
    assert_eq!(cluster.kind("", "", "Namespace").await.unwrap(), namespace);
    assert_eq!(asked(&api, "/apis/apps/v1"), 1);
    assert_eq!(asked(&api, "/apis/apps"), 1);
    assert_eq!(asked(&api, "/api/v1"), 1);
    cluster.forget("apps");
    cluster.kind("apps", "v1", "Deployment").await.unwrap();
    assert_eq!(asked(&api, "/apis/apps/v1"), 2);
}

#[tokio::test]
async fn an_unknown_kind_is_not_asked_for_all_the_time() {
    let (api, cluster) = start().await;
    let _still = stand_still();
    for _ in 0..50 {
        for (group, version) in [("example.com", "v1"), ("example.com", ""), ("apps", "v1"), ("", "v9")] {
            let error = cluster.kind(group, version, "Unicorn").await.unwrap_err();
            assert!(matches!(error, ClusterError::UnknownKind { .. }) && !error.passes(), "{error}");
        }
    }
    for path in ["/apis/example.com/v1", "/apis/example.com", "/apis/apps/v1", "/api/v9"] {
        assert_eq!(asked(&api, path), 1, "{path}");
    }
    let said = cluster.kind("example.com", "v1", "Unicorn").await.unwrap_err().to_string();
    assert!(said.starts_with("the cluster does not serve Unicorn of example.com/v1; "), "{said}");
}

#[tokio::test]
async fn an_unknown_kind_is_asked_for_again_after_a_moment() {
    let (api, cluster) = start().await;
    let _still = stand_still();
    cluster.kind("apps", "v1", "Unicorn").await.unwrap_err();
    tokio::time::advance(Duration::from_millis(1_900)).await;
    cluster.kind("apps", "v1", "Unicorn").await.unwrap_err();
    assert_eq!(asked(&api, "/apis/apps/v1"), 1);
    tokio::time::advance(Duration::from_millis(200)).await;
    cluster.kind("apps", "v1", "Unicorn").await.unwrap_err();
    assert_eq!(asked(&api, "/apis/apps/v1"), 2);
}

#[tokio::test]
async fn what_was_known_outlasts_a_server_that_is_away() {
    let (mut api, cluster) = start().await;
    let known = cluster.kind("apps", "v1", "Deployment").await.unwrap();
    api.stop().await;
    assert_eq!(cluster.kind("apps", "v1", "Deployment").await.unwrap(), known);
    assert!(cluster.kind("coordination.k8s.io", "v1", "Lease").await.unwrap_err().passes());
}
