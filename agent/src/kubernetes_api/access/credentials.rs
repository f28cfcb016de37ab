//! Which cluster, and as whom: the order in which kubectl looks (kubeconfig, then flags alone, then the pod's service
//! account), and the flags that override single values. Reads files; opens no connection.

use super::explain;
use crate::{
    broker::proxy::{Proxies, Proxy, ProxyError},
    kubernetes_api::impersonation,
};
use http::{HeaderName, HeaderValue, Uri};
use kube::{
    Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where to look for the cluster.
#[derive(Clone, Default)]
pub struct Settings {
    /// `--kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// The files of `KUBECONFIG`.
    pub kubeconfig_env: Vec<PathBuf>,
    /// `~/.kube/config`, used where it exists.
    pub kubeconfig_home: Option<PathBuf>,
    /// `--context`.
    pub context: Option<String>,
    /// `--cluster`.
    pub cluster: Option<String>,
    /// `--user`.
    pub user: Option<String>,
    /// What replaces single values.
    pub overrides: Overrides,
    /// `--request-timeout`.
    pub request_timeout: Option<Duration>,
    /// For clusters whose kubeconfig names no proxy.
    pub proxies: Option<Proxies>,
}

/// kubectl's flags for single values, each named like its flag. No `Debug`: there are secrets among them.
#[derive(Clone, Default)]
pub struct Overrides {
    pub server: Option<Uri>,
    pub namespace: Option<String>,
    pub token: Option<String>,
    pub username: Option<String>,
    pub password: Option<String>,
    pub certificate_authority: Option<PathBuf>,
    pub client_certificate: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    pub insecure_skip_tls_verify: Option<bool>,
    pub tls_server_name: Option<String>,
    pub impersonate: Option<String>,
    pub impersonate_groups: Vec<String>,
    pub impersonate_uid: Option<String>,
}

/// Why the cluster cannot be reached as configured.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Nothing says where the cluster is.
    #[error(
        "do not know which Kubernetes API to serve: this is not a pod, there is no ~/.kube/config, and neither \
         --kubeconfig nor --server is given"
    )]
    Unknown(#[source] InClusterError),
    /// A kubeconfig does not say what it should.
    #[error("kubeconfig: {what}")]
    Kubeconfig {
        /// One line; never a part of the file.
        what: String,
    },
    /// A file named on the command line cannot be used.
    #[error("{flag}: cannot use {path}")]
    File {
        /// The flag.
        flag: &'static str,
        /// Its value.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A name to impersonate that no header can carry.
    #[error("the identity to impersonate holds characters that a header cannot carry")]
    IllegalName,
    /// The proxy of the kubeconfig or of the environment.
    #[error("the way to the Kubernetes API")]
    Proxy(#[source] ProxyError),
    /// Credentials or certificates cannot be used.
    #[error("cannot prepare access to the Kubernetes API: {what}")]
    Client {
        /// One line; never a secret.
        what: String,
    },
    /// The credential plugin took the thread down with it.
    #[error("the credential plugin of the kubeconfig crashed")]
    Plugin,
}

impl AccessError {
    pub(super) fn client(error: kube::Error) -> Self {
        Self::Client { what: explain(&error) }
    }

    fn kubeconfig(error: KubeconfigError) -> Self {
        // A parser's error may quote the lines around it, and with them a token.
        let text = error.to_string();
        let what = match error {
            KubeconfigError::Parse(_) => text.lines().next().unwrap_or_default().to_owned(),
            _ => text,
        };
        Self::Kubeconfig { what }
    }

    /// Names the file, where the words do not do so already.
    fn in_file(self, path: &Path) -> Self {
        match self {
            Self::Kubeconfig { what } if !what.contains(&*path.to_string_lossy()) => {
                Self::Kubeconfig { what: format!("{}: {what}", path.display()) }
            }
            other => other,
        }
    }
}

impl Settings {
    /// Reads everything anew.
    pub(super) async fn read(&self) -> Result<(Config, Option<Proxy>), AccessError> {
        let (mut config, own_proxy) = self.base().await?;
        self.overrides.apply(&mut config)?;
        // Without one in the kubeconfig, kube would take HTTPS_PROXY whatever NO_PROXY says.
        let proxy = match config.proxy_url.take() {
            Some(uri) if own_proxy => Proxy::from_uri(&uri),
            _ => self.proxies.as_ref().and_then(|proxies| proxies.to_uri(&config.cluster_url)),
        };
        config.connect_timeout = None;
        config.read_timeout = None;
        config.write_timeout = None;
        config.default_retry = false;
        config.disable_compression = true;
        Ok((config, proxy))
    }

    async fn base(&self) -> Result<(Config, bool), AccessError> {
        let kubeconfig = match (&self.kubeconfig, self.kubeconfig_env.as_slice(), &self.kubeconfig_home) {
            (Some(path), _, _) => Some(read(std::slice::from_ref(path))?),
            (None, [_, ..], _) => Some(read(&self.kubeconfig_env)?),
            (None, [], Some(path)) if path.exists() => Some(read(std::slice::from_ref(path))?),
            _ => None,
        };
        if let Some(kubeconfig) = kubeconfig {
            let options = KubeConfigOptions {
                context: self.context.clone(),
                cluster: self.cluster.clone(),
                user: self.user.clone(),
            };
            let own_proxy = self.names_proxy(&kubeconfig);
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
            return Ok((config.map_err(AccessError::kubeconfig)?, own_proxy));
        }
        match &self.overrides.server {
            Some(server) => Ok((Config::new(server.clone()), false)),
            None => Ok((Config::incluster().map_err(AccessError::Unknown)?, false)),
        }
    }

    fn names_proxy(&self, kubeconfig: &Kubeconfig) -> bool {
        let context = self.context.as_ref().or(kubeconfig.current_context.as_ref());
        let context = kubeconfig.contexts.iter().find(|named| Some(&named.name) == context);
        let cluster =
            self.cluster.as_ref().or(context.and_then(|named| named.context.as_ref()).map(|c| &c.cluster));
        let cluster = kubeconfig.clusters.iter().find(|named| Some(&named.name) == cluster);
        let proxy = cluster.and_then(|named| named.cluster.as_ref()).and_then(|c| c.proxy_url.as_ref());
        proxy.is_some_and(|url| !url.is_empty())
    }
}

fn read(paths: &[PathBuf]) -> Result<Kubeconfig, AccessError> {
    let mut all = Kubeconfig::default();
    for path in paths {
        let next =
            Kubeconfig::read_from(path).map_err(|error| AccessError::kubeconfig(error).in_file(path))?;
        all = all.merge(next).map_err(AccessError::kubeconfig)?;
    }
    Ok(all)
}

impl Overrides {
    fn apply(&self, config: &mut Config) -> Result<(), AccessError> {
        if let Some(server) = &self.server {
            config.cluster_url = server.clone();
        }
        if let Some(namespace) = &self.namespace {
            config.default_namespace = namespace.clone();
        }
        if let Some(path) = &self.certificate_authority {
            let failed =
                |source| AccessError::File { flag: "--certificate-authority", path: path.clone(), source };
            config.root_cert = Some(certificates(path).map_err(failed)?);
            config.root_cert_file = Some(path.clone());
        }
        if let Some(skip) = self.insecure_skip_tls_verify {
            config.accept_invalid_certs = skip;
        }
        if let Some(name) = &self.tls_server_name {
            config.tls_server_name = Some(name.clone());
        }
        self.authenticate(config);
        self.impersonate(config)
    }

    fn authenticate(&self, config: &mut Config) {
        let auth = &mut config.auth_info;
        if self.token.is_some() || self.username.is_some() {
            // A credential on the command line replaces the one that was found.
            (auth.token, auth.token_file, auth.exec, auth.auth_provider) = (None, None, None, None);
            (auth.username, auth.password) = (None, None);
        }
        if let Some(token) = &self.token {
            auth.token = Some(token.clone().into());
        }
        if let (Some(username), password) = (&self.username, &self.password) {
            auth.username = Some(username.clone());
            auth.password = Some(password.clone().unwrap_or_default().into());
        }
        if let Some(path) = &self.client_certificate {
            (auth.client_certificate, auth.client_certificate_data) =
                (Some(path.display().to_string()), None);
        }
        if let Some(path) = &self.client_key {
            (auth.client_key, auth.client_key_data) = (Some(path.display().to_string()), None);
        }
    }

    fn impersonate(&self, config: &mut Config) -> Result<(), AccessError> {
        let auth = &mut config.auth_info;
        if let Some(user) = &self.impersonate {
            auth.impersonate = Some(user.clone());
            (auth.impersonate_groups, auth.impersonate_uid) = (None, None);
            auth.impersonate_user_extra = None;
        }
        if !self.impersonate_groups.is_empty() {
            auth.impersonate_groups = Some(self.impersonate_groups.clone());
        }
        if let Some(uid) = &self.impersonate_uid {
            auth.impersonate_uid = Some(uid.clone());
        }
        // kube sends user and groups only.
        let mut add = |name: HeaderName, value: &str| -> Result<(), AccessError> {
            let value = HeaderValue::try_from(value).map_err(|_| AccessError::IllegalName)?;
            config.headers.push((name, value));
            Ok(())
        };
        if let Some(uid) = &auth.impersonate_uid {
            add(HeaderName::from_static("impersonate-uid"), uid)?;
        }
        for (key, values) in auth.impersonate_user_extra.iter().flatten() {
            let name = impersonation::extra_name(key).ok_or(AccessError::IllegalName)?;
            for value in values {
                add(name.clone(), value)?;
            }
        }
        Ok(())
    }
}

fn certificates(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, format!("{error}"));
    let found = CertificateDer::pem_slice_iter(&std::fs::read(path)?)
        .map(|found| found.map(|der| der.to_vec()).map_err(invalid))
        .collect::<io::Result<Vec<_>>>()?;
    match found.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::InvalidData, "no PEM certificate in it")),
        false => Ok(found),
    }
}
