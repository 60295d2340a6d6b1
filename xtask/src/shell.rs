//! Commands: each is printed before it runs, and its failure says which it was.

use std::io::{BufRead, BufReader, IsTerminal};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::interrupt;

/// A child that does not outlive its owner.
pub struct Owned {
    pub child: Child,
    what: String,
}

impl Owned {
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let what = line(command);
        let child = command.spawn().with_context(|| format!("start `{what}`"))?;
        Ok(Self { child, what })
    }

    /// What was typed to start it.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Waits for its end, or for ours.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        loop {
            if let Some(status) =
                self.child.try_wait().with_context(|| format!("wait for `{}`", self.what))?
            {
                return Ok(status);
            }
            interrupt::check()?;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, kill};
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        // First politely: it may have something to clean up itself.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM);
        }
        for _ in 0..200 {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// What the user would type.
pub fn line(command: &Command) -> String {
    let mut words = Vec::new();
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(format!("{}={}", key.to_string_lossy(), quoted(&value.to_string_lossy())));
        }
    }
    words.push(command.get_program().to_string_lossy().into_owned());
    words.extend(command.get_args().map(|argument| quoted(&argument.to_string_lossy())));
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%~".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Prints a headline of what comes next.
pub fn step(what: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("\x1b[1m==> {what}\x1b[0m");
    } else {
        eprintln!("==> {what}");
    }
}

/// Prints the command, runs it with our own output, and expects success.
pub fn run(command: &mut Command) -> Result<()> {
    let what = line(command);
    eprintln!("$ {what}");
    let start = Instant::now();
    let status = Owned::spawn(command)?.wait()?;
    if !status.success() {
        bail!("`{what}` ended with {status}");
    }
    if start.elapsed() > Duration::from_secs(5) {
        eprintln!("  ({:.0} s)", start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Prints the command, runs it, hands every line of its output to `each`, and returns its status.
pub fn run_lines(command: &mut Command, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
    eprintln!("$ {}", line(command));
    let mut owned = Owned::spawn(command.stdout(Stdio::piped()))?;
    let stdout = owned.child.stdout.take().context("the command has no output")?;
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    loop {
        interrupt::check()?;
        match receiver.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => each(&line),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    owned.wait()
}

/// Runs a question whose answer is its output; not printed, because it changes nothing.
pub fn ask(command: &mut Command) -> Result<String> {
    let what = line(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run `{what}`"))?;
    if !output.status.success() {
        bail!("`{what}` ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a question ends well.
pub fn holds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Root, or an error that says what to type.
pub fn require_root(verb: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "`cargo xtask {verb}` needs root, because uprobes do: \
         sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask {verb}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_command_can_be_typed() {
        let mut command = Command::new("printf");
        command.env("A", "b c").args(["%s\n", "it's", "", "plain-1.0"]);
        assert_eq!(
            line(&command),
            r"A='b c' printf '%s
' 'it'\''s' '' plain-1.0"
        );
    }
}
