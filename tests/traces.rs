//! One request, one trace: spans of edge, broker and agent at one collector, each below the one before it.

use crate::harness::{Field, Options, PATIENCE, http, until};
use http_body_util::BodyExt;
use stand_ins::otlp::{Collector, Span};
use tokio::time::timeout;

const PARENT: &str = "00f067aa0ba902b7";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Edge over gRPC, broker and agent over HTTP.
async fn field(collector: &Collector) -> Field {
    let kas = format!(
        "agent:\n  listen: {{address: '127.0.0.1:0', websocket: true}}\n  kubernetes_api:\n    \
         listen: {{address: '127.0.0.1:0'}}\n    url_path_prefix: /k8s-proxy/\n\
         observability: {{listen: {{address: '127.0.0.1:0'}}, tracing: {{otlp_endpoint: '{}'}}}}\n\
         embedded: {{identities_file: identities.yaml}}\n",
        collector.http_url()
    );
    let edge = format!("telemetry: {{otlp: {{endpoint: '{}', sample: 1}}}}\n", collector.grpc_url());
    let agent_env = vec![("OTEL_EXPORTER_OTLP_ENDPOINT", collector.http_url())];
    Field::with(Options { kas: Some(kas), edge_extra: edge, agent_env, ..Options::default() }).await
}

async fn span(collector: &Collector, service: &str, name: &str, trace: &str) -> Span {
    let fits = |span: &Span| span.service == service && span.name == name && span.trace == trace;
    let found = timeout(PATIENCE, collector.span(fits)).await;
    found.unwrap_or_else(|_| panic!("no {name} of {service} in {:#?}", collector.spans()))
}

#[tokio::test]
async fn a_request_is_one_trace_from_its_caller_to_the_cluster() {
    let collector = Collector::start().await.unwrap();
    let mut field = field(&collector).await;
    let (bearer, parent) = (field.bearer(), format!("00-{TRACE}-{PARENT}-01"));
    let headers =
        [("authorization", bearer.as_str()), ("traceparent", parent.as_str()), ("x-request-id", "joined-1")];
    let answer = http::get(&field, "/version", &headers).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-request-id"], "joined-1");
    answer.into_body().collect().await.unwrap();

    let edge = span(&collector, "postern-edge", "edge GET", TRACE).await;
    let server = span(&collector, "gitlab-kas", "kas Kubernetes API", TRACE).await;
    let tunnel = span(&collector, "gitlab-kas", "kas tunnel", TRACE).await;
    let agent = span(&collector, "gitlab-agent", "agentk GET", TRACE).await;
    let parents = [&edge, &server, &tunnel, &agent].map(|span| span.parent.as_str());
    assert_eq!(parents, [PARENT, &edge.id, &server.id, &tunnel.id]);
    for span in [&edge, &server, &agent] {
        assert_eq!(span.attributes["http.response.status_code"], "200", "{span:?}");
        assert!(span.error.is_empty(), "{span:?}");
    }
    let all = format!("{:?}", collector.spans());
    for secret in [&field.agent_token, &field.caller_token, &field.cluster_token] {
        assert!(!all.contains(secret.as_str()), "a token is in a span");
    }

    // The same id finds the lines of all three.
    field.edge.logged("stream finished", |line| line["request_id"] == "joined-1").await;
    field.broker.logged("request", |line| line["trace_id"] == "joined-1").await;
    field.agent.logged("request", |line| line["correlation_id"] == "joined-1").await;
}

#[tokio::test]
async fn what_a_caller_does_not_want_recorded_is_not() {
    let collector = Collector::start().await.unwrap();
    let field = field(&collector).await;
    let bearer = field.bearer();
    let declined = format!("00-{TRACE}-{PARENT}-00");
    let headers = [("authorization", bearer.as_str()), ("traceparent", declined.as_str())];
    let answer = http::get(&field, "/version", &headers).await;
    assert_eq!(answer.status(), 200);
    // A later one that begins a trace of its own arrives at the collector from all three; the first never does.
    let answer = http::get(&field, "/version", &[("authorization", bearer.as_str())]).await;
    assert_eq!(answer.status(), 200);
    let trace = until("a trace of the edge's own", async || {
        let spans = collector.spans().into_iter();
        spans.filter(|span| span.name == "edge GET" && span.parent.is_empty()).map(|span| span.trace).next()
    })
    .await;
    span(&collector, "gitlab-kas", "kas Kubernetes API", &trace).await;
    span(&collector, "gitlab-agent", "agentk GET", &trace).await;
    assert!(collector.spans().iter().all(|span| span.trace != TRACE), "{:#?}", collector.spans());
}
