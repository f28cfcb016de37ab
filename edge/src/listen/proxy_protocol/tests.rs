//! Headers byte by byte, as load balancers and strangers send them.

use super::*;
use tokio::io::AsyncWriteExt;

fn whole(size: usize, client: &str) -> Header {
    Header::Whole { size, client: Some(client.parse().unwrap()) }
}

fn second(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = V2.to_vec();
    bytes.extend([command, family]);
    bytes.extend((body.len() as u16).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn v4(tlvs: &[u8]) -> Vec<u8> {
    let mut body = vec![192, 0, 2, 7, 10, 0, 0, 1, 0xc0, 0x01, 0x01, 0xbb];
    body.extend(tlvs);
    body
}

#[test]
fn the_first_version_is_read() {
    for (line, client) in [
        ("PROXY TCP4 192.0.2.7 10.0.0.1 49153 443\r\n", Some("192.0.2.7:49153")),
        ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", Some("255.255.255.255:65535")),
        ("PROXY TCP4 192.0.2.7 10.0.0.1 0 443\r\n", Some("192.0.2.7:0")),
        ("PROXY TCP6 2001:db8::7 2001:db8::1 49153 443\r\n", Some("[2001:db8::7]:49153")),
        ("PROXY TCP6 ::ffff:192.0.2.7 ::1 1 443\r\n", Some("192.0.2.7:1")),
        ("PROXY UNKNOWN\r\n", None),
        ("PROXY UNKNOWN ffff:f...f:ffff anything at all\r\n", None),
    ] {
        let expected = Header::Whole { size: line.len(), client: client.map(|text| text.parse().unwrap()) };
        let with_more = format!("{line}GET / HTTP/1.1\r\n\r\n");
        assert_eq!(parse(with_more.as_bytes()).unwrap(), expected, "{line}");
        for cut in 0..line.len() {
            assert_eq!(parse(&line.as_bytes()[..cut]).unwrap(), Header::Incomplete, "{line} cut at {cut}");
        }
    }
}

#[test]
fn what_only_looks_like_the_first_version_is_refused() {
    for line in [
        "PROXY TCP4 192.0.2.7 10.0.0.1 49153\r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 49153 443 \r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 49153 443 x\r\n",
        "PROXY TCP4  192.0.2.7 10.0.0.1 49153 443\r\n",
        "PROXY TCP4 2001:db8::7 2001:db8::1 49153 443\r\n",
        "PROXY TCP6 192.0.2.7 10.0.0.1 49153 443\r\n",
        "PROXY TCP4 192.0.2.7 host 49153 443\r\n",
        "PROXY TCP4 192.0.2.07 10.0.0.1 49153 443\r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 65536 443\r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 +1 443\r\n",
        "PROXY TCP4 192.0.2.7 10.0.0.1 01 443\r\n",
        "PROXY UDP4 192.0.2.7 10.0.0.1 1 443\r\n",
        "PROXY tcp4 192.0.2.7 10.0.0.1 1 443\r\n",
        "PROXY UNKNOWNS\r\n",
        "PROXY \r\n",
        "PROXY TCP4 \u{e9} 10.0.0.1 1 443\r\n",
    ] {
        assert!(matches!(parse(line.as_bytes()), Err(ProxyError::Malformed(_))), "{line}");
    }
    let endless = format!("PROXY UNKNOWN {}", "x".repeat(200));
    assert!(matches!(parse(endless.as_bytes()), Err(ProxyError::Malformed(_))));
}

#[test]
fn the_second_version_is_read() {
    let mut v6 = Vec::from("2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
    v6.extend([0; 16]);
    v6.extend([0xc0, 0x01, 0x01, 0xbb]);
    // PP2_TYPE_NOOP, and an AWS endpoint's id.
    let tlvs = [4, 0, 2, 0, 0, 0xea, 0, 3, 1, b'v', b'p'];
    for (bytes, client) in [
        (second(0x21, 0x11, &v4(&[])), Some("192.0.2.7:49153")),
        (second(0x21, 0x11, &v4(&tlvs)), Some("192.0.2.7:49153")),
        (second(0x21, 0x21, &v6), Some("[2001:db8::7]:49153")),
        (second(0x20, 0x00, &[]), None),
        (second(0x20, 0x11, &v4(&[])), None),
        (second(0x20, 0x12, &tlvs), None),
        (second(0x21, 0x00, &[]), None),
        (second(0x21, 0x00, &tlvs), None),
        (second(0x21, 0x31, &[b'/'; 216]), None),
        (second(0x21, 0x11, &v4(&[0; V2_MAX - 12])), Some("192.0.2.7:49153")),
    ] {
        let size = bytes.len();
        let expected = client.map_or(Header::Whole { size, client: None }, |client| whole(size, client));
        let mut with_more = bytes.clone();
        with_more.extend(b"\x16\x03\x01");
        assert_eq!(parse(&with_more).unwrap(), expected, "{bytes:?}");
        for cut in 0..size.min(64) {
            assert_eq!(parse(&bytes[..cut]).unwrap(), Header::Incomplete, "{bytes:?} cut at {cut}");
        }
    }
}

#[test]
fn what_only_looks_like_the_second_version_is_refused() {
    for bytes in [
        second(0x11, 0x11, &v4(&[])),
        second(0x31, 0x11, &v4(&[])),
        second(0x22, 0x11, &v4(&[])),
        second(0x21, 0x12, &v4(&[])),
        second(0x21, 0x22, &[0; 36]),
        second(0x21, 0x11, &v4(&[])[..11]),
        second(0x21, 0x21, &[0; 35]),
        second(0x21, 0x11, &v4(&[0; V2_MAX])),
    ] {
        assert!(matches!(parse(&bytes), Err(ProxyError::Malformed(_))), "{:?}", &bytes[..20]);
    }
}

#[test]
fn other_openings_are_none() {
    for bytes in
        [&b"GET / HTTP/1.1\r\n"[..], b"PRI * HTTP/2.0", b"\x16\x03\x01", b"PROXYTCP4", b"\r\n\r\n\r\n", b"\0"]
    {
        assert_eq!(parse(bytes).unwrap(), Header::None, "{bytes:?}");
    }
}

#[tokio::test]
async fn what_follows_the_header_is_kept() {
    let limit = Duration::from_secs(10);
    let mut io = &b"PROXY TCP4 192.0.2.7 10.0.0.1 1 443\r\nGET /"[..];
    let mut read = BytesMut::new();
    let client = take(&mut io, &mut read, true, limit).await.unwrap();
    assert_eq!((client, &read[..]), (Some("192.0.2.7:1".parse().unwrap()), &b"GET /"[..]));

    let mut read = BytesMut::new();
    assert_eq!(take(&mut &b"GET /"[..], &mut read, false, limit).await.unwrap(), None);
    assert_eq!(&read[..], b"GET /");
    let missing = take(&mut &b"GET /"[..], &mut BytesMut::new(), true, limit).await;
    assert!(matches!(missing, Err(ProxyError::Missing)));
    let silent = take(&mut &b""[..], &mut BytesMut::new(), true, limit).await;
    assert!(matches!(silent, Err(ProxyError::Silent)));
    let cut = take(&mut &b"PROXY TC"[..], &mut BytesMut::new(), false, limit).await;
    assert!(matches!(cut, Err(ProxyError::Truncated)));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_is_for_the_whole_header() {
    let (mut near, mut far) = tokio::io::duplex(64);
    tokio::spawn(async move {
        for byte in b"PROXY TCP4 192.0.2.7 10.0.0.1 1 443\r\n" {
            near.write_all(&[*byte]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let begin = tokio::time::Instant::now();
    let taken = take(&mut far, &mut BytesMut::new(), true, Duration::from_secs(15)).await;
    assert!(matches!(taken, Err(ProxyError::TooSlow(_))));
    assert_eq!(begin.elapsed(), Duration::from_secs(15));
}

#[test]
fn no_bytes_whatever_end_the_process() {
    let seeds = [
        b"PROXY TCP4 192.0.2.7 10.0.0.1 49153 443\r\n".to_vec(),
        b"PROXY TCP6 2001:db8::7 2001:db8::1 49153 443\r\n".to_vec(),
        second(0x21, 0x11, &v4(&[4, 0, 1, 0])),
        second(0x21, 0x21, &[7; 36]),
    ];
    let mut state = 0x9e37_79b9_u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize
    };
    for round in 0..40_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..random() % 4 {
            let at = random() % bytes.len();
            bytes[at] = random() as u8;
        }
        bytes.truncate(random() % (bytes.len() + 1));
        if let Ok(Header::Whole { size, .. }) = parse(&bytes) {
            assert!(size <= bytes.len(), "{bytes:?}");
        }
    }
}
