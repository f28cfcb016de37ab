//! The configuration file as written: kas' own schema, every key of both generations, plus ours (`embedded`,
//! `agent_wait`). Unknown keys are refused with their line. What the keys mean is `config.rs`' business.

use serde::Deserialize;

/// `"30s"`, `"0.5s"`: seconds with a unit, as protobuf's JSON form spells durations.
pub(super) type Span = String;

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $name { $(pub(super) $field: Option<$kind>),* }
    };
}

section!(File {
    gitlab: Gitlab,
    agent: Agent,
    observability: Observability,
    gitaly: Gitaly,
    redis: Redis,
    api: Api,
    private_api: Api,
    embedded: Embedded,
});
section!(
    /// Ours: identities and repositories without any other server.
    Embedded { identities_file: String }
);
section!(Gitlab {
    address: String,
    external_url: String,
    authentication_secret_file: String,
    ca_certificate_file: String,
    api_rate_limit: TokenBucket,
});
section!(TokenBucket { refill_rate_per_second: f64, bucket_size: u32 });
section!(Agent {
    listen: ListenAgent,
    configuration: AgentConfiguration,
    gitops: Gitops,
    info_cache_ttl: Span,
    info_cache_error_ttl: Span,
    redis_conn_info_ttl: Span,
    redis_conn_info_refresh: Span,
    redis_conn_info_gc: Span,
    kubernetes_api: KubernetesApi,
    remote_development: RemoteDevelopment,
});
section!(ListenAgent {
    network: String,
    address: String,
    websocket: bool,
    certificate_file: String,
    key_file: String,
    connections_per_token_per_minute: u32,
    max_connection_age: Span,
    listen_grace_period: Span,
});
section!(AgentConfiguration { poll_period: Span, max_configuration_file_size: u32 });
section!(Gitops {
    poll_period: Span,
    project_info_cache_ttl: Span,
    project_info_cache_error_ttl: Span,
    max_manifest_file_size: u32,
    max_total_manifest_file_size: u32,
    max_number_of_paths: u32,
    max_number_of_files: u32,
});
section!(RemoteDevelopment { poll_period: Span });
section!(KubernetesApi {
    listen: ListenKubernetesApi,
    url_path_prefix: String,
    allowed_agent_cache_ttl: Span,
    allowed_agent_cache_error_ttl: Span,
    agent_wait: Span,
});
section!(ListenKubernetesApi {
    network: String,
    address: String,
    certificate_file: String,
    key_file: String,
    listen_grace_period: Span,
    shutdown_grace_period: Span,
});
section!(Observability {
    usage_reporting_period: Span,
    listen: ListenObservability,
    prometheus: UrlPath,
    tracing: Tracing,
    sentry: Sentry,
    logging: Logging,
    google_profiler: GoogleProfiler,
    liveness_probe: UrlPath,
    readiness_probe: UrlPath,
});
section!(ListenObservability {
    network: String,
    address: String,
    certificate_file: String,
    key_file: String,
});
section!(UrlPath { url_path: String });
section!(Tracing {
    connection_string: String,
    otlp_endpoint: String,
    otlp_token_secret_file: String,
    otlp_ca_certificate_file: String,
});
section!(Sentry { dsn: String, environment: String });
section!(Logging { level: String, grpc_level: String });
section!(GoogleProfiler { enabled: bool, project_id: String, credentials_file: String, debug_logging: bool });
section!(Gitaly { global_api_rate_limit: TokenBucket, per_server_api_rate_limit: TokenBucket });
section!(Redis {
    server: RedisServer,
    sentinel: RedisSentinel,
    pool_size: u32,
    dial_timeout: Span,
    read_timeout: Span,
    write_timeout: Span,
    idle_timeout: Span,
    key_prefix: String,
    username: String,
    password_file: String,
    network: String,
    tls: RedisTls,
    database_index: u32,
});
section!(RedisServer { address: String });
section!(RedisSentinel {
    master_name: String,
    addresses: Vec<String>,
    sentinel_password_file: String,
});
section!(RedisTls { enabled: bool, certificate_file: String, key_file: String, ca_certificate_file: String });
section!(Api { listen: ListenApi });
section!(ListenApi {
    network: String,
    address: String,
    authentication_secret_file: String,
    certificate_file: String,
    key_file: String,
    ca_certificate_file: String,
    max_connection_age: Span,
    listen_grace_period: Span,
});

/// Keys that are accepted and not yet in force, as dotted paths; a section stands for all its keys.
pub(super) const NOT_IN_FORCE: &[&str] = &[
    "gitlab",
    "gitaly",
    "redis",
    "api",
    "private_api",
    "agent.listen.connections_per_token_per_minute",
    "agent.gitops",
    "agent.info_cache_ttl",
    "agent.info_cache_error_ttl",
    "agent.redis_conn_info_ttl",
    "agent.redis_conn_info_refresh",
    "agent.redis_conn_info_gc",
    "agent.remote_development",
    "agent.kubernetes_api.allowed_agent_cache_ttl",
    "agent.kubernetes_api.allowed_agent_cache_error_ttl",
    "observability.usage_reporting_period",
    "observability.tracing",
    "observability.sentry",
    "observability.google_profiler",
    "observability.logging.grpc_level",
    "observability.listen.certificate_file",
    "observability.listen.key_file",
];
