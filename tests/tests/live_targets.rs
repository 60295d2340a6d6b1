//! Targets by name: podman's containers and the pods of a containerd, found by socket and without one,
//! explained and traced.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ::memtrace::tracee::container::{ContainerError, CriSocket, Sources};
use anyhow::{Context, Result, ensure};
use memtrace_tests::compile::{self, Kind};
use memtrace_tests::cri::Containerd;
use memtrace_tests::docker::lay_out;
use memtrace_tests::ledger::Explained;
use memtrace_tests::memtrace::{self, Recording, exit_code};
use memtrace_tests::podman::{Podman, podman};
use memtrace_tests::recorded::Recorded;
use memtrace_tests::serial;
use memtrace_tests::wait::{patience, until};

/// What `service` keeps with each request.
const SESSION_BYTES: u64 = 1733;

/// Some seconds of what these arguments name.
fn record(arguments: &[&str]) -> Result<Recorded> {
    let recording = Recording::start(arguments)?;
    std::thread::sleep(Duration::from_secs(2));
    recording.interrupt()?.recorded()
}

/// The sessions are told by Go's function and C's, every byte of them.
fn leak_is_named(recorded: &Recorded) -> Result<()> {
    let stacks = &recorded.last()?.native.stacks;
    let named = |name: &str| stacks.iter().find(|it| it.contains_in_order(&["open_session", name]));
    let leak = named("main.serveRequest")
        .with_context(|| format!("the leak is not named: {stacks:#?}"))?;
    ensure!(leak.blocks > 50 && leak.bytes == leak.blocks * SESSION_BYTES, "{leak:#?}");
    Ok(())
}

fn refused(arguments: &[&str], named: &[&str]) -> Result<()> {
    let output = memtrace::run(arguments)?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(exit_code::TARGET), "{}: {error}", output.status);
    for name in named {
        ensure!(error.contains(name), "`{name}` is not told: {error}");
    }
    ensure!(!error.contains('\u{1b}'), "{error:?}");
    Ok(())
}

/// podman's API, served on a socket in this directory.
struct Service(Child);

