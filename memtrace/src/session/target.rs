//! From what the user named to one process: by pid, by container, or started here.

use std::ffi::OsString;

use anyhow::{Context, Result};

use super::say::warn;
use crate::cli::TargetArgs;
use crate::plan::decide::is_wanted;
use crate::snapshot::Container;
use crate::tracee::allocators::read_objects;
use crate::tracee::container::{container_of, find_container};
use crate::tracee::mappings::Mappings;
use crate::tracee::process::Process;
use crate::tracee::spawn::{Spawned, StopPoint};

pub struct Target {
    pub process: Process,
    pub container: Option<Container>,
    /// A command of our own, stopped before its first allocation.
    pub spawned: Option<Spawned>,
}

pub async fn resolve(args: &TargetArgs) -> Result<Target> {
    if let Some(pid) = args.pid {
        let process = Process::open(pid)?;
        return Ok(Target { container: container_of(pid).await, process, spawned: None });
    }
    if let Some(name) = &args.container {
        let found = find_container(name).await?;
        let pid = first_with_allocator(found.first_pid, &found.all_pids);
        let process = Process::open(pid).with_context(|| {
            format!("failed to open the process of container `{}`", found.container.id)
        })?;
        return Ok(Target { process, container: Some(found.container), spawned: None });
    }
    spawn(&args.command)
}

fn spawn(command: &[OsString]) -> Result<Target> {
    let spawned = Spawned::start(command)?;
    if let Some(ignored) = spawned.set_id_ignored() {
        warn(ignored);
    }
    if spawned.stop_point() == StopPoint::EntryAfterConstructors {
        warn(
            "the program's loader does not tell when it is done: what constructors of libraries \
             allocate is missing",
        );
    }
    let process = Process::open(spawned.pid())?;
    Ok(Target { process, container: None, spawned: Some(spawned) })
}

/// A container's first process may be a shell or an init without an allocator that can be probed:
/// the first one that has one is taken, the first process where none has.
fn first_with_allocator(first: u32, all: &[u32]) -> u32 {
    std::iter::once(first)
        .chain(all.iter().copied())
        .find(|&pid| has_allocator(pid))
        .unwrap_or(first)
}

fn has_allocator(pid: u32) -> bool {
    let Ok(process) = Process::open(pid) else { return false };
    let Ok(mappings) = Mappings::of(&process) else { return false };
    let found = read_objects(&process, &mappings, &is_wanted);
    found.objects.iter().any(|object| !object.elf.functions.is_empty())
}
