//! The sections about GitLab and Redis: Rails, Gitaly, the listener for Rails, Redis, events. It is the second half of
//! `meaning.rs` and reads no file that they name.

use super::{
    ApiConfig, GitLabConfig,
    file::{self, File, RedisNetwork},
    meaning::{MAX_CONNECTION_AGE, Reader, Socket, number, positive, socket, span, text},
};
use crate::{
    events,
    gitaly::ManifestLimits,
    gitlab::{self, cache::Settings},
    rate::Rate,
    redis,
};
use postern_yaml::{Given, Place, Positive, Section as _, Span};
use std::time::Duration;
use url::Url;

const API: &str = "127.0.0.1:8153";
/// What 14.1 does; later ones ask more often.
const GITALY_RATE: Rate = Rate { per_second: 10.0, burst: 50 };
const GITALY_RATE_PER_SERVER: Rate = Rate { per_second: 5.0, burst: 10 };
const GITOPS_POLL_PERIOD: Duration = Duration::from_secs(20);
const USAGE_REPORTING_PERIOD: Duration = Duration::from_secs(60);
const REDIS_KEY_PREFIX: &str = "gitlab-kas";
const REDIS_DIAL_TIMEOUT: Duration = Duration::from_secs(5);
const REDIS_POOL_SIZE: u32 = 5;
const REDIS_IDLE_TIMEOUT: Duration = Duration::from_secs(50);
const REDIS_TIMEOUT: Duration = Duration::from_secs(1);

