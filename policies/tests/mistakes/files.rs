//! Files with one mistake each, by the name that the table of docs/policies.md has for it.

use std::fs;
use std::path::{Path, PathBuf};

/// What to lay into an empty directory.
pub(crate) enum Files {
    /// One document in `policies/a.yaml`.
    One(&'static str),
    /// Two files of `policies`.
    Two(&'static str, &'static str),
    /// Anything; it returns what to read.
    Made(fn(&Path) -> PathBuf),
}

use Files::{Made, One, Two};

impl Files {
    pub(crate) fn lay(&self, directory: &Path) -> PathBuf {
        match self {
            One(text) => fs::write(directory.join("a.yaml"), text).unwrap(),
            Two(first, second) => {
                fs::write(directory.join("a.yaml"), first).unwrap();
                fs::write(directory.join("b.yaml"), second).unwrap();
            }
            Made(make) => return make(directory),
        }
        directory.to_owned()
    }
}

/// A document with the four lines that each has: `spec` begins in the fifth.
macro_rules! document {
    ($kind:literal, $rest:literal) => {
        One(concat!("apiVersion: postern/v1\nkind: ", $kind, "\nmetadata:\n  name: a\n", $rest))
    };
}

/// A tie: the second file.
macro_rules! and {
    ($kind:literal, $rest:literal) => {
        concat!("apiVersion: postern/v1\nkind: ", $kind, "\nmetadata:\n  name: b\n", $rest)
    };
}

pub(crate) fn mistakes() -> Vec<(&'static str, Files)> {
    let mut all = documents();
    all.extend(selectors());
    all.extend(values());
    all.extend(access());
    all.extend(directories());
    all
}

fn documents() -> Vec<(&'static str, Files)> {
    vec![
        ("no `apiVersion`", One("kind: LimitPolicy\nmetadata: {name: a}\nspec: {streamsPerIp: 1}\n")),
        (
            "another `apiVersion`",
            One("apiVersion: postern/v2\nkind: LimitPolicy\nmetadata: {name: a}\nspec: {streamsPerIp: 1}\n"),
        ),
        ("no `kind`", One("apiVersion: postern/v1\nmetadata: {name: a}\nspec: {streamsPerIp: 1}\n")),
        ("misspelt kind", document!("LimitsPolicy", "spec: {streamsPerIp: 1}\n")),
        ("no `metadata`", One("apiVersion: postern/v1\nkind: LimitPolicy\nspec: {streamsPerIp: 1}\n")),
        (
            "no name",
            One("apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {}\nspec: {streamsPerIp: 1}\n"),
        ),
        (
            "name that is no DNS label",
            One(
                "apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {name: Big_Name}\nspec: {streamsPerIp: 1}\n",
            ),
        ),
        (
            "number as a name",
            One("apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {name: 7}\nspec: {streamsPerIp: 1}\n"),
        ),
        (
            "name that another document has",
            Two(
                "apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {name: a}\nspec: {streamsPerIp: 1}\n",
                "apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {name: a}\nspec: {bodyBytes: 1}\n",
            ),
        ),
        ("misspelt key", document!("LimitPolicy", "cannary: 5%\nspec: {streamsPerIp: 1}\n")),
        (
            "key that is nothing like another",
            document!("LimitPolicy", "spec: {colour: red, streamsPerIp: 1}\n"),
        ),
        ("no `spec`", document!("LimitPolicy", "match: {}\n")),
        ("key with nothing behind it", document!("TunnelPolicy", "spec:\n  agentWait: 5s\n  maxIdle:\n")),
        ("`spec` that sets nothing", document!("TunnelPolicy", "spec: {}\n")),
        ("misspelt mode", document!("LimitPolicy", "mode: reprot\nspec: {streamsPerIp: 1}\n")),
        (
            "`report` where nobody is refused",
            document!("PollingPolicy", "mode: report\nspec: {jitterPercent: 1}\n"),
        ),
        ("canary without `%`", document!("LimitPolicy", "canary: 5\nspec: {streamsPerIp: 1}\n")),
        ("canary of nobody", document!("LimitPolicy", "canary: 0%\nspec: {streamsPerIp: 1}\n")),
        (
            "canary where all have the same",
            document!("BackendPolicy", "canary: 5%\nspec: {gitlab: {rate: {perSecond: 1, burst: 1}}}\n"),
        ),
        ("key written twice", document!("LimitPolicy", "spec:\n  streamsPerIp: 1\n  streamsPerIp: 2\n")),
        ("no YAML", document!("LimitPolicy", "spec: {streamsPerIp: 1\n")),
        ("text instead of a document", One("hello\n")),
        ("tag", document!("LimitPolicy", "spec: {redisLost: !word local}\n")),
        ("alias of what contains it", document!("LimitPolicy", "spec: &a {streamsPerIp: *a}\n")),
        ("aliases of aliases of aliases", Made(bomb)),
    ]
}

fn selectors() -> Vec<(&'static str, Files)> {
    vec![
        ("misspelt selector", document!("LimitPolicy", "match: {agentId: [42]}\nspec: {streamsPerIp: 1}\n")),
        (
            "selector that a kind does not have",
            document!("PollingPolicy", "match: {clientCidrs: [10.0.0.0/8]}\nspec: {jitterPercent: 1}\n"),
        ),
        (
            "version of a caller",
            document!(
                "AccessPolicy",
                "match: {agentVersions: ['16.*']}\nspec: {kubernetesApi: {otherwise: deny}}\n"
            ),
        ),
        (
            "selector where all have the same",
            document!(
                "BackendPolicy",
                "match: {agentIds: [1]}\nspec: {gitlab: {rate: {perSecond: 1, burst: 1}}}\n"
            ),
        ),
        (
            "`match` beside `spec` and in it",
            document!(
                "LimitPolicy",
                "match: {agentIds: [1]}\nspec: {match: {agentIds: [2]}, streamsPerIp: 1}\n"
            ),
        ),
        (
            "one value instead of a list",
            document!("LimitPolicy", "match: {agentIds: 42}\nspec: {streamsPerIp: 1}\n"),
        ),
        ("empty list", document!("LimitPolicy", "match: {agentIds: []}\nspec: {streamsPerIp: 1}\n")),
        ("`match` with nothing in it", document!("LimitPolicy", "match:\nspec: {streamsPerIp: 1}\n")),
        (
            "selector with nothing in it",
            document!("LimitPolicy", "match:\n  agentIds:\nspec: {streamsPerIp: 1}\n"),
        ),
        (
            "agent by its name",
            document!("LimitPolicy", "match: {agentIds: [prod]}\nspec: {streamsPerIp: 1}\n"),
        ),
        (
            "hash that looks like a number",
            document!("LimitPolicy", "match: {tokenHashes: [12]}\nspec: {streamsPerIp: 1}\n"),
        ),
        (
            "hash in upper case",
            document!("LimitPolicy", "match: {tokenHashes: [AB12]}\nspec: {streamsPerIp: 1}\n"),
        ),
        (
            "token instead of its hash",
            document!("LimitPolicy", "match: {tokenHashes: [glagent-secret]}\nspec: {streamsPerIp: 1}\n"),
        ),
        (
            "no network",
            document!("LimitPolicy", "match: {clientCidrs: [10.0.0/8]}\nspec: {streamsPerIp: 1}\n"),
        ),
        (
            "bits beyond the prefix",
            document!("LimitPolicy", "match: {clientCidrs: [10.1.0.0/8]}\nspec: {streamsPerIp: 1}\n"),
        ),
        (
            "half a version",
            document!("LimitPolicy", "match: {agentVersions: [v16.11]}\nspec: {streamsPerIp: 1}\n"),
        ),
        (
            "too many combinations in a document",
            Made(|directory| {
                let ids: Vec<String> = (1..=101).map(|id| id.to_string()).collect();
                let ids = ids.join(", ");
                let head = "apiVersion: postern/v1\nkind: LimitPolicy\nmetadata:\n  name: a\n";
                let rest = format!(
                    "match: {{agentIds: [{ids}], projectIds: [{ids}]}}\nspec: {{agentCallsPerMinute: 1}}\n"
                );
                fs::write(directory.join("a.yaml"), format!("{head}{rest}")).unwrap();
                directory.to_owned()
            }),
        ),
        ("too many combinations in all documents", Made(many_combinations)),
        (
            "two documents for everybody",
            Two(
                and!("LimitPolicy", "spec: {streamsPerIp: 1}\n"),
                "apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {name: c}\nspec: {streamsPerIp: 2}\n",
            ),
        ),
        (
            "two documents for the same agent",
            Two(
                and!("TunnelPolicy", "match: {agentIds: [41, 42]}\nspec: {maxIdle: 1h}\n"),
                "apiVersion: postern/v1\nkind: TunnelPolicy\nmetadata: {name: c}\nmatch: {agentIds: [42]}\nspec: {maxIdle: 2h}\n",
            ),
        ),
    ]
}

fn values() -> Vec<(&'static str, Files)> {
    vec![
        ("misspelt field", document!("LimitPolicy", "spec: {requestPerToken: {perMinute: 1}}\n")),
        ("number instead of a rate", document!("LimitPolicy", "spec: {requestsPerIp: 600}\n")),
        ("misspelt word for no limit", document!("LimitPolicy", "spec: {requestsPerIp: unlimted}\n")),
        ("rate of something else", document!("LimitPolicy", "spec: {requestsPerIp: [600]}\n")),
        ("rate of nothing", document!("LimitPolicy", "spec: {requestsPerIp: {perMinute: 0}}\n")),
        (
            "rate and `perMinute`",
            document!("LimitPolicy", "spec: {requestsPerIp: {perMinute: 60, burst: 9}}\n"),
        ),
        ("rate without burst", document!("LimitPolicy", "spec: {requestsPerIp: {rate: 9}}\n")),
        ("burst without rate", document!("LimitPolicy", "spec: {requestsPerIp: {burst: 9}}\n")),
        ("empty rate", document!("LimitPolicy", "spec: {requestsPerIp: {}}\n")),
        ("negative number", document!("LimitPolicy", "spec: {streamsPerIp: -1}\n")),
        ("text instead of a number", document!("LimitPolicy", "spec: {bodyBytes: 10MiB}\n")),
        ("misspelt word", document!("LimitPolicy", "spec: {redisLost: alow}\n")),
        (
            "connections of an agent",
            document!("LimitPolicy", "match: {agentIds: [42]}\nspec: {connectionsPerIp: 9}\n"),
        ),
        ("connections in a canary", document!("LimitPolicy", "canary: 5%\nspec: {connectionsPerIp: 9}\n")),
        (
            "edge's limit for a project",
            document!("LimitPolicy", "match: {projectIds: [7]}\nspec: {streamsPerToken: 9}\n"),
        ),
        (
            "agents' calls from an address",
            document!("LimitPolicy", "match: {clientCidrs: [10.0.0.0/8]}\nspec: {agentCallsPerMinute: 9}\n"),
        ),
        (
            "agents' calls that are only reported",
            document!("LimitPolicy", "mode: report\nspec: {agentCallsPerMinute: 9}\n"),
        ),
        ("duration without unit", document!("PollingPolicy", "spec: {configuration: {period: 30}}\n")),
        ("no duration", document!("PollingPolicy", "spec: {configuration: {period: half an hour}}\n")),
        ("duration out of bounds", document!("PollingPolicy", "spec: {configuration: {period: 100ms}}\n")),
        ("more than all", document!("PollingPolicy", "spec: {jitterPercent: 101}\n")),
        (
            "drain of some",
            document!("ConnectionPolicy", "match: {agentIds: [42]}\nspec: {drain: {grace: 1m}}\n"),
        ),
        ("drain in a canary", document!("ConnectionPolicy", "canary: 5%\nspec: {drain: {grace: 1m}}\n")),
        ("pings of an agent", document!("ConnectionPolicy", "match: {agentIds: [42]}\nspec: {ping: 10s}\n")),
        ("calls without burst", document!("BackendPolicy", "spec: {gitlab: {rate: {perSecond: 5}}}\n")),
        ("no calls at all", document!("BackendPolicy", "spec: {gitlab: {rate: {perSecond: 0, burst: 1}}}\n")),
        ("no tunnels at all", document!("TunnelPolicy", "spec: {idlePerAgent: 0}\n")),
        (
            "wait for an agent's token",
            document!("TunnelPolicy", "match: {tokenHashes: [ab12]}\nspec: {agentWait: 5s}\n"),
        ),
        ("wait in a canary", document!("TunnelPolicy", "canary: 5%\nspec: {agentWait: 5s}\n")),
    ]
}

fn access() -> Vec<(&'static str, Files)> {
    vec![
        (
            "addresses of an agent",
            document!("AccessPolicy", "match: {agentIds: [42]}\nspec: {clients: {deny: [10.0.0.0/8]}}\n"),
        ),
        ("empty `clients`", document!("AccessPolicy", "spec: {clients: {}}\n")),
        ("rules without an end", document!("AccessPolicy", "spec: {kubernetesApi: {rules: []}}\n")),
        (
            "rule without effect",
            document!(
                "AccessPolicy",
                "spec:\n  kubernetesApi:\n    rules:\n    - verbs: [get]\n    otherwise: deny\n"
            ),
        ),
        (
            "misspelt verb",
            document!(
                "AccessPolicy",
                "spec:\n  kubernetesApi:\n    rules:\n    - {effect: deny, verbs: [delet]}\n    otherwise: allow\n"
            ),
        ),
        (
            "misspelt kind of caller",
            document!(
                "AccessPolicy",
                "spec:\n  kubernetesApi:\n    rules:\n    - {effect: deny, access: [jobs]}\n    otherwise: allow\n"
            ),
        ),
        (
            "resource in upper case",
            document!(
                "AccessPolicy",
                "spec:\n  kubernetesApi:\n    rules:\n    - {effect: deny, resources: [Secrets]}\n    otherwise: allow\n"
            ),
        ),
        (
            "resource with its version",
            document!(
                "AccessPolicy",
                "spec:\n  kubernetesApi:\n    rules:\n    - {effect: deny, resources: [apps/v1/deployments]}\n    otherwise: allow\n"
            ),
        ),
        (
            "no namespace",
            document!(
                "AccessPolicy",
                "spec:\n  kubernetesApi:\n    rules:\n    - {effect: deny, namespaces: ['*-prod']}\n    otherwise: allow\n"
            ),
        ),
        (
            "path without slash",
            document!(
                "AccessPolicy",
                "spec:\n  kubernetesApi:\n    rules:\n    - {effect: deny, paths: [healthz]}\n    otherwise: allow\n"
            ),
        ),
        (
            "path with a broken percent-encoding",
            document!(
                "AccessPolicy",
                "spec:\n  kubernetesApi:\n    rules:\n    - {effect: deny, paths: [/a%2]}\n    otherwise: allow\n"
            ),
        ),
        (
            "too many rules",
            Made(|directory| {
                let head = "apiVersion: postern/v1\nkind: AccessPolicy\nmetadata:\n  name: a\n";
                let rules = "    - {effect: deny}\n".repeat(1_001);
                let text =
                    format!("{head}spec:\n  kubernetesApi:\n    rules:\n{rules}    otherwise: allow\n");
                fs::write(directory.join("a.yaml"), text).unwrap();
                directory.to_owned()
            }),
        ),
    ]
}

fn directories() -> Vec<(&'static str, Files)> {
    vec![
        ("directory that is not there", Made(|directory| directory.join("nowhere"))),
        (
            "file instead of a directory",
            Made(|directory| {
                let file = directory.join("a.yaml");
                fs::write(&file, "").unwrap();
                file
            }),
        ),
        ("directory without policy files", Made(Path::to_owned)),
        (
            "far too many files",
            Made(|directory| {
                for number in 0..=1_000 {
                    fs::write(directory.join(format!("{number}.yaml")), "").unwrap();
                }
                directory.to_owned()
            }),
        ),
        (
            "empty file",
            Made(|directory| {
                fs::write(directory.join("a.yaml"), "").unwrap();
                directory.to_owned()
            }),
        ),
        (
            "far too large a file",
            Made(|directory| {
                let file = fs::File::create(directory.join("a.yaml")).unwrap();
                // Of holes only.
                file.set_len(1 << 30).unwrap();
                directory.to_owned()
            }),
        ),
        (
            "far too much in all files",
            Made(|directory| {
                for number in 10..27 {
                    fs::write(directory.join(format!("{number}.yaml")), "#".repeat(1 << 20)).unwrap();
                }
                directory.to_owned()
            }),
        ),
        (
            "far too many documents",
            Made(|directory| {
                let documents = |count| "---\n~\n".repeat(count);
                fs::write(directory.join("a.yaml"), documents(10_000)).unwrap();
                fs::write(directory.join("b.yaml"), documents(2)).unwrap();
                directory.to_owned()
            }),
        ),
        (
            "link to nowhere",
            Made(|directory| {
                std::os::unix::fs::symlink("gone", directory.join("a.yaml")).unwrap();
                directory.to_owned()
            }),
        ),
        (
            "FIFO",
            Made(|directory| {
                let mode = rustix::fs::Mode::from_raw_mode(0o600);
                let path = directory.join("a.yaml");
                rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
                directory.to_owned()
            }),
        ),
        (
            "socket",
            Made(|directory| {
                std::os::unix::net::UnixListener::bind(directory.join("a.yaml")).unwrap();
                directory.to_owned()
            }),
        ),
        (
            "device",
            Made(|directory| {
                std::os::unix::fs::symlink("/dev/zero", directory.join("a.yaml")).unwrap();
                directory.to_owned()
            }),
        ),
        (
            "text that is not UTF-8",
            Made(|directory| {
                fs::write(directory.join("a.yaml"), b"# caf\xc3\xa9\n# caf\xe9\n").unwrap();
                directory.to_owned()
            }),
        ),
    ]
}

/// Ten times as much with each line.
fn bomb(directory: &Path) -> PathBuf {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for line in 1..9 {
        let aliases = vec![format!("*a{}", line - 1); 10].join(", ");
        text += &format!("a{line}: &a{line} [{aliases}]\n");
    }
    fs::write(directory.join("a.yaml"), text).unwrap();
    directory.to_owned()
}

/// 27 documents of 9,500.
fn many_combinations(directory: &Path) -> PathBuf {
    let list = |first: u32, count: u32| {
        let ids: Vec<String> = (first..first + count).map(|id| id.to_string()).collect();
        ids.join(", ")
    };
    let mut text = String::new();
    for number in 0..27 {
        text += &format!(
            "---\napiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {{name: a{number}}}\n\
             match:\n  agentIds: [{}]\n  projectIds: [{}]\nspec: {{agentCallsPerMinute: 1}}\n",
            list(1 + number * 100, 100),
            list(1, 95),
        );
    }
    fs::write(directory.join("a.yaml"), text).unwrap();
    directory.to_owned()
}
