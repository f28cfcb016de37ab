//! When to open the next stream after one that the broker ended with OK: brokers that are about to leave say so in its
//! trailers. Used by whoever keeps a stream open; it reads and computes, and never waits.

use postern_wire::metadata::retry_pushback;
use rand::Rng;
use std::time::Duration;
use tonic::{Streaming, metadata::MetadataMap};

/// Whatever the broker says, nobody stays away longer.
const LONGEST: Duration = Duration::from_secs(10);

/// The hint at the end of a stream that has ended with OK; `None` if there is none.
pub async fn after<T>(stream: &mut Streaming<T>) -> Option<Duration> {
    // Both came with the end: this does not wait.
    of(&stream.trailers().await.ok()??)
}

/// The hint among a stream's trailers.
pub fn of(trailers: &MetadataMap) -> Option<Duration> {
    hint(trailers).map(|pause| pause.mul_f64(rand::rng().random_range(0.8..=1.2)))
}

fn hint(trailers: &MetadataMap) -> Option<Duration> {
    retry_pushback(trailers).map(|pause| pause.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_wire::metadata::RETRY_PUSHBACK;

    #[test]
    fn hints_are_clamped_and_nonsense_is_none() {
        let table: &[(&'static str, Option<u64>)] = &[
            ("0", Some(0)),
            ("250", Some(250)),
            ("10000", Some(10_000)),
            ("10001", Some(10_000)),
            ("18446744073709551615", Some(10_000)),
            ("-1", None),
            ("", None),
            ("soon", None),
            ("1.5", None),
        ];
        for (said, meant) in table {
            let mut trailers = MetadataMap::new();
            trailers.insert(RETRY_PUSHBACK, said.parse().unwrap());
            assert_eq!(hint(&trailers), meant.map(Duration::from_millis), "{said:?}");
        }
        assert_eq!(hint(&MetadataMap::new()), None);
    }
}
