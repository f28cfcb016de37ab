//! Against the stand-in for Gitaly, over real sockets and with repositories that the real git makes.

use super::*;
use crate::gitaly::poller::{Periods, Pollers};
use crate::policies::{Followed, Pacing};
use crate::rate::Rate;
use postern_certs::dev::Ca;
use stand_ins::git::git;
use stand_ins::gitaly::{self as stand_in, Fault as Broken, Generation, Rpc, Tls};
use std::{os::unix::fs::symlink, path::PathBuf};
use tempfile::TempDir;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

const SECRET: &str = "gitaly-secret";
const GENERATIONS: [Generation; 3] = [Generation::V14_1, Generation::V16_7, Generation::V16Later];
const CONFIG: &str = ".gitlab/agents/prod/config.yaml";

struct Field {
    folder: TempDir,
    server: stand_in::Gitaly,
    client: Arc<Gitaly>,
    source: Source,
}

impl Field {
    async fn start() -> Self {
        Self::with(|_, _| {}).await
    }

    async fn with(adjust: impl FnOnce(&mut stand_in::Options, &Ca)) -> Self {
        postern_certs::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path().join("config.git");
        std::fs::create_dir(&repository).unwrap();
        git(&repository, &["init", "-q"]);
        let ca = Ca::new();
        let ca_file = folder.path().join("ca.pem");
        std::fs::write(&ca_file, ca.pem()).unwrap();
        let mut options = stand_in::Options::new(folder.path());
        options.token = Some(SECRET.to_owned());
        adjust(&mut options, &ca);
        let server = stand_in::Gitaly::start(options).await.unwrap();
        let fast = Rate { per_second: 1e4, burst: 10_000 };
        let options = Options {
            user_agent: "gitlab-kas/v1.2.3/abc".to_owned(),
            global: fast,
            per_server: fast,
            step_timeout: Duration::from_secs(10),
        };
        let client = Arc::new(Gitaly::new(options, ClientTrust::load(Some(ca_file)).unwrap()));
        let source = Source {
            server: Server {
                address: server.address().to_owned(),
                token: GitalyToken::new(SECRET),
                features: BTreeMap::from([
                    ("gitaly-feature-go-faster".to_owned(), "true".to_owned()),
                    ("not a key".to_owned(), "true".to_owned()),
                    ("grpc-timeout".to_owned(), "1n".to_owned()),
                ]),
            },
            repository: GitalyRepository {
                storage_name: "default".to_owned(),
                relative_path: "config.git".to_owned(),
                gl_repository: "project-1".to_owned(),
                gl_project_path: "group/config".to_owned(),
                ..Default::default()
            },
        };
        Self { folder, server, client, source }
    }

    fn repository(&self) -> PathBuf {
        self.folder.path().join("config.git")
    }

    fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        let path = self.repository().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn commit(&self) -> CommitId {
        git(&self.repository(), &["add", "."]);
        git(&self.repository(), &["commit", "-q", "--allow-empty", "-m", "change"]);
        git(&self.repository(), &["rev-parse", "HEAD"]).trim().into()
    }

    async fn head(&self) -> Result<CommitId, GitalyError> {
        self.client.head(&self.source, soon()).await
    }

    async fn read(&self, commit: &str, file: &str, limit: u64) -> Result<Option<Bytes>, GitalyError> {
        self.client.read(&self.source, commit, file, limit, soon()).await
    }

    async fn select(
        &self,
        commit: &CommitId,
        globs: &[&str],
        limits: ManifestLimits,
    ) -> Result<Manifests, GitalyError> {
        let globs: Vec<_> = globs.iter().map(|&glob| ManifestPath::Glob(glob.to_owned())).collect();
        self.client.manifests(&self.source, commit, &globs, limits).await
    }

    async fn selected(&self, commit: &CommitId, globs: &[&str]) -> Vec<String> {
        let manifests = self.select(commit, globs, ManifestLimits::default()).await.unwrap();
        let mut names: Vec<String> =
            all(manifests).await.unwrap().into_iter().map(|piece| piece.source.to_string()).collect();
        names.dedup();
        names.sort();
        names
    }

