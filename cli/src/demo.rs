//! `postern demo`: the whole road on one machine. Starts the real programs as children (broker, edge, agent, in the order
//! in which each needs the address of the one before), waits until each says it is ready, then either takes the tour
//! (`--once`) or tells the user what to try and waits for Ctrl-C. Everything listens on loopback, on ports the system
//! chooses; nothing outlives this process.

mod child;
mod client;
mod cluster;
mod field;
mod gitlab;
mod place;
mod repository;
mod tour;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use child::{Child, ChildError};
use client::Server;
use cluster::Cluster;
use field::{Field, Programs};
use gitlab::GitLab;
use place::{Callers, Place};

/// For one program to finish what it is doing; longer than the drains that `place` configures.
const DRAIN_PATIENCE: Duration = Duration::from_secs(8);
/// How often the programs are looked at while the user tries things.
const WATCH: Duration = Duration::from_millis(200);

#[derive(Args)]
pub(crate) struct Options {
    /// Takes a scripted tour through the tunnel, says what happened, and ends
    #[arg(long)]
    once: bool,
    /// Reaches the current context of this kubeconfig; its cluster is really used
    #[arg(long, value_name = "FILE", conflicts_with = "cluster")]
    kubeconfig: Option<PathBuf>,
    /// Which cluster to reach
    #[arg(long, value_enum, default_value_t = Choice::StandIn)]
    cluster: Choice,
    /// Lets the broker be the kas of a GitLab: small imitations of Rails and Gitaly in this process say who is who, and
    /// the cluster is reached as a CI job
    #[arg(long)]
    gitlab: bool,
    /// Keeps all files here instead of in a temporary directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// A small imitation of the Kubernetes API in this process; kubectl get, apply, edit, delete, -w and logs work
    StandIn,
    /// A real kube-apiserver with etcd, built from tests/control-plane on first use
    ControlPlane,
}

/// How the demo ended, beside errors.
enum Ended {
    Toured,
    Interrupted,
}

pub(crate) fn run(options: Options) -> anyhow::Result<ExitCode> {
    // Its root future stays on this thread, which is what the children are tied to.
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let ended = runtime.block_on(demo(options));
    runtime.shutdown_timeout(Duration::from_millis(200));
    ended
}

async fn demo(options: Options) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("handle SIGHUP")?;
    let mut asked_to_end = async || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    };

    let programs = Programs::find()?;
    let callers = if options.gitlab { Callers::GitLab } else { Callers::File };
    let mut place = Place::open(options.dir.as_deref(), callers)?;
    let mut children = Vec::new();
    // These outlive the children: what they still do during their drain may need them.
    let mut cluster = None;
    let gitlab = if options.gitlab { Some(GitLab::start(&place).await?) } else { None };
    let walked = tokio::select! {
        walked = walk(&options, &programs, &place, &mut cluster, gitlab.as_ref(), &mut children) => walked,
        () = asked_to_end() => Ok(Ended::Interrupted),
    };
    if let Ok(Ended::Interrupted) = walked {
        println!("\nDraining; Ctrl-C again ends at once.");
    }
    let drained = async {
        let cut = drain(&mut children).await;
        if let Some(cluster) = cluster {
            cluster.end().await;
        }
        cut
    };
    let cut = tokio::select! {
        cut = drained => cut,
        // Dropping the children kills them.
        () = asked_to_end() => return Ok(ExitCode::FAILURE),
    };
    for name in &cut {
        eprintln!("{name} did not end within {} s and was killed", DRAIN_PATIENCE.as_secs());
    }
    let code = match walked {
        Err(error) if children.is_empty() => return Err(error),
        Err(error) => {
            eprintln!("postern: {error:#}");
            ExitCode::FAILURE
        }
        Ok(_) if !cut.is_empty() => ExitCode::FAILURE,
        Ok(Ended::Toured) => {
            println!("The tour saw all it should.");
            ExitCode::SUCCESS
        }
        Ok(Ended::Interrupted) if options.once => ExitCode::FAILURE,
        Ok(Ended::Interrupted) => ExitCode::SUCCESS,
    };
    if code != ExitCode::SUCCESS {
        place.keep();
        eprintln!("All files, with the logs, are in {}", place.root().display());
    }
    Ok(code)
}

/// Starts everything and stays with it. What was started is in `cluster` and `children`, however
/// this ends.
async fn walk(
    options: &Options,
    programs: &Programs,
    place: &Place,
    cluster: &mut Option<Cluster>,
    gitlab: Option<&GitLab>,
    children: &mut Vec<Child>,
) -> anyhow::Result<Ended> {
    let mut began = Instant::now();
    let cluster = cluster.insert(match (&options.kubeconfig, options.cluster) {
        (Some(path), _) => cluster::from_kubeconfig(path)?,
        (None, Choice::StandIn) => cluster::stand_in(place).await?,
        (None, Choice::ControlPlane) => {
            println!("Starting a control plane; the first time it is built, which takes some minutes.");
            let cluster = cluster::control_plane(place).await?;
            began = Instant::now();
            cluster
        }
    });
    println!("Cluster:     {}", cluster.what);
    if let Some(gitlab) = gitlab {
        println!(
            "GitLab:      small stand-ins for Rails ({}) and Gitaly ({})",
            gitlab.address(),
            gitlab.gitaly()
        );
    }
    let field = Field::start(programs, place, cluster, gitlab, options.once, children).await?;
    let edge = Server::tls(field.edge, &place.ca.pem());
    println!("Running:     edge, broker and agent; ready after {:.1?}", began.elapsed());
    if gitlab.is_some() {
        println!("Broker:      a kas, by its configuration file {}", field.config.display());
    }
    if options.once {
        let visitor = tour::Visitor {
            edge,
            token: place.your_token(),
            hasty_token: place.hasty_token(),
            wrong_token: place.wrong_token(),
        };
        tour::run(&visitor).await?;
        return Ok(Ended::Toured);
    }
    describe(&field, gitlab, children);
    Err(first_end(children).await.into())
}

/// Polls, because a program that ends by itself is no hurry.
async fn first_end(children: &mut [Child]) -> ChildError {
    loop {
        for child in &mut *children {
            if let Err(error) = child.still_runs() {
                return error;
            }
        }
        tokio::time::sleep(WATCH).await;
    }
}

/// Ends the programs one after the other, each with what it does, and returns those that had to be killed.
async fn drain(children: &mut [Child]) -> Vec<&'static str> {
    let mut cut = Vec::new();
    for child in children {
        if !child.drain(DRAIN_PATIENCE).await {
            cut.push(child.name());
        }
    }
    cut
}

fn describe(field: &Field, gitlab: Option<&GitLab>, children: &[Child]) {
    println!();
    println!("Try:         KUBECONFIG={} kubectl get pods -A", field.kubeconfig.display());
    println!("Kubeconfig:  {}", field.kubeconfig.display());
    if gitlab.is_some() {
        println!("             its token is that of a CI job: `ci:<agent id>:<job token>`");
    }
    println!("Agent:       its configuration is {};", field.repository.join(place::CONFIGURATION).display());
    println!("             commit a change there and the broker pushes it");
    println!();
    for (name, address) in &field.probes {
        println!(
            "{name:<12} probes http://{address}/liveness and /readiness, metrics http://{address}/metrics"
        );
        if let Some(child) = children.iter().find(|child| child.name() == *name) {
            println!("{:<12} log {}", "", child.log().display());
        }
    }
    println!();
    println!("Ctrl-C ends it all.");
}
