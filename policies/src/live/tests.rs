//! What is put in force, when and what is said of it, with a reader of small files that any text satisfies but `bad`.

use super::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicU32, Ordering};

/// For what must come at all. How soon it comes, the last test shows; that no event is missed, `edits`.
const DEADLINE: Duration = Duration::from_secs(60);

/// The fingerprint is what the files hold.
fn read(directory: &Path) -> Result<Loaded, Problems> {
    let unreadable = |file: &Path, found: &str| trouble(file, found, "something else");
    let entries = fs::read_dir(directory).map_err(|error| unreadable(directory, &error.to_string()))?;
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| is_policy_file(path.file_name().unwrap()));
    paths.sort();
    let mut fingerprint = Vec::new();
    for path in &paths {
        let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error.to_string()))?;
        if text.starts_with("bad") {
            return Err(unreadable(path, &text));
        }
        fingerprint.push(text);
    }
    let documents = fingerprint.len();
    Ok(Loaded { fingerprint: fingerprint.join("+"), documents, ..Loaded::default() })
}

fn put(path: &Path, content: &str) {
    let aside = path.with_extension("aside");
    fs::write(&aside, content).unwrap();
    fs::rename(&aside, path).unwrap();
}

/// In a task of its own until the test ends.
fn follow(live: &Live) -> tokio_util::sync::DropGuard {
    let (live, stop) = (live.clone(), CancellationToken::new());
    let guard = stop.clone().drop_guard();
    tokio::spawn(async move { live.keep_fresh(stop).await });
    guard
}

async fn until(live: &Live, condition: impl Fn(&Status) -> bool) -> Status {
    let look = async {
        let mut looks = tokio::time::interval(Duration::from_millis(2));
        loop {
            let status = live.status();
            if condition(&status) {
                return status;
            }
            looks.tick().await;
        }
    };
    tokio::time::timeout(DEADLINE, look).await.unwrap_or_else(|_| panic!("it is not so: {:?}", live.status()))
}

#[tokio::test]
async fn without_a_directory_there_is_nothing_to_follow() {
    let live = Live::open(None).unwrap();
    let status = live.status();
    assert_eq!((status.generation, status.directory, status.fingerprint.as_str()), (1, None, ""));
    let stop = CancellationToken::new();
    stop.cancel();
    live.keep_fresh(stop).await;
}

#[tokio::test]
async fn a_bad_change_keeps_the_last_good_set_and_is_told_until_it_is_mended() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    fs::write(&file, "1").unwrap();
    let live = Live::with_loader(Some(root.path()), read).unwrap();
    let mut changes = live.changes();
    let _following = follow(&live);
    put(&file, "2");
    tokio::time::timeout(DEADLINE, changes.changed()).await.unwrap().unwrap();
    let status = live.status();
    assert_eq!((status.generation, status.fingerprint.as_str(), status.bad_for), (2, "2", None));

    put(&file, "bad");
    let status = until(&live, |status| !status.problems.is_empty()).await;
    assert_eq!((status.generation, status.fingerprint.as_str()), (2, "2"));
    assert!(status.bad_for.is_some() && status.problems[0].file == file);
    put(&file, "bad in another way");
    let worse = until(&live, |status| status.problems[0].found != "bad").await;
    assert!(worse.bad_for > status.bad_for, "it is bad since the first bad change");
    fs::remove_dir_all(root.path()).unwrap();
    until(&live, |status| status.problems.first().is_some_and(|problem| problem.file == root.path())).await;

    fs::create_dir(root.path()).unwrap();
    put(&file, "2");
    let status = until(&live, |status| status.problems.is_empty()).await;
    assert_eq!((status.generation, status.bad_for), (2, None), "it says what was in force all the time");
    put(&file, "3");
    assert_eq!(until(&live, |status| status.generation == 3).await.fingerprint, "3");
}

#[tokio::test]
async fn what_changed_before_the_watch_began_is_in_force_soon() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    fs::write(&file, "1").unwrap();
    let live = Live::with_loader(Some(root.path()), read).unwrap();
    put(&file, "2");
    let _following = follow(&live);
    until(&live, |status| status.fingerprint == "2").await;
}

#[tokio::test]
async fn what_does_not_change_is_not_read_again() {
    let root = tempfile::tempdir().unwrap();
    let up = std::env::current_dir().unwrap().components().skip(1).map(|_| "..").collect::<PathBuf>();
    let path = up.join(root.path().strip_prefix("/").unwrap());
    fs::write(root.path().join("a.yaml"), "1").unwrap();
    let readings = Arc::new(AtomicU32::new(0));
    let counted = {
        let readings = Arc::clone(&readings);
        move |directory: &Path| {
            readings.fetch_add(1, Ordering::Relaxed);
            read(directory)
        }
    };
    let live = Live::with_loader(Some(&path), counted).unwrap();
    let mut changes = live.changes();
    let _following = follow(&live);
    put(&root.path().join("a.yaml"), "2");
    tokio::time::timeout(DEADLINE, changes.changed()).await.unwrap().unwrap();
    let before = readings.load(Ordering::Relaxed);
    tokio::time::timeout(Duration::from_millis(300), changes.changed()).await.unwrap_err();
    assert!(readings.load(Ordering::Relaxed) <= before + 1, "it is read again and again");
}

