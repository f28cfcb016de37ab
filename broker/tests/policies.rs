//! A broker beside stand-ins of Rails and Gitaly, whose policies are edited while an agent's streams are open: what those
//! two see of each edit, and when, and what the broker says of itself.

#![expect(clippy::unwrap_used, reason = "a test may fail right where it stands")]

use postern_broker::{
    app::{self, Bound, Drained},
    config::{Config, ListenAddress},
};
use postern_wire::proto::gitlab::agent::agent_configuration::rpc::{
    ConfigurationRequest, ConfigurationResponse, agent_configuration_client::AgentConfigurationClient,
};
use serde_json::Value;
use stand_ins::{
    git::git,
    gitaly::{Gitaly, Options, Rpc},
    rails::{self, Agent, Project, Rails},
};
use std::{net::SocketAddr, path::Path, time::Duration};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, interval, timeout},
};
use tonic::{Code, Request, Status, Streaming, transport::Channel};

const TOKEN: &str = "glagent-one";
const SOON: Duration = Duration::from_secs(60);
/// Far less than the period before. An operator may expect a second; what it took is printed, for a busy machine may add to it.
const AT_ONCE: Duration = Duration::from_secs(60);

struct Field {
    folder: TempDir,
    gitaly: Gitaly,
    _rails: Rails,
    broker: Bound,
    agent: AgentConfigurationClient<Channel>,
}

fn document(kind: &str, spec: &str) -> String {
    format!("apiVersion: postern/v1\nkind: {kind}\nmetadata: {{name: tested}}\nspec: {spec}\n")
}

fn polling(period: &str) -> String {
    document("PollingPolicy", &format!("{{configuration: {{period: {period}}}}}"))
}

fn tcp(address: &ListenAddress) -> SocketAddr {
    match address {
        ListenAddress::Tcp(address) => *address,
        ListenAddress::Unix(path) => panic!("it listens on {}", path.display()),
    }
}

impl Field {
    /// With this file of policies.
    async fn start(policies: &str) -> Self {
        postern_certs::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path().join("@hashed/10.git");
        std::fs::create_dir_all(&repository).unwrap();
        git(&repository, &["init", "-q"]);
        commit(&repository, "observability: {logging: {level: info}}\n");
        let gitaly = Gitaly::start(Options::new(folder.path())).await.unwrap();
        let project =
            Project { gitaly_address: gitaly.address().to_owned(), ..Project::new(10, "group/config") };
        let agent = Agent { token: TOKEN.to_owned(), id: 1, name: "a".to_owned(), project };
        let rails = Rails::start(rails::Options { agents: vec![agent], ..Default::default() }).await.unwrap();
        let write = |file: &str, text: &str| std::fs::write(folder.path().join(file), text).unwrap();
        write("secret", &rails.secret_file());
        write("ca.pem", &postern_certs::dev::Ca::new().pem());
        std::fs::create_dir(folder.path().join("policies")).unwrap();
        write("policies/policies.yaml", policies);
        let text = format!(
            "gitlab: {{address: '{}', authentication_secret_file: secret, ca_certificate_file: ca.pem}}\nagent: {{listen: \
             {{address: '127.0.0.1:0'}}}}\nobservability: {{listen: {{address: '127.0.0.1:0'}}}}\npolicies: {{directory: \
             policies}}\n",
            rails.url()
        );
        let config = Config::parse(&text, &folder.path().join("kas.yaml")).unwrap();
        let broker = app::start(config).await.unwrap();
        let url = format!("http://{}", tcp(&broker.agents));
        let agent =
            AgentConfigurationClient::new(Channel::from_shared(url).unwrap().connect().await.unwrap());
        Self { folder, gitaly, _rails: rails, broker, agent }
    }

    /// Renamed over the old file, as editors do.
    fn edit(&self, policies: &str) -> Instant {
        let folder = self.folder.path().join("policies");
        std::fs::write(folder.join(".new"), policies).unwrap();
        std::fs::rename(folder.join(".new"), folder.join("policies.yaml")).unwrap();
        Instant::now()
    }

    fn looks(&self) -> u64 {
        self.gitaly.calls(Rpc::FindCommit)
    }

