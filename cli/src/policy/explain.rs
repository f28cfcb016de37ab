//! `policy explain DIR`: what holds for an agent, a token or an address, and which line of which file says so. The fields
//! and their words are those of `postern-policies`; what no document says is the program's own configuration's to say.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use postern_policies::{Effective, Explained, Loaded, Rule, Subject};
use serde_json::{Value, json};

use super::table;

/// Of one field, in the text; JSON has more.
const SHOWN_DOCUMENTS: usize = 5;

/// For whom.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The directory with the YAML files
    directory: PathBuf,
    /// The agent's id
    #[arg(long, value_name = "ID")]
    agent: Option<u64>,
    /// The id of the project in which the agent is configured
    #[arg(long, value_name = "ID")]
    project: Option<u64>,
    /// SHA-256 of the token in hexadecimal, as in logs and selectors, or its beginning
    #[arg(long, value_name = "HEX")]
    token_hash: Option<TokenHash>,
    /// The client's address
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<IpAddr>,
    /// The agent's version, such as v16.11.2
    #[arg(long, value_name = "VERSION")]
    agent_version: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The beginning of a hash, with zeros for what is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TokenHash {
    bytes: [u8; 32],
    digits: usize,
}

impl FromStr for TokenHash {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "must be 1 to 64 hexadecimal digits: the SHA-256 of a token or its beginning";
        if text.is_empty() || text.len() > 64 {
            return Err(wrong);
        }
        let mut bytes = [0; 32];
        for (at, digit) in text.chars().enumerate() {
            let digit = digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()).ok_or(wrong)?;
            bytes[at / 2] |= if at % 2 == 0 { digit << 4 } else { digit };
        }
        Ok(TokenHash { bytes, digits: text.len() })
    }
}

pub(super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let Loaded { set, fingerprint, .. } = match super::read(&options.directory) {
        Ok(loaded) => loaded,
        Err(code) => return Ok(code),
    };
    let hash = options.token_hash;
    let subject = Subject {
        agent_id: options.agent,
        project_id: options.project,
        token_hash: hash.as_ref().map(|hash| &hash.bytes),
        client: options.ip,
        agent_version: options.agent_version.as_deref(),
    };
    let values = set.explain(&subject);
    if options.json {
        let document = json!({"fingerprint": fingerprint, "subject": subject_of(options), "values": values});
        super::say(format_args!("{document:#}\n"))?;
    } else {
        super::say(format_args!("{}", text(&values)))?;
    }
    if options.agent.or(options.project).is_some() || options.agent_version.is_some() {
        eprintln!(
            "postern: processes that do not know a part of this decide without it: an edge knows neither projects nor the \
             agent of an agent's own token"
        );
    }
    if let Some(hash) = hash.filter(|hash| hash.digits < 64) {
        let digits = table::count(hash.digits, "digit is", "digits are");
        eprintln!(
            "postern: {digits} given of the token's hash; zeros stand for the rest, also where a canary draws lots"
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn subject_of(options: &Options) -> Value {
    let hash = options.token_hash.map(|hash| {
        let digits = hash.bytes.iter().map(|byte| format!("{byte:02x}"));
        digits.collect::<String>()
    });
    json!({
        "agent": options.agent, "project": options.project, "token_hash": hash, "ip": options.ip,
        "agent_version": options.agent_version,
    })
}

fn text(values: &[Explained]) -> String {
    let mut text = String::new();
    let mut kind = None;
    for chunk in values.chunk_by(|one, next| one.kind == next.kind) {
        let mut rows = Vec::new();
        for one in chunk {
            rows.push(match (&one.value, &one.rule) {
                (Some(value), Some(rule)) => {
                    vec![format!("  {}", one.field), value.clone(), rule.to_string()]
                }
                _ => vec![
                    format!("  {}", one.field),
                    "-".to_owned(),
                    "the program's own configuration".to_owned(),
                ],
            });
            if let Some(Effective { value, rule }) = &one.reported {
                rows.push(vec!["    reported".to_owned(), value.clone(), rule.to_string()]);
            }
        }
        if kind.replace(chunk[0].kind).is_some() {
            text.push('\n');
        }
        text += &format!("{}\n{}", chunk[0].kind, table::columns(&rows));
        for one in chunk {
            for other in one.passed_over.iter().take(SHOWN_DOCUMENTS) {
                let Rule { name, file, line, .. } = &other.rule;
                let words =
                    format!("    {}: not {name} ({}:{line}): {}", one.field, file.display(), other.why);
                text += &table::plain(&words);
                text.push('\n');
            }
            let more = one.passed_over.len().saturating_sub(SHOWN_DOCUMENTS) + one.more_passed_over;
            if more > 0 {
                text += &format!("    {}: and not {more} more documents\n", one.field);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_hash_may_be_a_beginning_with_any_number_of_digits() {
        let hash: TokenHash = "aB1".parse().unwrap();
        assert_eq!((hash.bytes[..3].to_vec(), hash.digits), (vec![0xab, 0x10, 0], 3));
        assert_eq!("f".repeat(64).parse::<TokenHash>().unwrap().bytes, [0xff; 32]);
        for bad in ["", "xy", "+1", "f".repeat(65).as_str(), "\u{e4}b"] {
            assert!(bad.parse::<TokenHash>().is_err(), "{bad}");
        }
    }
}
