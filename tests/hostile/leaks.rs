//! Everything hostile at once and for long: descriptors and memory end up where they began. It judges no answer; its
//! siblings do.

use super::{
    Speaks, assert_everything_works, bodies, dial, exchange, junk, long_head, many_lines, ports,
    streams::upgrade_request, text,
};
use crate::harness::{Field, PATIENCE, Process, http, until};
use futures::future::join_all;
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// What strangers attack, without the field that it is.
#[derive(Clone)]
struct Target {
    ports: [(&'static str, SocketAddr, Speaks); 7],
    tls: TlsConnector,
    bearer: String,
}

impl Target {
    fn of(field: &Field) -> Self {
        let tls = TlsConnector::from(http::tls(field, &[b"http/1.1"]));
        Self { ports: ports(field), tls, bearer: field.bearer() }
    }

    /// What only makes sense behind a good handshake.
    async fn behind_tls(&self) {
        let body = bodies::request(&self.bearer, "Transfer-Encoding: chunked", "ZZ\r\n");
        let text_frame = [upgrade_request("ws-tunnel"), b"\x81\x05hello".to_vec()].concat();
        for bytes in [long_head(), text_frame, upgrade_request("chat"), body] {
            let io = dial(self.ports[0].1).await;
            let mut io = self.tls.connect("localhost".try_into().expect("a name"), io).await.expect("TLS");
            exchange(&mut io, &bytes).await;
        }
    }
}

/// One of everything, on every port.
async fn round(target: &Target) {
    let mut inputs: Vec<Vec<u8>> = junk().into_iter().map(|(bytes, _)| bytes).collect();
    inputs.extend([
        long_head(),
        many_lines(),
        b"G".to_vec(),
        Vec::new(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
    ]);
    inputs.push(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nand then junk that is long enough for a frame".to_vec());
    inputs.push(upgrade_request("chat"));
    inputs.push([upgrade_request("ws-tunnel"), b"\x81\x05hello".to_vec()].concat());
    for bytes in inputs {
        join_all(target.ports.map(|(_, address, _)| {
            let bytes = bytes.clone();
            async move {
                let mut io = dial(address).await;
                let _ = io.write_all(&bytes).await;
                let _ = io.shutdown().await;
                let mut answer = Vec::new();
                let end = timeout(PATIENCE, (&mut io).take(1 << 20).read_to_end(&mut answer)).await;
                assert!(
                    end.is_ok(),
                    "{address} keeps a connection that said {:?}",
                    text(&bytes[..bytes.len().min(80)])
                );
            }
        }))
        .await;
    }
    target.behind_tls().await;
}

const WORKERS: usize = 6;
const ROUNDS: usize = 50;

#[tokio::test]
async fn hundreds_of_rounds_of_it_leave_descriptors_and_memory_where_they_were() {
    let mut field = Field::start().await;
    let target = Target::of(&field);
    // Warm: pools and caches have what they keep.
    for _ in 0..3 {
        round(&target).await;
    }
    assert_everything_works(&mut field).await;
    let before = usage(&field).await;
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let target = target.clone();
        workers.spawn(async move {
            for _ in 0..ROUNDS {
                round(&target).await;
            }
        });
    }
    while let Some(done) = workers.join_next().await {
        done.expect("every port answers or closes");
    }
    assert_everything_works(&mut field).await;
    for (process, (name, descriptors, resident)) in
        [&field.edge, &field.broker, &field.agent].into_iter().zip(before)
    {
        let now = until(
            &format!("{name}'s descriptors go back to {descriptors}, now {}", process.descriptors()),
            async || {
                let now = process.descriptors();
                (now.abs_diff(descriptors) <= 5).then_some(now)
            },
        )
        .await;
        let after = process.resident();
        println!(
            "{name}: {descriptors} -> {now} descriptors, {resident} -> {after} KiB after {} rounds",
            WORKERS * ROUNDS
        );
        assert!(after < resident + resident / 2 + 48 * 1024, "{name} grew from {resident} to {after} KiB");
    }
}

/// Descriptors and memory of each process, once connections of earlier tests of strength are gone.
async fn usage(field: &Field) -> [(String, usize, u64); 3] {
    let of = async |process: &Process| {
        let (mut last, mut same) = (0, 0);
        let descriptors = until("descriptors stand still", async || {
            let now = process.descriptors();
            same = if now == last { same + 1 } else { 0 };
            last = now;
            (same > 100).then_some(now)
        })
        .await;
        (process.name.clone(), descriptors, process.resident())
    };
    [of(&field.edge).await, of(&field.broker).await, of(&field.agent).await]
}
