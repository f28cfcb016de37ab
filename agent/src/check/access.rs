//! The step into the cluster: whether the API server is there, of which version, as whom it knows the agent, and what
//! that account may do. It only asks; the reviews it posts are questions that the API server keeps nothing of.

use super::{
    needs::{self, Feature, Right},
    report::{Found, Silence, Steps, Trouble},
};
use crate::{
    cluster::{Cluster, ClusterError, Kind},
    error,
    kubernetes_api::{Access, Settings},
    observability::Metrics,
};
use futures::stream::{StreamExt, TryStreamExt, iter};
use postern_wire::proto::gitlab::agent::agentcfg::AgentConfiguration;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Questions in flight.
const AT_ONCE: usize = 8;
/// Of missing rights, those that the finding names; the rules have all.
const NAMED: usize = 6;

const CREDENTIALS: &str = "check --kubeconfig, --context, --server and --token, or the pod's service account";
const UNREACHABLE: &str = "can this pod or machine reach the API server? check --server or the kubeconfig, \
                           NetworkPolicies, and NO_PROXY where HTTPS_PROXY is set";
const NOT_KUBERNETES: &str = "is it a Kubernetes API? check --server or the kubeconfig";
const REFUSED: &str =
    "the API server does not take the agent's credentials: are they expired, or of another cluster?";
const BIND: &str =
    "add these rules to roles that are bound to the agent's account (deploy/rbac.yaml has examples)";

/// Credentials, or why there are none, and how long that took.
pub(super) struct Loaded {
    access: Result<Access, Trouble>,
    took: Duration,
}

impl Loaded {
    pub(super) async fn load(settings: Settings, limit: Duration) -> Self {
        let began = Instant::now();
        let access = match timeout(limit, Access::load(settings)).await {
            Ok(loaded) => {
                loaded.map_err(|cause| Trouble { finding: error::chain(&cause), fix: CREDENTIALS.to_owned() })
            }
            Err(_) => Err(Trouble {
                finding: format!("no credentials within {limit:?}"),
                fix: "run the credential plugin of the kubeconfig by itself to see what it waits for"
                    .to_owned(),
            }),
        };
        Self { access, took: began.elapsed() }
    }

    pub(super) fn access(&self) -> Option<&Access> {
        self.access.as_ref().ok()
    }
}

/// Asks the cluster.
pub(super) async fn kubernetes(
    steps: &mut Steps,
    loaded: Loaded,
    configuration: Option<&AgentConfiguration>,
    pod_namespace: &str,
) {
    let Loaded { access, took } = loaded;
    let silence = Silence { what: "no complete answer of the Kubernetes API".to_owned(), fix: UNREACHABLE };
    let asking = async {
        let (cluster, _) = Cluster::new(access?, "", &Metrics::default());
        let version = cluster.version().await.map_err(trouble)?;
        let version = version["gitVersion"].as_str().ok_or_else(|| Trouble {
            finding: "the answer to /version is not Kubernetes'".to_owned(),
            fix: NOT_KUBERNETES.to_owned(),
        })?;
        let whom = account(&cluster).await.map_or_else(String::new, |name| format!(" as {name}"));
        let features = needs::features(configuration, pod_namespace);
        let missing = missing(&cluster, &features).await.map_err(trouble)?;
        Ok(judge(format!("Kubernetes {version}{whom}"), &missing))
    };
    steps.run(silence, asking).await;
    steps.took_also(took);
}

fn trouble(error: ClusterError) -> Trouble {
    let fix = match &error {
        ClusterError::Refused { status: 401, .. } => REFUSED,
        ClusterError::Refused { status: 403, .. } => {
            "the account may not even ask what it may do: bind it to the ClusterRole system:basic-user"
        }
        ClusterError::Unreachable { .. } => UNREACHABLE,
        _ => NOT_KUBERNETES,
    };
    Trouble { finding: error::chain(&error), fix: fix.to_owned() }
}

/// As whom the API server knows the agent; servers before 1.28 do not say.
async fn account(cluster: &Cluster) -> Option<String> {
    let kind = Kind::new("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", false);
    let question = json!({"apiVersion": kind.api_version(), "kind": kind.kind});
    let answer = cluster.create(&kind, &question).await.ok()?;
    answer["status"]["userInfo"]["username"].as_str().map(str::to_owned)
}

async fn missing<'a>(
    cluster: &Cluster,
    features: &'a [Feature],
) -> Result<Vec<(&'a Feature, Vec<Right>)>, ClusterError> {
    let mut all = Vec::new();
    for feature in features {
        let questions =
            iter(feature.rights()).map(async |right| Ok((allowed(cluster, &right).await?, right)));
        let answers: Vec<_> = questions.buffered(AT_ONCE).try_collect().await?;
        let missing: Vec<_> =
            answers.into_iter().filter(|(allowed, _)| !allowed).map(|(_, right)| right).collect();
        if !missing.is_empty() {
            all.push((feature, missing));
        }
    }
    Ok(all)
}

async fn allowed(cluster: &Cluster, right: &Right) -> Result<bool, ClusterError> {
    const KIND: &str = "SelfSubjectAccessReview";
    let kind = Kind::new("authorization.k8s.io", "v1", KIND, "selfsubjectaccessreviews", false);
    let (resource, subresource) = right.resource.split_once('/').unwrap_or((right.resource, ""));
    let attributes = json!({
        "namespace": right.namespace,
        "group": right.group,
        "resource": resource,
        "subresource": subresource,
        "verb": right.verb,
    });
    let question =
        json!({"apiVersion": kind.api_version(), "kind": KIND, "spec": {"resourceAttributes": attributes}});
    let answer = cluster.create(&kind, &question).await?;
    match answer["status"]["allowed"] {
        Value::Bool(allowed) => Ok(allowed),
        _ => {
            let (what, problem) = (format!("ask by {KIND}"), "the answer has no `allowed`".to_owned());
            Err(ClusterError::Odd { what, problem })
        }
    }
}

fn judge(server: String, missing: &[(&Feature, Vec<Right>)]) -> Found<()> {
    let (warned, noted): (Vec<_>, Vec<_>) = missing.iter().partition(|(feature, _)| feature.warns);
    let mut finding = server;
    for (feature, rights) in &warned {
        let mut named: Vec<_> = rights.iter().take(NAMED).map(in_words).collect();
        if rights.len() > NAMED {
            named.push(format!("{} more", rights.len() - NAMED));
        }
        finding.push_str(&format!("; {} lacks {}", feature.name, named.join(", ")));
    }
    for (feature, _) in &noted {
        finding.push_str(&format!("; {} are not allowed", feature.name));
    }
    if warned.is_empty() {
        return Found::new((), finding);
    }
    let rules: String = warned.iter().map(|(feature, rights)| needs::yaml(feature.name, rights)).collect();
    Found::new((), finding).but(format!("{BIND}:\n{}", rules.trim_end()))
}

fn in_words(right: &Right) -> String {
    let Right { namespace, group, resource, verb } = right;
    let dot = if group.is_empty() { "" } else { "." };
    let place = if namespace.is_empty() { String::new() } else { format!(" in {namespace}") };
    format!("{verb} {resource}{dot}{group}{place}")
}
