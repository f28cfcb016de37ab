//! How an object is one key of the inventory's ConfigMap: `namespace_name_group_kind`, with a colon as `__`. What is
//! written is read back as the very same object, here and by cli-utils.

use super::{InventoryError, KEY};
use crate::gitops::object::ObjectId;

/// Names of roles may have colons, which keys may not.
const COLON: &str = "__";

/// # Errors
/// [`InventoryError::Key`]: it cannot be a key, or would be read back as another object.
pub(super) fn write(object: &ObjectId) -> Result<String, InventoryError> {
    let ObjectId { group, kind, namespace, name } = object;
    let key = format!("{namespace}_{}_{group}_{kind}", name.replace(':', COLON));
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if key.len() <= KEY && key.bytes().all(legal) && read(&key).as_ref() == Some(object) {
        Ok(key)
    } else {
        Err(InventoryError::Key { object: object.clone() })
    }
}

/// `None`: it is not such a key. Names with a single `_`, which roles may have, are understood, though not by cli-utils.
pub(super) fn read(key: &str) -> Option<ObjectId> {
    let (namespace, rest) = key.split_once('_')?;
    let (rest, kind) = rest.rsplit_once('_')?;
    let (name, group) = rest.rsplit_once('_')?;
    let name = name.replace(COLON, ":");
    // Such a name would lead a request to some other address.
    if kind.is_empty() || matches!(name.as_str(), "" | "." | "..") || matches!(namespace, "." | "..") {
        return None;
    }
    let [group, kind, namespace] = [group, kind, namespace].map(str::to_owned);
    Some(ObjectId { group, kind, namespace, name })
}
