//! Whose rights a request runs with: the agent's own, or those of whom the broker names. Exactly one source may say so.
//! An `extra` that is not understood is refused: ignoring it would run the request with the agent's rights.

use super::limits::Caller;
use http::{HeaderMap, HeaderName, HeaderValue};
use postern_wire::proto::gitlab::agent::kubernetes_api::rpc::{HeaderExtra, ImpersonationConfig};
use prost::Message;

const EXTRA_TYPE: &str = "gitlab.agent.kubernetes_api.rpc.HeaderExtra";
const USER: HeaderName = HeaderName::from_static("impersonate-user");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const UID: HeaderName = HeaderName::from_static("impersonate-uid");
const PREFIX: &str = "impersonate-";

/// Why a request is not sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Refused {
    /// The text is that of kas' own agent; clients show it to people who search for it.
    #[error("nested impersonation is not supported - agent is already configured to impersonate an identity")]
    Nested,
    /// A newer broker wants something of this agent that it does not know.
    #[error("the broker sent an extra of unknown type {0:?}; update the agent")]
    UnknownExtra(String),
    /// The `extra` does not decode.
    #[error("the broker sent an unreadable impersonation")]
    Unreadable,
    /// The API server refuses these too, with words about headers that nobody wrote.
    #[error("the broker sent groups, a uid or an extra of an identity, but not its name")]
    Nameless,
    /// A name that no header can carry.
    #[error("the identity to impersonate holds characters that a header cannot carry")]
    IllegalName,
}

/// Adds the headers that impersonate whom `extra` names, and says who that is. `configured`: the agent's own credentials
/// impersonate already.
pub(super) fn apply(
    headers: &mut HeaderMap,
    extra: Option<&prost_types::Any>,
    configured: bool,
) -> Result<Caller, Refused> {
    let wanted = match extra {
        Some(extra) => decode(extra)?,
        None => None,
    };
    let by_caller = headers.keys().any(|name| name.as_str().starts_with(PREFIX));
    if usize::from(wanted.is_some()) + usize::from(by_caller) + usize::from(configured) > 1 {
        return Err(Refused::Nested);
    }
    let Some(wanted) = wanted else {
        return Ok(Caller::Agent);
    };
    if wanted.username.is_empty() {
        return Err(Refused::Nameless);
    }
    let mut add = |name: HeaderName, value: &str| -> Result<(), Refused> {
        headers.append(name, HeaderValue::try_from(value).map_err(|_| Refused::IllegalName)?);
        Ok(())
    };
    add(USER, &wanted.username)?;
    for group in &wanted.groups {
        add(GROUP, group)?;
    }
    if !wanted.uid.is_empty() {
        add(UID, &wanted.uid)?;
    }
    for extra in &wanted.extra {
        let name = extra_name(&extra.key).ok_or(Refused::IllegalName)?;
        for value in &extra.val {
            add(name.clone(), value)?;
        }
    }
    Ok(Caller::Named(wanted.username.into_boxed_str()))
}

fn decode(extra: &prost_types::Any) -> Result<Option<ImpersonationConfig>, Refused> {
    let name = extra.type_url.rsplit('/').next().unwrap_or_default();
    if name != EXTRA_TYPE {
        return Err(Refused::UnknownExtra(name.chars().take(100).collect()));
    }
    let extra = HeaderExtra::decode(extra.value.as_slice()).map_err(|_| Refused::Unreadable)?;
    Ok(extra.imp_config.filter(|config| *config != ImpersonationConfig::default()))
}

