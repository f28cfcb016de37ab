//! Starts what the broker tells its neighbours: events to watchers and Rails' cable, usage to Rails, and the answers to
//! what Rails asks. `app.rs` comes before it; nothing here is on a request's way.

use super::{PROGRAM, Stops, Tasks, providers::GitLab};
use crate::{
    agent_reports::{
        cable::Cable,
        known::Known,
        views::{Limits, Views},
    },
    agent_tracker::{Change, Tracker},
    api::{self, Api, Beside, OnPush},
    config::ApiConfig,
    events::{self, Event, EventKind, Events, action_cable::Broadcaster, server_sent},
    fleet::{
        roster::{LastSeen, Roster},
        router::Fleet,
    },
    listeners::socket::Listener,
    observability::{KnownMetrics, Metrics},
    repositories::Repositories,
    tunnel::registry::{Presence, Registry},
    usage::{self, Usage},
};
use anyhow::Context;
use postern_wire::{
    ids::{AgentId, ProjectId},
    proto::gitlab::agent::event::GitPushEvent,
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::{Semaphore, broadcast::error::RecvError};
use tower_service::Service;

/// Where events are served on the API listener.
const EVENTS_PATH: &str = "/api/v1/events";
/// Watchers at a time; each holds a connection and its place in the ring.
const READERS: usize = 256;
/// Pushes that are being told to the other brokers at a time.
const PUSHES: usize = 256;
/// How often replicas and views that are gone are looked for.
const EXPIRY: Duration = Duration::from_secs(5);

/// A tracker whose changes are events, and which forgets who is gone.
pub(super) fn tracker(
    events: &Arc<Events>,
    registry: &Arc<Registry>,
    in_fleet: bool,
    stop: &Stops,
    tasks: &Tasks,
) -> Tracker {
    let told = Arc::clone(events);
    let tracker = Tracker::new(move |change| {
        let (kind, info) = match change {
            Change::Connected(info) => (EventKind::AgentConnected, info),
            Change::Disconnected(info) => (EventKind::AgentDisconnected, info),
        };
        told.publish(Event::now(kind, AgentId(info.agent_id), ProjectId(info.project_id)));
    });
    let (expiring, registry, stop) = (tracker.clone(), Arc::clone(registry), stop.background.clone());
    tasks.background.spawn(stop.run_until_cancelled_owned(async move {
        let mut ticks = tokio::time::interval(EXPIRY);
        loop {
            expiring.expire(ticks.tick().await, in_fleet, |agent| registry.is_present(agent));
        }
    }));
    tracker
}

/// Lists whom the tracker knows, and remembers whom the registry has seen.
pub(super) fn roster(tracker: &Tracker, registry: &Arc<Registry>, fleet: Option<&Fleet>) -> Roster {
    let registry = Arc::clone(registry);
    let roster = Roster::new(tracker.clone()).remembering(move |agent| {
        let Presence { tunnels, streams, last: (at, from), refusal } = registry.presence(agent)?;
        // Connected, and yet in no list: its registrations fail.
        let at = if tunnels + streams > 0 { SystemTime::now() } else { at };
        Some(LastSeen { at, from, broker: String::new(), refusal })
    });
    match fleet {
        Some(fleet) => roster.among(Arc::new(fleet.clone())),
        None => roster,
    }
}

/// Views that are forgotten some time after their streams ended.
pub(super) fn views(metrics: &Metrics, stop: &Stops, tasks: &Tasks) -> Views {
    let views = Views::new(Limits::default(), metrics.known());
    let (expiring, stop) = (views.clone(), stop.background.clone());
    tasks.background.spawn(stop.run_until_cancelled_owned(async move {
        let mut ticks = tokio::time::interval(EXPIRY);
        loop {
            ticks.tick().await;
            expiring.expire();
        }
    }));
    views
}

/// Publishes events and views to Rails' cable if the config wants it.
pub(super) fn cable(
    config: Option<&events::Config>,
    (events, views): (&Events, &Views),
    metrics: &Metrics,
    stop: &Stops,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    if let Some(cable) = config.and_then(|config| config.action_cable.clone()) {
        let of_views = Cable::open(cable.clone(), views.clone()).context("events.action_cable")?;
        tasks.background.spawn(of_views.run(stop.background.clone()));
        let broadcaster =
            Broadcaster::open(cable, metrics.events_dropped()).context("events.action_cable")?;
        tasks.background.spawn(broadcaster.run(events.subscribe(), stop.background.clone()));
    }
    Ok(())
}

/// Reports usage to Rails every period, and what is left at the end.
pub(super) fn usage(
    usage: &Arc<Usage>,
    gitlab: &GitLab,
    period: Option<Duration>,
    stop: &Stops,
    tasks: &Tasks,
) {
    if let Some(period) = period {
        let rails = Arc::clone(gitlab.rails.rails());
        tasks.background.spawn(usage::report(Arc::clone(usage), rails, period, stop.background.clone()));
    }
}

/// What becomes of a push to a project that Rails announces: all that follow the project look at it, here and, in a
/// fleet, at all brokers.
pub(super) fn pushes(
    fleet: Option<&Fleet>,
    (repositories, gitlab): (&Arc<Repositories>, Option<&GitLab>),
    stop: &Stops,
    tasks: &Tasks,
) -> OnPush {
    let configurations = Arc::clone(repositories);
    let manifests = gitlab.map(|gitlab| Arc::clone(&gitlab.manifests));
    let look = move |event: GitPushEvent| {
        let project = event.project.unwrap_or_default().full_path;
        tracing::debug!(project, "GitLab says that somebody pushed");
        for pollers in [configurations.gitaly.as_ref(), manifests.as_deref()].into_iter().flatten() {
            pollers.pushed(&project);
        }
    };
    let Some(fleet) = fleet else { return Arc::new(look) };
    let mut pushes = fleet.directory.pushes();
    let heard = async move {
        loop {
            match pushes.recv().await {
                Ok(event) => look(event),
                // Those that were missed are seen at the next poll.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    };
    tasks.background.spawn(stop.background.clone().run_until_cancelled_owned(heard));
    let (directory, telling) = (Arc::clone(&fleet.directory), tasks.background.clone());
    let room = Arc::new(Semaphore::new(PUSHES));
    Arc::new(move |event| {
        // Rails itself announces no faster than this; what does not fit is seen at the next poll.
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { return };
        let directory = Arc::clone(&directory);
        telling.spawn(async move {
            let _permit = permit;
            directory.push(event).await;
        });
    })
}

/// Answers what Rails asks, and serves events beside it if the config wants that.
pub(super) fn serve_api(
    (listener, section): (Arc<Listener>, &ApiConfig),
    (roster, known, metrics): (Roster, Known, KnownMetrics),
    gitlab: Option<&GitLab>,
    on_push: OnPush,
    server_sent_events: Option<&Arc<Events>>,
    stop: &Stops,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let secret = api::secret(section).context("api.listen.authentication_secret_file")?;
    let api = Api {
        secret,
        roster,
        known,
        metrics,
        gitaly: gitlab.map(|gitlab| Arc::clone(&gitlab.gitaly)),
        on_push,
        program: PROGRAM,
    };
    let beside = server_sent_events.map(|events| {
        let router = server_sent::router(EVENTS_PATH, Arc::clone(events), READERS, stop.streams.clone());
        let answer = move |request| {
            let mut router = router.clone();
            let answer = async move {
                let answer = router.call(request).await;
                answer.unwrap_or_else(|never| match never {}).map(tonic::body::Body::new)
            };
            Box::pin(answer) as futures::future::BoxFuture<'static, _>
        };
        Beside { path: EVENTS_PATH, answer: Arc::new(answer) }
    });
    let ends = (stop.accepting.clone(), stop.streams.clone());
    api::serve(listener, api, beside, section.max_connection_age, ends, &tasks.connections);
    Ok(())
}
