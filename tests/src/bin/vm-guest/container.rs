//! A group with the memory controller of cgroup v2, as a container engine would make it: the
//! guest has no engine, so the container is found by the id in its cgroup's path.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use memtrace_tests::compile;
use memtrace_tests::conformance::Case;
use memtrace_tests::memtrace::Recording;
use memtrace_tests::program::Program;

use crate::{cases, check};

const ROOT: &str = "/sys/fs/cgroup";
const ID: &str = "3f1c9a5e7b2d4f60819203a4b5c6d7e8f90112233445566778899aabbccddeef";
const LIMIT_BYTES: u64 = 256 << 20;

/// Makes `/docker/ID` with a limit, and lets its parents delegate the memory controller.
pub fn group(limit_bytes: u64) -> Result<PathBuf> {
    let parent = Path::new(ROOT).join("docker");
    let group = parent.join(ID);
    write(&Path::new(ROOT).join("cgroup.subtree_control"), "+memory")?;
    fs::create_dir_all(&parent).with_context(|| format!("create `{}`", parent.display()))?;
    write(&parent.join("cgroup.subtree_control"), "+memory")?;
    fs::create_dir_all(&group).with_context(|| format!("create `{}`", group.display()))?;
    write(&group.join("memory.max"), &limit_bytes.to_string())?;
    Ok(group)
}

/// Where everything is that was put nowhere else.
pub fn root() -> &'static Path {
    Path::new(ROOT)
}

pub fn enter(group: &Path, pid: u32) -> Result<()> {
    write(&group.join("cgroup.procs"), &pid.to_string())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write `{text}` to `{}`", path.display()))
}

/// `memtrace record --container PREFIX` finds the process, and its books are exact.
pub fn by_cgroup() -> Result<()> {
    let (name, kind) = cases::MALLOC;
    let case = Case::new(name, kind);
    let mut program = Program::start(&compile::program(name, kind)?, &[] as &[&str], &[])?;
    enter(&group(LIMIT_BYTES)?, program.pid())?;
    let recording = Recording::start(&["--container", &ID[..12]])?;
    program.go()?;
    let truth = program.truth(case.limit)?;
    let recorded = recording.interrupt()?.recorded()?;
    case.judge(&truth, &recorded)?;
    check::whole_stacks(&recorded)?;
    let container = &recorded.tracee["container"];
    ensure!(
        container["id"].as_str() == Some(ID) && container["runtime"].as_str() == Some("docker"),
        "the tracee's container is told as {container}"
    );
    program.finish()
}
