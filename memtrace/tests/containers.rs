//! Containers of a real Docker daemon, found by name and id, with and without its socket.
//!
//! Needs root and a running daemon; a test that cannot run here fails. Truth is what Docker's own
//! command line tells.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use memtrace::tracee::container::{ContainerError, ContainerTarget, Sources};
use memtrace::tracee::ports;

/// An image of its own per test, and the containers made from it; all gone when dropped.
struct Docker {
    image: String,
    containers: Vec<String>,
}

/// Runs `docker` and gives its standard output.
fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().expect("docker is installed");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "docker {arguments:?} failed; is `dockerd` running, and is this root? {error}"
    );
    String::from_utf8(output.stdout).unwrap().trim().to_string()
}

impl Docker {
    /// busybox alone in an image.
    fn new(test: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::copy("/bin/busybox", directory.path().join("busybox"))
            .expect("busybox-static is installed");
        let image = format!("memtrace-test-{test}:{}", std::process::id());
        let mut tar = Command::new("tar")
            .args(["-C", directory.path().to_str().unwrap(), "-c", "."])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let import = Command::new("docker")
            .args(["import", "-", &image])
            .stdin(tar.stdout.take().unwrap())
            .output()
            .expect("docker is installed");
        assert!(tar.wait().unwrap().success());
        let error = String::from_utf8_lossy(&import.stderr);
        assert!(import.status.success(), "is `dockerd` running? {error}");
        Self { image, containers: Vec::new() }
    }

    fn name(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.image.replace(':', "-"))
    }

    /// Starts `busybox COMMAND…` in a container without network; its full id.
    fn run(&mut self, suffix: &str, command: &[&str]) -> String {
        let name = self.name(suffix);
        let image = self.image.clone();
        let mut arguments =
            vec!["run", "-d", "--network", "none", "--name", &name, &image, "/busybox"];
        arguments.extend(command);
        let id = docker(&arguments);
        self.containers.push(id.clone());
        id
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        for kind in [&["rm", "-f"], &["rmi", "-f"]] {
            let targets =
                if kind[0] == "rm" { self.containers.clone() } else { vec![self.image.clone()] };
            if !targets.is_empty() {
                let done = Command::new("docker").args(*kind).args(&targets).output();
                eprintln!("docker {} {targets:?}: {:?}", kind[0], done.map(|output| output.status));
            }
        }
    }
}

fn pid_of(id: &str) -> u32 {
    docker(&["inspect", "-f", "{{.State.Pid}}", id]).parse().unwrap()
}

/// The host's pids as `docker top` tells them.
fn pids_of(id: &str) -> Vec<u32> {
    let table = docker(&["top", id, "-o", "pid"]);
    let mut pids: Vec<u32> =
        table.lines().skip(1).map(|line| line.trim().parse().unwrap()).collect();
    pids.sort_unstable();
    pids
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "no {what} within 30 s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn find(sources: &Sources, asked: &str) -> Result<ContainerTarget, ContainerError> {
    block_on(sources.find(asked))
}

/// The machine's usual sources, whatever this test's own environment says.
fn with_socket() -> Sources {
    Sources::from_variables(|_| None)
}

fn without_socket() -> Sources {
    let missing = |variable: &str| match variable {
        "DOCKER_HOST" => Some("unix:///nonexistent/docker.sock".to_string()),
        "CONTAINER_HOST" => Some("unix:///nonexistent/podman.sock".to_string()),
        _ => None,
    };
    Sources::from_variables(missing)
}

/// The first letters of an id that no other container of this machine shares.
fn unique_prefix(id: &str) -> String {
    let all = docker(&["ps", "-aq", "--no-trunc"]);
    let shared = |other: &str| other.bytes().zip(id.bytes()).take_while(|(a, b)| a == b).count();
    let longest = all.lines().filter(|other| *other != id).map(shared).max().unwrap_or(0);
    id[..(longest + 1).max(4)].to_string()
}

