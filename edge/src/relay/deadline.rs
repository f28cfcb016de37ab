//! When a call must be over: what its `grpc-timeout` says, and a second for the broker to say so itself.
//!
//! Under `relay`. Costs nothing for streams that have none, as tunnels.

use http::{HeaderMap, HeaderName};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Sleep, sleep};

static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The broker knows the deadline too, and its answer says more than ours.
const GRACE: Duration = Duration::from_secs(1);

pub(super) struct Deadline(Pin<Box<Sleep>>);

impl Deadline {
    /// Begins now. `None` without a limit, or with one that nobody can read: the broker will refuse that.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let limit = parse(headers.get(&GRPC_TIMEOUT)?.as_bytes())?;
        Some(Self(Box::pin(sleep(limit + GRACE))))
    }

    /// Ready once it has passed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

/// At most eight digits and a unit.
fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |number: u64, digit| number * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_at_most_eight_digits_and_a_unit() {
        for (text, millis) in
            [("4998675u", Some(4998)), ("1S", Some(1000)), ("99999999H", Some(359_999_996_400_000))]
        {
            assert_eq!(parse(text.as_bytes()).map(|limit| limit.as_millis()), millis, "{text}");
        }
        for text in ["", "S", "1", "123456789S", "-1S", "1.5S", "1s", " 1S"] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_passes_a_second_after_the_callers_own() {
        let mut headers = HeaderMap::new();
        assert!(Deadline::of(&headers).is_none());
        headers.insert("grpc-timeout", http::HeaderValue::from_static("2S"));
        let begin = tokio::time::Instant::now();
        let mut deadline = Deadline::of(&headers).unwrap();
        std::future::poll_fn(|cx| deadline.poll(cx)).await;
        assert_eq!(begin.elapsed().as_millis() / 10, 300);
    }
}
