//! Policies as written: the shape of the YAML and nothing else. Numbers keep whatever range the author gave
//! them, so that `validate`, the next step, can complain about all of them at once. An unknown field is an
//! error, never ignored.

use serde::Deserialize;
use serde::de::IgnoredAny;

/// The only version of the documents so far.
pub(crate) const API_VERSION: &str = "postern/v1";

/// What every document has; read first, to know which kind to read it as.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Head {
    pub(crate) api_version: String,
    pub(crate) kind: String,
}

/// A whole document with the spec of one kind.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Document<S> {
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    pub(crate) metadata: Metadata,
    pub(crate) spec: S,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Metadata {
    pub(crate) name: String,
}

/// `kind: LimitPolicy`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct LimitSpec {
    #[serde(rename = "match", default)]
    pub(crate) _selector: Selector,
    pub(crate) requests_per_token: Option<Rate>,
}

/// `match`: empty means everybody, and empty is all there is so far.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Selector {}

/// Either `perMinute`, or `rate` (per second) and `burst`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Rate {
    pub(crate) per_minute: Option<i64>,
    pub(crate) rate: Option<i64>,
    pub(crate) burst: Option<i64>,
}