    fn pollers(&self, poll: Duration) -> (Pollers, DropGuard) {
        let stop = CancellationToken::new();
        let periods = Periods { retry: poll, retry_max: poll };
        let pacing = (Pacing::steady(poll), Followed::Configuration);
        let tasks = TaskTracker::new();
        (Pollers::new(Arc::clone(&self.client), periods, pacing, stop.clone(), tasks), stop.drop_guard())
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

async fn all(mut manifests: Manifests) -> Result<Vec<Piece>, GitalyError> {
    let mut pieces = Vec::new();
    while let Some(piece) = manifests.next().await? {
        pieces.push(piece);
    }
    Ok(pieces)
}

#[tokio::test]
async fn the_head_is_looked_up_without_the_references() {
    let field = Field::start().await;
    let commit = field.commit();
    assert_eq!(field.head().await, Ok(commit));
    assert_eq!((field.server.calls(Rpc::FindCommit), field.server.calls(Rpc::InfoRefsUploadPack)), (1, 0));
    let metadata = field.server.last_metadata();
    assert_eq!(metadata["gitaly-feature-go-faster"], "true");
    assert_eq!(metadata["x-gitlab-client-name"], "gitlab-kas");
    assert!(metadata["user-agent"].starts_with("gitlab-kas/v1.2.3/abc"), "{metadata:?}");
    assert!(!metadata.contains_key("grpc-timeout"));
}

#[tokio::test]
async fn a_server_that_cannot_look_up_commits_is_asked_for_references_from_then_on() {
    let field = Field::start().await;
    let commit = field.commit();
    field.server.break_call(Rpc::FindCommit, Broken::Unimplemented);
    for _ in 0..3 {
        assert_eq!(field.head().await.as_ref(), Ok(&commit));
    }
    assert_eq!((field.server.calls(Rpc::FindCommit), field.server.calls(Rpc::InfoRefsUploadPack)), (1, 3));
}

#[tokio::test]
async fn both_ways_to_the_head_agree_on_repositories_without_one() {
    for unimplemented in [false, true] {
        let field = Field::start().await;
        if unimplemented {
            field.server.break_call(Rpc::FindCommit, Broken::Unimplemented);
        }
        let empty = GitalyError::NoDefaultBranch { repository: "group/config".to_owned() };
        assert_eq!(field.head().await, Err(empty.clone()));
        let commit = field.commit();
        git(&field.repository(), &["branch", "-m", "dev"]);
        git(&field.repository(), &["symbolic-ref", "HEAD", "refs/heads/unborn"]);
        assert_eq!(field.head().await, Err(empty));
        git(&field.repository(), &["branch", "master", "dev"]);
        assert_eq!(field.head().await, Ok(commit));
    }
}

#[tokio::test]
async fn a_file_is_read_at_a_commit_and_within_a_limit() {
    let field = Field::start().await;
    field.write(CONFIG, "one");
    field.write("empty", "");
    field.write("large", vec![b'x'; 300_000]);
    symlink("large", field.repository().join("link")).unwrap();
    let first = field.commit();
    field.write(CONFIG, "two!");
    let second = field.commit();
    assert_eq!(field.read(&first, CONFIG, 3).await, Ok(Some(Bytes::from("one"))));
    assert_eq!(field.read(&second, CONFIG, 4).await, Ok(Some(Bytes::from("two!"))));
    assert_eq!(field.read(&second, "empty", 4).await, Ok(Some(Bytes::new())));
    assert_eq!(field.read(&second, "large", 300_000).await.unwrap().unwrap().len(), 300_000);
    assert_eq!(field.read(&second, "nothing", 4).await, Ok(None));
    let error = field.read(&second, CONFIG, 3).await.unwrap_err();
    assert!(matches!(error, GitalyError::TooLarge { limit: 3, .. }), "{error}");
    assert!(matches!(field.read(&second, CONFIG, 0).await.unwrap_err(), GitalyError::TooLarge { .. }));
    for no_file in [".gitlab", "link"] {
        let error = field.read(&second, no_file, 9).await.unwrap_err();
        assert!(matches!(error, GitalyError::NotAFile { .. }), "{error}");
        assert_eq!(error.fault(), Fault::User);
    }
}

#[tokio::test]
async fn tls_and_unix_sockets_carry_the_same_calls() {
    let tls = Field::with(|options, ca| {
        let issued = ca.issue(&["localhost", "127.0.0.1"]);
        options.tls = Some(Tls {
            certificate_pem: issued.certificate_pem,
            key_pem: issued.key_pem,
            ca_pem: ca.pem().to_string(),
        });
    });
    let tls = tls.await;
    assert!(tls.source.server.address.starts_with("tls://"));
    let commit = tls.commit();
    assert_eq!(tls.head().await, Ok(commit));
    let unix =
        Field::with(|options, _| options.socket = Some(options.repositories.join("gitaly.sock"))).await;
    let commit = unix.commit();
    assert!(unix.source.server.address.starts_with("unix:/"));
    assert_eq!(unix.head().await, Ok(commit));
}

#[tokio::test]
async fn a_server_with_a_stranger_s_certificate_is_not_trusted() {
    let field = Field::with(|options, _| {
        let issued = Ca::new().issue(&["localhost", "127.0.0.1"]);
        options.tls = Some(Tls {
            certificate_pem: issued.certificate_pem,
            key_pem: issued.key_pem,
            ca_pem: String::new(),
        });
    });
    let error = field.await.head().await.unwrap_err();
    assert!(matches!(error, GitalyError::Unreachable { .. }), "{error}");
    assert_eq!(error.fault(), Fault::Transient);
}

#[tokio::test]
async fn a_wrong_token_is_an_error_that_names_the_server_and_not_the_token() {
    let mut field = Field::start().await;
    field.source.server.token = GitalyToken::new("wrong-secret");
    let error = field.head().await.unwrap_err();
    assert!(matches!(error, GitalyError::Rpc { code: Code::PermissionDenied, .. }), "{error}");
    assert!(error.to_string().contains(field.server.address()), "{error}");
    field.source.server.token = GitalyToken::default();
    let error = field.head().await.unwrap_err();
    assert!(matches!(error, GitalyError::Rpc { code: Code::Unauthenticated, .. }), "{error}");
    assert!(!format!("{error:?} {:?}", field.source).contains("secret"));
}

#[tokio::test]
async fn faults_end_in_time_and_recovery_is_at_once() {
    let field = Field::start().await;
    let commit = field.commit();
    field.server.break_all(Broken::Unavailable);
    let error = field.head().await.unwrap_err();
    assert!(matches!(error, GitalyError::Rpc { code: Code::Unavailable, .. }), "{error}");
    field.server.break_all(Broken::Delay(Duration::from_secs(60)));
    let shortly = Instant::now() + Duration::from_millis(50);
    let error = field.client.head(&field.source, shortly).await.unwrap_err();
    assert!(matches!(error, GitalyError::TimedOut { .. }), "{error}");
    field.server.mend();
    assert_eq!(field.head().await, Ok(commit));
}

#[tokio::test]
async fn a_server_that_is_gone_is_unreachable() {
    let mut field = Field::start().await;
    field.source.server.address = "unix:/nonexistent/gitaly.sock".to_owned();
    let error = field.head().await.unwrap_err();
    assert!(matches!(error, GitalyError::Unreachable { .. }), "{error}");
    field.source.server.address = "http://gitaly".to_owned();
    assert!(matches!(field.head().await.unwrap_err(), GitalyError::Address { .. }));
}

#[tokio::test]
async fn calls_past_the_rate_wait_or_are_turned_away() {
    let field = Field::start().await;
    let commit = field.commit();
    let slow = Rate { per_second: 0.01, burst: 2 };
    let options = Options { per_server: slow, ..Options::default() };
    let trust = ClientTrust::load(Some(field.folder.path().join("ca.pem"))).unwrap();
    let client = Gitaly::new(options, trust);
    for _ in 0..2 {
        assert_eq!(client.head(&field.source, soon()).await.as_ref(), Ok(&commit));
    }
    let error = client.head(&field.source, soon()).await.unwrap_err();
    assert!(matches!(error, GitalyError::Throttled { .. }), "{error}");
    assert_eq!(field.server.calls(Rpc::FindCommit), 2);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(100)).await;
    tokio::time::resume();
    assert_eq!(client.head(&field.source, soon()).await, Ok(commit));
}

#[tokio::test]
async fn a_crowd_of_polls_does_not_hold_up_who_reads_a_file() {
    let field = Field::start().await;
    field.write(CONFIG, "one");
    let commit = field.commit();
    let per_server = Rate { per_second: 5.0, burst: 1 };
    let options = Options { per_server, ..Options::default() };
    let trust = ClientTrust::load(Some(field.folder.path().join("ca.pem"))).unwrap();
    let client = Gitaly::new(options, trust);
    let turn = Duration::from_secs(1);
    let looks = futures::future::join_all(
        (0..500).map(|_| client.look(&field.source, &Reference::Default, (turn, soon()))),
    );
    let start = Instant::now();
    let read = async {
        // The crowd comes first.
        tokio::task::yield_now().await;
        let read = client.read(&field.source, &commit, CONFIG, 9, soon()).await;
        // Behind all of them it would come after a hundred seconds.
        assert!(start.elapsed() < Duration::from_secs(50), "{:?}", start.elapsed());
        read
    };
    let (looks, read) = tokio::join!(looks, read);
    assert_eq!(read, Ok(Some(Bytes::from("one"))));
    let skipped = looks.iter().filter(|look| matches!(look, Err(GitalyError::Throttled { .. })));
    assert!(skipped.count() >= 460);
}

#[tokio::test]
async fn manifests_are_what_the_globs_select() {
    let field = Field::start().await;
    for file in ["a.yaml", ".b.yaml", "notes.txt", "x/c.yaml", "x/y/d.json", ".hidden/e.yaml", "x/.z/f.yaml"]
    {
        field.write(file, file);
    }
    symlink("a.yaml", field.repository().join("link.yaml")).unwrap();
    let commit = field.commit();
    let everything = ["**/*.{yaml,yml,json}"];
    let expected = [".b.yaml", "a.yaml", "link.yaml", "x/c.yaml", "x/y/d.json"];
    assert_eq!(field.selected(&commit, &everything).await, expected);
    assert_eq!(field.selected(&commit, &["/x/*.yaml"]).await, ["x/c.yaml"]);
    assert_eq!(field.selected(&commit, &["x/**/*.json", "a.yaml"]).await, ["a.yaml", "x/y/d.json"]);
    assert_eq!(field.selected(&commit, &["**/.z/*"]).await, [""; 0]);
    let manifests = field.select(&commit, &["link.yaml"], ManifestLimits::default()).await.unwrap();
    assert_eq!(all(manifests).await.unwrap()[0].data, "a.yaml");
}

#[tokio::test]
async fn a_directory_that_is_not_there_holds_no_manifests_in_any_generation() {
    for generation in GENERATIONS {
        for unimplemented in [false, true] {
            let field = Field::with(|options, _| options.generation = generation).await;
            if unimplemented {
                field.server.break_call(Rpc::FindCommit, Broken::Unimplemented);
            }
            assert_eq!(field.client.agent_files(&field.source, soon()).await, Ok(vec![]), "nobody pushed");
            let commit = field.commit();
            for glob in ["nothing/*.yaml", "nothing/**/*.yaml", "**/*.yaml", "*.yaml"] {
                assert_eq!(field.selected(&commit, &[glob]).await, [""; 0]);
            }
            assert_eq!(field.read(&commit, CONFIG, 9).await, Ok(None));
            assert_eq!(field.client.agent_files(&field.source, soon()).await, Ok(vec![]));
        }
    }
}

#[tokio::test]
async fn a_commit_or_a_repository_that_is_not_there_is_never_taken_for_an_empty_one() {
    let absent: CommitId = "0123456789abcdef0123456789abcdef01234567".into();
    for generation in GENERATIONS {
        for unimplemented in [false, true] {
            let mut field = Field::with(|options, _| options.generation = generation).await;
            field.write("a.yaml", "a");
            let commit = field.commit();
            if unimplemented {
                field.server.break_call(Rpc::FindCommit, Broken::Unimplemented);
            }
            let check = async |field: &Field, commit: &CommitId| {
                let at = (generation, unimplemented);
                for glob in ["nothing/*.yaml", "nothing/**/*.yaml", "*.yaml", "**/*.yaml"] {
                    let error = field.select(commit, &[glob], ManifestLimits::default()).await.err();
                    let error = error.unwrap_or_else(|| panic!("{at:?}: {glob} selects nothing"));
                    assert_eq!(error.fault(), Fault::Transient, "{at:?} {glob}: {error}");
                }
                let file = [ManifestPath::File("a.yaml".to_owned())];
                let limits = ManifestLimits::default();
                let error = field.client.manifests(&field.source, commit, &file, limits).await.err().unwrap();
                assert_eq!(error.fault(), Fault::Transient, "{at:?}: {error}");
                let error = field.read(commit, CONFIG, 9).await.unwrap_err();
                assert_eq!(error.fault(), Fault::Transient, "{at:?}: {error}");
                error
            };
            let error = check(&field, &absent).await;
            assert!(matches!(error, GitalyError::NoSuchCommit { .. }), "{error}");
            field.source.repository.storage_name = "elsewhere".to_owned();
            check(&field, &commit).await;
            assert!(field.client.agent_files(&field.source, soon()).await.is_err());
            field.source.repository.storage_name = "default".to_owned();
            field.source.repository.relative_path = "moved.git".to_owned();
            check(&field, &commit).await;
            assert!(field.client.agent_files(&field.source, soon()).await.is_err());
        }
    }
}

#[tokio::test]
async fn manifests_come_in_pieces_that_fit_a_message() {
    let field = Field::start().await;
    let large: Vec<u8> = (0..700_001_u32).map(|at| at.to_le_bytes()[at as usize % 3]).collect();
    field.write("large.yaml", &large);
    field.write("empty.yaml", "");
    let commit = field.commit();
    let manifests = field.select(&commit, &["*.yaml"], ManifestLimits::default()).await.unwrap();
    let pieces = all(manifests).await.unwrap();
    assert!(pieces.iter().all(|piece| piece.data.len() <= PIECE_MAX));
    let of =
        |file: &str| -> Vec<&Piece> { pieces.iter().filter(|piece| piece.source.as_ref() == file).collect() };
    assert_eq!(of("empty.yaml").len(), 1);
    let data: Vec<u8> = of("large.yaml").iter().flat_map(|piece| piece.data.to_vec()).collect();
    assert!(data == large);
}

#[tokio::test]
async fn readers_that_stall_do_not_hold_up_a_look_at_the_head() {
    let field = Field::start().await;
    field.write("large.yaml", vec![b'x'; 8 << 20]);
    let commit = field.commit();
    let limits = ManifestLimits { file_bytes: 16 << 20, total_bytes: 16 << 20, ..Default::default() };
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let mut manifests = field.select(&commit, &["*.yaml"], limits).await.unwrap();
        assert!(manifests.next().await.unwrap().is_some());
        stalled.push(manifests);
    }
    // Meanwhile the server sends what it may.
    for _ in 0..20 {
        assert_eq!(field.head().await.as_ref(), Ok(&commit));
    }
    for manifests in stalled {
        let rest: usize = all(manifests).await.unwrap().iter().map(|piece| piece.data.len()).sum();
        assert!(rest >= (8 << 20) - PIECE_MAX);
    }
}

