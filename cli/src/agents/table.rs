//! The broker's list for people: a line for each connection, a line for each agent that is gone, and remarks about what is
//! missing. Agents say their versions and names themselves, so nothing of it reaches the terminal unchecked.

use std::fmt::Write as _;

use serde_json::Value;

const HEADS: [&str; 8] = ["AGENT", "NAME", "PROJECT", "VERSION", "POD", "SINCE", "ADDRESS", "BROKER"];

/// What goes to standard output.
pub(super) fn table(document: &Value) -> String {
    let items = array(&document["items"]);
    let gone = array(&document["gone"]);
    let mut text = String::new();
    if !items.is_empty() {
        let rows: Vec<_> = std::iter::once(HEADS.map(str::to_owned)).chain(items.iter().map(row)).collect();
        let widths: Vec<usize> = (0..HEADS.len())
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default())
            .collect();
        for row in &rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:width$}  ");
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
    } else if gone.is_empty() {
        text.push_str("no such agent is connected\n");
    }
    for gone in gone {
        let _ = writeln!(text, "{}", absent(gone, array(&document["missing_brokers"]).is_empty()));
    }
    text
}

/// What goes to standard error.
pub(super) fn remarks(document: &Value) -> String {
    let mut text = String::new();
    let missing: Vec<String> = array(&document["missing_brokers"]).iter().map(cell).collect();
    if !missing.is_empty() {
        let _ = writeln!(
            text,
            "postern: no answer in time from {}: agents connected there are not listed; see whether these brokers run, \
             and whether the one that was asked reaches their private API",
            missing.join(", ")
        );
    }
    if document["truncated"] == true {
        let shown = array(&document["items"]).len();
        let _ =
            writeln!(text, "postern: there are more than these {shown}; choose with --agent or --project");
    }
    text
}

/// Without anything that a terminal would obey.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { '?' } else { char }).collect()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() => plain(text),
        Value::Number(number) => number.to_string(),
        _ => "-".to_owned(),
    }
}

fn row(item: &Value) -> [String; 8] {
    let pod = match (item["pod_namespace"].as_str(), item["pod_name"].as_str()) {
        (Some(namespace), Some(pod)) if !namespace.is_empty() => plain(&format!("{namespace}/{pod}")),
        _ => cell(&item["pod_name"]),
    };
    let of = |name: &str| cell(&item[name]);
    let since = of("connected_at");
    // Nobody looks for milliseconds in a table.
    let since = since.split_once('.').map_or(since.clone(), |(seconds, _)| format!("{seconds}Z"));
    [of("agent_id"), of("name"), of("project_id"), of("version"), pod, since, of("address"), of("broker")]
}

fn absent(gone: &Value, all_answered: bool) -> String {
    let agent = cell(&gone["agent_id"]);
    let seen = &gone["last_seen"];
    if !seen.is_object() {
        let brokers = if all_answered { "no broker" } else { "no broker that answered" };
        return format!(
            "agent {agent} is not connected, and {brokers} remembers it; was agentk installed with a token of this \
             agent, and does its --kas-address lead here?"
        );
    }
    let (at, refusal) = (cell(&seen["at"]), seen["refusal"].as_str().map(plain));
    let through = match seen["broker"].as_str() {
        Some(broker) if !broker.is_empty() => format!(" through {}", plain(broker)),
        _ => String::new(),
    };
    let from = seen["from"].as_str().filter(|from| !from.is_empty()).map(plain);
    let Some(from) = from else {
        let why = refusal.unwrap_or_else(|| "nobody knows why".to_owned());
        return format!("agent {agent} has not been connected lately; refused {at}{through}: {why}");
    };
    let then = match refusal {
        Some(why) => format!("refused since then: {why}"),
        None => "see agentk's log in the cluster".to_owned(),
    };
    format!("agent {agent} is not connected; last seen {at} from {from}{through}; {then}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn connections_are_lines_with_columns_as_wide_as_they_must_be() {
        let document = json!({"items": [
            {"agent_id": 7, "project_id": 3, "name": "prod", "version": "v17.1.2", "pod_namespace": "agents",
             "pod_name": "a-0", "connected_at": "2026-01-02T03:04:05.678Z", "address": "192.0.2.1:5000",
             "broker": "grpc://kas-1:8155"},
            {"agent_id": 1234, "project_id": 30, "version": "\u{1b}[31mred", "pod_namespace": "", "pod_name": "",
             "connected_at": "2026-01-02T03:04:05Z", "address": "192.0.2.22", "broker": null},
        ], "missing_brokers": [], "truncated": false});
        assert_eq!(
            table(&document),
            "AGENT  NAME  PROJECT  VERSION   POD         SINCE                 ADDRESS         BROKER\n\
             7      prod  3        v17.1.2   agents/a-0  2026-01-02T03:04:05Z  192.0.2.1:5000  grpc://kas-1:8155\n\
             1234   -     30       ?[31mred  -           2026-01-02T03:04:05Z  192.0.2.22      -\n"
        );
        assert_eq!(remarks(&document), "");
    }

    #[test]
    fn an_agent_that_is_gone_is_a_line_with_what_is_remembered() {
        let seen = |broker: &str, refusal: Value| json!({"at": "2026-01-02T03:04:05.678Z", "from": "192.0.2.1", "broker": broker, "refusal": refusal});
        for (last_seen, missing, wanted) in [
            (
                seen("", Value::Null),
                json!([]),
                "last seen 2026-01-02T03:04:05.678Z from 192.0.2.1; see agentk's log",
            ),
            (
                seen("grpc://kas-1:8155", json!("the token is\nrevoked")),
                json!([]),
                "from 192.0.2.1 through grpc://kas-1:8155; refused since then: the token is?revoked",
            ),
            (
                json!({"at": "2026-01-02T03:04:05Z", "from": "", "broker": "grpc://b:1", "refusal": "revoked"}),
                json!([]),
                "has not been connected lately; refused 2026-01-02T03:04:05Z through grpc://b:1: revoked",
            ),
            (Value::Null, json!([]), "and no broker remembers it; was agentk"),
            (Value::Null, json!(["grpc://b:1"]), "and no broker that answered remembers it"),
        ] {
            let gone = json!([{"agent_id": 9, "last_seen": last_seen}]);
            let said = table(&json!({"items": [], "gone": gone, "missing_brokers": missing}));
            assert!(said.starts_with("agent 9 "), "{said}");
            assert!(said.contains(wanted) && said.lines().count() == 1, "{said}");
        }
    }

    #[test]
    fn what_is_not_listed_is_said() {
        let document =
            json!({"items": [{}], "missing_brokers": ["grpc://a:1", "grpc://b:1"], "truncated": true});
        let said = remarks(&document);
        assert!(said.contains("no answer in time from grpc://a:1, grpc://b:1: agents"), "{said}");
        assert!(said.contains("more than these 1; choose"), "{said}");
        assert_eq!(table(&json!({"items": []})), "no such agent is connected\n");
        // Whatever a broker answers is no reason to panic.
        assert_eq!(table(&json!([])), "no such agent is connected\n");
    }
}
