//! What the environment may say, and what becomes of it.

use super::*;
use postern_certs::CertFiles;

fn config(tls: bool) -> PrivateApiConfig {
    let tls = tls.then(|| CertFiles { certificate: "c".into(), key: "k".into() });
    let address = ListenAddress::Tcp(([0, 0, 0, 0], 8155).into());
    PrivateApiConfig {
        listen: ListenConfig { address, tls },
        authentication_secret_file: "s".into(),
        ca_certificate_file: None,
        max_connection_age: MAX_CONNECTION_AGE,
        own: OwnUrl::default(),
        server_name: None,
    }
}

fn read(config: &mut PrivateApiConfig, variables: &[(&str, &str)]) -> Result<(), String> {
    let lookup =
        |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    config.read_environment(lookup).map_err(|error| error.to_string())
}

fn tcp(address: &str) -> ListenAddress {
    ListenAddress::Tcp(address.parse().unwrap())
}

const INTERFACES: &[&str] = &["127.0.0.1", "10.1.2.3", "192.168.7.7", "fe80::1", "fd00::5"];

fn interfaces() -> io::Result<Vec<IpAddr>> {
    Ok(INTERFACES.iter().map(|address| address.parse().unwrap()).collect())
}

#[test]
fn other_brokers_are_told_what_the_environment_says_or_where_the_listener_is() {
    let everywhere = "0.0.0.0:8155";
    for (variables, tls, bound, wanted) in [
        (&[][..], false, tcp("10.0.0.1:8155"), "grpc://10.0.0.1:8155"),
        (&[], true, tcp("10.0.0.1:8155"), "grpcs://10.0.0.1:8155"),
        (&[], false, tcp("[fd00::1]:1"), "grpc://[fd00::1]:1"),
        (&[], false, ListenAddress::Unix("/run/kas.sock".into()), "unix:/run/kas.sock"),
        (&[(URL, "")], false, tcp("10.0.0.1:8155"), "grpc://10.0.0.1:8155"),
        (&[(URL, "grpc://kas-1.kas:81")], false, tcp(everywhere), "grpc://kas-1.kas:81"),
        (&[(URL, "unix:/run/other.sock")], true, tcp(everywhere), "unix:/run/other.sock"),
        // The port and the scheme belong to the network, not to a URL.
        (&[(URL, "grpc://a:1"), (PORT, "2"), (SCHEME, "grpcs")], false, tcp(everywhere), "grpc://a:1"),
        (&[(CIDR, "10.0.0.0/8")], false, tcp(everywhere), "grpc://10.1.2.3:8155"),
        (&[(CIDR, "10.0.0.0/8")], true, tcp(everywhere), "grpcs://10.1.2.3:8155"),
        (&[(CIDR, "192.168.7.7/32"), (PORT, "90")], false, tcp(everywhere), "grpc://192.168.7.7:90"),
        (&[(CIDR, "192.0.0.0/4"), (SCHEME, "grpcs")], false, tcp(everywhere), "grpcs://192.168.7.7:8155"),
        (&[(CIDR, "fd00::/8")], false, tcp("[::]:8155"), "grpc://[fd00::5]:8155"),
        (&[(CIDR, "0.0.0.0/0")], false, tcp(everywhere), "grpc://127.0.0.1:8155"),
        (&[(CIDR, "::/0")], false, tcp(everywhere), "grpc://[fe80::1]:8155"),
    ] {
        let mut config = config(tls);
        read(&mut config, variables).unwrap();
        assert_eq!(config.own_url(&bound, interfaces).unwrap().to_string(), wanted, "{variables:?}");
    }
}

#[test]
fn where_no_url_can_be_known_the_error_says_what_to_set() {
    for (variables, bound, wanted) in [
        (
            &[][..],
            tcp("[::]:8155"),
            "other brokers cannot be told where this one's private API is: private_api.listen.address is [::]:8155, every \
             address of this host; set OWN_PRIVATE_API_URL to the one they reach, such as grpc://10.0.0.1:8155, or \
             OWN_PRIVATE_API_CIDR to the network that it is in, such as 10.0.0.0/8",
        ),
        (
            &[(CIDR, "172.16.0.0/12")],
            tcp("0.0.0.0:1"),
            "no address of this host is in OWN_PRIVATE_API_CIDR (172.16.0.0/12); it has 127.0.0.1, 10.1.2.3, 192.168.7.7, \
             fe80::1, fd00::5",
        ),
        (
            &[(CIDR, "10.0.0.0/8")],
            ListenAddress::Unix("/run/kas.sock".into()),
            "OWN_PRIVATE_API_CIDR is of no use with private_api.listen.network unix; unset it, or set \
             OWN_PRIVATE_API_PORT to what forwards to it",
        ),
    ] {
        let mut config = config(false);
        read(&mut config, variables).unwrap();
        assert_eq!(config.own_url(&bound, interfaces).unwrap_err().to_string(), wanted);
    }
}

#[test]
fn every_variable_that_cannot_be_used_is_named() {
    for (variables, tls, wanted) in [
        (
            &[(URL, "grpc://a:1"), (CIDR, "10.0.0.0/8")][..],
            false,
            "OWN_PRIVATE_API_URL and OWN_PRIVATE_API_CIDR: both are set; one of the two is wanted",
        ),
        (
            &[(URL, "http://a:1")],
            false,
            "OWN_PRIVATE_API_URL: \"http://a:1\"; a broker's private URL is grpc://host:port, grpcs://host:port or \
             unix:/path",
        ),
        (
            &[(CIDR, "10.0.0.0/33"), (SCHEME, "http"), (PORT, "0"), (HOST, "no name")],
            false,
            "OWN_PRIVATE_API_SCHEME: \"http\"; grpc or grpcs is wanted\n\
             OWN_PRIVATE_API_PORT: \"0\"; a port is wanted\n\
             OWN_PRIVATE_API_CIDR: \"10.0.0.0/33\"; a network such as 10.0.0.0/8 is wanted\n\
             OWN_PRIVATE_API_HOST: \"no name\"; a name that brokers' certificates have is wanted",
        ),
        (
            &[(URL, "grpc://a:1")],
            true,
            "OWN_PRIVATE_API_URL: grpc; private_api.listen has a certificate, so grpcs is wanted",
        ),
        (
            &[(CIDR, "10.0.0.0/8"), (SCHEME, "grpc")],
            true,
            "OWN_PRIVATE_API_SCHEME: grpc; private_api.listen has a certificate, so grpcs is wanted",
        ),
    ] {
        assert_eq!(read(&mut config(tls), variables).unwrap_err(), wanted);
    }
    let mut named = config(true);
    read(&mut named, &[(HOST, "kas.example.com")]).unwrap();
    assert_eq!(named.server_name.as_deref(), Some("kas.example.com"));
}

#[test]
fn this_host_has_its_loopback_address() {
    let addresses = interface_addresses().unwrap();
    assert!(addresses.contains(&IpAddr::from([127, 0, 0, 1])), "{addresses:?}");
}
