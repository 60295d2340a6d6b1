//! Waiting with an end: no test hangs for ever on a child that says nothing.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How many times slower than a real machine this one is: an emulated guest sets it.
pub const SLOWNESS: &str = "MEMTRACE_SLOWNESS";

/// A limit for memtrace's own work, as long as this machine needs.
pub fn patience(limit: Duration) -> Duration {
    let slowness = std::env::var(SLOWNESS).ok().and_then(|times| times.parse().ok());
    limit.saturating_mul(slowness.unwrap_or(1))
}

/// The lines of a child's output, read by a thread of its own so that waiting can end.
pub struct Lines {
    receiver: Receiver<String>,
    seen: Vec<String>,
}

impl Lines {
    pub fn of(stream: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                // Progress that redraws its line ends with a carriage return.
                let line = line.rsplit('\r').find(|part| !part.is_empty()).unwrap_or("").to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { receiver, seen: Vec::new() }
    }

    /// The next line for which `wanted` holds.
    pub fn find(
        &mut self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let end = Instant::now() + limit;
        loop {
            match self.receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return Ok(line);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("waited {limit:?} for {what}; seen so far: {:#?}", self.seen)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the output ended before {what}; seen: {:#?}", self.seen)
                }
            }
        }
    }

    /// Everything until the output ends.
    pub fn rest(mut self, limit: Duration) -> Vec<String> {
        let end = Instant::now() + limit;
        while let Ok(line) =
            self.receiver.recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            self.seen.push(line);
        }
        self.seen
    }

    pub fn seen(&self) -> &[String] {
        &self.seen
    }
}

/// Waits for the child's end; kills it when `limit` has passed, which is an error.
pub fn for_exit(child: &mut Child, what: &str, limit: Duration) -> Result<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("wait for {what}"))? {
            return Ok(status);
        }
        if Instant::now() > end {
            child.kill().with_context(|| format!("kill {what}"))?;
            child.wait().with_context(|| format!("wait for {what}"))?;
            bail!("{what} did not end within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Polls until `condition` holds.
pub fn until(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        if condition()? {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("waited {limit:?} for {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
