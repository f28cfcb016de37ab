//! The HTTP proxy between us and GitLab, if the environment names one, as a kas takes it from there. Before it: GitLab's
//! address. After it: TCP to the proxy, and for `https` a tunnel through it. This machine itself is never behind a proxy.

use http::{HeaderValue, Uri};
use hyper_util::{
    client::{
        legacy::connect::proxy::Tunnel,
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioIo,
};
use std::{future::Future, io, net::IpAddr, pin::Pin, task};
use tokio::net::TcpStream;
use tower_service::Service;

/// A proxy that speaks HTTP.
#[derive(Debug)]
pub(super) struct Proxy {
    host: String,
    port: u16,
    uri: Uri,
    authorization: Option<HeaderValue>,
    /// For plain HTTP the proxy itself sends the request on; for TLS it only passes bytes.
    tunnels: bool,
}

impl Proxy {
    /// The proxy that the environment wants for this address.
    pub(super) fn of_environment(target: &Uri) -> Result<Option<Self>, &'static str> {
        Self::of(&Matcher::from_env(), target)
    }

    fn of(matcher: &Matcher, target: &Uri) -> Result<Option<Self>, &'static str> {
        let host = target.host().unwrap_or_default().trim_matches(['[', ']']);
        if host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) {
            return Ok(None);
        }
        matcher.intercept(target).map(|proxy| Self::new(&proxy, target)).transpose()
    }

    fn new(proxy: &Intercept, target: &Uri) -> Result<Self, &'static str> {
        let uri = proxy.uri();
        if uri.scheme_str().is_some_and(|scheme| scheme != "http") {
            return Err("HTTP_PROXY or HTTPS_PROXY names a proxy that is not http://");
        }
        Ok(Self {
            host: uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(80),
            uri: uri.clone(),
            authorization: proxy.basic_auth().cloned(),
            tunnels: target.scheme_str() == Some("https"),
        })
    }

    /// Whether requests are written to the proxy as such, with their whole URL.
    pub(super) fn reads_requests(&self) -> bool {
        !self.tunnels
    }

    /// What such requests carry.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.clone().filter(|_| self.reads_requests())
    }

    /// A connection to the proxy, and through it to `target` if that is how it is used.
    pub(super) async fn connect(&self, target: Uri) -> io::Result<TcpStream> {
        let tcp = Dial { host: self.host.clone(), port: self.port };
        if !self.tunnels {
            return tcp.connect().await;
        }
        let mut tunnel = Tunnel::new(self.uri.clone(), tcp);
        if let Some(authorization) = &self.authorization {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        let through = tunnel.call(target).await;
        through.map(TokioIo::into_inner).map_err(|error| {
            io::Error::other(format!(
                "the proxy {}:{} does not let us through: {error}",
                self.host, self.port
            ))
        })
    }
}

#[derive(Clone)]
struct Dial {
    host: String,
    port: u16,
}

impl Dial {
    async fn connect(self) -> io::Result<TcpStream> {
        TcpStream::connect((self.host.as_str(), self.port)).await
    }
}

impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<TcpStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<io::Result<()>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dial = self.clone();
        Box::pin(async move { dial.connect().await.map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
        net::TcpListener,
    };

    fn of(proxy: &str, no: &str, target: &str) -> Result<Option<Proxy>, &'static str> {
        let matcher = Matcher::builder().all(proxy).no(no).build();
        Proxy::of(&matcher, &target.parse().unwrap())
    }

    #[test]
    fn the_environment_decides_and_this_machine_is_never_behind_a_proxy() {
        for (no, target, through) in [
            ("", "https://gitlab.example.com/", true),
            ("", "http://gitlab.example.com/", true),
            ("example.com", "https://gitlab.example.com/", false),
            ("", "http://localhost:80/", false),
            ("", "http://127.0.0.1:80/", false),
            ("", "http://[::1]:80/", false),
        ] {
            assert_eq!(of("http://proxy:3128", no, target).unwrap().is_some(), through, "{no} {target}");
        }
        assert!(of("socks5://proxy:1080", "", "https://gitlab.example.com").is_err());
    }

    #[tokio::test]
    async fn https_goes_through_a_tunnel_with_the_proxys_credentials() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy =
            of(&format!("http://user:word@{address}"), "", "https://gitlab.example.com").unwrap().unwrap();
        assert!(!proxy.reads_requests() && proxy.authorization().is_none());
        let serve = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut tcp = BufReader::new(tcp);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                tcp.read_line(&mut head).await.unwrap();
            }
            tcp.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            (head, tcp)
        };
        let ((head, mut far), through) =
            tokio::join!(serve, proxy.connect("https://gitlab.example.com".parse().unwrap()));
        assert!(head.starts_with("CONNECT gitlab.example.com:443 HTTP/1.1\r\n"), "{head}");
        assert!(head.to_lowercase().contains("proxy-authorization: basic dxnlcjp3b3jk"), "{head}");
        let mut near = through.unwrap();
        near.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        far.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = of(&format!("http://{address}"), "", "https://gitlab.example.com").unwrap().unwrap();
        let serve = async {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tcp.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await.unwrap();
            tcp
        };
        let (_tcp, refused) =
            tokio::join!(serve, proxy.connect("https://gitlab.example.com".parse().unwrap()));
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(&address.to_string()) && refused.contains("authorization"), "{refused}");
    }
}
