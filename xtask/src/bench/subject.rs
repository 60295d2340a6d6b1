//! The program that is measured, and memtrace beside it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::shell::Owned;
use crate::{interrupt, shell};

/// A program of `tests/programs` that answers lines.
pub struct Subject {
    owned: Owned,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Subject {
    pub fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut owned = Owned::spawn(command)?;
        let stdin = owned.child.stdin.take().context("the program has no input")?;
        let stdout = owned.child.stdout.take().context("the program has no output")?;
        let mut subject = Self { owned, stdin, stdout: BufReader::new(stdout) };
        // What starts it may say something first.
        while subject.line()? != "ready" {}
        Ok(subject)
    }

    pub fn pid(&self) -> u32 {
        self.owned.child.id()
    }

    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line).context("read the program's answer")? == 0 {
            bail!("`{}` has ended", self.owned.what());
        }
        Ok(line.trim_end().to_owned())
    }

    pub fn tell(&mut self, line: &str) -> Result<()> {
        writeln!(self.stdin, "{line}").context("ask the program")
    }

    /// CPU ns per pair, over `count` pairs.
    pub fn measure(&mut self, count: u64) -> Result<f64> {
        interrupt::check()?;
        self.tell(&count.to_string())?;
        let picoseconds: f64 = self.line()?.parse().context("read the program's figure")?;
        Ok(picoseconds / 1000.0)
    }
}

/// `memtrace record` on a process, armed.
pub struct Recording<'a> {
    owned: Owned,
    json: &'a Path,
}

impl<'a> Recording<'a> {
    pub fn attach(memtrace: &Path, pid: u32, json: &'a Path, options: &[&str]) -> Result<Self> {
        let mut command = Command::new(memtrace);
        command
            .args(["record", "--go-profile", "off", "-o", "/dev/null"])
            .args(options)
            .arg("--pid");
        command.arg(pid.to_string()).arg("--json").arg(json);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut owned = Owned::spawn(&mut command)?;
        let stderr = owned.child.stderr.take().context("memtrace has no standard error")?;
        let mut seen = Vec::new();
        let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
        for line in lines.by_ref() {
            if line.starts_with("tracing ") {
                // Whatever it says later must not block it.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(Self { owned, json });
            }
            seen.push(line);
        }
        bail!("`{}` ended before it traced: {}", shell::line(&command), seen.join("\n"))
    }

    /// Ctrl-C, and what it wrote.
    pub fn end(mut self) -> Result<Value> {
        kill(Pid::from_raw(i32::try_from(self.owned.child.id())?), Signal::SIGINT)
            .context("interrupt memtrace")?;
        let status = self.owned.wait()?;
        if !status.success() {
            bail!("memtrace ended with {status}");
        }
        let text =
            std::fs::read(self.json).with_context(|| format!("read `{}`", self.json.display()))?;
        serde_json::from_slice(&text).context("read memtrace's JSON")
    }
}

/// The time that something took.
pub fn timed<T>(what: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let start = Instant::now();
    Ok((what()?, start.elapsed()))
}
