//! Openings in pieces, junk, silence: what [`sniff`](super::sniff) makes of them and how soon.

use std::time::Duration;

use bytes::BytesMut;
use http::{Method, StatusCode, Version, header};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    time::Instant,
};

use super::{Head, Limits, Opening, PREFACE, Rewound, SniffError, sniff};

/// What is made of `bytes` by a peer that then stays silent but connected.
async fn sniffed(bytes: &[u8]) -> Result<Opening, SniffError> {
    let (mut peer, mut io) = duplex(256 * 1024);
    peer.write_all(bytes).await.unwrap();
    sniff(&mut io, Limits::default()).await
}

async fn sniffed_in_single_bytes(bytes: &[u8]) -> Result<Opening, SniffError> {
    let (mut peer, mut io) = duplex(1);
    let (opening, _) = tokio::join!(sniff(&mut io, Limits::default()), peer.write_all(bytes));
    opening
}

fn http1(opening: Result<Opening, SniffError>) -> (Head, BytesMut) {
    match opening {
        Ok(Opening::Http1 { head, read }) => (head, read),
        other => panic!("not HTTP/1: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn http2_is_known_by_its_whole_preface() {
    let mut bytes = PREFACE.to_vec();
    assert!(
        matches!(sniffed_in_single_bytes(&bytes).await, Ok(Opening::Http2 { read }) if read == PREFACE[..])
    );
    bytes.extend_from_slice(b"\0\0\0\x04\0\0\0\0\0");
    assert!(matches!(sniffed(&bytes).await, Ok(Opening::Http2 { read }) if read == bytes[..]));
}

#[tokio::test(start_paused = true)]
async fn an_http1_head_is_read_whole_and_nothing_of_it_is_lost() {
    let bytes =
        b"GET /a%2Fb?c=d HTTP/1.1\r\nHost: kas.example.com\r\nConnection: keep-alive, Upgrade\r\n\r\nrest";
    let (head, read) = http1(sniffed(bytes).await);
    assert_eq!((head.method.clone(), head.version), (Method::GET, Version::HTTP_11));
    assert_eq!((head.target.as_str(), head.path()), ("/a%2Fb?c=d", "/a%2Fb"));
    assert_eq!(head.host(), Some("kas.example.com"));
    assert!(head.has_token(header::CONNECTION, "upgrade"));
    assert_eq!(read, bytes[..]);
    assert_eq!(&read[head.size()..], b"rest");

    let (slow, read) = http1(sniffed_in_single_bytes(&bytes[..bytes.len() - 4]).await);
    assert_eq!((slow.size(), read.len()), (head.size(), head.size()));
}

#[tokio::test(start_paused = true)]
async fn bare_line_feeds_and_leading_empty_lines_are_forgiven() {
    let (head, _) = http1(sniffed(b"\r\nPOST / HTTP/1.0\nHost: a\n\n").await);
    assert_eq!((head.method, head.version), (Method::POST, Version::HTTP_10));
}

#[tokio::test(start_paused = true)]
async fn junk_is_refused_at_once_even_when_the_peer_stays() {
    let began = Instant::now();
    let long_word = vec![b'A'; 200];
    for junk in [
        &b"\0\x01\x02\x03"[..],
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b" GET / HTTP/1.1\r\n",
        b"GET / HTTP/3.0\r\n",
        b"GET / HTTP/1.1\r\nbad name: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n\r\n",
        b"\r\n\r\n",
        &long_word,
    ] {
        let error = sniffed(junk).await.expect_err("junk");
        assert!(matches!(error, SniffError::Junk { .. }), "{}: {error:?}", junk.escape_ascii());
        let answer = String::from_utf8(error.answer().unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_tls_client_on_a_plain_port_is_named() {
    let error = sniffed(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03").await.expect_err("TLS");
    assert!(matches!(error, SniffError::Tls));
    assert!(error.to_string().contains("TLS handshake on a port without TLS"));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_is_for_the_whole_head_not_for_each_read() {
    let (mut peer, mut io) = duplex(64);
    let began = Instant::now();
    let trickle = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            peer.write_all(b"A").await.unwrap();
        }
    };
    let error = tokio::select! {
        opening = sniff(&mut io, Limits::default()) => opening.expect_err("too slow"),
        () = trickle => unreachable!("endless"),
    };
    assert!(matches!(error, SniffError::TooSlow { read: 9 | 10, .. }), "{error:?}");
    assert_eq!(began.elapsed(), Duration::from_secs(10));
    assert_eq!(error.status(), Some(StatusCode::REQUEST_TIMEOUT));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_hangs_up_gets_no_answer() {
    let silent = sniff(&mut &b""[..], Limits::default()).await.expect_err("silent");
    assert!(matches!(silent, SniffError::Silent) && silent.answer().is_none());
    let cut = sniff(&mut &b"GET / HTT"[..], Limits::default()).await.expect_err("cut");
    assert!(matches!(cut, SniffError::Truncated { read: 9 }) && cut.answer().is_none());
}

#[tokio::test(start_paused = true)]
async fn heads_too_long_or_with_too_many_lines_are_refused_with_431() {
    let mut long = b"GET / HTTP/1.1\r\nX: ".to_vec();
    long.resize(70 * 1024, b'x');
    let mut many = b"GET / HTTP/1.1\r\n".to_vec();
    for _ in 0..101 {
        many.extend_from_slice(b"a: b\r\n");
    }
    many.extend_from_slice(b"\r\n");
    let too_long = sniffed(&long).await.expect_err("too long");
    assert!(matches!(too_long, SniffError::TooLong { limit: 65_536 }), "{too_long:?}");
    let too_many = sniffed(&many).await.expect_err("too many");
    assert!(matches!(too_many, SniffError::TooManyHeaders { limit: 100 }), "{too_many:?}");
    for error in [too_long, too_many] {
        assert_eq!(error.status(), Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
    }
}

#[tokio::test]
async fn debug_output_shows_no_secret() {
    let bytes =
        b"GET /?private_token=hush HTTP/1.1\r\nAuthorization: Bearer hush\r\nX-Token: hush\r\n\r\nhush";
    let opening = sniffed(bytes).await;
    assert!(!format!("{opening:?}").contains("hush"), "{opening:?}");
    let (head, read) = http1(opening);
    assert_eq!(format!("{:?}", head.headers[header::AUTHORIZATION]), "Sensitive");
    let rewound = Rewound::new((), read);
    assert!(!format!("{rewound:?}").contains("hush"), "{rewound:?}");
}

#[tokio::test]
async fn rewound_gives_the_bytes_back_first_then_frees_them() {
    let mut io = Rewound::new(&b" world"[..], BytesMut::from(&b"hello"[..]));
    let mut first = [0; 3];
    io.read_exact(&mut first).await.unwrap();
    let mut rest = String::new();
    io.read_to_string(&mut rest).await.unwrap();
    assert_eq!((&first, rest.as_str()), (b"hel", "lo world"));
    assert_eq!(io.into_inner().1.capacity(), 0);
}
