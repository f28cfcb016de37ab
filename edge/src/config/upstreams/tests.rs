//! What is written, and what it means.

use super::*;

fn meant(text: &str) -> Result<(Upstream, Upstream), Vec<String>> {
    let mut found = Problems(Vec::new());
    let file: FileUpstreams = serde_yaml::from_str(text).unwrap();
    let upstreams = file.meant(Path::new("/etc/postern"), &mut found);
    if found.0.is_empty() { Ok(upstreams) } else { Err(found.0.into_iter().map(|p| p.at).collect()) }
}

#[test]
fn each_source_and_protocol_is_understood() {
    let (agents, api) = meant(
        "agents:
  kubernetes: {namespace: postern, service: broker, port: agents}
  protocol: wss
  websocket_path: /-/kubernetes-agent/
  tls: {ca_file: ca.crt, certificate_file: /a.crt, key_file: a.key, server_name: kas.example}
  health: {port: 8151, every: 1s}
  ejection: {failures: 0, share: 40}
  load_factor: 1.5
  slow_start: 0s
  max_streams: 7
kubernetes_api:
  dns: {name: kas, port: 8154}
  protocol: https
  load_factor: 0",
    )
    .unwrap();
    assert_eq!(
        agents.source,
        Source::Kubernetes {
            namespace: "postern".to_owned(),
            service: "broker".to_owned(),
            port: Port::Name("agents".to_owned())
        }
    );
    assert_eq!((agents.protocol, agents.websocket_path.as_str()), (Protocol::Wss, "/-/kubernetes-agent/"));
    assert_eq!(agents.tls.ca_file.as_deref(), Some(Path::new("/etc/postern/ca.crt")));
    assert_eq!(agents.tls.certificate_file.as_deref(), Some(Path::new("/a.crt")));
    let health = agents.health.unwrap();
    assert_eq!((health.path.as_str(), health.every.as_secs(), health.within.as_secs()), ("/readiness", 1, 2));
    assert_eq!((agents.ejection.failures, agents.ejection.share.map(NonZeroU32::get)), (None, Some(40)));
    assert_eq!(agents.load_percent.map(NonZeroU32::get), Some(150));
    assert_eq!((agents.slow_start, agents.max_streams.map(NonZeroU32::get)), (Duration::ZERO, Some(7)));
    let dns = Source::Dns { name: "kas".to_owned(), port: 8154, every: Duration::from_secs(10) };
    assert_eq!((api.source, api.protocol, api.load_percent), (dns, Protocol::Tls, None));
    let (plain, absent) = meant("agents: {addresses: ['[::1]:8150']}").unwrap();
    assert_eq!(Upstream { source: plain.source.clone(), ..Upstream::default() }, plain);
    assert!(absent.is_empty());
    let Source::Addresses(addresses) = plain.source else { panic!("no addresses") };
    assert_eq!(addresses[0].host(), "::1");
}

#[test]
fn the_example_shows_the_defaults() {
    let example: serde_yaml::Value =
        serde_yaml::from_str(include_str!("../../../edge.example.yaml")).unwrap();
    let text = serde_yaml::to_string(&example["upstreams"]).unwrap();
    let (agents, api) = meant(&text).unwrap();
    assert_eq!(Upstream { source: agents.source.clone(), ..Upstream::default() }, agents);
    assert_eq!(Upstream { source: api.source.clone(), ..Upstream::default() }, api);
}

#[test]
fn what_cannot_be_meant_is_named() {
    let agents = |more: &str| meant(&format!("agents: {{addresses: ['kas:1'], {more}}}")).unwrap_err();
    for (more, at) in [
        ("dns: {name: kas, port: 1}", "upstreams.agents"),
        ("protocol: https", "upstreams.agents.protocol"),
        ("tls: {}", "upstreams.agents.tls"),
        ("protocol: wss, tls: {key_file: x}", "upstreams.agents.tls"),
        ("protocol: h2s, tls: {server_name: 'a:1'}", "upstreams.agents.tls.server_name"),
        ("protocol: ws, websocket_path: x", "upstreams.agents.websocket_path"),
        ("websocket_path: /", "upstreams.agents.websocket_path"),
        ("protocol: h2s, websocket_path: /", "upstreams.agents.websocket_path"),
        ("load_factor: 0.5", "upstreams.agents.load_factor"),
        ("health: {port: 0}", "upstreams.agents.health.port"),
        ("health: {port: 1, path: ready}", "upstreams.agents.health.path"),
        ("health: {port: 1, every: 1ms}", "upstreams.agents.health.every"),
        ("ejection: {share: 101}", "upstreams.agents.ejection.share"),
        ("ejection: {base: 0s}", "upstreams.agents.ejection.base"),
    ] {
        assert_eq!(agents(more), [at], "{more}");
    }
    for (more, at) in [
        ("websocket_path: /", "upstreams.kubernetes_api.websocket_path"),
        ("max_pending: 1", "upstreams.kubernetes_api.max_pending"),
        ("protocol: wss", "upstreams.kubernetes_api.protocol"),
        ("tls: {}", "upstreams.kubernetes_api.tls"),
    ] {
        let both =
            format!("{{agents: {{addresses: ['kas:1']}}, kubernetes_api: {{addresses: ['kas:2'], {more}}}}}");
        assert_eq!(meant(&both).unwrap_err(), [at], "{more}");
    }
    assert_eq!(
        meant("agents: {dns: {name: 'kas:1', port: 0, every: 10ms}}").unwrap_err(),
        ["upstreams.agents.dns.every", "upstreams.agents.dns.name", "upstreams.agents.dns.port"]
    );
    assert_eq!(
        meant("agents: {kubernetes: {namespace: A, service: '', port: 0}}").unwrap_err(),
        [
            "upstreams.agents.kubernetes.namespace",
            "upstreams.agents.kubernetes.service",
            "upstreams.agents.kubernetes.port"
        ]
    );
}
