//! Hosts on this one machine: network namespaces, each with a link of its own to a hub that routes between them and is
//! joined to nothing else, so that addresses and traffic stay among them. Links lose packets when a test says so: in
//! silence, as a dead host's do. All of it is gone with the `Hosts`. Who lives on a host is not its business.

use crate::harness::{Process, binary};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{
    fs::File,
    future::poll_fn,
    io::Write,
    net::Ipv4Addr,
    os::fd::AsFd,
    path::Path,
    pin::pin,
    process::{Command, Stdio},
    sync::Arc,
};

/// Namespaces of a test program that was killed are told by its process id, which stands behind this.
const PREFIX: &str = "postern-test-";
const NAMESPACES: &str = "/run/netns";

/// All hosts of one test, and the hub between them.
pub(crate) struct Hosts {
    prefix: String,
    hub: String,
    made: Vec<String>,
}

/// One of them.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) address: Ipv4Addr,
    namespace: String,
    /// Where this program is, and where the host is.
    doors: Arc<(File, File)>,
}

/// Runs `ip`, these lines as its batch; what it says if it fails.
fn ip(arguments: &[&str], batch: &str) -> Result<String, String> {
    let spawned = Command::new("ip")
        .args(arguments)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(|error| format!("{error}; tests/setup/tests.sh installs it"))?;
    let mut input = child.stdin.take().expect("piped");
    input.write_all(batch.as_bytes()).map_err(|error| error.to_string())?;
    drop(input);
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).replace('\n', "; ")),
    }
}

/// As [`ip`]; without namespaces there is nothing to test.
#[track_caller]
fn must(arguments: &[&str], batch: &str) -> String {
    ip(arguments, batch).unwrap_or_else(|error| {
        panic!(
            "these tests need root and a kernel with network namespaces, veth and policy routing: ip: {error}"
        )
    })
}

/// Removes what test programs left behind that no longer run, and ends what still runs in it.
fn sweep() {
    let entries = std::fs::read_dir(NAMESPACES).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    for name in names {
        let Some((pid, _)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')) else {
            continue;
        };
        // A dead one has no words, even while nobody has asked how it ended.
        if std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| !words.is_empty()) {
            continue;
        }
        // Somebody else may be sweeping.
        let inhabitants = ip(&[], &format!("netns pids {name}\n")).unwrap_or_default();
        let _ = Command::new("kill").arg("-KILL").args(inhabitants.split_whitespace()).output();
        let _ = ip(&[], &format!("netns del {name}\n"));
    }
}

impl Hosts {
    /// A hub without hosts.
    pub(crate) fn new() -> Self {
        sweep();
        let prefix = format!("{PREFIX}{}-{:08x}", std::process::id(), rand::random::<u32>());
        let hub = format!("{prefix}-hub");
        must(&[], &format!("netns add {hub}\n"));
        let hosts = Self { prefix, hub, made: Vec::new() };
        // Of the namespace of whoever opens it.
        let forward = Command::new("ip")
            .args(["netns", "exec", &hosts.hub, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
            .status();
        assert!(forward.expect("ip runs").success(), "the hub does not forward");
        hosts
    }

    /// Another host.
    pub(crate) fn add(&mut self, name: &str) -> Host {
        let number = u8::try_from(self.made.len() + 1).expect("at most 255 hosts");
        let namespace = format!("{}-{name}", self.prefix);
        must(&[], &format!("netns add {namespace}\n"));
        self.made.push(namespace.clone());
        // Each link is a network of its own: to its neighbours a host that is cut off looks like any far one. On one
        // segment they would ask for its hardware address in vain and know within three seconds.
        let [hub, address] = [1, 2].map(|last| Ipv4Addr::new(10, 213, number, last));
        must(
            &["-n", &self.hub],
            &format!(
                "link add link{number} type veth peer name eth0 netns {namespace}\naddr add {hub}/30 dev link{number}\n\
                 link set link{number} up\n"
            ),
        );
        must(
            &["-n", &namespace],
            &format!(
                "link set lo up\naddr add {address}/30 dev eth0\nlink set eth0 up\nroute add default via {hub}\n"
            ),
        );
        let open = |path: &str| File::open(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let doors = (open("/proc/thread-self/ns/net"), open(&format!("{NAMESPACES}/{namespace}")));
        Host { address, namespace, doors: Arc::new(doors) }
    }

    /// From now on nothing that this host sends arrives, nor what is sent to it; nobody is told.
    pub(crate) fn cut(&self, host: &Host) {
        self.rules("add", &[format!("from {}", host.address), format!("to {}", host.address)]);
    }

    /// Ends a [`Hosts::cut`].
    pub(crate) fn heal(&self, host: &Host) {
        self.rules("del", &[format!("from {}", host.address), format!("to {}", host.address)]);
    }

    /// From now on nothing passes between these two; nobody is told.
    pub(crate) fn part(&self, one: &Host, other: &Host) {
        self.rules("add", &Self::between(one, other));
    }

    /// Ends a [`Hosts::part`].
    pub(crate) fn join(&self, one: &Host, other: &Host) {
        self.rules("del", &Self::between(one, other));
    }

    fn between(Host { address: one, .. }: &Host, Host { address: other, .. }: &Host) -> [String; 2] {
        [format!("from {one} to {other}"), format!("from {other} to {one}")]
    }

    /// What is forwarded to a black hole is dropped without a word, unlike what is sent to one by the host itself.
    fn rules(&self, verb: &str, selectors: &[String]) {
        let lines = selectors.iter().map(|selector| format!("rule {verb} {selector} blackhole\n"));
        must(&["-n", &self.hub], &lines.collect::<String>());
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let all = self.made.iter().chain([&self.hub]);
        let lines = all.map(|namespace| format!("netns del {namespace}\n"));
        if let Err(error) = ip(&["-force"], &lines.collect::<String>()) {
            println!("left for the next test to remove: {error}");
        }
    }
}

impl Host {
    /// One of our programs, on this host.
    pub(crate) fn spawn(
        &self,
        name: &str,
        program: &str,
        folder: &Path,
        arguments: &[String],
        env: &[(&str, &str)],
    ) -> Process {
        let program = binary(program).display().to_string();
        self.launch(name, &program, folder, arguments, env)
    }

    /// Any program, on this host.
    pub(crate) fn launch(
        &self,
        name: &str,
        program: &str,
        folder: &Path,
        arguments: &[String],
        env: &[(&str, &str)],
    ) -> Process {
        // `ip` becomes the program, so that signals reach it.
        let mut command = tokio::process::Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        Process::launch(name, command, folder, arguments, env)
    }

    /// Does something as if it were on this host: the sockets that it makes are there. What it spawns is not.
    pub(crate) async fn inside<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|context| {
            let _back = Visit::begin(&self.doors);
            work.as_mut().poll(context)
        })
        .await
    }
}

/// While there is one, this thread is on a host.
struct Visit<'a>(&'a File);

impl<'a> Visit<'a> {
    fn begin((home, there): &'a (File, File)) -> Self {
        enter(there);
        Self(home)
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        enter(self.0);
    }
}

fn enter(namespace: &File) {
    let entered = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
    entered.expect("root may enter the namespaces that it made");
}
