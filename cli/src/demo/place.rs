//! The demo's directory: every file that its programs and its user read, and the secrets among them (mode 0600). Written
//! before the program that reads a file is started; the paths are fixed, the content is new for each run.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use postern_certs::dev::Ca;
use serde_json::{Value, json};

use crate::tokens;

/// The id of the demo's only agent.
pub(super) const AGENT_ID: i64 = 1;
pub(super) const AGENT_NAME: &str = "demo";
/// The agent's configuration in its repository.
pub(super) const CONFIGURATION: &str = ".gitlab/agents/demo/config.yaml";
/// Of each token during a tour: soon reached, and refilled slowly enough to be reached on a slow machine too.
const REQUESTS_PER_MINUTE: u32 = 120;
pub(super) const BURST: u32 = 60;
/// How soon a commit reaches the agent where nobody announces it: Gitaly does not.
const POLL_PERIOD: &str = "2s";

/// A file of the demo could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub(super) struct WriteError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Tokens of this run. Never printed: they go to files of mode 0600.
pub(super) struct Tokens {
    agent: String,
    you: String,
    hasty: String,
    scout: String,
}

/// Who says who may call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Callers {
    /// The broker's own file; a caller is somebody with a name.
    File,
    /// GitLab; a caller is a CI job.
    GitLab,
}

pub(super) struct Place {
    root: PathBuf,
    /// Removed at the end, unless it is to be kept.
    temporary: Option<tempfile::TempDir>,
    pub(super) ca: Ca,
    callers: Callers,
    tokens: Tokens,
}

impl Place {
    /// A directory given by the user, or a temporary one.
    pub(super) fn open(given: Option<&Path>, callers: Callers) -> Result<Place, WriteError> {
        let (root, temporary) = match given {
            Some(root) => {
                let failed = |source| WriteError { path: root.to_owned(), source };
                DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed)?;
                (fs::canonicalize(root).map_err(failed)?, None)
            }
            None => {
                let failed = |source| WriteError { path: std::env::temp_dir(), source };
                let made = tempfile::Builder::new().prefix("postern-demo-").tempdir().map_err(failed)?;
                (made.path().to_owned(), Some(made))
            }
        };
        let new = tokens::new_token;
        let tokens = Tokens { agent: new(), you: new(), hasty: new(), scout: new() };
        let place = Place { root, temporary, ca: Ca::new(), callers, tokens };
        let failed = |source| WriteError { path: place.root.clone(), source };
        fs::create_dir_all(place.path("logs")).map_err(failed)?;
        place.ca.write(&place.root).map_err(failed)?;
        place.ca.issue(&["localhost", "127.0.0.1", "::1"]).write(&place.root).map_err(failed)?;
        Ok(place)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Leaves a temporary directory behind, for its logs.
    pub(super) fn keep(&mut self) {
        if let Some(directory) = self.temporary.take() {
            let _ = directory.keep();
        }
    }

    /// `Authorization` of the demo's user.
    pub(super) fn your_token(&self) -> String {
        self.as_caller(&self.tokens.you)
    }

    /// `Authorization` of nobody.
    pub(super) fn wrong_token(&self) -> String {
        self.as_caller(&tokens::new_token())
    }

    /// How a caller says who it is and which agent it wants.
    fn as_caller(&self, token: &str) -> String {
        let kind = match self.callers {
            Callers::File => "postern",
            Callers::GitLab => "ci",
        };
        format!("{kind}:{AGENT_ID}:{token}")
    }

    /// `Authorization` of a second caller, who runs into the rate limit so that the user does not.
    pub(super) fn hasty_token(&self) -> String {
        self.as_caller(&self.tokens.hasty)
    }

    /// `Authorization` of a third one, who asks until the cluster can be reached.
    pub(super) fn scout_token(&self) -> String {
        self.as_caller(&self.tokens.scout)
    }

    pub(super) fn write_broker(&self, repository: &Path) -> Result<PathBuf, WriteError> {
        let hash = |token: &str| json!([tokens::hex_of(token)]);
        let caller = |name: &str, token: &str| json!({"name": name, "token_sha256": hash(token), "agents": [AGENT_ID]});
        let identities = json!({
            "agents": [{
                "id": AGENT_ID,
                "name": AGENT_NAME,
                "project": {"id": 1, "path": "demo/config"},
                "repository": repository,
                "token_sha256": hash(&self.tokens.agent),
            }],
            "callers": [
                caller("you", &self.tokens.you),
                caller("hasty", &self.tokens.hasty),
                caller("scout", &self.tokens.scout),
            ],
        });
        let identities_file = self.write("identities.yaml", &yaml(&identities))?;
        let mut config = broker();
        config["embedded"] = json!({"identities_file": identities_file});
        self.write("kas.yaml", &yaml(&config))
    }

