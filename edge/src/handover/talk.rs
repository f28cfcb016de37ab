//! The two ends of a handover. Blocking, each on a thread that does nothing else.

use super::HandoverError;
use super::sockets::{Inherited, MOST, Offer};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg, sockopt::socket_peercred,
};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

const TAKE: &str = "take 1";
const READY: &str = "ready";
const YOURS: &str = "yours";
/// A word of the other side that it has ready.
const PROMPT: Duration = Duration::from_secs(5);
/// A successor has to reach its brokers before it is ready.
const STARTS: Duration = Duration::from_secs(60);
/// Names of [`MOST`] sockets.
const NAMES: usize = 32 * 1024;

/// The running edge's end.
#[derive(Debug)]
pub struct Giver {
    listener: UnixListener,
    path: PathBuf,
}

impl Giver {
    /// Makes the socket, readable for this user only. A socket that nobody answers at is replaced.
    pub fn bind(path: &Path, after_upgrade: bool) -> Result<Self, HandoverError> {
        let failed = |what| move |source| HandoverError::Socket { path: path.to_owned(), what, source };
        if !after_upgrade && UnixStream::connect(path).is_ok() {
            return Err(HandoverError::Taken { path: path.to_owned() });
        }
        // Made aside and moved, so that it is never there with other rights than it should have.
        let aside = path.with_extension(std::process::id().to_string());
        let _ = std::fs::remove_file(&aside);
        let listener = UnixListener::bind(&aside).map_err(failed("cannot be made"))?;
        let rights = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&aside, rights).map_err(failed("cannot be made private"))?;
        std::fs::rename(&aside, path).map_err(failed("cannot be put in place"))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Waits for a successor; returns when one serves. Attempts that fail are logged.
    pub fn give(self, offer: &Offer) {
        loop {
            let handed = match self.listener.accept() {
                Ok((stream, _)) => self.hand_over(stream, offer),
                Err(source) => {
                    let error = io::Error::from(source.kind());
                    tracing::warn!(%error, "accept on the handover socket failed");
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "a thread of its own, and nothing to wait for"
                    )]
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            match handed {
                Ok(()) => return,
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(tracing::field::display);
                    tracing::warn!(%error, cause, "no handover; this edge goes on");
                }
            }
        }
    }

    fn hand_over(&self, stream: UnixStream, offer: &Offer) -> Result<(), HandoverError> {
        let mut talk = Talk::new(stream, &self.path)?;
        talk.same_user()?;
        talk.hear(TAKE, PROMPT)?;
        talk.send(offer)?;
        talk.hear(READY, STARTS)?;
        // Before the successor puts its own there, which it does once it has heard.
        let _ = std::fs::remove_file(&self.path);
        // It serves, whether or not it hears.
        let _ = talk.say(YOURS);
        Ok(())
    }
}

/// The successor's end: sockets that are still served by the running edge.
#[derive(Debug)]
pub struct Taken {
    talk: Talk,
}

/// Asks the edge at `path` for its sockets; `None` if there is none.
pub fn take(path: &Path) -> Result<Option<(Taken, Inherited)>, HandoverError> {
    let stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(source) => {
            return Err(HandoverError::Socket { path: path.to_owned(), what: "cannot be opened", source });
        }
    };
    let mut talk = Talk::new(stream, path)?;
    talk.same_user()?;
    talk.say(TAKE)?;
    let inherited = talk.receive()?;
    Ok(Some((Taken { talk }, inherited)))
}

impl Taken {
    /// This process serves; the other one drains now.
    pub fn ready(mut self) -> Result<(), HandoverError> {
        self.talk.say(READY)?;
        self.talk.hear(YOURS, PROMPT)
    }
}

/// Lines, and one message with descriptors.
#[derive(Debug)]
struct Talk {
    stream: UnixStream,
    path: PathBuf,
}

