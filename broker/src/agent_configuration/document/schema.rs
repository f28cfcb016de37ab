//! Every key an agent's configuration may have, of all generations, each declared once. Keys that this broker and the
//! agents it serves do nothing with are `for_rails`: accepted, in the JSON for Rails as they were written, and sent to
//! no agent.

use super::kinds::{Enum, Explicit, ForRails, Json, Meant, Message, key, message, one_of, put};
use postern_wire::proto::gitlab::agent::agentcfg as wire;
use postern_yaml::{Cursor, Node, Read, Span, WordsOf, words};

message!(File => ConfigurationFile {
    gitops: GitOps,
    observability: Observability,
    cilium: Cilium,
    ci_access: CiAccess,
    container_scanning: ContainerScanning,
    user_access: UserAccess,
    remote_development: RemoteDevelopment,
    flux: Flux,
    kubernetes_api: KubernetesApi,
    views: Views,
} for_rails [starboard]);

message!(GitOps => GitopsCf { manifest_projects: Vec<ManifestProject> } for_rails [charts]);

words!(DryRun { None = "none", Client = "client", Server = "server" });
words!(PrunePropagation { Orphan = "orphan", Background = "background", Foreground = "foreground" });
words!(Inventory {
    MustMatch = "must_match",
    AdoptIfNoInventory = "adopt_if_no_inventory",
    AdoptAll = "adopt_all",
});

message!(ManifestProject => ManifestProjectCf {
    id: String,
    default_namespace: String,
    paths: Vec<Path>,
    reconcile_timeout: Span,
    dry_run_strategy: WordsOf<DryRun>,
    prune_oneof: Explicit<bool>,
    prune_timeout: Span,
    prune_propagation_policy: WordsOf<PrunePropagation>,
    inventory_policy: WordsOf<Inventory>,
    r#ref: GitRef,
});

one_of!(Path => PathCf, wire::path_cf::Path, path {
    glob: String => Oneof::Glob,
    file: String => Oneof::File,
});
one_of!(GitRef => GitRefCf, wire::git_ref_cf::Ref, r#ref {
    tag: String => Oneof::Tag,
    branch: String => Oneof::Branch,
    commit: String => Oneof::Commit,
});

message!(Observability => ObservabilityCf { logging: Logging, google_profiler: GoogleProfiler });
// In the order of their numbers.
words!(Level { Info = "info", Debug = "debug", Warn = "warn", Error = "error" });
message!(Logging => LoggingCf { level: Enum<Level>, grpc_level: Explicit<Enum<Level>> });
message!(GoogleProfiler => GoogleProfilerCf {
    enabled: bool,
    project_id: String,
    credentials_file: String,
    debug_logging: bool,
});
message!(Cilium => CiliumCf { hubble_relay_address: String } needs [hubble_relay_address]);

message!(CiAccess => CiAccessCf {
    projects: Vec<CiAccessProject>,
    groups: Vec<CiAccessGroup>,
} for_rails [instance]);
message!(CiAccessProject => CiAccessProjectCf {
    id: String,
    default_namespace: String,
    access_as: CiAccessAs,
    environments: Vec<String>,
} needs [id] for_rails [protected_branches_only, resource_management]);
message!(CiAccessGroup => CiAccessGroupCf {
    id: String,
    default_namespace: String,
    access_as: CiAccessAs,
    environments: Vec<String>,
} needs [id] for_rails [protected_branches_only, resource_management]);
one_of!(CiAccessAs => CiAccessAsCf, wire::ci_access_as_cf::As, r#as {
    agent: Nothing => |_| Oneof::Agent(Default::default()),
    impersonate: Impersonate => |value: Impersonate| Oneof::Impersonate(value.into()),
    ci_job: Nothing => |_| Oneof::CiJob(Default::default()),
    // For Rails: it is who says as whom a job comes, and the wire has no field for this.
    ci_user: Nothing => |_| None,
});
message!(Impersonate => CiAccessAsImpersonateCf {
    username: String,
    groups: Vec<String>,
    uid: String,
    extra: Vec<ExtraKeyVal>,
});
message!(ExtraKeyVal => ExtraKeyValCf { key: String, val: Vec<String> });

