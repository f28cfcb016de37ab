//! `ListAgentConfigFiles` against the stand-in for Gitaly, with a repository that the real git makes.

use super::*;
use crate::{gitaly, rate::Rate};
use postern_wire::proto::gitlab::agent::{
    configuration_project::rpc::AgentConfigFile,
    entity::GitalyInfo,
    modserver::{GitalyAddress, Repository},
};
use prost::Message;
use stand_ins::git::git;
use stand_ins::gitaly::{self as stand_in, Fault, Rpc};
use std::collections::HashMap;

const TOKEN: &str = "gitaly-SECRET";

struct Listed {
    field: Field,
    gitaly: stand_in::Gitaly,
    _repositories: TempDir,
}

impl Listed {
    async fn start() -> Self {
        postern_certs::install_provider();
        let repositories = tempfile::tempdir().unwrap();
        let repository = repositories.path().join("config.git");
        std::fs::create_dir(&repository).unwrap();
        git(&repository, &["init", "-q"]);
        for file in [
            "prod/config.yaml",
            "dev-2/config.yaml",
            "UPPER/config.yaml",
            "prod/other.yaml",
            "x/y/config.yaml",
        ] {
            let path = repository.join(".gitlab/agents").join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        git(&repository, &["add", "."]);
        git(&repository, &["commit", "-q", "-m", "agents"]);
        let mut options = stand_in::Options::new(repositories.path());
        options.token = Some(TOKEN.to_owned());
        let gitaly = stand_in::Gitaly::start(options).await.unwrap();
        let rate = Rate { per_second: 1e4, burst: 10_000 };
        let options = gitaly::Options { global: rate, per_server: rate, ..Default::default() };
        let trust = postern_certs::client::ClientTrust::load(None).unwrap();
        let client = Arc::new(Gitaly::new(options, trust));
        let field = Field::start(With { gitaly: Some(client), ..With::default() }).await;
        Self { field, gitaly, _repositories: repositories }
    }

    fn client(&self) -> ConfigurationProjectClient<Channel> {
        ConfigurationProjectClient::new(self.field.channel())
    }

    fn request(&self, features: &[(&str, &str)]) -> ListAgentConfigFilesRequest {
        let features = features.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        ListAgentConfigFilesRequest {
            repository: Some(repository("config.git")),
            gitaly_info: Some(GitalyInfo {
                address: self.gitaly.address().to_owned(),
                token: TOKEN.to_owned(),
                features: features.collect(),
            }),
            default_branch: "main".to_owned(),
        }
    }
}

fn repository(path: &str) -> Repository {
    Repository {
        storage_name: "default".to_owned(),
        relative_path: path.to_owned(),
        gl_repository: "project-1".to_owned(),
        gl_project_path: "group/config".to_owned(),
        ..Repository::default()
    }
}

fn both() -> Vec<AgentConfigFile> {
    let file = |agent: &str| AgentConfigFile {
        name: format!(".gitlab/agents/{agent}/config.yaml"),
        agent_name: agent.to_owned(),
    };
    vec![file("dev-2"), file("prod")]
}

async fn listed(
    client: &mut ConfigurationProjectClient<Channel>,
    request: ListAgentConfigFilesRequest,
) -> Result<Vec<AgentConfigFile>, Status> {
    let mut files = client.list_agent_config_files(call(request)).await?.into_inner().config_files;
    files.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(files)
}

/// What a Rails of 14.x sends, byte for byte.
#[derive(Clone, PartialEq, Message)]
struct Older {
    #[prost(message, optional, tag = "1")]
    repository: Option<Repository>,
    #[prost(message, optional, tag = "2")]
    gitaly_address: Option<GitalyAddress>,
}

#[tokio::test]
async fn both_generations_of_rails_are_answered_and_features_are_passed_on() {
    let field = Listed::start().await;
    let mut client = field.client();
    let older = Older {
        repository: Some(repository("config.git")),
        gitaly_address: Some(GitalyAddress {
            address: field.gitaly.address().to_owned(),
            token: TOKEN.to_owned(),
        }),
    };
    let older = ListAgentConfigFilesRequest::decode(older.encode_to_vec().as_slice()).unwrap();
    assert_eq!(older.gitaly_info.as_ref().unwrap().features, HashMap::new());
    assert_eq!(listed(&mut client, older).await.unwrap(), both());
    assert!(!field.gitaly.last_metadata().contains_key("gitaly-feature-fast"));

    let mut newer = field.request(&[("gitaly-feature-fast", "true")]);
    // Another repository to the memory, the same to Gitaly.
    newer.repository.as_mut().unwrap().gl_repository = "project-2".to_owned();
    assert_eq!(listed(&mut client, newer).await.unwrap(), both());
    assert_eq!(field.gitaly.last_metadata().get("gitaly-feature-fast").map(String::as_str), Some("true"));
}

#[tokio::test]
async fn a_page_that_many_look_at_is_one_question() {
    let field = Listed::start().await;
    field.gitaly.break_all(Fault::Delay(Duration::from_millis(50)));
    let views = (0..20).map(|_| {
        let (mut client, request) = (field.client(), field.request(&[]));
        async move { listed(&mut client, request).await }
    });
    for view in futures::future::join_all(views).await {
        assert_eq!(view.unwrap(), both());
    }
    assert_eq!(field.gitaly.calls(Rpc::GetTreeEntries), 1);
    // With another token it is another question, and not answered from memory.
    let mut request = field.request(&[]);
    request.gitaly_info.as_mut().unwrap().token = "another".to_owned();
    assert_eq!(listed(&mut field.client(), request).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn whatever_is_wrong_with_gitaly_is_unavailable() {
    let field = Listed::start().await;
    let mut client = field.client();
    let mut nowhere = field.request(&[]);
    nowhere.gitaly_info.as_mut().unwrap().address = "tcp://127.0.0.1:1".to_owned();
    let mut nonsense = field.request(&[]);
    nonsense.gitaly_info.as_mut().unwrap().address = "nonsense".to_owned();
    let mut missing = field.request(&[]);
    missing.repository = Some(repository("none-such.git"));
    for request in [nowhere, nonsense, missing] {
        let status = listed(&mut client, request).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(
            status.message().starts_with("Unavailable: ") && !status.message().contains(TOKEN),
            "{status:?}"
        );
    }
    field.gitaly.break_all(Fault::Unavailable);
    assert_eq!(listed(&mut client, field.request(&[])).await.unwrap_err().code(), Code::Unavailable);
    field.gitaly.mend();
    // Trouble is not remembered for more than seconds.
    let recovered = async { while listed(&mut client, field.request(&[])).await.is_err() {} };
    timeout(SOON, recovered).await.unwrap();
}

#[tokio::test]
async fn a_request_without_a_repository_or_a_server_is_refused() {
    let field = Listed::start().await;
    let mut client = field.client();
    let good = field.request(&[]);
    for (request, words) in [
        (ListAgentConfigFilesRequest { repository: None, ..good.clone() }, "repository is required"),
        (ListAgentConfigFilesRequest { gitaly_info: None, ..good }, "gitaly_info is required"),
    ] {
        let status = listed(&mut client, request).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, words));
    }
}
