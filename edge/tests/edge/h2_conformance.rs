//! HTTP/2 as RFC 9113 and RFC 7541 want it: a table of cases, each a connection of its own to the real edge.
//!
//! Cases carry the numbers under which h2spec has them, so that results can be compared; sentences, bytes and
//! expectations are our own, from the RFCs. docs/conformance.md is made from this table.

mod exchanges;
mod generic;
mod hpack;
mod judge;
mod messages;
mod starting;
mod states;

use crate::clients::{tcp, tls, websocket};
use crate::frames::{
    Client, DATA, END_HEADERS, END_STREAM, Fields, HEADERS, RST_STREAM, Road, SETTINGS, frame,
};
use crate::harness::{Edge, Setup};
use crate::upstreams::{Agents, KubernetesApi};
use std::fmt;
use std::sync::Arc;

pub(crate) const NO_ERROR: u32 = 0;
pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
pub(crate) const STREAM_CLOSED: u32 = 5;
pub(crate) const FRAME_SIZE_ERROR: u32 = 6;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const CANCEL: u32 = 8;
pub(crate) const COMPRESSION_ERROR: u32 = 9;

/// Cases of which it is known that they fail: what the edge does instead, and in words.
const KNOWN_FAILURES: &[(&str, Expect, &str)] = &[(
    "http2/8.1.2.1/3",
    Expect::Answer(1),
    "the field is dropped, and never forwarded, instead of refused with the request",
)];

/// Cases in which the HTTP/2 library ends the connection as it has to, but says PROTOCOL_ERROR where the RFC has a
/// code that says more. Some depend on whether it still remembers the stream.
const LESS_SPECIFIC: &[&str] = &[
    "http2/4.2/2",
    "http2/4.2/3",
    "http2/4.3/1",
    "http2/5.1/5",
    "http2/5.1/6",
    "http2/5.1/8",
    "http2/5.1/9",
    "http2/5.1/11",
    "http2/5.1/12",
    "http2/6.1/2",
    "http2/6.3/2",
    "http2/6.4/3",
    "http2/6.5/1",
    "http2/6.5/3",
    "http2/6.5.2/2",
    "http2/6.7/4",
    "http2/6.9/3",
    "http2/6.9.2/3",
    "hpack/2.3.3/1",
    "hpack/4.2/1",
    "hpack/5.2/1",
    "hpack/5.2/2",
    "hpack/5.2/3",
    "hpack/6.1/1",
    "hpack/6.3/1",
];

pub(crate) struct Case {
    pub(crate) number: &'static str,
    pub(crate) says: &'static str,
    pub(crate) sends: fn(&mut Script),
    pub(crate) expects: Expect,
}

