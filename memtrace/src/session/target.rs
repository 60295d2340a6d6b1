//! From what the user named to one process: by pid, by container, or started here.

use std::ffi::OsString;

use anyhow::{Context, Result};

use crate::cli::TargetArgs;
use crate::snapshot::Container;
use crate::tracee::allocators::provides_allocator;
use crate::tracee::container::{container_of, find_container};
use crate::tracee::mappings::read_mapped_files;
use crate::tracee::process::Process;
use crate::tracee::spawn::Spawned;

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
    let process = Process::open(spawned.pid())?;
    Ok(Target { process, container: None, spawned: Some(spawned) })
}

/// A container's first process may be a shell or an init without an allocator of interest: the
/// first one in which an allocator can be probed is taken, the first process where none can.
fn first_with_allocator(first: u32, all: &[u32]) -> u32 {
    let has_allocator = |pid: &u32| {
        read_mapped_files(*pid).is_ok_and(|files| files.iter().any(provides_allocator))
    };
    std::iter::once(first).chain(all.iter().copied()).find(has_allocator).unwrap_or(first)
}
