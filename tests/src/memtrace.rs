//! The memtrace under test: where its binary is, and a `record` that runs beside a program.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::recorded::Recorded;
use crate::wait::{self, Lines};

/// Exit codes of memtrace, as its manual page tells them.
pub mod exit_code {
    pub const FAILED: i32 = 1;
    pub const USAGE: i32 = 2;
    /// Not found, several, not running, not traceable.
    pub const TARGET: i32 = 3;
    pub const NOT_PERMITTED: i32 = 4;
    pub const NOTHING_TO_PROBE: i32 = 5;
    pub const KERNEL_LACKS: i32 = 6;
}

/// The binary under test: `MEMTRACE_BIN`, or the one of this workspace, built when it is stale.
pub fn binary() -> Result<&'static Path> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BINARY
        .get_or_init(|| find_binary().map_err(|error| format!("{error:#}")))
        .as_deref()
        .map_err(|error| anyhow!("{error}"))
}

fn find_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("MEMTRACE_BIN") {
        return Ok(PathBuf::from(path));
    }
    let test = std::env::current_exe().context("find this test's own binary")?;
    let Some(profile) = test.parent().and_then(Path::parent) else {
        bail!("`{}` does not lie in a target directory", test.display());
    };
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.current_dir(crate::workspace()).args(["build", "--quiet", "--package", "memtrace"]);
    cargo.args(["--bin", "memtrace"]);
    // What cargo told this test of its own package is not for the cargo that it runs: build scripts
    // that look at it would take themselves for stale (as in xtask's `forget_own_package`).
    for (name, _) in std::env::vars_os() {
        let told = name.to_string_lossy();
        if told.starts_with("CARGO_PKG_") || told.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    if profile.file_name() == Some(OsStr::new("release")) {
        cargo.arg("--release");
    }
    let status = cargo.status().context("run `cargo build --package memtrace`")?;
    if !status.success() {
        bail!("`cargo build --package memtrace` ended with {status}");
    }
    Ok(profile.join("memtrace"))
}

/// A `memtrace record` at work, past its `tracing PID` line.
pub struct Recording {
    child: Child,
    stderr: Lines,
    directory: tempfile::TempDir,
    /// From the `tracing PID … (N probes armed)` line.
    pub probes_armed: u64,
}

/// What a finished `memtrace record` left.
pub struct Finished {
    pub status: ExitStatus,
    pub stderr: Vec<String>,
    pub json: Result<Recorded>,
}

impl Recording {
    /// Attaches to a running process and returns when everything is armed.
    pub fn attach(pid: u32, more: &[impl AsRef<OsStr>]) -> Result<Self> {
        Self::attach_in(&[], pid, more)
    }

    /// The same with more in memtrace's own environment.
    pub fn attach_in(
        environment: &[(&str, &str)],
        pid: u32,
        more: &[impl AsRef<OsStr>],
    ) -> Result<Self> {
        let pid = pid.to_string();
        let mut arguments: Vec<OsString> = vec!["--pid".into(), pid.into()];
        arguments.extend(more.iter().map(|argument| argument.as_ref().to_owned()));
        Self::start_in(environment, &arguments)
    }

    /// `memtrace record` with these arguments, `--json` to a file, no duration.
    pub fn start(arguments: &[impl AsRef<OsStr>]) -> Result<Self> {
        Self::start_in(&[], arguments)
    }

    fn start_in(environment: &[(&str, &str)], arguments: &[impl AsRef<OsStr>]) -> Result<Self> {
        let directory = tempfile::tempdir().context("create a directory for the JSON")?;
        let mut child = Command::new(binary()?)
            .envs(environment.iter().copied())
            .arg("record")
            .arg("--json")
            .arg(directory.path().join("memtrace.json"))
            .args(["-o", "/dev/null"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start memtrace")?;
        let Some(stderr) = child.stderr.take() else { bail!("memtrace has no standard error") };
        let mut recording = Self { child, stderr: Lines::of(stderr), directory, probes_armed: 0 };
        let line = recording.stderr.find(
            "memtrace's `tracing PID` line",
            wait::patience(Duration::from_secs(60)),
            |line| line.starts_with("tracing "),
        )?;
        recording.probes_armed = armed(&line)
            .with_context(|| format!("`{line}` does not say how many probes are armed"))?;
        Ok(recording)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("memtrace's pid")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("send {signal} to memtrace"))
    }

    /// Ctrl-C, then everything that it wrote.
    pub fn interrupt(self) -> Result<Finished> {
        self.signal(Signal::SIGINT)?;
        self.finish()
    }

    /// Waits for its own end (a duration, the tracee's end, a signal sent before).
    pub fn finish(mut self) -> Result<Finished> {
        let limit = wait::patience(Duration::from_secs(90));
        let status = wait::for_exit(&mut self.child, "memtrace", limit)?;
        let path = self.directory.path().join("memtrace.json");
        let stderr = std::mem::replace(&mut self.stderr, Lines::of(std::io::empty()))
            .rest(Duration::from_secs(5));
        let json = std::fs::read(&path)
            .with_context(|| format!("read `{}`", path.display()))
            .and_then(|bytes| serde_json::from_slice(&bytes).context("read memtrace's JSON"));
        Ok(Finished { status, stderr, json })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Finished {
    /// The JSON of a run that ended well.
    pub fn recorded(self) -> Result<Recorded> {
        if !self.status.success() {
            bail!("memtrace ended with {}: {}", self.status, self.stderr.join("\n"));
        }
        self.json
    }
}

/// `tracing 4711 (redis-server) in web: (23 probes armed)` → 23
fn armed(line: &str) -> Option<u64> {
    line.split_once(" probes armed")?.0.rsplit(['(', ' ']).next()?.parse().ok()
}

/// memtrace to its end with these arguments, for everything that is not a long recording.
pub fn run(arguments: &[impl AsRef<OsStr>]) -> Result<Output> {
    let mut command = Command::new(binary()?);
    command.args(arguments);
    run_command(command)
}

/// The same for a command that was prepared elsewhere, ended after a minute.
pub fn run_command(mut command: Command) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let read = |stream: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                // A broken pipe ends the output; what came until then counts.
                _ = stream.read_to_end(&mut bytes);
            }
            bytes
        })
    };
    let out = read(stdout.map(|s| Box::new(s) as _));
    let err = read(stderr.map(|s| Box::new(s) as _));
    let limit = wait::patience(Duration::from_secs(60));
    let status = wait::for_exit(&mut child, "memtrace", limit)?;
    let collect = |thread: std::thread::JoinHandle<Vec<u8>>| {
        thread.join().map_err(|_| anyhow!("the reader of memtrace's output panicked"))
    };
    Ok(Output { status, stdout: collect(out)?, stderr: collect(err)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_armed_probes_is_read_from_the_line() {
        assert_eq!(armed("tracing 4711 (redis-server) in web (23 probes armed)"), Some(23));
        assert_eq!(armed("tracing 1 (1 probes armed)"), Some(1));
        assert_eq!(armed("tracing 1"), None);
    }
}
