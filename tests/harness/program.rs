//! Programs of `clients/`, in other languages and with libraries that are not ours: started, driven a line at a time.

use super::{PATIENCE, cache};
use serde_json::Value;
use std::{path::Path, process::Stdio};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// A program of `clients/`, driven a line at a time; gone when dropped.
pub(crate) struct Program {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Program {
    pub(crate) fn start(program: &Path, script: &str, arguments: &[&str]) -> Self {
        let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
        let mut command = Command::new(program);
        for proxy in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(proxy);
        }
        command
            .arg(clients.join(script))
            .args(arguments)
            .env("NODE_PATH", cache().join("node/node_modules"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("{} does not start ({error}); run `make test`", program.display())
        });
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { _child: child, input, output }
    }

    pub(crate) fn python(script: &str, arguments: &[&str]) -> Self {
        Self::start(&cache().join("python/bin/python"), script, arguments)
    }

    pub(crate) async fn line(&mut self) -> String {
        let line = timeout(PATIENCE, self.output.next_line()).await.expect("an answer in time");
        line.expect("readable").expect("the client ended; its own words are above")
    }

    /// Sends a command and returns the answer.
    pub(crate) async fn tell(&mut self, command: Value) -> Value {
        self.order(command).await;
        self.answer().await
    }

    pub(crate) async fn order(&mut self, command: Value) {
        self.input.write_all(format!("{command}\n").as_bytes()).await.expect("the client listens");
    }

    pub(crate) async fn answer(&mut self) -> Value {
        serde_json::from_str(&self.line().await).expect("JSON")
    }

    pub(crate) async fn expect_code(&mut self, command: Value, code: u32) -> Value {
        let answer = self.tell(command.clone()).await;
        assert_eq!(answer["code"], code, "{command} -> {answer}");
        answer
    }
}