#[tokio::test]
async fn what_an_agent_s_owner_gets_wrong_is_told_apart() {
    let field = Field::start().await;
    for file in ["a.yaml", "b.yaml", "c.yaml"] {
        field.write(file, "0123456789");
    }
    field.write("empty.yaml", "");
    let commit = field.commit();
    let limits = ManifestLimits { paths: 2, files: 4, file_bytes: 10, total_bytes: 30 };
    let error = async |globs: &[&str], limits: ManifestLimits| {
        let error = match field.select(&commit, globs, limits).await {
            Ok(manifests) => all(manifests).await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.fault(), Fault::User, "{error}");
        error
    };
    let fits = field.select(&commit, &["*.yaml"], limits).await.unwrap();
    assert_eq!(all(fits).await.unwrap().len(), 4, "exactly at every limit");
    let small = ManifestLimits { file_bytes: 9, ..limits };
    assert!(matches!(error(&["*.yaml"], small).await, GitalyError::TooLarge { limit: 9, .. }));
    for total_bytes in [20, 25] {
        let small = ManifestLimits { total_bytes, ..limits };
        assert!(matches!(error(&["*.yaml"], small).await, GitalyError::AllTooLarge { .. }));
    }
    let few = ManifestLimits { files: 3, ..limits };
    assert!(matches!(error(&["a.yaml"], few).await, GitalyError::TooManyFiles { limit: 3 }));
    assert!(matches!(error(&["a.yaml", "b.yaml"], limits).await, GitalyError::TooManyFiles { .. }));
    let more = ManifestLimits { files: 8, ..limits };
    assert!(matches!(error(&["a.yaml", "*.yaml"], more).await, GitalyError::SelectedTwice { .. }));
    assert!(matches!(
        error(&["a", "b", "c"], limits).await,
        GitalyError::TooManyPaths { count: 3, limit: 2 }
    ));
    assert!(matches!(error(&["[a"], limits).await, GitalyError::Glob { .. }));
}

