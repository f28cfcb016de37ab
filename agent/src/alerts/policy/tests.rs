//! How policies are read, row by row.

use super::*;
use serde_json::json;

const MOST: Effort = Effort { patterns: 10, texts: 100 };

fn object(spec: Value) -> Value {
    json!({
        "metadata": {
            "namespace": "shop", "name": "web",
            "labels": {PROJECT: "21"}, "annotations": {ALERT: "true"},
        },
        "spec": spec,
    })
}

#[test]
fn only_policies_of_the_project_that_ask_for_alerts_are_ours() {
    let good = object(json!({"endpointSelector": {}}));
    assert!(matches!(read(&good, "21", MOST), Read::Policy(_)));
    let table = [
        ("/metadata/labels/app.gitlab.com~1proj", json!("22")),
        ("/metadata/labels/app.gitlab.com~1proj", json!("021")),
        ("/metadata/labels/app.gitlab.com~1proj", json!(21)),
        ("/metadata/annotations/app.gitlab.com~1alert", json!("false")),
        ("/metadata/annotations/app.gitlab.com~1alert", json!(true)),
        ("/metadata/annotations", Value::Null),
        ("/metadata", json!("x")),
    ];
    for (place, value) in table {
        let mut other = good.clone();
        *other.pointer_mut(place).unwrap() = value.clone();
        assert!(matches!(read(&other, "21", MOST), Read::NotOurs), "{place} {value}");
    }
}

#[test]
fn what_cannot_be_compared_says_why() {
    let unusable = |object: Value| match read(&object, "21", MOST) {
        Read::Unusable(why) => why,
        other => panic!("{other:?}"),
    };
    assert!(unusable(object(Value::Null)).contains("neither spec nor specs"));
    assert!(unusable(object(json!({"nodeSelector": {}}))).contains("endpointSelector"));
    let long = "x".repeat(LARGEST);
    assert!(unusable(object(json!({"endpointSelector": {}, "description": long}))).contains("larger"));
    let mut both = object(json!({"endpointSelector": {}}));
    both["specs"] = json!([{"endpointSelector": {"matchLabels": {"a": "b"}}}, {"endpointSelector": {}}]);
    let Read::Policy(policy) = read(&both, "21", MOST) else { panic!("usable") };
    assert_eq!((policy.rules.len(), policy.name.as_str()), (3, "shop/web"));
}

#[test]
fn what_would_take_too_long_is_counted_before_it_is_compiled() {
    let with = |http: Value, selector: Value| {
        object(json!({"endpointSelector": selector, "ingress": [{"toPorts": [{"rules": {"http": http}}]}]}))
    };
    let paths = |count: usize| json!(vec![json!({"path": "/a"}); count]);
    let Read::Policy(policy) = read(&with(paths(10), json!({})), "21", MOST) else { panic!("usable") };
    assert_eq!(policy.effort, Effort { patterns: 10, texts: 11 });
    assert_eq!(policy.bad_pattern, None);
    let unusable = |object: Value| match read(&object, "21", MOST) {
        Read::Unusable(why) => why,
        other => panic!("{other:?}"),
    };
    assert!(unusable(with(paths(11), json!({}))).contains("regular expressions"));
    let values = vec!["x"; 101];
    let selector = json!({"matchExpressions": [{"key": "a", "operator": "In", "values": values}]});
    assert!(unusable(with(json!([]), selector)).contains("texts"));
    assert!(unusable(with(json!([{"headers": vec!["a: b"; 100]}]), json!({}))).contains("texts"));
    let bad = with(json!([{"path": "("}, {"method": "GET", "path": "["}]), json!({}));
    let Read::Policy(policy) = read(&bad, "21", MOST) else { panic!("usable") };
    assert_eq!(policy.bad_pattern.as_deref(), Some("("));
    let section = &policy.rules[0].sections(TrafficDirection::Ingress)[0];
    assert!(section.http[1].method.fits("GET"));
}

#[test]
fn bookkeeping_is_not_sent_along() {
    let mut object = object(json!({"endpointSelector": {}}));
    object["status"] = json!({"nodes": {}});
    object["metadata"]["managedFields"] = json!([{}]);
    object["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] = json!("{}");
    object["metadata"]["uid"] = json!("u");
    let Read::Policy(policy) = read(&object, "21", MOST) else { panic!("usable") };
    let metadata = &policy.value["metadata"];
    assert!(policy.value.get("status").is_none() && metadata.get("managedFields").is_none());
    assert_eq!(metadata["annotations"], json!({ALERT: "true"}));
    assert_eq!((&metadata["uid"], &policy.value["spec"]), (&json!("u"), &object["spec"]));
}

#[test]
fn selectors_become_texts_to_be_found_in_labels() {
    let is = |texts: &[&str]| Part::In(texts.iter().map(|text| (*text).to_owned()).collect());
    let is_not = |texts: &[&str]| Part::NotIn(texts.iter().map(|text| (*text).to_owned()).collect());
    let expression = |operator: &str| json!({"matchExpressions": [{"key": "any:a", "operator": operator, "values": ["1", "2"]}]});
    let table = [
        (json!({}), vec![]),
        (json!({"matchLabels": {"app": "web"}}), vec![is(&["app=web"])]),
        (json!({"matchLabels": {"any:app": "web", "any.b": "c"}}), vec![is(&["b=c"]), is(&["app=web"])]),
        (json!({"matchLabels": {"k8s:app": "web"}}), vec![is(&["k8s:app=web"])]),
        (json!({"matchLabels": {"company.com/x": "1"}}), vec![is(&["company.com/x=1"])]),
        (json!({"matchLabels": {"k8s:io.kubernetes.pod.namespace": "shop", "a": ""}}), vec![is(&["a="])]),
        (expression("In"), vec![is(&["a=1", "a=2"])]),
        (expression("NotIn"), vec![is_not(&["a=1", "a=2"])]),
        (expression("Exists"), vec![is(&["a"])]),
        (expression("DoesNotExist"), vec![is_not(&["a"])]),
    ];
    for (selector, parts) in table {
        assert_eq!(Selector::read(&selector).0, parts, "{selector}");
    }
}

#[test]
fn ports_have_numbers_and_protocols() {
    let read = |value: Value| port(&value);
    let http = read(json!({"port": "80", "protocol": "TCP"})).unwrap();
    assert!(http.is(80, Protocol::Tcp) && !http.is(81, Protocol::Tcp) && !http.is(80, Protocol::Udp));
    for any in [json!({"port": "53"}), json!({"port": 53, "protocol": "ANY"})] {
        let dns = read(any).unwrap();
        assert!(dns.is(53, Protocol::Tcp) && dns.is(53, Protocol::Udp) && !dns.is(53, Protocol::Other));
    }
    let range = read(json!({"port": "8000", "endPort": 8010, "protocol": "udp"})).unwrap();
    assert!(range.is(8010, Protocol::Udp) && !range.is(8011, Protocol::Udp));
    assert_eq!(read(json!({"port": "http", "protocol": "TCP"})), None);
    assert!(!read(json!({"port": "1", "protocol": "SCTP"})).unwrap().is(1, Protocol::Other));
}
