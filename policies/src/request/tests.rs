//! Paths and what Kubernetes documents of them; rules and what they must not overlook.

use crate::{CallerRule, Callers, Clients, Effect, Request};

/// `verb group resource/subresource namespace name`, with `-` for what there is not.
fn read(method: &str, path: &str) -> String {
    let (path, query) = match path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path, None),
    };
    let request = Request::of(method, path, query);
    assert_eq!(request.path, path);
    let or = |text: Option<&str>| text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned();
    match request.resource {
        _ if request.obscure => {
            assert_eq!((request.resource, request.namespace, request.name), (None, None, None));
            "obscure".to_owned()
        }
        None => format!("{} path", request.verb),
        Some(resource) => format!(
            "{} {} {}{} {} {}",
            or(Some(request.verb)),
            or(Some(resource.group)),
            or(Some(resource.name)),
            resource.subresource.map(|one| format!("/{one}")).unwrap_or_default(),
            or(request.namespace),
            or(request.name),
        ),
    }
}

#[test]
fn requests_have_the_attributes_that_kubernetes_documents() {
    for (method, path, attributes) in [
        // Verbs.
        ("GET", "/api/v1/namespaces/a/pods", "list - pods a -"),
        ("HEAD", "/api/v1/namespaces/a/pods", "list - pods a -"),
        ("GET", "/api/v1/namespaces/a/pods/web-0", "get - pods a web-0"),
        ("HEAD", "/api/v1/namespaces/a/pods/web-0", "get - pods a web-0"),
        ("POST", "/api/v1/namespaces/a/pods", "create - pods a -"),
        ("PUT", "/api/v1/namespaces/a/pods/web-0", "update - pods a web-0"),
        ("PATCH", "/api/v1/namespaces/a/pods/web-0", "patch - pods a web-0"),
        ("DELETE", "/api/v1/namespaces/a/pods/web-0", "delete - pods a web-0"),
        ("DELETE", "/api/v1/namespaces/a/pods", "deletecollection - pods a -"),
        ("OPTIONS", "/api/v1/namespaces/a/pods", "- - pods a -"),
        ("get", "/api/v1/namespaces/a/pods", "- - pods a -"),
        // Watches.
        ("GET", "/api/v1/pods?watch=true", "watch - pods - -"),
        ("GET", "/api/v1/pods?limit=5&watch=1", "watch - pods - -"),
        ("GET", "/api/v1/pods?watch", "watch - pods - -"),
        ("GET", "/api/v1/pods?watch=", "watch - pods - -"),
        ("GET", "/api/v1/pods?watch=yes", "watch - pods - -"),
        ("GET", "/api/v1/pods?w%61tch=t", "watch - pods - -"),
        ("GET", "/api/v1/pods?watch=false", "list - pods - -"),
        ("GET", "/api/v1/pods?watch=FALSE&watch=1", "list - pods - -"),
        ("GET", "/api/v1/pods?watch=%30", "list - pods - -"),
        ("GET", "/api/v1/pods?a;watch=1", "list - pods - -"),
        ("GET", "/api/v1/pods?watch=%zz", "list - pods - -"),
        ("GET", "/api/v1/pods?Watch=1", "list - pods - -"),
        ("GET", "/api/v1/namespaces/a/pods/web-0?watch=1", "get - pods a web-0"),
        ("GET", "/api/v1/watch/pods", "watch - pods - -"),
        ("GET", "/api/v1/watch/namespaces/a/pods", "watch - pods a -"),
        ("GET", "/apis/apps/v1/watch/namespaces/a/deployments/web", "watch apps deployments a web"),
        ("GET", "/api/v1/proxy/namespaces/a/services/web/x/y", "proxy - services a web"),
        // Groups, cluster-wide types, namespaces themselves.
        ("GET", "/apis/apps/v1/namespaces/a/deployments", "list apps deployments a -"),
        ("GET", "/apis/apps/v1/deployments", "list apps deployments - -"),
        ("GET", "/apis/networking.k8s.io/v1/ingressclasses/x", "get networking.k8s.io ingressclasses - x"),
        ("GET", "/api/v1/nodes/n1", "get - nodes - n1"),
        ("GET", "/api/v1/nodes/n1/", "get - nodes - n1"),
        ("GET", "/api/v1/namespaces", "list - namespaces - -"),
        ("GET", "/api/v1/namespaces/a", "get - namespaces a a"),
        ("DELETE", "/api/v1/namespaces/a", "delete - namespaces a a"),
        ("PUT", "/api/v1/namespaces/a/finalize", "update - namespaces/finalize a a"),
        ("GET", "/api/v1/namespaces/a/status", "get - namespaces/status a a"),
        (
            "GET",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node",
            "get rbac.authorization.k8s.io clusterroles - system:node",
        ),
        (
            "GET",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
            "get rbac.authorization.k8s.io clusterroles - system%3Anode",
        ),
        // Subresources; what connects is a plain verb of its method.
        ("GET", "/api/v1/namespaces/a/pods/web-0/log?follow=true", "get - pods/log a web-0"),
        ("POST", "/api/v1/namespaces/a/pods/web-0/exec?command=sh", "create - pods/exec a web-0"),
        ("GET", "/api/v1/namespaces/a/pods/web-0/exec?command=sh", "get - pods/exec a web-0"),
        ("POST", "/api/v1/namespaces/a/pods/web-0/attach", "create - pods/attach a web-0"),
        ("POST", "/api/v1/namespaces/a/pods/web-0/portforward", "create - pods/portforward a web-0"),
        ("POST", "/api/v1/namespaces/a/pods/web-0/eviction", "create - pods/eviction a web-0"),
        ("PATCH", "/apis/apps/v1/namespaces/a/deployments/web/scale", "patch apps deployments/scale a web"),
        (
            "GET",
            "/api/v1/namespaces/a/services/https:web:443/proxy/x//y%2Fz/",
            "get - services/proxy a https:web:443",
        ),
        ("DELETE", "/api/v1/namespaces/a/services/web/proxy/things/1", "delete - services/proxy a web"),
        ("GET", "/api/v1/nodes/n1/proxy/metrics", "get - nodes/proxy - n1"),
        // Not about resources.
        ("GET", "/", "get path"),
        ("GET", "/healthz", "get path"),
        ("GET", "/healthz/", "get path"),
        ("POST", "/version", "post path"),
        ("GET", "/api", "get path"),
        ("GET", "/api/v1", "get path"),
        ("GET", "/apis/apps/v1", "get path"),
        ("GET", "/apis/apps", "get path"),
        ("GET", "/openapi/v3/apis/apps/v1", "get path"),
        ("GET", "/API/v1/pods/x", "get path"),
        ("PROPFIND", "/healthz", " path"),
    ] {
        assert_eq!(read(method, path), attributes, "{method} {path}");
    }
}

