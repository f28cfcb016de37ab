//! What refusals say, and what they never say about Secrets.

use super::*;
use serde_json::json;

fn told(status: u16, document: &Value, secret: bool) -> String {
    let status = StatusCode::from_u16(status).unwrap();
    ClusterError::refused("apply Secret a/b", status, document.to_string().as_bytes(), secret).to_string()
}

fn status(reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "reason": reason, "message": message})
}

#[test]
fn a_refusal_is_told_on_one_line_in_the_servers_words() {
    let document = status("Invalid", "Pod \"x\" is invalid:\n  spec: Required value");
    assert_eq!(
        told(422, &document, false),
        "cannot apply Secret a/b: Pod \"x\" is invalid: spec: Required value (422 Invalid)"
    );
    let page = ClusterError::refused("get Pod a/b", StatusCode::BAD_GATEWAY, b"<html>\nbad\n", false);
    assert_eq!(page.to_string(), "cannot get Pod a/b: <html> bad (502)");
}

#[test]
fn what_a_secret_holds_is_in_no_refusal() {
    let typed = ".stringData.password: expected string, got &value.valueUnstructured{Value:hunter2}";
    let mut invalid = status("Invalid", "data[x]: Invalid value: \"hunter2\"");
    invalid["details"] = json!({"causes": [{"field": "data[x]", "message": "hunter2"}]});
    let cases = [
        (400, status("BadRequest", typed)),
        (500, status("InternalError", typed)),
        (422, invalid),
        (403, status("Forbidden", "admission webhook \"no.example\" denied the request: hunter2 is weak")),
        (403, status("Forbidden", "secrets \"b\" is forbidden: hunter2")),
    ];
    for (code, document) in cases {
        let told = told(code, &document, true);
        assert!(!told.contains("hunter2"), "{told}");
        assert!(told.contains("cannot apply Secret a/b"), "{told}");
    }
    let rbac = "secrets \"b\" is forbidden: User \"agentk\" cannot patch resource \"secrets\"";
    assert!(told(403, &status("Forbidden", rbac), true).contains(rbac));
}

#[test]
fn a_webhook_that_chooses_its_code_and_words_tells_nothing_of_a_secret() {
    let spoken = [
        "hunter2 is weak".to_owned(),
        "secrets \"hunter2\" not found".to_owned(),
        "secrets \"b\" is forbidden: User \"hunter2\"".to_owned(),
    ];
    for code in [400, 401, 403, 404, 409, 410, 422, 429, 500, 503] {
        for words in &spoken {
            let denied = format!("admission webhook \"no.example\" denied the request: {words}");
            let mut document = status("hunter2", &denied);
            document["details"] = json!({"causes": [{"field": "hunter2"}]});
            let told = told(code, &document, true);
            assert!(!told.contains("hunter2"), "{code}: {told}");
            assert!(told.contains("admission webhook \"no.example\" denied the request ("), "{code}: {told}");
        }
        // Policies of the cluster compute their words; others may say anything.
        for words in [
            "hunter2",
            "hunter2 denied the request",
            "hunter2 is forbidden: User \"x\" cannot",
            "secrets \"b\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'p' denied request: hunter2 is \
             forbidden: User \"",
            "Operation cannot be fulfilled on secrets \"b\": hunter2",
            "failed to convert new object (a/b; v1, Kind=Secret) to smd typed: .data.x: got \"y): .hunter2: z\"",
        ] {
            let told = told(code, &status("Forbidden", words), true);
            assert!(!told.contains("hunter2"), "{code}: {told}");
        }
    }
}

#[test]
fn what_the_api_server_itself_says_about_secrets_is_told() {
    let cases = [
        (401, "Unauthorized"),
        (
            403,
            "secrets is forbidden: User \"system:serviceaccount:a:b\" cannot list resource \"secrets\" in API group \
             \"\" at the cluster scope",
        ),
        (403, "users \"x\" is forbidden: User \"agentk\" cannot impersonate resource \"users\""),
        (404, "secrets \"b\" not found"),
        (404, "namespaces \"a\" not found"),
        (404, "the server could not find the requested resource"),
        (409, "secrets \"b\" already exists"),
        (
            409,
            "Operation cannot be fulfilled on secrets \"b\": the object has been modified; please apply your changes \
             to the latest version and try again",
        ),
        (409, "Apply failed with 1 conflict: conflict with \"kubectl\" using v1: .data.x"),
        (410, "too old resource version: 1 (2)"),
        (429, "Too many requests, please try again later."),
        (503, "the server is currently unable to handle the request"),
    ];
    for (code, words) in cases {
        let told = told(code, &status("", words), true);
        assert!(told.contains(words), "{told}");
    }
}

#[test]
fn callers_can_tell_what_passes_from_what_does_not() {
    let of = |code: u16| ClusterError::refused("x", StatusCode::from_u16(code).unwrap(), b"", false);
    for code in [408, 409, 429, 500, 502, 503, 504] {
        assert!(of(code).passes(), "{code}");
    }
    for code in [400, 401, 403, 404, 405, 413, 415, 422] {
        assert!(!of(code).passes(), "{code}");
    }
    assert!(of(409).is_conflict() && of(422).is_invalid() && of(400).is_invalid());
    assert!(of(403).is_forbidden() && of(401).is_forbidden() && of(404).is_not_found());
    assert!(ClusterError::Unreachable { what: String::new(), cause: String::new() }.passes());
}

#[test]
fn an_object_that_does_not_fit_its_schema_is_invalid_and_no_failure_of_the_server() {
    let words = "failed to create typed patch object (a/b; /v1, Kind=Secret): .stringData.x: expected string, got \
                 &value.valueUnstructured{Value:12345}";
    let document = status("", words).to_string();
    let of =
        |secret| ClusterError::refused("x", StatusCode::INTERNAL_SERVER_ERROR, document.as_bytes(), secret);
    for secret in [false, true] {
        assert!(of(secret).is_invalid() && !of(secret).passes());
    }
    assert!(of(false).to_string().contains("12345"));
    let said = of(true).to_string();
    assert!(said.contains(": .stringData.x: what is wrong is left out") && !said.contains("12345"), "{said}");
}

#[test]
fn cutting_respects_characters() {
    assert_eq!(cut("short", 10), "short");
    assert_eq!(cut("äöüäöü", 8), "äö...");
    assert!(one_line(&"word ".repeat(1000)).len() <= MOST_WORDS);
}
