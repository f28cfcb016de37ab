//! Views as JSON and as server-sent events. After whoever reads them; nothing here waits but [`collect()`]. Entries are
//! JSON already and go in as they are.

use crate::{
    agent_reports::{
        known::Source,
        views::{Kind, Page},
    },
    api::agents::rfc3339,
    fleet::PeerUrl,
};
use bytes::Bytes;
use postern_wire::ids::AgentId;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Bytes of a document; no broker keeps as much of an agent.
const DOCUMENT: usize = 32 << 20;

/// When that was, by this broker's clock.
pub(in crate::api) fn ago(ago: Duration) -> String {
    SystemTime::now().checked_sub(ago).map(rfc3339).unwrap_or_default()
}

fn text(text: &str) -> String {
    serde_json::to_string(text).expect("a text is JSON")
}

/// What a document and a page begin with.
fn begin(agent: AgentId, kind: Kind, broker: Option<&PeerUrl>, page: &Page) -> String {
    let broker = broker.map_or_else(|| "null".to_owned(), |broker| text(&broker.to_string()));
    format!(
        r#"{{"agent_id":{agent},"view":"{}","epoch":{},"revision":{},"stale":{},"truncated":{},"heard_at":"{}","broker":{broker}"#,
        kind.name(),
        page.epoch,
        page.revision,
        page.stale,
        page.truncated,
        ago(page.heard_ago),
    )
}

fn entries<'a>(into: &mut String, entries: impl Iterator<Item = (&'a str, &'a str)>) {
    into.push_str(r#","entries":{"#);
    for (at, (key, json)) in entries.enumerate() {
        let comma = if at > 0 { "," } else { "" };
        // Writing to a text does not fail.
        let _ = write!(into, "{comma}{}:{json}", text(key));
    }
    into.push('}');
}

/// A page on one line of JSON.
pub(crate) fn page(agent: AgentId, kind: Kind, broker: Option<&PeerUrl>, page: &Page) -> String {
    let mut json = begin(agent, kind, broker, page);
    let _ = write!(json, r#","whole":{},"more":{}"#, page.whole, page.more);
    let gone: Vec<_> = page.gone.iter().map(|key| text(key)).collect();
    let _ = write!(json, r#","gone":[{}]"#, gone.join(","));
    entries(&mut json, page.entries.iter().map(|(key, json)| (&**key, &**json)));
    json.push('}');
    json
}

/// Says that there is no such view any more.
pub(crate) fn ended(agent: AgentId, kind: Kind) -> String {
    format!(r#"{{"agent_id":{agent},"view":"{}","ended":true}}"#, kind.name())
}

pub(super) fn frame(agent: AgentId, kind: Kind, broker: Option<&PeerUrl>, found: &Page) -> Bytes {
    let name = if found.whole { "whole" } else { "changed" };
    let (epoch, revision) = (found.epoch, found.revision);
    format!("event: {name}\nid: {epoch}-{revision}\ndata: {}\n\n", page(agent, kind, broker, found)).into()
}

/// All of a view as one document; `None` if it broke off, or is larger than any.
pub(super) async fn collect(agent: AgentId, kind: Kind, mut source: Source) -> Option<String> {
    let (mut all, mut size) = (BTreeMap::<Arc<str>, Arc<str>>::new(), 0);
    loop {
        let page = source.next().await.ok()??;
        page.gone.iter().for_each(|key| drop(all.remove(key)));
        for (key, json) in &page.entries {
            size += key.len() + json.len();
            all.insert(Arc::clone(key), Arc::clone(json));
        }
        if size > DOCUMENT {
            return None;
        }
        if !page.more {
            let mut json = begin(agent, kind, source.broker.as_ref(), &page);
            entries(&mut json, all.iter().map(|(key, json)| (&**key, &**json)));
            json.push_str("}\n");
            return Some(json);
        }
    }
}
