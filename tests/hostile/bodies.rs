//! Request bodies that break HTTP's rules or off, from a caller whose token is good.

use super::{assert_everything_works, exchange, text};
use crate::harness::{Field, http, until};
use tokio::io::AsyncWriteExt;

/// A request to the cluster whose head is good.
pub(super) fn request(bearer: &str, header: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /k8s-proxy/sink HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer}\r\nConnection: close\r\n{header}\r\n\r\n{body}"
    )
    .into_bytes()
}

#[tokio::test]
async fn bodies_that_are_malformed_or_cut_short_reach_no_cluster_as_whole_ones() {
    let mut field = Field::start().await;
    let cases = [
        (false, "no number of a chunk", "Transfer-Encoding: chunked", "ZZ\r\n"),
        (false, "a chunk longer than it says", "Transfer-Encoding: chunked", "2\r\nabc\r\n0\r\n\r\n"),
        (true, "half a chunk", "Transfer-Encoding: chunked", "a\r\nabc"),
        (true, "less than it says", "Content-Length: 10", "abc"),
        (false, "two lengths", "Content-Length: 3\r\nContent-Length: 4", "abcd"),
        (false, "no length", "Content-Length: three", "abc"),
        (
            false,
            "both at once",
            "Content-Length: 30\r\nTransfer-Encoding: chunked",
            "0\r\n\r\nGET /k8s-proxy/smuggled HTTP/1.1\r\n\r\n",
        ),
    ];
    for (leaves, what, header, body) in cases {
        let mut io = http::connect(&field, &[b"http/1.1"]).await;
        io.write_all(&request(&field.bearer(), header, body)).await.expect("sent");
        if leaves {
            let _ = io.shutdown().await;
        }
        let answer = text(&exchange(&mut io, b"").await);
        let status = answer.split(' ').nth(1).unwrap_or_default();
        println!("{what}: {:?}", answer.lines().next());
        // The last one may be taken for what its chunks say: no body at all.
        let empty = what == "both at once" && status == "200" && answer.contains("\"length\":0");
        assert!(status == "400" || empty || (leaves && status.is_empty()), "{what}: {answer}");
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{what}: {answer}");
    }
    assert!(field.api().requests().iter().all(|seen| !seen.uri.path().contains("smuggled")));
    until("the cluster has none of them open", async || (field.api().open_of("sink") == 0).then_some(()))
        .await;
    let probes = field.addresses.broker_probes;
    until("no tunnel is held", async || {
        let (_, metrics) = http::text(probes, "/metrics").await?;
        metrics.contains("postern_broker_tunnels_busy 0\n").then_some(())
    })
    .await;
    assert_everything_works(&mut field).await;
}
