//! A thousand agents of one project: what they cost GitLab.

use crate::harness::{
    Options,
    gitlab::{GitLabField, Setup},
    within,
};
use postern_wire::{
    proto::gitlab::agent::agent_configuration::rpc::{
        ConfigurationRequest, agent_configuration_client::AgentConfigurationClient,
    },
    token::AgentToken,
};
use stand_ins::{
    gitaly::Rpc,
    rails::{Agent, Endpoint},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{task::JoinSet, time::Instant};
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Channel, Endpoint as Target},
};

const AGENTS: usize = 1000;
const CONNECTIONS: usize = 5;
/// Git runs for each file, on whatever cores there are.
const AWHILE: Duration = Duration::from_secs(60);

fn token(number: usize) -> String {
    format!("glagent-one-of-many-{number:04}")
}

/// How many agents have the configuration of each commit.
type Received = Arc<Mutex<HashMap<String, usize>>>;

async fn follow(channel: Channel, number: usize, received: Received) {
    let mut request = Request::new(ConfigurationRequest::default());
    let bearer = AgentToken::new(token(number)).unwrap().bearer();
    let bearer = MetadataValue::try_from(bearer.as_bytes()).unwrap();
    request.metadata_mut().insert("authorization", bearer);
    let mut stream =
        AgentConfigurationClient::new(channel).get_configuration(request).await.unwrap().into_inner();
    while let Some(response) = stream.message().await.unwrap() {
        assert_eq!(response.configuration.unwrap().agent_id, 1000 + i64::try_from(number).unwrap());
        *received.lock().unwrap().entry(response.commit_id).or_default() += 1;
    }
}

fn lookups(field: &GitLabField) -> u64 {
    field.gitaly.calls(Rpc::FindCommit) + field.gitaly.calls(Rpc::InfoRefsUploadPack)
}

/// Waits for five more looks at the repository; with one poller of a period of a second they take four seconds or so.
async fn one_poller(field: &GitLabField) {
    let (before, start) = (lookups(field), Instant::now());
    within(AWHILE, "five more looks", async || (lookups(field) >= before + 5).then_some(())).await;
    println!("five looks at the repository took {:?}", start.elapsed());
    // Each comes up to a fifth of the period early; the first one may be due just now.
    assert!(start.elapsed() > Duration::from_millis(3000), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_agents_of_a_project_are_one_poll_stream_and_one_read_each_a_commit() {
    let field = GitLabField::with(Setup {
        field: Options { log: Some("info"), ..Options::default() },
        rails: Box::new(|options| {
            let project = options.agents[0].project.clone();
            let many = (0..AGENTS).zip(1000..).map(|(number, id)| Agent {
                token: token(number),
                id,
                name: format!("agent-{number}"),
                project: project.clone(),
            });
            options.agents.extend(many);
        }),
        ..Setup::default()
    })
    .await;
    let received = Received::default();
    let (first, start) = (field.head(1), Instant::now());
    let mut streams = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let target = Target::from_shared(format!("http://{}", field.addresses.broker_agents)).unwrap();
        let channel = target.connect().await.unwrap();
        for number in (connection..AGENTS).step_by(CONNECTIONS) {
            streams.spawn(follow(channel.clone(), number, received.clone()));
        }
    }
    let all_have = async |commit: &str| {
        within(AWHILE, "all have it", async || {
            let count = received.lock().unwrap().get(commit).copied().unwrap_or_default();
            (count == AGENTS).then_some(())
        })
        .await;
    };
    all_have(&first).await;
    println!("{AGENTS} agents had their configuration after {:?}", start.elapsed());
    let everyone = u64::try_from(AGENTS).unwrap() + 1;
    assert!(field.rails().calls(Endpoint::AgentInfo) <= everyone);
    assert!(field.gitaly.calls(Rpc::TreeEntry) <= everyone, "{}", field.gitaly.calls(Rpc::TreeEntry));
    one_poller(&field).await;

    let (reads, start) = (field.gitaly.calls(Rpc::TreeEntry), Instant::now());
    let file = ".gitlab/agents/agent-7/config.yaml";
    let commit = field.commit(1, &[(file, Some("observability: {logging: {level: warn}}\n"))]);
    all_have(&commit).await;
    println!("a commit reached {AGENTS} agents after {:?}", start.elapsed());
    let reads = field.gitaly.calls(Rpc::TreeEntry) - reads;
    assert!(reads <= everyone, "{reads}");
    one_poller(&field).await;
    assert!(field.rails().calls(Endpoint::AgentInfo) <= everyone);
    assert!(streams.try_join_next().is_none(), "no stream ended");
}
