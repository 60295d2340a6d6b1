//! The demo: a real Go+cgo service in a container, load on it, memtrace beside it, and a check
//! that the planted leaks are named and healthy work is not.

mod check;
mod container;
mod image;
mod load;
pub mod plain;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::shell::Owned;
use crate::{go, interrupt, paths, setup, shell};

/// What goes wrong in the service, and what does not: statements are finalized.
const LEAKS: [&str; 3] = ["-leak-documents", "-leak-labels", "-grow-cache"];

/// Between the end of the load and the end of the tracing: what is in flight comes to its end.
const CALM: Duration = Duration::from_secs(4);

#[derive(Args)]
pub struct Options {
    /// How long memtrace traces
    #[arg(long, default_value_t = 20, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(8..))]
    pub duration: u64,
    /// Makes a plain container (namespaces, a memory cgroup, its own root), even if docker runs
    #[arg(long)]
    pub no_docker: bool,
}

/// What memtrace leaves for the user.
struct Outputs {
    recording: PathBuf,
    pprof: PathBuf,
    json: PathBuf,
}

pub fn run(options: &Options) -> Result<()> {
    shell::require_root("demo")?;
    interrupt::watch()?;
    setup::demo()?;
    let directory = paths::target().join("demo");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("create `{}`", directory.display()))?;

    shell::step("building memtrace");
    shell::run(Command::new(paths::cargo()).args(["build", "--release", "--package", "memtrace"]))?;
    shell::step("building the service: Go over SQLite and libxml2");
    let service = directory.join("notes");
    shell::run(
        go::build()
            // As images are built: no paths of this machine in the binary, and nothing asked of git,
            // which refuses root in a clone of somebody else's.
            .args(["-trimpath", "-buildvcs=false", "-tags", "libsqlite3", "-o"])
            .arg(&service)
            .arg(".")
            .current_dir(paths::workspace().join("demo")),
    )?;
    let root = image::root(&directory.join("root"), &service)?;
    let container = container::start(options.no_docker, &root, &LEAKS)?;
    let outputs = Outputs {
        recording: directory.join("demo.mtrace"),
        pprof: directory.join("demo.pb.gz"),
        json: directory.join("demo.json"),
    };
    let observed = trace(&container, options, &outputs)?;
    drop(container);

    check::report(&outputs.json, &observed)?;
    eprintln!();
    eprintln!("Open the profile:        {} tool pprof {}", tool(), show(&outputs.pprof));
    eprintln!("or in a browser:         {} tool pprof -http=: {}", tool(), show(&outputs.pprof));
    eprintln!(
        "Read the recording again: target/release/memtrace report {}",
        show(&outputs.recording)
    );
    Ok(())
}

/// Traces the service from a calm start to a calm end, with load between.
fn trace(
    container: &container::Container,
    options: &Options,
    outputs: &Outputs,
) -> Result<check::Observed> {
    shell::step(&format!("tracing container `{}` for {} s", container.name(), options.duration));
    let mut command = Command::new(paths::target().join("release/memtrace"));
    command.args(["record", "--container", container.name()]);
    command.arg("--duration").arg(format!("{}s", options.duration));
    command.args(["--interval", "1s"]);
    command.arg("-o").arg(&outputs.recording);
    command.arg("--pprof").arg(&outputs.pprof).arg("--json").arg(&outputs.json);
    eprintln!("$ {}", shell::line(&command));
    let mut memtrace = Owned::spawn(command.stdin(Stdio::null()).stderr(Stdio::piped()))?;
    let stderr = memtrace.child.stderr.take().context("memtrace has no standard error")?;
    let (sender, armed) = std::sync::mpsc::channel();
    let echo = std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            eprintln!("{line}");
            if line.starts_with("tracing ") {
                // Nobody waits any more when the demo has ended early.
                _ = sender.send(());
            }
        }
    });
    loop {
        interrupt::check()?;
        match armed.recv_timeout(Duration::from_millis(100)) {
            Ok(()) => break,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                bail!("memtrace ended with {} before it traced", memtrace.wait()?)
            }
        }
    }

    let before = load::truth(container.pid())?;
    let busy = Duration::from_secs(options.duration).saturating_sub(CALM);
    let requests = load::put(container.pid(), busy)?;
    let after = load::truth(container.pid())?;
    eprintln!("the service answered {requests} requests");

    let status = memtrace.wait()?;
    if echo.join().is_err() {
        bail!("reading memtrace's messages panicked");
    }
    if !status.success() {
        bail!("memtrace ended with {status}");
    }
    Ok(check::Observed { before, after })
}

/// The Go of the demo as the user would type it.
fn tool() -> String {
    show(&go::go())
}

fn show(path: &Path) -> String {
    path.strip_prefix(paths::workspace()).unwrap_or(path).display().to_string()
}
