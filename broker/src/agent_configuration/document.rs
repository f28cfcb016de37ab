//! `.gitlab/agents/<name>/config.yaml` as written -> the message an agent receives. Strict: a key that no generation
//! knows is refused with its line. Defaults stay the agent's business.

use postern_wire::proto::gitlab::agent::agentcfg as wire;
use serde::{Deserialize, Deserializer, de};

/// Parses the document; an empty one is an empty configuration.
pub(super) fn parse(bytes: &[u8]) -> Result<wire::ConfigurationFile, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("not UTF-8: {error}"))?;
    let file: Option<File> = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    let file = file.unwrap_or_default();
    let mut problems = Vec::new();
    file.check(&mut problems);
    if problems.is_empty() { Ok(file.into()) } else { Err(problems.join("; ")) }
}

/// Structs as written whose fields convert one to one into the message of the same shape.
macro_rules! section {
    ($name:ident => $wire:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct $name { $($field: $kind),* }

        impl From<$name> for wire::$wire {
            fn from(written: $name) -> Self {
                Self { $($field: Meant::meant(written.$field)),* }
            }
        }
    };
}

/// From the type a field is written in to the one that is sent.
trait Meant<T> {
    fn meant(self) -> T;
}

macro_rules! same {
    ($($kind:ty),*) => { $(impl Meant<$kind> for $kind { fn meant(self) -> $kind { self } })* };
}
same!(String, bool, Vec<String>, Option<bool>);

impl<A, B: From<A>> Meant<Option<B>> for Option<A>
where
    A: Section,
{
    fn meant(self) -> Option<B> {
        self.map(B::from)
    }
}

impl<A, B: From<A>> Meant<Vec<B>> for Vec<A>
where
    A: Section,
{
    fn meant(self) -> Vec<B> {
        self.into_iter().map(B::from).collect()
    }
}

impl Meant<Option<prost_types::Duration>> for Option<Span> {
    fn meant(self) -> Option<prost_types::Duration> {
        self.map(|span| span.0)
    }
}

impl Meant<i32> for Option<Level> {
    fn meant(self) -> i32 {
        self.map_or(0, |level| level as i32)
    }
}

impl Meant<Option<i32>> for Option<Level> {
    fn meant(self) -> Option<i32> {
        self.map(|level| level as i32)
    }
}

/// Marks the structs above, so that the conversions of lists and options do not overlap.
trait Section {}
macro_rules! sections {
    ($($name:ty),* $(,)?) => { $(impl Section for $name {})* };
}
sections!(
    GitOps,
    ManifestProject,
    Path,
    GitRef,
    Observability,
    Logging,
    GoogleProfiler,
    Cilium,
    CiAccess,
    CiAccessProject,
    CiAccessGroup,
    CiAccessAs,
    ExtraKeyVal,
    ContainerScanning,
    VulnerabilityReport,
    Filter,
    Requirements,
    Resource,
    UserAccess,
    UserAccessAs,
    Id,
    RemoteDevelopment,
    WorkspacesProxy,
    NetworkPolicy,
    Flux
);

/// `"30s"`: protobuf's JSON form of a duration.
#[derive(Clone, Debug)]
struct Span(prost_types::Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let seconds = text.strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
        let span = seconds.and_then(|number| std::time::Duration::try_from_secs_f64(number).ok());
        let span = span.and_then(|span| prost_types::Duration::try_from(span).ok());
        span.map(Self).ok_or_else(|| de::Error::custom(format!("{text:?} is not a duration such as 30s")))
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Info = 0,
    Debug = 1,
    Warn = 2,
    Error = 3,
}

