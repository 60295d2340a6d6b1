//! What a person sees on stderr while a recording runs: one line, rewritten, only on a terminal.

use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

pub struct Progress {
    enabled: bool,
    shown: bool,
}

/// What one line tells.
pub struct Status {
    pub elapsed: Duration,
    pub total: Option<Duration>,
    pub calls: u64,
    pub outstanding_bytes: u64,
    pub outstanding_blocks: u64,
    pub losses: u64,
}

impl Progress {
    pub fn new() -> Self {
        Self { enabled: stderr().is_terminal(), shown: false }
    }

    pub fn enabled(&self) -> bool {
        self.enabled
    }

    pub fn show(&mut self, status: &Status) {
        if self.enabled {
            // Progress is a courtesy: a terminal that went away is no reason to stop.
            let _ = write!(stderr(), "\r\x1b[K{}", line(status));
            self.shown = true;
        }
    }

    pub fn clear(&mut self) {
        if self.shown {
            let _ = write!(stderr(), "\r\x1b[K");
            self.shown = false;
        }
    }
}

fn line(status: &Status) -> String {
    let time = match status.total {
        Some(total) => format!("{} left", clock(total.saturating_sub(status.elapsed))),
        None => format!("{} (Ctrl-C ends)", clock(status.elapsed)),
    };
    let losses = match status.losses {
        0 => String::new(),
        losses => format!(" · {losses} LOST, see the report"),
    };
    format!(
        "{time} · {} calls · {:.1} MiB outstanding in {} blocks{losses}",
        status.calls,
        status.outstanding_bytes as f64 / f64::from(1 << 20),
        status.outstanding_blocks,
    )
}

fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds / 3600 {
        0 => format!("{}:{:02}", seconds / 60, seconds % 60),
        hours => format!("{hours}:{:02}:{:02}", seconds / 60 % 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_told_while_they_happen() {
        let mut status = Status {
            elapsed: Duration::from_secs(5),
            total: Some(Duration::from_secs(70)),
            calls: 12,
            outstanding_bytes: 3 << 20,
            outstanding_blocks: 4,
            losses: 0,
        };
        assert_eq!(line(&status), "1:05 left · 12 calls · 3.0 MiB outstanding in 4 blocks");
        status.losses = 9;
        assert!(line(&status).ends_with(" · 9 LOST, see the report"));
    }
}
