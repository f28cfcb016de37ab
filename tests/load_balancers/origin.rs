//! A broker's Kubernetes API listener as the edge sees it: answers each request with itself, echoes after an upgrade.

use std::net::SocketAddr;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

pub(super) struct Origin {
    pub(super) address: SocketAddr,
    _task: AbortOnDropHandle<()>,
}

impl Origin {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        };
        Self { address, _task: AbortOnDropHandle::new(tokio::spawn(accepting)) }
    }
}

async fn serve(mut stream: TcpStream) -> Option<()> {
    loop {
        let (head, mut body) = read_head(&mut stream).await?;
        let lower = head.to_lowercase();
        let header = |name: &str| lower.lines().find_map(|line| line.strip_prefix(name).map(str::trim));
        if let Some(protocol) = header("upgrade:") {
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\
                 Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).await.ok()?;
            stream.write_all(&body).await.ok()?;
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.ok()?;
            return None;
        }
        if header("transfer-encoding:") == Some("chunked") {
            body = read_chunks(&mut stream, body).await?;
        } else {
            let length: usize = header("content-length:").unwrap_or("0").parse().ok()?;
            while body.len() < length {
                if stream.read_buf(&mut body).await.ok()? == 0 {
                    return None;
                }
            }
        }
        let said = [head.as_bytes(), &body].concat();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", said.len());
        stream.write_all(&[answer.as_bytes(), &said].concat()).await.ok()?;
    }
}

/// The body of chunks without trailers.
async fn read_chunks(stream: &mut TcpStream, mut raw: Vec<u8>) -> Option<Vec<u8>> {
    while !raw.ends_with(b"0\r\n\r\n") {
        if stream.read_buf(&mut raw).await.ok()? == 0 {
            return None;
        }
    }
    let mut body = Vec::new();
    let mut rest = &raw[..];
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?, 16).ok()?;
        if length == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(end + 2..end + 2 + length)?);
        rest = rest.get(end + 4 + length..)?;
    }
}

/// The head as text, and what was read behind it.
pub(super) async fn read_head(io: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut read = Vec::new();
    loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = read.split_off(end + 4);
            return Some((String::from_utf8(read).ok()?, rest));
        }
        if io.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
}