section!(File => ConfigurationFile {
    gitops: Option<GitOps>,
    observability: Option<Observability>,
    cilium: Option<Cilium>,
    ci_access: Option<CiAccess>,
    container_scanning: Option<ContainerScanning>,
    user_access: Option<UserAccess>,
    remote_development: Option<RemoteDevelopment>,
    flux: Option<Flux>,
});
section!(GitOps => GitopsCf { manifest_projects: Vec<ManifestProject> });
section!(Observability => ObservabilityCf { logging: Option<Logging>, google_profiler: Option<GoogleProfiler> });
section!(Logging => LoggingCf { level: Option<Level>, grpc_level: Option<Level> });
section!(GoogleProfiler => GoogleProfilerCf {
    enabled: bool,
    project_id: String,
    credentials_file: String,
    debug_logging: bool,
});
section!(Cilium => CiliumCf { hubble_relay_address: String });
section!(CiAccess => CiAccessCf { projects: Vec<CiAccessProject>, groups: Vec<CiAccessGroup> });
section!(CiAccessProject => CiAccessProjectCf {
    id: String,
    default_namespace: String,
    access_as: Option<CiAccessAs>,
    environments: Vec<String>,
});
section!(CiAccessGroup => CiAccessGroupCf {
    id: String,
    default_namespace: String,
    access_as: Option<CiAccessAs>,
    environments: Vec<String>,
});
section!(Impersonate => CiAccessAsImpersonateCf {
    username: String,
    groups: Vec<String>,
    uid: String,
    extra: Vec<ExtraKeyVal>,
});
section!(ExtraKeyVal => ExtraKeyValCf { key: String, val: Vec<String> });
section!(ContainerScanning => ContainerScanningCf {
    vulnerability_report: Option<VulnerabilityReport>,
    cadence: String,
    resource_requirements: Option<Requirements>,
});
section!(VulnerabilityReport => VulnerabilityReportCf { namespaces: Vec<String>, filters: Vec<Filter> });
section!(Filter => ContainerScanningFilterCf {
    namespaces: Vec<String>,
    resources: Vec<String>,
    containers: Vec<String>,
    kinds: Vec<String>,
});
section!(Requirements => ResourceRequirementsCf { limits: Option<Resource>, requests: Option<Resource> });
section!(Resource => ResourceCf { cpu: String, memory: String });
section!(UserAccess => UserAccessCf {
    access_as: Option<UserAccessAs>,
    projects: Vec<Id>,
    groups: Vec<Id>,
});
section!(RemoteDevelopment => RemoteDevelopmentCf {
    enabled: bool,
    dns_zone: String,
    partial_sync_interval: Option<Span>,
    full_sync_interval: Option<Span>,
    gitlab_workspaces_proxy: Option<WorkspacesProxy>,
    network_policy: Option<NetworkPolicy>,
});
section!(WorkspacesProxy => GitlabWorkspacesProxyCf { namespace: String });
section!(NetworkPolicy => NetworkPolicyCf { enabled: Option<bool> });
section!(Flux => FluxCf { webhook_receiver_url: String });

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ManifestProject {
    id: String,
    default_namespace: String,
    paths: Vec<Path>,
    reconcile_timeout: Option<Span>,
    dry_run_strategy: String,
    prune: Option<bool>,
    prune_timeout: Option<Span>,
    prune_propagation_policy: String,
    inventory_policy: String,
    r#ref: Option<GitRef>,
}

impl From<ManifestProject> for wire::ManifestProjectCf {
    fn from(written: ManifestProject) -> Self {
        Self {
            id: written.id,
            default_namespace: written.default_namespace,
            paths: written.paths.meant(),
            reconcile_timeout: written.reconcile_timeout.meant(),
            dry_run_strategy: written.dry_run_strategy,
            prune_oneof: written.prune.map(wire::manifest_project_cf::PruneOneof::Prune),
            prune_timeout: written.prune_timeout.meant(),
            prune_propagation_policy: written.prune_propagation_policy,
            inventory_policy: written.inventory_policy,
            r#ref: written.r#ref.meant(),
        }
    }
}

/// A list entry that only names something.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Id {
    id: String,
}

impl From<Id> for wire::UserAccessProjectCf {
    fn from(written: Id) -> Self {
        Self { id: written.id }
    }
}

impl From<Id> for wire::UserAccessGroupCf {
    fn from(written: Id) -> Self {
        Self { id: written.id }
    }
}

/// `agent: {}` and the like: present or not.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Mappings of which exactly one key may be written.
macro_rules! one_of {
    ($name:ident => $wire:ident, $oneof:path, $field:ident { $($key:ident: $kind:ty => $member:expr),* $(,)? }) => {
        #[derive(Clone, Debug)]
        #[expect(non_camel_case_types, reason = "variants are named as the keys are written")]
        enum $name { $($key($kind)),* }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Written { $($key: Option<$kind>),* }
                let written = Written::deserialize(deserializer)?;
                let mut members = Vec::new();
                $(members.extend(written.$key.map(Self::$key));)*
                let keys = [$(stringify!($key)),*].join(", ");
                match (members.pop(), members.is_empty()) {
                    (Some(member), true) => Ok(member),
                    _ => Err(de::Error::custom(format!("exactly one of these keys is wanted: {keys}"))),
                }
            }
        }

        impl From<$name> for wire::$wire {
            fn from(written: $name) -> Self {
                use $oneof as Oneof;
                let member: Oneof = match written { $($name::$key(value) => $member(value)),* };
                Self { $field: Some(member) }
            }
        }
    };
}