    /// What GitLab must know: the agent's token, and those of the callers' jobs.
    pub(super) fn gitlab_tokens(&self) -> (&str, [&str; 3]) {
        let Tokens { agent, you, hasty, scout } = &self.tokens;
        (agent, [you, hasty, scout])
    }

    /// The broker as a kas of the GitLab at this address, which shares this secret with it in both directions.
    pub(super) fn write_kas(&self, address: &str, secret: &str) -> Result<PathBuf, WriteError> {
        let secret = self.write("gitlab-secret", secret)?;
        let mut config = broker();
        config["gitlab"] = json!({"address": address, "authentication_secret_file": secret});
        config["agent"]["configuration"] = json!({"poll_period": POLL_PERIOD});
        config["api"] = json!({"listen": {"address": "127.0.0.1:0", "authentication_secret_file": secret}});
        self.write("kas.yaml", &yaml(&config))
    }

    /// `limited`: with the small limits of a tour instead of the edge's own defaults.
    pub(super) fn write_edge(
        &self,
        agents: SocketAddr,
        kubernetes_api: SocketAddr,
        limited: bool,
    ) -> Result<PathBuf, WriteError> {
        let certificate = json!({"certificate_file": "tls.crt", "key_file": "tls.key"});
        let limits = match limited {
            true => json!({"requests_per_token_per_minute": REQUESTS_PER_MINUTE, "burst": BURST}),
            false => json!({}),
        };
        let config = json!({
            "listen": [{"address": "127.0.0.1:0", "tls": {"certificates": [certificate]}}],
            "upstreams": {
                "agents": {"addresses": [agents.to_string()]},
                "kubernetes_api": {"addresses": [kubernetes_api.to_string()]},
            },
            "limits": limits,
            "drain": {"grace": "3s"},
            "admin": {"listen": "127.0.0.1:0"},
        });
        self.write("edge.yaml", &yaml(&config))
    }

    pub(super) fn write_agent_token(&self) -> Result<PathBuf, WriteError> {
        self.write("agent-token", &format!("{}\n", self.tokens.agent))
    }

    /// The kubeconfig of the demo's user: through the edge.
    pub(super) fn write_kubeconfig(&self, edge: SocketAddr) -> Result<PathBuf, WriteError> {
        let name = "postern-demo";
        let cluster = json!({
            "server": format!("https://localhost:{}/k8s-proxy", edge.port()),
            "certificate-authority-data": BASE64.encode(self.ca.pem()),
        });
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": {"token": self.your_token()}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        });
        self.write("kubeconfig", &yaml(&config))
    }

    /// Writes a file that only its owner may read, in one step.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf, WriteError> {
        let path = self.path(name);
        let aside = self.path(&format!(".{name}.new"));
        let written = (|| {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(text.as_bytes())?;
            fs::rename(&aside, &path)
        })();
        match written {
            Ok(()) => Ok(path),
            Err(source) => Err(WriteError { path, source }),
        }
    }
}

/// What every broker of the demo has.
fn broker() -> Value {
    let any = json!({"address": "127.0.0.1:0"});
    json!({
        "agent": {
            "listen": {"address": "127.0.0.1:0", "listen_grace_period": "0s"},
            "kubernetes_api": {
                "listen": {
                    "address": "127.0.0.1:0",
                    "listen_grace_period": "0s",
                    "shutdown_grace_period": "3s",
                },
                "url_path_prefix": "/k8s-proxy/",
            },
        },
        "observability": {"listen": any},
    })
}

fn yaml(document: &Value) -> String {
    serde_yaml::to_string(document).expect("a JSON document can be written as YAML")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::{Callers, Place, Tokens};

    #[test]
    fn files_with_secrets_are_for_their_owner_only() {
        let place = Place::open(None, Callers::File).unwrap();
        let address = "127.0.0.1:1".parse().unwrap();
        place.write_broker("/repository".as_ref()).unwrap();
        place.write_kas("http://127.0.0.1:1", "AAAA").unwrap();
        place.write_agent_token().unwrap();
        place.write_kubeconfig(address).unwrap();
        for name in ["identities.yaml", "kas.yaml", "gitlab-secret", "agent-token", "kubeconfig", "tls.key"] {
            let mode = std::fs::metadata(place.path(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn the_broker_gets_hashes_and_never_a_token() {
        let place = Place::open(None, Callers::File).unwrap();
        let path = place.write_broker("/repository".as_ref()).unwrap();
        let written =
            [path, place.path("identities.yaml")].map(|path| std::fs::read_to_string(path).unwrap());
        let Tokens { agent, you, hasty, scout } = &place.tokens;
        for token in [agent, you, hasty, scout] {
            assert!(written.iter().all(|text| !text.contains(token.as_str())));
        }
    }
}
