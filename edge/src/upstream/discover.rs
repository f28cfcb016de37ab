//! Where brokers are found: a list, a name that is resolved again and again, or the EndpointSlices of a Service.
//!
//! Before `choose`, which makes brokers of what is found. A source that fails changes nothing: what was found last stays.

use super::UpstreamError;
use crate::config::upstreams::{Address, Port, Source};
use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_resource};
use kube::{Api, Client};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// Until the access to the cluster is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// One broker, as its source knows it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub(super) address: SocketAddr,
    /// The host as configured, which its certificate is expected to name.
    pub(super) host: String,
    /// It still serves, but shall get nothing new.
    pub(super) leaving: bool,
}

/// The source in an operator's words.
pub(super) fn describe(source: &Source) -> String {
    match source {
        Source::Addresses(_) => "(none)".to_owned(),
        Source::Dns { name, port, .. } => format!("{name}:{port} (DNS)"),
        Source::Kubernetes { namespace, service, .. } => format!("{namespace}/{service} (EndpointSlices)"),
    }
}

/// What is known at start. Only a list must be complete by then.
pub(super) fn at_start(source: &Source) -> Result<Vec<Found>, UpstreamError> {
    let Source::Addresses(addresses) = source else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for address in addresses {
        all.extend(resolve(address)?);
    }
    Ok(all)
}

fn resolve(address: &Address) -> Result<Vec<Found>, UpstreamError> {
    let name = address.to_string();
    let found =
        name.to_socket_addrs().map_err(|source| UpstreamError::Lookup { address: name.clone(), source })?;
    let host = address.host();
    let found: Vec<_> =
        found.map(|address| Found { address, host: host.to_owned(), leaving: false }).collect();
    if found.is_empty() { Err(UpstreamError::Nothing { address: name }) } else { Ok(found) }
}

/// Tells every change. Never returns.
pub(super) async fn follow(source: &Source, tell: watch::Sender<Vec<Found>>) {
    match source {
        Source::Addresses(_) => std::future::pending().await,
        Source::Dns { name, port, every } => {
            let lookup = || async move {
                let found = tokio::net::lookup_host((name.as_str(), *port)).await?;
                Ok(found.collect())
            };
            dns(name, *every, lookup, tell).await
        }
        Source::Kubernetes { namespace, service, port } => kubernetes(namespace, service, port, tell).await,
    }
}

/// Resolves `name` again and again.
pub(super) async fn dns<F>(
    name: &str,
    every: Duration,
    lookup: impl Fn() -> F,
    tell: watch::Sender<Vec<Found>>,
) where
    F: Future<Output = io::Result<Vec<SocketAddr>>>,
{
    let mut failing = false;
    loop {
        match lookup().await {
            Ok(found) if !found.is_empty() => {
                if std::mem::take(&mut failing) {
                    tracing::info!(name, "the name of the brokers resolves again");
                }
                let mut found: Vec<_> = found
                    .into_iter()
                    .map(|address| Found { address, host: name.to_owned(), leaving: false })
                    .collect();
                found.sort_by_key(|found| found.address);
                found.dedup();
                tell.send_if_modified(|known| {
                    let changed = *known != found;
                    *known = found;
                    changed
                });
            }
            nothing => {
                if !std::mem::replace(&mut failing, true) {
                    let error = nothing.err().map(tracing::field::display);
                    tracing::warn!(
                        name,
                        error,
                        "the name of the brokers does not resolve; what was found last stays in use"
                    );
                }
            }
        }
        sleep(jittered(every)).await;
    }
}

/// A tenth more or less, so that many edges do not ask at once.
fn jittered(every: Duration) -> Duration {
    every.mul_f64(0.9 + 0.2 * rand::random::<f64>())
}

/// Follows the EndpointSlices of a Service, with the identity that the pod or `KUBECONFIG` gives.
async fn kubernetes(namespace: &str, service: &str, port: &Port, tell: watch::Sender<Vec<Found>>) {
    loop {
        match Client::try_default().await {
            Ok(client) => slices(client, namespace, service, port, &tell).await,
            Err(error) => tracing::error!(
                error = one_line(&error),
                "no access to the Kubernetes API for upstreams; tried again every 10 s"
            ),
        }
        sleep(RETRY).await;
    }
}

async fn slices(
    client: Client,
    namespace: &str,
    service: &str,
    port: &Port,
    tell: &watch::Sender<Vec<Found>>,
) {
    let api = Api::<EndpointSlice>::namespaced(client, namespace);
    let of_service = watcher::Config::default().labels(&format!("kubernetes.io/service-name={service}"));
    let mut events = std::pin::pin!(watch_resource(api, of_service).default_backoff());
    let host = format!("{service}.{namespace}.svc");
    let mut known: HashMap<String, Vec<Found>> = HashMap::new();
    let mut fresh = HashMap::new();
    let mut failing = false;
    while let Some(event) = events.next().await {
        if event.is_ok() && std::mem::take(&mut failing) {
            tracing::info!(namespace, service, "endpoints are watched again");
        }
        let name = |slice: &EndpointSlice| slice.metadata.name.clone().unwrap_or_default();
        match event {
            Ok(Event::Init) => {
                fresh = HashMap::new();
                continue;
            }
            Ok(Event::InitApply(slice)) => {
                fresh.insert(name(&slice), endpoints(&slice, port, &host));
                continue;
            }
            Ok(Event::InitDone) => known = std::mem::take(&mut fresh),
            Ok(Event::Apply(slice)) => drop(known.insert(name(&slice), endpoints(&slice, port, &host))),
            Ok(Event::Delete(slice)) => drop(known.remove(&name(&slice))),
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    let error = one_line(&error);
                    tracing::warn!(
                        namespace,
                        service,
                        error,
                        "endpoints cannot be watched; what was found last stays in use"
                    );
                }
                continue;
            }
        }
        let mut found: Vec<_> = known.values().flatten().cloned().collect();
        found.sort_by_key(|found| (found.address, found.leaving));
        tell.send_if_modified(|before| {
            let changed = *before != found;
            *before = found;
            changed
        });
    }
}

/// The endpoints of one slice that serve; those that end are leaving.
fn endpoints(slice: &EndpointSlice, port: &Port, host: &str) -> Vec<Found> {
    let number = match port {
        Port::Number(number) => Some(*number),
        Port::Name(name) => {
            let mut ports = slice.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_deref() == Some(name));
            named.and_then(|port| u16::try_from(port.port?).ok())
        }
    };
    let Some(number) = number else { return Vec::new() };
    let mut found = Vec::new();
    for endpoint in slice.endpoints.iter().flatten() {
        let condition = endpoint.conditions.as_ref();
        let leaving = condition.and_then(|now| now.terminating).unwrap_or(false);
        // What is not said is yes.
        let ready = condition.and_then(|now| now.ready).unwrap_or(true);
        let serving = condition.and_then(|now| now.serving).unwrap_or(ready);
        if !(ready || leaving && serving) {
            continue;
        }
        let addresses = endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
        found.extend(addresses.map(|ip| Found {
            address: SocketAddr::new(ip, number),
            host: host.to_owned(),
            leaving,
        }));
    }
    found
}

fn one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Libraries differ in whether they repeat their causes.
        if !line.contains(&said) {
            line = format!("{line}: {said}");
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests;
