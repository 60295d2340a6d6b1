//! One program of `programs/`, alive, with the protocol's two questions: go, and the truth.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::truth::Truth;
use crate::wait::{self, Lines};

pub struct Program {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines,
}

impl Program {
    /// Starts it and waits until it says `ready`.
    pub fn start(
        executable: &Path,
        arguments: &[impl AsRef<OsStr>],
        environment: &[(String, String)],
    ) -> Result<Self> {
        let name = executable.display().to_string();
        let mut child = Command::new(executable)
            .args(arguments)
            .envs(environment.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start `{name}`"))?;
        let stdin = child.stdin.take();
        let Some(stdout) = child.stdout.take() else { bail!("`{name}` has no output") };
        let mut program = Self { name, child, stdin, lines: Lines::of(stdout) };
        program
            .lines
            .find("`ready`", Duration::from_secs(30), |line| line == "ready")
            .with_context(|| format!("start `{}`", program.name))?;
        Ok(program)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a line: the work starts (or, for programs with a conversation, goes on).
    pub fn go(&mut self) -> Result<()> {
        let Some(stdin) = self.stdin.as_mut() else { bail!("`{}` has no input", self.name) };
        stdin.write_all(b"go\n").with_context(|| format!("tell `{}` to go", self.name))
    }

    /// Waits until the work is done and the program has told its truth.
    pub fn truth(&mut self, limit: Duration) -> Result<Truth> {
        let line = self
            .lines
            .find("the truth", limit, |line| line.starts_with('{'))
            .with_context(|| format!("in `{}`", self.name))?;
        serde_json::from_str(&line)
            .with_context(|| format!("`{}` tells no valid truth: {line}", self.name))
    }

    /// The next line of output for which `wanted` holds.
    pub fn line(
        &mut self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        self.lines.find(what, limit, wanted).with_context(|| format!("in `{}`", self.name))
    }

    pub fn is_alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().with_context(|| format!("ask for `{}`", self.name))?.is_none())
    }

    /// Ends its input and expects it to end well: a program that was traced is unharmed.
    pub fn finish(mut self) -> Result<()> {
        drop(self.stdin.take());
        let status = wait::for_exit(&mut self.child, &self.name, Duration::from_secs(60))?;
        if !status.success() {
            bail!("`{}` was harmed: it ended with {status}", self.name);
        }
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
