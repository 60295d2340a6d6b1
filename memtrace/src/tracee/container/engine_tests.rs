use super::*;
use std::future::Future;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;

const A: &str = "0195d365d17084416abc649bacb0e1a20c8f66a583bd6b4d1bf7f1c82ea53b42";
/// As Docker 20.10 answered, shortened.
const LIST: &str = r#"[{"Id":"0195d365d17084416abc649bacb0e1a20c8f66a583bd6b4d1bf7f1c82ea53b42","Names":["/web","/other/link"],"Image":"mt:1","ImageID":"sha256:2d0a","Command":"/bin/busybox sleep 1000","Created":1795431315,"Ports":[],"Labels":{},"State":"running","Status":"Up 2 seconds","HostConfig":{"NetworkMode":"none"},"NetworkSettings":{"Networks":{}},"Mounts":[]}]"#;
const INSPECT: &str = r#"{"Id":"0195d365d17084416abc649bacb0e1a20c8f66a583bd6b4d1bf7f1c82ea53b42","Created":"2026-11-23T10:55:15Z","State":{"Status":"running","Running":true,"Paused":false,"Pid":25247,"ExitCode":0},"Image":"sha256:2d0a","Name":"/web","Config":{"Image":"mt:1"}}"#;

#[test]
fn a_real_list_is_read() {
    let list = parse_list("docker", LIST.as_bytes()).unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].id.as_str(), list[0].runtime.as_str()), (A, "docker"));
    assert_eq!(list[0].names, ["web", "other/link"]);
    assert_eq!(list[0].image.as_deref(), Some("mt:1"));
    assert!(list[0].is_running());
}

#[test]
fn a_real_container_is_read_and_pid_0_is_none() {
    let told = parse_inspect("docker", INSPECT.as_bytes()).unwrap().unwrap();
    assert_eq!((told.pid, told.names[0].as_str()), (Some(25247), "web"));
    for pid in ["0", "-1", "4294967296"] {
        let text = INSPECT.replace("25247", pid);
        assert_eq!(parse_inspect("docker", text.as_bytes()).unwrap().unwrap().pid, None, "{pid}");
    }
}

