//! What cgroup paths tell: which container a process is in, and which processes a container has.
//!
//! The parsers are pure. The readers take the roots of `/proc` as an argument, so that a test
//! brings its own. Patterns of both cgroup drivers (cgroupfs and systemd) of docker, podman,
//! containerd, CRI-O and the kubelet are known; a container without a 64-digit id is not.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use super::ID_DIGITS;

/// A process's cgroup file has a line per hierarchy of at most 4 KiB each.
const PROC_FILE_BYTES: u64 = 256 << 10;
/// `/proc/PID/mountinfo`, which lists every mount of every container on the host.
const MOUNTINFO_BYTES: u64 = 64 << 20;
/// As many pids as a machine can have, eight bytes each.
const PROCS_BYTES: u64 = 32 << 20;
const MOST_DIRECTORIES: usize = 65_536;
const MOST_DEPTH: usize = 64;

/// One line of `/proc/PID/cgroup`: `4:memory:/docker/ID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tracee) struct Membership<'a> {
    /// Comma-separated; empty for the unified hierarchy (v2).
    pub(in crate::tracee) controllers: &'a str,
    pub(in crate::tracee) path: &'a str,
}

impl Membership<'_> {
    pub(in crate::tracee) fn is_memory(&self) -> bool {
        self.controllers.split(',').any(|controller| controller == "memory")
    }

    pub(in crate::tracee) fn is_unified(&self) -> bool {
        self.controllers.is_empty()
    }
}

/// A container that a cgroup path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::tracee) struct Named {
    pub(in crate::tracee) runtime: &'static str,
    pub(in crate::tracee) id: String,
    /// The cgroup path up to this container: what is below is the container's own affair.
    pub(in crate::tracee) path: String,
}

/// The lines in the order in which they are trusted: the memory controller's, then the unified
/// hierarchy's, then the others.
pub(in crate::tracee) fn parse_memberships(text: &str) -> Vec<Membership<'_>> {
    let mut memberships: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let _hierarchy: u32 = parts.next()?.parse().ok()?;
            Some(Membership { controllers: parts.next()?, path: parts.next()? })
        })
        .collect();
    memberships.sort_by_key(|line| (!line.is_memory(), !line.is_unified()));
    memberships
}

/// The containers in a path, outermost first: several where a container runs containers.
pub(in crate::tracee) fn containers_in(path: &str) -> Vec<Named> {
    let mut found: Vec<Named> = Vec::new();
    let mut end = 0;
    // A bare id says nothing of its runtime; the nearest ancestor that does, does.
    let mut ancestor = "cgroup";
    let mut ancestor_is_pod = false;
    for segment in path.split('/') {
        let start = end;
        end = start + segment.len() + 1;
        if let Some((prefix, id)) = id_of(segment) {
            let runtime = match prefix {
                "" => Some(ancestor),
                prefix => runtime_of_prefix(prefix),
            };
            // `/libpod_parent/POD/libpod-ID`: what looks like an outer container is podman's pod.
            if prefix.starts_with("libpod") && ancestor_is_pod {
                found.pop();
            }
            ancestor_is_pod = prefix.is_empty() && ancestor == "podman";
            if let Some(runtime) = runtime {
                let path = path[..end - 1].to_string();
                found.push(Named { runtime, id: id.to_string(), path });
            }
            ancestor = "cgroup";
        } else if let Some(runtime) = runtime_of_ancestor(segment) {
            ancestor = runtime;
        }
    }
    found
}

/// `docker-ID.scope`, `ID`, `kubepods-podUID.slice:cri-containerd:ID` → (prefix, id)
fn id_of(segment: &str) -> Option<(&str, &str)> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    let split = name.len().checked_sub(ID_DIGITS)?;
    // Not every byte offset is between two characters.
    let (prefix, id) = (name.get(..split)?, name.get(split..)?);
    if !super::is_id(id) {
        return None;
    }
    let prefix = match prefix {
        "" => "",
        prefix => prefix.strip_suffix(['-', ':'])?,
    };
    Some((prefix.rsplit(':').next().unwrap_or(prefix), id))
}