message!(UserAccess => UserAccessCf {
    access_as: UserAccessAs,
    projects: Vec<UserAccessProject>,
    groups: Vec<UserAccessGroup>,
});
message!(UserAccessProject => UserAccessProjectCf { id: String });
message!(UserAccessGroup => UserAccessGroupCf { id: String });
one_of!(UserAccessAs => UserAccessAsCf, wire::user_access_as_cf::As, r#as {
    agent: Nothing => |_| Oneof::Agent(Default::default()),
    user: Nothing => |_| Oneof::User(Default::default()),
});

message!(ContainerScanning => ContainerScanningCf {
    vulnerability_report: VulnerabilityReport,
    cadence: String,
    resource_requirements: Requirements,
} for_rails [
    scanner_timeout,
    report_max_size,
    severity_threshold,
    delete_report_artifact,
    trivy_k8s_wrapper_image,
]);
message!(VulnerabilityReport => VulnerabilityReportCf {
    namespaces: Vec<String>,
    filters: Vec<Filter>,
} for_rails [resource_types]);
message!(Filter => ContainerScanningFilterCf {
    namespaces: Vec<String>,
    resources: Vec<String>,
    containers: Vec<String>,
    kinds: Vec<String>,
});
message!(Requirements => ResourceRequirementsCf { limits: Resource, requests: Resource });
message!(Resource => ResourceCf { cpu: String, memory: String } for_rails [ephemeral_storage]);

message!(RemoteDevelopment => RemoteDevelopmentCf {
    enabled: bool,
    dns_zone: String,
    partial_sync_interval: Span,
    full_sync_interval: Span,
    gitlab_workspaces_proxy: WorkspacesProxy,
    network_policy: NetworkPolicy,
} for_rails [
    allow_privilege_escalation,
    annotations,
    default_max_hours_before_termination,
    default_resources_per_workspace_container,
    default_runtime_class,
    image_pull_secrets,
    labels,
    max_active_hours_before_stop,
    max_hours_before_termination_limit,
    max_resources_per_workspace,
    max_stopped_hours_before_termination,
    shared_namespace,
    use_kubernetes_user_namespaces,
    workspaces_per_user_quota,
    workspaces_quota,
]);
message!(WorkspacesProxy => GitlabWorkspacesProxyCf { namespace: String });
message!(NetworkPolicy => NetworkPolicyCf { enabled: Explicit<bool> } for_rails [egress]);
message!(Flux => FluxCf { webhook_receiver_url: String });

// Ours alone.
message!(KubernetesApi => KubernetesApiCf {
    max_concurrent_requests: u32,
    max_concurrent_requests_per_caller: u32,
});
message!(Views => ViewsCf {
    nodes: bool,
    workloads: bool,
    events: bool,
    versions: bool,
    capacity: bool,
    namespaces: Vec<String>,
});

/// `agent: {}` and the like: present or not.
#[derive(Debug)]
pub(super) struct Nothing;

impl Read for Nothing {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        let entries = cursor.entries(node)?;
        cursor.only(entries, &[]);
        Some(Self)
    }
}

impl Json for Nothing {
    fn json(&self) -> serde_json::Value {
        serde_json::Map::new().into()
    }
}

impl Meant<i32> for Option<Enum<Level>> {
    fn meant(self) -> i32 {
        self.map_or(0, |given| given.0 as i32)
    }
}

impl Meant<Option<i32>> for Option<Explicit<Enum<Level>>> {
    fn meant(self) -> Option<i32> {
        self.map(|given| given.0.0 as i32)
    }
}

impl Meant<Option<wire::manifest_project_cf::PruneOneof>> for Option<Explicit<bool>> {
    fn meant(self) -> Option<wire::manifest_project_cf::PruneOneof> {
        self.map(|given| wire::manifest_project_cf::PruneOneof::Prune(given.0))
    }
}