#[tokio::test]
async fn half_a_swap_is_never_put_in_force() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_owned();
    let publish = |path: &Path, version: u32| {
        let directory = path.join(format!("..{version}"));
        fs::create_dir(&directory).unwrap();
        for name in ["a.yaml", "b.yaml"] {
            fs::write(directory.join(name), version.to_string()).unwrap();
            let _ = symlink(Path::new("..data").join(name), path.join(name));
        }
        symlink(format!("..{version}"), path.join("..aside")).unwrap();
        fs::rename(path.join("..aside"), path.join("..data")).unwrap();
    };
    publish(&path, 0);
    // Whoever publishes does so in the middle of each of the first readings.
    let turn = AtomicU32::new(0);
    let racing = move |directory: &Path| {
        let first = read(directory)?.fingerprint;
        let turn = turn.fetch_add(1, Ordering::Relaxed) + 1;
        if turn <= 3 {
            publish(directory, turn);
        }
        let second = read(directory)?.fingerprint;
        let half = |text: &str| text.split('+').next().unwrap_or_default().to_owned();
        Ok(Loaded { fingerprint: format!("{}+{}", half(&first), half(&second)), ..Loaded::default() })
    };
    let live = Live::with_loader(Some(&path), racing).unwrap();
    assert_eq!(live.status().fingerprint, "3+3");
    let following = follow(&live);
    put(&path.join("c.yaml"), "");
    until(&live, |status| status.fingerprint == "3+3").await;
    drop(following);
}

#[tokio::test]
async fn half_a_swap_is_not_put_in_force_while_files_are_followed_either() {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (root.path().join("a.yaml"), root.path().join("b.yaml"));
    fs::write(&a, "0").unwrap();
    fs::write(&b, "0").unwrap();
    let turn = AtomicU32::new(0);
    let racing = {
        let b = b.clone();
        move |directory: &Path| {
            let loaded = read(directory)?;
            // After the reading of one, before the next look.
            if loaded.fingerprint == "1+0" && turn.fetch_add(1, Ordering::Relaxed) < 2 {
                put(&b, "1");
            }
            Ok(loaded)
        }
    };
    let live = Live::with_loader(Some(root.path()), racing).unwrap();
    let mut changes = live.changes();
    let _following = follow(&live);
    put(&a, "1");
    tokio::time::timeout(DEADLINE, changes.changed()).await.unwrap().unwrap();
    let status = live.status();
    assert_eq!((status.fingerprint.as_str(), status.generation), ("1+1", 2));
}

#[tokio::test]
async fn files_that_never_stay_as_they_are_are_a_problem_and_the_last_good_ones_stay() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    fs::write(&file, "0").unwrap();
    let restless = AtomicU32::new(0);
    let live = Live::with_loader(Some(root.path()), {
        let file = file.clone();
        move |directory: &Path| {
            let loaded = read(directory)?;
            // At first nobody writes; then whoever does never stops.
            if loaded.fingerprint != "0" {
                fs::write(&file, "1".repeat(restless.fetch_add(1, Ordering::Relaxed) as usize % 50 + 1))
                    .unwrap();
            }
            Ok(loaded)
        }
    })
    .unwrap();
    let _following = follow(&live);
    put(&file, "1");
    let status = until(&live, |status| !status.problems.is_empty()).await;
    assert_eq!((status.generation, status.fingerprint.as_str()), (1, "0"));
    assert!(status.problems[0].to_string().contains("change all the time"), "{}", status.problems[0]);
    assert!(
        Live::with_loader(Some(root.path()), {
            let count = AtomicU32::new(0);
            move |directory: &Path| {
                put(&directory.join("b.yaml"), &"1".repeat(count.fetch_add(1, Ordering::Relaxed) as usize));
                read(directory)
            }
        })
        .is_err()
    );
}

#[tokio::test]
async fn a_reader_that_fails_inside_and_one_that_hangs_keep_the_last_good_set_and_stop_nothing() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    fs::write(&file, "0").unwrap();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(held);
    let hangs = Arc::new(tokio::sync::Notify::new());
    let told = Arc::clone(&hangs);
    let live = Live::with_loader(Some(root.path()), move |directory: &Path| {
        let loaded = read(directory)?;
        match loaded.fingerprint.as_str() {
            "panic" => panic!("on purpose"),
            "hang" => {
                told.notify_one();
                let _ = held.lock().unwrap().recv();
            }
            _ => {}
        }
        Ok(loaded)
    })
    .unwrap();
    let stop = CancellationToken::new();
    let following = tokio::spawn({
        let (live, stop) = (live.clone(), stop.clone());
        async move { live.keep_fresh(stop).await }
    });
    put(&file, "panic");
    let status = until(&live, |status| !status.problems.is_empty()).await;
    assert_eq!((status.generation, status.fingerprint.as_str()), (1, "0"));
    put(&file, "1");
    until(&live, |status| status.fingerprint == "1" && status.problems.is_empty()).await;
    put(&file, "hang");
    tokio::time::timeout(DEADLINE, hangs.notified()).await.unwrap();
    stop.cancel();
    tokio::time::timeout(DEADLINE, following).await.unwrap().unwrap();
    drop(release);
}

#[tokio::test]
async fn each_of_a_hundred_edits_is_told_once_it_is_in_force() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("a.yaml");
    fs::write(&file, "start").unwrap();
    let live = Live::with_loader(Some(root.path()), read).unwrap();
    let _following = follow(&live);
    let mut changes = live.changes();
    let mut times = Vec::new();
    for turn in 0..100 {
        let before = Instant::now();
        put(&file, &turn.to_string());
        tokio::time::timeout(DEADLINE, changes.changed()).await.unwrap().unwrap();
        times.push(before.elapsed());
        assert_eq!(live.status().fingerprint, turn.to_string());
    }
    times.sort();
    println!(
        "from rename to in force, 100 edits: median {:?}, p99 {:?}, longest {:?}",
        times[50], times[98], times[99]
    );
}