#[test]
fn a_container_is_found_by_name_id_and_prefix_with_and_without_the_socket() {
    let mut machine = Docker::new("find");
    let id = machine.run("web", &["sh", "-c", "/busybox sleep 1000 & /busybox sleep 1000; :"]);
    let neighbour = machine.run("neighbour", &["sleep", "1000"]);
    let pids = wait_for("three processes", || Some(pids_of(&id)).filter(|pids| pids.len() == 3));
    let name = machine.name("web");
    for (how, sources) in [("socket", with_socket()), ("files", without_socket())] {
        for asked in [name.clone(), format!("/{name}"), id.clone(), unique_prefix(&id)] {
            let target =
                find(&sources, &asked).unwrap_or_else(|error| panic!("{how} {asked}: {error}"));
            assert_eq!(target.first_pid, pid_of(&id), "{how} {asked}");
            assert_eq!(target.all_pids[0], target.first_pid, "{how} {asked}");
            let mut all = target.all_pids;
            all.sort_unstable();
            assert_eq!(all, pids, "{how} {asked}");
            let container = target.container;
            assert_eq!((container.runtime.as_str(), &container.id), ("docker", &id));
            assert_eq!(container.name.as_ref(), Some(&name));
            assert_eq!(container.image.as_ref(), Some(&machine.image));
        }
        let other = find(&sources, &machine.name("neighbour")).unwrap();
        assert_eq!(other.all_pids, [pid_of(&neighbour)], "{how}");

        let container = block_on(sources.container_of(pids[2])).unwrap();
        assert_eq!((container.id, container.name), (id.clone(), Some(name.clone())), "{how}");
        let own = block_on(sources.container_of(std::process::id()));
        assert_ne!(own.map(|container| container.id), Some(id.clone()), "{how}");
    }
}

#[test]
fn without_socket_and_state_files_the_cgroups_alone_tell() {
    let mut machine = Docker::new("cgroups");
    let id = machine.run("x", &["sleep", "1000"]);
    let mut sources = without_socket();
    sources.state_files.docker.clear();
    let target = find(&sources, &unique_prefix(&id)).unwrap();
    assert_eq!((target.first_pid, target.container.id.as_str()), (pid_of(&id), id.as_str()));
    assert_eq!((target.container.runtime.as_str(), target.container.name), ("docker", None));
    let container = block_on(sources.container_of(target.first_pid)).unwrap();
    assert_eq!((container.id.as_str(), container.name), (id.as_str(), None));

    let error = find(&sources, &machine.name("x")).unwrap_err();
    let ContainerError::NotFound { known, .. } = &error else { panic!("{error}") };
    assert!(known.iter().any(|candidate| candidate.id == id), "{error}");
    let error = error.to_string();
    assert!(error.contains("no container matches `memtrace-test-cgroups-"), "{error}");
    assert!(
        error.contains("`/nonexistent/docker.sock` (failed to connect: No such file or directory"),
        "{error}"
    );
}

#[test]
fn a_prefix_that_several_share_is_refused_with_both_named() {
    let mut machine = Docker::new("ambiguous");
    // One of sixteen digits begins each id: two of seventeen share it, mostly far fewer do.
    let mut ids: Vec<String> = Vec::new();
    let shared = loop {
        assert!(ids.len() < 17);
        let id = machine.run(&format!("n{}", ids.len()), &["sleep", "1000"]);
        let twin = ids.iter().find(|other| other[..1] == id[..1]).cloned();
        ids.push(id.clone());
        if let Some(twin) = twin {
            break [twin, id];
        }
    };
    for sources in [with_socket(), without_socket()] {
        let error = find(&sources, &shared[0][..1]).unwrap_err();
        let ContainerError::Ambiguous { matches, .. } = &error else { panic!("{error}") };
        for id in &shared {
            assert!(matches.iter().any(|candidate| candidate.id == *id), "{error} lacks {id}");
        }
        assert!(matches.iter().all(|candidate| candidate.id[..1] == shared[0][..1]), "{error}");
        // The name of one is not touched by the ids.
        assert_eq!(find(&sources, &machine.name("n0")).unwrap().container.id, ids[0]);
    }
}

