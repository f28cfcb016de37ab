//! What `spec` can have, kind by kind. Under `schema`.

use super::{KindSchema, list, of, section, whole};
use serde_json::{Map, Value, json};

const EVERY: &[&str] = &["agentIds", "tokenHashes", "projectIds", "clientCidrs", "agentVersions"];
const CALLERS: &[&str] = &["agentIds", "tokenHashes", "projectIds", "clientCidrs"];
const AGENTS: &[&str] = &["agentIds", "tokenHashes", "projectIds", "agentVersions"];
const MOST: u64 = u32::MAX as u64;

pub(super) fn kinds() -> Vec<KindSchema> {
    vec![limits(), polling(), connections(), access(), backends(), tunnels()]
}

fn properties(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(properties) => properties,
        _ => unreachable!("they are written as an object"),
    }
}

fn limits() -> KindSchema {
    let spec = json!({
        "requestsPerToken": of("rate", "Streams and requests with one token."),
        "streamsPerToken": whole("The same, open at once; 0: no limit.", 0, MOST),
        "requestsPerIp": of("rate", "Streams and requests of one client's address, of IPv6 its /64."),
        "streamsPerIp": whole("The same, open at once; 0: no limit.", 0, MOST),
        "connectionsPerIp": whole("Open connections of one address; 0: no limit.", 0, MOST),
        "requestsPerAgent": of("rate", "Requests of callers of the Kubernetes API to one agent."),
        "streamsPerAgent": whole("The same, open at once; 0: no limit.", 0, MOST),
        "bodyBytes": whole("Bytes in the body of one request; 0: no limit.", 0, i64::MAX as u64),
        "agentCallsPerMinute": whole("RPCs of one agent token in a calendar minute, over all brokers.", 1, MOST),
        "redisLost": {
            "description": "What becomes of calls that Redis cannot count: counted by each broker alone, refused, or let through.",
            "enum": ["local", "deny", "allow"],
        },
    });
    KindSchema {
        name: "LimitPolicy",
        description: "How much one token, one address and one agent may use.",
        asks: EVERY,
        reports: true,
        spec: properties(spec),
    }
}

fn polling() -> KindSchema {
    let period = |description| {
        section(description, &[], json!({ "period": of("duration", "Between two looks; 1s to 24h.") }))
    };
    let spec = json!({
        "configuration": period("Agents' configuration repositories."),
        "manifests": period("Repositories with manifests."),
        "jitterPercent": whole("Each look is up to this much earlier, at random.", 0, 100),
    });
    KindSchema {
        name: "PollingPolicy",
        description: "How often brokers look for new commits.",
        asks: AGENTS,
        reports: false,
        spec: properties(spec),
    }
}

fn connections() -> KindSchema {
    let drain = json!({
        "grace": of("duration", "How long running streams may finish when the process ends."),
        "connectionsPerSecond": whole("How many are told to leave in a second; 0: all at once.", 0, MOST),
    });
    let spec = json!({
        "maxAge": of("duration", "After this a connection is told to leave; 0s: never."),
        "jitterPercent": whole("Up to this much of the age is left out, at random.", 0, 100),
        "grace": of("duration", "How long running streams may finish after that."),
        "idle": of("duration", "An HTTP/2 connection without streams is closed after this; 1s or more."),
        "ping": of("duration", "How often connections are pinged; 0s: never."),
        "drain": section("The end of a process; only in documents for everybody.", &[], drain),
    });
    KindSchema {
        name: "ConnectionPolicy",
        description: "How long connections last, and how they end.",
        asks: EVERY,
        reports: false,
        spec: properties(spec),
    }
}

fn access() -> KindSchema {
    let network = || json!({ "$ref": "#/$defs/network" });
    let clients = json!({
        "allow": list("Only these may connect.", network()),
        "deny": list("These may not connect, even if allowed.", network()),
    });
    let effect = || json!({ "enum": ["allow", "deny"] });
    let text = |examples: Value| json!({ "type": "string", "examples": examples });
    let rule = json!({
        "effect": effect(),
        "access": list("How the caller authenticated.", json!({ "enum": ["*", "ci", "pat", "session", "postern"] })),
        "userIds": list("Callers, by their ids.", json!({ "$ref": "#/$defs/id" })),
        "projectIds": list("Projects of CI jobs, by their ids.", json!({ "$ref": "#/$defs/id" })),
        "verbs": list("What is done: to resources in Kubernetes' words, to other paths in HTTP's.", json!({
            "enum": [
                "*", "get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "head", "post",
                "put", "options",
            ],
        })),
        "resources": list(
            "Plural, with a group unless it is the core one, with a subresource if one is meant.",
            text(json!(["pods", "pods/log", "deployments.apps", "*.apps"])),
        ),
        "namespaces": list("A star at the end stands for any end.", text(json!(["default", "team-*"]))),
        "paths": list("Of requests that are not about resources.", text(json!(["/healthz", "/version*"]))),
    });
    let mut rule = section("What it asks for must be so, one entry of each list.", &["effect"], rule);
    rule["examples"] = json!([{ "effect": "allow", "access": ["ci"], "verbs": ["get", "list", "watch"] }]);
    let api = json!({
        "rules": {
            "description": "The first that matches a request decides.",
            "type": "array",
            "maxItems": 1000,
            "items": rule,
        },
        "otherwise": { "description": "Where no rule matches.", "enum": ["allow", "deny"] },
    });
    let spec = json!({
        "clients": section("Addresses that may connect; only in documents for everybody or for tokenHashes.", &[], clients),
        "kubernetesApi": section("What callers may do at agents' clusters.", &["otherwise"], api),
    });
    KindSchema {
        name: "AccessPolicy",
        description: "Who may connect, and what callers may do at agents' clusters.",
        asks: CALLERS,
        reports: true,
        spec: properties(spec),
    }
}

fn backends() -> KindSchema {
    let gitaly = json!({
        "rate": of("callRate", "To all Gitaly servers together."),
        "perServer": of("callRate", "To each Gitaly server."),
    });
    let gitlab = json!({ "rate": of("callRate", "To GitLab's internal API.") });
    let spec = json!({
        "gitaly": section("Calls to Gitaly.", &[], gitaly),
        "gitlab": section("Calls to GitLab.", &[], gitlab),
    });
    KindSchema {
        name: "BackendPolicy",
        description: "How often one broker may call its neighbours.",
        asks: &[],
        reports: false,
        spec: properties(spec),
    }
}

fn tunnels() -> KindSchema {
    let spec = json!({
        "idlePerAgent": whole("Idle tunnels kept of one agent; of more the oldest end.", 1, 1_000),
        "maxIdle": of("duration", "How long an idle tunnel is kept; 1s or more."),
        "agentWait": of("duration", "How long a request waits for an agent that is not connected; 1h at most."),
    });
    KindSchema {
        name: "TunnelPolicy",
        description: "The tunnels through which requests reach agents.",
        asks: AGENTS,
        reports: false,
        spec: properties(spec),
    }
}
