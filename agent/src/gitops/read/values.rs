//! Trees with places -> values as the Kubernetes API takes them. Before it: a parser. After it: `read.rs`, which looks
//! for objects in them. Both ways in count what they make, since a short document may say a lot with aliases.

use super::scalars::whole_number;
use postern_yaml::{Node, Position, Value as Written};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// What values cannot be made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// Not a number, or infinite.
    Number(Position),
    /// More than [`VALUES`].
    TooMuch,
}

/// What all values together may weigh, in units of some 50 bytes of memory: 100 MB, whoever wrote the files. What a
/// value takes, allocators' least piece of 32 bytes included:
///
/// - [`VALUE`], two units: 32 bytes where it stands, 32 for a short text or the beginning of a list, 32 for a short key.
///   No value has all three, since one in a mapping stands in a node.
/// - [`NODE`], 14 units: 640 bytes for eleven entries (24 for a key, 32 for a value, 16 for the node), used or not, and
///   some more where it has other nodes below. See [`nodes`].
/// - one unit for each [`TEXT_UNIT`] bytes of a longer text or key.
///
/// A Deployment weighs some 400.
pub(super) const VALUES: usize = 2_000_000;
const VALUE: usize = 2;
const NODE: usize = 14;
/// Text weighs one for this many bytes.
const TEXT_UNIT: usize = 16;

/// How many nodes more a mapping may need for one more entry than these: one for the first eleven, and from then on one
/// for each five of all, since none has fewer; nodes of nodes, with six below each, are among these.
fn nodes(entries: usize) -> usize {
    match entries {
        0 => 1,
        11 => 2,
        12.. if (entries + 1).is_multiple_of(5) => 1,
        _ => 0,
    }
}

/// The value of a tree; what it weighs is added to `spent`. Recurses as deep as the parser lets trees be.
pub(super) fn of_tree(node: &Node, spent: &mut usize) -> Result<Value, Unfit> {
    spend(VALUE, spent)?;
    Ok(match &node.value {
        Written::Null => Value::Null,
        Written::Bool(value) => Value::Bool(*value),
        Written::Number(digits) => Value::Number(number(digits).ok_or(Unfit::Number(node.at))?),
        Written::Text(text) => {
            spend(text.len() / TEXT_UNIT, spent)?;
            Value::String(text.clone())
        }
        Written::List(items) => {
            let mut list = Vec::with_capacity(items.len());
            for item in items {
                list.push(of_tree(item, spent)?);
            }
            Value::Array(list)
        }
        Written::Mapping(entries) => {
            let mut object = Map::new();
            for entry in entries {
                spend(NODE * nodes(object.len()) + entry.key.len() / TEXT_UNIT, spent)?;
                object.insert(entry.key.as_ref().to_owned(), of_tree(&entry.value, spent)?);
            }
            Value::Object(object)
        }
    })
}

/// Reads a value of JSON as what it would be if it had been YAML: `1.0` is `1`. Adds what it weighs to `spent` before
/// it takes any memory; once that is more than [`VALUES`], this is why reading fails.
pub(super) struct Counted<'a> {
    pub(super) spent: &'a mut usize,
    /// Collections within each other that it may still have.
    pub(super) nesting: usize,
}

impl Counted<'_> {
    fn spend<E: Error>(&mut self, weight: usize) -> Result<(), E> {
        spend(weight, self.spent).map_err(|_| E::custom("too much content"))
    }

    fn inner<E: Error>(&mut self) -> Result<Counted<'_>, E> {
        let nesting = self.nesting.checked_sub(1).ok_or_else(|| E::custom("too deeply nested"))?;
        Ok(Counted { spent: &mut *self.spent, nesting })
    }
}

impl<'de> DeserializeSeed<'de> for Counted<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(mut self, from: D) -> Result<Value, D::Error> {
        self.spend::<D::Error>(VALUE)?;
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counted<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(whole_number(value).map_or_else(|| value.into(), Value::from))
    }

    fn visit_str<E: Error>(mut self, text: &str) -> Result<Value, E> {
        self.spend::<E>(text.len() / TEXT_UNIT)?;
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut from: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = from.next_element_seed(self.inner::<A::Error>()?)? {
            list.push(item);
        }
        list.shrink_to_fit();
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut from: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = from.next_key::<String>()? {
            self.spend::<A::Error>(NODE * nodes(object.len()) + key.len() / TEXT_UNIT)?;
            let value = from.next_value_seed(self.inner::<A::Error>()?)?;
            object.insert(key, value);
        }
        Ok(object.into())
    }
}

fn spend(weight: usize, spent: &mut usize) -> Result<(), Unfit> {
    *spent = spent.saturating_add(weight);
    if *spent > VALUES { Err(Unfit::TooMuch) } else { Ok(()) }
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
