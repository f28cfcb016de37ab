//! Trees with places -> values as the Kubernetes API takes them. Before it: a parser. After it: `read.rs`, which looks
//! for objects in them. Both ways in count what they make, since a short document may say a lot with aliases.

use super::scalars::whole_number;
use postern_yaml::{Node, Position, Value as Written};
use serde_json::{Map, Number, Value};

/// What values cannot be made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// Not a number, or infinite.
    Number(Position),
    /// More than all values together may weigh.
    TooMuch,
}

/// Text weighs one for this many bytes.
const TEXT_UNIT: usize = 16;

/// The value of a tree; what it weighs is added to `spent`. Recurses as deep as the parser lets trees be.
pub(super) fn of_tree(node: &Node, spent: &mut usize, most: usize) -> Result<Value, Unfit> {
    spend(1, spent, most)?;
    Ok(match &node.value {
        Written::Null => Value::Null,
        Written::Bool(value) => Value::Bool(*value),
        Written::Number(digits) => Value::Number(number(digits).ok_or(Unfit::Number(node.at))?),
        Written::Text(text) => {
            spend(text.len() / TEXT_UNIT, spent, most)?;
            Value::String(text.clone())
        }
        Written::List(items) => {
            let items: Result<_, _> = items.iter().map(|item| of_tree(item, spent, most)).collect();
            Value::Array(items?)
        }
        Written::Mapping(entries) => {
            let mut object = Map::new();
            for entry in entries {
                spend(entry.key.len() / TEXT_UNIT, spent, most)?;
                object.insert(entry.key.as_ref().to_owned(), of_tree(&entry.value, spent, most)?);
            }
            Value::Object(object)
        }
    })
}

/// Makes a value of JSON what it would be if it had been YAML: `1.0` is `1`. Adds what it weighs to `spent`.
pub(super) fn tidy(value: &mut Value, spent: &mut usize, most: usize) -> Result<(), Unfit> {
    spend(1, spent, most)?;
    match value {
        Value::Null | Value::Bool(_) => {}
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().filter(|_| number.is_f64()).and_then(whole_number) {
                *number = whole.into();
            }
        }
        Value::String(text) => spend(text.len() / TEXT_UNIT, spent, most)?,
        Value::Array(items) => {
            for item in items {
                tidy(item, spent, most)?;
            }
        }
        Value::Object(entries) => {
            for (key, value) in entries {
                spend(key.len() / TEXT_UNIT, spent, most)?;
                tidy(value, spent, most)?;
            }
        }
    }
    Ok(())
}

fn spend(weight: usize, spent: &mut usize, most: usize) -> Result<(), Unfit> {
    *spent = spent.saturating_add(weight);
    if *spent > most { Err(Unfit::TooMuch) } else { Ok(()) }
}

/// Of digits as `scalars.rs` writes them.
fn number(digits: &str) -> Option<Number> {
    if let Ok(number) = digits.parse::<i64>() {
        return Some(number.into());
    }
    if let Ok(number) = digits.parse::<u64>() {
        return Some(number.into());
    }
    digits.parse().ok().and_then(Number::from_f64)
}
