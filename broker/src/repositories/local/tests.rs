//! Against repositories that the real git makes.

use super::*;
use stand_ins::git::git;
use std::time::Duration;

fn commit(folder: &Path, file: &str, text: &str) {
    std::fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
    std::fs::write(folder.join(file), text).unwrap();
    git(folder, &["add", "."]);
    git(folder, &["commit", "-q", "-m", "change"]);
}

fn repositories() -> (Repositories, tokio_util::sync::DropGuard) {
    let stop = CancellationToken::new();
    (
        Repositories::new(Pacing::steady(Duration::from_secs(600)), stop.clone(), TaskTracker::new()),
        stop.drop_guard(),
    )
}

#[tokio::test]
async fn a_commit_is_noticed_and_its_file_read() {
    let folder = tempfile::tempdir().unwrap();
    git(folder.path(), &["init", "-q"]);
    commit(folder.path(), "a/b.yaml", "one");
    let (repositories, _stop) = repositories();
    let repository = repositories.follow(folder.path()).await;
    let mut head = repository.head();
    let first = head.borrow_and_update().clone().unwrap();
    assert_eq!(repository.read(&first, "a/b.yaml", 10).await, Ok(Some(b"one".to_vec())));
    assert_eq!(repository.read(&first, "a/c.yaml", 10).await, Ok(None));

    commit(folder.path(), "a/b.yaml", "two");
    let noticed = tokio::time::timeout(Duration::from_secs(60), head.changed());
    noticed.await.expect("noticed long before the poll period").unwrap();
    let second = head.borrow_and_update().clone().unwrap();
    assert_ne!(first, second);
    assert_eq!(repository.read(&second, "a/b.yaml", 10).await, Ok(Some(b"two".to_vec())));
    assert_eq!(repository.read(&first, "a/b.yaml", 10).await, Ok(Some(b"one".to_vec())));
}

#[tokio::test]
async fn readers_of_one_repository_share_a_follower() {
    let folder = tempfile::tempdir().unwrap();
    git(folder.path(), &["init", "-q", "--bare"]);
    let (repositories, _stop) = repositories();
    let one = repositories.follow(folder.path()).await;
    let two = repositories.follow(folder.path()).await;
    assert!(Arc::ptr_eq(&one, &two));
    assert_eq!(*one.head().borrow(), Err(RepositoryError::Empty { path: folder.path().to_owned() }));
}

#[tokio::test]
async fn what_is_not_a_small_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    git(folder.path(), &["init", "-q"]);
    commit(folder.path(), "a/b.yaml", "0123456789");
    let (repositories, _stop) = repositories();
    let repository = repositories.follow(folder.path()).await;
    let head = repository.head().borrow().clone().unwrap();
    let error = repository.read(&head, "a/b.yaml", 9).await.unwrap_err();
    assert!(matches!(error, RepositoryError::TooLarge { size: 10, limit: 9, .. }));
    assert!(matches!(repository.read(&head, "a", 9).await.unwrap_err(), RepositoryError::NotAFile { .. }));
    let missing = repositories.follow(Path::new("/nonexistent")).await;
    assert!(matches!(*missing.head().borrow(), Err(RepositoryError::Open { .. })));
}
