//! An OCI archive, unpacked into a temporary directory: what its configuration says and what its layers hold. The layout is
//! OCI's: `index.json` names a manifest, which names a configuration and layers, each a blob under its digest.

use super::run;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

pub(crate) struct Archive {
    folder: tempfile::TempDir,
    manifest: Value,
    /// Its configuration, whole: `architecture`, `config`, `history`.
    pub(crate) configuration: Value,
}

impl Archive {
    pub(crate) fn open(path: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (archive, here) = (path.to_str().unwrap(), folder.path().to_str().unwrap());
        run("tar", &["-xf", archive, "-C", here]);
        let index = read(&folder.path().join("index.json"));
        let manifests = index["manifests"].as_array().unwrap();
        assert_eq!(manifests.len(), 1, "one image: {index}");
        let manifest = read(&blob(folder.path(), &manifests[0]));
        let configuration = read(&blob(folder.path(), &manifest["config"]));
        Self { folder, manifest, configuration }
    }

    /// Every file that is no directory in any layer, hidden by a later one or not, with its mode and its numeric owner as
    /// `tar` prints them.
    pub(crate) fn files(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        for layer in self.layers() {
            let list = run("tar", &["--numeric-owner", "-tvf", layer.to_str().unwrap()]);
            for line in list.lines().filter(|line| !line.starts_with('d')) {
                let words: Vec<&str> = line.split_whitespace().collect();
                files.insert(words[5..].join(" "), format!("{} {}", words[0], words[1]));
            }
        }
        files
    }

    /// Its root file system, in a directory that lives as long as this.
    pub(crate) fn root(&self) -> PathBuf {
        let root = self.folder.path().join("root");
        fs::create_dir_all(&root).unwrap();
        for layer in self.layers() {
            run("tar", &["-xf", layer.to_str().unwrap(), "-C", root.to_str().unwrap()]);
        }
        root
    }

    fn layers(&self) -> impl Iterator<Item = PathBuf> {
        let layers = self.manifest["layers"].as_array().unwrap();
        layers.iter().map(|layer| blob(self.folder.path(), layer))
    }
}

fn blob(folder: &Path, descriptor: &Value) -> PathBuf {
    folder.join("blobs").join(descriptor["digest"].as_str().unwrap().replace(':', "/"))
}

fn read(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}
