//! Real targets in containers: a neighbour of the same image is neither counted nor slowed, and
//! servers from Debian's packages have books that agree with their own statistics.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use memtrace_tests::compile::{self, Kind};
use memtrace_tests::docker::{Container, Image};
use memtrace_tests::memtrace::Recording;
use memtrace_tests::recorded::Recorded;
use memtrace_tests::tracks::Text;
use memtrace_tests::{serial, wait};

#[path = "live_containers/processes.rs"]
mod processes;
#[path = "live_containers/servers.rs"]
mod servers;

fn traced(container: &Container) -> Result<Recording> {
    Recording::start(&["--container", &container.name])
}

#[test]
fn a_neighbour_of_the_same_image_is_neither_counted_nor_slowed() -> Result<()> {
    let _alone = serial::alone()?;
    let image = Image::of("neighbours", &[&compile::program("busy", Kind::C)?], &[])?;
    let run = |name| Container::run(name, &["--network", "none", &image.name, "/busy", "1", "100"]);
    let (target, neighbour) = (run("target")?, run("neighbour")?);
    let window = Duration::from_secs(3);
    let pace = |container: &Container| -> Result<u64> {
        let before = rounds(container)?;
        std::thread::sleep(window);
        Ok(rounds(container)? - before)
    };
    let untouched = (Text::of(target.pid()?)?, Text::of(neighbour.pid()?)?);
    let alone = pace(&neighbour)?;

    let start = rounds(&target)?;
    let recording = traced(&target)?;
    ensure!(
        !Text::of(target.pid()?)?.changes_since(&untouched.0).is_empty(),
        "the target has no breakpoint while it is traced"
    );
    let foreign = Text::of(neighbour.pid()?)?.changes_since(&untouched.1);
    ensure!(foreign.is_empty(), "breakpoints in the neighbour's memory: {foreign:#?}");
    let beside = pace(&neighbour)?;
    let recorded = recording.interrupt()?.recorded()?;
    std::thread::sleep(Duration::from_millis(300));
    let own = rounds(&target)? - start;

    // A probed neighbour would be slower by a factor of 50 and more.
    ensure!(beside * 3 > alone, "the neighbour did {alone} rounds alone and {beside} beside");
    let tallies = &recorded.last()?.native.tallies;
    let calls = tallies.get("alloc_calls").copied().context("the tally `alloc_calls`")?;
    ensure!(calls > 0, "nothing of the target was seen");
    // Per round a malloc and a realloc; both may be tallied.
    ensure!(calls <= 2 * own + 2, "{calls} calls were seen, the target made at most {}", 2 * own);
    Ok(())
}

/// The last number that `busy` said, once it has said one.
fn rounds(container: &Container) -> Result<u64> {
    let mut rounds = None;
    wait::until("rounds in the log", Duration::from_secs(10), || {
        let logs = container.logs()?;
        let last = logs.lines().rev().find_map(|line| line.strip_prefix("rounds "));
        rounds = last.and_then(|number| number.parse().ok());
        Ok(rounds.is_some())
    })?;
    rounds.context("rounds")
}

#[test]
fn a_program_on_musl_in_a_container_is_exact() -> Result<()> {
    in_container("musl", "malloc", Kind::CMusl)
}

#[test]
fn a_static_program_in_a_container_is_exact() -> Result<()> {
    in_container("static", "malloc", Kind::CStaticGlibc)
}

/// A program of the suite whose standard input comes through docker.
fn in_container(name: &str, program: &'static str, kind: Kind) -> Result<()> {
    let _turn = serial::turn()?;
    let executable = compile::program(program, kind)?;
    let file_name = executable.file_name().context("a file name")?.to_string_lossy().into_owned();
    let image = Image::of(name, &[&executable], &[])?;
    let command = format!("/{file_name}");
    let container =
        Container::run(name, &["--network", "none", "--interactive", &image.name, &command])?;
    wait::until("`ready`", Duration::from_secs(20), || Ok(container.logs()?.contains("ready")))?;
    let recording = traced(&container)?;
    // The container keeps its standard input open when docker's ends: the program stays alive.
    let mut attach = Attached::to(&container)?;
    attach.0.stdin.take().context("docker's input")?.write_all(b"go\n")?;
    let mut told = None;
    wait::until("the truth", Duration::from_secs(60), || {
        told = container.logs()?.lines().find(|line| line.starts_with('{')).map(str::to_owned);
        Ok(told.is_some())
    })?;
    let recorded = recording.interrupt()?.recorded()?;
    let truth = serde_json::from_str(&told.context("the truth")?)?;
    let differences = memtrace_tests::truth::differences(&truth, &recorded.last()?.native);
    ensure!(differences.is_empty(), "{differences:#?}");
    Ok(())
}

/// `docker attach`, which would wait for the container's end.
struct Attached(std::process::Child);

