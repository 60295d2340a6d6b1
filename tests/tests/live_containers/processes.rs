//! Containers of several processes: servers that fork, a worker restart, a kill by the kernel.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memtrace_tests::compile::{self, Kind};
use memtrace_tests::docker::{Container, Image, docker};
use memtrace_tests::memtrace::Recording;
use memtrace_tests::recorded::Recorded;
use memtrace_tests::{serial, wait};

use super::{Attached, ask, balanced, connect, field, free_port, traced};

/// Requests over one connection; each must be answered.
fn get(port: u16, requests: usize) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connect to nginx")?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    for _ in 0..requests {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut piece = [0; 512];
        while !answer.ends_with(b"well served\n") {
            let length = stream.read(&mut piece).context("read nginx's answer")?;
            ensure!(length > 0, "nginx hung up after {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&piece[..length]);
        }
        ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    }
    Ok(())
}

/// Every process's books add up to the total.
pub(super) fn add_up(recorded: &Recorded) -> Result<()> {
    let last = recorded.last()?;
    let sum: u64 = last.processes.iter().map(|books| books.totals.outstanding.bytes).sum();
    ensure!(sum == last.native.outstanding.bytes, "{sum}: {:?}", last.native.outstanding);
    Ok(())
}

#[test]
fn nginx_is_traced_with_its_workers_and_with_those_that_take_their_place() -> Result<()> {
    let _turn = serial::turn()?;
    let port = free_port()?;
    let directory = tempfile::tempdir()?;
    let configuration = directory.path().join("nginx.conf");
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path /tmp/{kind};"))
        .concat();
    let text = format!(
        "daemon off; worker_processes 2; pid /tmp/nginx.pid; error_log stderr;
         events {{ worker_connections 64; }}
         http {{ access_log off; keepalive_requests 100000; {temporary}
           server {{ listen 127.0.0.1:{port};
             location / {{ return 200 \"well served\\n\"; }} }} }}"
    );
    std::fs::write(&configuration, text)?;
    let image = Image::of("nginx", &[Path::new("/usr/sbin/nginx"), &configuration], &[])?;
    // Its image's /tmp is root's, and it runs as somebody else.
    let scratch = directory.path().join("scratch");
    std::fs::create_dir(&scratch)?;
    std::fs::set_permissions(&scratch, Permissions::from_mode(0o777))?;
    let volume = format!("{}:/tmp", scratch.display());
    let user = ["--network", "host", "--volume", &volume, "--user", "1000:1000", &image.name];
    let command = ["/nginx", "-c", "/nginx.conf", "-e", "stderr"];
    let container = Container::run("nginx", &[&user[..], &command[..]].concat())?;
    drop(connect(port)?);
    let recording = traced(&container)?;
    for _ in 0..20 {
        get(port, 50)?;
    }
    docker(&["kill", "--signal", "HUP", &container.name])?;
    // The new workers are traced within a second, and what has ended is closed within another one;
    // on a machine full of work it was seven.
    std::thread::sleep(Duration::from_secs(12));
    for _ in 0..20 {
        get(port, 50)?;
    }
    std::thread::sleep(Duration::from_secs(2));
    let recorded = recording.interrupt()?.recorded()?;
    balanced(&recorded)?;
    add_up(&recorded)?;
    let came = |how: &str| recorded.processes.iter().filter(|it| it.came == how).count();
    ensure!(came("at_start") == 3 && came("forked") == 2, "{:#?}", recorded.processes);
    let closed: Vec<_> =
        recorded.processes.iter().filter(|process| process.closed.is_some()).collect();
    ensure!(closed.len() == 2, "the old workers have ended: {closed:#?}");
    let idle = |allocated: u64| allocated == 0;
    for process in recorded.processes.iter().filter(|process| process.came == "forked") {
        let totals = process.totals.context("totals")?;
        println!("worker {} was not seen for {:?} ns", process.pid, process.unseen_ns);
        ensure!(!idle(totals.allocated.blocks), "a new worker's calls are seen: {process:?}");
    }
    get(port, 1)
}

/// The child that writes the dump inherits all blocks and frees some: none of that is its parent's.
#[test]
fn redis_that_forks_to_save_keeps_its_books() -> Result<()> {
    let _turn = serial::turn()?;
    let directory = tempfile::tempdir()?;
    let server = directory.path().join("redis-server");
    std::fs::copy("/usr/bin/redis-check-rdb", &server).context("is redis-tools installed?")?;
    let image = Image::of("redis-save", &[&server, Path::new("/usr/bin/redis-benchmark")], &[])?;
    let port = free_port()?.to_string();
    let options = ["/redis-server", "--save", "", "--dir", "/tmp", "--bind", "127.0.0.1", "--port"];
    let arguments = [&["--network", "host", &image.name], &options[..], &[port.as_str()]].concat();
    let container = Container::run("redis-save", &arguments)?;
    let control = connect(port.parse()?)?;
    let recording = traced(&container)?;
    let load =
        ["-p", &port, "-q", "-c", "4", "-n", "20000", "-r", "20000", "-d", "977", "-t", "set"];
    container.exec(&[&["/redis-benchmark"], &load[..]].concat())?;
    const SAVES: u64 = 3;
    for _ in 0..SAVES {
        ask(&control, "BGSAVE\r\n", |line| line.starts_with("+Background saving"))?;
        wait::until("the dump", Duration::from_secs(60), || {
            let last = |line: &str| line.starts_with("module_fork_last_cow_size");
            let lines = ask(&control, "INFO persistence\r\n", last)?;
            ensure!(lines.iter().any(|line| line == "rdb_last_bgsave_status:ok"), "{lines:?}");
            Ok(field(&lines, "rdb_bgsave_in_progress")? == 0)
        })?;
    }
    std::thread::sleep(Duration::from_secs(2));
    let recorded = recording.interrupt()?.recorded()?;
    let outstanding = balanced(&recorded)?;
    add_up(&recorded)?;
    ensure!(outstanding > 10 << 20, "the load was no load: {outstanding} bytes");
    let last = recorded.last()?;
    let children = recorded.processes.iter().filter(|it| it.came == "forked").count() as u64;
    let unseen = last.untraced.came_and_went;
    println!("{children} of the children that saved were traced, {unseen} came and went");
    ensure!(children + unseen >= SAVES, "{children} traced, {unseen} came and went");
    ensure!(
        recorded.processes.iter().filter(|it| it.came == "forked").all(|it| it.closed.is_some()),
        "the children have ended: {:#?}",
        recorded.processes
    );
    Ok(())
}

#[test]
fn a_container_that_the_kernel_kills_for_its_memory_has_its_report() -> Result<()> {
    let _turn = serial::turn()?;
    let image = Image::of("oom", &[&compile::program("oom", Kind::C)?], &[])?;
    let limits = ["--network", "none", "--interactive", "--memory", "48m", "--memory-swap", "48m"];
    let container = Container::run("oom", &[&limits[..], &[&image.name, "/oom"]].concat())?;
    wait::until("`ready`", Duration::from_secs(20), || Ok(container.logs()?.contains("ready")))?;
    let recording = traced(&container)?;
    let mut attach = Attached::to(&container)?;
    attach.0.stdin.take().context("docker's input")?.write_all(b"go\n")?;
    let recorded = recording.finish()?.recorded()?;
    let inspect = ["inspect", "--format", "{{.State.OOMKilled}}", &container.name];
    ensure!(docker(&inspect)?.trim() == "true", "the kernel did not kill it");
    let outstanding = balanced(&recorded)?;
    ensure!(outstanding > 20 << 20, "it was killed with {outstanding} bytes");
    let native = &recorded.last()?.native;
    let eaten = native.stacks.iter().filter(|stack| stack.contains("eat")).map(|it| it.bytes);
    ensure!(eaten.sum::<u64>() == outstanding, "{:?}", native.outstanding);
    Ok(())
}

#[test]
fn a_container_that_is_restarted_under_its_name_is_followed() -> Result<()> {
    let _turn = serial::turn()?;
    let image = Image::of("restarted", &[&compile::program("busy", Kind::C)?], &[])?;
    let options = ["--network", "none", &image.name, "/busy", "1", "100"];
    let container = Container::run("restarted", &options)?;
    let recording = Recording::start(&["--container", &container.name, "--follow"])?;
    std::thread::sleep(Duration::from_secs(2));
    docker(&["restart", "--time", "0", &container.name])?;
    std::thread::sleep(Duration::from_secs(12));
    let recorded = recording.interrupt()?.recorded()?;
    balanced(&recorded)?;
    let [before, after] = &recorded.processes[..] else {
        anyhow::bail!("one before, one after: {:#?}", recorded.processes);
    };
    ensure!(before.came == "at_start" && after.came == "found", "{:#?}", recorded.processes);
    ensure!(after.pid == container.pid()?, "{after:#?}");
    for process in [before, after] {
        let totals = process.totals.context("totals")?;
        ensure!(totals.allocated.blocks > 0, "nothing was seen of {process:#?}");
    }
    let unseen = Duration::from_nanos(after.unseen_ns.context("how long it was not seen")?);
    println!("after the restart it was not seen for {unseen:?}");
    // 0.67 s at a load of 9 on two CPUs, 6.1 s at one of 26.
    ensure!(unseen < Duration::from_secs(10), "it was not seen for {unseen:?}");
    Ok(())
}
