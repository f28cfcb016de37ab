//! OpenTelemetry's own environment variables, for programs without a configuration file. Before it: the environment,
//! as a function. After it: `exporter`. Variables that mean nothing here are left alone.

use crate::endpoint::{self, Endpoint, Protocol};
use crate::exporter::{Service, Settings};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

/// Where spans go; `None` where nothing names a collector, or `OTEL_SDK_DISABLED` or `OTEL_TRACES_EXPORTER` say so.
///
/// # Errors
/// A variable that cannot be used, by its name and without its value where that is a secret.
pub fn settings(env: impl Fn(&str) -> Option<String>, service: Service) -> Result<Option<Settings>, String> {
    let given = |name: &str| env(name).filter(|value| !value.trim().is_empty());
    // The variable of the traces alone comes first.
    let of = |name: &str| {
        given(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
            .or_else(|| given(&format!("OTEL_EXPORTER_OTLP_{name}")))
    };
    let off = given("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || given("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
    if off {
        return Ok(None);
    }
    let protocol = match of("PROTOCOL") {
        None => Protocol::Http,
        Some(text) => Protocol::parse(text.trim()).ok_or_else(|| {
            format!("OTEL_EXPORTER_OTLP_PROTOCOL is {text:?}; grpc and http/protobuf are known")
        })?,
    };
    let (name, endpoint) = match (given(TRACES_ENDPOINT), given(ENDPOINT)) {
        (Some(url), _) => (TRACES_ENDPOINT, Endpoint::exactly(url.trim(), protocol)),
        (None, Some(url)) => (ENDPOINT, Endpoint::parse(url.trim(), protocol)),
        (None, None) => return Ok(None),
    };
    let endpoint = endpoint.map_err(|error| format!("{name}: {error}"))?;
    let headers = of("HEADERS").map(|text| endpoint::headers_of_variable(&text)).transpose();
    let headers = headers.map_err(|problem| format!("OTEL_EXPORTER_OTLP_HEADERS: {problem}"))?;
    Ok(Some(Settings {
        endpoint,
        headers: headers.unwrap_or_default(),
        ca_file: of("CERTIFICATE").map(Into::into),
        service,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        let service = Service { name: "test", version: "0", instance: String::new(), attributes: Vec::new() };
        settings(
            |name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()),
            service,
        )
    }

    #[test]
    fn the_standard_names_are_read_and_those_of_traces_come_first() {
        let both = [(ENDPOINT, "http://a:4318"), (TRACES_ENDPOINT, "http://b:4318/own")];
        assert_eq!(read(&both).unwrap().unwrap().endpoint.to_string(), "http://b:4318");
        let settings = read(&[
            (ENDPOINT, "https://a"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s3cr3t"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ]);
        let settings = settings.unwrap().unwrap();
        assert_eq!(settings.endpoint.protocol(), Protocol::Grpc);
        assert_eq!(settings.ca_file.as_deref(), Some("/ca.pem".as_ref()));
        assert_eq!(settings.headers[0].1, "s3cr3t");
        assert!(!format!("{settings:?}").contains("s3cr3t"));
    }

    #[test]
    fn without_a_collector_or_where_it_is_turned_off_nothing_is_sent() {
        for variables in [
            &[][..],
            &[(ENDPOINT, " ")],
            &[(ENDPOINT, "http://a"), ("OTEL_SDK_DISABLED", "true")],
            &[(ENDPOINT, "http://a"), ("OTEL_TRACES_EXPORTER", "none")],
        ] {
            assert!(read(variables).unwrap().is_none(), "{variables:?}");
        }
    }

    #[test]
    fn a_mistake_names_its_variable_and_no_secret() {
        for (variables, wanted) in [
            (&[(ENDPOINT, "a:4318")][..], ENDPOINT),
            (&[(ENDPOINT, "http://a"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")], "PROTOCOL"),
            (&[(ENDPOINT, "http://a"), ("OTEL_EXPORTER_OTLP_HEADERS", "s3cr3t")], "HEADERS"),
        ] {
            let problem = read(variables).unwrap_err();
            assert!(problem.contains(wanted) && !problem.contains("s3cr3t"), "{problem}");
        }
    }
}
