//! Ctrl-C and SIGTERM end the recording, once: what comes after it ends memtrace as any program.
//! SIGUSR1 marks a phase.

use anyhow::{Context, Result};
use nix::sys::signal::{SigHandler, Signal};
use tokio::signal::unix::{SignalKind, signal};

const INTERRUPTED: &str = "interrupted (SIGINT)";
const TERMINATED: &str = "terminated (SIGTERM)";

/// What a signal says.
pub enum Event {
    End(&'static str),
    Mark(String),
}

pub struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    mark: tokio::signal::unix::Signal,
    marks: u32,
}

impl Signals {
    /// From here on they wait for [`next`](Self::next).
    pub fn taken() -> Result<Self> {
        let take = |kind| signal(kind).context("failed to take over SIGINT and SIGTERM");
        Ok(Self {
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
            mark: signal(SignalKind::user_defined1()).context("failed to take over SIGUSR1")?,
            marks: 0,
        })
    }

    /// The reason to end.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => INTERRUPTED,
            _ = self.terminate.recv() => TERMINATED,
        }
    }

    /// The reason to end, or the name of the phase that begins: `signal-1`, `signal-2`, …
    pub async fn event(&mut self) -> Event {
        tokio::select! {
            _ = self.interrupt.recv() => Event::End(INTERRUPTED),
            _ = self.terminate.recv() => Event::End(TERMINATED),
            _ = self.mark.recv() => {
                // Several that came before the first was taken are one.
                self.marks += 1;
                Event::Mark(format!("signal-{}", self.marks))
            }
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
