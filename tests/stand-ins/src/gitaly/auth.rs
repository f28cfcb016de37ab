//! Checks what proves that a caller knows the token: an HMAC over the time of the call, good for half a minute.

use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, Mac};
use sha2::Sha256;
use tonic::Status;
use tonic::metadata::MetadataMap;

const WINDOW_SECONDS: u64 = 30;

pub(super) fn verify(token: &str, metadata: &MetadataMap) -> Result<(), Status> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    verify_at(token, metadata, now)
}

pub(super) fn verify_at(token: &str, metadata: &MetadataMap, now: u64) -> Result<(), Status> {
    let malformed = || Status::unauthenticated("authentication required");
    let denied = || Status::permission_denied("permission denied");
    let value = metadata.get("authorization").and_then(|value| value.to_str().ok()).ok_or_else(malformed)?;
    let proof = value.strip_prefix("Bearer ").ok_or_else(malformed)?;
    let mut parts = proof.split('.');
    let (Some("v2"), Some(signature), Some(issued), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed());
    };
    let signature = hex::decode(signature).map_err(|_| malformed())?;
    let seconds: u64 = issued.parse().map_err(|_| malformed())?;
    let mut mac = Hmac::<Sha256>::new_from_slice(token.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(issued.as_bytes());
    mac.verify_slice(&signature).map_err(|_| denied())?;
    if now.abs_diff(seconds) > WINDOW_SECONDS { Err(denied()) } else { Ok(()) }
}
