//! `cargo xtask vm --docker`: the live tests of the ledger in a guest with docker and cgroup v2,
//! which this machine need not have. The tests' own binaries are the command.
//!
//! The daemon and what it needs come from this machine, by the paths that they have here. Containers
//! lie on a disk (ext4, made without being root); the modules for it come with the kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::guest::Guest;
use super::{Options, archive, build, command, directory, initramfs, kernels};
use crate::{paths, setup, shell};

/// The kernel that Debian's stable release runs with cgroup v2 alone.
const SERIES: &str = "6.12";
/// Tests whose containers are docker's. What has no cgroup v2 to be about stays on the host.
const TESTS: [&str; 2] = ["live_explain", "live_ledger_v2"];
/// What is about speed says nothing in an emulated machine.
const NOT_HERE: [&str; 1] = ["two_thousand_mappings"];
/// For `--short`: the charge and its parts, docker's own figure, and the freezer.
const SHORT: [&str; 3] = ["planted_amounts", "docker_stats_shows", "a_frozen_ledger_is_exact"];
/// The daemon and what it starts; what the harness calls to make images.
const PROGRAMS: [&str; 11] = [
    "docker",
    "dockerd",
    "containerd",
    "containerd-shim-runc-v2",
    "runc",
    "bash",
    "ldd",
    "readelf",
    "unshare",
    "setpriv",
    "swapon",
];
/// Programs that the tests put into containers.
const TRACEES: [&str; 2] = ["c/ledger", "go/held"];
/// Of the disk; sparse.
const DISK_MIB: u64 = 1024;
/// Starts the daemon and runs the tests.
const SCRIPT: &str = include_str!("docker.sh");

pub fn run(options: &Options) -> Result<ExitCode> {
    let series = match options.kernels.as_slice() {
        [] => SERIES,
        [series] => series,
        _ => bail!("--docker takes one --kernel"),
    };
    // The compilers of what is traced; docker itself must be there.
    setup::demo()?;
    let kernel = kernels::of_series(series);
    let images = archive::images(std::slice::from_ref(&kernel), options.refresh)?;
    let image = images.first().context("no image")?;
    let modules = archive::modules(&kernel)?;
    build()?;
    let tests = test_binaries()?;
    let mut command = vec!["/bin/sh".to_owned(), "/docker.sh".to_owned()];
    command.extend(arguments(options));
    let task = json!({ "task": "run", "command": command, "memory_max_bytes": null });
    let mut builder = initramfs(&task)?;
    builder.text("/docker.sh", SCRIPT)?;
    for module in &modules {
        let name = module.file_name().context("a module without a name")?;
        builder.any(module, &format!("/modules/{}", name.to_string_lossy()))?;
    }
    for program in PROGRAMS {
        let path = paths::which(program).with_context(|| {
            format!("find `{program}`: `cargo xtask setup` installs what tests need")
        })?;
        // Before busybox's own of the same name.
        builder.any(&path, &format!("/bin/{program}"))?;
    }
    for (name, binary) in &tests {
        builder.stripped(binary, &format!("/tests/{name}"))?;
    }
    for tracee in TRACEES {
        let path = paths::target().join("programs").join(tracee);
        builder.program(&path, &format!("/programs/{tracee}"))?;
    }
    let initramfs = builder.finish()?;
    let disk = Disk::create()?;
    shell::step(&format!("{} with docker in an emulated machine", image.package));
    let guest = Guest {
        vmlinuz: &image.vmlinuz,
        initramfs: initramfs.path(),
        disk: Some(&disk.0),
        console: directory().join(format!("console-{}.log", std::process::id())),
        parameters: &options.parameters,
        limit: Duration::from_secs(options.limit),
    };
    command::end(&guest, guest.run(command::pass_on)?)
}

/// What the test binaries are called with.
fn arguments(options: &Options) -> Vec<String> {
    if !options.command.is_empty() {
        return options.command.clone();
    }
    match options.short {
        true => SHORT.map(str::to_owned).to_vec(),
        false => {
            NOT_HERE.iter().flat_map(|name| ["--skip".to_owned(), (*name).to_owned()]).collect()
        }
    }
}

/// Builds the tests and what they trace; cargo says where the binaries lie.
fn test_binaries() -> Result<Vec<(String, PathBuf)>> {
    shell::step("building the tests and what they trace");
    let mut cargo = Command::new(paths::cargo());
    cargo.args(["test", "--package", "memtrace-tests", "--no-run", "--message-format", "json"]);
    for test in TESTS {
        cargo.args(["--test", test]);
    }
    let messages = shell::ask(&mut cargo)?;
    let found: Vec<(String, PathBuf)> = messages.lines().filter_map(binary_of).collect();
    if let Some(missing) = TESTS.iter().find(|test| !found.iter().any(|(name, _)| name == *test)) {
        bail!("cargo did not say where the test `{missing}` lies");
    }
    let mut agent = Command::new(super::built("vm-guest"));
    shell::ask(agent.args(["programs", "ledger"]))?;
    Ok(found)
}

/// A line of cargo's about a test binary: its name and its path.
fn binary_of(line: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(line).ok()?;
    let is_test = message["target"]["kind"].as_array()?.iter().any(|kind| kind == "test");
    let path = message["executable"].as_str()?;
    is_test.then(|| Some((message["target"]["name"].as_str()?.to_owned(), path.into())))?
}

/// An empty file system in a file, for as long as this is.
struct Disk(PathBuf);

impl Disk {
    fn create() -> Result<Self> {
        let disk = Self(directory().join(format!("disk-{}.ext4", std::process::id())));
        let file =
            fs::File::create(&disk.0).with_context(|| format!("create `{}`", disk.0.display()))?;
        file.set_len(DISK_MIB << 20).with_context(|| format!("grow `{}`", disk.0.display()))?;
        let mke2fs = paths::which("mke2fs").context("find `mke2fs`: install e2fsprogs")?;
        shell::ask(Command::new(mke2fs).args(["-q", "-t", "ext4", "-F"]).arg(&disk.0))?;
        Ok(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("failed to remove `{}`: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_s_messages_tell_where_a_test_lies() {
        let line = r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"live_x"},
            "executable":"/t/debug/deps/live_x-1"}"#;
        assert_eq!(binary_of(line), Some(("live_x".to_owned(), "/t/debug/deps/live_x-1".into())));
        let library = r#"{"target":{"kind":["lib"],"name":"x"},"executable":null}"#;
        assert_eq!(binary_of(library), None);
        assert_eq!(binary_of("warning: unused"), None);
    }
}
