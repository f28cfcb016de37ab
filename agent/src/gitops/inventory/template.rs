//! Which ConfigMap a project's inventory is: the one that its manifests bring, or one named after agent and project.

use super::{InventoryError, LABEL, text};
use crate::gitops::{
    File,
    object::{Manifest, ObjectId, Problem},
};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// The name that old templates share, also those of several projects in one namespace.
const SHARED: &str = "inventory";

/// Where the inventory is, and how it begins.
#[derive(Clone, Debug)]
pub struct Template {
    /// Of the ConfigMap.
    pub namespace: String,
    /// Of the ConfigMap, if it has to be created. One with the [`LABEL`] counts whatever its name is.
    pub name: String,
    /// What the label and the owners of objects say. Two projects must not share it.
    pub id: String,
    /// The manifest, if there is one.
    manifest: Option<Arc<Value>>,
}

impl Template {
    /// Takes the inventory out of the objects of a commit, or makes up the default one.
    ///
    /// # Errors
    /// [`InventoryError::Many`], [`InventoryError::Template`], [`InventoryError::Numberless`]. Nothing of the commit can
    /// be applied then.
    pub fn take(
        objects: Vec<Manifest>,
        default_namespace: &str,
        agent_id: i64,
        (project, project_id): (&str, i64),
    ) -> Result<(Self, Vec<Manifest>), InventoryError> {
        let (templates, rest): (Vec<_>, Vec<_>) =
            objects.into_iter().partition(|object| !label(&object.value).is_empty());
        let place = |object: &Manifest| format!("{}:{}", object.file, object.line);
        let template = match templates.as_slice() {
            [] if agent_id <= 0 || project_id <= 0 => {
                return Err(InventoryError::Numberless { project: project.to_owned() });
            }
            [] => {
                let id = format!("{agent_id}-{project_id}");
                let name = format!("inventory-{id}");
                Self { namespace: default_namespace.to_owned(), name, id, manifest: None }
            }
            [template] => Self::of(template, default_namespace, agent_id, project_id)?,
            [first, second, ..] => {
                let (count, first, second) = (templates.len(), place(first), place(second));
                return Err(InventoryError::Many { count, first, second });
            }
        };
        Ok((template, rest))
    }

    /// Asks whether this is the inventory though not everything in the commit's files could be read.
    ///
    /// # Errors
    /// [`InventoryError::Hidden`]: it was made up, and there seems to be another in what is unread. Nothing of the commit
    /// can be applied then.
    pub fn certain(&self, files: &[File]) -> Result<(), InventoryError> {
        let mentions = |file: &File| file.data.windows(LABEL.len()).any(|window| window == LABEL.as_bytes());
        match self.manifest {
            None if files.iter().any(mentions) => Err(InventoryError::Hidden),
            _ => Ok(()),
        }
    }

    fn of(
        manifest: &Manifest,
        default_namespace: &str,
        agent_id: i64,
        project_id: i64,
    ) -> Result<Self, InventoryError> {
        let wrong = |text: String| {
            let (file, line) = (manifest.file.clone(), manifest.line);
            InventoryError::Template(Problem { file, line, column: 1, text })
        };
        let id = label(&manifest.value);
        if !manifest.id.group.is_empty() || manifest.id.kind != "ConfigMap" {
            return Err(wrong(format!(
                "{} carries the label {LABEL}, which makes it the project's inventory; that must be a ConfigMap, so \
                 use one, or remove the label",
                manifest.id
            )));
        }
        if !is_label_value(id) {
            return Err(wrong(format!(
                "the label {LABEL} of {} is not a legal one: at most 63 of A-Z, a-z, 0-9, '-', '_' and '.', with a \
                 letter or digit at both ends",
                manifest.id
            )));
        }
        // What another project's objects carry would be this one's to delete.
        let number = id.strip_prefix(&format!("{agent_id}-")).unwrap_or_default();
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        if is_number && number != project_id.to_string() {
            return Err(wrong(format!(
                "the label {LABEL} of {} is {id:?}, which is the inventory that this agent keeps for the project with \
                 the number {number}, and this one has the number {project_id}; choose a word for the label that no \
                 other project has",
                manifest.id
            )));
        }
        let namespace = match manifest.id.namespace.as_str() {
            "" => default_namespace.to_owned(),
            namespace => namespace.to_owned(),
        };
        let name = match manifest.id.name.as_str() {
            SHARED => format!("{SHARED}-{:08}", suffix(id)),
            name => name.to_owned(),
        };
        Ok(Self { namespace, name, id: id.to_owned(), manifest: Some(manifest.value.clone()) })
    }

    /// Whether a ConfigMap of [`Self::namespace`] is to be given to [`Stored::read`](super::Stored::read).
    pub fn concerns(&self, config_map: &Value) -> bool {
        label(config_map) == self.id || text(config_map, &["metadata", "name"]) == self.name
    }

    /// Whether an object of the commit must be there before the inventory can be.
    pub fn needs(&self, object: &ObjectId) -> bool {
        object.group.is_empty() && object.kind == "Namespace" && object.name == self.namespace
    }

    /// The ConfigMap as it is created. Of a manifest its labels and annotations are taken, as long as they can be.
    pub(super) fn create(&self, data: Map<String, Value>) -> Value {
        let of_manifest = |part: &str| {
            let manifest = self.manifest.as_ref()?;
            manifest.get("metadata")?.get(part)?.as_object().cloned()
        };
        let mut labels = of_manifest("labels").unwrap_or_default();
        labels.insert(LABEL.to_owned(), self.id.clone().into());
        let mut metadata = json!({"namespace": self.namespace, "name": self.name, "labels": labels});
        if let Some(annotations) = of_manifest("annotations") {
            metadata["annotations"] = annotations.into();
        }
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    }
}

/// The inventory's id, empty if the object is none.
pub(super) fn label(object: &Value) -> &str {
    text(object, &["metadata", "labels", LABEL]).trim()
}

fn is_label_value(value: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    bytes.len() <= 63 && value.bytes().all(legal) && ends(bytes.first()) && ends(bytes.last())
}

/// Eight digits as cli-utils appends, but always the same for an id: FNV-1a.
fn suffix(id: &str) -> u32 {
    id.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
        % 100_000_000
}
