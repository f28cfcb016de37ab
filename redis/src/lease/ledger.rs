//! The fleet's counts in Redis: one number per name and minute, under keys as a kas has them. One command, one round
//! trip; it decides nothing.

use crate::{Redis, RedisError};
use std::{sync::Arc, time::Duration};

/// A key outlives its minute, for which alone it is read, and is gone long before the same minute of the next hour. The
/// 59 s of a kas would give whoever used up a minute in its first second a new one in its last.
const LIFE_SECONDS: i64 = 90;

pub(super) struct Ledger {
    pub(super) redis: Arc<Redis>,
    /// What its keys begin with, before a colon.
    pub(super) space: String,
}

impl Ledger {
    /// Adds so many calls of a name to a minute (since 1970); returns how many that makes. Together with the time to
    /// live, or a crash in between would leave a key for ever. A connection being opened and the answer may each take
    /// `limit`.
    pub(super) async fn add(
        &self,
        limit: Duration,
        name: &[u8; 32],
        minute: u64,
        calls: u64,
    ) -> Result<u64, RedisError> {
        let key = key(&self.space, name, (minute % 60) as u16);
        let mut both = ::redis::pipe();
        both.atomic();
        both.cmd("INCRBY").arg(&key).arg(calls);
        both.cmd("EXPIRE").arg(&key).arg(LIFE_SECONDS).ignore();
        let (count,) = self.redis.pipeline_in(limit, &both).await?;
        Ok(count)
    }
}

/// Whether Redis may have added something all the same.
pub(super) fn may_have_counted(error: &RedisError) -> bool {
    matches!(error, RedisError::Silent { .. } | RedisError::Failed { .. })
}

/// As a kas 14.1 writes it; the minute is one of the hour. A modern kas gives the minute one byte, and so counts apart.
fn key(space: &str, name: &[u8; 32], minute: u16) -> Vec<u8> {
    let mut key = format!("{space}:").into_bytes();
    key.extend_from_slice(name);
    key.push(b':');
    key.extend_from_slice(&minute.to_le_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_one_of_the_contract() {
        let half = "d3584a2f708d3dc0bed6642bc8446cb8ac34c1f5c6236b4fae4a4a7bc5731ee1";
        let mut name = [0; 32];
        hex::decode_to_slice(half, &mut name).unwrap();
        let wanted = format!("6769746c61622d6b61733a6167656e745f6c696d69743a{half}3a0700");
        assert_eq!(hex::encode(key("gitlab-kas:agent_limit", &name, 7)), wanted);
    }
}