#[tokio::test]
async fn agents_files_are_those_of_well_named_agents() {
    let field = Field::start().await;
    let agents = ["prod", "a-1", "Upper", "-x", "y-", "deep/er"];
    for agent in agents {
        field.write(&format!(".gitlab/agents/{agent}/config.yaml"), "");
    }
    field.write(".gitlab/agents/prod/other.yaml", "");
    field.commit();
    let files = field.client.agent_files(&field.source, soon()).await.unwrap();
    let names: Vec<&str> = files.iter().map(|file| file.agent.as_str()).collect();
    assert_eq!(names, ["a-1", "prod"]);
    assert_eq!(files[1].path, CONFIG);
}

#[tokio::test]
async fn a_thousand_readers_cause_one_look_and_one_read() {
    let field = Field::start().await;
    field.write(CONFIG, "one");
    let commit = field.commit();
    let (pollers, _stop) = field.pollers(Duration::from_secs(600));
    let readers = (0..1_000).map(|_| async {
        let repository = pollers.follow(&field.source).await;
        let head = repository.head().borrow().clone().unwrap();
        repository.read(&head, CONFIG, 100).await.unwrap().unwrap();
        (repository, head)
    });
    let readers = futures::future::join_all(readers).await;
    assert!(readers.iter().all(|(_, head)| *head == commit));
    assert_eq!((field.server.calls(Rpc::FindCommit), field.server.calls(Rpc::TreeEntry)), (1, 1));
}

