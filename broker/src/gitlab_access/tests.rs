//! Over real sockets: an agent's gRPC client and a stand-in GitLab, one of whose modules sends back what it gets.

use super::*;
use crate::{
    gitlab::Periods,
    stage::{Stage, TOKEN_A, TOKEN_B, agents, call_as, serve},
};
use postern_wire::proto::gitlab::agent::{
    gitlab_access::rpc::{
        gitlab_access_client::GitlabAccessClient, gitlab_access_server::GitlabAccessServer,
    },
    grpctool::http_request::{Data, Header, Trailer, UpgradeData},
    prototool::{self, Values},
};
use sha2::{Digest, Sha256};
use stand_ins::rails::{Endpoint, Faults, HangUp, Options, Truncated};
use std::collections::HashMap;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, service::Routes, transport::Channel};

const MODULES: &str = "/api/v4/internal/kubernetes/modules";

struct Field {
    stage: Stage,
    service: GitlabAccessService,
    agent: GitlabAccessClient<Channel>,
}

impl Field {
    async fn start() -> Self {
        Self::with(|_, _| {}).await
    }

    async fn with(adjust: impl FnOnce(&mut GitlabAccessService, &mut Periods)) -> Self {
        let mut periods = Periods::default();
        let mut service = GitlabAccessService::new(None, CancellationToken::new());
        adjust(&mut service, &mut periods);
        let options = Options { agents: agents(|project| project), ..Options::default() };
        let stage = Stage::start(options, periods).await;
        service.rails = Some(Arc::clone(stage.rails.rails()));
        let routes = Routes::new(stage.admission.guard(GitlabAccessServer::new(service.clone())));
        let agent = GitlabAccessClient::new(serve(routes, &stage.stop).await);
        Self { stage, service, agent }
    }

    /// A call whose messages come one by one.
    async fn open(&self, token: &str) -> (mpsc::Sender<HttpRequest>, Streaming<HttpResponse>) {
        let (messages, sent) = mpsc::channel(1);
        let mut agent = self.agent.clone();
        let answers = agent.make_request(call_as(token, ReceiverStream::new(sent)));
        (messages, soon(answers).await.unwrap().into_inner())
    }

    /// A call with these messages: head and body of the answer.
    async fn whole(
        &self,
        token: &str,
        messages: Vec<HttpRequest>,
    ) -> Result<(prototool::HttpResponse, Vec<u8>), Status> {
        let request = call_as(token, stream::iter(messages));
        let mut answers = soon(self.agent.clone().make_request(request)).await?.into_inner();
        let head = head(&mut answers).await?;
        let mut body = Vec::new();
        while let Some(data) = piece(&mut answers).await? {
            body.extend_from_slice(&data);
        }
        assert!(soon(answers.message()).await?.is_none(), "OK after the trailer");
        Ok((head, body))
    }

    async fn refusal(&self, messages: Vec<HttpRequest>) -> Status {
        self.whole(TOKEN_A, messages).await.unwrap_err()
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("it takes no minute")
}

async fn head(answers: &mut Streaming<HttpResponse>) -> Result<prototool::HttpResponse, Status> {
    match soon(answers.message()).await?.and_then(|answer| answer.message) {
        Some(http_response::Message::Header(header)) => Ok(header.response.unwrap()),
        other => panic!("a header comes first, not {other:?}"),
    }
}

/// The next piece; `None` at the trailer.
async fn piece(answers: &mut Streaming<HttpResponse>) -> Result<Option<Bytes>, Status> {
    match soon(answers.message()).await?.and_then(|answer| answer.message) {
        Some(http_response::Message::Data(data)) => {
            assert!(data.data.len() <= MAX_DATA);
            Ok(Some(data.data))
        }
        Some(http_response::Message::Trailer(_)) => Ok(None),
        other => panic!("data or the trailer, not {other:?}"),
    }
}

fn message(message: http_request::Message) -> HttpRequest {
    HttpRequest { message: Some(message) }
}

fn values(of: &[(&str, &[&str])]) -> HashMap<String, Values> {
    let text = |texts: &[&str]| Values { value: texts.iter().map(|&text| text.to_owned()).collect() };
    of.iter().map(|(key, texts)| ((*key).to_owned(), text(texts))).collect()
}

fn header_with(method: &str, module: &str, path: &str, headers: &[(&str, &[&str])]) -> Header {
    let extra = HeaderExtra { module_name: module.to_owned() };
    Header {
        request: Some(prototool::HttpRequest {
            method: method.to_owned(),
            header: values(headers),
            url_path: path.to_owned(),
            query: HashMap::new(),
        }),
        extra: Some(prost_types::Any {
            type_url: format!("type.googleapis.com/{HEADER_EXTRA}"),
            value: extra.encode_to_vec(),
        }),
        content_length: None,
    }
}

fn header(method: &str, module: &str, path: &str) -> HttpRequest {
    message(http_request::Message::Header(header_with(method, module, path, &[])))
}

fn data(data: &'static [u8]) -> HttpRequest {
    message(http_request::Message::Data(Data { data: Bytes::from_static(data) }))
}

fn trailer() -> HttpRequest {
    message(http_request::Message::Trailer(Trailer {}))
}

fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret))
}

