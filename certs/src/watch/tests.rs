//! Real file events in real time, each well before polling would help; the timers in paused time without
//! events.

use std::fs;

use super::*;
use crate::testing::{publish, within};

fn put(path: &Path, content: &str) {
    let aside = path.with_extension("aside");
    fs::write(&aside, content).unwrap();
    fs::rename(&aside, path).unwrap();
}

#[tokio::test]
async fn every_way_to_change_a_file_is_seen() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let mut watch = FileWatch::new(vec![file.clone()]).unwrap();
    fs::write(&file, "created").unwrap();
    within(watch.changed()).await;
    fs::write(&file, "written").unwrap();
    within(watch.changed()).await;
    put(&file, "renamed");
    within(watch.changed()).await;
    fs::remove_file(&file).unwrap();
    within(watch.changed()).await;
    put(&file, "back");
    within(watch.changed()).await;
}

#[tokio::test]
async fn a_configmap_swap_is_seen_each_time() {
    let mount = tempfile::tempdir().unwrap();
    publish(mount.path(), "0", |directory| fs::write(directory.join("token"), "0").unwrap());
    let mut watch = FileWatch::new(vec![mount.path().join("token")]).unwrap();
    for version in ["1", "2", "3"] {
        publish(mount.path(), version, |directory| fs::write(directory.join("token"), version).unwrap());
        within(watch.changed()).await;
        assert_eq!(fs::read_to_string(mount.path().join("token")).unwrap(), version);
    }
}

#[tokio::test]
async fn a_file_behind_a_link_is_followed_to_where_it_is() {
    let (links, archive) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let target = archive.path().join("cert1.pem");
    fs::write(&target, "1").unwrap();
    let link = links.path().join("cert.pem");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let mut watch = FileWatch::new(vec![link]).unwrap();
    fs::write(&target, "2").unwrap();
    within(watch.changed()).await;
    put(&target, "3");
    within(watch.changed()).await;
}

#[tokio::test]
async fn a_directory_that_is_made_anew_is_watched_anew() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("sub");
    let file = directory.join("token");
    fs::create_dir(&directory).unwrap();
    fs::write(&file, "1").unwrap();
    let mut watch = FileWatch::new(vec![file.clone()]).unwrap();
    fs::rename(&directory, root.path().join("old")).unwrap();
    fs::create_dir(&directory).unwrap();
    fs::write(root.path().join("old/token"), "wakes the old watch").unwrap();
    within(watch.changed()).await;
    put(&file, "2");
    within(watch.changed()).await;
    put(&file, "3");
    within(watch.changed()).await;
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_one_change_and_an_endless_one_is_cut_after_a_second() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let mut watch = FileWatch::polling(vec![file.clone()]).unwrap();
    let wake = Arc::clone(&watch.wake);

    fs::write(&file, "1").unwrap();
    let start = Instant::now();
    wake.notify_one();
    watch.changed().await;
    assert!(start.elapsed() >= SETTLE && start.elapsed() <= 3 * SETTLE, "{:?}", start.elapsed());

    fs::write(&file, "22").unwrap();
    let start = Instant::now();
    let noise = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        for length in 0.. {
            ticks.tick().await;
            fs::write(&file, vec![0; length]).unwrap();
            wake.notify_one();
        }
    };
    tokio::select! {
        () = watch.changed() => {}
        () = noise => {}
    }
    assert!(
        start.elapsed() >= SETTLE_AT_MOST && start.elapsed() < SETTLE_AT_MOST + 2 * SETTLE,
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_busy_directory_puts_no_change_off() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let mut watch = FileWatch::polling(vec![file.clone()]).unwrap();
    let wake = Arc::clone(&watch.wake);
    fs::write(&file, "1").unwrap();
    let start = Instant::now();
    let noise = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        loop {
            ticks.tick().await;
            wake.notify_one();
        }
    };
    tokio::select! {
        () = watch.changed() => {}
        () = noise => {}
    }
    assert!(start.elapsed() < 2 * SETTLE, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn without_events_a_change_is_seen_by_the_next_poll() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let mut watch = FileWatch::polling(vec![file.clone()]).unwrap();
    let start = Instant::now();
    let write = async {
        tokio::time::advance(Duration::from_secs(40)).await;
        fs::write(&file, "1").unwrap();
    };
    tokio::join!(watch.changed(), write);
    assert!(start.elapsed() <= 2 * POLL + 4 * SETTLE, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn events_for_other_files_are_no_change_and_a_cancelled_wait_loses_none() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let mut watch = FileWatch::polling(vec![file.clone()]).unwrap();
    fs::write(directory.path().join("neighbour"), "1").unwrap();
    watch.wake.notify_one();
    tokio::time::timeout(3 * POLL, watch.changed()).await.unwrap_err();

    fs::write(&file, "1").unwrap();
    tokio::time::timeout(SETTLE / 2, watch.changed()).await.unwrap_err();
    tokio::time::timeout(2 * SETTLE, watch.changed()).await.unwrap();
}

#[test]
fn what_cannot_be_a_file_is_refused() {
    assert!(matches!(FileWatch::new(vec![]), Err(WatchError::NoFile)));
    assert!(matches!(FileWatch::new(vec!["/".into()]), Err(WatchError::NotAFile { .. })));
}
