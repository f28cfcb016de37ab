//! The command line as typed: agentk's flags of both generations and kubectl's connection flags.

use super::{Problems, duration};
use crate::{
    BUILT, COMMIT, VERSION,
    broker::proxy::Proxies,
    kubernetes_api::{Overrides, Settings},
};
use clap::{ArgAction, Args, Parser, Subcommand};
use http::Uri;
use std::path::PathBuf;

/// What `--version` prints.
pub fn version() -> String {
    format!("agentk version {VERSION}, commit: {COMMIT}, built: {BUILT}")
}

/// Serves the Kubernetes API of this cluster to a broker (kas) that the agent dials itself.
///
/// AGENTK_TOKEN may hold the token instead of --token-file. HTTPS_PROXY, HTTP_PROXY and NO_PROXY are honoured.
/// POSTERN_LOG sets the log level ("debug", "info,postern_agent=trace"). POD_NAMESPACE and POD_NAME name the pod.
#[derive(Parser)]
#[command(
    name = "agentk",
    args_override_self = true,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
pub struct CommandLine {
    #[command(flatten)]
    pub flags: Flags,

    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What else there is to do.
#[derive(Subcommand)]
pub enum Command {
    /// Says step by step what keeps the agent from its broker and its cluster, and what to do about it
    #[command(about = CHECK, long_about = CHECK_LONG, args_override_self = true)]
    Check(CheckFlags),
}

const CHECK: &str =
    "Say step by step what keeps the agent from its broker and its cluster, and how to mend it";
const CHECK_LONG: &str = "Say step by step what keeps the agent from its broker and its cluster, and how to mend it.

Takes the agent's own flags and environment, changes nothing, and does not disturb an agent that runs. The exit code is \
0, or 10 and the index of the first step that failed: dns 10, tcp 11, proxy 12, tls 13, upgrade or alpn or h2c 14, \
token 15, tunnel 16, kubernetes 17.";

/// `agentk check`.
#[derive(Args)]
pub struct CheckFlags {
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub flags: Flags,
}

/// What the agent is told at start, and its check likewise.
#[derive(Parser)]
#[command(name = "agentk", disable_version_flag = true, args_override_self = true)]
pub struct Flags {
    /// Address of the broker: grpc://host:port, grpcs://host:port, ws://host/path or wss://host/path
    #[arg(long, value_name = "URL")]
    pub kas_address: Option<String>,

    /// File with the agent token; re-read when it changes
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// PEM bundle of certificate authorities, trusted beside the system's; re-read when it changes
    #[arg(long, value_name = "FILE")]
    pub ca_cert_file: Option<PathBuf>,

    /// Header to send to the broker, as "Name: value"; may be repeated
    #[arg(long, value_name = "HEADER")]
    pub kas_header: Vec<String>,

    /// Name to expect in the broker's certificate, instead of the host of --kas-address
    #[arg(long, value_name = "NAME")]
    pub kas_tls_server_name: Option<String>,

    /// Accept any certificate of the broker; the token is then safe from nobody on the way
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub kas_insecure_skip_tls_verify: bool,

    /// Network of the listener for probes and metrics: tcp, tcp4, tcp6 or unix
    #[arg(long, value_name = "NETWORK", default_value = "tcp")]
    pub observability_listen_network: String,

    /// Address of the listener for probes and metrics; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = ":8080")]
    pub observability_listen_address: String,

    /// Certificate for that listener
    #[arg(long, value_name = "FILE")]
    pub observability_cert_file: Option<PathBuf>,

    /// Key for that listener
    #[arg(long, value_name = "FILE")]
    pub observability_key_file: Option<PathBuf>,

    #[command(flatten)]
    pub(super) kubernetes: KubernetesFlags,

