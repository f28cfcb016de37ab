//! Receives the agent's configuration as the broker pushes it, and puts it in force: judged as a whole first, then module
//! by module. One that cannot be followed changes nothing; the last good one stays, and the broker is told. Applies the
//! log level and the limits of the Kubernetes API itself; features watch the rest. Keeps nothing across restarts.

mod changes;
mod judge;

pub use judge::{judge, problem};

use crate::{
    backoff::Backoff,
    broker::{Road, connection::Connection},
    error,
    kubernetes_api::limits::{Limits, Most},
    observability::{Metrics, logging::LogLevel},
    pushback,
    registrar::Generation,
    report::{PROBLEMS, Reports},
};
use postern_wire::{
    ids::AgentId,
    proto::gitlab::agent::{
        agent_configuration::rpc::{
            ConfigurationRequest, ConfigurationResponse, agent_configuration_client::AgentConfigurationClient,
        },
        agentcfg::{AgentConfiguration, LoggingLevelEnum},
        modshared::AgentMeta,
    },
    proto::postern::agent::{ConfigurationReport, Problem},
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use tonic::{Code, Status, codec::CompressionEncoding};
use tracing::{error, info, warn};

/// How long the first stream waits for the registrar's answer, which decides who lists this agent.
const GENERATION: Duration = Duration::from_secs(3);
/// A stream that ends politely sooner than this is not to be reopened at once.
const SHORTEST: Duration = Duration::from_secs(1);
const CONNECTION_END: Duration = Duration::from_millis(200);

/// What features watch: the configuration in force, `None` until the first good one came.
pub type Latest = watch::Receiver<Option<Arc<AgentConfiguration>>>;

/// Receives configurations for ever.
pub struct Receiver {
    /// The way to the broker.
    pub road: Road,
    /// Who asks.
    pub meta: AgentMeta,
    /// What the registrar has learned.
    pub generation: watch::Receiver<Generation>,
    /// Where configurations go.
    pub latest: watch::Sender<Option<Arc<AgentConfiguration>>>,
    /// What the configuration's log level applies to.
    pub log_level: LogLevel,
    /// What the configuration's limits apply to.
    pub limits: Limits,
    /// Who tells the broker what became of a configuration.
    pub reports: Reports,
    /// What counts those that were refused.
    pub metrics: Metrics,
}

/// Why a stream ended.
enum End {
    /// With OK; a broker that is about to leave says when to ask again.
    Politely(Option<Duration>),
    Moved,
    Status(Status),
}

impl Receiver {
    /// Never returns.
    pub async fn receive(mut self) {
        let known = self.generation.wait_for(|generation| *generation != Generation::Unknown);
        let _ = tokio::time::timeout(GENERATION, known).await;
        // Quick for what passes, slow for what somebody must repair: a broken file stays broken for minutes.
        let mut quick = Backoff::new(Duration::from_millis(200), Duration::from_secs(20), 1.5);
        let mut slow = Backoff::new(Duration::from_secs(10), Duration::from_secs(300), 2.0);
        let mut commit_id = String::new();
        loop {
            let connection = self.road.connection().await;
            let began = Instant::now();
            let before = commit_id.clone();
            let end = self.stream(&connection, &mut commit_id).await;
            if commit_id != before || began.elapsed() > Duration::from_secs(60) {
                quick.reset();
                slow.reset();
            }
            let delay = match end {
                End::Moved => continue,
                End::Politely(pause) if began.elapsed() >= SHORTEST => pause.unwrap_or_default(),
                End::Politely(pause) => quick.step().max(pause.unwrap_or_default()),
                End::Status(status) => {
                    if connection.ends_within(CONNECTION_END, &status).await
                        || self.road.refused(&connection, &status)
                    {
                        continue;
                    }
                    let delay = match status.code() {
                        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => quick.step(),
                        _ => slow.step(),
                    };
                    warn!(error = %error::status(&status), retry_in = ?delay, "no configuration");
                    delay
                }
            };
            tokio::time::sleep(delay).await;
        }
    }

    async fn stream(&mut self, connection: &Connection, commit_id: &mut String) -> End {
        let skip_register = *self.generation.borrow_and_update() == Generation::Modern;
        let request = ConfigurationRequest {
            commit_id: commit_id.clone(),
            agent_meta: Some(self.meta.clone()),
            skip_register,
        };
        let mut client =
            AgentConfigurationClient::new(connection.clone()).accept_compressed(CompressionEncoding::Gzip);
        let moved = connection.retired().clone();
        let mut generation = self.generation.clone();
        let asked_wrongly = async move {
            // An agent that nobody registers would not be listed.
            let wrong = |now: &Generation| skip_register && *now == Generation::Old;
            if generation.wait_for(wrong).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let receiving = async {
            let mut stream = match client.get_configuration(request).await {
                Ok(response) => response.into_inner(),
                Err(status) => return End::Status(status),
            };
            loop {
                match stream.message().await {
                    Ok(Some(response)) => {
                        self.road.admitted();
                        self.apply(response, commit_id);
                    }
                    Ok(None) => return End::Politely(pushback::after(&mut stream).await),
                    Err(status) => return End::Status(status),
                }
            }
        };
        tokio::select! {
            end = receiving => end,
            () = moved.cancelled() => End::Moved,
            () = asked_wrongly => End::Moved,
        }
    }

    fn apply(&self, response: ConfigurationResponse, commit_id: &mut String) {
        // Remembered even if it is not applied: the same commit would not become better.
        commit_id.clone_from(&response.commit_id);
        let Some(configuration) = response.configuration else {
            warn!(commit_id = %response.commit_id, "configuration without content ignored");
            return;
        };
        let id = AgentId(configuration.agent_id);
        let known = self.latest.borrow().clone();
        let problems = match known.as_ref().map(|known| AgentId(known.agent_id)) {
            Some(known) if known != id => {
                error!(
                    agent_id = known.0,
                    other = id.0,
                    "configuration of another agent ignored; restart the agent to become it"
                );
                let text = format!("agentk runs as agent {}; restart it to become agent {}", known.0, id.0);
                vec![problem("agent_id", text)]
            }
            _ => judge(&configuration),
        };
        let applied = problems.is_empty();
        match applied {
            true => self.put_in_force(configuration, known.as_deref(), &response.commit_id),
            false => self.refuse(&problems, known.is_some(), &response.commit_id),
        }
        self.reports.configuration(ConfigurationReport { commit_id: response.commit_id, applied, problems });
    }

    fn put_in_force(
        &self,
        configuration: AgentConfiguration,
        known: Option<&AgentConfiguration>,
        commit_id: &str,
    ) {
        info!(commit_id, agent_id = configuration.agent_id, "configuration received");
        let nothing = AgentConfiguration::default();
        for change in changes::changes(known.unwrap_or(&nothing), &configuration) {
            let (module, what) = (change.module, change.what);
            match change.followed {
                true => info!(commit_id, module, %what, "configuration changed"),
                false => warn!(commit_id, module, %what, "this agentk does nothing with this part"),
            }
        }
        self.log_level.follow(level(&configuration));
        self.limits.set(Most::of(&configuration));
        self.latest.send_if_modified(|latest| {
            let news = latest.as_deref() != Some(&configuration);
            if news {
                *latest = Some(Arc::new(configuration));
            }
            news
        });
    }

    fn refuse(&self, problems: &[Problem], known: bool, commit_id: &str) {
        self.metrics.configurations_refused.inc();
        for problem in problems.iter().take(PROBLEMS) {
            error!(commit_id, at = %problem.r#where, error = %problem.text, "cannot be followed");
        }
        let in_force = if known { "the one before" } else { "none" };
        error!(commit_id, problems = problems.len(), in_force, "configuration refused as a whole");
    }
}

/// The level that the configuration asks for, if it asks for one.
fn level(configuration: &AgentConfiguration) -> Option<tracing::Level> {
    let logging = configuration.observability.as_ref()?.logging.as_ref()?;
    Some(match logging.level() {
        LoggingLevelEnum::Info => tracing::Level::INFO,
        LoggingLevelEnum::Debug => tracing::Level::DEBUG,
        LoggingLevelEnum::Warn => tracing::Level::WARN,
        LoggingLevelEnum::Error => tracing::Level::ERROR,
    })
}
