//! Directories and servers that have the file, have another one, or have no good in mind.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "00000000000000000000000000000000000000ff";

fn id(text: &str) -> BuildId {
    BuildId::parse(text).unwrap()
}

/// A library with debug information and this build id.
fn library(build_id: &str, flags: &[&str]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("a.c");
    std::fs::write(&source, "int twice(int x) { return x * 2; }").unwrap();
    let library = directory.path().join("a.so");
    let status = Command::new("gcc")
        .args(["-g", "-shared", "-fPIC", &format!("-Wl,--build-id=0x{build_id}"), "-o"])
        .args([&library, &source])
        .args(flags)
        .status()
        .unwrap();
    assert!(status.success());
    std::fs::read(library).unwrap()
}

fn put(path: PathBuf, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn search_in(directory: &Path, limits: Limits) -> Search {
    let directories = vec![Directory::new(directory.to_owned(), limits)];
    Finder { directories, servers: Vec::new() }.find(&id(ID), "/opt/app/liba.so")
}

#[test]
fn a_build_id_is_hexadecimal_digits_and_nothing_else() {
    assert!(BuildId::parse(ID).is_some());
    let long = "a".repeat(129);
    for bad in
        ["", "abc", "../../../etc/passwd", "0123456789ABCDEF", "abcdefgh", "ab/cdef01", &long]
    {
        assert!(BuildId::parse(bad).is_none(), "{bad}");
    }
}

#[test]
fn a_debug_file_is_found_wherever_it_lies() {
    let bytes = library(ID, &[]);
    let places = [
        ".build-id/01/23456789abcdef0123456789abcdef01234567.debug",
        "usr/lib/debug/.build-id/01/23456789abcdef0123456789abcdef01234567.debug",
        "usr/lib/debug/opt/app/liba.so.debug",
        "opt/app/liba.so",
        "liba.so.debug",
        ".build-id/01/23456789abcdef0123456789abcdef01234567",
        "some/where/else.bin",
    ];
    for place in places {
        let directory = tempfile::tempdir().unwrap();
        put(directory.path().join(place), &bytes);
        put(directory.path().join("another"), &library(OTHER, &[]));
        let found = search_in(directory.path(), Limits::default()).found.expect(place);
        assert_eq!(found.holds, Holds::DebugInfo);
        assert!(found.from.ends_with(place), "{}", found.from);
    }
}

#[test]
fn a_file_of_another_build_is_refused_where_it_is_expected() {
    let directory = tempfile::tempdir().unwrap();
    let place = ".build-id/01/23456789abcdef0123456789abcdef01234567.debug";
    put(directory.path().join(place), &library(OTHER, &[]));
    put(directory.path().join("liba.so"), b"\x7fELF and no more");
    let search = search_in(directory.path(), Limits::default());
    assert!(search.found.is_none());
    let why: Vec<&str> = search.refused.iter().map(|it| it.why.as_str()).collect();
    assert!(why.iter().any(|why| why.contains(OTHER)), "{why:?}");
    assert!(why.iter().any(|why| why.contains("shorter than 64 bytes")), "{why:?}");
}

#[test]
fn debug_information_comes_before_symbols_and_a_stripped_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    put(directory.path().join("liba.so"), &library(ID, &["-g0"]));
    let found = search_in(directory.path(), Limits::default()).found.unwrap();
    assert_eq!(found.holds, Holds::Symbols);
    put(directory.path().join("deep/er/a"), &library(ID, &[]));
    let found = search_in(directory.path(), Limits::default()).found.unwrap();
    assert_eq!(found.holds, Holds::DebugInfo);

    let directory = tempfile::tempdir().unwrap();
    put(directory.path().join("liba.so"), &library(ID, &["-s"]));
    let search = search_in(directory.path(), Limits::default());
    assert!(search.found.is_none());
    assert!(search.refused[0].why.contains("neither"), "{:?}", search.refused);
}

#[test]
fn what_is_no_file_keeps_nobody_waiting_and_a_cut_search_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("liba.so");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    std::os::unix::fs::symlink(directory.path(), directory.path().join("loop")).unwrap();
    for at in 0..5 {
        put(directory.path().join(format!("{at}")), b"x");
    }
    put(directory.path().join("z"), &library(ID, &[]));
    assert!(search_in(directory.path(), Limits::default()).found.is_some());
    let search = search_in(directory.path(), Limits { files: 3, ..Limits::default() });
    assert!(search.found.is_none());
    assert!(search.refused.iter().any(|it| it.why.contains("first 3 files")));
}

/// Answers each request by what `answer` writes; how many requests came.
fn serve(answer: impl Fn(&str, &mut dyn Write) + Send + 'static) -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let counted = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&counted);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            count.fetch_add(1, Ordering::SeqCst);
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut first, mut line) = (String::new(), String::new());
            reader.read_line(&mut first).unwrap();
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                line.clear();
            }
            answer(&first, &mut stream);
        }
    });
    (url, counted)
}

