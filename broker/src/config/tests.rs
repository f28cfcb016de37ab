//! Samples, defaults, and the words of every kind of mistake.

use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("/etc/kas/kas.yaml")).map_err(|error| error.to_string())
}

#[test]
fn defaults_are_those_of_kas() {
    let config = parse("embedded: {identities_file: ids.yaml}").unwrap();
    assert_eq!(config.agents.listen.address.to_string(), "127.0.0.1:8150");
    assert_eq!(config.observability.listen.address.to_string(), "127.0.0.1:8151");
    assert!(
        matches!(config.provider, Provider::Embedded { identities_file } if identities_file == Path::new("/etc/kas/ids.yaml"))
    );
    assert!(config.kubernetes_api.is_none());
    assert!(!config.agents.websocket);
    assert_eq!(config.policies, None);
    let config = parse("embedded: {identities_file: ids.yaml}\npolicies: {directory: p}").unwrap();
    assert_eq!(config.policies.as_deref(), Some(Path::new("/etc/kas/p")), "relative to the file");
}

#[test]
fn an_empty_kubernetes_api_section_turns_it_on() {
    let with = |section: &str| {
        parse(&format!("embedded: {{identities_file: i}}\nagent:\n  kubernetes_api:{section}"))
    };
    let api = with(" {}").unwrap().kubernetes_api.unwrap();
    assert_eq!(api.listen.address.to_string(), "0.0.0.0:8154");
    assert_eq!(api.url_path_prefix, "/");
    assert_eq!(api.agent_wait, Duration::from_secs(20));
    assert!(with("").unwrap().kubernetes_api.is_none(), "null is as good as absent, as in kas");
    assert_eq!(api.trusted_proxies, Proxies::default());
    let api = with("\n    trusted_proxies: [10.0.0.0/8, '::1']").unwrap().kubernetes_api.unwrap();
    assert_eq!(api.trusted_proxies, Proxies::parse(&["10.0.0.0/8", "::1"]).unwrap());
    let mistaken = with("\n    trusted_proxies: [edge]").unwrap_err().to_string();
    assert!(
        mistaken.contains("trusted_proxies") && mistaken.contains("\"edge\" is no network"),
        "{mistaken}"
    );
    let api = with("\n    url_path_prefix: /k8s").unwrap().kubernetes_api.unwrap();
    assert_eq!(api.url_path_prefix, "/k8s/");
}

