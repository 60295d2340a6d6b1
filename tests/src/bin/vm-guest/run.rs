//! A command in the guest, in a cgroup (v2) of its own when it is to have a limit.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow};

use crate::{container, event};

/// Tells the command's output as it comes, then how it ended.
pub fn run(command: &[String], memory_max_bytes: Option<u64>) -> Result<()> {
    let (program, arguments) = command.split_first().context("there is no command to run")?;
    let own = std::process::id();
    if let Some(limit) = memory_max_bytes {
        // A child is born where its parent is.
        container::enter(&container::group(limit)?, own)?;
    }
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{program}` in the guest"))?;
    if memory_max_bytes.is_some() {
        // Only the command is to feel the limit.
        container::enter(container::root(), own)?;
    }
    let stdout = child.stdout.take().map(|stream| relay("stdout", stream));
    let stderr = child.stderr.take().map(|stream| relay("stderr", stream));
    let status = child.wait().with_context(|| format!("wait for `{program}`"))?;
    for relay in [stdout, stderr].into_iter().flatten() {
        relay.join().map_err(|_| anyhow!("the reader of the command's output panicked"))??;
    }
    event::exited(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
    Ok(())
}

fn relay(
    name: &'static str,
    mut stream: impl Read + Send + 'static,
) -> std::thread::JoinHandle<Result<()>> {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match stream.read(&mut buffer).with_context(|| format!("read the command's {name}"))? {
                0 => return Ok(()),
                count => event::output(name, &buffer[..count]),
            }
        }
    })
}
