//! Whom a document is for, and how a selector's single values are written.
//!
//! From the parser; to `index`, which finds the most specific one, and to `explain` and `diff`, which write it down again.

use crate::Subject;
use std::fmt;
use std::net::IpAddr;

/// More combinations of values than this, and one document is a mistake: see [`Selector::cells`].
pub(crate) const MAX_CELLS: usize = 10_000;

/// More combinations than this in all documents and fields together, and the policies as a whole are a mistake.
pub(crate) const MAX_CELLS_IN_ALL: usize = 250_000;

/// The longest version that a pattern may name, in bytes.
const MAX_VERSION: usize = 64;

/// The most dots in a version that a pattern may name.
pub(super) const MAX_DOTS: usize = 8;

/// What a document asks of its subjects: every dimension that is not empty must have the subject's value. Nothing asked is
/// everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Selector {
    pub(crate) agent_ids: Vec<u64>,
    pub(crate) token_hashes: Vec<HexPrefix>,
    pub(crate) project_ids: Vec<u64>,
    pub(crate) client_cidrs: Vec<Cidr>,
    pub(crate) agent_versions: Vec<VersionPattern>,
}

/// Whether a document decides, or only says what it would decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    Enforce,
    Report,
}

/// All of a document that is not its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) selector: Selector,
    pub(crate) mode: Mode,
    /// The share of tokens that it is for, of 10,000; at least 1. `None`: not a canary.
    pub(crate) canary: Option<u16>,
}

/// The first digits of a token's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HexPrefix {
    /// Zero beyond the digits.
    bytes: [u8; 32],
    /// 1 to 64.
    digits: u8,
}

/// A network. IPv4 networks in IPv6 notation are IPv4 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Cidr {
    address: IpAddr,
    length: u8,
}

/// Why a text is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CidrMistake {
    NotACidr,
    /// There are bits beyond the prefix; this network was probably meant.
    HostBits(Cidr),
}

/// A version of agents, or all that begin with it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct VersionPattern {
    /// Without a leading `v`. Of a whole version the last character is no dot; of a beginning it is one, or there is none.
    text: Box<str>,
}

impl Selector {
    /// How many combinations of one value of each dimension there are: what the document costs in memory. The parser
    /// refuses more than [`MAX_CELLS`].
    pub(crate) fn cells(&self) -> usize {
        [
            self.agent_ids.len(),
            self.token_hashes.len(),
            self.project_ids.len(),
            self.client_cidrs.len(),
            self.agent_versions.len(),
        ]
        .into_iter()
        .fold(1, |product: usize, values| product.saturating_mul(values.max(1)))
    }

    /// The first dimension that a subject does not have as asked, as the documents call it.
    pub(crate) fn mismatch_of(&self, subject: &Subject<'_>) -> Option<&'static str> {
        let asked = |values: usize, has: bool| values > 0 && !has;
        let client = subject.client.map(|client| client.to_canonical());
        let agent_ids = || subject.agent_id.is_some_and(|id| self.agent_ids.contains(&id));
        let token_hashes =
            || subject.token_hash.is_some_and(|hash| self.token_hashes.iter().any(|one| one.begins(hash)));
        let project_ids = || subject.project_id.is_some_and(|id| self.project_ids.contains(&id));
        let client_cidrs =
            || client.is_some_and(|client| self.client_cidrs.iter().any(|one| one.contains(client)));
        let agent_versions = || {
            subject
                .agent_version
                .is_some_and(|version| self.agent_versions.iter().any(|one| one.matches(version)))
        };
        if asked(self.agent_ids.len(), agent_ids()) {
            Some("agentIds")
        } else if asked(self.token_hashes.len(), token_hashes()) {
            Some("tokenHashes")
        } else if asked(self.project_ids.len(), project_ids()) {
            Some("projectIds")
        } else if asked(self.client_cidrs.len(), client_cidrs()) {
            Some("clientCidrs")
        } else if asked(self.agent_versions.len(), agent_versions()) {
            Some("agentVersions")
        } else {
            None
        }
    }
}

impl Header {
    /// Whether the document is for this share of tokens. Growing the share only adds tokens.
    pub(crate) fn takes(&self, lot: Option<u16>) -> bool {
        self.canary.is_none_or(|share| lot.is_some_and(|lot| lot < share))
    }
}

/// Where a token stands in the draw of canaries: 0 to 9,999. `None` without a token.
pub(crate) fn lot(subject: &Subject<'_>) -> Option<u16> {
    let (first, _) = subject.token_hash?.split_first_chunk::<8>()?;
    // Below 10,000.
    Some((u64::from_be_bytes(*first) % 10_000) as u16)
}

impl HexPrefix {
    /// Reads 1 to 64 hexadecimal digits in lower case.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || text.len() > 64 {
            return None;
        }
        let mut bytes = [0; 32];
        for (index, digit) in text.bytes().enumerate() {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            bytes[index / 2] |= if index % 2 == 0 { value << 4 } else { value };
        }
        Some(Self { bytes, digits: text.len() as u8 })
    }

    /// The first digits of a hash, at most 64.
    pub(crate) fn of(hash: &[u8; 32], digits: u8) -> Self {
        let digits = digits.min(64);
        let (whole, half) = (usize::from(digits / 2), digits % 2 == 1);
        let mut bytes = [0; 32];
        bytes[..whole].copy_from_slice(&hash[..whole]);
        if half {
            bytes[whole] = hash[whole] & 0xf0;
        }
        Self { bytes, digits }
    }

    pub(crate) fn digits(&self) -> u8 {
        self.digits
    }

    /// A hash that begins so, with zeros behind.
    pub(crate) fn filled(&self) -> [u8; 32] {
        self.bytes
    }

    pub(crate) fn begins(&self, hash: &[u8; 32]) -> bool {
        *self == Self::of(hash, self.digits)
    }
}

