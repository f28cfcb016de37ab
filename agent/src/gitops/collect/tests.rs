//! What becomes of messages in and out of order, whole, too large and too many.

use super::*;
use postern_wire::proto::gitlab::agent::gitops::rpc::objects_to_synchronize_response::Trailer;

fn header(commit_id: &str) -> Message {
    Message::Header(Header { commit_id: commit_id.to_owned(), project_id: 42 })
}

fn piece(source: &str, data: impl AsRef<[u8]>) -> Message {
    Message::Object(Object { source: source.to_owned(), data: Bytes::copy_from_slice(data.as_ref()) })
}

fn trailer() -> Message {
    Message::Trailer(Trailer {})
}

fn collect(messages: Vec<Message>) -> Result<Option<Received>, CollectError> {
    let mut collector = Collector::default();
    for message in messages {
        collector.accept(ObjectsToSynchronizeResponse { message: Some(message) })?;
    }
    collector.finish("group/project")
}

fn contents(received: &Received) -> Vec<(&str, &[u8])> {
    received.files.iter().map(|file| (file.source.as_str(), &*file.data)).collect()
}

#[test]
fn consecutive_pieces_of_one_name_are_one_file() {
    let messages = vec![
        header("c1"),
        piece("a.yaml", b"\0\xff"),
        piece("a.yaml", b""),
        piece("a.yaml", b"\r\n"),
        piece("b/a.yaml", b"b"),
        piece("empty.yaml", b""),
        piece("empty.yaml", b""),
        piece("c.yaml", b"c"),
        trailer(),
    ];
    let received = collect(messages).unwrap().unwrap();
    assert_eq!((received.project.as_str(), received.project_id), ("group/project", 42));
    assert_eq!(received.commit_id, "c1");
    let wanted: &[(&str, &[u8])] =
        &[("a.yaml", b"\0\xff\r\n"), ("b/a.yaml", b"b"), ("empty.yaml", b""), ("c.yaml", b"c")];
    assert_eq!(contents(&received), wanted);
}

#[test]
fn a_commit_may_have_no_file_and_a_stream_no_commit() {
    assert_eq!(collect(Vec::new()), Ok(None));
    let received = collect(vec![header("c1"), trailer()]).unwrap().unwrap();
    assert_eq!(received.files, []);
}

#[test]
fn half_a_commit_is_none() {
    for messages in [vec![header("c1")], vec![header("c1"), piece("a", "a")]] {
        assert!(matches!(collect(messages), Err(CollectError::Order(_))));
    }
}

#[test]
fn what_no_broker_may_send_is_refused() {
    let table = [
        (vec![header("")], CollectError::NoCommit),
        (vec![header("c1"), piece("", "a")], CollectError::NoName),
        (vec![header("c1"), piece(&"n".repeat(NAME + 1), "a")], CollectError::LongName),
        (
            vec![header("c1"), piece("a", "a"), piece("b", "b"), piece("a", "a")],
            CollectError::Twice { file: "a".to_owned() },
        ),
    ];
    for (messages, error) in table {
        assert_eq!(collect(messages), Err(error));
    }
    let mut collector = Collector::default();
    let unset = collector.accept(ObjectsToSynchronizeResponse { message: None });
    assert_eq!(unset, Err(CollectError::Order(OutOfOrder::Unset)));
    assert!(collect(vec![piece("a", "a")]).is_err());
    assert!(collect(vec![header("c1"), header("c2")]).is_err());
    assert!(collect(vec![header("c1"), trailer(), piece("a", "a")]).is_err());
}

#[test]
fn a_file_and_a_commit_may_be_as_large_as_the_limit_and_no_larger() {
    let mib = vec![b'x'; 1 << 20];
    let file = |name: &str, more: usize| {
        let mut pieces: Vec<Message> = (0..5).map(|_| piece(name, &mib)).collect();
        pieces.push(piece(name, vec![b'y'; more]));
        pieces
    };
    let all = |parts: Vec<Vec<Message>>| collect(parts.into_iter().flatten().collect());
    let four = || vec![file("a", 0), file("b", 0), file("c", 0), file("d", 0)];

    let whole = all([vec![vec![header("c1")]], four(), vec![vec![trailer()]]].concat()).unwrap().unwrap();
    assert_eq!(whole.bytes(), TOTAL);
    let large = all(vec![vec![header("c1")], file("big.yaml", 1)]).unwrap_err();
    assert_eq!(large, CollectError::LargeFile { file: "big.yaml".to_owned() });
    assert!(large.to_string().contains("larger than 5 MiB"), "{large}");
    let large = all([vec![vec![header("c1")]], four(), vec![vec![piece("e", "e")]]].concat()).unwrap_err();
    assert!(large.to_string().contains("larger than 20 MiB"), "{large}");
}

#[test]
fn a_commit_may_have_as_many_files_as_the_limit_and_no_more() {
    let files = |count: usize| {
        let files = (0..count).map(|number| piece(&number.to_string(), ""));
        collect([header("c1")].into_iter().chain(files).chain([trailer()]).collect())
    };
    assert_eq!(files(FILES).unwrap().unwrap().files.len(), FILES);
    assert_eq!(files(FILES + 1), Err(CollectError::ManyFiles));
}