#[test]
fn a_path_with_two_readings_is_obscure() {
    for path in [
        "",
        "api/v1/pods",
        "//api/v1/pods",
        "/api//v1/pods",
        "/api/v1//pods",
        "/api/v1/pods//",
        "/api/v1/pods//web",
        "//",
        "///",
        "/healthz/../api/v1/secrets",
        "/healthz/.",
        "/./healthz",
        "/healthz/..",
        "/healthz//x",
        "/healthz//",
        "/api/v1/namespaces/a/pods/../secrets",
        "/api/v1/namespaces/a/pods/%2e%2e/secrets",
        "/api/v1/namespaces/a/pods/.%2E/secrets",
        "/api/v1/namespaces/a/pods/x%2f..%2f..%2fsecrets",
        "/api/v1/namespaces/a%2Fsecrets/x",
        "/api/v1/namespaces/a%2fpods",
        "/api/v1/namespaces/a/pods/web%2Flog",
        "/api/v1/namespaces/a/pods/web%252Flog",
        "/healthz%2Fx",
        "/healthz%2f..%2fapi",
        "/%61pi/v1/pods/x",
        "/ap%69s/apps/v1/pods",
        "/%61pi",
        "/api/v1/%70ods",
        "/api/v1/namespaces/%61/pods",
        "/apis/%61pps/v1/deployments",
        "/api/v1/pods/web/%6Cog",
        "/api/v1/watch",
        "/apis/apps/v1/proxy",
        "/api/v1\\pods",
        "/api/v1/pods/x%5C..%5Cy",
        "/api/v1/pods/x%00",
        "/api/v1/pods/x%0a",
        "/api/v1/pods/x%",
        "/api/v1/pods/x%4",
        "/api/v1/pods/x%zz",
        "/api/v1/namespaces/a/services/web/proxy/../../../secrets",
        "/api/v1/namespaces/a/services/web/proxy/x%2F..%2Fy",
        "/api/v1/namespaces/a/services/web/proxy/%2e",
        "/api/v1/namespaces//pods",
        "/api/v1/namespaces/a//pods",
    ] {
        assert_eq!(read("GET", path), "obscure", "{path}");
        let all = Callers { rules: vec![rule(Effect::Allow)], otherwise: Effect::Allow };
        let judged = all.judge(&Request::of("GET", path, None));
        assert_eq!((judged.effect, judged.rule_line), (Effect::Deny, None), "{path}");
    }
}