impl std::hash::Hash for HexPrefix {
    /// Hashes are even: their first bytes tell them apart well enough.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let first = self.bytes.first_chunk::<8>().expect("there are 32 bytes");
        state.write_u64(u64::from_le_bytes(*first) ^ (u64::from(self.digits) << 56));
    }
}

impl fmt::Display for HexPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for index in 0..usize::from(self.digits) {
            let byte = self.bytes[index / 2];
            write!(f, "{:x}", if index % 2 == 0 { byte >> 4 } else { byte & 0xf })?;
        }
        Ok(())
    }
}

impl Cidr {
    /// Reads `10.0.0.0/8`, `2001:db8::/32`, or a single address.
    ///
    /// # Errors
    /// It is no such text, or there are bits beyond the prefix.
    pub(crate) fn parse(text: &str) -> Result<Self, CidrMistake> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| CidrMistake::NotACidr)?;
        let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => bits,
            Some(length) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
                length.parse().ok().filter(|length| *length <= bits).ok_or(CidrMistake::NotACidr)?
            }
            Some(_) => return Err(CidrMistake::NotACidr),
        };
        let (address, length) = match address {
            IpAddr::V6(v6) => match (v6.to_ipv4_mapped(), length.checked_sub(96)) {
                (Some(v4), Some(length)) => (IpAddr::V4(v4), length),
                _ => (address, length),
            },
            IpAddr::V4(_) => (address, length),
        };
        let network = Self::of(address, length);
        if network.address == address { Ok(network) } else { Err(CidrMistake::HostBits(network)) }
    }

    /// The network of an address, which is not IPv4 in IPv6 notation, with a prefix no longer than it.
    pub(crate) fn of(address: IpAddr, length: u8) -> Self {
        let address = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32_u32.saturating_sub(length.into())).unwrap_or(0);
                IpAddr::V4((v4.to_bits() & mask).into())
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length.into())).unwrap_or(0);
                IpAddr::V6((v6.to_bits() & mask).into())
            }
        };
        Self { address, length }
    }

    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    pub(crate) fn length(&self) -> u8 {
        self.length
    }

    /// Whether an address, which is not IPv4 in IPv6 notation, is in it.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Self::of(address, self.length) == *self
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl VersionPattern {
    /// Reads `v16.11.2`, `16.11.*`, `16.*` or `*`. A star is the whole of the last part.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = without_v(text);
        let text = match text.strip_suffix('*') {
            Some(beginning) if beginning.is_empty() || beginning.ends_with('.') => beginning,
            Some(_) => return None,
            None if text.is_empty() || text.ends_with('.') => return None,
            None => text,
        };
        let known =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+' | b'_' | b'~');
        let dots = text.bytes().filter(|byte| *byte == b'.').count();
        (text.len() <= MAX_VERSION && dots <= MAX_DOTS && !text.starts_with('.') && text.bytes().all(known))
            .then(|| Self { text: text.into() })
    }

    /// A version that matches.
    pub(crate) fn example(&self) -> String {
        let end = if self.text.is_empty() || self.text.ends_with('.') { "0" } else { "" };
        format!("{}{end}", self.text)
    }

    /// What the index knows it by; a whole version and a beginning are never the same text.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn matches(&self, version: &str) -> bool {
        let version = without_v(version);
        match self.text.is_empty() || self.text.ends_with('.') {
            true => version.starts_with(&*self.text),
            false => *version == *self.text,
        }
    }
}

/// As versions are compared.
pub(super) fn without_v(version: &str) -> &str {
    version.strip_prefix('v').unwrap_or(version)
}

impl fmt::Display for VersionPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.text.is_empty() || self.text.ends_with('.') { "*" } else { "" };
        write!(f, "{}{star}", self.text)
    }
}

impl fmt::Display for Selector {
    /// `agentIds: [42], tokenHashes: [ab12]`, or `everybody`. Long lists are cut.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        list(f, &mut first, "agentIds", &self.agent_ids)?;
        list(f, &mut first, "tokenHashes", &self.token_hashes)?;
        list(f, &mut first, "projectIds", &self.project_ids)?;
        list(f, &mut first, "clientCidrs", &self.client_cidrs)?;
        list(f, &mut first, "agentVersions", &self.agent_versions)?;
        if first { f.write_str("everybody") } else { Ok(()) }
    }
}

fn list<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    first: &mut bool,
    name: &str,
    values: &[T],
) -> fmt::Result {
    const SHOWN: usize = 8;
    if values.is_empty() {
        return Ok(());
    }
    write!(f, "{}{name}: [", if std::mem::take(first) { "" } else { ", " })?;
    for (index, value) in values.iter().take(SHOWN).enumerate() {
        write!(f, "{}{value}", if index == 0 { "" } else { ", " })?;
    }
    match values.len().saturating_sub(SHOWN) {
        0 => f.write_str("]"),
        more => write!(f, ", and {more} more]"),
    }
}
