//! From what the user named to processes: by pid, by container, pod or cgroup, or started here.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};

use super::exit::SessionError;
use super::family::Scope;
use super::say::warn;
use crate::cli::TargetArgs;
use crate::plan::decide::is_wanted;
use crate::snapshot::Container;
use crate::tracee::allocators::read_objects;
use crate::tracee::cgroup::{place_at, place_of_path, place_of_process};
use crate::tracee::container::pod::{find_container_in, find_pod};
use crate::tracee::container::{container_of, find_container, processes_below};
use crate::tracee::mappings::Mappings;
use crate::tracee::process::Process;
use crate::tracee::spawn::{Spawned, StopPoint};

pub struct Target {
    /// The one that a report names first.
    pub process: Process,
    /// The target's other processes.
    pub others: Vec<u32>,
    pub scope: Scope,
    pub container: Option<Container>,
    /// A command of our own, stopped before its first allocation.
    pub spawned: Option<Spawned>,
}

/// Processes that are one target.
pub struct Group {
    /// The one that a report names first: the first that has an allocator.
    pub main: u32,
    pub all: Vec<u32>,
    pub scope: Scope,
    pub container: Option<Container>,
}

pub async fn resolve(args: &TargetArgs) -> Result<Target> {
    if let Some(pid) = args.pid {
        let process = Process::open(pid)?;
        let container = container_of(pid).await;
        let (others, scope) = (Vec::new(), Scope::One);
        return Ok(Target { container, process, others, scope, spawned: None });
    }
    let Some(group) = find_group(args).await? else { return spawn(&args.command) };
    let process = Process::open(group.main).context("failed to open the target's first process")?;
    let others = group.all.into_iter().filter(|pid| *pid != group.main).collect();
    let Group { scope, container, .. } = group;
    Ok(Target { process, others, scope, container, spawned: None })
}

/// The container, pod or cgroup that is named; `None` where none is.
pub async fn find_group(args: &TargetArgs) -> Result<Option<Group>> {
    let proc = Path::new("/proc");
    if let Some(name) = &args.container {
        let found = match &args.pod {
            Some(pod) => find_container_in(pod, name).await?,
            None => find_container(name).await?,
        };
        let main = first_with_allocator(found.first_pid, &found.all_pids);
        let scope = match place_of_process(proc, found.first_pid, Some(&found.container.id)) {
            Ok(place) => Scope::Cgroup(place.directory),
            Err(error) => {
                warn(format_args!(
                    "{error}: of what joins the container later only children are seen"
                ));
                Scope::Children
            }
        };
        let container = Some(found.container);
        return Ok(Some(Group { main, all: found.all_pids, scope, container }));
    }
    let mut pids = Vec::new();
    let (asked, place) = match (&args.pod, &args.cgroup) {
        (Some(name), _) => {
            let pod = find_pod(name).await?;
            pids = pod.pids;
            (name, place_of_path(proc, &pod.cgroup_path)?)
        }
        (None, Some(path)) => (path, place_at(proc, path)?),
        (None, None) => return Ok(None),
    };
    let all = processes_below(&place.directory);
    // A pod's own containers are named before its sandbox.
    let Some(&first) = pids.iter().find(|pid| all.contains(pid)).or(all.first()) else {
        return Err(SessionError::NoProcess { asked: asked.clone() }.into());
    };
    let main = first_with_allocator(first, if pids.is_empty() { &all } else { &pids });
    let container = container_of(main).await;
    Ok(Some(Group { main, all, scope: Scope::Cgroup(place.directory), container }))
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
    let (others, scope) = (Vec::new(), Scope::One);
    Ok(Target { process, others, scope, container: None, spawned: Some(spawned) })
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