#[tokio::test]
async fn pieces_come_back_while_others_are_still_to_be_sent() {
    let field = Field::start().await;
    let (messages, mut answers) = field.open(TOKEN_A).await;
    messages.send(header("POST", "stand_in_echo", "/x")).await.unwrap();
    messages.send(data(b"one")).await.unwrap();
    let head = head(&mut answers).await.unwrap();
    assert_eq!((head.status_code, head.status.as_str()), (200, "200 OK"));
    assert_eq!(piece(&mut answers).await.unwrap().unwrap(), "one");
    messages.send(data(b"two")).await.unwrap();
    assert_eq!(piece(&mut answers).await.unwrap().unwrap(), "two");
    static LARGE: [u8; 100_000] = [b'x'; 100_000];
    messages.send(data(&LARGE)).await.unwrap();
    messages.send(trailer()).await.unwrap();
    drop(messages);
    let mut rest = 0;
    while let Some(data) = piece(&mut answers).await.unwrap() {
        rest += data.len();
    }
    assert_eq!(rest, LARGE.len());
    assert!(soon(answers.message()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_request_is_the_agent_s_own_whatever_it_says() {
    let field = Field::start().await;
    let mut header = header_with(
        "PUT",
        "stand_in_echo",
        "/some path/ü%",
        &[
            ("Content-Type", &["text/plain"]),
            ("Authorization", &["Bearer of-another"]),
            ("Gitlab-Agent-Api-Request", &["of-another"]),
            ("Gitlab-Kas-Api-Request", &["forged"]),
            ("Job-Token", &["of-another"]),
            ("Cookie", &["_gitlab_session=x"]),
            ("X-Forwarded-For", &["127.0.0.1"]),
            ("X_Forwarded_For", &["127.0.0.1"]),
            ("Private_Token", &["of-another"]),
        ],
    );
    header.request.as_mut().unwrap().query = values(&[("b", &["2 &"]), ("a", &["1", "ü"])]);
    let messages = vec![message(http_request::Message::Header(header)), data(b"x"), trailer()];
    let (head, body) = field.whole(TOKEN_A, messages).await.unwrap();
    assert_eq!(body, b"x");
    assert_eq!(head.header["Echo-Content-Type"].value, ["text/plain"], "names are as Go writes them");
    let seen = field.stage.gitlab.requests().pop().unwrap();
    assert_eq!(
        seen.uri.to_string(),
        format!("{MODULES}/stand_in_echo/some%20path/%C3%BC%25?a=1&a=%C3%BC&b=2+%26")
    );
    assert_eq!(seen.method, "PUT");
    assert_eq!(seen.token, Some(hash(TOKEN_A)));
    assert_eq!(seen.headers["authorization"], hash(&format!("Bearer {TOKEN_A}")));
    assert!(seen.claims.is_some(), "the JWT is ours");
    for name in ["job-token", "cookie", "x-forwarded-for", "x_forwarded_for", "private_token"] {
        assert!(!seen.headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn every_status_is_an_answer() {
    let field = Field::start().await;
    let alert = |body| vec![header("POST", "cilium_alert", "/"), data(body), trailer()];
    assert_eq!(field.whole(TOKEN_A, alert(b"{\"alert\": {}}")).await.unwrap().0.status_code, 200);
    let (head, body) = field.whole(TOKEN_A, alert(b"{}")).await.unwrap();
    assert_eq!((head.status_code, head.status.as_str()), (400, "400 Bad Request"));
    assert_eq!(body, br#"{"message":"400 Bad request"}"#);
    let unknown = vec![header("GET", "unknown", "/x"), trailer()];
    assert_eq!(field.whole(TOKEN_A, unknown.clone()).await.unwrap().0.status_code, 404);
    let seen = field.stage.gitlab.requests().pop().unwrap();
    assert!(!seen.headers.contains_key("transfer-encoding"), "a GET without a body has none");
    for status in [302, 500, 503] {
        let status = http::StatusCode::from_u16(status).unwrap();
        let faults = Faults { status: Some(status), ..Faults::default() };
        field.stage.gitlab.set_faults(Endpoint::Module, faults);
        let (head, _) = field.whole(TOKEN_A, unknown.clone()).await.unwrap();
        assert_eq!(head.status_code, i32::from(status.as_u16()));
    }
}

#[tokio::test]
async fn nobody_climbs_out_of_a_module() {
    let field = Field::start().await;
    let before = field.stage.gitlab.calls(Endpoint::Module);
    for path in ["/../../agent_info", "/x/../../y", "/%2e%2e/y", "/..\\y", "x", ""] {
        let status = field.refusal(vec![header("GET", "stand_in_echo", path), trailer()]).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{path}: {status}");
    }
    for module in [".", "..", "a/../../agent_info", "a%2F..%2F..%2Fagent_info"] {
        let status = field.refusal(vec![header("GET", module, "/"), trailer()]).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{module}: {status}");
    }
    assert_eq!(field.stage.gitlab.calls(Endpoint::Module), before, "GitLab heard of none of them");
}

#[tokio::test]
async fn modules_are_asked_by_the_usual_methods_only() {
    let field = Field::start().await;
    let asked = || field.stage.gitlab.calls(Endpoint::Module);
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
        let before = asked();
        field.whole(TOKEN_A, vec![header(method, "stand_in_echo", "/"), trailer()]).await.unwrap();
        assert_eq!(asked(), before + 1, "{method}");
    }
    let before = field.stage.gitlab.requests().len();
    for method in ["TRACE", "CONNECT", "OPTIONS", "PURGE", "get"] {
        let status = field.refusal(vec![header(method, "stand_in_echo", "/"), trailer()]).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{method}: {status}");
    }
    assert_eq!(field.stage.gitlab.requests().len(), before, "GitLab heard of none of them");
}

#[tokio::test]
async fn what_is_no_request_is_refused_with_the_code_that_agents_know() {
    let field = Field::start().await;
    let good = || header_with("GET", "stand_in_echo", "/", &[]);
    let with = |adjust: &dyn Fn(&mut Header)| {
        let mut header = good();
        adjust(&mut header);
        vec![message(http_request::Message::Header(header)), trailer()]
    };
    let upgrade = || message(http_request::Message::UpgradeData(UpgradeData { data: Bytes::new() }));
    let post = || header("POST", "stand_in_echo", "/");
    for (messages, code) in [
        (vec![], Code::InvalidArgument),
        (vec![HttpRequest { message: None }], Code::InvalidArgument),
        (vec![trailer()], Code::InvalidArgument),
        (vec![post()], Code::InvalidArgument),
        (vec![post(), data(b"x")], Code::InvalidArgument),
        (vec![post(), post()], Code::InvalidArgument),
        (vec![post(), upgrade()], Code::InvalidArgument),
        (with(&|header| header.extra = None), Code::Unavailable),
        (with(&|header| header.extra.as_mut().unwrap().type_url = "x/y.Z".to_owned()), Code::Unavailable),
        (with(&|header| header.extra.as_mut().unwrap().value.clear()), Code::Unavailable),
        (with(&|header| header.extra.as_mut().unwrap().value = vec![0xff]), Code::Unavailable),
        (with(&|header| header.request = None), Code::InvalidArgument),
        (with(&|header| header.request.as_mut().unwrap().method = "G T".to_owned()), Code::InvalidArgument),
        (
            with(&|header| header.request.as_mut().unwrap().header = values(&[("a b", &["x"])])),
            Code::InvalidArgument,
        ),
        (
            vec![
                message(http_request::Message::Header(Header { content_length: Some(0), ..good() })),
                data(b"x"),
                trailer(),
            ],
            Code::InvalidArgument,
        ),
    ] {
        let status = field.refusal(messages.clone()).await;
        assert_eq!(status.code(), code, "{messages:?}: {status}");
    }
}

#[tokio::test]
async fn a_gitlab_that_hangs_up_or_breaks_off_is_unavailable() {
    let field = Field::start().await;
    let request = || vec![header("GET", "unknown", "/x"), trailer()];
    let hang_up = Faults { drop_connection: Some(HangUp::BeforeAnswer), ..Faults::default() };
    let break_off = Faults { truncated: Some(Truncated::Connection), ..Faults::default() };
    for faults in [hang_up, break_off] {
        field.stage.gitlab.set_faults(Endpoint::Module, faults);
        let status = field.refusal(request()).await;
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(!status.message().contains("127.0.0.1"), "an agent need not know where GitLab is: {status}");
    }
    field.stage.gitlab.set_faults(Endpoint::Module, Faults::default());
    assert_eq!(field.whole(TOKEN_A, request()).await.unwrap().0.status_code, 404);
}

#[tokio::test]
async fn a_request_in_which_nothing_moves_is_given_up() {
    // Longer than a machine stands still for between two messages.
    let field = Field::with(|service, _| service.idle = Duration::from_secs(5)).await;
    let (messages, mut answers) = field.open(TOKEN_A).await;
    messages.send(header("POST", "stand_in_echo", "/x")).await.unwrap();
    head(&mut answers).await.unwrap();
    assert_eq!(soon(answers.message()).await.unwrap_err().code(), Code::DeadlineExceeded);
    // Its slot is free again, although the agent holds the stream.
    assert_eq!(
        field.whole(TOKEN_A, vec![header("GET", "x", "/"), trailer()]).await.unwrap().0.status_code,
        404
    );
    soon(messages.closed()).await;
}

#[tokio::test]
async fn a_revoked_token_ends_what_runs_with_it() {
    let shortest = |_: &mut GitlabAccessService, periods: &mut Periods| {
        periods.agents.ok = Duration::from_secs(5);
    };
    let field = Field::with(shortest).await;
    let (messages, mut answers) = field.open(TOKEN_A).await;
    messages.send(header("POST", "stand_in_echo", "/x")).await.unwrap();
    head(&mut answers).await.unwrap();
    field.stage.gitlab.revoke(TOKEN_A);
    assert_eq!(soon(answers.message()).await.unwrap_err().code(), Code::Unauthenticated);
    soon(messages.closed()).await;
}

#[tokio::test]
async fn so_many_requests_of_an_agent_run_and_no_more_and_one_that_it_left_is_none() {
    let field = Field::with(|service, _| service.requests = PerAgent::new(1)).await;
    let (messages, answers) = field.open(TOKEN_A).await;
    let request = || vec![header("GET", "x", "/"), trailer()];
    assert_eq!(field.refusal(request()).await.code(), Code::ResourceExhausted);
    assert_eq!(field.whole(TOKEN_B, request()).await.unwrap().0.status_code, 404);
    drop((messages, answers));
    let freed = field.service.requests.enter(postern_wire::ids::AgentId(1));
    drop(soon(freed).await);
    assert_eq!(field.whole(TOKEN_A, request()).await.unwrap().0.status_code, 404);
}

#[tokio::test]
async fn nothing_is_read_for_an_agent_that_does_not_take_it() {
    static BLOCK: [u8; 32 << 10] = [b'x'; 32 << 10];
    let field = Field::start().await;
    let (messages, mut answers) = field.open(TOKEN_A).await;
    messages.send(header("POST", "stand_in_echo", "/x")).await.unwrap();
    head(&mut answers).await.unwrap();
    // The echo is not read: soon nothing more is taken.
    let mut sent = 0;
    while let Ok(taken) = tokio::time::timeout(Duration::from_millis(500), messages.send(data(&BLOCK))).await
    {
        taken.unwrap();
        sent += 1;
        // Sockets have buffers, of several MiB each.
        assert!(sent < 8192, "256 MiB were taken");
    }
    let rest = async {
        let mut read = 0;
        while let Some(data) = piece(&mut answers).await.unwrap() {
            read += data.len();
        }
        read
    };
    let end = async {
        messages.send(trailer()).await.unwrap();
        drop(messages);
    };
    let (read, ()) = tokio::join!(rest, end);
    assert_eq!(read, sent * BLOCK.len(), "and then all of it comes");
}

#[tokio::test]
async fn without_gitlab_there_are_no_modules() {
    let field = Field::start().await;
    let service = GitlabAccessService { rails: None, ..field.service.clone() };
    let routes = Routes::new(field.stage.admission.guard(GitlabAccessServer::new(service)));
    let mut agent = GitlabAccessClient::new(serve(routes, &field.stage.stop).await);
    let request = call_as(TOKEN_A, stream::iter([header("GET", "x", "/"), trailer()]));
    let status = agent.make_request(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("without GitLab"), "{status}");
}
