//! One access line of an edge as the stream that it tells of.
//!
//! Under `simulate`. Reads what the edge writes today and, where it is there, what would make a simulation better.

use serde::Deserialize;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::net::{IpAddr, SocketAddr};

const TUNNEL: &str = "/gitlab.agent.reverse_tunnel.rpc.ReverseTunnel/Connect";
const SUBSCRIPTIONS: [&str; 2] = [
    "/gitlab.agent.agent_configuration.rpc.AgentConfiguration/GetConfiguration",
    "/gitlab.agent.gitops.rpc.Gitops/GetObjectsToSynchronize",
];

/// What is on a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Stream(Stream),
    /// Of the same program, about something else.
    Other,
}

/// A stream that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stream {
    /// In nanoseconds since 1970.
    pub(super) begin: u64,
    pub(super) end: u64,
    /// Of the line that told of it.
    pub(super) line: u64,
    /// The beginning of the token's hash, with zeros behind what is known.
    pub(super) token: Option<[u8; 32]>,
    pub(super) token_digits: u8,
    pub(super) client: Option<IpAddr>,
    pub(super) connection: Option<u64>,
    pub(super) agent: Option<u64>,
    pub(super) purpose: Purpose,
    /// From the client.
    pub(super) body: u64,
    /// Whether the edge refused it.
    pub(super) refused: bool,
}

/// As the edge tells streams apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Tunnel,
    Subscription,
    /// Any other call of an agent.
    Call,
    /// To an agent's cluster.
    KubernetesApi,
}

/// Everything that is of interest; all of it may be missing on lines about something else.
#[derive(Deserialize)]
struct Written<'a> {
    #[serde(borrow)]
    timestamp: Option<Cow<'a, str>>,
    #[serde(borrow)]
    target: Option<Cow<'a, str>>,
    #[serde(borrow)]
    message: Option<Cow<'a, str>>,
    #[serde(borrow)]
    client: Option<Cow<'a, str>>,
    #[serde(borrow)]
    route: Option<Cow<'a, str>>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    token: Option<Cow<'a, str>>,
    connection: Option<u64>,
    agent: Option<u64>,
    bytes_in: Option<u64>,
    duration_ms: Option<u64>,
    #[serde(borrow)]
    refused: Option<Cow<'a, str>>,
}

impl Line {
    /// `None`: nobody can read it, or it is an access line that says less than every one does.
    pub(super) fn read(text: &[u8], line: u64) -> Option<Self> {
        let written: Written<'_> = serde_json::from_slice(text).ok()?;
        if written.target.as_deref() != Some("access")
            || written.message.as_deref() != Some("stream finished")
        {
            return Some(Self::Other);
        }
        let end = time(&written.timestamp?)?;
        let duration = written.duration_ms?.saturating_mul(1_000_000);
        let (token, token_digits) = match &written.token {
            Some(token) => beginning(token).map(|(hash, digits)| (Some(hash), digits))?,
            None => (None, 0),
        };
        let purpose = match (&*written.route?, written.method.as_deref()) {
            ("agents", Some(TUNNEL)) => Purpose::Tunnel,
            ("agents", Some(method)) if SUBSCRIPTIONS.contains(&method) => Purpose::Subscription,
            ("agents", _) => Purpose::Call,
            ("kubernetes_api", _) => Purpose::KubernetesApi,
            _ => return None,
        };
        let client = match &written.client {
            Some(client) => Some(address(client)?.to_canonical()),
            None => None,
        };
        Some(Self::Stream(Stream {
            begin: end.saturating_sub(duration),
            end,
            line,
            token,
            token_digits,
            client,
            connection: written.connection,
            agent: written.agent,
            purpose,
            body: written.bytes_in.unwrap_or_default(),
            refused: written.refused.is_some(),
        }))
    }
}

impl Ord for Stream {
    /// In the order in which they began.
    fn cmp(&self, other: &Self) -> Ordering {
        (self.begin, self.line).cmp(&(other.begin, other.line))
    }
}