/// The header for one kind of extra information: what is not a token character is percent-encoded, as the API server
/// expects; so is a percent sign.
pub(super) fn extra_name(key: &str) -> Option<HeaderName> {
    let mut name = String::from("impersonate-extra-");
    for byte in key.bytes() {
        let token = byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
        match token {
            true => name.push(char::from(byte)),
            false => name.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderName::try_from(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_wire::proto::gitlab::agent::kubernetes_api::rpc::ExtraKeyVal;

    fn any(config: ImpersonationConfig) -> prost_types::Any {
        prost_types::Any {
            type_url: format!("type.googleapis.com/{EXTRA_TYPE}"),
            value: HeaderExtra { imp_config: Some(config) }.encode_to_vec(),
        }
    }

    fn ci_job() -> ImpersonationConfig {
        ImpersonationConfig {
            username: "gitlab:ci_job:1".into(),
            groups: vec!["gitlab:ci_job".into(), "gitlab:project:2".into()],
            uid: "u".into(),
            extra: vec![ExtraKeyVal { key: "agent.gitlab.com/id".into(), val: vec!["5".into()] }],
        }
    }

    #[test]
    fn the_identity_becomes_headers() {
        let mut headers = HeaderMap::new();
        let caller = apply(&mut headers, Some(&any(ci_job())), false).unwrap();
        assert_eq!(caller, Caller::Named("gitlab:ci_job:1".into()));
        assert_eq!(headers["impersonate-user"], "gitlab:ci_job:1");
        assert_eq!(headers.get_all("impersonate-group").iter().count(), 2);
        assert_eq!(headers["impersonate-uid"], "u");
        assert_eq!(headers["impersonate-extra-agent.gitlab.com%2fid"], "5");
    }

    #[test]
    fn only_one_source_may_impersonate() {
        let mut by_caller = HeaderMap::new();
        by_caller.insert("impersonate-user", HeaderValue::from_static("root"));
        assert_eq!(apply(&mut by_caller.clone(), None, false), Ok(Caller::Agent));
        assert_eq!(apply(&mut by_caller.clone(), Some(&any(ci_job())), false), Err(Refused::Nested));
        assert_eq!(apply(&mut by_caller, None, true), Err(Refused::Nested));
        assert_eq!(apply(&mut HeaderMap::new(), Some(&any(ci_job())), true), Err(Refused::Nested));
        let nobody = any(ImpersonationConfig::default());
        assert_eq!(apply(&mut HeaderMap::new(), Some(&nobody), true), Ok(Caller::Agent));
    }

    #[test]
    fn extras_keep_every_value_and_their_keys_are_encoded() {
        let extra = |key: &str, val: &[&str]| ExtraKeyVal {
            key: key.into(),
            val: val.iter().map(|val| (*val).to_owned()).collect(),
        };
        let extras = vec![
            extra("scopes", &["a", "b", "", "a"]),
            extra("example.com/a b%2f:Ä", &["x=y; ü"]),
            extra("scopes", &["c"]),
            extra("Upper", &["1"]),
            extra("!#$&'*+-.^_`|~", &["2"]),
            extra("without-values", &[]),
        ];
        let mut headers = HeaderMap::new();
        apply(&mut headers, Some(&any(ImpersonationConfig { extra: extras, ..ci_job() })), false).unwrap();
        let values = |name: &str| -> Vec<Vec<u8>> {
            headers
                .get_all(format!("impersonate-extra-{name}"))
                .iter()
                .map(|v| v.as_bytes().to_vec())
                .collect()
        };
        assert_eq!(values("scopes"), [&b"a"[..], b"b", b"", b"a", b"c"]);
        assert_eq!(values("example.com%2fa%20b%252f%3a%c3%84"), ["x=y; ü".as_bytes()]);
        assert_eq!(values("upper"), [b"1"]);
        assert_eq!(values("!#$&'*+-.^_`|~"), [b"2"]);
        assert!(values("without-values").is_empty());
    }

    #[test]
    fn an_identity_that_headers_cannot_carry_is_refused_whole() {
        let extra = vec![ExtraKeyVal { key: "k".into(), val: vec!["a\r\nImpersonate-User: root".into()] }];
        let table = [
            (ImpersonationConfig { username: String::new(), ..ci_job() }, Refused::Nameless),
            (ImpersonationConfig { username: "a\nb".into(), ..ci_job() }, Refused::IllegalName),
            (ImpersonationConfig { groups: vec!["a\0".into()], ..ci_job() }, Refused::IllegalName),
            (ImpersonationConfig { extra, ..ci_job() }, Refused::IllegalName),
        ];
        for (config, wanted) in table {
            assert_eq!(apply(&mut HeaderMap::new(), Some(&any(config)), false), Err(wanted));
        }
    }

    #[test]
    fn an_extra_that_is_not_understood_is_refused() {
        let unknown = prost_types::Any { type_url: "type.googleapis.com/x.Y".into(), value: vec![] };
        assert_eq!(
            apply(&mut HeaderMap::new(), Some(&unknown), false),
            Err(Refused::UnknownExtra("x.Y".into()))
        );
        let broken = prost_types::Any { value: vec![0xff], ..any(ci_job()) };
        assert_eq!(apply(&mut HeaderMap::new(), Some(&broken), false), Err(Refused::Unreadable));
    }
}
