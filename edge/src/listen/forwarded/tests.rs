//! Chains as proxies write them, and as strangers would like them to be read.

use super::*;
use std::str::FromStr;

fn trust(dialect: Dialect) -> Trust {
    let networks = Networks::parse(&["10.0.0.0/8", "fd00::/8"].map(str::to_owned)).unwrap();
    let place = Place::Ip { address: "127.0.0.1:0".parse().unwrap(), v6_only: false };
    Trust { networks, dialect, access: Arc::default(), place }
}

fn of(dialect: Dialect, headers: &[(&str, &str)]) -> Origin {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_str(name).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    trust(dialect).origin("10.0.0.1:4000".parse().unwrap(), false, &map)
}

fn sent(origin: &Origin, name: &str) -> Option<String> {
    origin.headers().find(|(known, _)| *known == name).map(|(_, value)| value.to_str().unwrap().to_owned())
}

#[test]
fn the_client_is_the_rightmost_address_that_is_not_a_proxy_of_ours() {
    for (lines, client, chain) in [
        (&[][..], "10.0.0.1:4000", "10.0.0.1"),
        (&["192.0.2.7"], "192.0.2.7:0", "192.0.2.7, 10.0.0.1"),
        (&["192.0.2.7:5555"], "192.0.2.7:5555", "192.0.2.7, 10.0.0.1"),
        (&["192.0.2.7, 10.9.9.9"], "192.0.2.7:0", "192.0.2.7, 10.9.9.9, 10.0.0.1"),
        (&["192.0.2.7", "10.9.9.9"], "192.0.2.7:0", "192.0.2.7, 10.9.9.9, 10.0.0.1"),
        // What the client says of itself goes no further.
        (&["127.0.0.1, 10.0.0.3, 192.0.2.7"], "192.0.2.7:0", "192.0.2.7, 10.0.0.1"),
        (&["<script>", "192.0.2.7"], "192.0.2.7:0", "192.0.2.7, 10.0.0.1"),
        (&["\", 192.0.2.7"], "192.0.2.7:0", "192.0.2.7, 10.0.0.1"),
        (&["unknown"], "10.0.0.1:4000", "10.0.0.1"),
        (&["192.0.2.7, unknown, 10.0.0.2"], "10.0.0.2:0", "10.0.0.2, 10.0.0.1"),
        (&["10.0.0.3, 10.0.0.2"], "10.0.0.3:0", "10.0.0.3, 10.0.0.2, 10.0.0.1"),
        (&[" ,, 192.0.2.7 , ,"], "192.0.2.7:0", "192.0.2.7, 10.0.0.1"),
        (&["2001:db8::7"], "[2001:db8::7]:0", "2001:db8::7, 10.0.0.1"),
        (&["[2001:db8::7]:1, fd00::1"], "[2001:db8::7]:1", "2001:db8::7, fd00::1, 10.0.0.1"),
        (&["::ffff:192.0.2.7"], "192.0.2.7:0", "192.0.2.7, 10.0.0.1"),
    ] {
        let headers: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
        let origin = of(Dialect::XForwardedFor, &headers);
        assert_eq!(origin.client, client.parse().unwrap(), "{lines:?}");
        assert_eq!(sent(&origin, "x-forwarded-for").as_deref(), Some(chain), "{lines:?}");
        assert_eq!(sent(&origin, "forwarded"), None);
    }
}

#[test]
fn the_standard_header_is_read_with_its_quotes() {
    for (lines, client, forwarded) in [
        (&["for=192.0.2.7"][..], "192.0.2.7:0", "for=192.0.2.7;proto=http, for=10.0.0.1"),
        (
            &["For=192.0.2.7;Proto=HTTPS;by=10.0.0.1"],
            "192.0.2.7:0",
            "for=192.0.2.7;proto=https, for=10.0.0.1",
        ),
        (
            &["for=\"[2001:db8::7]:4711\";host=\"a,b;c\\\"\""],
            "[2001:db8::7]:4711",
            "for=\"[2001:db8::7]\";proto=http, for=10.0.0.1",
        ),
        (
            &["proto=https; for=192.0.2.7, for=10.0.0.2;proto=http"],
            "192.0.2.7:0",
            "for=192.0.2.7;proto=https, for=10.0.0.2, for=10.0.0.1",
        ),
        (&["for=\"192.0.2.7:80\""], "192.0.2.7:80", "for=192.0.2.7;proto=http, for=10.0.0.1"),
        // A client cannot hide behind a quote that it leaves open.
        (&["for=\", for=192.0.2.7"], "192.0.2.7:0", "for=192.0.2.7;proto=http, for=10.0.0.1"),
        (&["for=\"\\, for=192.0.2.7"], "192.0.2.7:0", "for=192.0.2.7;proto=http, for=10.0.0.1"),
        (&["for=unknown"], "10.0.0.1:4000", "for=10.0.0.1;proto=http"),
        (&["for=_hidden, for=10.0.0.2"], "10.0.0.2:0", "for=10.0.0.2;proto=http, for=10.0.0.1"),
        (&["for=192.0.2.7;for=192.0.2.8"], "10.0.0.1:4000", "for=10.0.0.1;proto=http"),
        (&["by=192.0.2.7"], "10.0.0.1:4000", "for=10.0.0.1;proto=http"),
        (&["for=192.0.2.7;nonsense"], "10.0.0.1:4000", "for=10.0.0.1;proto=http"),
    ] {
        let headers: Vec<_> = lines.iter().map(|line| ("forwarded", *line)).collect();
        let origin = of(Dialect::Forwarded, &headers);
        assert_eq!(origin.client, client.parse().unwrap(), "{lines:?}");
        assert_eq!(sent(&origin, "forwarded").as_deref(), Some(forwarded), "{lines:?}");
    }
}

