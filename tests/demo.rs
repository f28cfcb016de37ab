//! What a newcomer runs first: the scripted tour, with the embedded stand-in and with the real control plane.

use crate::harness::binary;
use std::{process::Stdio, time::Duration};
use tokio::{process::Command, time::timeout};

async fn tour(arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary("postern"));
    command.args(["demo", "--once", "--dir"]).arg(folder.path().join("demo")).args(arguments);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(Duration::from_secs(120), command.output()).await.expect("the tour ends").unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[tokio::test]
async fn the_tour_sees_all_it_should() {
    let said = tour(&[]).await;
    for step in ["list", "watch", "create", "delete", "refuse a wrong token", "429"] {
        assert!(said.contains(step), "{step} in {said}");
    }
}

#[tokio::test]
async fn the_tour_works_with_a_real_control_plane() {
    let said = tour(&["--cluster", "control-plane"]).await;
    assert!(said.contains("the watch sees it go"), "{said}");
}

#[tokio::test]
async fn the_tour_works_with_gitlab_stand_ins() {
    let said = tour(&["--gitlab"]).await;
    for step in ["stand-ins for Rails", "kas.yaml", "list", "watch", "delete", "refuse a wrong token", "429"]
    {
        assert!(said.contains(step), "{step} in {said}");
    }
}
