//! One real control plane for all tests of this process; it ends when its standard input closes, so with the process.
//! `KUBECONFIG_UNDER_TEST` replaces it by any cluster.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

struct ControlPlane {
    kubeconfig: PathBuf,
    _running: Option<(Child, tempfile::TempDir)>,
}

/// The kubeconfig that the agent uses.
pub(crate) fn kubeconfig() -> PathBuf {
    static ONE: OnceLock<ControlPlane> = OnceLock::new();
    ONE.get_or_init(start).kubeconfig.clone()
}

fn start() -> ControlPlane {
    if let Some(file) = std::env::var_os("KUBECONFIG_UNDER_TEST") {
        return ControlPlane { kubeconfig: file.into(), _running: None };
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/control-plane/build.sh");
    let built = Command::new(script).stderr(Stdio::inherit()).output().expect("the build script runs");
    assert!(built.status.success(), "the control plane could not be built; see above");
    let stdout = String::from_utf8(built.stdout).expect("UTF-8");
    let binary = stdout.lines().last().expect("the binary's path");
    let folder = tempfile::tempdir().expect("folder");
    let mut child = Command::new(binary)
        .arg("--dir")
        .arg(folder.path().join("data"))
        .arg("--exit-with-stdin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the control plane starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    assert!(line.starts_with("ready "), "the control plane did not start: {line:?}");
    let kubeconfig = line.split_whitespace().find_map(|word| word.strip_prefix("agentk=")).expect("agentk=");
    ControlPlane { kubeconfig: kubeconfig.into(), _running: Some((child, folder)) }
}
