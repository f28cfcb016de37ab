//! Traces of requests to the Kubernetes API: which are recorded, and where their spans go. Before it: the
//! configuration and a request's `traceparent`. After it: `kubernetes_api/account.rs`, which makes the spans, and the
//! collector. Who calls this broker is a program of ours, an edge, which has decided already: its word holds.

use crate::config::TracingConfig;
use anyhow::Context as _;
use postern_telemetry::{
    Context, Exporter, Keeper, Kind, RequestId, Sampler, Service, Settings, Span, Value, endpoint,
    sampling::Decided,
};
use std::{borrow::Cow, path::Path, time::SystemTime};

/// What GitLab's access tokens begin with; they travel in a header of their own, as kas has it.
const ACCESS_TOKEN: &str = "glpat-";

/// Chooses what is traced, and takes the spans.
#[derive(Clone, Debug)]
pub struct Tracing {
    exporter: Exporter,
    sampler: Sampler,
}

impl Tracing {
    /// Reads the token and the CAs. `env` is the environment: OpenTelemetry's variables say what is sampled.
    pub fn open(
        config: &TracingConfig,
        version: &'static str,
        env: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<(Self, Keeper)> {
        let sampler = Sampler::from_env(env).map_err(anyhow::Error::msg)?;
        let headers = config.token_file.as_deref().map(credentials).transpose()?;
        let settings = Settings {
            endpoint: config.endpoint.clone(),
            headers: headers.into_iter().collect(),
            ca_file: config.ca_certificate_file.clone(),
            service: Service {
                name: "gitlab-kas",
                version,
                instance: RequestId::random().to_string(),
                attributes: Vec::new(),
            },
        };
        let (exporter, keeper) = Exporter::new(settings)?;
        Ok((Self { exporter, sampler }, keeper))
    }

    /// Decides about one request; `None`: it is not traced.
    pub fn begin(&self, came: Option<Context>) -> Option<Recording> {
        let server = self.sampler.ours(came)?;
        Some(Recording { exporter: self.exporter.clone(), server, start: SystemTime::now(), tunnel: None })
    }
}

fn credentials(file: &Path) -> anyhow::Result<(http::HeaderName, http::HeaderValue)> {
    let problem = || format!("observability.tracing.otlp_token_secret_file {}", file.display());
    let token = std::fs::read_to_string(file).with_context(problem)?;
    let token = token.trim();
    let header = if token.starts_with(ACCESS_TOKEN) {
        endpoint::header("private-token", token)
    } else {
        endpoint::header("authorization", &format!("Bearer {token}"))
    };
    header.context("holds something that is no token").with_context(problem)
}

/// A request that is traced: its own span, and the one of the tunnel that it takes.
#[derive(Debug)]
pub struct Recording {
    exporter: Exporter,
    server: Decided,
    start: SystemTime,
    tunnel: Option<(Context, SystemTime)>,
}

impl Recording {
    /// The trace and this broker's span of it.
    pub fn context(&self) -> Context {
        self.server.context
    }

    /// The search for a tunnel begins; what is returned is for the agent.
    pub fn through_tunnel(&mut self) -> Context {
        let context = self.server.context.child();
        self.tunnel = Some((context, SystemTime::now()));
        context
    }

    /// The request is over.
    pub fn finish(
        self,
        name: &'static str,
        attributes: Vec<(&'static str, Value)>,
        tunnel_attributes: Vec<(&'static str, Value)>,
        error: Option<String>,
    ) {
        let end = SystemTime::now();
        let error = error.map(Cow::from);
        if let Some((context, start)) = self.tunnel {
            self.exporter.export(Span {
                name: "kas tunnel".into(),
                kind: Kind::Client,
                context,
                parent: Some(self.server.context.span),
                start,
                end,
                attributes: tunnel_attributes,
                error: error.clone(),
            });
        }
        self.exporter.export(Span {
            name: name.into(),
            kind: Kind::Server,
            context: self.server.context,
            parent: self.server.parent,
            start: self.start,
            end,
            attributes,
            error,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_travel_as_kas_has_them_and_are_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        for (token, name, value) in [
            ("s3cr3t\n", "authorization", "Bearer s3cr3t"),
            ("glpat-s3cr3t\n", "private-token", "glpat-s3cr3t"),
        ] {
            std::fs::write(&file, token).unwrap();
            let header = credentials(&file).unwrap();
            assert_eq!((header.0.as_str(), header.1.as_bytes()), (name, value.as_bytes()));
            assert!(!format!("{header:?}").contains("s3cr3t"));
        }
        std::fs::write(&file, "s3cr3t\nmore").unwrap();
        let error = format!("{:#}", credentials(&file).unwrap_err());
        assert!(error.contains("otlp_token_secret_file") && !error.contains("s3cr3t"), "{error}");
    }
}