impl Reader<'_> {
    pub(super) fn gitlab(&mut self, section: &Given<file::Gitlab>, file: &File) -> Option<GitLabConfig> {
        let Given { value: gitlab, place } = section;
        let example = "the URL of GitLab, such as https://gitlab.example.com, is wanted";
        let address = self.required(&gitlab.address, place, "address", example);
        let address = address.and_then(|given| self.url(given));
        let external_url = gitlab.external_url.as_ref().and_then(|given| self.url(given));
        let wanted = "a file with the secret shared with GitLab is wanted";
        let secret =
            self.required(&gitlab.authentication_secret_file, place, "authentication_secret_file", wanted);
        let secret = secret.map(|given| self.base.join(&given.value));

        let agent = Given::or_empty(&file.agent);
        let gitops = Given::or_empty(&agent.gitops);
        let kubernetes_api = match &agent.kubernetes_api {
            Some(Given { value: section, .. }) => section,
            None => file::KubernetesApi::empty(),
        };
        let mut periods = gitlab::Periods::default();
        let set = |to: &mut Settings, ok: &Option<Given<Span>>, error: &Option<Given<Positive>>| {
            to.ok = span(ok, to.ok);
            to.error = positive(error, to.error);
        };
        set(&mut periods.agents, &agent.info_cache_ttl, &agent.info_cache_error_ttl);
        set(&mut periods.projects, &gitops.project_info_cache_ttl, &gitops.project_info_cache_error_ttl);
        set(
            &mut periods.callers,
            &kubernetes_api.allowed_agent_cache_ttl,
            &kubernetes_api.allowed_agent_cache_error_ttl,
        );
        let gitaly = Given::or_empty(&file.gitaly);
        let limits = ManifestLimits::default();
        // The default of each fits into what the file can say.
        let size = |given, default: u64| u64::from(number(given, default.try_into().unwrap_or(u32::MAX)));
        let count = |given, default: usize| number(given, default.try_into().unwrap_or(u32::MAX)) as usize;
        Some(GitLabConfig {
            rate: rate(&gitlab.api_rate_limit, Rate::default()),
            ca_certificate_file: self.file(&gitlab.ca_certificate_file),
            external_url,
            periods,
            gitaly_rate: rate(&gitaly.global_api_rate_limit, GITALY_RATE),
            gitaly_rate_per_server: rate(&gitaly.per_server_api_rate_limit, GITALY_RATE_PER_SERVER),
            gitops_poll_period: positive(&gitops.poll_period, GITOPS_POLL_PERIOD),
            manifests: ManifestLimits {
                paths: count(&gitops.max_number_of_paths, limits.paths),
                files: count(&gitops.max_number_of_files, limits.files),
                file_bytes: size(&gitops.max_manifest_file_size, limits.file_bytes),
                total_bytes: size(&gitops.max_total_manifest_file_size, limits.total_bytes),
            },
            address: address?,
            authentication_secret_file: secret?,
        })
    }

    /// `None` and a problem if it is missing.
    pub(super) fn required<'g, T>(
        &mut self,
        given: &'g Option<Given<T>>,
        section: &Place,
        key: &str,
        wanted: &str,
    ) -> Option<&'g Given<T>> {
        let place = section.key(key);
        // A value that could not be read was reported already.
        if given.is_none() && !self.problems.mentions(&place.path) {
            self.problem(&place, "it is missing", wanted);
        }
        given.as_ref()
    }

    /// Its words are not quoted: they may have a password in them.
    fn url(&mut self, given: &Given<String>) -> Option<Url> {
        let wrong = match Url::parse(&given.value) {
            Err(error) => format!("no URL: {error}"),
            Ok(url) if !matches!(url.scheme(), "http" | "https") => format!("a URL of {}", url.scheme()),
            Ok(url) if url.host_str().is_none_or(str::is_empty) => "a URL without a host".to_owned(),
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                "a URL with a user name or a password".to_owned()
            }
            Ok(url) => return Some(url),
        };
        self.problem(&given.place, wrong, "one such as https://gitlab.example.com is wanted");
        None
    }

    /// Absent for an embedded provider and for a period of zero.
    pub(super) fn usage_reporting_period(&self, file: &File) -> Option<Duration> {
        file.gitlab.as_ref()?;
        let section = Given::or_empty(&file.observability);
        Some(span(&section.usage_reporting_period, USAGE_REPORTING_PERIOD)).filter(|period| !period.is_zero())
    }

    pub(super) fn api(&mut self, file: &File, listen_grace: &mut Duration) -> Option<ApiConfig> {
        let api = file.api.as_ref()?;
        let (listen, place) = match &api.value.listen {
            Some(Given { value, place }) => (value, place),
            None => (file::ListenApi::empty(), &api.place.key("listen")),
        };
        *listen_grace = (*listen_grace).max(span(&listen.listen_grace_period, Duration::ZERO));
        let wanted = "a file with the secret that GitLab signs its JWTs with is wanted";
        let secret =
            self.required(&listen.authentication_secret_file, place, "authentication_secret_file", wanted);
        let secret = secret.map(|given| self.base.join(&given.value));
        Some(ApiConfig {
            listen: self.listen(socket!(listen), API),
            max_connection_age: positive(&listen.max_connection_age, MAX_CONNECTION_AGE),
            authentication_secret_file: secret?,
        })
    }

    pub(super) fn redis(&mut self, section: &file::Redis, place: &Place) -> Option<redis::Config> {
        let servers = match (&section.server, &section.sentinel, &section.cluster) {
            (Some(server), None, None) => self.redis_server(section, server),
            (None, Some(sentinel), None) => self.redis_sentinel(sentinel),
            (None, None, Some(cluster)) => self.redis_cluster(section, cluster),
            (server, sentinel, cluster) => {
                let given = [server.is_some(), sentinel.is_some(), cluster.is_some()];
                let names = ["server", "sentinel", "cluster"];
                let found: Vec<_> =
                    names.into_iter().zip(given).filter_map(|(name, is)| is.then_some(name)).collect();
                let found = if found.is_empty() { "no server".to_owned() } else { found.join(" and ") };
                let wanted = "one is wanted: server.address, or sentinel.master_name and sentinel.addresses, or \
                              cluster.addresses";
                self.problem(place, found, wanted);
                None
            }
        };
        let tls = Given::or_empty(&section.tls);
        let certificate = self.certificate(&tls.certificate_file, &tls.key_file);
        let ca_certificate_file = self.file(&tls.ca_certificate_file);
        let enabled = tls.enabled.as_ref().is_some_and(|given| given.value);
        Some(redis::Config {
            username: text(&section.username).map(str::to_owned),
            password_file: self.file(&section.password_file),
            tls: enabled.then_some(redis::Tls { certificate, ca_certificate_file }),
            database: section.database_index.as_ref().map_or(0, |given| i64::from(given.value)),
            key_prefix: text(&section.key_prefix).unwrap_or(REDIS_KEY_PREFIX).to_owned(),
            dial_timeout: positive(&section.dial_timeout, REDIS_DIAL_TIMEOUT),
            read_timeout: positive(&section.read_timeout, REDIS_TIMEOUT),
            write_timeout: positive(&section.write_timeout, REDIS_TIMEOUT),
            // Zero stands for the default, as in protobuf.
            pool_size: number(&section.pool_size, REDIS_POOL_SIZE) as usize,
            idle_timeout: positive(&section.idle_timeout, REDIS_IDLE_TIMEOUT),
            servers: servers?,
        })
    }

    fn redis_server(
        &mut self,
        section: &file::Redis,
        server: &Given<file::RedisServer>,
    ) -> Option<redis::Servers> {
        let wanted = "the address of the Redis server is wanted";
        let address = self.required(&server.value.address, &server.place, "address", wanted)?;
        if section.network.as_ref().is_some_and(|given| given.value.0 == RedisNetwork::Unix) {
            return Some(redis::Servers::Unix(self.base.join(&address.value)));
        }
        self.host_and_port(&address.value, &address.place)?;
        Some(redis::Servers::Tcp(address.value.clone()))
    }

    fn redis_sentinel(&mut self, sentinel: &Given<file::RedisSentinel>) -> Option<redis::Servers> {
        let Given { value: sentinel, place } = sentinel;
        let name = self.required(
            &sentinel.master_name,
            place,
            "master_name",
            "the name that the sentinels have for the Redis is wanted",
        );
        let wanted = "the addresses of the sentinels are wanted";
        let addresses = self.required(&sentinel.addresses, place, "addresses", wanted);
        if let Some(addresses) = addresses {
            self.redis_addresses(addresses, wanted);
        }
        Some(redis::Servers::Sentinel {
            password_file: self.file(&sentinel.sentinel_password_file),
            master_name: name?.value.clone(),
            addresses: addresses?.value.clone(),
        })
    }

    fn redis_cluster(
        &mut self,
        section: &file::Redis,
        cluster: &Given<file::RedisCluster>,
    ) -> Option<redis::Servers> {
        let wanted = "the addresses of some nodes of the cluster are wanted";
        let addresses = self.required(&cluster.value.addresses, &cluster.place, "addresses", wanted);
        if let Some(addresses) = addresses {
            self.redis_addresses(addresses, wanted);
        }
        if let Some(index) = section.database_index.as_ref().filter(|given| given.value > 0) {
            self.problem(
                &index.place,
                index.value.to_string(),
                "0 is wanted: a cluster has no other database",
            );
        }
        Some(redis::Servers::Cluster(addresses?.value.clone()))
    }

    fn redis_addresses(&mut self, addresses: &Given<Vec<String>>, wanted: &str) {
        if addresses.value.is_empty() {
            self.problem(&addresses.place, "an empty list", wanted);
        }
        for (at, address) in addresses.value.iter().enumerate() {
            let _ = self.host_and_port(address, &addresses.place.key(&format!("[{at}]")));
        }
    }

    fn host_and_port(&mut self, text: &str, place: &Place) -> Option<()> {
        let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) {
            self.problem(
                place,
                format!("{text:?}"),
                "a host and a port such as redis.example.com:6379 are wanted",
            );
            return None;
        }
        Some(())
    }

    pub(super) fn events(&mut self, file: &File) -> Option<events::Config> {
        let events = &file.events.as_ref()?.value;
        if let (Some(sse), None) = (&events.server_sent_events, &file.api) {
            self.problem(&sse.place, "the api section is missing", "server-sent events are served by it");
        }
        let action_cable = events.action_cable.as_ref().and_then(|Given { value: cable, place }| {
            let wanted = "the Redis of Rails' cable configuration is wanted";
            let redis = self.required(&cable.redis, place, "redis", wanted)?;
            let redis = self.redis(&redis.value, &redis.place)?;
            let channel_prefix = text(&cable.channel_prefix).map(str::to_owned);
            Some(events::action_cable::ActionCable { redis, channel_prefix })
        });
        Some(events::Config { action_cable, server_sent_events: events.server_sent_events.is_some() })
    }
}

/// Zero stands for the default, as in protobuf.
fn rate(given: &Option<Given<file::TokenBucket>>, default: Rate) -> Rate {
    let bucket = Given::or_empty(given);
    let per_second = bucket.refill_rate_per_second.as_ref().map(|given| given.value);
    Rate {
        per_second: per_second.filter(|rate| *rate > 0.0).unwrap_or(default.per_second),
        burst: number(&bucket.bucket_size, default.burst),
    }
}