#[test]
fn the_header_that_the_proxies_do_not_write_is_not_read() {
    let both = [("x-forwarded-for", "192.0.2.7"), ("forwarded", "for=192.0.2.8")];
    assert_eq!(of(Dialect::XForwardedFor, &both).client.ip(), IpAddr::from([192, 0, 2, 7]));
    assert_eq!(of(Dialect::Forwarded, &both).client.ip(), IpAddr::from([192, 0, 2, 8]));
}

#[test]
fn the_scheme_is_what_the_proxy_saw() {
    let proto =
        |value| sent(&of(Dialect::XForwardedFor, &[("x-forwarded-proto", value)]), "x-forwarded-proto");
    assert_eq!(proto("https").as_deref(), Some("https"));
    assert_eq!(proto("ftp").as_deref(), Some("http"));
    let direct = Origin::direct("[::ffff:192.0.2.7]:1".parse().unwrap(), true);
    assert_eq!(sent(&direct, "x-forwarded-proto").as_deref(), Some("https"));
    assert_eq!(sent(&direct, "x-forwarded-for").as_deref(), Some("192.0.2.7"));
}

#[test]
fn a_chain_without_end_is_cut() {
    let long = vec!["10.0.0.2"; 5000].join(",");
    let origin = of(Dialect::XForwardedFor, &[("x-forwarded-for", &long)]);
    assert_eq!(sent(&origin, "x-forwarded-for").unwrap().split(", ").count(), HOPS + 1);
    let wide = format!("{}1", "0".repeat(1000));
    assert_eq!(of(Dialect::XForwardedFor, &[("x-forwarded-for", &wide)]).client.port(), 4000);
}

#[test]
fn only_those_on_the_list_are_hops() {
    let mut trust = trust(Dialect::XForwardedFor);
    let unix = Place::Unix { path: "/run/edge.sock".into(), mode: 0o660 };
    let (proxy, stranger) = ([10, 1, 1, 1], [192, 0, 2, 1]);
    for (place, peer, named, hop) in [
        (trust.place.clone(), proxy, false, true),
        (trust.place.clone(), proxy, true, true),
        (trust.place.clone(), stranger, false, false),
        (trust.place.clone(), stranger, true, false),
        (unix.clone(), [127, 0, 0, 1], false, true),
        (unix.clone(), [127, 0, 0, 1], true, false),
        (unix.clone(), proxy, true, true),
        (unix, stranger, true, false),
    ] {
        trust.place = place;
        assert_eq!(trust.is_hop(peer.into(), named), hop, "{:?} {peer:?} {named}", trust.place);
    }
}

#[test]
fn no_value_whatever_breaks_the_chain_that_is_sent() {
    let alphabet = b"for=\"[]:;, \\.19af_%proto\t\xff";
    let mut state = 0x9e37_79b9_u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize
    };
    for round in 0..40_000 {
        let bytes: Vec<u8> = (0..random() % 40).map(|_| alphabet[random() % alphabet.len()]).collect();
        let mut headers = HeaderMap::new();
        let Ok(value) = HeaderValue::from_bytes(&bytes) else { continue };
        let dialect = if round % 2 == 0 { Dialect::XForwardedFor } else { Dialect::Forwarded };
        headers.append(if round % 2 == 0 { X_FORWARDED_FOR } else { FORWARDED }, value);
        let origin = trust(dialect).origin("10.0.0.1:4000".parse().unwrap(), false, &headers);
        for node in sent(&origin, "x-forwarded-for").unwrap().split(", ") {
            node.parse::<IpAddr>().unwrap();
        }
    }
}
