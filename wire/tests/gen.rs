//! Regenerates `src/gen` from `proto/` and fails when what is checked in differs.
//! `make gen` runs it with POSTERN_GEN=write, which writes instead of comparing.

use std::{collections::BTreeMap, fs, path::Path};

const SERVED: &[&str] = &[
    "cmd/kas/kasapp/kasapp.proto",
    "gitaly/commit.proto",
    "gitaly/shared.proto",
    "gitaly/smarthttp.proto",
    "google/rpc/status.proto",
    "hubble/flow.proto",
    "hubble/observer.proto",
    "internal/module/agent_configuration/rpc/rpc.proto",
    "internal/module/agent_registrar/rpc/rpc.proto",
    "internal/module/agent_tracker/agent_tracker.proto",
    "internal/module/agent_tracker/rpc/rpc.proto",
    "internal/module/configuration_project/rpc/rpc.proto",
    "internal/module/gitlab_access/rpc/rpc.proto",
    "internal/module/gitops/rpc/rpc.proto",
    "internal/module/kubernetes_api/rpc/rpc.proto",
    "internal/module/modserver/modserver.proto",
    "internal/module/modshared/modshared.proto",
    "internal/module/notifications/rpc/rpc.proto",
    "internal/module/reverse_tunnel/info/info.proto",
    "internal/module/reverse_tunnel/rpc/rpc.proto",
    "internal/module/reverse_tunnel/tracker/tracker.proto",
    "internal/module/server_info/rpc/rpc.proto",
    "internal/module/server_info/server_info.proto",
    "internal/tool/grpctool/grpctool.proto",
    "internal/tool/prototool/prototool.proto",
    "internal/tool/redistool/redistool.proto",
    "pkg/agentcfg/agentcfg.proto",
    "pkg/entity/entity.proto",
    "pkg/event/event.proto",
    "postern/agent/agent.proto",
    "postern/fleet/fleet.proto",
];

fn files(dir: &Path) -> BTreeMap<String, String> {
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().expect("UTF-8 file name");
        (name, fs::read_to_string(entry.path()).expect("read generated file"))
    };
    fs::read_dir(dir).expect("generated folder").map(|entry| read(entry.expect("entry"))).collect()
}

#[test]
fn checked_in_code_is_what_the_protos_generate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let checked_in = root.join("src/gen");
    let fresh = tempfile::tempdir().expect("temporary folder");
    let descriptors = protox::compile(SERVED, [root.join("proto")]).expect("protos compile");
    tonic_prost_build::configure()
        .out_dir(fresh.path())
        .include_file("mod.rs")
        .bytes(".")
        // A generated `connect` would collide with the RPC of that name.
        .build_transport(false)
        .codec_path("crate::codec::Codec")
        .compile_fds(descriptors)
        .expect("code generation");
    let (generated, present) = (files(fresh.path()), files(&checked_in));
    if std::env::var("POSTERN_GEN").as_deref() == Ok("write") {
        present.keys().filter(|name| !generated.contains_key(*name)).for_each(|name| {
            fs::remove_file(checked_in.join(name)).expect("remove stale file");
        });
        for (name, text) in &generated {
            fs::write(checked_in.join(name), text).expect("write generated file");
        }
        return;
    }
    let differing: Vec<_> = generated
        .keys()
        .chain(present.keys())
        .filter(|name| generated.get(*name) != present.get(*name))
        .collect();
    assert!(differing.is_empty(), "generated code drifted from wire/proto: {differing:?}; run `make gen`");
}
