//! The JSON schema of policy documents, for editors and for CI that has no `postern`.
//!
//! Beside `written`: a test holds its keys, words and bounds to what is read there. It says nothing of ties and of what else
//! takes several documents to see.

mod specs;

use serde_json::{Map, Value, json};

/// JSON schema (draft 2020-12) of one document; one of a kind each.
pub fn schema() -> Value {
    let kinds = specs::kinds();
    let references: Vec<Value> =
        kinds.iter().map(|kind| json!({ "$ref": format!("#/$defs/{}", kind.name) })).collect();
    let mut definitions = definitions();
    definitions.extend(kinds.into_iter().map(|kind| (kind.name.to_owned(), document(kind))));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Postern policy",
        "description": "A document that says what may be used, by whom and for how long, while edge and broker run.",
        "oneOf": references,
        "$defs": definitions,
    })
}

/// What the documents of one kind have of their own.
struct KindSchema {
    name: &'static str,
    description: &'static str,
    /// What `match` can ask for.
    asks: &'static [&'static str],
    reports: bool,
    /// The properties of `spec`.
    spec: Map<String, Value>,
}

fn document(kind: KindSchema) -> Value {
    let KindSchema { name, description, asks, reports, mut spec } = kind;
    let mode = match reports {
        true => json!({
            "description": "report: decide and count, refuse nobody. enforce, the default: refuse.",
            "enum": ["enforce", "report"],
            "default": "enforce",
        }),
        false => json!({
            "description": "Documents of this kind cannot only report.",
            "enum": ["enforce"],
            "default": "enforce",
        }),
    };
    let (canary, selector) = match asks {
        [] => (
            json!({ "description": "Documents of this kind are for everybody.", "not": {} }),
            json!({
                "description": "Documents of this kind are for everybody.",
                "type": "object",
                "maxProperties": 0,
            }),
        ),
        asks => (
            json!({
                "description": "The share of tokens that the document is for. A token that is in stays in when the share grows.",
                "type": "string",
                "pattern": "^\\d{1,3}(\\.\\d{1,2})?%$",
                "examples": ["5%"],
            }),
            selector(asks),
        ),
    };
    let mut inner = selector.clone();
    inner["deprecated"] = json!(true);
    spec.insert("match".to_owned(), inner);
    json!({
        "description": description,
        "type": "object",
        "additionalProperties": false,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": { "description": "The form of the document.", "const": "postern/v1" },
            "kind": { "description": description, "const": name },
            "metadata": {
                "description": "What the document is called in messages.",
                "type": "object",
                "additionalProperties": false,
                "required": ["name"],
                "properties": {
                    "name": {
                        "description": "A DNS label; no two documents of a kind have the same.",
                        "type": "string",
                        "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
                        "examples": ["default"],
                    },
                },
            },
            "mode": mode,
            "canary": canary,
            "match": selector,
            "spec": {
                "description": "What the document sets. What it leaves out, another document or the program's own configuration decides.",
                "type": "object",
                "additionalProperties": false,
                "minProperties": 1,
                "properties": spec,
            },
        },
    })
}

fn selector(asks: &[&str]) -> Value {
    let mut properties = Map::new();
    for asked in asks {
        let property = match *asked {
            "agentIds" => list("Agents, by their ids.", json!({ "$ref": "#/$defs/id" })),
            "tokenHashes" => list(
                "Credentials, by the first digits of their SHA-256, as logs have them.",
                json!({ "type": "string", "pattern": "^[0-9a-f]{1,64}$", "examples": ["ab12"] }),
            ),
            "projectIds" => {
                list("Agents' configuration projects, by their ids.", json!({ "$ref": "#/$defs/id" }))
            }
            "clientCidrs" => list("Clients' addresses.", json!({ "$ref": "#/$defs/network" })),
            "agentVersions" => list(
                "Versions of agents; a star stands for any end.",
                json!({ "type": "string", "examples": ["16.11.2", "16.11.*", "16.*"] }),
            ),
            other => unreachable!("nothing can ask for {other}"),
        };
        properties.insert((*asked).to_owned(), property);
    }
    json!({
        "description": "Whom the document is for: all that is asked for must be so, one entry of each list. Nothing: everybody.",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    })
}

fn list(description: &str, items: Value) -> Value {
    json!({ "description": description, "type": "array", "minItems": 1, "items": items })
}

/// A value that several fields have.
fn of(definition: &str, description: &str) -> Value {
    json!({ "description": description, "$ref": format!("#/$defs/{definition}") })
}

fn whole(description: &str, least: u64, most: u64) -> Value {
    json!({ "description": description, "type": "integer", "minimum": least, "maximum": most })
}

fn section(description: &str, required: &[&str], properties: Value) -> Value {
    json!({
        "description": description,
        "type": "object",
        "additionalProperties": false,
        "minProperties": 1,
        "required": required,
        "properties": properties,
    })
}

fn definitions() -> Map<String, Value> {
    let definitions = json!({
        "id": { "type": "integer", "minimum": 1, "maximum": i64::MAX, "examples": [42] },
        "network": {
            "description": "Address and prefix length, without bits beyond it; or one address.",
            "type": "string",
            "examples": ["10.0.0.0/8", "2001:db8::/32"],
        },
        "duration": {
            "description": "Hours, minutes, seconds, milliseconds.",
            "type": "string",
            "pattern": "^(?=.)(\\d+h)?(\\d+m)?(\\d+(\\.\\d{1,9})?s)?(\\d+ms)?$",
            "examples": ["30s", "5m", "1h"],
        },
        "rate": {
            "description": "How much in time, and at once.",
            "oneOf": [
                {
                    "description": "So many at once, refilled evenly over a minute.",
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["perMinute"],
                    "properties": { "perMinute": whole("So many in a minute and at once.", 1, u32::MAX.into()) },
                },
                {
                    "description": "So many in a second, and at once.",
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["rate", "burst"],
                    "properties": {
                        "rate": whole("In a second.", 1, u64::from(u32::MAX) / 60),
                        "burst": whole("At once, after a pause.", 1, u32::MAX.into()),
                    },
                },
                { "description": "No limit.", "const": "unlimited" },
            ],
        },
        "callRate": {
            "description": "Calls that wait for their turn.",
            "type": "object",
            "additionalProperties": false,
            "required": ["perSecond", "burst"],
            "properties": {
                "perSecond": {
                    "description": "In the long run.",
                    "type": "number",
                    "minimum": 0.001,
                    "maximum": 1_000_000,
                },
                "burst": whole("At once, after a pause.", 1, u32::MAX.into()),
            },
        },
    });
    match definitions {
        Value::Object(definitions) => definitions,
        _ => unreachable!("it is written as one above"),
    }
}

#[cfg(test)]
mod tests;