impl Talk {
    fn new(stream: UnixStream, path: &Path) -> Result<Self, HandoverError> {
        let talk = Self { stream, path: path.to_owned() };
        talk.stream.set_write_timeout(Some(PROMPT)).map_err(talk.failed("cannot be used"))?;
        talk.stream.set_read_timeout(Some(PROMPT)).map_err(talk.failed("cannot be used"))?;
        Ok(talk)
    }

    fn failed(&self, what: &'static str) -> impl Fn(io::Error) -> HandoverError + use<> {
        let path = self.path.clone();
        move |source| HandoverError::Socket { path: path.clone(), what, source }
    }

    fn odd(&self, what: impl Into<String>) -> HandoverError {
        HandoverError::Talk { path: self.path.clone(), what: what.into() }
    }

    fn same_user(&self) -> Result<(), HandoverError> {
        let peer = socket_peercred(&self.stream).map_err(|error| self.failed("has no peer")(error.into()))?;
        let (theirs, ours) = (peer.uid.as_raw(), rustix::process::geteuid().as_raw());
        if theirs == ours {
            return Ok(());
        }
        Err(HandoverError::Stranger { path: self.path.clone(), theirs, ours })
    }

    fn say(&mut self, word: &str) -> Result<(), HandoverError> {
        self.stream.write_all(format!("{word}\n").as_bytes()).map_err(self.failed("the other side is gone"))
    }

    fn hear(&mut self, word: &str, within: Duration) -> Result<(), HandoverError> {
        self.stream.set_read_timeout(Some(within)).map_err(self.failed("cannot be used"))?;
        let mut heard = vec![0; word.len() + 1];
        self.stream.read_exact(&mut heard).map_err(self.failed("the other side ended the talk"))?;
        if heard.strip_suffix(b"\n") != Some(word.as_bytes()) {
            return Err(self.odd(format!("expected `{word}`")));
        }
        Ok(())
    }

    fn send(&mut self, offer: &Offer) -> Result<(), HandoverError> {
        let sockets = offer.sockets();
        if sockets.is_empty() || sockets.len() > MOST {
            return Err(self.odd(format!("{} sockets cannot be handed over", sockets.len())));
        }
        let names: Vec<&str> = sockets.iter().map(|(name, _)| name.as_str()).collect();
        let names = serde_json::to_vec(&names).expect("a list of texts is JSON");
        let length = (names.len() as u32).to_be_bytes();
        let descriptors: Vec<_> = sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits = control.push(SendAncillaryMessage::ScmRights(&descriptors));
        debug_assert!(fits, "there is room for as many");
        // The descriptors travel with the first byte, so all of them with the length.
        let sent = sendmsg(&self.stream, &[IoSlice::new(&length)], &mut control, SendFlags::NOSIGNAL)
            .map_err(|error| self.failed("sockets cannot be sent")(error.into()))?;
        self.stream
            .write_all(&length[sent..])
            .and_then(|()| self.stream.write_all(&names))
            .map_err(self.failed("the other side is gone"))
    }

    fn receive(&mut self) -> Result<Inherited, HandoverError> {
        let mut length = [0; 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(&self.stream, &mut [IoSliceMut::new(&mut length)], &mut control, RecvFlags::CMSG_CLOEXEC)
                .map_err(|error| self.failed("the running edge does not answer")(error.into()))?;
        let mut sockets: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                sockets.extend(descriptors);
            }
        }
        let lost = self.failed("the running edge ended the talk");
        self.stream.read_exact(&mut length[received.bytes..]).map_err(&lost)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > NAMES {
            return Err(self.odd("the names of the sockets are too long"));
        }
        let mut names = vec![0; length];
        self.stream.read_exact(&mut names).map_err(&lost)?;
        let names: Vec<String> = serde_json::from_slice(&names)
            .map_err(|_| self.odd("the names of the sockets cannot be read"))?;
        if names.len() != sockets.len() {
            return Err(self.odd(format!("{} names came with {} sockets", names.len(), sockets.len())));
        }
        let mut inherited = Inherited::default();
        for (name, socket) in names.into_iter().zip(sockets) {
            inherited.add(name, socket)?;
        }
        Ok(inherited)
    }
}
