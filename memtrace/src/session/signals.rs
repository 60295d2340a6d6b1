//! Ctrl-C and SIGTERM end the recording, once: what comes after it ends memtrace as any program.

use anyhow::{Context, Result};
use nix::sys::signal::{SigHandler, Signal};
use tokio::signal::unix::{SignalKind, signal};

pub struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    /// From here on they wait for [`next`](Self::next).
    pub fn taken() -> Result<Self> {
        let take = |kind| signal(kind).context("failed to take over SIGINT and SIGTERM");
        Ok(Self {
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
        })
    }

    /// The reason to end.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "interrupted (SIGINT)",
            _ = self.terminate.recv() => "terminated (SIGTERM)",
        }
    }

    /// Whoever presses Ctrl-C again does not want to wait for the report. The kernel takes the
    /// probes away.
    pub fn give_back(self) {
        for given in [Signal::SIGINT, Signal::SIGTERM] {
            // SAFETY: the default action runs no code of this process.
            let _ = unsafe { nix::sys::signal::signal(given, SigHandler::SigDfl) };
        }
    }
}