    async fn ask(&self, token: &str) -> Result<Streaming<ConfigurationResponse>, Status> {
        let mut request = Request::new(ConfigurationRequest::default());
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        Ok(self.agent.clone().get_configuration(request).await?.into_inner())
    }

    /// An agent's stream that has said what there is.
    async fn stream(&self) -> Streaming<ConfigurationResponse> {
        let mut stream = self.ask(TOKEN).await.unwrap();
        timeout(SOON, stream.message()).await.unwrap().unwrap().unwrap();
        stream
    }

    /// Status and body.
    async fn get(&self, path: &str) -> (u16, String) {
        let mut connection = TcpStream::connect(tcp(&self.broker.observability)).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: broker\r\nconnection: close\r\n\r\n");
        connection.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn report(&self) -> Value {
        let (status, body) = self.get("/policies").await;
        assert_eq!(status, 200);
        serde_json::from_str(&body).unwrap()
    }

    /// Waits until the broker says this of its policies.
    async fn tells(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut ticks = interval(Duration::from_millis(5));
        let told = async {
            loop {
                ticks.tick().await;
                let report = self.report().await;
                if holds(&report) {
                    return report;
                }
            }
        };
        timeout(SOON, told).await.unwrap_or_else(|_| panic!("it never tells {what}"))
    }

    /// Waits until Gitaly was asked so often.
    async fn asked(&self, looks: u64) {
        let mut ticks = interval(Duration::from_millis(2));
        let asked = async {
            while self.looks() < looks {
                ticks.tick().await;
            }
        };
        timeout(SOON, asked).await.unwrap_or_else(|_| panic!("{} looks, {looks} wanted", self.looks()));
    }

    async fn end(self) {
        let Self { broker, agent, .. } = self;
        drop(agent);
        assert_eq!(broker.drain().await, Drained::Clean);
    }
}

fn commit(repository: &Path, text: &str) -> String {
    let folder = repository.join(".gitlab/agents/a");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.yaml"), text).unwrap();
    git(repository, &["add", "."]);
    git(repository, &["commit", "-q", "-m", "change"]);
    git(repository, &["rev-parse", "HEAD"]).trim().to_owned()
}

#[tokio::test]
async fn gitaly_sees_another_poll_period_soon_after_each_edit_and_no_stream_ends() {
    let field = Field::start(&polling("5m")).await;
    let mut streams = [field.stream().await, field.stream().await];
    let before = field.looks();
    // Longer than the period that comes.
    assert!(timeout(Duration::from_millis(1_200), streams[0].message()).await.is_err(), "there is no news");
    assert_eq!(field.looks(), before, "five minutes are not over");
    let edited = field.edit(&polling("1s"));
    field.asked(before + 1).await;
    let after = edited.elapsed();
    assert!(after < AT_ONCE, "5m -> 1s: {after:?}");
    println!("5m -> 1s: Gitaly is asked after {after:?}");
    field.asked(before + 4).await;

    let edited = field.edit(&polling("5m"));
    field.tells("of the third", |report| report["generation"] == 3).await;
    println!("1s -> 5m: in force after {:?}", edited.elapsed());
    let before = field.looks();
    for stream in &mut streams {
        assert!(timeout(Duration::from_millis(1_500), stream.message()).await.is_err(), "it stays open");
    }
    // One may have been under way.
    assert!(field.looks() <= before + 1, "{} looks in 3 s of 5 min", field.looks() - before);

    let commit = commit(&field.folder.path().join("@hashed/10.git"), "gitops: {}\n");
    let edited = field.edit(&polling("1s"));
    for stream in &mut streams {
        let said = timeout(SOON, stream.message()).await.unwrap().unwrap().expect("the same stream");
        assert_eq!(said.commit_id, commit);
    }
    let after = edited.elapsed();
    println!("5m -> 1s: a commit that waited is there after {after:?}");
    assert!(after < AT_ONCE, "5m -> 1s: {after:?}");
    drop(streams);
    field.end().await;
}

#[tokio::test]
async fn the_shortest_period_of_those_who_follow_a_repository_holds_by_their_own_documents() {
    let quick = format!(
        "{}---\napiVersion: postern/v1\nkind: PollingPolicy\nmetadata: {{name: quick}}\nmatch: {{agentIds: [1]}}\nspec: \
         {{configuration: {{period: 1s}}}}\n",
        polling("5m")
    );
    let field = Field::start(&quick).await;
    let stream = field.stream().await;
    let before = field.looks();
    field.asked(before + 3).await;
    drop(stream);
    field.end().await;
}

#[tokio::test]
async fn a_bad_edit_keeps_the_last_good_one_in_force_and_is_told_everywhere_but_by_readiness() {
    let field = Field::start(&polling("1s")).await;
    let stream = field.stream().await;
    let good = field.report().await;
    assert_eq!((&good["generation"], &good["bad_for_seconds"]), (&1.into(), &Value::Null), "{good}");
    assert_eq!(good["problems"], serde_json::json!([]));
    field.edit(&polling("1s").replace("PollingPolicy", "PollingPolicyy"));
    let bad = field.tells("of a problem", |report| report["problems"] != good["problems"]).await;
    assert_eq!((&bad["generation"], &bad["fingerprint"]), (&good["generation"], &good["fingerprint"]));
    assert!(bad["problems"][0].as_str().unwrap().contains("policies.yaml:2"), "{bad}");
    assert!(bad["bad_for_seconds"].as_f64().is_some(), "{bad}");
    assert_eq!(field.get("/readiness").await.0, 200);
    let (_, metrics) = field.get("/metrics").await;
    let fingerprint = good["fingerprint"].as_str().unwrap();
    for line in [
        "\npostern_broker_policy_generation 1\n".to_owned(),
        format!("\npostern_broker_policy_problems {}\n", bad["problems"].as_array().unwrap().len()),
        format!("\npostern_broker_policy_documents_info{{fingerprint=\"{fingerprint}\"}} 1\n"),
    ] {
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    let before = field.looks();
    field.asked(before + 3).await;
    field.edit(&polling("5m"));
    let mended = field.tells("of no problem", |report| report["problems"] == good["problems"]).await;
    assert_eq!((&mended["generation"], &mended["bad_for_seconds"]), (&2.into(), &Value::Null), "{mended}");
    assert_ne!(mended["fingerprint"], good["fingerprint"]);
    drop(stream);
    field.end().await;
}

#[tokio::test]
async fn calls_that_wait_for_a_neighbours_rate_obey_another_rate_at_once() {
    let rate = |rate: &str| document("BackendPolicy", &format!("{{gitlab: {{rate: {{{rate}}}}}}}"));
    let field = Field::start(&rate("perSecond: 0.2, burst: 1")).await;
    let ask = |n: u32| {
        let (mut agent, mut request) = (field.agent.clone(), Request::new(ConfigurationRequest::default()));
        request.metadata_mut().insert("authorization", format!("Bearer stranger-{n}").parse().unwrap());
        tokio::spawn(async move { agent.get_configuration(request).await.map(drop).unwrap_err().code() })
    };
    let mut asked: Vec<_> = (0..4).map(ask).collect();
    let (code, first, _) = timeout(SOON, futures::future::select_all(&mut asked)).await.unwrap();
    assert_eq!(code.unwrap(), Code::Unauthenticated);
    drop(asked.remove(first));
    let another = futures::future::select_all(&mut asked);
    assert!(timeout(Duration::from_millis(300), another).await.is_err(), "one in five seconds");
    let edited = field.edit(&rate("perSecond: 1000, burst: 1"));
    for answer in asked {
        assert_eq!(timeout(SOON, answer).await.unwrap().unwrap(), Code::Unauthenticated);
    }
    println!("three that waited are answered after {:?}", edited.elapsed());
    // Once in five seconds, the last would wait for fifteen.
    assert!(edited.elapsed() < Duration::from_secs(12), "{:?}", edited.elapsed());
    field.end().await;
}

#[tokio::test]
async fn an_open_stream_that_another_age_makes_too_old_ends_properly() {
    let age = |age: &str| document("ConnectionPolicy", &format!("{{maxAge: {age}}}"));
    let field = Field::start(&age("2h")).await;
    let mut stream = field.stream().await;
    let edited = field.edit(&age("1s"));
    assert!(timeout(SOON, stream.message()).await.unwrap().unwrap().is_none(), "no error and no document");
    println!("2h -> 1s: the stream ends after {:?}", edited.elapsed());
    field.end().await;
}