#[test]
fn a_stopped_container_is_not_running_with_and_without_the_socket() {
    let mut machine = Docker::new("stopped");
    let id = machine.run("x", &["true"]);
    docker(&["wait", &id]);
    for (sources, state) in [(with_socket(), "exited"), (without_socket(), "not running")] {
        for asked in [machine.name("x"), id.clone()] {
            let error = find(&sources, &asked).unwrap_err();
            let ContainerError::NotRunning { candidate } = &error else { panic!("{error}") };
            assert_eq!(candidate.state.as_deref(), Some(state));
            assert!(error.to_string().contains(&machine.name("x")), "{error}");
        }
    }
}

#[test]
fn an_unknown_name_is_refused_and_similar_ones_are_named() {
    let mut machine = Docker::new("unknown");
    machine.run("x", &["sleep", "1000"]);
    let asked = format!("{}y", machine.name("x"));
    for sources in [with_socket(), without_socket()] {
        let error = find(&sources, &asked).unwrap_err();
        let ContainerError::NotFound { known, .. } = &error else { panic!("{error}") };
        assert_eq!(known[0].names, [machine.name("x")], "{error}");
    }
    for asked in ["", "/", "\u{1b}[2J", "../x"] {
        let error = find(&with_socket(), asked).unwrap_err();
        assert!(matches!(error, ContainerError::NotFound { .. }), "{error}");
        assert!(!error.to_string().contains('\u{1b}'), "{error:?}");
    }
}

#[test]
fn a_container_of_which_no_process_is_visible_says_so() {
    let mut machine = Docker::new("invisible");
    let id = machine.run("x", &["sleep", "1000"]);
    // As from another pid namespace: the daemon's pid is somebody else there, or nobody.
    let proc = tempfile::tempdir().unwrap();
    let pid = pid_of(&id);
    std::fs::create_dir(proc.path().join(pid.to_string())).unwrap();
    std::fs::write(proc.path().join(pid.to_string()).join("cgroup"), "0::/\n").unwrap();
    let mut sources = with_socket();
    sources.proc = proc.path().to_path_buf();
    let error = find(&sources, &id).unwrap_err();
    assert!(
        matches!(error, ContainerError::NotVisible { pid: Some(told), .. } if told == pid),
        "{error}"
    );
    assert!(error.to_string().contains(&pid.to_string()), "{error}");
}

#[test]
fn a_socket_that_may_not_be_asked_is_told_apart_from_one_that_does_not_know() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("docker.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for path in [directory.path(), Path::new(&socket)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut sources = without_socket();
    sources.engines[0].socket = socket.clone();
    sources.state_files.docker.clear();
    // A thread of its own gives up root's right to pass over file modes.
    let error = std::thread::spawn(move || {
        nix::unistd::setfsuid(65534.into());
        find(&sources, "web").unwrap_err()
    });
    let error = error.join().unwrap();
    let ContainerError::SocketDenied { socket: told, .. } = &error else { panic!("{error}") };
    assert_eq!(*told, socket);
    assert!(error.to_string().contains("run memtrace as root"), "{error}");
}

#[test]
fn a_containers_ports_are_read_in_its_own_network_namespace() {
    let mut machine = Docker::new("ports");
    let server = machine.run("server", &["httpd", "-f", "-p", "8071"]);
    let neighbour = machine.run("neighbour", &["httpd", "-f", "-p", "127.0.0.1:8072"]);
    let ports_of = |id: &str| {
        let pid = pid_of(id);
        wait_for("listener", || {
            Some(ports::listening_ports(pid).unwrap()).filter(|it| !it.is_empty())
        })
    };
    let wildcards: [SocketAddr; 2] =
        ["0.0.0.0:8071".parse().unwrap(), "[::]:8071".parse().unwrap()];
    let found = ports_of(&server);
    assert!(found.len() == 1 && wildcards.contains(&found[0]), "{found:?}");
    assert_eq!(ports_of(&neighbour), ["127.0.0.1:8072".parse().unwrap()]);
}
