//! What the agent costs and how fast it is: the figures of `make bench-agent`, printed and written to
//! `target/bench/agent.json`. Asserts nothing but that what it measures happened.
//!
//! Memory is what the system says is resident of the process: at rest, connected with its tunnels and nothing to do, and
//! with 500 watches through them, of the API server of the tests' control plane; a stand-in without TLS is beside it. The
//! first tunnel's time is from the start of the process until it says that it is ready.
//! Objects are applied to the real control plane of the tests, which is most of the time.

#![expect(clippy::unwrap_used, reason = "a benchmark may fail right where it stands")]

#[path = "../kubectl/control_plane.rs"]
mod control_plane;
#[path = "../gitops/field.rs"]
#[expect(dead_code, reason = "the tests use the rest of it")]
mod field;
#[path = "../harness.rs"]
#[expect(dead_code, reason = "the tests use the rest of it")]
mod harness;
/// Where the tests have it.
mod kubectl {
    pub(crate) use crate::control_plane;
}

use field::Gitops;
use harness::{
    Field, Options,
    http::{self, Client, full},
    within,
};
use serde_json::{Map, Value};
use std::{fs, path::Path, time::Duration};
use tokio::time::{Instant, sleep};

const STREAMS: usize = 500;
const STARTS: usize = 11;
const ROUNDS: usize = 3;
const CONVERGES: Duration = Duration::from_secs(120);
/// After which nothing moves any more.
const REST: Duration = Duration::from_secs(5);

fn options() -> Options {
    // As in production: lines cost time and memory.
    Options { log: Some("info"), ..Options::default() }
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// At rest, with so many streams, and after they have gone: of the stand-in API, plain HTTP/1.1 without anything to say, or
/// of a real API server, over TLS.
async fn memory(is_real: bool) -> (f64, f64, f64) {
    let kubeconfig = is_real.then(control_plane::kubeconfig);
    let field = Field::with(Options { kubeconfig, ..options() }).await;
    sleep(REST).await;
    let idle = mib(field.agent.resident());
    let mut watches = Vec::new();
    for _ in 0..STREAMS {
        let mut client = Client::new(&field).await;
        let response = client.send("GET", "/api/v1/namespaces/default/configmaps?watch=1", full("")).await;
        assert_eq!(response.status(), 200);
        watches.push((client, response));
    }
    sleep(REST).await;
    let busy = mib(field.agent.resident());
    drop(watches);
    sleep(REST).await;
    (idle, busy, mib(field.agent.resident()))
}

/// From the start of the process to readiness, which needs a tunnel.
async fn first_tunnel() -> f64 {
    let mut field = Field::with(Options { scheme: "grpc-straight".to_owned(), ..options() }).await;
    let mut times = Vec::new();
    for _ in 0..STARTS {
        field.agent.kill().await;
        let begin = Instant::now();
        field.restart_agent().await;
        let probes = field.addresses.agent_probes;
        while http::probe(probes, "/readiness").await != Some(200) {
            sleep(Duration::from_millis(1)).await;
        }
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    median(times)
}

/// Objects a second, and calls for a commit that changes no manifest.
async fn gitops() -> (f64, f64) {
    let gitops = Gitops::start("", "").await;
    let objects = gitops.write_two_hundred();
    let commit = gitops.commit();
    let begin = Instant::now();
    within(CONVERGES, "all objects are there", async || {
        let told = gitops.told().await;
        let items = told["projects"].as_array()?;
        items.iter().any(|item| item["commit_id"] == commit && item["state"] == "synchronized").then_some(())
    })
    .await;
    let rate = objects as f64 / begin.elapsed().as_secs_f64();
    let before = gitops.calls().await;
    fs::write(gitops.repository().join("README.md"), "changed\n").unwrap();
    let commit = gitops.commit();
    gitops.reaches(&commit, "synchronized").await;
    (rate, gitops.calls().await - before)
}

async fn sizes(figures: &mut Map<String, Value>) {
    let (mut idle, mut busy) = (Vec::new(), Vec::new());
    for is_real in [false, true] {
        let what = if is_real { "of a real API server, over TLS" } else { "of a stand-in" };
        for _ in 0..ROUNDS {
            let (at_rest, streaming, left) = memory(is_real).await;
            println!(
                "resident: at rest {at_rest:.1} MiB, {STREAMS} streams {what} {streaming:.1} MiB, after them {left:.1} MiB"
            );
            idle.push(at_rest);
            if is_real {
                busy.push(streaming);
            }
        }
    }
    figures.insert("idle_rss_mib".to_owned(), round(median(idle)));
    figures.insert("rss_500_streams_mib".to_owned(), round(median(busy)));
}

async fn manifests(figures: &mut Map<String, Value>) {
    let (mut rates, mut calls) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (rate, each) = gitops().await;
        println!("manifests: {rate:.0} objects a second, {each} calls for an unchanged commit");
        rates.push(rate);
        calls.push(each);
    }
    figures.insert("objects_applied_per_s".to_owned(), round(median(rates)));
    figures.insert("api_calls_per_unchanged_sync".to_owned(), median(calls).into());
}

#[tokio::main]
async fn main() {
    // `-- sizes` and the like: only that, for whoever looks into one figure; nothing is written then.
    let wanted: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|name| name == part);
    let mut figures = Map::new();
    if is_wanted("sizes") {
        sizes(&mut figures).await;
    }
    if is_wanted("manifests") {
        manifests(&mut figures).await;
    }
    if is_wanted("start") {
        let tunnel = first_tunnel().await;
        println!("first tunnel after {tunnel:.0} ms (median of {STARTS})");
        figures.insert("first_tunnel_ms".to_owned(), round(tunnel));
    }
    let figures = Value::from(figures);
    println!("{figures}");
    if wanted.is_empty() {
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").join("target/bench");
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("agent.json");
        fs::write(&file, format!("{figures:#}\n")).unwrap();
        println!("written to {}", file.display());
    }
}

fn round(value: f64) -> Value {
    ((value * 10.0).round() / 10.0).into()
}