fn rule(effect: Effect) -> CallerRule {
    CallerRule {
        effect,
        access: vec![],
        user_ids: vec![],
        project_ids: vec![],
        verbs: vec![],
        resources: vec![],
        namespaces: vec![],
        paths: vec![],
        line: 7,
    }
}

fn words(words: &str) -> Vec<String> {
    words.split_whitespace().map(str::to_owned).collect()
}

fn matches(rule: &CallerRule, method: &str, path: &str) -> bool {
    let other = if rule.effect == Effect::Allow { Effect::Deny } else { Effect::Allow };
    let judged =
        Callers { rules: vec![rule.clone()], otherwise: other }.judge(&Request::of(method, path, None));
    assert_eq!(judged.effect == rule.effect, judged.rule_line == Some(7));
    judged.rule_line.is_some()
}

#[test]
fn resources_are_named_with_group_and_subresource() {
    let pods = "/api/v1/namespaces/a/pods/x";
    let log = "/api/v1/namespaces/a/pods/x/log";
    let deployments = "/apis/apps/v1/namespaces/a/deployments/x";
    let scale = "/apis/apps/v1/namespaces/a/deployments/x/scale";
    let pods_metrics = "/apis/metrics.k8s.io/v1/namespaces/a/pods/x";
    let all = [pods, log, deployments, scale, pods_metrics];
    for (resources, expected) in [
        ("*", vec![pods, log, deployments, scale, pods_metrics]),
        ("pods", vec![pods]),
        ("pods/log", vec![log]),
        ("pods/*", vec![log]),
        ("pods pods/*", vec![pods, log]),
        ("deployments", vec![]),
        ("deployments.apps", vec![deployments]),
        ("deployments.apps/scale", vec![scale]),
        ("deployments.apps/*", vec![scale]),
        ("*.apps", vec![deployments, scale]),
        ("*.apps/*", vec![scale]),
        ("*/*", vec![log, scale]),
        ("*/scale", vec![scale]),
        ("pods.metrics.k8s.io", vec![pods_metrics]),
        ("*.k8s.io", vec![]),
        ("pod", vec![]),
        ("", all.to_vec()),
    ] {
        let rule = CallerRule { resources: words(resources), ..rule(Effect::Allow) };
        let found: Vec<_> = all.into_iter().filter(|path| matches(&rule, "GET", path)).collect();
        assert_eq!(found, expected, "{resources}");
    }
}

#[test]
fn a_denied_namespace_is_not_reached_through_all_of_them() {
    for (effect, namespaces, method, path, expected) in [
        (Effect::Deny, "prod", "GET", "/api/v1/namespaces/prod/pods", true),
        (Effect::Deny, "prod", "GET", "/api/v1/namespaces/prod", true),
        (Effect::Deny, "prod", "GET", "/api/v1/namespaces/production/pods", false),
        (Effect::Deny, "prod*", "GET", "/api/v1/namespaces/production/pods", true),
        (Effect::Deny, "prod", "GET", "/api/v1/pods", true),
        (Effect::Deny, "prod", "DELETE", "/apis/example.com/v1/things", true),
        (Effect::Deny, "prod", "GET", "/api/v1/watch/pods", true),
        (Effect::Deny, "prod", "GET", "/api/v1/nodes", false),
        (Effect::Deny, "prod", "GET", "/api/v1/namespaces", false),
        (Effect::Deny, "prod", "GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles", false),
        (Effect::Deny, "prod", "GET", "/apis/example.com/v1/things/x", false),
        (Effect::Deny, "prod", "GET", "/healthz", false),
        (Effect::Allow, "prod", "GET", "/api/v1/namespaces/prod/pods", true),
        (Effect::Allow, "prod", "GET", "/api/v1/pods", false),
        (Effect::Allow, "*", "GET", "/api/v1/namespaces/prod/pods", true),
        (Effect::Allow, "*", "GET", "/api/v1/pods", false),
        (Effect::Allow, "*", "GET", "/api/v1/nodes", false),
    ] {
        let rule = CallerRule { namespaces: words(namespaces), ..rule(effect) };
        assert_eq!(matches(&rule, method, path), expected, "{effect:?} {namespaces} {method} {path}");
    }
}