    /// Print the version and exit
    #[arg(long)]
    pub version: bool,
}

/// kubectl's flags; without any of them the pod's service account is used.
#[derive(Args)]
#[command(next_help_heading = "Kubernetes API")]
pub(super) struct KubernetesFlags {
    /// kubeconfig to use; else KUBECONFIG, ~/.kube/config, or the pod's service account
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long)]
    context: Option<String>,
    /// Cluster of the kubeconfig
    #[arg(long)]
    cluster: Option<String>,
    /// User of the kubeconfig
    #[arg(long)]
    user: Option<String>,
    /// Default namespace
    #[arg(long, short = 'n')]
    namespace: Option<String>,
    /// Address of the API server
    #[arg(long, short = 's', value_name = "URL")]
    server: Option<String>,
    /// Bearer token
    #[arg(long, hide_env_values = true)]
    token: Option<String>,
    /// User to impersonate
    #[arg(long = "as", value_name = "USER")]
    impersonate: Option<String>,
    /// Group to impersonate; may be repeated
    #[arg(long = "as-group", value_name = "GROUP")]
    impersonate_groups: Vec<String>,
    /// UID to impersonate
    #[arg(long = "as-uid", value_name = "UID")]
    impersonate_uid: Option<String>,
    /// Certificate authorities of the API server
    #[arg(long, value_name = "FILE")]
    certificate_authority: Option<PathBuf>,
    /// Client certificate
    #[arg(long, value_name = "FILE")]
    client_certificate: Option<PathBuf>,
    /// Client key
    #[arg(long, value_name = "FILE")]
    client_key: Option<PathBuf>,
    /// Accept any certificate of the API server
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    insecure_skip_tls_verify: Option<bool>,
    /// Name to expect in the API server's certificate
    #[arg(long, value_name = "NAME")]
    tls_server_name: Option<String>,
    /// Limit for whole requests, as 30s or 2m; 0 is none
    #[arg(long, value_name = "DURATION", default_value = "0")]
    request_timeout: String,
    /// Accepted and not used
    #[arg(long, value_name = "DIRECTORY")]
    cache_dir: Option<PathBuf>,
    /// User name for basic authentication
    #[arg(long)]
    username: Option<String>,
    /// Password for basic authentication
    #[arg(long)]
    password: Option<String>,
}

impl KubernetesFlags {
    pub(super) fn settings(
        self,
        env: &impl Fn(&str) -> Option<String>,
        proxies: Proxies,
        problems: &mut Problems,
    ) -> Settings {
        let request_timeout = problems.check("--request-timeout", duration(&self.request_timeout)).flatten();
        let server = self.server.and_then(|given| problems.check("--server", server(&given)));
        let paths = |variable: String| {
            std::env::split_paths(&variable).filter(|path| !path.as_os_str().is_empty()).collect()
        };
        if self.client_certificate.is_some() != self.client_key.is_some() {
            problems.add("--client-certificate", "goes together with --client-key");
        }
        if self.password.is_some() && self.username.is_none() {
            problems.add("--password", "goes together with --username");
        }
        if self.token.is_some() && self.username.is_some() {
            problems.add("--token", "excludes --username");
        }
        let impersonates = self.impersonate_uid.is_some() || !self.impersonate_groups.is_empty();
        if impersonates && self.impersonate.is_none() {
            problems.add("--as-group, --as-uid", "need --as");
        }
        Settings {
            kubeconfig: self.kubeconfig,
            kubeconfig_env: env("KUBECONFIG").map(paths).unwrap_or_default(),
            kubeconfig_home: env("HOME").map(|home| PathBuf::from(home).join(".kube/config")),
            context: self.context,
            cluster: self.cluster,
            user: self.user,
            overrides: Overrides {
                server,
                namespace: self.namespace,
                token: self.token,
                username: self.username,
                password: self.password,
                certificate_authority: self.certificate_authority,
                client_certificate: self.client_certificate,
                client_key: self.client_key,
                insecure_skip_tls_verify: self.insecure_skip_tls_verify,
                tls_server_name: self.tls_server_name,
                impersonate: self.impersonate,
                impersonate_groups: self.impersonate_groups,
                impersonate_uid: self.impersonate_uid,
            },
            request_timeout,
            proxies: Some(proxies),
        }
    }
}

/// kubectl takes a bare host for a plain one.
fn server(given: &str) -> Result<Uri, String> {
    let url = if given.contains("://") { given.to_owned() } else { format!("http://{given}") };
    let uri: Uri = url.parse().map_err(|error| format!("{given:?} is not a URL: {error}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(_)) => Ok(uri),
        _ => Err(format!("{given:?} is not an http or https URL")),
    }
}
