//! Samples, defaults, and the words of every kind of mistake.

use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("/etc/kas/kas.yaml")).map_err(|error| error.to_string())
}

#[test]
fn defaults_are_those_of_kas() {
    let config = parse("embedded: {identities_file: ids.yaml}").unwrap();
    assert_eq!(config.agents.listen.address.to_string(), "127.0.0.1:8150");
    assert_eq!(config.observability.listen.address.to_string(), "127.0.0.1:8151");
    assert!(
        matches!(config.provider, Provider::Embedded { identities_file } if identities_file == Path::new("/etc/kas/ids.yaml"))
    );
    assert!(config.kubernetes_api.is_none());
    assert!(!config.agents.websocket);
}

#[test]
fn an_empty_kubernetes_api_section_turns_it_on() {
    let with = |section: &str| {
        parse(&format!("embedded: {{identities_file: i}}\nagent:\n  kubernetes_api:{section}"))
    };
    for section in ["", " {}"] {
        let api = with(section).unwrap().kubernetes_api.unwrap();
        assert_eq!(api.listen.address.to_string(), "0.0.0.0:8154");
        assert_eq!(api.url_path_prefix, "/");
        assert_eq!(api.agent_wait, Duration::from_secs(20));
    }
    let api = with("\n    url_path_prefix: /k8s").unwrap().kubernetes_api.unwrap();
    assert_eq!(api.url_path_prefix, "/k8s/");
}
