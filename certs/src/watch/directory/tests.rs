//! Real file events in real time, each well before polling would help; the timers in paused time without events.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::testing::{publish, within};

fn yaml(name: &OsStr) -> bool {
    Path::new(name).extension().is_some_and(|end| end == "yaml")
}

fn put(path: &Path, content: &str) {
    let aside = path.with_extension("aside");
    fs::write(&aside, content).unwrap();
    fs::rename(&aside, path).unwrap();
}

/// A watch and what it has seen.
struct Seen {
    path: PathBuf,
    watch: DirectoryWatch,
    known: Snapshot,
}

impl Seen {
    async fn new(path: &Path) -> Seen {
        let watch = DirectoryWatch::start(path.to_owned(), yaml).await;
        Seen { path: path.to_owned(), watch, known: Snapshot::take(path, yaml) }
    }

    async fn changes(&mut self) {
        within(self.watch.changed_since(&self.known)).await;
        self.known = Snapshot::take(&self.path, yaml);
        assert!(self.known.settled());
    }

    /// Well before polling helps, and well after events would.
    async fn stays(&self) {
        let wait = Duration::from_millis(200);
        tokio::time::timeout(wait, self.watch.changed_since(&self.known)).await.unwrap_err();
    }
}

#[tokio::test]
async fn every_way_to_change_files_is_seen_and_other_files_do_not_count() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    let mut seen = Seen::new(path).await;
    fs::write(path.join("a.yaml"), "created").unwrap();
    seen.changes().await;
    fs::write(path.join("a.yaml"), "written").unwrap();
    seen.changes().await;
    put(&path.join("a.yaml"), "renamed");
    seen.changes().await;
    fs::write(path.join("b.yaml"), "another").unwrap();
    seen.changes().await;
    fs::rename(path.join("b.yaml"), path.join("c.yaml")).unwrap();
    seen.changes().await;
    fs::remove_file(path.join("c.yaml")).unwrap();
    seen.changes().await;
    fs::write(path.join("README"), "no policy").unwrap();
    fs::create_dir(path.join("more")).unwrap();
    fs::write(path.join("more/d.yaml"), "no policy").unwrap();
    seen.stays().await;
}

#[tokio::test]
async fn a_relative_path_is_that_of_the_working_directory() {
    let root = tempfile::tempdir().unwrap();
    let up = std::env::current_dir().unwrap().components().skip(1).map(|_| "..").collect::<PathBuf>();
    let path = up.join(root.path().strip_prefix("/").unwrap());
    let mut seen = Seen::new(&path).await;
    assert!(seen.known.directory.is_ok());
    seen.stays().await;
    fs::write(root.path().join("a.yaml"), "1").unwrap();
    seen.changes().await;
    seen.stays().await;
}

#[tokio::test]
async fn a_configmap_swap_is_seen_each_time() {
    let mount = tempfile::tempdir().unwrap();
    publish(mount.path(), "0", |directory| fs::write(directory.join("a.yaml"), "0").unwrap());
    let mut seen = Seen::new(mount.path()).await;
    for version in ["1", "2", "3"] {
        publish(mount.path(), version, |directory| fs::write(directory.join("a.yaml"), version).unwrap());
        seen.changes().await;
    }
    // A hand in the pod.
    fs::write(mount.path().join("..3/a.yaml"), "4").unwrap();
    seen.changes().await;
}

#[tokio::test]
async fn a_link_that_is_swapped_there_and_back_is_another_link() {
    let mount = tempfile::tempdir().unwrap();
    publish(mount.path(), "0", |directory| fs::write(directory.join("a.yaml"), "0").unwrap());
    let mut seen = Seen::new(mount.path()).await;
    within(async {
        // So that the file system's clock ticks between.
        while !seen.known.settled() {
            tokio::task::yield_now().await;
            seen.known = Snapshot::take(mount.path(), yaml);
        }
    })
    .await;
    symlink("..0", mount.path().join("..aside")).unwrap();
    fs::rename(mount.path().join("..aside"), mount.path().join("..data")).unwrap();
    seen.changes().await;
}

#[tokio::test]
async fn files_behind_links_are_followed_to_where_they_are() {
    let (links, archive) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let target = archive.path().join("policies-1");
    fs::write(&target, "1").unwrap();
    let roundabout = archive.path().join("..").join(archive.path().file_name().unwrap()).join("policies-1");
    symlink(roundabout, links.path().join("b.yaml")).unwrap();
    symlink(&target, links.path().join("a.yaml")).unwrap();
    let mut seen = Seen::new(links.path()).await;
    fs::write(&target, "2").unwrap();
    seen.changes().await;
    put(&target, "3");
    seen.changes().await;
    fs::remove_file(&target).unwrap();
    seen.changes().await;
    fs::write(&target, "4").unwrap();
    seen.changes().await;
}