impl Attached {
    fn to(container: &Container) -> Result<Self> {
        std::process::Command::new("docker")
            .args(["attach", "--sig-proxy=false", &container.name])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .map(Self)
            .context("run `docker attach`")
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// No bytes are lost, and the books are not empty.
fn balanced(recorded: &Recorded) -> Result<u64> {
    let native = &recorded.last()?.native;
    let lost: Vec<_> = native.losses.iter().filter(|(_, count)| **count > 0).collect();
    ensure!(lost.is_empty(), "losses: {lost:?}");
    let sum = native.stacks.iter().fold((0, 0), |s, k| (s.0 + k.bytes, s.1 + k.blocks));
    ensure!(
        sum == (native.outstanding.bytes, native.outstanding.blocks),
        "the stacks sum to {sum:?}, the total is {:?}",
        native.outstanding
    );
    // Σ allocated − Σ freed = outstanding, and the other laws that memtrace checks on its books.
    let checks = &recorded.last()?.checks;
    let broken: Vec<_> = checks.iter().filter(|check| !check.holds).collect();
    ensure!(!checks.is_empty() && broken.is_empty(), "laws that do not hold: {broken:?}");
    let unknown_frees = native.tallies.get("free_unknown");
    ensure!(unknown_frees.is_some(), "frees of unknown blocks are not counted");
    Ok(native.outstanding.bytes)
}

/// A question over TCP in the line protocols of redis and memcached; lines until `last`.
fn ask(stream: &TcpStream, question: &str, last: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    (&mut &*stream).write_all(question.as_bytes())?;
    let mut lines = Vec::new();
    for line in BufReader::new(stream).lines() {
        let line = line.context("read the server's answer")?;
        lines.push(line);
        if lines.last().is_some_and(|line| last(line)) {
            return Ok(lines);
        }
    }
    anyhow::bail!("the server hung up after {lines:?}")
}

fn connect(port: u16) -> Result<TcpStream> {
    let mut stream = None;
    wait::until("the server's port", Duration::from_secs(20), || {
        stream = TcpStream::connect(("127.0.0.1", port)).ok();
        Ok(stream.is_some())
    })?;
    let stream = stream.context("a connection")?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    Ok(stream)
}

/// A port that is free now.
fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn field(lines: &[String], name: &str) -> Result<u64> {
    let value = lines.iter().find_map(|line| line.strip_prefix(name));
    let value = value.with_context(|| format!("find `{name}` in {lines:?}"))?;
    value.trim_matches([':', ' ']).parse().with_context(|| format!("read `{value}`"))
}

#[test]
fn redis_on_jemalloc_agrees_with_its_own_statistics() -> Result<()> {
    let _turn = serial::turn()?;
    // One binary has several names, and does what it is called by.
    let directory = tempfile::tempdir()?;
    let server = directory.path().join("redis-server");
    std::fs::copy("/usr/bin/redis-check-rdb", &server).context("is redis-tools installed?")?;
    let image = Image::of("redis", &[&server, Path::new("/usr/bin/redis-benchmark")], &[])?;
    let port = free_port()?;
    let port_text = port.to_string();
    let container = Container::run(
        "redis",
        &[
            "--network",
            "host",
            &image.name,
            "/redis-server",
            "--save",
            "",
            "--port",
            &port_text,
            "--bind",
            "127.0.0.1",
        ],
    )?;
    let control = connect(port)?;
    let used = || -> Result<u64> {
        let lines = ask(&control, "INFO memory\r\n", |line| line.starts_with("lazyfreed_objects"))?;
        field(&lines, "used_memory")
    };
    let before = used()?;
    let recording = traced(&container)?;
    // Its own load generator: 20,000 values of 977 bytes, and much that comes and goes.
    let benchmark = ["-p", &port_text, "-q", "-c", "4", "-n", "20000", "-r", "100000", "-d", "977"];
    container.exec(&[&["/redis-benchmark"], &benchmark[..], &["-t", "set,lpush,lpop"]].concat())?;
    let after = used()?;
    let recorded = recording.interrupt()?.recorded()?;
    let outstanding = balanced(&recorded)?;
    let grown = after.saturating_sub(before);
    // Redis counts usable sizes, memtrace what was asked for: jemalloc rounds up by at most a
    // quarter.
    ensure!(
        outstanding <= grown + (1 << 20) && outstanding * 5 >= grown * 4 - (4 << 20),
        "redis has grown by {grown} bytes, memtrace shows {outstanding}"
    );
    ensure!(grown > 10 << 20, "the load was no load: {grown} bytes");
    let probes = recorded.probes.to_string();
    ensure!(probes.contains("libjemalloc.so.2"), "jemalloc was not probed: {probes}");
    Ok(())
}

#[test]
fn memcached_agrees_with_its_own_statistics() -> Result<()> {
    let _turn = serial::turn()?;
    let server = Path::new("/usr/bin/memcached");
    let image = Image::of("memcached", &[server], &[])?;
    let port = free_port()?;
    let port_text = port.to_string();
    let container = Container::run(
        "memcached",
        &[
            "--network",
            "host",
            "--user",
            "1000:1000",
            &image.name,
            "/memcached",
            "-l",
            "127.0.0.1",
            "-p",
            &port_text,
            "-m",
            "256",
        ],
    )?;
    let client = connect(port)?;
    let malloced = || -> Result<u64> {
        field(&ask(&client, "stats slabs\r\n", |line| line == "END")?, "STAT total_malloced")
    };
    let before = malloced()?;
    let recording = traced(&container)?;
    let value = "m".repeat(9770);
    for key in 0..5000 {
        ask(&client, &format!("set key{key} 0 0 {}\r\n{value}\r\n", value.len()), |_| true)?;
    }
    let grown = malloced()? - before;
    let outstanding = balanced(&recording.interrupt()?.recorded()?)?;
    ensure!(grown > 40 << 20, "the load was no load: {grown} bytes");
    // Beside its slabs it has a hash table and buffers of connections.
    ensure!(
        outstanding >= grown && outstanding <= grown + (16 << 20),
        "memcached has grown by {grown} bytes, memtrace shows {outstanding}"
    );
    Ok(())
}
