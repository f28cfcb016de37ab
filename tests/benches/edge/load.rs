//! What runs over a proxy while its CPU time is read: closed loops, a fixed number of them, for a fixed time.
//!
//! Between `measures` and `client`. Nothing here opens or closes connections while the clock runs, except `handshakes`.

use crate::client::{Connection, Dialler, Echo, Road};
use bytes::Bytes;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// So many loops of this kind at once, over so many connections.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) connections: usize,
    pub(crate) streams: usize,
}

/// What one loop asks for.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Call {
    Bare,
    Unary,
}

/// Connections that stay open for several runs.
pub(crate) struct Pool {
    connections: Vec<Arc<Connection>>,
    streams: usize,
}

impl Pool {
    pub(crate) async fn open(dialler: &Dialler, road: Road, port: u16, shape: Shape) -> Self {
        let mut connections = Vec::new();
        for number in 0..shape.connections {
            connections.push(Arc::new(dialler.open(road, port, number).await));
        }
        Self { connections, streams: shape.streams }
    }

    /// Requests for a while; how many.
    pub(crate) async fn requests(&self, call: Call, message: &Bytes, time: Duration) -> u64 {
        let until = Instant::now() + time;
        let mut loops = JoinSet::new();
        for connection in &self.connections {
            for _ in 0..self.streams {
                let (connection, message) = (connection.clone(), message.clone());
                loops.spawn(async move {
                    let mut count = 0;
                    while Instant::now() < until {
                        match call {
                            Call::Bare => connection.bare().await,
                            Call::Unary => connection.unary(&message).await,
                        }
                        count += 1;
                    }
                    count
                });
            }
        }
        loops.join_all().await.into_iter().sum()
    }

    /// The times of requests, one after another.
    pub(crate) async fn times(&self, message: &Bytes, time: Duration) -> Vec<Duration> {
        let until = Instant::now() + time;
        let mut times = Vec::with_capacity(100_000);
        let mut now = Instant::now();
        while now < until {
            self.connections[0].unary(message).await;
            let then = Instant::now();
            times.push(then - now);
            now = then;
        }
        times
    }

    /// Opens the streams that `messages` uses.
    pub(crate) async fn echoes(&self, message: &Bytes) -> Vec<Echo> {
        let mut echoes = Vec::new();
        for connection in &self.connections {
            for _ in 0..self.streams {
                echoes.push(connection.echo(message).await);
            }
        }
        echoes
    }
}

/// Messages there and back on every stream, one at a time each, for a while; how many came back.
pub(crate) async fn messages(echoes: &mut Vec<Echo>, message: &Bytes, time: Duration) -> u64 {
    let until = Instant::now() + time;
    let mut loops = JoinSet::new();
    for mut echo in echoes.drain(..) {
        let message = message.clone();
        loops.spawn(async move {
            let mut count = 0;
            while Instant::now() < until {
                echo.message(&message).await;
                count += 1;
            }
            (echo, count)
        });
    }
    let mut count = 0;
    for (echo, messages) in loops.join_all().await {
        echoes.push(echo);
        count += messages;
    }
    count
}

/// Opens connections, so many at once, for a while; how many, and how many tickets came with one of them.
pub(crate) async fn handshakes(dialler: &Dialler, port: u16, at_once: usize, time: Duration) -> (u64, u32) {
    let until = Instant::now() + time;
    let mut loops = JoinSet::new();
    for _ in 0..at_once {
        let dialler = dialler.clone();
        loops.spawn(async move {
            let (mut count, mut tickets) = (0, 0);
            while Instant::now() < until {
                tickets = dialler.touch(port).await.max(tickets);
                count += 1;
            }
            (count, tickets)
        });
    }
    loops.join_all().await.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1.max(one.1)))
}

/// Idle connections, each with so many streams over which one message went there and back.
pub(crate) struct Idle {
    connections: Vec<Connection>,
    echoes: Vec<Echo>,
}

impl Idle {
    pub(crate) async fn open(
        dialler: &Dialler,
        road: Road,
        port: u16,
        count: usize,
        message: &Bytes,
    ) -> Self {
        let mut idle = Self { connections: Vec::with_capacity(count), echoes: Vec::new() };
        let mut opening = JoinSet::new();
        for number in 0..count {
            // As many at once as a backlog of any size takes.
            if opening.len() == 32 {
                idle.keep(opening.join_next().await.expect("there is one").unwrap());
            }
            let (dialler, message) = (dialler.clone(), message.clone());
            opening.spawn(async move {
                let connection = dialler.open(road, port, number).await;
                let echo = connection.echo(&message).await;
                (connection, echo)
            });
        }
        for opened in opening.join_all().await {
            idle.keep(opened);
        }
        idle
    }

    fn keep(&mut self, (connection, echo): (Connection, Echo)) {
        self.connections.push(connection);
        self.echoes.push(echo);
    }

    /// Opens further streams on every connection.
    pub(crate) async fn grow(&mut self, further: usize, message: &Bytes) {
        for connection in &self.connections {
            for _ in 0..further {
                self.echoes.push(connection.echo(message).await);
            }
        }
    }

    /// Closes all of them in good order, and waits until they are.
    pub(crate) async fn close(self) {
        drop(self.echoes);
        let tasks: Vec<_> = self.connections.into_iter().map(|connection| connection.task).collect();
        for task in tasks {
            // A proxy that does not answer the goodbye is left alone.
            let abort = task.abort_handle();
            if tokio::time::timeout(Duration::from_secs(2), task).await.is_err() {
                abort.abort();
            }
        }
    }
}