one_of!(Path => PathCf, wire::path_cf::Path, path {
    glob: String => Oneof::Glob,
    file: String => Oneof::File,
});
one_of!(GitRef => GitRefCf, wire::git_ref_cf::Ref, r#ref {
    tag: String => Oneof::Tag,
    branch: String => Oneof::Branch,
    commit: String => Oneof::Commit,
});
one_of!(CiAccessAs => CiAccessAsCf, wire::ci_access_as_cf::As, r#as {
    agent: Nothing => |_| Oneof::Agent(Default::default()),
    impersonate: Impersonate => |value: Impersonate| Oneof::Impersonate(value.into()),
    ci_job: Nothing => |_| Oneof::CiJob(Default::default()),
});
one_of!(UserAccessAs => UserAccessAsCf, wire::user_access_as_cf::As, r#as {
    agent: Nothing => |_| Oneof::Agent(Default::default()),
    user: Nothing => |_| Oneof::User(Default::default()),
});

impl File {
    /// What a type cannot say: names that must not be empty, words out of a list. All of it at once.
    fn check(&self, problems: &mut Vec<String>) {
        let mut empty = |path: String, text: &str| {
            if text.is_empty() {
                problems.push(format!("{path}: must not be empty"));
            }
        };
        let access = self.ci_access.iter();
        for (at, project) in access.clone().flat_map(|access| &access.projects).enumerate() {
            empty(format!("ci_access.projects[{at}].id"), &project.id);
        }
        for (at, group) in access.flat_map(|access| &access.groups).enumerate() {
            empty(format!("ci_access.groups[{at}].id"), &group.id);
        }
        if let Some(cilium) = &self.cilium {
            empty("cilium.hubble_relay_address".into(), &cilium.hubble_relay_address);
        }
        for (at, project) in self.gitops.iter().flat_map(|gitops| &gitops.manifest_projects).enumerate() {
            let here = format!("gitops.manifest_projects[{at}]");
            let mut word = |key: &str, text: &str, allowed: &[&str]| {
                if !text.is_empty() && !allowed.contains(&text) {
                    problems.push(format!("{here}.{key}: {text:?} is not one of {}", allowed.join(", ")));
                }
            };
            word("dry_run_strategy", &project.dry_run_strategy, &["none", "client", "server"]);
            word(
                "prune_propagation_policy",
                &project.prune_propagation_policy,
                &["orphan", "background", "foreground"],
            );
            word(
                "inventory_policy",
                &project.inventory_policy,
                &["must_match", "adopt_if_no_inventory", "adopt_all"],
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_document_is_an_empty_configuration() {
        for text in ["", "# nothing\n", "{}", "null", "gitops:\n"] {
            assert_eq!(parse(text.as_bytes()), Ok(wire::ConfigurationFile::default()), "{text:?}");
        }
    }

    #[test]
    fn every_section_of_both_generations_is_understood() {
        let text = "\
gitops:
  manifest_projects:
  - id: group/project
    default_namespace: apps
    paths: [{glob: '**/*.yaml'}, {file: a.yaml}]
    reconcile_timeout: 30s
    prune: false
    ref: {branch: main}
observability: {logging: {level: debug, grpc_level: warn}}
cilium: {hubble_relay_address: 'relay:80'}
ci_access:
  projects: [{id: a/b, access_as: {impersonate: {username: u, extra: [{key: k, val: [v]}]}}}]
  groups: [{id: g, access_as: {ci_job: {}}, environments: [prod]}]
container_scanning: {cadence: '0 0 * * *', resource_requirements: {limits: {cpu: 1}}}
user_access: {access_as: {user: {}}, projects: [{id: a}], groups: [{id: g}]}
remote_development: {enabled: true, dns_zone: x, partial_sync_interval: 0.5s, network_policy: {enabled: false}}
flux: {webhook_receiver_url: 'http://x'}
";
        let file = parse(text.as_bytes()).unwrap();
        let project = &file.gitops.unwrap().manifest_projects[0];
        assert_eq!(project.prune_oneof, Some(wire::manifest_project_cf::PruneOneof::Prune(false)));
        assert_eq!(project.reconcile_timeout.unwrap().seconds, 30);
        let logging = file.observability.unwrap().logging.unwrap();
        assert_eq!((logging.level, logging.grpc_level), (1, Some(2)));
        let access = file.ci_access.unwrap();
        assert!(matches!(
            access.groups[0].access_as.as_ref().unwrap().r#as,
            Some(wire::ci_access_as_cf::As::CiJob(_))
        ));
        assert_eq!(file.remote_development.unwrap().network_policy.unwrap().enabled, Some(false));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let error = parse(b"gitops:\n  manifest_projects:\n  - idd: x\n").unwrap_err();
        assert!(error.contains("idd") && error.contains("line 3"), "{error}");
    }

    #[test]
    fn wrong_words_are_reported_together() {
        let text =
            b"gitops: {manifest_projects: [{id: x, dry_run_strategy: maybe, inventory_policy: all}]}\n\
                     ci_access: {projects: [{default_namespace: n}]}";
        let error = parse(text).unwrap_err();
        for wanted in ["maybe", "inventory_policy", "ci_access.projects[0].id"] {
            assert!(error.contains(wanted), "{wanted} in {error}");
        }
    }
}
