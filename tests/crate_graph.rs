//! The crate graph of ARCHITECTURE.md, read from cargo itself.

use serde_json::Value;
use std::{collections::BTreeMap, process::Command};

const GRAPH: &[(&str, &[&str])] = &[
    ("postern-wire", &[]),
    ("postern-certs", &[]),
    ("postern-yaml", &[]),
    ("postern-policies", &["postern-certs", "postern-yaml"]),
    ("postern-redis", &["postern-certs"]),
    ("postern-telemetry", &["postern-certs"]),
    (
        "postern-edge",
        &["postern-certs", "postern-policies", "postern-redis", "postern-telemetry", "postern-wire"],
    ),
    (
        "postern-broker",
        &[
            "postern-certs",
            "postern-policies",
            "postern-redis",
            "postern-telemetry",
            "postern-wire",
            "postern-yaml",
        ],
    ),
    ("postern-agent", &["postern-certs", "postern-telemetry", "postern-wire", "postern-yaml"]),
    ("stand-ins", &["postern-certs", "postern-wire"]),
    ("postern-cli", &["postern-certs", "postern-policies", "postern-wire", "stand-ins"]),
    ("postern-tests", &[]),
];

#[test]
fn crates_depend_on_each_other_as_written() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version=1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let ours: Vec<&str> = packages.iter().map(|package| package["name"].as_str().expect("name")).collect();
    let mut found = BTreeMap::new();
    for package in packages {
        let dependencies = package["dependencies"].as_array().expect("dependencies");
        let normal = dependencies.iter().filter(|dependency| dependency["kind"].is_null());
        let mut names: Vec<&str> = normal
            .filter_map(|dependency| dependency["name"].as_str())
            .filter(|name| ours.contains(name))
            .collect();
        names.sort_unstable();
        found.insert(package["name"].as_str().expect("name"), names);
    }
    for (name, allowed) in GRAPH {
        let unexpected: Vec<_> =
            found[name].iter().filter(|dependency| !allowed.contains(dependency)).collect();
        assert!(unexpected.is_empty(), "{name} must not depend on {unexpected:?}");
    }
    assert_eq!(found.len(), GRAPH.len(), "a crate is missing here: {ours:?}");
}

#[test]
fn the_agent_pulls_in_neither_pingora_nor_policies() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "-p", "postern-agent", "-e", "normal", "--prefix", "none", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success());
    let tree = String::from_utf8(output.stdout).expect("UTF-8");
    for absent in ["pingora", "postern-policies", "gix ", "openssl-sys", "aws-lc"] {
        assert!(!tree.contains(absent), "agentk must not contain {absent}");
    }
}
