//! A docker daemon: the one that runs, or one that we start and stop again.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::shell::{self, Owned};
use crate::{interrupt, paths};

/// As long as it lives, docker answers.
pub struct Daemon {
    _started: Option<Owned>,
}

pub fn answers() -> bool {
    paths::which("docker").is_some()
        && shell::holds(Command::new("docker").args(["info", "--format", "{{.ID}}"]))
}

/// The running daemon, or a new one. It needs neither bridge nor firewall: what we run in
/// containers has the host's network or none, so that it starts in restricted machines too.
pub fn ensure() -> Result<Daemon> {
    if answers() {
        return Ok(Daemon { _started: None });
    }
    if paths::which("dockerd").is_none() || paths::which("docker").is_none() {
        bail!("docker is not installed");
    }
    shell::step("no docker daemon answers: starting one for the time of this command");
    let log_path = paths::target().join("dockerd.log");
    let log =
        File::create(&log_path).with_context(|| format!("create `{}`", log_path.display()))?;
    let mut command = Command::new("dockerd");
    command.args(["--iptables=false", "--ip6tables=false", "--bridge=none"]);
    // A group of its own: Ctrl-C is for us, who then stop the containers, and it last.
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    eprintln!("$ {} > {}", shell::line(&command), log_path.display());
    let mut daemon = Owned::spawn(&mut command)?;
    let end = Instant::now() + Duration::from_secs(60);
    while !answers() {
        interrupt::check()?;
        if let Some(status) = daemon.child.try_wait()? {
            let log = std::fs::read_to_string(&log_path).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            bail!("dockerd ended with {status}: {}", last.join("\n"));
        }
        if Instant::now() > end {
            bail!("dockerd does not answer; its log is `{}`", log_path.display());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(Daemon { _started: Some(daemon) })
}
