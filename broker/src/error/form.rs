//! How an error document is written: what the caller's `Accept` asks for. JSON unless YAML is wanted more; never 406, since
//! a reader of something else is helped more by JSON than by nothing.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};

/// A way to write a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
}

/// Entries of `Accept` that are looked at.
const ENTRIES: usize = 32;

impl Form {
    /// What these headers ask for.
    pub fn wanted(headers: &HeaderMap) -> Self {
        let lines = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let (mut json, mut yaml) = (0.0_f32, 0.0_f32);
        for entry in lines.flat_map(|line| line.split(',')).take(ENTRIES) {
            let mut parts = entry.split(';').map(str::trim);
            let range = parts.next().unwrap_or_default().to_ascii_lowercase();
            let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
            match range.as_str() {
                "application/yaml" => yaml = yaml.max(quality),
                "application/json" | "application/*" | "*/*" => json = json.max(quality),
                _ => {}
            }
        }
        if yaml > json { Self::Yaml } else { Self::Json }
    }

    /// For `Content-Type`.
    pub fn media_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
        })
    }

    pub(super) fn write(self, document: &serde_json::Value) -> Bytes {
        let yaml = if self == Self::Yaml { serde_yaml::to_string(document).ok() } else { None };
        // JSON is YAML, too.
        yaml.unwrap_or_else(|| document.to_string()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_only_where_it_is_wanted_more() {
        for (accept, wanted) in [
            ("", Form::Json),
            ("*/*", Form::Json),
            ("application/yaml", Form::Yaml),
            ("application/yaml, application/json;q=0.5", Form::Yaml),
            ("application/yaml;q=0.1, */*", Form::Json),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Form::Json),
            ("application/vnd.kubernetes.protobuf", Form::Json),
            ("text/html,application/yaml;q=0", Form::Json),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(Form::wanted(&headers), wanted, "{accept}");
        }
        let written = Form::Yaml.write(&serde_json::json!({"code": 401, "message": "no: way"}));
        let read: serde_json::Value = serde_yaml::from_slice(&written).unwrap();
        assert_eq!(read["message"], "no: way");
        assert!(!written.starts_with(b"{"));
    }
}