#[tokio::test]
async fn a_push_is_noticed_long_before_the_next_poll() {
    let field = Field::start().await;
    field.write(CONFIG, "one");
    field.commit();
    let (pollers, _stop) = field.pollers(Duration::from_secs(600));
    let repository = pollers.follow(&field.source).await;
    let mut head = repository.head();
    let first = head.borrow_and_update().clone().unwrap();
    assert_eq!(repository.read(&first, CONFIG, 100).await, Ok(Some(Bytes::from("one"))));
    field.write(CONFIG, "two");
    let second = field.commit();
    pollers.pushed("group/another");
    pollers.pushed("group/config");
    tokio::time::timeout(Duration::from_secs(60), head.changed()).await.expect("noticed").unwrap();
    assert_eq!(*head.borrow_and_update(), Ok(second.clone()));
    assert_eq!(repository.read(&second, CONFIG, 100).await, Ok(Some(Bytes::from("two"))));
    assert_eq!(repository.read(&first, CONFIG, 100).await, Ok(Some(Bytes::from("one"))));
    assert_eq!(field.server.calls(Rpc::FindCommit), 2);
}

#[tokio::test]
async fn a_push_to_a_renamed_project_is_noticed() {
    let mut field = Field::start().await;
    field.commit();
    let (pollers, _stop) = field.pollers(Duration::from_secs(600));
    let repository = pollers.follow(&field.source).await;
    let mut head = repository.head();
    head.borrow_and_update();
    field.source.repository.gl_project_path = "group/renamed".to_owned();
    assert!(Arc::ptr_eq(&repository, &pollers.follow(&field.source).await));
    let next = field.commit();
    pollers.pushed("group/renamed");
    tokio::time::timeout(Duration::from_secs(60), head.changed()).await.expect("noticed").unwrap();
    assert_eq!(*head.borrow(), Ok(next));
}

