//! Which road a request takes. One pure function for the HTTP path and for tunnel streams alike.
//!
//! After `transport`, before `token`. Looks at the head only; knows no addresses and no limits.

use http::header::{CONTENT_TYPE, UPGRADE};
use http::{HeaderMap, Version};

const TUNNEL: &str = "/gitlab.agent.reverse_tunnel.rpc.ReverseTunnel/Connect";
const CONFIGURATION: &str = "/gitlab.agent.agent_configuration.rpc.AgentConfiguration/GetConfiguration";
const MANIFESTS: &str = "/gitlab.agent.gitops.rpc.Gitops/GetObjectsToSynchronize";
const VIEWS: &str = "/postern.agent.AgentReports/PushViews";

/// Methods whose streams last, mostly idle.
pub(crate) const LASTING: [&str; 4] = [TUNNEL, CONFIGURATION, MANIFESTS, VIEWS];

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// gRPC, to a broker's agent listener over HTTP/2.
    Agents,
    /// Everything else, to a broker's Kubernetes API listener over HTTP/1.1.
    KubernetesApi,
}

impl Route {
    /// As it stands in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agents => "agents",
            Self::KubernetesApi => "kubernetes_api",
        }
    }
}

/// What a stream is for, as far as limits and drain must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A tunnel that waits for its request. Opening the next one is no new connection.
    Tunnel,
    /// A subscription, in either direction, that mostly waits; its agent takes it up elsewhere without loss.
    Subscription,
    /// Work that somebody waits for.
    Call,
}

/// How the Kubernetes API connection changes its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade {
    None,
    WebSocket,
    /// SPDY/3.1 of older kubectl, or anything else that is not a WebSocket and that `Connection` announces.
    Other,
}

/// What was decided for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    pub route: Route,
    pub purpose: Purpose,
    pub upgrade: Upgrade,
}

/// Chooses the road of a request.
pub fn decide(version: Version, path: &str, headers: &HeaderMap) -> Decision {
    let route = if is_grpc(headers) { Route::Agents } else { Route::KubernetesApi };
    let purpose = match (route, path) {
        (Route::Agents, TUNNEL) => Purpose::Tunnel,
        (Route::Agents, CONFIGURATION | MANIFESTS | VIEWS) => Purpose::Subscription,
        _ => Purpose::Call,
    };
    let upgrade = match headers.get(UPGRADE) {
        Some(value)
            if version == Version::HTTP_11 && postern_wire::http::upgrade_protocol(headers).is_some() =>
        {
            if value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket") {
                Upgrade::WebSocket
            } else {
                Upgrade::Other
            }
        }
        _ => Upgrade::None,
    };
    Decision { route, purpose, upgrade }
}

/// `application/grpc`, with a suffix (`+proto`) or parameters, but not `application/grpc-web`.
fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else { return false };
    let prefix = b"application/grpc";
    let value = value.as_bytes();
    value.len() >= prefix.len()
        && value[..prefix.len()].eq_ignore_ascii_case(prefix)
        && matches!(value.get(prefix.len()), None | Some(b'+' | b';' | b' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(version: Version, path: &str, headers: &[(&'static str, &str)]) -> Decision {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        decide(version, path, &map)
    }

    #[test]
    fn grpc_goes_to_the_agent_listener_and_all_else_to_the_kubernetes_api() {
        for (content_type, route) in [
            ("application/grpc", Route::Agents),
            ("application/grpc+proto", Route::Agents),
            ("Application/GRPC; charset=x", Route::Agents),
            ("application/grpc-web", Route::KubernetesApi),
            ("application/json", Route::KubernetesApi),
            ("application/apply-patch+yaml", Route::KubernetesApi),
        ] {
            let decision = of(Version::HTTP_2, "/x", &[("content-type", content_type)]);
            assert_eq!(decision.route, route, "{content_type}");
        }
        assert_eq!(of(Version::HTTP_11, "/api/v1/pods", &[]).route, Route::KubernetesApi);
    }

    #[test]
    fn only_grpc_can_be_a_tunnel_or_a_subscription() {
        let grpc = [("content-type", "application/grpc")];
        assert_eq!(of(Version::HTTP_2, TUNNEL, &grpc).purpose, Purpose::Tunnel);
        assert_eq!(of(Version::HTTP_2, CONFIGURATION, &grpc).purpose, Purpose::Subscription);
        assert_eq!(of(Version::HTTP_2, MANIFESTS, &grpc).purpose, Purpose::Subscription);
        assert_eq!(of(Version::HTTP_2, VIEWS, &grpc).purpose, Purpose::Subscription);
        assert_eq!(of(Version::HTTP_2, "/a.B/C", &grpc).purpose, Purpose::Call);
        assert_eq!(of(Version::HTTP_2, TUNNEL, &[]).purpose, Purpose::Call);
    }

    #[test]
    fn upgrades_exist_in_http_1_1_only() {
        let upgrade = |version, value| {
            of(version, "/", &[("connection", "keep-alive, Upgrade"), ("upgrade", value)]).upgrade
        };
        assert_eq!(of(Version::HTTP_11, "/", &[("upgrade", "SPDY/3.1")]).upgrade, Upgrade::None);
        assert_eq!(upgrade(Version::HTTP_11, "WebSocket"), Upgrade::WebSocket);
        assert_eq!(upgrade(Version::HTTP_11, "SPDY/3.1"), Upgrade::Other);
        assert_eq!(upgrade(Version::HTTP_2, "websocket"), Upgrade::None);
        assert_eq!(upgrade(Version::HTTP_10, "websocket"), Upgrade::None);
    }
}
