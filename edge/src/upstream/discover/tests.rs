//! What is found: names that resolve differently over time, and endpoints in all their conditions.

use super::*;
use std::cell::RefCell;
use std::collections::VecDeque;

fn address(last: u8) -> SocketAddr {
    ([10, 0, 0, last], 8150).into()
}

#[tokio::test(start_paused = true)]
async fn a_name_is_followed_and_its_last_good_answer_kept() {
    let failed = || Err(io::Error::other("no such name"));
    let answers = RefCell::new(VecDeque::from([
        failed(),
        Ok(vec![address(2), address(1)]),
        Ok(vec![address(1), address(2), address(2)]),
        failed(),
        Ok(Vec::new()),
        Ok(vec![address(3)]),
    ]));
    let every = Duration::from_secs(10);
    let asked = RefCell::new(Vec::new());
    let begin = tokio::time::Instant::now();
    let lookup = || {
        asked.borrow_mut().push(begin.elapsed());
        let answer = answers.borrow_mut().pop_front();
        async move {
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        }
    };
    let (tell, mut told) = watch::channel(Vec::<Found>::new());
    let seen = async {
        let mut seen = Vec::new();
        for _ in 0..2 {
            told.changed().await.unwrap();
            let found: Vec<_> = told.borrow_and_update().iter().map(|found| found.address.ip()).collect();
            seen.push((found, begin.elapsed()));
        }
        seen
    };
    let seen = tokio::select! {
        () = dns("brokers", every, lookup, tell) => unreachable!(),
        seen = seen => seen,
    };
    assert_eq!(seen[0].0, [address(1).ip(), address(2).ip()]);
    assert_eq!(seen[1].0, [address(3).ip()]);
    let asked = asked.into_inner();
    assert!(asked.len() >= 6);
    for pair in asked.windows(2) {
        let pause = pair[1] - pair[0];
        assert!((Duration::from_millis(8990)..Duration::from_millis(11_010)).contains(&pause), "{pause:?}");
    }
}

#[test]
fn endpoints_that_serve_are_found_and_those_that_end_are_leaving() {
    let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
        "addressType": "IPv4",
        "metadata": {"name": "broker-x"},
        "ports": [{"name": "api", "port": 8154}, {"name": "agents", "port": 8150}],
        "endpoints": [
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
            {"addresses": ["10.0.0.2"]},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.0.0.5"], "conditions": {"ready": false, "serving": false, "terminating": true}},
            {"addresses": ["not-an-address"], "conditions": {"ready": true}},
        ],
    }))
    .unwrap();
    let found = endpoints(&slice, &Port::Name("agents".to_owned()), "broker.postern.svc");
    let found: Vec<_> = found.iter().map(|found| (found.address, found.leaving)).collect();
    assert_eq!(found, [(address(1), false), (address(2), false), (address(4), true)]);
    assert!(endpoints(&slice, &Port::Name("other".to_owned()), "").is_empty());
    let numbered = endpoints(&slice, &Port::Number(8151), "");
    assert!(numbered.iter().all(|found| found.address.port() == 8151) && numbered.len() == 3);
}
