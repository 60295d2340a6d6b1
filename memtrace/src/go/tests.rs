use std::net::SocketAddr;

use super::http::tests::{answering, server};
use super::*;

const PROTO: &[u8] = include_bytes!("testdata/heap-go1.27.pb.gz");
const TEXT: &[u8] = include_bytes!("testdata/heap-go1.27.txt");

fn url(address: SocketAddr) -> GoProfileSource {
    format!("http://{address}").parse().unwrap()
}

async fn read(source: GoProfileSource, ports: &[SocketAddr]) -> Known<GoBooks> {
    let ports: Vec<_> = ports.iter().map(|address| (address.ip(), address.port())).collect();
    GoReader::new(source, None).read(|| ports).await
}

#[tokio::test]
async fn nothing_is_read_when_nothing_is_asked_for() {
    let mut reader = GoReader::new(GoProfileSource::Off, None);
    let books = reader.read(|| panic!("ports were looked for")).await;
    assert!(books.reason().unwrap().contains("--go-profile off"));
}

#[tokio::test]
async fn a_url_gives_the_profile_and_says_where_it_is_from() {
    let address = answering("200 OK", TEXT.to_vec());
    let books = read(url(address), &[]).await;
    let books = books.value().unwrap();
    assert!(books.inuse_bytes > 0 && books.memory.is_some());
    assert_eq!(books.source, format!("http://{address}/debug/pprof/heap?debug=1"));
}

#[tokio::test]
async fn a_file_may_hold_either_form() {
    let directory = tempfile::tempdir().unwrap();
    for body in [PROTO, TEXT] {
        let path = directory.path().join("heap");
        std::fs::write(&path, body).unwrap();
        let books = read(path.to_str().unwrap().parse().unwrap(), &[]).await;
        assert!(books.value().unwrap().inuse_bytes > 0);
    }
    let books = read("/no/such/file".parse().unwrap(), &[]).await;
    assert!(books.reason().unwrap().contains("/no/such/file"));
    let books = read("/dev/zero".parse().unwrap(), &[]).await;
    assert!(books.reason().unwrap().contains("larger than"));
}

#[tokio::test]
async fn auto_finds_the_port_that_serves_the_profile_and_remembers_it() {
    let wrong = answering("404 Not Found", vec![]);
    let right = answering("200 OK", TEXT.to_vec());
    let ports = vec![(wrong.ip(), wrong.port()), (right.ip(), right.port())];
    let mut reader = GoReader::new(GoProfileSource::Auto, None);
    let books = reader.read(move || ports).await;
    assert!(books.value().unwrap().source.contains(&right.to_string()));
    let again = reader.read(|| panic!("ports were looked for again")).await;
    assert_eq!(again, books);
}

#[tokio::test]
async fn auto_names_everything_it_tried() {
    let missing = answering("404 Not Found", vec![]);
    let page = answering("200 OK", b"<html>hello</html>".to_vec());
    let cut = answering("200 OK", PROTO[..PROTO.len() / 2].to_vec());
    let nonsense = server(|stream| {
        use std::io::Write;
        let _ = stream.write_all(b"+PONG\r\n");
    });
    let books = read(GoProfileSource::Auto, &[missing, page, cut, nonsense]).await;
    let reason = books.reason().unwrap();
    for (address, why) in
        [(missing, "404"), (page, "<html>"), (cut, "damaged"), (nonsense, "not an HTTP answer")]
    {
        let told = reason.split("; ").find(|part| part.contains(&address.to_string()));
        assert!(told.is_some_and(|told| told.contains(why)), "{address} {why}: {reason}");
    }
    let books = read(GoProfileSource::Auto, &[]).await;
    assert!(books.reason().unwrap().contains("listens on no TCP port"));
}

#[test]
fn the_argument_is_a_word_a_url_or_a_file() {
    let parse = |text: &str| text.parse::<GoProfileSource>();
    assert_eq!(parse("off"), Ok(GoProfileSource::Off));
    assert_eq!(parse("auto"), Ok(GoProfileSource::Auto));
    assert_eq!(parse("heap.pb.gz"), Ok(GoProfileSource::File(PathBuf::from("heap.pb.gz"))));
    assert!(matches!(parse("http://127.0.0.1:1/"), Ok(GoProfileSource::Url(_))));
    assert!(parse("https://127.0.0.1:1/").is_err());
    assert!(parse("").is_err());
}

#[test]
fn the_own_network_namespace_is_not_entered() {
    assert!(open_network_namespace(std::process::id()).unwrap().is_none());
    let error = open_network_namespace(u32::MAX).unwrap_err();
    assert!(error.contains("/proc/4294967295/ns/net"), "{error}");
}
