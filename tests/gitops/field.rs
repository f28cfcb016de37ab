//! A field whose agent applies manifests of its own project to the real control plane, and what tests ask of both: commits
//! on the one side, objects on the other, and what the broker was told in between.

use crate::{
    harness::{AGENT, Field, Options, git, http, random, until},
    kubectl::control_plane,
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use kube::{
    Client,
    api::{Api, DynamicObject, ListParams, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::net::TcpStream;

pub(crate) const NAMESPACES: usize = 10;
/// In each namespace, beside a Deployment and a custom resource.
pub(crate) const MAPS: usize = 17;

/// A field beside one real cluster, which other tests use as well: everything of this test has a prefix of its own.
pub(crate) struct Gitops {
    pub(crate) field: Field,
    pub(crate) client: Client,
    /// A legal beginning of names, and the name of the namespace that the agent's pod is in.
    pub(crate) prefix: String,
    options: Options,
    api: SocketAddr,
    secret: Vec<u8>,
    _keys: tempfile::TempDir,
}

/// The configuration of one project, the agent's own; further keys of it as a YAML flow mapping's inside.
fn document(prefix: &str, more: &str, sections: &str) -> String {
    format!(
        "gitops:\n  manifest_projects:\n  - {{id: group/config, default_namespace: {prefix}, \
         paths: [{{glob: 'manifests/**/*.yaml'}}]{more}}}\n{sections}"
    )
}

impl Gitops {
    /// `more`: further keys of the project, such as `, prune: false`. `sections`: further sections of the configuration.
    pub(crate) async fn start(more: &str, sections: &str) -> Self {
        postern_certs::install_provider();
        let prefix = format!("t{}", random()[..8].to_lowercase());
        let kubeconfig = control_plane::kubeconfig();
        let client = client(&kubeconfig).await;
        // Before the agent, whose lease is there.
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": prefix}});
        apply(&client, &namespace).await;
        let keys = tempfile::tempdir().unwrap();
        let (secret, file) = (random().into_bytes(), keys.path().join("api-secret"));
        fs::write(&file, BASE64_STANDARD.encode(&secret)).unwrap();
        let kas = format!(
            "agent:\n  listen: {{address: '127.0.0.1:0', websocket: true}}\n  kubernetes_api:\n    \
             listen: {{address: '127.0.0.1:0'}}\n    url_path_prefix: /k8s-proxy/\n    agent_wait: 20s\n  \
             configuration: {{poll_period: 1s}}\n  gitops: {{poll_period: 1s}}\n\
             observability: {{listen: {{address: '127.0.0.1:0'}}}}\n\
             api: {{listen: {{address: '127.0.0.1:0', authentication_secret_file: '{}'}}}}\n\
             embedded: {{identities_file: identities.yaml}}\n",
            file.display()
        );
        let options = Options {
            kubeconfig: Some(kubeconfig),
            configuration: Box::leak(document(&prefix, more, sections).into_boxed_str()),
            agent_env: vec![("POD_NAMESPACE", prefix.clone())],
            kas: Some(kas),
            log: Some("info"),
            ..Options::default()
        };
        let mut field = Field::with(options.clone()).await;
        let api = field.broker.address("listening", |line| line["listener"] == "api").await;
        Self { field, client, prefix, options, api, secret, _keys: keys }
    }

    /// Another agent of the same identity, in a pod of that name.
    pub(crate) async fn replica(&self, pod: &str) -> (crate::harness::Process, SocketAddr) {
        let mut options = self.options.clone();
        options.agent_env.push(("POD_NAME", pod.to_owned()));
        self.field.agent_beside(&options).await
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.field.folder.path().join("config")
    }

    /// Writes a file below `manifests/`.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let file = self.repository().join("manifests").join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    /// 10 namespaces, a CustomResourceDefinition, and in each namespace a custom resource, a Deployment and 17 ConfigMaps; the
    /// last namespace has one ConfigMap less: 200 objects.
    pub(crate) fn write_two_hundred(&self) -> usize {
        let prefix = &self.prefix;
        let mut objects = 1;
        self.write(
            "zz-definition.yaml",
            &format!(
                "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n\
                 metadata: {{name: things.{prefix}.example.com}}\nspec:\n  group: {prefix}.example.com\n  scope: Namespaced\n  \
                 names: {{plural: things, singular: thing, kind: Thing}}\n  versions:\n  - name: v1\n    served: true\n    \
                 storage: true\n    schema: {{openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}\n"
            ),
        );
        for number in 0..NAMESPACES {
            let namespace = format!("{prefix}-{number}");
            let mut text = format!(
                "apiVersion: {prefix}.example.com/v1\nkind: Thing\nmetadata: {{name: thing, namespace: {namespace}}}\n\
                 spec: {{number: {number}}}\n---\n\
                 apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\n  namespace: {namespace}\n  annotations:\n    \
                 config.kubernetes.io/depends-on: /namespaces/{namespace}/ConfigMap/map-0\nspec:\n  replicas: 0\n  \
                 selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    \
                 spec: {{containers: [{{name: c, image: none}}]}}\n"
            );
            objects += 2;
            let maps = if number + 1 == NAMESPACES { MAPS - 1 } else { MAPS };
            for map in 0..maps {
                write!(text, "---\n{}", config_map(&namespace, &format!("map-{map}"), "one")).unwrap();
                objects += 1;
            }
            // Behind what lives in it: the order is not that of the files.
            write!(text, "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n").unwrap();
            objects += 1;
            self.write(&format!("n{number}/all.yaml"), &text);
        }
        objects
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.repository().join("manifests").join(name)).unwrap();
    }

    /// Changes the agent's configuration.
    pub(crate) fn configure(&self, more: &str, sections: &str) -> String {
        let file = self.repository().join(".gitlab/agents/test/config.yaml");
        fs::write(file, document(&self.prefix, more, sections)).unwrap();
        self.commit()
    }

    /// Commits everything; the commit's id.
    pub(crate) fn commit(&self) -> String {
        let repository = self.repository();
        git(&repository, &["add", "-A"]);
        git(&repository, &["commit", "-qm", "next", "--allow-empty"]);
        self.head()
    }

    pub(crate) fn head(&self) -> String {
        let output = std::process::Command::new("git")
            .args(["rev-parse", "HEAD"])
            .current_dir(self.repository())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// What the broker says of the agent's projects.
    pub(crate) async fn told(&self) -> Value {
        self.ask(&format!("/api/v1/agents/{AGENT}/gitops")).await.1
    }

    /// Waits until the broker was told that this commit has come so far.
    pub(crate) async fn reaches(&self, commit: &str, state: &str) -> Value {
        until(&format!("{commit} is {state}"), async || {
            let told = self.told().await;
            let found = told["projects"].as_array()?.iter().find(|item| {
                item["commit_id"] == commit && item["state"] == state && item["project"] == "group/config"
            });
            found.cloned()
        })
        .await
    }

    /// A page of the broker's API.
    pub(crate) async fn ask(&self, path: &str) -> (u16, Value) {
        let stream = TcpStream::connect(self.api).await.unwrap();
        let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", "kas")
            .header("authorization", format!("Bearer {}", self.jwt()))
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = send.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// As Rails makes them.
    fn jwt(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!(
            "{}.{}",
            part(json!({"alg": "HS256", "typ": "JWT"})),
            part(json!({"iss": "gitlab", "aud": "gitlab-kas", "exp": now + 60}))
        );
        let tag = hmac(&self.secret, signed.as_bytes());
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(tag))
    }

    /// The names of all ConfigMaps of a namespace, but those that Kubernetes makes itself and the inventory.
    pub(crate) async fn config_maps(&self, namespace: &str) -> BTreeMap<String, DynamicObject> {
        let api = api(&self.client, "", "v1", "ConfigMap", "configmaps", Some(namespace));
        let all = api.list(&ListParams::default()).await.unwrap();
        let named = all.items.into_iter().map(|object| (object.metadata.name.clone().unwrap(), object));
        named.filter(|(name, _)| name != "kube-root-ca.crt" && !name.starts_with("inventory-")).collect()
    }

    /// What the agent has asked of the API server for manifests; its watches, Lease and Events are not among it.
    pub(crate) async fn calls(&self) -> f64 {
        let mut calls = 0.0;
        for verb in ["discover", "get", "apply", "create", "replace", "delete"] {
            calls += self.metric(None, &format!("agentk_cluster_calls_total{{verb=\"{verb}\"}}")).await;
        }
        calls
    }

    /// Objects that the agent has applied.
    pub(crate) async fn applied(&self, probes: Option<SocketAddr>) -> f64 {
        self.metric(probes, "agentk_gitops_objects_total{result=\"applied\"}").await
    }

    /// A value of the agent's metrics, summed over all labels that are not named; of another replica where that is given.
    pub(crate) async fn metric(&self, probes: Option<SocketAddr>, name: &str) -> f64 {
        let address = probes.unwrap_or(self.field.addresses.agent_probes);
        let (_, text) = http::text(address, "/metrics").await.expect("metrics");
        let values = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

pub(crate) fn config_map(namespace: &str, name: &str, value: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {namespace}}}\ndata: {{value: '{value}'}}\n"
    )
}

pub(crate) async fn client(kubeconfig: &std::path::Path) -> Client {
    let config = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(config, &options).await.unwrap();
    Client::try_from(config).unwrap()
}

pub(crate) fn api(
    client: &Client,
    group: &str,
    version: &str,
    kind: &str,
    plural: &str,
    namespace: Option<&str>,
) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// Applies an object as somebody else than the agent.
pub(crate) async fn apply(client: &Client, object: &Value) {
    let text = |at: &str| object.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, version) = (text("/kind"), text("/apiVersion"));
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let plural = format!("{}s", kind.to_lowercase());
    let namespace = Some(text("/metadata/namespace")).filter(|name| !name.is_empty());
    let api = api(client, group, version, &kind, &plural, namespace.as_deref());
    let parameters = PatchParams::apply("somebody").force();
    api.patch(&text("/metadata/name"), &parameters, &Patch::Apply(object)).await.unwrap();
}

fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0; 64];
    match key.len() {
        0..=64 => block[..key.len()].copy_from_slice(key),
        _ => block[..32].copy_from_slice(&Sha256::digest(key)),
    }
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new_with_prefix(pad(0x36)).chain_update(message).finalize();
    Sha256::new_with_prefix(pad(0x5c)).chain_update(inner).finalize().to_vec()
}
