//! The container that the service runs in: docker's, or a plain one.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{load, plain};
use crate::{daemon, interrupt, shell};

const IMAGE: &str = "memtrace-demo";
const NAME: &str = "memtrace-demo";
const MEMORY: &str = "256m";

/// A running service; dropping it removes the container and all that was made for it.
pub struct Container {
    runtime: Runtime,
    name: String,
    pid: u32,
}

enum Runtime {
    Docker { _removed: Removed, _daemon: daemon::Daemon },
    Plain { _container: plain::Plain },
}

/// Removes docker's container and image.
struct Removed;

impl Drop for Removed {
    fn drop(&mut self) {
        for arguments in [["rm", "--force", NAME], ["rmi", "--force", IMAGE]] {
            // Nothing more can be done when the daemon has gone.
            shell::holds(Command::new("docker").args(arguments));
        }
    }
}

impl Container {
    /// What `memtrace record --container` is told.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The service's pid, as the host sees it.
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

/// Starts the service and waits until it answers.
pub fn start(no_docker: bool, root: &Path, flags: &[&str]) -> Result<Container> {
    let container = if no_docker {
        plain(root, flags)?
    } else {
        match daemon::ensure() {
            Ok(daemon) => docker(daemon, root, flags)?,
            Err(error) => {
                interrupt::check()?;
                eprintln!("{error:#}: making a plain container instead");
                plain(root, flags)?
            }
        }
    };
    let end = Instant::now() + Duration::from_secs(20);
    while let Err(error) = load::truth(container.pid) {
        interrupt::check()?;
        if Instant::now() > end {
            let logs = match container.runtime {
                Runtime::Docker { .. } => {
                    shell::ask(Command::new("docker").args(["logs", NAME])).unwrap_or_default()
                }
                Runtime::Plain { .. } => String::new(),
            };
            return Err(error).with_context(|| format!("the service does not answer {logs}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(container)
}

fn docker(daemon: daemon::Daemon, root: &Path, flags: &[&str]) -> Result<Container> {
    shell::step("starting the service in a docker container");
    // What an earlier run left that was killed.
    shell::holds(Command::new("docker").args(["rm", "--force", NAME]));
    let removed = Removed;
    import(root)?;
    shell::run(
        Command::new("docker")
            .args(["run", "--detach", "--name", NAME, "--memory", MEMORY, "--network", "none"])
            .args([IMAGE, "/notes"])
            .args(flags)
            // Its id; standard output is the report alone.
            .stdout(Stdio::null()),
    )?;
    let pid = shell::ask(Command::new("docker").args(["inspect", "-f", "{{.State.Pid}}", NAME]))?;
    let pid = match pid.trim().parse() {
        Ok(0) => bail!("the container ended at once: see `docker logs {NAME}`"),
        Ok(pid) => pid,
        Err(_) => bail!("docker gives the pid `{}`", pid.trim()),
    };
    let runtime = Runtime::Docker { _removed: removed, _daemon: daemon };
    Ok(Container { runtime, name: NAME.to_owned(), pid })
}

fn import(root: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(root).args(["-c", "."]).stdout(Stdio::piped());
    let mut import = Command::new("docker");
    import.args(["import", "-", IMAGE]).stdout(Stdio::null());
    eprintln!("$ {} | {}", shell::line(&tar), shell::line(&import));
    let mut archive = shell::Owned::spawn(&mut tar)?;
    let stream = archive.child.stdout.take().context("tar has no output")?;
    let status = shell::Owned::spawn(import.stdin(stream))?.wait()?;
    if !archive.wait()?.success() || !status.success() {
        bail!("the image could not be made: `docker import` ended with {status}");
    }
    Ok(())
}

fn plain(root: &Path, flags: &[&str]) -> Result<Container> {
    shell::step("starting the service in a plain container");
    let container = plain::Plain::start(root, 256 << 20, "/notes", flags)?;
    let (name, pid) = (container.id().to_owned(), container.pid());
    Ok(Container { runtime: Runtime::Plain { _container: container }, name, pid })
}