#[test]
fn paths_are_compared_as_the_server_reads_them() {
    for (paths, path, expected) in [
        ("/healthz", "/healthz", true),
        ("/healthz", "/healthz/", true),
        ("/healthz/", "/healthz", true),
        ("/healthz/", "/healthz/", true),
        ("/", "/", true),
        ("/", "/healthz", false),
        ("/healthz/*", "/healthz/", true),
        ("/healthz/*", "/healthz", false),
        ("/%68ealthz", "/healthz/", true),
        ("/a%20b", "/a%20b", true),
        ("/a%2520b", "/a%20b", false),
        ("/%6detr*", "/metrics", true),
        ("/a%2A", "/a*", true),
        ("/a%2A", "/abc", false),
        ("/healthz", "/healthz/etcd", false),
        ("/healthz/*", "/healthz/etcd", true),
        ("/healthz*", "/healthz", true),
        ("/metrics", "/%6detrics", true),
        ("*", "/", true),
        ("/version*", "/versions", true),
        ("*", "/api/v1/pods", false),
        ("/api/v1/pods", "/api/v1/pods", false),
    ] {
        let rule = CallerRule { paths: words(paths), ..rule(Effect::Deny) };
        assert_eq!(matches(&rule, "GET", path), expected, "{paths} {path}");
    }
    let both = CallerRule { paths: words("/version"), resources: words("pods"), ..rule(Effect::Allow) };
    let found =
        ["/version", "/api/v1/pods", "/api/v1/nodes", "/healthz"].map(|path| matches(&both, "GET", path));
    assert_eq!(found, [true, true, false, false]);
}

#[test]
fn the_first_rule_that_matches_decides() {
    let callers = Callers {
        rules: vec![
            CallerRule { access: words("ci"), project_ids: vec![7], line: 1, ..rule(Effect::Allow) },
            CallerRule { access: words("ci"), line: 2, ..rule(Effect::Deny) },
            CallerRule { user_ids: vec![5], verbs: words("get list"), line: 3, ..rule(Effect::Allow) },
            CallerRule {
                verbs: words("*"),
                access: words("*"),
                user_ids: vec![6],
                line: 4,
                ..rule(Effect::Allow)
            },
        ],
        otherwise: Effect::Deny,
    };
    let judge = |access, user_id, project_id, method| {
        let request = Request::of(method, "/api/v1/pods", None);
        let judged = callers.judge(&Request { access, user_id, project_id, ..request });
        (judged.effect, judged.rule_line)
    };
    for (access, user, project, method, expected) in [
        ("ci", Some(6), Some(7), "GET", (Effect::Allow, Some(1))),
        ("ci", Some(5), Some(8), "GET", (Effect::Deny, Some(2))),
        ("ci", Some(5), None, "GET", (Effect::Deny, Some(2))),
        ("pat", Some(5), None, "GET", (Effect::Allow, Some(3))),
        ("pat", Some(5), None, "POST", (Effect::Deny, None)),
        ("pat", Some(6), Some(7), "POST", (Effect::Allow, Some(4))),
        ("session", None, None, "GET", (Effect::Deny, None)),
    ] {
        assert_eq!(judge(access, user, project, method), expected, "{access} {user:?} {project:?} {method}");
    }
}

#[test]
fn an_address_is_admitted_unless_denied_or_left_out() {
    let networks = |texts: &[&str]| -> Vec<_> {
        texts
            .iter()
            .map(|text| text.split_once('/').unwrap())
            .map(|(a, l)| (a.parse().unwrap(), l.parse().unwrap()))
            .collect()
    };
    let clients = |allow: &[&str], deny: &[&str]| Clients { allow: networks(allow), deny: networks(deny) };
    for (allow, deny, client, expected) in [
        (&[][..], &[][..], "10.0.0.1", true),
        (&["10.0.0.0/8"], &[], "10.0.0.1", true),
        (&["10.0.0.0/8"], &[], "11.0.0.1", false),
        (&["10.0.0.0/8"], &[], "::ffff:10.0.0.1", true),
        (&["10.0.0.0/8"], &["10.0.0.1/32"], "10.0.0.1", false),
        (&["10.0.0.0/8"], &["10.0.0.1/32"], "10.0.0.2", true),
        (&[], &["::/0"], "2001:db8::1", false),
        (&[], &["::/0"], "10.0.0.1", true),
        (&["0.0.0.0/0"], &[], "2001:db8::1", false),
        (&["2001:db8::/32"], &[], "2001:db8:5::1", true),
        (&[], &["0.0.0.0/0"], "::ffff:10.0.0.1", false),
    ] {
        let admitted = clients(allow, deny).admits(client.parse().unwrap());
        assert_eq!(admitted, expected, "{allow:?} {deny:?} {client}");
    }
}