/// `None` for what is not a container but its monitor.
fn runtime_of_prefix(prefix: &str) -> Option<&'static str> {
    match prefix {
        "docker" => Some("docker"),
        "libpod" | "libpod-payload" => Some("podman"),
        "cri-containerd" | "nerdctl" => Some("containerd"),
        "crio" => Some("cri-o"),
        prefix if prefix.ends_with("conmon") => None,
        _ => Some("cgroup"),
    }
}

fn runtime_of_ancestor(segment: &str) -> Option<&'static str> {
    match segment {
        "docker" | "ecs" => Some("docker"),
        "libpod_parent" => Some("podman"),
        segment if segment.starts_with("kubepods") => Some("kubernetes"),
        _ => None,
    }
}

/// The containers that `/proc/PID/cgroup` names, by the most trusted line that names any.
pub(in crate::tracee) fn containers_of(cgroup_file: &str) -> Vec<Named> {
    parse_memberships(cgroup_file)
        .iter()
        .map(|line| containers_in(line.path))
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

/// Whether any line names this id.
pub(in crate::tracee) fn names_id(cgroup_file: &str, id: &str) -> bool {
    parse_memberships(cgroup_file)
        .iter()
        .any(|line| containers_in(line.path).iter().any(|named| named.id == id))
}

/// A process that is in one or more containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::tracee) struct Contained {
    pub(in crate::tracee) pid: u32,
    /// Outermost first, never empty.
    pub(in crate::tracee) containers: Vec<Named>,
}

/// Every process that is in a container. One small file is read per process of the machine.
pub(in crate::tracee) fn scan(proc: &Path) -> std::io::Result<Vec<Contained>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(proc)? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process that has gone meanwhile is in no container.
        let Ok(text) = read_cgroup_file(proc, pid) else { continue };
        let containers = containers_of(&text);
        if !containers.is_empty() {
            found.push(Contained { pid, containers });
        }
    }
    found.sort_unstable_by_key(|process| process.pid);
    Ok(found)
}

pub(in crate::tracee) fn read_cgroup_file(proc: &Path, pid: u32) -> std::io::Result<String> {
    read_bounded(&proc.join(pid.to_string()).join("cgroup"), PROC_FILE_BYTES)
}

/// The first process of container `id` among `scanned`: the one that is pid 1 in its own pid
/// namespace, else the oldest.
///
/// Processes of containers inside it come last. A container may name a cgroup of its own after
/// another container: whoever has the id further out is the one it belongs to.
pub(in crate::tracee) fn first_process(
    proc: &Path,
    id: &str,
    scanned: &[Contained],
) -> Option<u32> {
    let candidates = scanned.iter().filter_map(|process| {
        let outside = process.containers.iter().position(|named| named.id == id)?;
        let inside = process.containers.len() - outside;
        let directory = proc.join(process.pid.to_string());
        let status = read_bounded(&directory.join("status"), PROC_FILE_BYTES).ok()?;
        let stat = read_bounded(&directory.join("stat"), PROC_FILE_BYTES).ok()?;
        let is_init = parse_innermost_pid(&status) == Some(1);
        Some(((outside, inside, !is_init, parse_start_time(&stat)?), process.pid))
    });
    candidates.min().map(|(_, pid)| pid)
}

/// `NSpid: 24109 1` → 1
fn parse_innermost_pid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().next_back()?.parse().ok()
}

/// Field 22; the second field is the name in parentheses, which may hold anything.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// All processes of the container that process `first` is in, `first` first.
///
/// Read from the container's cgroup directory and those below it: on v1 the memory controller's,
/// on v2 and hybrid hosts the unified one's. Where no such directory can be read (another cgroup
/// namespace, no cgroup mount) the processes that name the id are taken from `/proc`.
pub(in crate::tracee) fn processes_of(proc: &Path, id: &str, first: u32) -> Vec<u32> {
    let mut pids = processes_by_directory(proc, id, first)
        .or_else(|| processes_by_path(proc, id, first))
        .unwrap_or_default();
    pids.retain(|pid| *pid != first);
    pids.sort_unstable();
    pids.dedup();
    pids.insert(0, first);
    pids
}

