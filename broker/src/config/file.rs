//! The configuration file as written: kas' own schema, every key of both generations, plus ours (`embedded`, `events`,
//! `policies`, `agent_wait`, `trusted_proxies`, `redis.cluster`, `redis_lost`). Unknown keys are refused with their line. What the keys mean is
//! `meaning.rs`' business.

use postern_yaml::{Bare, Positive, Span, UrlPath, WordsOf, section, words};

words!(Network { Tcp = "tcp", Tcp4 = "tcp4", Tcp6 = "tcp6", Unix = "unix" });
words!(RedisNetwork { Tcp = "tcp", Unix = "unix" });
words!(RedisLost { Local = "local", Deny = "deny", Allow = "allow" });
words!(Level { Info = "info", Debug = "debug", Warn = "warn", Error = "error" });

section!(File {
    gitlab: Gitlab,
    agent: Agent,
    observability: Observability,
    gitaly: Gitaly,
    redis: Redis,
    api: Api,
    private_api: PrivateApi,
    embedded: Embedded,
    events: Events,
    policies: Policies,
});
section!(
    /// Ours: identities and repositories without any other server.
    Embedded { identities_file: String }
);
section!(
    /// Ours: documents that change while the broker runs.
    Policies { directory: String }
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
    info_cache_error_ttl: Positive,
    redis_conn_info_ttl: Positive,
    redis_conn_info_refresh: Positive,
    redis_conn_info_gc: Span,
    kubernetes_api: KubernetesApi,
    remote_development: RemoteDevelopment,
});
section!(ListenAgent {
    network: WordsOf<Network>,
    address: String,
    websocket: bool,
    certificate_file: String,
    key_file: String,
    connections_per_token_per_minute: u32,
    redis_lost: WordsOf<RedisLost>,
    max_connection_age: Positive,
    listen_grace_period: Span,
});
section!(AgentConfiguration { poll_period: Positive, max_configuration_file_size: u32 });
section!(Gitops {
    poll_period: Positive,
    project_info_cache_ttl: Span,
    project_info_cache_error_ttl: Positive,
    max_manifest_file_size: u32,
    max_total_manifest_file_size: u32,
    max_number_of_paths: u32,
    max_number_of_files: u32,
});
section!(RemoteDevelopment { poll_period: Positive });
section!(KubernetesApi {
    listen: ListenKubernetesApi,
    url_path_prefix: UrlPath,
    allowed_agent_cache_ttl: Span,
    allowed_agent_cache_error_ttl: Positive,
    agent_wait: Span,
    trusted_proxies: Vec<String>,
});
section!(ListenKubernetesApi {
    network: WordsOf<Network>,
    address: String,
    certificate_file: String,
    key_file: String,
    listen_grace_period: Span,
    shutdown_grace_period: Span,
});
section!(Observability {
    usage_reporting_period: Span,
    listen: ListenObservability,
    prometheus: Probe,
    tracing: Tracing,
    sentry: Sentry,
    logging: Logging,
    google_profiler: GoogleProfiler,
    liveness_probe: Probe,
    readiness_probe: Probe,
});
section!(ListenObservability {
    network: WordsOf<Network>,
    address: String,
    certificate_file: String,
    key_file: String,
});
section!(Probe { url_path: UrlPath });
section!(Tracing {
    connection_string: String,
    otlp_endpoint: String,
    otlp_token_secret_file: String,
    otlp_ca_certificate_file: String,
});
section!(Sentry { dsn: String, environment: String });
section!(Logging { level: WordsOf<Level>, grpc_level: WordsOf<Level> });
section!(GoogleProfiler { enabled: bool, project_id: String, credentials_file: String, debug_logging: bool });
section!(Gitaly { global_api_rate_limit: TokenBucket, per_server_api_rate_limit: TokenBucket });
section!(Redis {
    server: RedisServer,
    sentinel: RedisSentinel,
    cluster: RedisCluster,
    pool_size: u32,
    dial_timeout: Positive,
    read_timeout: Positive,
    write_timeout: Positive,
    idle_timeout: Positive,
    key_prefix: String,
    username: String,
    password_file: String,
    network: WordsOf<RedisNetwork>,
    tls: RedisTls,
    database_index: u32,
});
section!(RedisServer { address: String });
section!(RedisSentinel {
    master_name: String,
    addresses: Vec<String>,
    sentinel_password_file: String,
});
section!(
    /// Ours.
    RedisCluster { addresses: Vec<String> }
);
section!(RedisTls { enabled: bool, certificate_file: String, key_file: String, ca_certificate_file: String });
section!(Api { listen: ListenApi });
section!(ListenApi {
    network: WordsOf<Network>,
    address: String,
    authentication_secret_file: String,
    certificate_file: String,
    key_file: String,
    max_connection_age: Positive,
    listen_grace_period: Span,
});
section!(PrivateApi { listen: ListenPrivateApi });
section!(ListenPrivateApi {
    network: WordsOf<Network>,
    address: String,
    authentication_secret_file: String,
    certificate_file: String,
    key_file: String,
    ca_certificate_file: String,
    max_connection_age: Positive,
    listen_grace_period: Span,
});
section!(
    /// Ours: what agents do, told to browsers.
    Events { action_cable: ActionCable, server_sent_events: Bare<Nothing> }
);
section!(ActionCable { redis: Redis, channel_prefix: String });
section!(Nothing {});

/// Keys that are accepted and change nothing, as dotted paths; a section stands for all its keys.
pub(super) const NOT_IN_FORCE: &[&str] = &[
    "agent.redis_conn_info_gc",
    "agent.remote_development",
    "observability.tracing.connection_string",
    "observability.sentry",
    "observability.google_profiler",
    "observability.logging.grpc_level",
    "observability.listen.certificate_file",
    "observability.listen.key_file",
];

/// Those that change nothing unless GitLab is the provider.
pub(super) const ONLY_WITH_GITLAB: &[&str] = &[
    "gitaly",
    "agent.gitops",
    "agent.info_cache_ttl",
    "agent.info_cache_error_ttl",
    "agent.kubernetes_api.allowed_agent_cache_ttl",
    "agent.kubernetes_api.allowed_agent_cache_error_ttl",
    "observability.usage_reporting_period",
];

/// Those that change nothing without Redis.
pub(super) const ONLY_WITH_REDIS: &[&str] = &[
    "agent.listen.connections_per_token_per_minute",
    "agent.listen.redis_lost",
    "agent.redis_conn_info_ttl",
    "agent.redis_conn_info_refresh",
];
