//! Sockets that change hands between two edges in this process: what arrives, who may ask, and what happens when a
//! successor fails. Two real edges do it in tests/edge/handover.rs.

use super::sockets::passed;
use super::*;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use tempfile::TempDir;

fn offered(names: &[&str]) -> (Offer, Vec<SocketAddr>) {
    let offer = Offer::default();
    let mut addresses = Vec::new();
    for name in names {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        addresses.push(listener.local_addr().unwrap());
        offer.add((*name).to_owned(), listener.into());
    }
    (offer, addresses)
}

#[test]
fn sockets_arrive_under_their_names_and_only_ready_ends_the_talk() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("edge.sock");
    let (offer, addresses) = offered(&["a:1", "a:1", "admin"]);
    let unix = UnixListener::bind(directory.path().join("listen.sock")).unwrap();
    offer.add("unix:/listen".to_owned(), unix.into());
    let giver = Giver::bind(&path, false).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(Giver::bind(&path, false), Err(HandoverError::Taken { .. })));
    let giving = std::thread::spawn(move || giver.give(&offer));

    // A successor that does not come up.
    drop(take(&path).unwrap().unwrap());
    let (taken, mut inherited) = take(&path).unwrap().unwrap();
    for address in &addresses[..2] {
        let listener = TcpListener::from(inherited.named("a:1").unwrap());
        assert_eq!(listener.local_addr().unwrap(), *address);
    }
    assert!(inherited.named("a:1").is_none());
    assert!(inherited.bound_to("other", addresses[2]).is_some(), "found by its address");
    assert_eq!(inherited.rest(), ["unix:/listen"]);
    assert!(!giving.is_finished());
    taken.ready().unwrap();
    giving.join().unwrap();
    assert!(!path.exists());
}

#[test]
fn without_a_running_edge_there_is_nothing_to_take() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("edge.sock");
    assert!(take(&path).unwrap().is_none());
    // One that was killed leaves its socket behind.
    drop(UnixListener::bind(&path).unwrap());
    assert!(take(&path).unwrap().is_none());
    Giver::bind(&path, false).unwrap();
}

#[test]
fn an_edge_that_has_withdrawn_gives_nothing() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("edge.sock");
    let (offer, _) = offered(&["a:1"]);
    offer.withdraw();
    let giver = Giver::bind(&path, false).unwrap();
    std::thread::spawn(move || giver.give(&offer));
    // It is told, and does not wait until it gives up by itself.
    let Err(HandoverError::Socket { source, .. }) = take(&path) else { panic!("something was given") };
    assert_eq!(source.kind(), std::io::ErrorKind::UnexpectedEof, "{source}");
}

#[test]
fn the_environment_of_systemd_is_read_with_care() {
    let me = Some(std::process::id().to_string());
    let text = |text: &str| Some(text.to_owned());
    assert!(passed(None, None, None).unwrap().rest().is_empty());
    assert!(passed(text("1"), text("5"), None).unwrap().rest().is_empty(), "meant for another process");
    assert!(matches!(passed(me.clone(), text("x"), None), Err(HandoverError::Environment { .. })));
    assert!(matches!(passed(me, text("100000"), None), Err(HandoverError::Environment { .. })));
}

#[test]
fn a_wildcard_of_ipv6_serves_one_of_ipv4() {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut inherited = Inherited::default();
    inherited.add("unknown".to_owned(), listener.into()).unwrap();
    assert!(inherited.bound_to("x", SocketAddr::from(([127, 0, 0, 1], port))).is_none());
    assert!(inherited.bound_to("x", SocketAddr::from(([0, 0, 0, 0], port))).is_some());
    let stream = std::os::unix::net::UnixStream::pair().unwrap().0;
    assert!(inherited.add("x".to_owned(), stream.into()).is_err());
}
