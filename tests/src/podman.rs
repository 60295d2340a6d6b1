//! Containers of podman's, for the live tests.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The podman command; its output on success.
pub fn podman(arguments: &[&str]) -> Result<String> {
    // As its default runtime does not take hybrid hierarchies.
    let output = Command::new("podman")
        .args(["--runtime", "runc"])
        .args(arguments)
        .output()
        .context("run podman: `cargo xtask setup` installs it")?;
    if !output.status.success() {
        bail!(
            "podman {} ended with {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A container of podman's, removed with its image when dropped.
pub struct Podman {
    pub name: String,
}

impl Podman {
    /// A container of what is in `directory`, under a name that no other test uses.
    pub fn run(name: &str, directory: &Path, command: &[&str]) -> Result<Self> {
        let name = format!("memtrace-test-{}-podman-{name}", std::process::id());
        let script = "tar -C \"$0\" -c . | podman import - \"$1\"";
        let import = Command::new("sh").args(["-c", script]).arg(directory).arg(&name).output()?;
        ensure!(import.status.success(), "{}", String::from_utf8_lossy(&import.stderr));
        let container = Self { name };
        // Limits that need no right to raise them.
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
        let mut run = vec!["run", "--detach", "--name", &container.name, "--network", "none"];
        run.extend(limits);
        run.extend(["--memory", "128m", &container.name]);
        run.extend(command);
        podman(&run)?;
        Ok(container)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Nothing can be done about what cannot be removed.
        _ = podman(&["rm", "--force", "--time", "0", &self.name]);
        _ = podman(&["rmi", "--force", &self.name]);
    }
}
