//! The stand-in Kubernetes API server by itself, to try `kubectl` against it: `cargo run -p stand-ins --example kube-api`.
//! Prints its kubeconfig and serves until it is interrupted.

use stand_ins::kube_api::{KubeApi, Options};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let api = KubeApi::start(Options { token: std::env::args().nth(1), ..Options::default() }).await?;
    println!("{}", api.kubeconfig());
    tokio::signal::ctrl_c().await?;
    Ok(())
}
