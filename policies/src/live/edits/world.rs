//! A directory of policies as operators, editors, Kubernetes and accidents leave it.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// How files come to be in the directory.
#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    InPlace,
    RenamedOver,
    ConfigMap,
    /// The directory is a link to one that is made anew each time.
    Linked,
    /// The directory is deleted, and one that was filled elsewhere is renamed to its place.
    Anew,
}

impl How {
    pub(super) const ALL: [How; 5] = [How::InPlace, How::RenamedOver, How::ConfigMap, How::Linked, How::Anew];
    /// Those after which nobody ever finds half of the files.
    pub(super) const WHOLE: [How; 2] = [How::ConfigMap, How::Linked];
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Truncated,
    WrongType,
    UnknownKey,
    Tie,
    NoUtf8,
    DanglingLink,
    LoopOfLinks,
    NoFile,
    NoDirectory,
    FileForDirectory,
    Gigabyte,
    Fifo,
    Socket,
    Bomb,
    TooManyFiles,
}

impl Broken {
    const CHEAP: [Broken; 13] = [
        Broken::Truncated,
        Broken::WrongType,
        Broken::UnknownKey,
        Broken::Tie,
        Broken::NoUtf8,
        Broken::DanglingLink,
        Broken::LoopOfLinks,
        Broken::NoFile,
        Broken::NoDirectory,
        Broken::FileForDirectory,
        Broken::Gigabyte,
        Broken::Fifo,
        Broken::Socket,
    ];

    pub(super) fn any(random: &mut StdRng) -> Broken {
        match random.random_range(0..1000) {
            0..5 => Broken::Bomb,
            5..7 => Broken::TooManyFiles,
            _ => *Self::CHEAP.choose(random).expect("there are some"),
        }
    }
}

type Files = Vec<(String, Vec<u8>)>;

pub(super) struct World {
    root: PathBuf,
    pub(super) directory: PathBuf,
    /// Of directories that are made beside it.
    count: u64,
    bombs: Vec<(&'static str, String)>,
}

impl World {
    pub(super) fn new(root: &Path) -> World {
        let bombs = [
            "flow lists",
            "an alias bomb",
            "a merge bomb",
            "wide merges",
            "a long text often",
            "many anchors",
        ];
        let hostile = postern_yaml::hostile::hostile().into_iter();
        let bombs = hostile.filter(|(name, _)| bombs.contains(name)).collect();
        World { root: root.to_owned(), directory: root.join("policies"), count: 0, bombs }
    }

    /// Both values of the pair are this.
    pub(super) fn good(&mut self, how: How, value: u32) {
        let [limit, tunnel] = documents(value);
        // Sometimes in one file, sometimes in two.
        let files = if self.count.is_multiple_of(2) {
            vec![("all.yaml", format!("{limit}\n---\n{tunnel}\n"))]
        } else {
            vec![("limits.yaml", format!("# {how:?}\n---\n{limit}\n")), ("tunnels.yml", tunnel)]
        };
        let files = files.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect();
        self.put(how, files, |_| {});
    }

