//! Bodies in the API's protobuf form, which `kubectl create` sends for built-in kinds from 1.32 on. Only reading: answers
//! are JSON, which every client takes. Knows the fields that kubectl's generators fill in; a field with content that is
//! not known here is refused by number rather than dropped.

mod shapes;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use shapes::Kind::{
    Base64Map, Flag, Ignored, IntOrString, Many, Number, One, OptionalFlag, OptionalNumber, QuantityMap,
    Text, TextMap, Texts,
};
use shapes::{Shape, UNKNOWN, shape_of};

/// What a protobuf body begins with; a `runtime.Unknown` message follows.
const MAGIC: &[u8] = b"k8s\0";

/// A whole body as a document; the error says what is wrong or not known here.
pub(super) fn document(body: &[u8]) -> Result<Value, String> {
    let rest = body.strip_prefix(MAGIC).ok_or("it does not begin with the k8s magic")?;
    let mut raw: &[u8] = &[];
    let mut envelope = Map::new();
    for field in Fields(rest) {
        match field? {
            (2, Item::Bytes(bytes)) => raw = bytes,
            (4, _) => {}
            (number, item) => read(&UNKNOWN, &mut envelope, number, item)?,
        }
    }
    let envelope = Value::Object(envelope);
    let (kind, version) = (&envelope["type"]["kind"], &envelope["type"]["apiVersion"]);
    if !envelope["encoding"].is_null() {
        return Err("its content is encoded in a way not known here".to_owned());
    }
    let name = kind.as_str().unwrap_or_default();
    let shape = shape_of(name).ok_or_else(|| format!("the kind {name:?} is not read in protobuf form"))?;
    let mut fields = message(shape, raw)?;
    fields.insert("kind".to_owned(), kind.clone());
    fields.insert("apiVersion".to_owned(), version.clone());
    Ok(Value::Object(fields))
}

fn message(shape: &Shape, bytes: &[u8]) -> Result<Map<String, Value>, String> {
    let mut fields = Map::new();
    for field in Fields(bytes) {
        let (number, item) = field?;
        read(shape, &mut fields, number, item)?;
    }
    Ok(fields)
}

fn read(shape: &Shape, into: &mut Map<String, Value>, number: u64, item: Item<'_>) -> Result<(), String> {
    let Some((_, name, kind)) = shape.fields.iter().find(|field| field.0 == number) else {
        // Empty fields are always on the wire.
        return match item {
            Item::Number(0) | Item::Bytes([]) => Ok(()),
            _ => Err(format!("field {number} of {} is not read in protobuf form; send JSON", shape.name)),
        };
    };
    let value = match (kind, item) {
        (Ignored, _) | (Number | Flag, Item::Number(0)) | (Text | IntOrString, Item::Bytes([])) => {
            return Ok(());
        }
        (Text, Item::Bytes(bytes)) => json!(text(bytes)?),
        #[expect(
            clippy::cast_possible_wrap,
            reason = "protobuf sends negative numbers as their two's complement"
        )]
        (Number | OptionalNumber, Item::Number(value)) => json!(value as i64),
        (Flag | OptionalFlag, Item::Number(value)) => json!(value != 0),
        (One(inner), Item::Bytes(bytes)) => {
            let inner = message(inner, bytes)?;
            if inner.is_empty() {
                return Ok(());
            }
            Value::Object(inner)
        }
        (IntOrString, Item::Bytes(bytes)) => match int_or_string(bytes)? {
            Value::Null => return Ok(()),
            value => value,
        },
        (Texts, Item::Bytes(bytes)) => return push(into, name, json!(text(bytes)?)),
        (Many(inner), Item::Bytes(bytes)) => return push(into, name, Value::Object(message(inner, bytes)?)),
        (TextMap | Base64Map | QuantityMap, Item::Bytes(bytes)) => {
            let (key, value) = entry(bytes)?;
            let value = match kind {
                Base64Map => BASE64.encode(value),
                // A quantity is a message with its text in field 1.
                QuantityMap => match Fields(value).next().transpose()? {
                    Some((1, Item::Bytes(inner))) => text(inner)?,
                    _ => String::new(),
                },
                _ => text(value)?,
            };
            let map = into.entry(*name).or_insert_with(|| Value::Object(Map::new()));
            map[key] = json!(value);
            return Ok(());
        }
        _ => return Err(format!("{name} of {} has the wrong wire type", shape.name)),
    };
    into.insert((*name).to_owned(), value);
    Ok(())
}

fn push(into: &mut Map<String, Value>, name: &str, value: Value) -> Result<(), String> {
    let list = into.entry(name).or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(items) = list {
        items.push(value);
    }
    Ok(())
}

fn entry(bytes: &[u8]) -> Result<(String, &[u8]), String> {
    let (mut key, mut value): (String, &[u8]) = (String::new(), &[]);
    for field in Fields(bytes) {
        match field? {
            (1, Item::Bytes(bytes)) => key = text(bytes)?,
            (2, Item::Bytes(bytes)) => value = bytes,
            _ => {}
        }
    }
    Ok((key, value))
}

fn int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let (mut is_text, mut number, mut said) = (false, 0, String::new());
    for field in Fields(bytes) {
        match field? {
            (1, Item::Number(kind)) => is_text = kind == 1,
            (2, Item::Number(value)) => number = value,
            (3, Item::Bytes(bytes)) => said = text(bytes)?,
            _ => {}
        }
    }
    Ok(match (is_text, number) {
        (true, _) => json!(said),
        (false, 0) => Value::Null,
        (false, number) => json!(number),
    })
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a text is not UTF-8".to_owned())
}

enum Item<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message as they stand on the wire.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Item<'a>)> {
        let tag = self.varint()?;
        let item = match tag & 7 {
            0 => Item::Number(self.varint()?),
            1 => Item::Bytes(self.take(8)?),
            2 => {
                let length = self.varint()?;
                Item::Bytes(self.take(length)?)
            }
            5 => Item::Bytes(self.take(4)?),
            _ => return None,
        };
        Some((tag >> 3, item))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Item<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| "it breaks off or is not protobuf".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{MAGIC, document};

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        bytes.extend_from_slice(content);
        bytes
    }

    fn body(kind: &str, raw: &[u8]) -> Vec<u8> {
        let type_meta = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &type_meta), field(2, raw), field(3, b""), field(4, b"")].concat()
    }

    #[test]
    fn a_config_map_in_protobuf_form_is_read() {
        let metadata = [field(1, b"conf"), field(3, b""), field(8, b"\x08\x00")].concat();
        let data = [field(1, b"key"), field(2, b"value")].concat();
        let raw = [field(1, &metadata), field(2, &data), field(3, &data)].concat();
        let want = json!({
            "kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "conf"},
            "data": {"key": "value"}, "binaryData": {"key": "dmFsdWU="},
        });
        assert_eq!(document(&body("ConfigMap", &raw)).unwrap(), want);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let unknown_field = body("ConfigMap", &field(9, b"x"));
        let cut = body("ConfigMap", b"\x0a\x7f");
        for bytes in [&b""[..], b"k8s\0", b"k8s\0\xff", &body("Node", b""), &unknown_field, &cut] {
            assert!(document(bytes).is_err(), "{bytes:?}");
        }
    }
}