#[test]
fn hostile_answers_are_errors_or_nothing() {
    for text in ["", "{}", "null", "[1]", "[{\"Id\":1}]", &"[".repeat(100_000), "[{}]", "\u{0}"] {
        assert!(parse_list("docker", text.as_bytes()).is_err());
        assert!(parse_inspect("docker", text.as_bytes()).is_err());
    }
    // An id that is none must not become part of a path.
    let text = LIST.replace(A, "../../etc/passwd");
    assert_eq!(parse_list("docker", text.as_bytes()).unwrap(), []);
    let text = INSPECT.replace(A, "x");
    assert_eq!(parse_inspect("docker", text.as_bytes()).unwrap(), None);
    // A name that is being removed is null, and one with escapes does not reach the terminal.
    let text = LIST.replace(r#"["/web","/other/link"]"#, "null");
    assert_eq!(parse_list("docker", text.as_bytes()).unwrap()[0].names, Vec::<String>::new());
    let text = LIST.replace("/web", r"/\u001b[2J\u202ex");
    assert_eq!(parse_list("docker", text.as_bytes()).unwrap()[0].names[0], r"\u{1b}[2J\u{202e}x");
    let text = LIST.replace("/web", &"w".repeat(100_000));
    assert!(parse_list("docker", text.as_bytes()).unwrap()[0].names[0].len() < 1000);
}

fn sockets(variables: &[(&str, &str)]) -> (Vec<String>, usize) {
    let find = |wanted: &str| {
        let found = variables.iter().find(|(variable, _)| *variable == wanted);
        found.map(|(_, value)| value.to_string())
    };
    let (engines, unasked) = conventional(find);
    let show = |engine: &Engine| format!("{} {}", engine.runtime, engine.socket.display());
    (engines.iter().map(show).collect(), unasked.len())
}

#[test]
fn sockets_are_those_of_the_environment_else_of_convention() {
    let podman = "podman /run/podman/podman.sock".to_string();
    let docker = "docker /var/run/docker.sock".to_string();
    assert_eq!(sockets(&[]), (vec![docker.clone(), podman.clone()], 0));
    assert_eq!(
        sockets(&[("DOCKER_HOST", "unix:///x/y.sock"), ("SUDO_UID", "0")]),
        (vec!["docker /x/y.sock".to_string(), podman.clone()], 0)
    );
    assert_eq!(sockets(&[("DOCKER_HOST", "tcp://1.2.3.4:2375")]), (vec![podman.clone()], 1));
    let rootless = sockets(&[("SUDO_UID", "1000"), ("DOCKER_HOST", "")]).0;
    assert_eq!(rootless[..2], [docker, podman]);
    assert_eq!(rootless[2], "docker /run/user/1000/docker.sock");
    assert_eq!(rootless[3], "podman /run/user/1000/podman/podman.sock");
    assert_eq!(sockets(&[("SUDO_UID", "../x")]).0.len(), 2);
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

/// A daemon on a real socket that gives one answer to one request.
fn daemon(directory: &Path, answer: Option<String>) -> (Engine, std::thread::JoinHandle<String>) {
    let socket = directory.join("d.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let serve = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).unwrap();
        if let Some(answer) = answer {
            let head = "Content-Type: application/json\r\n";
            let length = answer.split_once('\n').map_or(0, |(_, body)| body.len());
            let answer =
                answer.replacen('\n', &format!("\r\n{head}Content-Length: {length}\r\n\r\n"), 1);
            stream.write_all(answer.as_bytes()).unwrap();
        } else {
            // Silent until the client gives up.
            let _ = stream.read(&mut [0; 1]);
        }
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    (Engine { runtime: "docker", socket }, serve)
}

#[test]
fn a_daemon_is_asked_over_its_socket() {
    let directory = tempfile::tempdir().unwrap();
    let (engine, serve) = daemon(directory.path(), Some(format!("HTTP/1.1 200 OK\n{LIST}")));
    assert_eq!(run(engine.list(Duration::from_secs(3))).unwrap()[0].id, A);
    assert!(serve.join().unwrap().starts_with("GET /containers/json?all=true HTTP/1.1\r\n"));
}

#[test]
fn a_container_that_has_gone_is_none_and_a_refusal_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let answer = "HTTP/1.1 404 Not Found\n{\"message\":\"No such container: x\"}".to_string();
    let (engine, serve) = daemon(directory.path(), Some(answer));
    assert_eq!(run(engine.inspect(A, Duration::from_secs(3))).unwrap(), None);
    assert!(serve.join().unwrap().starts_with(&format!("GET /containers/{A}/json HTTP/1.1\r\n")));

    let directory = tempfile::tempdir().unwrap();
    let answer = "HTTP/1.1 403 Forbidden\n{\"message\":\"authorization denied\"}".to_string();
    let (engine, serve) = daemon(directory.path(), Some(answer));
    let error = run(engine.list(Duration::from_secs(3))).unwrap_err();
    assert_eq!(error.to_string(), "it answered with status 403: authorization denied");
    serve.join().unwrap();
}

#[test]
fn a_daemon_that_is_silent_or_absent_is_an_error_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let (engine, serve) = daemon(directory.path(), None);
    let started = std::time::Instant::now();
    let error = run(engine.list(Duration::from_millis(200))).unwrap_err();
    assert!(matches!(error, EngineError::Http(HttpError::TimedOut(_))), "{error}");
    assert!(started.elapsed() < Duration::from_secs(2));
    serve.join().unwrap();
    std::fs::remove_file(&engine.socket).unwrap();
    let error = run(engine.list(Duration::from_secs(3))).unwrap_err();
    assert!(matches!(error, EngineError::Connect(_)) && !error.is_denied(), "{error}");
}