impl PartialOrd for Stream {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn address(text: &str) -> Option<IpAddr> {
    text.parse::<SocketAddr>().map(|address| address.ip()).or_else(|_| text.parse()).ok()
}

/// As many hexadecimal digits of a hash as there are.
fn beginning(text: &str) -> Option<([u8; 32], u8)> {
    let prefix = crate::rules::HexPrefix::parse(text)?;
    Some((prefix.filled(), prefix.digits()))
}

/// `2026-11-21T22:54:32.123456Z` in nanoseconds since 1970. Logs are in UTC.
fn time(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(number);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut time = time.splitn(3, ':').map(number);
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    if !(1970..2500).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 || fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let nanos = number(fraction)? * 10_u64.pow(9 - fraction.len() as u32);
    let seconds = (days(year, month, day) * 24 + hour) * 3600 + minute * 60 + second;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

fn number(digits: &str) -> Option<u64> {
    let plain = (1..=9).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit());
    digits.parse().ok().filter(|_| plain)
}

/// Since 1970, in the calendar of today.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let leap = |year: u64| {
        u64::from(year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)))
    };
    let before = |year: u64| year * 365 + year / 4 - year / 100 + year / 400;
    const MONTHS: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let in_year = MONTHS[month as usize - 1] + if month > 2 { leap(year) } else { 0 } + day - 1;
    before(year - 1) - before(1969) + in_year
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_logs_write_them() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1970-01-02T00:00:01.5Z", Some(86_401)),
            ("2000-02-29T12:00:00Z", Some(951_825_600)),
            ("2000-03-01T00:00:00Z", Some(951_868_800)),
            ("2026-11-21T22:54:32.123456Z", Some(1_795_301_672)),
            ("2100-03-01T00:00:00Z", Some(4_107_542_400)),
            ("2026-11-21 22:54:32Z", None),
            ("2026-11-21T22:54:32+01:00", None),
            ("2026-13-21T22:54:32Z", None),
            ("2026-00-21T22:54:32Z", None),
            ("2026-11-00T22:54:32Z", None),
            ("2026-11-21T24:00:00Z", None),
            ("2026-11-21T22:54:32.Z", None),
            ("2026-11-21T22:54:32.1234567891Z", None),
            ("99999999999999999999-11-21T22:54:32Z", None),
            ("", None),
        ] {
            assert_eq!(time(text).map(|nanos| nanos / 1_000_000_000), seconds, "{text}");
        }
        assert_eq!(time("1970-01-01T00:00:00.000001Z"), Some(1_000));
    }

    #[test]
    fn a_line_of_the_edge_is_a_stream() {
        let text = r#"{"timestamp":"1970-01-01T00:01:00.5Z","level":"INFO","message":"stream finished","connection":3,
            "client":"[2001:db8::1]:4000","route":"kubernetes_api","method":"GET","token":"ab12cd34","status":200,
            "bytes_in":10,"bytes_out":20,"duration_ms":500,"fault":"none","target":"access"}"#;
        let Some(Line::Stream(stream)) = Line::read(text.as_bytes(), 9) else { panic!("a stream") };
        assert_eq!((stream.begin, stream.end), (60_000_000_000, 60_500_000_000));
        assert_eq!(
            (stream.token.unwrap()[..5].to_vec(), stream.token_digits),
            (vec![0xab, 0x12, 0xcd, 0x34, 0], 8)
        );
        assert_eq!(stream.client, Some("2001:db8::1".parse().unwrap()));
        assert_eq!(
            (stream.purpose, stream.body, stream.connection, stream.line),
            (Purpose::KubernetesApi, 10, Some(3), 9)
        );
    }

    #[test]
    fn what_is_no_access_line_is_told_from_what_cannot_be_read() {
        for (text, expected) in [
            (
                r#"{"timestamp":"1970-01-01T00:01:00Z","message":"listening","target":"edge"}"#,
                Some(Line::Other),
            ),
            ("{}", Some(Line::Other)),
            ("[]", None),
            ("", None),
            ("not json", None),
            (r#"{"target":"access","message":"stream finished"}"#, None),
            (
                r#"{"target":"access","message":"stream finished","timestamp":"1970-01-01T00:01:00Z","duration_ms":1,"route":"x"}"#,
                None,
            ),
            (
                r#"{"target":"access","message":"stream finished","timestamp":"1970-01-01T00:01:00Z","duration_ms":1,"route":"agents","token":"XY"}"#,
                None,
            ),
            (
                r#"{"target":"access","message":"stream finished","timestamp":"1970-01-01T00:01:00Z","duration_ms":1,"route":"agents","client":"x"}"#,
                None,
            ),
        ] {
            assert_eq!(Line::read(text.as_bytes(), 1), expected, "{text}");
        }
    }
}