fn gitlab(config: Config) -> Box<GitLabConfig> {
    match config.provider {
        Provider::GitLab(gitlab) => gitlab,
        other => panic!("{other:?}"),
    }
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn files(certificate: &str, key: &str) -> Option<CertFiles> {
    let file = |name| Path::new("/etc/kas").join(name);
    Some(CertFiles { certificate: file(certificate), key: file(key) })
}

#[test]
fn a_minimal_file_of_14_1_has_the_defaults_of_the_table() {
    let config = parse(include_str!("samples/kas-14.1-minimal.yaml")).unwrap();
    assert!(config.not_in_force.is_empty(), "{:?}", config.not_in_force);
    assert_eq!(config.agents.poll_period, seconds(20));
    assert_eq!(config.agents.max_configuration_file_size, 131_072);
    assert_eq!(config.agents.connections_per_token_per_minute, 40_000);
    assert_eq!(config.agents.redis_lost, RedisLost::Local);
    assert_eq!(config.usage_reporting_period, Some(seconds(60)));
    assert!(config.api.is_none() && config.redis.is_none() && config.events.is_none());
    let gitlab = gitlab(config);
    assert_eq!(gitlab.address.as_str(), "https://gitlab.example.com/");
    assert_eq!(gitlab.authentication_secret_file, Path::new("/etc/kas/secret"));
    assert_eq!(gitlab.rate, Rate { per_second: 10.0, burst: 50 });
    assert_eq!(gitlab.gitaly_rate, Rate { per_second: 10.0, burst: 50 });
    assert_eq!(gitlab.gitaly_rate_per_server, Rate { per_second: 5.0, burst: 10 });
    assert_eq!(gitlab.gitops_poll_period, seconds(20));
    assert_eq!(gitlab.manifests, ManifestLimits::default());
    let times = |settings: gitlab::cache::Settings| (settings.ok.as_secs(), settings.error.as_secs());
    assert_eq!(times(gitlab.periods.agents), (300, 60));
    assert_eq!(times(gitlab.periods.projects), (300, 60));
    assert_eq!(times(gitlab.periods.callers), (60, 10));
}

#[test]
fn a_full_file_of_14_1_is_in_force_or_named() {
    let config = parse(include_str!("samples/kas-14.1-full.yaml")).unwrap();
    assert_eq!(
        config.not_in_force,
        [
            "agent.redis_conn_info_gc",
            "observability.tracing.connection_string",
            "observability.sentry",
            "observability.google_profiler",
        ]
    );
    assert_eq!(config.agents.listen.address.to_string(), "0.0.0.0:18150");
    assert_eq!(config.agents.listen.tls, files("agent.crt", "agent.key"));
    assert!(config.agents.websocket);
    assert_eq!(config.agents.connections_per_token_per_minute, 200);
    assert_eq!(config.agents.max_connection_age, seconds(900));
    assert_eq!(config.agents.poll_period, seconds(30));
    assert_eq!(config.agents.max_configuration_file_size, 65_536);
    let kubernetes_api = config.kubernetes_api.as_ref().unwrap();
    assert_eq!(kubernetes_api.listen.address.to_string(), "[::]:18154");
    assert_eq!(kubernetes_api.url_path_prefix, "/k8s-proxy/");
    assert_eq!(config.observability.listen.address.to_string(), "127.0.0.1:18151");
    assert_eq!(config.observability.level, "warn");
    assert_eq!(config.observability.metrics_path, "/m");
    assert_eq!(config.usage_reporting_period, None);
    let api = config.api.as_ref().unwrap();
    assert_eq!(api.listen.address, ListenAddress::Unix("/run/kas/api.sock".into()));
    assert_eq!(api.listen.tls, files("rails.crt", "rails.key"));
    assert_eq!(api.authentication_secret_file, Path::new("/etc/kas/api-secret"));
    assert_eq!(api.max_connection_age, seconds(100));
    let private_api = config.private_api.as_ref().unwrap();
    assert_eq!(private_api.listen.address.to_string(), "0.0.0.0:8155");
    assert_eq!(private_api.listen.tls, files("private.crt", "private.key"));
    assert_eq!(private_api.authentication_secret_file, Path::new("/etc/kas/private-secret"));
    assert_eq!(private_api.ca_certificate_file, None);
    assert_eq!(private_api.max_connection_age, seconds(200));
    assert_eq!(config.redis_conn_info, ConnInfo { ttl: seconds(200), refresh: seconds(150) });
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert_eq!(
        config.redis,
        Some(redis::Config {
            servers: redis::Servers::Sentinel {
                master_name: "main".to_owned(),
                addresses: vec!["sentinel-1:26379".to_owned(), "sentinel-2:26379".to_owned()],
                password_file: Some("/etc/kas/sentinel-password".into()),
            },
            username: Some("kas".to_owned()),
            password_file: Some("/etc/kas/redis-password".into()),
            tls: Some(redis::Tls {
                certificate: files("redis.crt", "redis.key"),
                ca_certificate_file: Some("/etc/kas/redis-ca.pem".into()),
            }),
            database: 0,
            key_prefix: "kas".to_owned(),
            dial_timeout: seconds(2),
            read_timeout: seconds(3),
            write_timeout: seconds(4),
            pool_size: 6,
            idle_timeout: seconds(51),
        })
    );
    let gitlab = gitlab(config);
    assert_eq!(gitlab.address.as_str(), "https://gitlab.example.com/gitlab");
    assert_eq!(gitlab.ca_certificate_file.as_deref(), Some(Path::new("/etc/kas/ca.pem")));
    assert_eq!(gitlab.rate, Rate { per_second: 20.5, burst: 60 });
    assert_eq!(gitlab.gitaly_rate, Rate { per_second: 11.0, burst: 51 });
    assert_eq!(gitlab.gitaly_rate_per_server, Rate { per_second: 6.0, burst: 11 });
    assert_eq!(gitlab.gitops_poll_period, seconds(40));
    let limits = ManifestLimits { paths: 3, files: 4, file_bytes: 1000, total_bytes: 2000 };
    assert_eq!(gitlab.manifests, limits);
    let times = |settings: gitlab::cache::Settings| (settings.ok.as_secs(), settings.error.as_secs());
    assert_eq!(times(gitlab.periods.agents), (0, 12));
    assert_eq!(times(gitlab.periods.projects), (100, 11));
    assert_eq!(times(gitlab.periods.callers), (50, 5));
}

#[test]
fn a_file_of_a_later_kas_is_understood() {
    let config = parse(include_str!("samples/kas-modern-full.yaml")).unwrap();
    assert_eq!(config.listen_grace, seconds(7));
    assert_eq!(config.shutdown_grace, seconds(3600));
    let redis = config.redis.as_ref().unwrap();
    assert_eq!(redis.servers, redis::Servers::Unix("/run/redis.sock".into()));
    assert_eq!((redis.database, &*redis.key_prefix), (5, "gitlab-kas"));
    assert_eq!(
        (redis.dial_timeout, redis.read_timeout, redis.write_timeout),
        (seconds(5), seconds(1), seconds(1))
    );
    assert_eq!(config.api.as_ref().unwrap().listen.address.to_string(), "127.0.0.1:8153");
    let private_api = config.private_api.as_ref().unwrap();
    assert_eq!(private_api.listen.address.to_string(), "127.0.0.1:8155");
    assert_eq!(private_api.ca_certificate_file.as_deref(), Some(Path::new("/etc/kas/private-ca.pem")));
    assert_eq!(private_api.max_connection_age, seconds(7200));
    assert_eq!(config.redis_conn_info, ConnInfo { ttl: seconds(300), refresh: seconds(240) });
    assert_eq!(gitlab(config).external_url.unwrap().as_str(), "https://gitlab.example.com/");
}

#[test]
fn a_cluster_is_named_by_some_of_its_nodes() {
    let text =
        "embedded: {identities_file: i}\nredis: {cluster: {addresses: ['a:1', 'b:2']}, database_index: 0}\n";
    let redis = parse(text).unwrap().redis.unwrap();
    assert_eq!(redis.servers, redis::Servers::Cluster(vec!["a:1".to_owned(), "b:2".to_owned()]));
    assert_eq!((redis.pool_size, redis.idle_timeout), (5, seconds(50)));
}

#[test]
fn events_are_told_where_the_file_says() {
    let text = "embedded: {identities_file: i}\napi: {listen: {authentication_secret_file: s}}\nevents:\n  \
                server_sent_events: {}\n  action_cable: {channel_prefix: p, redis: {server: {address: 'r:6379'}}}\n";
    let events = parse(text).unwrap().events.unwrap();
    let cable = events.action_cable.unwrap();
    assert!(events.server_sent_events);
    assert_eq!(cable.channel_prefix.as_deref(), Some("p"));
    assert_eq!(cable.redis.servers, redis::Servers::Tcp("r:6379".to_owned()));
}

#[test]
fn keys_that_change_nothing_with_this_provider_are_named() {
    let text = "embedded: {identities_file: i}\ngitaly: {}\nagent: {info_cache_ttl: 5s, listen: \
                {connections_per_token_per_minute: 5, redis_lost: deny}}\n";
    let config = parse(text).unwrap();
    let wanted = [
        "gitaly",
        "agent.info_cache_ttl",
        "agent.listen.connections_per_token_per_minute",
        "agent.listen.redis_lost",
    ];
    assert_eq!(
        (config.not_in_force, config.agents.redis_lost),
        (wanted.map(str::to_owned).to_vec(), RedisLost::Deny)
    );
}

#[test]
fn brokers_that_cannot_find_each_other_are_worth_a_warning() {
    let (redis, private_api) =
        ("redis: {server: {address: 'r:1'}}\n", "private_api: {listen: {authentication_secret_file: s}}\n");
    for (sections, begin) in [
        (String::new(), None),
        (format!("{redis}{private_api}"), None),
        (
            redis.to_owned(),
            Some("redis is there and private_api is not: requests cannot be routed between brokers"),
        ),
        (private_api.to_owned(), Some("private_api is there and redis is not: requests cannot be routed")),
    ] {
        let config = parse(&format!("embedded: {{identities_file: i}}\n{sections}")).unwrap();
        assert_eq!(config.warnings.len(), usize::from(begin.is_some()), "{sections}");
        assert!(begin.is_none_or(|begin| config.warnings[0].starts_with(begin)), "{:?}", config.warnings);
    }
}

/// A file with one mistake and what is said about it, after the name of the file.
const MISTAKES: &[(&str, &str)] = &[
    ("agnet: {}", "2:1: agnet: unknown key; did you mean `agent`?"),
    ("agent: {listen: {adress: x}}", "2:18: agent.listen.adress: unknown key; did you mean `address`?"),
    (
        "api: {lizard: 1, listen: {authentication_secret_file: f}}",
        "2:7: api.lizard: unknown key; the keys here are listen",
    ),
    ("agent: []", "2:8: agent: a list; a mapping of keys to values is wanted"),
    (
        "agent: {listen: {websocket: maybe}}",
        "2:29: agent.listen.websocket: \"maybe\"; true or false is wanted",
    ),
    (
        "agent: {listen: {address: 8150}}",
        "2:27: agent.listen.address: 8150 is a number; text is wanted: put quotes around it, \"8150\"",
    ),
    (
        "redis: {server: {address: 'r:1'}, username: true}",
        "2:45: redis.username: true is a truth value; text is wanted: put quotes around it, \"true\"",
    ),
    (
        "agent: {listen: {address: nowhere}}",
        "2:27: agent.listen.address: \"nowhere\"; an address such as 127.0.0.1:8150 or :8150 is wanted",
    ),
    (
        "agent: {listen: {network: tpc}}",
        "2:27: agent.listen.network: \"tpc\"; one of tcp, tcp4, tcp6, unix is wanted; did you mean `tcp`?",
    ),
    (
        "agent: {listen: {network: tcp6, address: '127.0.0.1:1'}}",
        "2:42: agent.listen.address: \"127.0.0.1:1\"; tcp6 wants an IPv6 address",
    ),
    (
        "agent: {listen: {certificate_file: c}}",
        "2:36: agent.listen.certificate_file: key_file beside it is missing; both or none are wanted",
    ),
    (
        "agent: {configuration: {poll_period: 5m}}",
        "2:38: agent.configuration.poll_period: \"5m\"; a duration in seconds such as 30s or 0.5s is wanted",
    ),
    (
        "agent: {configuration: {poll_period: 30}}",
        "2:38: agent.configuration.poll_period: 30; a duration in seconds such as 30s or 0.5s is wanted",
    ),
    (
        "agent: {listen: {max_connection_age: 0s}}",
        "2:38: agent.listen.max_connection_age: \"0s\"; a duration longer than 0s is wanted",
    ),
    (
        "agent: {configuration: {max_configuration_file_size: -1}}",
        "2:54: agent.configuration.max_configuration_file_size: -1; a whole number from 0 to 4294967295 is wanted",
    ),
    (
        "gitaly: {global_api_rate_limit: {refill_rate_per_second: -0.5}}",
        "2:58: gitaly.global_api_rate_limit.refill_rate_per_second: -0.5; a number not below 0 is wanted",
    ),
    (
        "observability: {logging: {level: loud}}",
        "2:34: observability.logging.level: \"loud\"; one of info, debug, warn, error is wanted",
    ),
    (
        "observability: {prometheus: {url_path: metrics}}",
        "2:40: observability.prometheus.url_path: \"metrics\"; a path that begins with a slash is wanted",
    ),
    (
        "agent: {redis_conn_info_refresh: 300s}",
        "2:34: agent.redis_conn_info_refresh: 300s; less than agent.redis_conn_info_ttl (300s) is wanted",
    ),
    (
        "agent: {redis_conn_info_ttl: 240s}",
        "2:30: agent.redis_conn_info_ttl: 240s; more than agent.redis_conn_info_refresh (240s) is wanted",
    ),
    (
        "agent: {redis_conn_info_refresh: 0s}",
        "2:34: agent.redis_conn_info_refresh: \"0s\"; a duration longer than 0s is wanted",
    ),
    (
        "private_api: {listen: {network: tcp}}",
        "2:15: private_api.listen.authentication_secret_file: it is missing; a file with the secret that all brokers \
         share is wanted",
    ),
    (
        "api: {}",
        "2:1: api.listen.authentication_secret_file: it is missing; a file with the secret that GitLab signs its \
         JWTs with is wanted",
    ),
    (
        "redis: {}",
        "2:1: redis: no server; one is wanted: server.address, or sentinel.master_name and sentinel.addresses, or \
         cluster.addresses",
    ),
    (
        "redis: {server: {address: 'r:1'}, sentinel: {master_name: m, addresses: ['s:1']}}",
        "2:1: redis: server and sentinel; one is wanted: server.address, or sentinel.master_name and \
         sentinel.addresses, or cluster.addresses",
    ),
    (
        "redis: {cluster: {addresses: []}}",
        "2:30: redis.cluster.addresses: an empty list; the addresses of some nodes of the cluster are wanted",
    ),
    (
        "redis: {cluster: {addresses: ['n:1']}, database_index: 3}",
        "2:56: redis.database_index: 3; 0 is wanted: a cluster has no other database",
    ),
    (
        "redis: {server: {address: redis}}",
        "2:27: redis.server.address: \"redis\"; a host and a port such as redis.example.com:6379 are wanted",
    ),
    (
        "redis: {sentinel: {master_name: m, addresses: []}}",
        "2:47: redis.sentinel.addresses: an empty list; the addresses of the sentinels are wanted",
    ),
    (
        "policies: {}",
        "2:1: policies.directory: it is missing; the path of a directory with policy files is wanted",
    ),
    (
        "events: {server_sent_events: {}}",
        "2:10: events.server_sent_events: the api section is missing; server-sent events are served by it",
    ),
    (
        "events: {action_cable: {}}",
        "2:10: events.action_cable.redis: it is missing; the Redis of Rails' cable configuration is wanted",
    ),
    (
        "gitlab: {address: 'https://g', authentication_secret_file: f}",
        "1:29: embedded.identities_file: identities beside the gitlab section of line 2; one of the two is wanted: \
         agents of both could have the same id",
    ),
    ("embedded: {}", "2:1: embedded: written twice, first in line 1; every key once is wanted"),
];

#[test]
fn every_kind_of_mistake_is_said_in_full() {
    for (text, wanted) in MISTAKES {
        let error = parse(&format!("embedded: {{identities_file: i}}\n{text}\n")).unwrap_err();
        assert_eq!(error, format!("/etc/kas/kas.yaml:{wanted}"), "{text}");
    }
}

#[test]
fn gitlab_must_be_a_plain_address_and_its_words_are_not_repeated() {
    for (gitlab, wanted) in [
        (
            "{}",
            "1:1: gitlab.address: it is missing; the URL of GitLab, such as https://gitlab.example.com, is wanted\n\
                /etc/kas/kas.yaml:1:1: gitlab.authentication_secret_file: it is missing; a file with the secret \
                shared with GitLab is wanted",
        ),
        (
            "{authentication_secret_file: f, address: 'ftp://g'}",
            "1:50: gitlab.address: a URL of ftp; one such as https://gitlab.example.com is wanted",
        ),
        (
            "{authentication_secret_file: f, address: 'https://u:hush@g'}",
            "1:50: gitlab.address: a URL with a user name or a password; one such as https://gitlab.example.com is wanted",
        ),
        (
            "{authentication_secret_file: f, address: gitlab.example.com}",
            "1:50: gitlab.address: no URL: relative URL without a base; one such as https://gitlab.example.com is wanted",
        ),
    ] {
        let error = parse(&format!("gitlab: {gitlab}")).unwrap_err();
        assert_eq!(error, format!("/etc/kas/kas.yaml:{wanted}"), "{gitlab}");
    }
}

#[test]
fn a_file_that_says_nothing_is_told_both_ways() {
    for text in ["", "# nothing", "{}", "---\n", "gitlab:\n"] {
        let error = parse(text).unwrap_err();
        assert!(error.contains("gitlab.address") && error.contains("embedded.identities_file"), "{error}");
    }
}

#[test]
fn ten_mistakes_are_reported_at_once_in_the_order_of_the_file() {
    let text = "\
gitlab:
  adress: https://gitlab.example.com
agent:
  listen:
    network: udp
    websocket: maybe
    max_connection_age: 2h
  configuration: [20s]
  configuration: {}
observability:
  logging: {level: 3}
redis:
  sentinel: {master_name: m}
api:
  listen: {authentication_secret_file: 7}
";
    let error = parse(text).unwrap_err();
    let keys = [
        "1:1: gitlab.address",
        "1:1: gitlab.authentication_secret_file",
        "2:3: gitlab.adress",
        "5:14: agent.listen.network",
        "6:16: agent.listen.websocket",
        "7:25: agent.listen.max_connection_age",
        "8:18: agent.configuration",
        "9:3: configuration",
        "11:20: observability.logging.level",
        "13:3: redis.sentinel.addresses",
        "15:40: api.listen.authentication_secret_file",
    ];
    let lines: Vec<_> = error.lines().collect();
    assert_eq!(lines.len(), keys.len(), "{error}");
    for (line, key) in lines.iter().zip(keys) {
        assert!(line.starts_with(&format!("/etc/kas/kas.yaml:{key}: ")), "{key} in {line}");
    }
}

#[test]
fn what_is_no_yaml_has_its_line() {
    let error = parse("embedded: {identities_file: i}\nagent: [1, 2\n").unwrap_err();
    assert!(error.starts_with("/etc/kas/kas.yaml:") && error.contains("not YAML: "), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_collector_of_traces_is_a_url_with_a_token_and_cas_beside_it() {
    let with = |keys: &str| {
        parse(&format!("embedded: {{identities_file: i}}\nobservability: {{tracing: {{{keys}}}}}"))
            .map(|config| config.observability.tracing)
    };
    assert_eq!(with("").unwrap(), None);
    let full =
        "otlp_endpoint: 'https://otlp.example.com', otlp_token_secret_file: t, otlp_ca_certificate_file: ca";
    let tracing = with(full).unwrap().unwrap();
    assert_eq!(tracing.token_file, Some("/etc/kas/t".into()));
    assert_eq!(tracing.ca_certificate_file, Some("/etc/kas/ca".into()));
    for wrong in ["otlp_endpoint: 'collector:4318'", "otlp_token_secret_file: t"] {
        let error = with(wrong).unwrap_err().to_string();
        assert!(error.contains("observability.tracing"), "{error}");
    }
}
