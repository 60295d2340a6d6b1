//! One case of the conformance suite: a program, how it is built and started, and the verdict.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::compile::{self, Kind};
use crate::memtrace::Recording;
use crate::program::Program;
use crate::recorded::Recorded;
use crate::serial;
use crate::truth::{self, Truth};

/// A program and how to run it under memtrace.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: &'static str,
    pub kind: Kind,
    pub arguments: &'static [&'static str],
    pub environment: Vec<(String, String)>,
    pub memtrace: &'static [&'static str],
    pub memtrace_environment: &'static [(&'static str, &'static str)],
    /// How long the work may take, traced.
    pub limit: Duration,
    /// The truth is of the program that executed another one: of its last state.
    pub until_exec: bool,
}

impl Case {
    pub fn new(name: &'static str, kind: Kind) -> Self {
        Self {
            name,
            kind,
            arguments: &[],
            environment: Vec::new(),
            memtrace: &[],
            memtrace_environment: &[],
            limit: Duration::from_secs(60),
            until_exec: false,
        }
    }

    pub fn arguments(mut self, arguments: &'static [&'static str]) -> Self {
        self.arguments = arguments;
        self
    }

    pub fn memtrace(mut self, arguments: &'static [&'static str]) -> Self {
        self.memtrace = arguments;
        self
    }

    /// Stacks are walked as on kernels without `bpf_loop`.
    pub fn chained(mut self) -> Self {
        self.memtrace_environment = &[("MEMTRACE_WALK", "chained")];
        self
    }

    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The truth is of the program that executed another one.
    pub fn until_exec(mut self) -> Self {
        self.until_exec = true;
        self
    }

    /// Under an allocator that replaces libc's.
    pub fn preload(mut self, library: &str) -> Result<Self> {
        for directory in ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"] {
            let path = format!("{directory}/{library}");
            if std::path::Path::new(&path).exists() {
                self.environment.push(("LD_PRELOAD".to_owned(), path));
                return Ok(self);
            }
        }
        bail!("`{library}` is not installed: run `cargo xtask setup`")
    }

    /// Runs it traced and returns its truth beside memtrace's JSON.
    pub fn trace(&self) -> Result<(Truth, Recorded)> {
        let executable = compile::program(self.name, self.kind)?;
        let mut program = Program::start(&executable, self.arguments, &self.environment)?;
        let recording =
            Recording::attach_in(self.memtrace_environment, program.pid(), self.memtrace)?;
        program.go()?;
        let truth = program.truth(self.limit)?;
        recording.signal(Signal::SIGINT)?;
        let recorded = recording.finish()?.recorded()?;
        program.finish()?;
        Ok((truth, recorded))
    }

    /// The verdict: the difference is zero bytes and zero blocks, with zero losses.
    pub fn check(&self) -> Result<()> {
        let _turn = serial::turn()?;
        let (truth, recorded) = self.trace().with_context(|| format!("in {self:?}"))?;
        self.judge(&truth, &recorded)
    }

    /// Whether what memtrace saw is the truth, exactly.
    pub fn judge(&self, truth: &Truth, recorded: &Recorded) -> Result<()> {
        if truth.sites.is_empty() && truth.ranges_bytes.is_none() && truth.tallies.is_empty() {
            bail!("`{}` tells an empty truth: there is nothing to compare", self.name);
        }
        let last = recorded.last()?;
        let native = match self.until_exec {
            true => recorded.until_exec()?,
            false => last.native.clone(),
        };
        let mut differences = truth::differences(truth, &native);
        let broken = last.checks.iter().filter(|check| !check.holds);
        differences.extend(broken.map(|check| format!("memtrace's own check fails: {check:?}")));
        if !differences.is_empty() {
            bail!("{self:?} differs:\n  {}", differences.join("\n  "));
        }
        Ok(())
    }
}
