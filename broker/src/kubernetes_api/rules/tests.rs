//! Requests as callers spell them, against policies from files.

use super::super::head;
use super::*;
use crate::auth::caller::Access;
use http::Request as HttpRequest;
use http_body_util::Empty;
use postern_policies::load_dir;

fn policies(text: &str) -> PolicySet {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("access.yaml"), text).unwrap();
    load_dir(folder.path()).unwrap_or_else(|problems| panic!("{problems}"))
}

/// One document for everybody.
fn document(rules: &str, otherwise: &str) -> String {
    format!(
        "apiVersion: postern/v1\nkind: AccessPolicy\nmetadata: {{name: test}}\nspec:\n  kubernetesApi:\n    \
         otherwise: {otherwise}\n    rules:\n{rules}"
    )
}

fn asked(method: &str, target: &str) -> Asked {
    with_headers(method, target, &[])
}

fn with_headers(method: &str, target: &str, headers: &[(&str, &str)]) -> Asked {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = HttpRequest::builder().method(method).uri(format!("/k8s?{query}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let body = Empty::<bytes::Bytes>::new();
    let first = head::request(&parts, path, &body, false, &Access::Agent, crate::app::PROGRAM).unwrap();
    let sent = Sent::of(&first);
    Asked {
        who: "job 7 of ada".to_owned(),
        access: "ci",
        user_id: Some(5),
        job_project: Some(10),
        agent: AgentId(42),
        agent_project: Some(20),
        token: TokenKey::of(b"ci:42:x"),
        client: Client::At("10.1.2.3".parse().unwrap()),
        method: method.to_owned(),
        odd: Odd::of(&parts.method, &parts.headers, &sent),
        sent,
    }
}

fn is_denied(asked: &Asked, set: &PolicySet) -> bool {
    let verdict = asked.judge(set);
    assert_eq!(verdict.reported, None);
    verdict.denied.is_some()
}

#[test]
fn requests_of_kubectl_are_judged_by_what_they_are_about() {
    let set = policies(&document(
        "    - {effect: deny, resources: ['pods/exec', 'pods/attach']}\n\
         \x20   - {effect: allow, verbs: [get, list, watch], resources: [pods, pods/log], namespaces: [team-*]}\n\
         \x20   - {effect: allow, verbs: [patch, create], resources: [deployments.apps], namespaces: [team-a]}\n\
         \x20   - {effect: allow, verbs: [get], paths: [/version, '/api*', '/openapi/*']}\n\
         \x20   - {effect: allow, access: [pat]}\n",
        "deny",
    ));
    for (method, target, allowed) in [
        ("GET", "/api/v1/namespaces/team-a/pods", true),
        ("GET", "/api/v1/namespaces/team-a/pods?limit=500", true),
        ("GET", "/api/v1/namespaces/team-a/pods?watch=true", true),
        ("GET", "/api/v1/namespaces/team-a/pods/web-0", true),
        ("GET", "/api/v1/namespaces/team-a/pods/web-0/log?follow=true", true),
        ("GET", "/api/v1/namespaces/other/pods", false),
        ("GET", "/api/v1/pods", false),
        ("DELETE", "/api/v1/namespaces/team-a/pods/web-0", false),
        ("DELETE", "/api/v1/namespaces/team-a/pods", false),
        ("POST", "/api/v1/namespaces/team-a/pods/web-0/exec?command=sh", false),
        ("GET", "/api/v1/namespaces/team-a/pods/web-0/exec?command=sh", false),
        ("GET", "/api/v1/namespaces/team-a/secrets", false),
        ("PATCH", "/apis/apps/v1/namespaces/team-a/deployments/web", true),
        ("PATCH", "/apis/apps/v1/namespaces/team-a/deployments/web/scale", false),
        ("PATCH", "/apis/apps/v1/namespaces/team-b/deployments/web", false),
        ("PUT", "/apis/apps/v1/namespaces/team-a/deployments/web", false),
        ("GET", "/version", true),
        ("GET", "/api", true),
        ("GET", "/apis/apps/v1", true),
        ("GET", "/openapi/v2?timeout=32s", true),
        ("GET", "/metrics", false),
        ("POST", "/version", false),
    ] {
        assert_eq!(is_denied(&asked(method, target), &set), !allowed, "{method} {target}");
    }
}

/// Everything that is, was or might be taken for the secrets of this namespace; nothing of it gets through a rule that only
/// denies these, nor through one that allows all but resources.
#[test]
fn nothing_is_asked_for_by_another_spelling() {
    let denies = policies(&document("    - {effect: deny, resources: [secrets]}\n", "allow"));
    let allows = policies(&document(
        "    - {effect: allow, paths: ['/*']}\n    - {effect: allow, resources: [pods, configmaps]}\n",
        "deny",
    ));
    for target in [
        "/api/v1/namespaces/kube-system/secrets",
        "/api/v1/namespaces/kube-system/secrets/",
        "/api/v1/namespaces/kube-system/secrets/a",
        "/api/v1/secrets",
        "/api/v1/secrets?watch=1",
        "/api/v1/watch/secrets",
        "/api/v1/watch/namespaces/kube-system/secrets",
        "/%61pi/v1/namespaces/kube-system/secrets",
        "/api/v1/namespaces/kube%2Dsystem/%73ecrets",
        "/api/v1/namespaces/kube-system%2Fsecrets",
        "/api/v1/namespaces/kube-system%2fsecrets/a",
        "/api%2Fv1%2Fsecrets",
        "/%2Fapi/v1/secrets",
        "//api/v1/secrets",
        "///api/v1/secrets",
        "/api//v1/secrets",
        "/api/v1//secrets",
        "/api/v1/namespaces//secrets",
        "/api/v1/namespaces/kube-system//secrets",
        "/api/v1/namespaces/kube-system/secrets//",
        "/./api/v1/secrets",
        "/api/v1/./secrets",
        "/version/../api/v1/secrets",
        "/api/v1/pods/../secrets",
        "/api/v1/pods/%2e%2e/secrets",
        "/api/v1/pods/.%2E/secrets",
        "/api/v1/namespaces/a/pods/x%2F..%2F..%2Fsecrets",
        "/api/v1/namespaces/a/services/web/proxy/../../../secrets",
        "/api/v1/namespaces/a/services/web/proxy/%2e%2e/%2e%2e/%2e%2e/secrets",
        "/api/v1\\secrets",
        "/api/v1/%5Csecrets",
        "/api/v1/secrets%00",
        "/api/v1/secrets%0a",
        "/api/v1/%2573ecrets/x%252F",
        "/api/v1/pods%252F..%252Fsecrets",
    ] {
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
            let asked = asked(method, target);
            assert!(is_denied(&asked, &denies), "{method} {target}: {:?}", asked.request());
            assert!(is_denied(&asked, &allows), "{method} {target}: {:?}", asked.request());
        }
    }
}

/// An API server does not know these; they are judged as what they are.
#[test]
fn another_case_is_another_path() {
    let set = policies(&document("    - {effect: allow, resources: [pods]}\n", "deny"));
    for target in ["/API/v1/pods", "/api/v1/Pods", "/api/v1/namespaces/a/PODS", "/Api/v1/pods"] {
        assert!(is_denied(&asked("GET", target), &set), "{target}");
    }
    assert!(!is_denied(&asked("GET", "/api/v1/pods"), &set));
}

#[test]
fn a_method_that_may_be_another_one_is_denied() {
    let set = policies(&document("    - {effect: deny, verbs: [delete]}\n", "allow"));
    let path = "/api/v1/namespaces/a/pods/web-0";
    assert!(!is_denied(&asked("POST", path), &set));
    for method in ["get", "delete", "Delete", "TRACE", "CONNECT", "PROPFIND", "WATCH", "LIST"] {
        assert!(is_denied(&asked(method, path), &set), "{method}");
    }
    for name in ["X-HTTP-Method-Override", "x-http-method", "X-METHOD-OVERRIDE"] {
        assert!(is_denied(&with_headers("POST", path, &[(name, "DELETE")]), &set), "{name}");
    }
    // Where nobody has a rule, nothing is odd.
    assert_eq!(asked("PROPFIND", "//x/..").judge(&PolicySet::empty()), Verdict::default());
}

#[test]
fn what_a_service_behind_the_cluster_s_proxy_is_asked_is_its_own_business() {
    let set = policies(&document("    - {effect: allow, resources: ['services/proxy']}\n", "deny"));
    for target in [
        "/api/v1/namespaces/a/services/web/proxy/x//y/",
        "/api/v1/namespaces/a/services/web:80/proxy/%7Euser",
    ] {
        assert!(!is_denied(&asked("GET", target), &set), "{target}");
    }
}

#[test]
fn a_denial_says_who_what_and_by_which_policy_and_only_the_log_says_where() {
    let set = policies(&document(
        "    - {effect: deny, resources: ['deployments.apps/scale'], namespaces: [prod]}\n\
         \x20   - {effect: allow, verbs: [get, list]}\n",
        "deny",
    ));
    for (method, target, message, line) in [
        (
            "PATCH",
            "/apis/apps/v1/namespaces/prod/deployments/web/scale",
            "AccessPolicy test does not let job 7 of ada patch deployments.apps/scale in namespace prod at agent 42",
            8,
        ),
        (
            "DELETE",
            "/api/v1/nodes/n1",
            "AccessPolicy test does not let job 7 of ada delete nodes at agent 42",
            0,
        ),
        (
            "POST",
            "/version",
            "AccessPolicy test does not let job 7 of ada post the path \"/version\" at agent 42",
            0,
        ),
        (
            "GET",
            "/api/../x",
            "AccessPolicy test does not let job 7 of ada GET \"/api/../x\": the path may mean one thing to the cluster and \
             another to a rule; ask for the plain one, without `..`, `//`, backslashes and needless percent-encoding",
            0,
        ),
    ] {
        let denied = asked(method, target).judge(&set).denied.expect("it is denied");
        assert_eq!(denied.to_string(), message);
        assert_eq!(denied.policy, "test");
        let (file, place) = denied.place.rsplit_once(':').unwrap();
        assert!(file.ends_with("access.yaml"), "{file}");
        if line > 0 {
            assert_eq!(place.parse(), Ok(line));
        }
    }
    let long = asked("PUT", &format!("/{}", "x".repeat(5000))).judge(&set).denied.expect("it is denied");
    assert!(long.to_string().len() < 400, "{long}");
}

#[test]
fn the_most_specific_policy_decides_and_one_to_try_out_only_reports() {
    let head = |name: &str, more: &str| {
        format!("apiVersion: postern/v1\nkind: AccessPolicy\nmetadata: {{name: {name}}}\n{more}spec: ")
    };
    let nothing = "{kubernetesApi: {otherwise: deny}}\n---\n";
    let everything = "{kubernetesApi: {otherwise: allow}}\n---\n";
    let reported = format!("{}{nothing}", head("trial", "mode: report\n"));
    let of =
        |matched: &str, value: &str| format!("{}{value}", head("special", &format!("match: {matched}\n")));
    let hash = &TokenKey::of(b"ci:42:x").to_hex()[..6];
    let asked = asked("GET", "/api/v1/pods");
    let general = format!("{}{nothing}", head("general", ""));
    for (documents, denied, wanted) in [
        (reported.clone(), None, Some("trial")),
        (format!("{general}{}", of("{agentIds: [42]}", everything)), None, None),
        (format!("{general}{}", of("{agentIds: [41]}", everything)), Some("general"), None),
        (format!("{general}{}", of("{projectIds: [20]}", everything)), None, None),
        (format!("{general}{}", of("{projectIds: [10]}", everything)), Some("general"), None),
        (format!("{general}{}", of(&format!("{{tokenHashes: [\"{hash}\"]}}"), everything)), None, None),
        (format!("{general}{}", of("{clientCidrs: [10.0.0.0/8]}", everything)), None, None),
        (format!("{general}{}", of("{clientCidrs: [192.0.2.0/24]}", everything)), Some("general"), None),
        (format!("{reported}{}", of("{agentIds: [42]}", everything)), None, None),
        (format!("{}{reported}", head("general", "") + everything), None, Some("trial")),
    ] {
        let verdict = asked.judge(&policies(&documents));
        assert_eq!(verdict.denied.as_ref().map(|denied| denied.policy.as_str()), denied, "{documents}");
        assert_eq!(verdict.reported.as_ref().map(|denied| denied.policy.as_str()), wanted, "{documents}");
    }
}

#[test]
fn a_caller_whom_a_proxy_hides_does_not_get_past_the_rules_for_addresses() {
    let one = |name: &str, more: &str, otherwise: &str| {
        format!(
            "apiVersion: postern/v1\nkind: AccessPolicy\nmetadata: {{name: {name}}}\n{more}spec: {{kubernetesApi: \
             {{otherwise: {otherwise}}}}}\n---\n"
        )
    };
    let general = one("general", "", "allow");
    let special = |matched: &str, effect: &str| one("special", &format!("match: {matched}\n"), effect);
    for (documents, denied, reported) in [
        (general.clone(), None, None),
        (special("{agentIds: [42]}", "allow"), None, None),
        (general.clone() + &special("{clientCidrs: [192.0.2.0/24]}", "deny"), Some("special"), None),
        (general.clone() + &special("{clientCidrs: [192.0.2.0/24]}", "allow"), Some("special"), None),
        (special("{clientCidrs: [192.0.2.0/24]}", "deny"), Some("special"), None),
        (special("{clientCidrs: ['::/0'], agentIds: [42]}", "deny"), Some("special"), None),
        // For another agent wherever the caller is.
        (general.clone() + &special("{clientCidrs: [192.0.2.0/24], agentIds: [41]}", "deny"), None, None),
        (
            general + &one("trial", "match: {clientCidrs: [192.0.2.0/24]}\nmode: report\n", "deny"),
            None,
            Some("trial"),
        ),
    ] {
        let set = policies(&documents);
        let hidden = Asked { client: Client::Hidden, ..asked("GET", "/api/v1/pods") };
        let verdict = hidden.judge(&set);
        assert_eq!(verdict.denied.as_ref().map(|denied| denied.policy.as_str()), denied, "{documents}");
        assert_eq!(verdict.reported.as_ref().map(|denied| denied.policy.as_str()), reported, "{documents}");
        if let Some(denied) = verdict.denied {
            assert!(denied.to_string().contains("X-Forwarded-For"), "{denied}");
        }
        let local = Asked { client: Client::Local, ..asked("GET", "/api/v1/pods") };
        assert_eq!(local.judge(&set), Verdict::default(), "{documents}");
    }
}
