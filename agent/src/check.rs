//! `agentk check`: goes the way that the agent goes, one step at a time, and says of each what was found, how long it
//! took and what to do. Before it: flags and environment. After it: `report.rs`, which prints.
//! It leaves nothing behind: nobody is registered, nothing in the cluster is written, a running agent is not disturbed.

mod access;
mod needs;
mod report;
mod road;

pub use report::{Report, State, Step};

use crate::{broker::dial::Dialler, config::Config};
use anyhow::Context as _;
use postern_certs::client::ClientTrust;
use postern_wire::token::AgentToken;
use report::Steps;
use std::time::Duration;

/// What one step may take.
pub const STEP: Duration = Duration::from_secs(10);

/// Checks everything, each step for at most `limit`.
///
/// # Errors
/// What keeps the agent itself from starting: an unusable CA bundle or token file.
pub async fn run(config: Config, limit: Duration) -> anyhow::Result<Report> {
    postern_certs::install_provider();
    let Config { broker, kubernetes, pod, .. } = config;
    let trust = ClientTrust::load(broker.ca_cert_file.clone()).context("--ca-cert-file")?;
    let token = broker.token.read()?;
    let token_place = broker.token.to_string();
    let dialler = Dialler::new(broker, trust);
    let meta = pod.meta();
    let secrets = secrets(&token, &dialler);
    let mut steps = Steps::new(limit, dialler.address.scheme());
    if let Some(opened) = road::connect(&mut steps, &dialler, &token).await
        && let Some(configuration) = road::token(&mut steps, &opened.connection, meta, &token_place).await
    {
        let loaded = access::Loaded::load(kubernetes, limit).await;
        let stands = road::tunnel(&mut steps, &opened.connection, loaded.access(), &token_place).await;
        if stands.is_some() {
            access::kubernetes(&mut steps, loaded, configuration.latest.as_ref(), &pod.namespace).await;
        }
    }
    Ok(steps.finish(dialler.address.to_string(), &secrets))
}

/// What a server may quote and nobody is to read here. Short values of headers are not secrets, and common words.
fn secrets(token: &AgentToken, dialler: &Dialler) -> Vec<String> {
    const SHORTEST: usize = 8;
    let bearer = token.bearer();
    let token = bearer.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
    let headers = dialler.headers.values().filter_map(|value| value.to_str().ok());
    token.into_iter().chain(headers.filter(|value| value.len() >= SHORTEST)).map(str::to_owned).collect()
}
