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
    GoReader::new(source, None).read(&[], || ports).await
}

#[tokio::test]
async fn nothing_is_read_when_nothing_is_asked_for() {
    let mut reader = GoReader::new(GoProfileSource::Off, None);
    let books = reader.read(&[], || panic!("ports were looked for")).await;
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
    let books = reader.read(&[], move || ports).await;
    assert!(books.value().unwrap().source.contains(&right.to_string()));
    let again = reader.read(&[], || panic!("ports were looked for again")).await;
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

/// Truth comes from the program itself: its own `runtime.MemStats` and what it says it holds.
#[tokio::test]
#[ignore = "live: needs the Go toolchain"]
async fn the_books_of_a_running_go_program_equal_what_it_says_of_itself() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let directory = tempfile::tempdir().unwrap();
    let source = include_str!("testdata/heapserver.go.txt");
    std::fs::write(directory.path().join("main.go"), source).unwrap();
    std::fs::write(directory.path().join("go.mod"), "module heapserver\n\ngo 1.21\n").unwrap();
    let go = std::env::var_os("MEMTRACE_GO").unwrap_or_else(|| "go".into());
    let built = Command::new(go)
        .args(["build", "-o", "heapserver", "."])
        .current_dir(directory.path())
        .env("GOPROXY", "off")
        .env("GOTOOLCHAIN", "local")
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let mut server = Command::new(directory.path().join("heapserver"))
        .env("GODEBUG", "memprofilerate=1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let address: SocketAddr = lines.next().unwrap().unwrap().parse().unwrap();
    let truth: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();

    let mut reader = GoReader::new(GoProfileSource::Auto, None);
    let books = reader.read(&[], || vec![(address.ip(), address.port())]).await;
    drop(server.stdin.take());
    server.wait().unwrap();
    let Known::Value(books) = books else { panic!("{books:?}") };

    // Every allocation is recorded: what it planted is there to the byte.
    assert_eq!(books.sample_rate_bytes, 1);
    let planted = books.stacks.iter().filter(|stack| stack.frames[0].function == "main.plant");
    let (bytes, objects) = planted.fold((0, 0), |(bytes, objects), stack| {
        (bytes + stack.inuse_bytes, objects + stack.inuse_objects)
    });
    assert_eq!(truth["planted_bytes"], bytes);
    assert_eq!(truth["planted_objects"], objects);
    let memory = books.memory.unwrap();
    let figure = |name: &str| truth[name].as_u64().unwrap();
    // Serving the request takes memory of its own.
    for (name, found) in [
        ("heap_inuse", memory.heap_inuse),
        ("stack_inuse", memory.stack_inuse),
        ("sys", memory.sys),
        ("heap_sys", memory.heap_sys),
        ("buck_hash_sys", memory.buck_hash_sys),
    ] {
        let told = figure(name);
        assert!(found.abs_diff(told) <= 8 << 20, "{name}: {found}, the program says {told}");
    }
    assert!(memory.heap_inuse >= bytes);
    assert!(memory.num_gc >= figure("num_gc"));
}

#[tokio::test]
async fn a_process_without_go_is_known_from_its_memory_and_no_port_is_asked() {
    let pid = std::process::id();
    let process = crate::tracee::process::Process::open(pid).unwrap();
    let mut mappings = crate::tracee::mappings::Mappings::default();
    mappings.rescan(&process).unwrap();
    for source in [GoProfileSource::Auto, GoProfileSource::Memory] {
        let mut reader = GoReader::new(source, None).with_memory(pid, GoProfile::Published);
        let books = reader.read(&mappings.files, || panic!("ports were looked for")).await;
        assert!(books.reason().unwrap().contains("not a Go program"), "{books:?}");
    }
}

#[tokio::test]
async fn where_memory_cannot_be_read_the_ports_are_asked_and_the_reason_is_kept() {
    let right = answering("200 OK", TEXT.to_vec());
    let mut reader =
        GoReader::new(GoProfileSource::Auto, None).with_memory(u32::MAX, GoProfile::Published);
    let books = reader.read(&[], || vec![(right.ip(), right.port())]).await;
    let books = books.value().unwrap();
    assert!(books.inuse_bytes > 0);
    assert!(matches!(&books.tried[..], [why] if why.contains("memory: no process")), "{books:?}");

    let mut reader =
        GoReader::new(GoProfileSource::Auto, None).with_memory(u32::MAX, GoProfile::Published);
    let books = reader.read(&[], Vec::new).await;
    let reason = books.reason().unwrap();
    assert!(reason.contains("no process") && reason.contains("no TCP port"), "{reason}");
}