#[tokio::test]
async fn a_failed_read_is_shared_but_not_kept() {
    let field = Field::start().await;
    field.write(CONFIG, "one");
    let commit = field.commit();
    let (pollers, _stop) = field.pollers(Duration::from_secs(600));
    let repository = pollers.follow(&field.source).await;
    field.server.break_call(Rpc::TreeEntry, Broken::Unavailable);
    let reads = futures::future::join_all((0..100).map(|_| repository.read(&commit, CONFIG, 100))).await;
    assert!(reads.into_iter().all(|read| read.unwrap_err().fault() == Fault::Transient));
    assert_eq!(field.server.calls(Rpc::TreeEntry), 1);
    field.server.mend();
    assert_eq!(repository.read(&commit, CONFIG, 100).await, Ok(Some(Bytes::from("one"))));
}

#[tokio::test]
async fn the_last_reader_stops_the_poller() {
    let field = Field::start().await;
    field.commit();
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let pacing = (Pacing::steady(Duration::from_secs(20)), Followed::Configuration);
    let pollers = Pollers::new(Arc::clone(&field.client), Periods::default(), pacing, stop, tasks.clone());
    let one = pollers.follow(&field.source).await;
    let two = pollers.follow(&field.source).await;
    assert!(Arc::ptr_eq(&one, &two));
    drop(one);
    assert_eq!(tasks.len(), 1);
    drop(two);
    tasks.close();
    tokio::time::timeout(Duration::from_secs(60), tasks.wait()).await.expect("the poller ends");
}