    pub(super) fn broken(&mut self, how: How, what: Broken, value: u32, random: &mut StdRng) {
        let [limit, tunnel] = documents(value);
        let mut files: Files = vec![
            ("limits.yaml".to_owned(), limit.clone().into_bytes()),
            ("tunnels.yaml".to_owned(), tunnel.into_bytes()),
        ];
        let mut extra: Box<dyn Fn(&Path)> = Box::new(|_| {});
        match what {
            Broken::Truncated => {
                let length = files[0].1.len();
                files[0].1.truncate(random.random_range(1..length));
            }
            Broken::WrongType => {
                let wrong = *["many", "[1]", "{}", "-1", "1.5", "\"1\\x00\"", "99999999999999999999"]
                    .choose(random)
                    .unwrap();
                files[0].1 = limit.replace(&format!(": {value}}}"), &format!(": {wrong}}}")).into_bytes();
            }
            Broken::UnknownKey => {
                files[0].1 = limit.replace("streamsPerToken", "streamsPerTokn").into_bytes();
            }
            Broken::Tie => {
                let same = limit.replace("\"one\"", "\"other\"");
                files.push(("same.yaml".to_owned(), same.into_bytes()));
            }
            Broken::NoUtf8 => {
                let at = random.random_range(0..files[0].1.len());
                files[0].1[at] = 0xff;
            }
            Broken::NoFile => {
                files.clear();
                files.push(("README".to_owned(), b"none".to_vec()));
                files.push((".hidden.yaml".to_owned(), b"none".to_vec()));
            }
            Broken::Bomb => {
                let (_, text) = self.bombs.choose(random).unwrap();
                files.push(("bomb.yaml".to_owned(), text.clone().into_bytes()));
            }
            Broken::TooManyFiles => {
                files.extend((0..1000).map(|at| (format!("{at}.yaml"), Vec::new())));
            }
            Broken::DanglingLink => {
                extra = Box::new(|at| symlink("../nowhere/at/all", at.join("a.yaml")).unwrap());
            }
            Broken::LoopOfLinks => extra = Box::new(|at| symlink("loop.yaml", at.join("loop.yaml")).unwrap()),
            Broken::Gigabyte => {
                extra = Box::new(|at| File::create(at.join("big.yaml")).unwrap().set_len(1 << 30).unwrap());
            }
            Broken::Fifo => {
                extra = Box::new(|at| {
                    use rustix::fs::{CWD, FileType, Mode, mknodat};
                    mknodat(CWD, at.join("fifo.yaml"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
                });
            }
            Broken::Socket => {
                extra = Box::new(|at| drop(UnixListener::bind(at.join("socket.yaml")).unwrap()))
            }
            Broken::NoDirectory => {
                self.clear();
                return;
            }
            Broken::FileForDirectory => {
                self.clear();
                fs::write(&self.directory, limit).unwrap();
                return;
            }
        }
        self.put(how, files, extra);
    }

    /// `extra` puts in what is no plain file.
    fn put(&mut self, how: How, files: Files, extra: impl Fn(&Path)) {
        self.count += 1;
        let directory = self.directory.clone();
        let aside = self.root.join(format!("rev-{}", self.count));
        let fill = |at: &Path| {
            fs::create_dir(at).unwrap();
            for (name, bytes) in &files {
                fs::write(at.join(name), bytes).unwrap();
            }
            extra(at);
        };
        match how {
            How::InPlace | How::RenamedOver => {
                if directory.is_symlink() || !directory.is_dir() || directory.join("..data").is_symlink() {
                    self.clear();
                    fs::create_dir(&directory).unwrap();
                }
                for entry in fs::read_dir(&directory).unwrap() {
                    let entry = entry.unwrap();
                    if !files.iter().any(|(name, _)| **name == *entry.file_name()) {
                        fs::remove_file(entry.path()).unwrap();
                    }
                }
                for (name, bytes) in &files {
                    let file = directory.join(name);
                    if matches!(how, How::InPlace) {
                        fs::write(file, bytes).unwrap();
                    } else {
                        let swap = directory.join(format!(".{name}.swp"));
                        fs::write(&swap, bytes).unwrap();
                        fs::rename(swap, file).unwrap();
                    }
                }
                extra(&directory);
            }
            How::ConfigMap => {
                if directory.is_symlink() || !directory.join("..data").is_symlink() {
                    self.clear();
                    fs::create_dir(&directory).unwrap();
                }
                let version = format!("..{}", self.count);
                fill(&directory.join(&version));
                let former = fs::read_link(directory.join("..data")).ok();
                let names = |at: &Path| -> Vec<_> {
                    fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name()).collect()
                };
                let new = names(&directory.join(&version));
                // Before the swap and not after it, as the kubelet has it: a file that was not there before would be
                // missing for a moment, which only the time until a change is settled hides.
                for name in &new {
                    if !directory.join(name).is_symlink() {
                        symlink(Path::new("..data").join(name), directory.join(name)).unwrap();
                    }
                }
                symlink(&version, directory.join("..data_tmp")).unwrap();
                fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
                for name in names(&directory) {
                    if !name.as_encoded_bytes().starts_with(b"..") && !new.contains(&name) {
                        fs::remove_file(directory.join(name)).unwrap();
                    }
                }
                if let Some(former) = former {
                    fs::remove_dir_all(directory.join(former)).unwrap();
                }
            }
            How::Linked => {
                fill(&aside);
                let former = fs::read_link(&directory).ok();
                if former.is_none() {
                    self.clear();
                }
                let link = self.root.join("link");
                symlink(&aside, &link).unwrap();
                fs::rename(link, &directory).unwrap();
                if let Some(former) = former {
                    fs::remove_dir_all(former).unwrap();
                }
            }
            How::Anew => {
                fill(&aside);
                self.clear();
                fs::rename(aside, &directory).unwrap();
            }
        }
    }

    /// The directory is not there any more, whatever it was.
    fn clear(&self) {
        let directory = &self.directory;
        if directory.is_symlink() {
            let target = fs::read_link(directory).unwrap();
            fs::remove_file(directory).unwrap();
            fs::remove_dir_all(target).unwrap();
        } else if directory.is_dir() {
            fs::remove_dir_all(directory).unwrap();
        } else {
            let _ = fs::remove_file(directory);
        }
    }
}

/// In one line of JSON, of which no beginning is valid.
fn documents(value: u32) -> [String; 2] {
    let document = |kind: &str, key: &str| {
        format!(
            r#"{{"apiVersion": "postern/v1", "kind": "{kind}", "metadata": {{"name": "one"}}, "spec": {{"{key}": {value}}}}}"#
        )
    };
    [document("LimitPolicy", "streamsPerToken"), document("TunnelPolicy", "idlePerAgent")]
}
