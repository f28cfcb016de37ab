//! What the client's own tests do not see: the check of the token.

use tonic::Code;
use tonic::metadata::MetadataMap;

use super::auth;

const TOKEN: &str = "foobar";
const AT: u64 = 1_700_000_000;
const PROOF: &str = "Bearer v2.20667a83f8bff34e8fe46bc20288ff8432d8e1c9e7e2e4c758cfe766d05a3bc3.1700000000";

fn verdict(authorization: Option<&str>, now: u64) -> Code {
    let mut metadata = MetadataMap::new();
    if let Some(authorization) = authorization {
        metadata.insert("authorization", authorization.parse().unwrap());
    }
    auth::verify_at(TOKEN, &metadata, now).map_or_else(|status| status.code(), |()| Code::Ok)
}

#[test]
fn a_proof_is_good_for_half_a_minute_before_and_after() {
    for (now, code) in [
        (AT, Code::Ok),
        (AT + 30, Code::Ok),
        (AT - 30, Code::Ok),
        (AT + 31, Code::PermissionDenied),
        (AT - 31, Code::PermissionDenied),
    ] {
        assert_eq!(verdict(Some(PROOF), now), code, "{now}");
    }
}

#[test]
fn what_is_no_proof_is_unauthenticated_and_a_wrong_one_is_denied() {
    for (proof, code) in [
        (None, Code::Unauthenticated),
        (Some("Bearer foobar"), Code::Unauthenticated),
        (Some("Basic v2.00.1700000000"), Code::Unauthenticated),
        (Some("Bearer v2.zz.1700000000"), Code::Unauthenticated),
        (Some("Bearer v2.00.now"), Code::Unauthenticated),
        (Some("Bearer v2.00.1700000000"), Code::PermissionDenied),
    ] {
        assert_eq!(verdict(proof, AT), code, "{proof:?}");
    }
}
