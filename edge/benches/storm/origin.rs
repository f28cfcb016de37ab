//! A broker's agent listener that answers every stream's head and then says nothing: thousands of idle tunnels.

use bytes::Bytes;
use h2::server;
use http::Response;
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};

/// Serves on a thread of its own for as long as the process lives.
pub(crate) fn start() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(serve(tcp));
            }
        });
    });
    address
}

async fn serve(tcp: TcpStream) {
    let mut builder = server::Builder::new();
    builder.max_concurrent_streams(1024).initial_connection_window_size(8 << 20);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(tcp).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let mut body = request.into_body();
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let Ok(_out) = respond.send_response(head, false) else { return };
            while body.data().await.is_some_and(|data| data.is_ok()) {}
        });
    }
}