impl Service {
    fn start(socket: &Path) -> Result<Self> {
        let child = Command::new("podman")
            .args(["--runtime", "runc", "system", "service", "--time", "0"])
            .arg(format!("unix://{}", socket.display()))
            .stdin(Stdio::null())
            .spawn()
            .context("run podman")?;
        let service = Self(child);
        until("podman's socket", patience(Duration::from_secs(30)), || {
            Ok(std::os::unix::net::UnixStream::connect(socket).is_ok())
        })?;
        Ok(service)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn podmans_only(socket: &Path) -> Sources {
    let socket = format!("unix://{}", socket.display());
    Sources::from_variables(|variable| (variable == "CONTAINER_HOST").then(|| socket.clone()))
}

fn block_on<T>(future: impl Future<Output = T>) -> Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}

#[test]
fn a_container_of_podman_is_found_by_name_with_and_without_its_socket_and_traced() -> Result<()> {
    let _turn = serial::turn()?;
    let program = compile::program("service", Kind::Go)?;
    let root = lay_out(&[&program], &[])?;
    let container = Podman::run("named", root.path(), &["/service"])?;
    let id = podman(&["inspect", "--format", "{{.Id}}", &container.name])?;
    let pid: u32 = podman(&["inspect", "--format", "{{.State.Pid}}", &container.name])?.parse()?;

    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("podman.sock");
    for served in [false, true] {
        let _service = served.then(|| Service::start(&socket)).transpose()?;
        let mut sources = podmans_only(&socket);
        if served {
            // Nobody else can tell the name then.
            sources.state_files.podman.clear();
        }
        for asked in [&container.name, &id, &id[..12]] {
            let found = block_on(sources.find(asked))?.with_context(|| format!("{served}"))?;
            ensure!(found.first_pid == pid && found.container.id == id, "{served}: {found:?}");
            let told = &found.container;
            ensure!(told.runtime == "podman" && told.name.as_ref() == Some(&container.name));
        }
        let told = block_on(sources.container_of(pid))?.context("whose process it is")?;
        ensure!(told.name.as_ref() == Some(&container.name), "{served}: {told:?}");
    }

    let explained = Explained::of(&["--container", &container.name])?;
    explained.laws_hold()?;
    ensure!(explained.0["subject"]["container"]["name"] == *container.name, "{:#}", explained.0);
    let recorded = record(&["--container", &container.name])?;
    ensure!(recorded.tracee["container"]["runtime"] == "podman", "{:#}", recorded.tracee);
    leak_is_named(&recorded)?;
    refused(
        &["explain", "--container", &format!("{}x\u{1b}[2J", container.name)],
        &[&container.name],
    )
}

#[test]
fn a_pod_is_found_by_name_and_uid_its_containers_by_theirs_and_all_are_traced() -> Result<()> {
    let _turn = serial::turn()?;
    let mut containerd = Containerd::start()?;
    containerd.import("memtrace.test/service:1", &compile::program("service", Kind::Go)?)?;
    containerd.import("memtrace.test/busy:1", &compile::program("busy", Kind::C)?)?;
    let name = format!("web-{}", std::process::id());
    let pod = containerd.pod("shop", &name)?;
    let app = containerd.container(&pod, "app", "memtrace.test/service:1", &[])?;
    let side = containerd.container(&pod, "side", "memtrace.test/busy:1", &["1", "100"])?;
    let twin = containerd.pod("test", &name)?;
    let full = pod.full_name();
    let of_app = format!("{full}/app");

    // Who tells the names: the socket alone, the state files alone.
    let by_socket = || {
        let mut sources = Sources::from_variables(|_| None);
        sources.cri = vec![CriSocket { path: containerd.socket() }];
        sources.state_files.containerd.clear();
        sources
    };
    let by_files = || {
        let mut sources = Sources::from_variables(|_| None);
        sources.cri.clear();
        sources
    };
    for (how, sources) in [("socket", by_socket()), ("files", by_files())] {
        for asked in [&full, &pod.uid, &pod.uid.replace('-', "")] {
            let found = block_on(sources.find_pod(asked))?.with_context(|| how)?;
            ensure!(found.uid == pod.uid && found.name.as_ref() == Some(&full), "{how} {found:?}");
            ensure!(found.pids.len() == 3, "{how}: {found:?}");
            let comm = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm"));
            let last = found.pids.last().context("processes")?;
            ensure!(comm(last)?.trim().starts_with("pause"), "{how}: the sandbox is the last");
        }
        for asked in [&of_app, &format!("{name}/app"), &app, &app[..12]] {
            let found = block_on(sources.find(asked))?.with_context(|| how)?;
            ensure!(found.container.id == app && found.container.runtime == "containerd");
            ensure!(found.container.name.as_ref() == Some(&of_app), "{how}: {found:?}");
        }
        let found = block_on(sources.find_container_in(&full, "side"))?.with_context(|| how)?;
        ensure!(found.container.id == side, "{how}: {found:?}");
        let told = block_on(sources.container_of(found.first_pid))?.context("its process")?;
        ensure!(told.name == Some(format!("{full}/side")), "{how}: {told:?}");
        let several = block_on(sources.find_pod(&name))?.err().context("two pods by one name")?;
        let told = several.to_string();
        ensure!(matches!(several, ContainerError::Pod(_)) && told.contains(&twin.uid), "{told}");
    }
    // Nobody: the cgroups.
    let mut alone = by_files();
    alone.state_files.containerd.clear();
    ensure!(block_on(alone.find_pod(&pod.uid))??.pids.len() == 3);
    ensure!(block_on(alone.find_container_in(&pod.uid, &app[..8]))??.container.id == app);

    // memtrace itself finds this containerd by its shims, with its socket and when that has gone.
    refused(&["explain", "--pod", &name], &[&pod.uid, &twin.uid, &full])?;
    refused(&["explain", "--pod", &full, "--container", "ap\u{1b}"], &[&of_app])?;
    explained(&full, &pod.uid)?;
    let recorded = record(&["--pod", &full])?;
    leak_is_named(&recorded)?;
    let traced: Vec<_> = recorded.processes.iter().map(|it| it.comm.as_str()).collect();
    ensure!(traced.contains(&"service") && traced.contains(&"busy"), "{traced:?}");

    let hidden = Hidden::new(containerd.socket())?;
    explained(&full, &pod.uid)?;
    let recorded = record(&["--pod", &pod.uid, "--container", "app"])?;
    drop(hidden);
    leak_is_named(&recorded)?;
    ensure!(recorded.tracee["container"]["name"] == *of_app, "{:#}", recorded.tracee);
    ensure!(recorded.processes.len() == 1, "the pod's other container is not meant");
    Ok(())
}

/// The pod's ledger, and that of one of its containers.
fn explained(full: &str, uid: &str) -> Result<()> {
    let whole = Explained::of(&["--pod", full])?;
    ensure!(whole.0["subject"]["pod_uid"] == *uid, "{:#}", whole.0["subject"]);
    ensure!(whole.0["processes"].as_array().context("processes")?.len() == 3);
    let path = whole.0["cgroup"]["path"].as_str().context("path")?;
    ensure!(path == format!("/kubepods/burstable/pod{uid}"), "{path}");
    let part = Explained::of(&["--pod", uid, "--container", "side"])?;
    ensure!(part.0["subject"]["container"]["name"] == format!("{full}/side"), "{:#}", part.0);
    ensure!(part.0["processes"].as_array().context("processes")?.len() == 1);
    Ok(())
}

/// A socket that is not where it was, until dropped.
struct Hidden(PathBuf);

impl Hidden {
    fn new(socket: PathBuf) -> Result<Self> {
        std::fs::rename(&socket, socket.with_extension("hidden"))?;
        Ok(Self(socket))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // Then the pods cannot be removed, which is told.
        _ = std::fs::rename(self.0.with_extension("hidden"), &self.0);
    }
}