#[tokio::test]
async fn a_directory_may_go_come_back_move_and_become_a_link() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("etc/policies");
    let make = |path: &Path, content: &str| {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join("a.yaml"), content).unwrap();
    };
    // Not even its parent is there.
    let mut seen = Seen::new(&directory).await;
    make(&directory, "1");
    seen.changes().await;
    fs::remove_dir_all(&directory).unwrap();
    seen.changes().await;
    make(&directory, "2");
    seen.changes().await;
    fs::rename(&directory, root.path().join("etc/old")).unwrap();
    make(&directory, "3");
    seen.changes().await;
    put(&directory.join("a.yaml"), "4");
    seen.changes().await;
    fs::rename(root.path().join("etc"), root.path().join("former")).unwrap();
    seen.changes().await;
    make(&directory, "5");
    seen.changes().await;
    fs::remove_dir_all(&directory).unwrap();
    make(&root.path().join("rev-1"), "6");
    make(&root.path().join("rev-2"), "7");
    symlink("../rev-1", &directory).unwrap();
    seen.changes().await;
    symlink("../rev-2", root.path().join("etc/aside")).unwrap();
    fs::rename(root.path().join("etc/aside"), &directory).unwrap();
    seen.changes().await;
    put(&root.path().join("rev-2/a.yaml"), "8");
    seen.changes().await;
    put(&root.path().join("rev-1/a.yaml"), "9");
    seen.stays().await;
}

#[tokio::test]
async fn a_directory_that_is_replaced_again_and_again_stays_watched() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("policies");
    let mut seen = Seen::new(&directory).await;
    for turn in 0..30 {
        for part in 0..3 {
            let _ = fs::rename(&directory, root.path().join(format!("old-{turn}-{part}")));
            fs::create_dir(&directory).unwrap();
            tokio::task::yield_now().await;
        }
        fs::write(directory.join("a.yaml"), turn.to_string()).unwrap();
        seen.changes().await;
        put(&directory.join("a.yaml"), "again");
        seen.changes().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_one_change_and_an_endless_one_is_cut_after_a_second() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    let watch = DirectoryWatch::polling(root.path().to_owned(), yaml);
    let known = Snapshot::take(root.path(), yaml);
    fs::write(&file, "1").unwrap();
    let start = Instant::now();
    watch.shared.wake.notify_one();
    watch.changed_since(&known).await;
    assert!(start.elapsed() >= SETTLE && start.elapsed() <= 3 * SETTLE, "{:?}", start.elapsed());

    let known = Snapshot::take(root.path(), yaml);
    let start = Instant::now();
    let noise = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        for length in 0.. {
            ticks.tick().await;
            fs::write(&file, vec![0; length]).unwrap();
            watch.shared.wake.notify_one();
        }
    };
    tokio::select! {
        () = watch.changed_since(&known) => {}
        () = noise => {}
    }
    let took = start.elapsed();
    assert!(took >= SETTLE_AT_MOST && took < SETTLE_AT_MOST + 3 * SETTLE, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn without_events_a_change_is_seen_by_the_next_poll() {
    let root = tempfile::tempdir().unwrap();
    let watch = DirectoryWatch::polling(root.path().to_owned(), yaml);
    let known = Snapshot::take(root.path(), yaml);
    let start = Instant::now();
    let write = async {
        tokio::time::sleep(Duration::from_secs(14)).await;
        fs::write(root.path().join("a.yaml"), "1").unwrap();
    };
    tokio::join!(watch.changed_since(&known), write);
    assert!(start.elapsed() <= 2 * POLL + 4 * SETTLE, "{:?}", start.elapsed());
}

#[test]
fn what_was_written_just_now_is_not_settled_and_loops_of_links_end() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a.yaml"), "1").unwrap();
    assert!(!Snapshot::take(root.path(), yaml).settled());
    assert!(Snapshot::take(Path::new("/does/not/exist"), yaml).settled());
    symlink("b.yaml", root.path().join("c.yaml")).unwrap();
    symlink("c.yaml", root.path().join("b.yaml")).unwrap();
    let snapshot = Snapshot::take(root.path(), yaml);
    assert_eq!(snapshot.files.len(), 3);
    assert!(snapshot.files[OsStr::new("b.yaml")].1.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_look_that_panics_is_taken_again_and_ends_nobodys_watch() {
    static PANICS: AtomicU32 = AtomicU32::new(0);
    fn fragile(name: &OsStr) -> bool {
        let panics = PANICS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        assert!(panics.is_err(), "on purpose");
        yaml(name)
    }
    let root = tempfile::tempdir().unwrap();
    let watch = DirectoryWatch::polling(root.path().to_owned(), fragile);
    let known = Snapshot::take(root.path(), fragile);
    fs::write(root.path().join("a.yaml"), "1").unwrap();
    PANICS.store(2, Ordering::Relaxed);
    let start = Instant::now();
    watch.changed_since(&known).await;
    assert!(start.elapsed() >= 2 * POLL && start.elapsed() < 3 * POLL, "{:?}", start.elapsed());
    PANICS.store(1, Ordering::Relaxed);
    let watch = DirectoryWatch::start(root.path().to_owned(), fragile).await;
    watch.changed_since(&known).await;
}
