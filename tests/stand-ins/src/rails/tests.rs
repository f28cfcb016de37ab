//! The verifier against the vector that a real kas' library made.

use super::jwt::{Bad, verify};

const VECTOR: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJhdWQiOlsiZ2l0bGFiIl0sImV4cCI6MTcwMDAwMDAwNS41LCJpYXQiOj\
                      E3MDAwMDAwMDAuNSwiaXNzIjoiZ2l0bGFiLWthcyIsIm5iZiI6MTY5OTk5OTk5NS41fQ.oKGBlE_S22sn2glPg-3yzhRlUPI\
                      ggzAzdFu8fuzskzM";

fn secret() -> [u8; 32] {
    super::Options::default().secret
}

#[test]
fn a_good_jwt_is_good_only_in_its_time() {
    let at = |now| verify(VECTOR, &secret(), Some("gitlab"), now).map(|claims| claims.iat);
    assert_eq!(at(1_700_000_000.5), Ok(1_700_000_000.5));
    assert_eq!(at(1_700_000_005.4), Ok(1_700_000_000.5));
    assert_eq!(at(1_700_000_005.5), Err(Bad::Expired));
    assert_eq!(at(1_699_999_995.4), Err(Bad::NotYet));
}

#[test]
fn a_jwt_of_another_key_audience_or_form_is_refused() {
    let now = 1_700_000_000.5;
    assert_eq!(verify(VECTOR, &[1; 32], Some("gitlab"), now), Err(Bad::Signature));
    assert_eq!(verify(VECTOR, &secret(), Some("gitlab-kas"), now), Err(Bad::Audience));
    assert_eq!(verify("a.b", &secret(), Some("gitlab"), now), Err(Bad::Form));
    assert!(verify(VECTOR, &secret(), None, now).is_ok());
}
