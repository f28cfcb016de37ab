//! Why Redis cannot be used: the errors of all of [`super`], each with the server that it is about. No password is in
//! any of them, nor an address that may hold one.

use postern_certs::CertError;
use std::{error::Error, fmt::Write, io, path::PathBuf, sync::Arc, time::Duration};

/// The message of an error and of everything that caused it, in one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.contains(&text) {
            let _ = write!(line, ": {text}");
        }
        source = cause.source();
    }
    line
}

/// Why Redis cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RedisError {
    /// An address is no `host:port`. It is not shown, for it may be a URL with a password.
    #[error("{0} is not host:port; a URL is not wanted here")]
    Address(&'static str),
    /// No sentinel is named.
    #[error("redis.sentinel.addresses is empty; name at least one sentinel as host:port")]
    NoSentinels,
    /// No node of a cluster is named.
    #[error("redis.cluster.addresses is empty; name at least one node as host:port")]
    NoNodes,
    /// A password file is missing or unreadable.
    #[error("cannot read the Redis password file {}", .path.display())]
    PasswordFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: Arc<io::Error>,
    },
    /// A password file holds nothing but perhaps a newline, or no UTF-8.
    #[error("the Redis password file {} {what}", .path.display())]
    BadPassword {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A file named for TLS cannot be used.
    #[error("redis.tls")]
    Files(#[source] Arc<CertError>),
    /// There is no connection.
    #[error("cannot connect to Redis at {server}; is it up, and may this host reach it?")]
    Connect {
        /// Its address.
        server: String,
        /// What the system says.
        #[source]
        source: Arc<io::Error>,
    },
    /// There is a connection, but TLS failed on it.
    #[error("TLS with Redis at {server}: {what}")]
    Tls {
        /// Its address.
        server: String,
        /// What is wrong, and what to do about it.
        what: String,
    },
    /// Dialling took longer than `dial_timeout`, or than the caller waits.
    #[error("Redis at {server} does not answer within {limit:?}; is it up, and may this host reach it?")]
    Slow {
        /// Its address.
        server: String,
        /// How long that is.
        limit: Duration,
    },
    /// It wants another user name or password than ours.
    #[error("Redis at {server} refuses the user name or password; check username and password_file")]
    Refused {
        /// Its address.
        server: String,
        /// What Redis or its client library says.
        #[source]
        source: ::redis::RedisError,
    },
    /// No sentinel answers, or none knows the master; the source is what the last one said.
    #[error("no sentinel names the master {master_name}")]
    NoMaster {
        /// `redis.sentinel.master_name`.
        master_name: String,
        /// Why the last one does not.
        #[source]
        source: Option<Box<RedisError>>,
    },
    /// No node of a cluster answers, or none knows the cluster; the source is what the last one said.
    #[error("no node tells which one serves what at {server}; is it a cluster, and up?")]
    NoSlots {
        /// Those that the configuration names.
        server: String,
        /// Why the last one does not.
        #[source]
        source: Option<Box<RedisError>>,
    },
    /// A part of the keys has no master.
    #[error("no node of the Redis cluster serves slot {slot}; is one of its masters down?")]
    NotServed {
        /// Of 16384.
        slot: u16,
    },
    /// The connection ended soon after it was opened, more than once. It is opened again in a moment.
    #[error("Redis at {server} ends connections soon after they are opened; its log says why")]
    Lost {
        /// Its address.
        server: String,
    },
    /// No answer to a command in time. The connection is given up, for what is on it would come too late.
    #[error("Redis at {server} does not answer a command within {limit:?}")]
    Silent {
        /// Its address.
        server: String,
        /// `write_timeout` and `read_timeout` together, or what the caller allows if that is less.
        limit: Duration,
    },
    /// A command failed, or the connection did while it ran.
    #[error("a command failed at Redis at {server}")]
    Failed {
        /// Its address.
        server: String,
        /// What Redis or its client library says.
        #[source]
        source: ::redis::RedisError,
    },
}