fn processes_by_directory(proc: &Path, id: &str, first: u32) -> Option<Vec<u32>> {
    let mountinfo = read_bounded(&proc.join("self/mountinfo"), MOUNTINFO_BYTES).ok()?;
    let mounts = parse_cgroup_mounts(&mountinfo);
    let text = read_cgroup_file(proc, first).ok()?;
    parse_memberships(&text).iter().find_map(|line| {
        let container = containers_in(line.path).into_iter().find(|named| named.id == id)?;
        mounts.iter().filter(|mount| mount.holds(line)).find_map(|mount| {
            let pids = read_processes_below(&mount.directory_of(&container.path)?);
            // Without the process itself this is not its directory, or it has just gone.
            pids.contains(&first).then_some(pids)
        })
    })
}

fn processes_by_path(proc: &Path, id: &str, first: u32) -> Option<Vec<u32>> {
    let mut containers = containers_of(&read_cgroup_file(proc, first).ok()?).into_iter();
    let container = containers.find(|named| named.id == id)?;
    let scanned = scan(proc).ok()?;
    let inside = |process: &Contained| process.containers.contains(&container);
    Some(scanned.into_iter().filter(inside).map(|process| process.pid).collect())
}

/// A mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::tracee) struct CgroupMount {
    pub(in crate::tracee) unified: bool,
    /// Super block options: the controllers of a v1 hierarchy.
    options: String,
    /// The cgroup that is mounted, `/` for the whole hierarchy.
    pub(in crate::tracee) root: String,
    pub(in crate::tracee) mountpoint: PathBuf,
}

impl CgroupMount {
    pub(in crate::tracee) fn holds(&self, line: &Membership<'_>) -> bool {
        if self.unified || line.is_unified() {
            return self.unified && line.is_unified();
        }
        line.controllers.split(',').all(|one| self.options.split(',').any(|option| option == one))
    }

    /// Whether this is a v1 hierarchy with the controller.
    pub(in crate::tracee) fn has_controller(&self, controller: &str) -> bool {
        !self.unified && self.options.split(',').any(|option| option == controller)
    }

    /// The directory of a cgroup path. `None` when it is not below this mount, and for the mount's
    /// own root: that is everything on the host, never one container.
    pub(in crate::tracee) fn directory_of(&self, path: &str) -> Option<PathBuf> {
        let below = match self.root.as_str() {
            "/" => path,
            root => path.strip_prefix(root).filter(|rest| rest.starts_with('/'))?,
        };
        let below = Path::new(below.trim_start_matches('/'));
        let plain = |component| matches!(component, Component::Normal(_));
        let stays_below = below.components().all(plain) && below.components().next().is_some();
        stays_below.then(|| self.mountpoint.join(below))
    }
}

pub(in crate::tracee) fn parse_cgroup_mounts(mountinfo: &str) -> Vec<CgroupMount> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let unified = match after.next()? {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        let options = after.nth(1)?.to_string();
        let mut before = before.split(' ');
        let root = unescape(before.nth(3)?);
        let mountpoint = PathBuf::from(unescape(before.next()?));
        Some(CgroupMount { unified, options, root, mountpoint })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// mountinfo writes blank, tab, newline and backslash as `\040` and so on.
fn unescape(text: &str) -> String {
    let blank = text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n");
    blank.replace("\\134", "\\")
}

/// The pids in `cgroup.procs` of a directory and of all below it, as far as they can be read.
pub(in crate::tracee) fn read_processes_below(directory: &Path) -> Vec<u32> {
    let mut pids = Vec::new();
    let mut waiting = vec![(directory.to_path_buf(), 0)];
    let mut seen = 0;
    while let Some((directory, depth)) = waiting.pop() {
        seen += 1;
        if let Ok(text) = read_bounded(&directory.join("cgroup.procs"), PROCS_BYTES) {
            // 0 stands for a process outside our pid namespace.
            let told = text.lines().filter_map(|line| line.parse::<u32>().ok());
            let visible = told.filter(|pid| *pid != 0);
            pids.extend(visible);
        }
        if depth == MOST_DEPTH {
            continue;
        }
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            if seen + waiting.len() >= MOST_DIRECTORIES {
                break;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push((entry.path(), depth + 1));
            }
        }
    }
    pids
}

/// Reads a file as text, no more than `most` bytes of it; what is not UTF-8 is replaced.
pub(in crate::tracee) fn read_bounded(path: &Path, most: u64) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
