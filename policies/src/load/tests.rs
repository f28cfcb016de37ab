//! Directories of policies, good and bad, and what comes of them.

use super::*;
use std::fs;

#[test]
fn what_ships_is_valid() {
    let set = load_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(!set.limits.requests_per_token.is_empty());
}
