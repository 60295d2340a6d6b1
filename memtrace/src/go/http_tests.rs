//! Against a local server that does whatever a hostile one would.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Instant;

use super::*;

/// Serves one connection after another with `answer`, until the test ends.
pub(crate) fn server(answer: impl Fn(&mut TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            answer(&mut stream);
        }
    });
    address
}

pub(crate) fn answering(status: &'static str, body: Vec<u8>) -> SocketAddr {
    server(move |stream| {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&body);
    })
}

fn endpoint(address: SocketAddr) -> Endpoint {
    format!("http://{address}").parse().unwrap()
}

fn impatient() -> Fetcher {
    Fetcher {
        connect_timeout: Duration::from_millis(300),
        head_timeout: Duration::from_millis(300),
        deadline: Duration::from_millis(700),
        body_bytes: 1 << 20,
        ..Fetcher::new(None)
    }
}

async fn get(address: SocketAddr) -> Result<Vec<u8>, FetchError> {
    impatient().get(&endpoint(address)).await
}

#[tokio::test]
async fn a_body_of_status_200_is_taken_whole() {
    let body = vec![b'x'; 100_003];
    assert_eq!(get(answering("200 OK", body.clone())).await.unwrap(), body);
}

#[tokio::test]
async fn only_status_200_is_taken_and_no_redirect_followed() {
    let elsewhere = answering("200 OK", b"heap profile:".to_vec());
    let redirect = server(move |stream| {
        let head = format!("HTTP/1.1 302 Found\r\nLocation: http://{elsewhere}/\r\n\r\n");
        let _ = stream.write_all(head.as_bytes());
    });
    for (address, code) in [
        (redirect, 302),
        (answering("404 Not Found", vec![]), 404),
        (answering("206 Partial Content", b"half".to_vec()), 206),
        (answering("500 Oops", vec![]), 500),
    ] {
        match get(address).await {
            Err(FetchError::Status(status)) => assert_eq!(status.as_u16(), code),
            other => panic!("{code}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn an_endless_body_stops_at_the_limit() {
    let endless = server(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(&[0; 65_536]).is_ok() {}
    });
    assert!(matches!(get(endless).await, Err(FetchError::TooLarge(1_048_576))));
}

#[tokio::test]
async fn a_claimed_length_beyond_the_limit_is_not_waited_for() {
    let liar = server(|stream| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nx";
        let _ = stream.write_all(head);
        std::thread::sleep(Duration::from_secs(5));
    });
    let start = Instant::now();
    assert!(get(liar).await.is_err());
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_slow_body_ends_at_the_deadline() {
    let slow = server(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let start = Instant::now();
    assert!(matches!(get(slow).await, Err(FetchError::TooSlow(_))));
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_slow_head_ends_at_its_own_deadline() {
    let slow = server(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        for i in 0..1000 {
            if stream.write_all(format!("X-{i}: y\r\n").as_bytes()).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    assert!(matches!(get(slow).await, Err(FetchError::NoAnswer(_))));
}

#[tokio::test]
async fn a_server_that_says_nothing_or_nonsense_is_an_answer_too() {
    let mute = server(|_| std::thread::sleep(Duration::from_secs(3)));
    assert!(matches!(get(mute).await, Err(FetchError::NoAnswer(_))));
    let redis = server(|stream| {
        let _ = stream.write_all(b"-ERR unknown command 'GET'\r\n");
    });
    assert!(matches!(get(redis).await, Err(FetchError::Http(_))));
    let endless_head = server(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(b"X-Filler: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n").is_ok() {}
    });
    assert!(get(endless_head).await.is_err());
    let broken = server(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf");
    });
    assert!(matches!(get(broken).await, Err(FetchError::Broken(_))));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(matches!(get(nobody).await, Err(FetchError::Connect(_))));
}

#[test]
fn urls_are_numeric_plain_and_complete() {
    let parse = |text: &str| text.parse::<Endpoint>().map(|endpoint| endpoint.to_string());
    for (given, meant) in [
        ("http://127.0.0.1:6060", "http://127.0.0.1:6060/debug/pprof/heap?debug=1"),
        ("http://localhost:6060/", "http://127.0.0.1:6060/debug/pprof/heap?debug=1"),
        ("http://[::1]:6060/x/heap", "http://[::1]:6060/x/heap?debug=1"),
        ("http://10.0.0.7/debug/pprof/heap?gc=1", "http://10.0.0.7:80/debug/pprof/heap?gc=1"),
    ] {
        assert_eq!(parse(given).as_deref(), Ok(meant));
    }
    for (given, why) in [
        ("https://127.0.0.1/", "plain http"),
        ("http://orders.svc:6060/", "numeric"),
        ("http://user:secret@127.0.0.1/", "credentials"),
        ("http:///heap", "URL"),
        ("gopher://127.0.0.1/", "plain http"),
    ] {
        let error = parse(given).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn candidates_are_reachable_addresses_with_the_customary_port_first() {
    let any4 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let any6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let fixed: IpAddr = "172.17.0.2".parse().unwrap();
    let found: Vec<String> = candidates(&[(any4, 8080), (any6, 6060), (any4, 6060), (fixed, 9090)])
        .iter()
        .map(Endpoint::address_text)
        .collect();
    assert_eq!(found, ["127.0.0.1:6060", "[::1]:6060", "127.0.0.1:8080", "172.17.0.2:9090"]);
}

/// Needs the right to make a network namespace.
#[tokio::test]
#[ignore = "live: needs root"]
async fn the_connection_is_made_inside_the_targets_network_namespace() {
    use std::sync::mpsc;
    // A thread moves into a namespace of its own, brings loopback up there and listens.
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.unwrap().success());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let namespace = File::open("/proc/thread-self/ns/net").unwrap();
        sender.send((listener.local_addr().unwrap(), namespace)).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ninside";
        stream.write_all(answer).unwrap();
    });
    let (address, namespace) = receiver.recv().unwrap();
    let own_before = std::fs::read_link("/proc/thread-self/ns/net").unwrap();

    assert!(matches!(get(address).await, Err(FetchError::Connect(_))), "reached from outside");
    let inside = Fetcher { network_namespace: Some(Arc::new(namespace)), ..impatient() };
    assert_eq!(inside.get(&endpoint(address)).await.unwrap(), b"inside");
    assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), own_before);
}
