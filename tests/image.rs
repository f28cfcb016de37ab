//! The agent's image as `make image` built it: what it holds, and that it does its work in a container such as
//! `deploy/agentk.yaml` asks for. A test program of its own, which `make test` leaves out, because the image takes minutes to
//! build. `POSTERN_IMAGE` is the archive.

#![expect(clippy::unwrap_used, reason = "a test may fail right where it stands")]

#[path = "image/archive.rs"]
mod archive;
#[path = "image/container.rs"]
mod container;
#[expect(dead_code, reason = "the other tests use the rest of it")]
mod harness;

use archive::Archive;
use container::{Container, mounts, status};
use harness::{
    Field, INSIDE, Options,
    http::{self, Client},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const PROGRAM: &str = "bin/agentk";
const ROOTS: &str = "etc/ssl/certs/ca-certificates.crt";
/// What an agent at rest may take, in KiB.
const AT_REST: u64 = 15 * 1024;
/// After which nothing moves any more.
const REST: Duration = Duration::from_secs(5);
/// Exit codes of `agentk check`.
const TLS_FAILED: i32 = 13;
const KUBERNETES_FAILED: i32 = 17;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent")
}

fn image() -> PathBuf {
    let path = std::env::var_os("POSTERN_IMAGE").expect("POSTERN_IMAGE is an OCI archive; run `make image`");
    // Cargo runs tests where their package is.
    repository().join(path)
}

/// What a program prints that ends well.
fn run(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_image_holds_the_program_and_roots_and_nothing_else() {
    let files = Archive::open(&image()).files();
    let wanted = [(PROGRAM, "-rwxr-xr-x 0/0"), (ROOTS, "-rw-r--r-- 0/0")];
    assert_eq!(files, BTreeMap::from(wanted.map(|(name, mode)| (name.to_owned(), mode.to_owned()))));
}

#[test]
fn the_program_of_the_image_needs_no_other_file() {
    let archive = Archive::open(&image());
    let root = archive.root();
    let program = root.join(PROGRAM);
    let program = program.to_str().unwrap();
    // Static, though perhaps to be placed anywhere, which takes a dynamic section.
    assert!(!run("readelf", &["--program-headers", "--wide", program]).contains("INTERP"));
    assert!(!run("readelf", &["--dynamic", "--wide", program]).contains("NEEDED"));
    let machine = match archive.configuration["architecture"].as_str().unwrap() {
        "amd64" => "X86-64",
        "arm64" => "AArch64",
        other => panic!("an image for {other}"),
    };
    assert!(run("readelf", &["--file-header", program]).contains(machine));
    let size = |path: &Path| fs::metadata(path).unwrap().len() as f64 / f64::from(1 << 20);
    println!("{machine}: archive {:.1} MiB, program {:.1} MiB", size(&image()), size(&root.join(PROGRAM)));
}

#[test]
fn the_image_names_its_program_and_a_user_who_is_not_root() {
    let configuration = &Archive::open(&image()).configuration["config"];
    assert_eq!(configuration["User"], "65532:65532");
    assert_eq!(configuration["Entrypoint"], serde_json::json!(["/bin/agentk"]));
    assert!(configuration["Cmd"].is_null(), "{configuration}");
    let env = configuration["Env"].as_array().unwrap();
    assert!(
        env.contains(&format!("SSL_CERT_FILE=/{ROOTS}").into()) && env.contains(&"PATH=/bin".into()),
        "{env:?}"
    );
    assert_eq!(configuration["Labels"]["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
}

/// Only on a machine of the image's kind. The cluster lives beside this thread, which waits for podman.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_runs_as_its_deployment_asks() {
    // Before the field, so that it is dropped after the agent's process.
    let container = Container::of(&image());
    let mut field = Field::with(Options { log: Some("info"), ..Options::default() }).await;
    let line = container.command(field.folder.path());
    field.replace_agent(|options| options.agent_command = Some(line)).await;

    let pid = container.pid().await;
    assert_eq!(status(pid, "Name"), "agentk");
    assert_eq!(status(pid, "Uid"), "65532 65532 65532 65532");
    assert_eq!(status(pid, "Gid"), "65532 65532 65532 65532");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Seccomp"), "2");
    let writable: Vec<_> =
        mounts(pid).into_iter().filter(|(place, writable)| *writable && disk(place)).collect();
    assert!(writable.is_empty(), "{writable:?} can be written to");
    assert!(!Path::new(&format!("/proc/{pid}/root/tmp")).exists(), "the image has no /tmp");
    assert_eq!(container.exec(&["sh"]).status.code(), Some(127), "the image has no shell");

    let (code, _) = Client::new(&field).await.get("/api/v1/namespaces/default/configmaps").await;
    assert_eq!(code, 200, "{}", field.agent.text());

    let address =
        format!("--kas-address=wss://localhost:{}/-/kubernetes-agent/", field.addresses.edge_tls.port());
    let token = format!("--token-file={INSIDE}/agent.token");
    let kubeconfig = format!("--kubeconfig={INSIDE}/cluster.kubeconfig");
    let authority = format!("--ca-cert-file={INSIDE}/ca.crt");
    let check = ["agentk", "check", &address, &token, &kubeconfig];
    let given = container.exec(&[&check[..], &[&authority]].concat());
    let said = String::from_utf8_lossy(&given.stdout);
    // Of the cluster's rights it learns nothing: the stand-in has none.
    assert_eq!(given.status.code(), Some(KUBERNETES_FAILED), "{given:?}");
    assert!(said.contains("it stands, and stays open"), "{said}");
    // The image's roots are found, and are not those of the field.
    let unknown = container.exec(&check);
    let said = String::from_utf8_lossy(&unknown.stdout);
    assert_eq!(unknown.status.code(), Some(TLS_FAILED), "{unknown:?}");
    assert!(said.contains("unknown CA"), "{said}");

    // Measured, not waited for: whatever happens meanwhile counts.
    tokio::time::sleep(REST).await;
    assert_eq!(http::probe(field.addresses.agent_probes, "/readiness").await, Some(200));
    let resident: u64 = status(pid, "VmRSS").trim_end_matches(" kB").parse().unwrap();
    println!("resident at rest, with its tunnels: {:.1} MiB", resident as f64 / 1024.0);
    assert!(resident < AT_REST, "{resident} KiB");
    assert_eq!(container.terminate(&mut field.agent).await, Some(0), "{}", field.agent.text());
}

/// Not what the kernel makes up, nor what every container gets in memory.
fn disk(place: &str) -> bool {
    !["/proc", "/sys", "/dev"]
        .iter()
        .any(|made_up| place == *made_up || place.starts_with(&format!("{made_up}/")))
}
