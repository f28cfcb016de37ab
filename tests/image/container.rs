//! A container of the image, as the Deployment of `deploy/agentk.yaml` asks for it, by podman: its user, read-only root and
//! memory, without capabilities and with podman's seccomp filter. The network is this machine's, for the edge is there too.

use crate::harness::{INSIDE, Process, until};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const NAME: &str = "agentk";
/// This machine may allow fewer of both than podman asks for.
const LIMITS: [&str; 4] = ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"];

/// Images and containers in a directory of its own; gone with everything in it when dropped.
pub(crate) struct Container {
    folder: tempfile::TempDir,
    image: String,
}

impl Container {
    /// Nothing runs yet: the program of this container is started by [`Self::command`].
    pub(crate) fn of(archive: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut container = Self { folder, image: String::new() };
        let output = container.podman(&["pull", "--quiet", &format!("oci-archive:{}", archive.display())]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        container.image = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        container
    }

    /// The command line that agentk's arguments go behind; `field` is the field's folder, which becomes readable for everybody.
    pub(crate) fn command(&self, field: &Path) -> Vec<String> {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(field, fs::Permissions::from_mode(0o755)).unwrap();
        let deployment = fs::read_to_string(crate::repository().join("deploy/agentk.yaml")).unwrap();
        let deployment: Value = serde_yaml::from_str(&deployment).unwrap();
        let pod = &deployment["spec"]["template"]["spec"];
        let (agent, security) = (&pod["containers"][0], &pod["containers"][0]["securityContext"]);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(security["runAsNonRoot"], true);
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["capabilities"]["drop"][0], "ALL");
        // Kubernetes' `Mi` are podman's `m`.
        let memory = agent["resources"]["limits"]["memory"].as_str().unwrap().replace("Mi", "m");
        let user = format!("{}:{}", security["runAsUser"], security["runAsGroup"]);
        let mut line = self.line();
        let pid_file = self.pid_file().display().to_string();
        let folder = format!("{}:{INSIDE}:ro", field.display());
        line.extend(
            ["run", "--rm", "--log-driver", "none", "--network", "host", "--read-only"].map(str::to_owned),
        );
        line.extend(["--read-only-tmpfs=false", "--cap-drop", "ALL"].map(str::to_owned));
        line.extend(["--security-opt", "no-new-privileges"].map(str::to_owned));
        line.extend(LIMITS.map(str::to_owned));
        line.extend(["POD_NAMESPACE", "POD_NAME", "POSTERN_LOG"].map(|name| format!("--env={name}")));
        for (option, value) in [
            ("--memory", &memory),
            ("--user", &user),
            ("--volume", &folder),
            ("--pidfile", &pid_file),
            ("--name", &NAME.to_owned()),
        ] {
            line.extend([option.to_owned(), value.clone()]);
        }
        // Its entrypoint is what `command` of the Deployment finds in its PATH.
        line.push(self.image.clone());
        line
    }

    /// The id of its first process here.
    pub(crate) async fn pid(&self) -> u32 {
        let file = self.pid_file();
        until("podman tells the process' id", async || fs::read_to_string(&file).ok()?.trim().parse().ok())
            .await
    }

    /// `kubectl exec` of this container.
    pub(crate) fn exec(&self, arguments: &[&str]) -> Output {
        self.podman(&[&["exec", NAME][..], arguments].concat())
    }

    /// SIGTERM as a kubelet sends it; returns the agent's exit code.
    pub(crate) async fn terminate(&self, agent: &mut Process) -> Option<i32> {
        assert!(self.podman(&["kill", "--signal", "TERM", NAME]).status.success());
        // podman's own is that of its container.
        agent.ended().await.code()
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.path().join("pid")
    }

    fn line(&self) -> Vec<String> {
        let place = |name| self.folder.path().join(name).display().to_string();
        let (images, runs) = (place("images"), place("run"));
        // crun refuses machines with both kinds of cgroups.
        ["podman", "--runtime", "runc", "--storage-driver", "vfs", "--root", &images, "--runroot", &runs]
            .map(str::to_owned)
            .to_vec()
    }

    fn podman(&self, arguments: &[&str]) -> Output {
        let line = self.line();
        Command::new(&line[0])
            .args(&line[1..])
            .args(arguments)
            .output()
            .expect("podman; `make image` installs it")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Killing the podman that started it does not end it.
        let _ = self.podman(&["rm", "--force", "--ignore", "--time", "0", NAME]);
    }
}

/// What `/proc` says of a process.
pub(crate) fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{field} of {pid}")).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The mounts of a process: each place and whether it can be written to.
pub(crate) fn mounts(pid: u32) -> Vec<(String, bool)> {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let fields = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.map(|fields| (fields[4].to_owned(), fields[5].split(',').any(|option| option == "rw"))).collect()
}