fn quick() -> Limits {
    Limits { request: Duration::from_secs(2), file_bytes: 1 << 20, ..Limits::default() }
}

fn ask(server: &mut Server) -> Search {
    let mut search = Search::default();
    server.ask(&id(ID), &mut search);
    search
}

fn refusal(url: &str, limits: Limits) -> String {
    let search = ask(&mut Server::new(url, limits).unwrap());
    assert!(search.found.is_none());
    search.refused[0].why.clone()
}

fn body(bytes: Vec<u8>) -> impl Fn(&str, &mut dyn Write) + Send + 'static {
    move |_, out| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len());
        _ = out.write_all(head.as_bytes()).and_then(|()| out.write_all(&bytes));
    }
}

#[test]
fn a_server_is_asked_for_the_build_id_and_what_it_sends_is_checked() {
    let bytes = library(ID, &[]);
    let (url, asked) = serve(move |request, out| {
        assert_eq!(request, format!("GET /buildid/{ID}/debuginfo HTTP/1.1\r\n"));
        body(bytes.clone())(request, out);
    });
    // With and without the slash at its end.
    for url in [url.clone(), format!("{url}/")] {
        let found = ask(&mut Server::new(&url, quick()).unwrap()).found.unwrap();
        assert_eq!(found.holds, Holds::DebugInfo);
        assert!(found.from.starts_with("http://127.0.0.1:"), "{}", found.from);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    let (url, _) = serve(body(library(OTHER, &[])));
    assert!(refusal(&url, quick()).contains(OTHER));
    let (url, _) = serve(body(b"<html>sign in first</html>".repeat(10)));
    assert!(refusal(&url, quick()).contains("not an ELF object"));
}

#[test]
fn a_server_without_the_file_is_asked_for_the_next_one() {
    let (url, asked) = serve(|_, out| {
        _ = out
            .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    });
    let mut server = Server::new(&url, quick()).unwrap();
    for _ in 0..2 {
        assert!(ask(&mut server).refused[0].why.contains("does not have it"));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    let (url, _) = serve(|_, out| {
        _ = out.write_all(b"HTTP/1.1 500 Oh No\r\nContent-Length: 0\r\n\r\n");
    });
    assert!(refusal(&url, quick()).contains("500"));
}

#[test]
fn an_endless_body_ends_at_the_limit() {
    let (url, _) = serve(|_, out| {
        _ = out.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while out.write_all(&[0x7f; 65_536]).is_ok() {}
    });
    assert!(refusal(&url, quick()).contains("longer than the limit of 1048576 bytes"));
    let (url, _) = serve(|_, out| {
        _ = out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n");
    });
    assert!(refusal(&url, quick()).contains("longer than the limit"));
}

#[test]
fn all_downloads_together_are_bounded() {
    let bytes = library(ID, &[]);
    let limits = Limits { total_bytes: bytes.len() as u64 + 100, ..quick() };
    let (url, _) = serve(body(bytes));
    let mut server = Server::new(&url, limits).unwrap();
    assert!(ask(&mut server).found.is_some());
    assert!(ask(&mut server).refused[0].why.contains("longer than the limit of 100 bytes"));
}

#[test]
fn a_server_that_hangs_costs_its_timeout_once() {
    // Says nothing; then a byte now and then.
    for drips in [false, true] {
        let (url, asked) = serve(move |_, out| {
            if drips {
                _ = out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
            }
            for _ in 0..600 {
                std::thread::sleep(Duration::from_millis(100));
                if drips && out.write_all(b"x").is_err() {
                    return;
                }
            }
        });
        let limits = Limits { request: Duration::from_millis(700), ..quick() };
        let mut server = Server::new(&url, limits).unwrap();
        let began = Instant::now();
        let first = ask(&mut server);
        assert!(first.found.is_none());
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        let again = ask(&mut server);
        assert!(again.refused[0].why.starts_with("not asked again"), "{:?}", again.refused);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn a_server_that_is_not_there_or_sends_in_circles_is_told() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(refusal(&format!("http://{free}"), quick()).contains("does not answer"));
    let (url, asked) = serve(|_, out| {
        _ = out.write_all(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    });
    let why = refusal(&url, quick());
    assert!(why.contains("redirect"), "{why}");
    assert!(asked.load(Ordering::SeqCst) <= MOST_ASKED, "{asked:?}");
}

/// The first request and those that are followed.
const MOST_ASKED: u32 = 4;

#[test]
fn an_address_that_is_none_is_refused() {
    for bad in
        ["", "debuginfod.example", "ftp://x", "file:///etc/passwd", "http://a b", "http://a?x"]
    {
        let error = Server::new(bad, quick()).unwrap_err();
        assert_eq!(error, ServerError::NotAnAddress(bad.to_owned()));
    }
}

#[test]
fn a_body_that_breaks_off_is_no_file() {
    let (url, _) = serve(|_, out| {
        _ = out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n\x7fELF");
    });
    let why = refusal(&url, quick());
    assert!(why.contains("broke off"), "{why}");
}