/// What the edge has to do.
#[derive(Clone, Copy)]
pub(crate) enum Expect {
    /// Its SETTINGS are the first it says.
    Settings,
    /// It acknowledges SETTINGS.
    SettingsAck,
    /// It answers this ping.
    Pong(&'static [u8]),
    /// The stream gets an answer that comes from behind the edge, to its end.
    Answer(u32),
    /// The stream's first DATA frames have these lengths.
    Data(u32, &'static [usize]),
    /// Nothing happens: the connection goes on.
    Alive,
    /// It may close as well as go on.
    AliveOrClosed,
    /// It closes, whatever it says before.
    Closed,
    /// GOAWAY with one of these codes, then it closes.
    Connection(&'static [u32]),
    /// It closes; GOAWAY may be lost, as there are bytes that it did not read.
    ConnectionOrCut(&'static [u32]),
    /// RST_STREAM with one of these codes; the connection goes on.
    Stream(u32, &'static [u32]),
    /// As `Stream` or as `Connection`: the RFC leaves it open.
    StreamOrConnection(u32, &'static [u32]),
}

fn names(codes: &[u32]) -> String {
    let name = |code: &u32| match *code {
        PROTOCOL_ERROR => "PROTOCOL_ERROR",
        FLOW_CONTROL_ERROR => "FLOW_CONTROL_ERROR",
        STREAM_CLOSED => "STREAM_CLOSED",
        FRAME_SIZE_ERROR => "FRAME_SIZE_ERROR",
        REFUSED_STREAM => "REFUSED_STREAM",
        COMPRESSION_ERROR => "COMPRESSION_ERROR",
        code => panic!("code {code} has no name here"),
    };
    codes.iter().map(name).collect::<Vec<_>>().join(" or ")
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings => f.write_str("SETTINGS"),
            Self::SettingsAck => f.write_str("an acknowledgement"),
            Self::Pong(_) => f.write_str("a pong"),
            Self::Answer(_) => f.write_str("an answer"),
            Self::Data(_, lengths) => write!(f, "DATA of lengths {lengths:?}"),
            Self::Alive => f.write_str("the connection goes on"),
            Self::AliveOrClosed => f.write_str("the connection goes on, or closes"),
            Self::Closed => f.write_str("the connection closes"),
            Self::Connection(codes) | Self::ConnectionOrCut(codes) => {
                write!(f, "GOAWAY {}", names(codes))
            }
            Self::Stream(_, codes) => write!(f, "RST_STREAM {}", names(codes)),
            Self::StreamOrConnection(_, codes) => write!(f, "RST_STREAM or GOAWAY {}", names(codes)),
        }
    }
}

/// As docs/conformance.md says it.
pub(crate) fn result(case: &Case) -> String {
    match KNOWN_FAILURES.iter().find(|(number, ..)| *number == case.number) {
        Some((.., why)) => format!("**fails**: {why}"),
        None if LESS_SPECIFIC.contains(&case.number) => "passes, with PROTOCOL_ERROR".to_owned(),
        None => "passes".to_owned(),
    }
}

/// What a case sends, and what it waits for in between.
pub(crate) struct Script {
    road: Road,
    greets: bool,
    steps: Vec<Step>,
}

enum Step {
    Send(Vec<u8>),
    /// Until the stream's answer has ended.
    Answered(u32),
    /// Until so many bytes of DATA came on the stream.
    Data(u32, usize),
    /// Until so many SETTINGS are acknowledged.
    Acknowledged(usize),
    /// Opens as many streams as are allowed.
    Fill,
}

impl Script {
    fn new(road: Road) -> Self {
        Self { road, greets: true, steps: Vec::new() }
    }

    /// Without preface and SETTINGS.
    pub(crate) fn unannounced(&mut self) -> &mut Self {
        self.greets = false;
        self
    }

    /// The same on every road.
    pub(crate) fn over(&mut self, road: Road) -> &mut Self {
        self.road = road;
        self
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        match self.steps.last_mut() {
            Some(Step::Send(before)) => before.extend(bytes),
            _ => self.steps.push(Step::Send(bytes.to_vec())),
        }
        self
    }

    pub(crate) fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> &mut Self {
        self.bytes(&frame(kind, flags, stream, payload))
    }

    pub(crate) fn fields(&self) -> Fields {
        self.road.fields()
    }

    /// The header block of a sound request.
    pub(crate) fn block(&self) -> Vec<u8> {
        self.fields().block()
    }

    /// A sound request without body.
    pub(crate) fn request(&mut self, stream: u32) -> &mut Self {
        let block = self.block();
        self.frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)
    }

    /// A sound request whose body of so many bytes is still to come.
    pub(crate) fn open(&mut self, stream: u32, length: usize) -> &mut Self {
        let block = self.with_body(length).block();
        self.frame(HEADERS, END_HEADERS, stream, &block)
    }

    pub(crate) fn with_body(&self, length: usize) -> Fields {
        let fields = self.fields();
        match self.road {
            Road::Relay => fields,
            Road::KubernetesApi => fields.set(":method", "POST").with("content-length", &length.to_string()),
        }
    }

    /// A request with these fields and without body.
    pub(crate) fn asks(&mut self, fields: &Fields) -> &mut Self {
        self.frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields.block())
    }

    /// A sound request with its fields changed.
    pub(crate) fn asks_for(&mut self, change: impl Fn(Fields) -> Fields) {
        let fields = change(self.fields());
        self.asks(&fields);
    }

    pub(crate) fn data(&mut self, stream: u32, data: &[u8]) -> &mut Self {
        self.frame(DATA, END_STREAM, stream, data)
    }

    pub(crate) fn reset(&mut self, stream: u32, code: u32) -> &mut Self {
        self.frame(RST_STREAM, 0, stream, &code.to_be_bytes())
    }

    pub(crate) fn settings(&mut self, values: &[(u16, u32)]) -> &mut Self {
        self.frame(SETTINGS, 0, 0, &crate::frames::settings(values))
    }

    pub(crate) fn until_answered(&mut self, stream: u32) -> &mut Self {
        self.steps.push(Step::Answered(stream));
        self
    }

    pub(crate) fn until_data(&mut self, stream: u32, bytes: usize) -> &mut Self {
        self.steps.push(Step::Data(stream, bytes));
        self
    }

    pub(crate) fn until_acknowledged(&mut self, settings: usize) -> &mut Self {
        self.steps.push(Step::Acknowledged(settings));
        self
    }

    pub(crate) fn fill(&mut self) -> &mut Self {
        self.steps.push(Step::Fill);
        self
    }
}

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    [
        generic::cases(),
        starting::cases(),
        states::cases(),
        exchanges::cases(),
        messages::cases(),
        hpack::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Ways to the edge.
#[derive(Clone, Copy, Debug)]
enum Way {
    H2c,
    Tls,
    WebSocket,
    SecureWebSocket,
}

async fn connect(edge: &Edge, way: Way) -> Client {
    match way {
        Way::H2c => Client::new(tcp(edge.plain).await),
        Way::Tls => Client::new(tls(edge, &[b"h2"]).await),
        Way::WebSocket => Client::new(websocket(tcp(edge.plain).await).await),
        Way::SecureWebSocket => Client::new(websocket(tls(edge, &[b"http/1.1"]).await).await),
    }
}

async fn all_cases_hold(way: Way) {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    // Hundreds of clients from one address break the protocol, and none of them shall wait for what others did.
    let more = "limits: {flood_wait: 0s}";
    let setup = Setup { agents: vec![agents.address], kubernetes_api: vec![api.address], more };
    let edge = Arc::new(Edge::start(setup).await);
    let mut surprises = Vec::new();
    for road in [Road::Relay, Road::KubernetesApi] {
        let mut rest = cases();
        while !rest.is_empty() {
            let some: Vec<_> = rest.drain(..rest.len().min(16)).collect();
            let running = some.into_iter().map(|case| {
                let edge = edge.clone();
                tokio::spawn(async move {
                    let client = connect(&edge, way).await;
                    (case.number, case.says, judge::run(&case, client, road).await)
                })
            });
            for done in running.collect::<Vec<_>>() {
                let (number, says, outcome) = done.await.unwrap();
                if let Err(error) = outcome {
                    surprises.push(format!("{road:?} {number} ({says}): {error}"));
                }
            }
        }
    }
    assert!(surprises.is_empty(), "over {way:?}:\n{}", surprises.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_case_of_the_table_holds_over_h2c() {
    all_cases_hold(Way::H2c).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_case_of_the_table_holds_over_tls() {
    all_cases_hold(Way::Tls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_case_of_the_table_holds_inside_a_websocket() {
    all_cases_hold(Way::WebSocket).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_case_of_the_table_holds_inside_a_websocket_over_tls() {
    all_cases_hold(Way::SecureWebSocket).await;
}

#[test]
fn the_table_has_every_number_once() {
    let mut numbers: Vec<_> = cases().iter().map(|case| case.number).collect();
    assert_eq!(numbers.len(), 146);
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 146);
}
