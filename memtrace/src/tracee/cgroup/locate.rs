//! Which cgroup directory holds the memory of a process, or of a container: on v1 and hybrid hosts
//! the memory controller's, on v2 the unified one's.
//!
//! The root of a hierarchy is never taken for a container: it is the whole machine.

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::snapshot::facts::CgroupVersion;
use crate::tracee::container::cgroup::{
    CgroupMount, Membership, containers_in, parse_cgroup_mounts, parse_memberships, read_bounded,
    read_cgroup_file,
};

const MOUNTINFO_BYTES: u64 = 64 << 20;

/// A cgroup of the hierarchy that accounts for memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub version: CgroupVersion,
    /// In the hierarchy.
    pub path: String,
    pub directory: PathBuf,
    /// Where the hierarchy is mounted: ancestors are looked for up to there.
    pub mountpoint: PathBuf,
    /// The mount shows less than the whole hierarchy.
    pub ancestors_hidden: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    #[error("failed to read `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "no cgroup file system with the memory controller is mounted here; mount it, or run memtrace where `/sys/fs/cgroup` is the host's"
    )]
    NoMemoryController,
    #[error(
        "process {pid} is in the root cgroup `{path}`, which is the whole machine: no container's charge can be told"
    )]
    Root { pid: u32, path: String },
    #[error(
        "the cgroup `{path}` cannot be seen from here: memtrace is in another cgroup namespace or the host's cgroups are not mounted; run it on the host, or in a container with `--cgroupns=host` and `/sys/fs/cgroup` mounted"
    )]
    NotVisible { path: String },
    #[error(
        "`{asked}` is no cgroup directory: name one below {below}, or its path in the hierarchy"
    )]
    NoSuchCgroup { asked: String, below: String },
    #[error("`{asked}` is the root of the cgroups: that is the whole machine, not one container")]
    WholeMachine { asked: String },
}

fn mounts(proc: &Path) -> Result<Vec<CgroupMount>, LocateError> {
    let path = proc.join("self/mountinfo");
    let text = read_bounded(&path, MOUNTINFO_BYTES)
        .map_err(|source| LocateError::Read { path, source })?;
    Ok(parse_cgroup_mounts(&text))
}

fn version_of(mount: &CgroupMount) -> CgroupVersion {
    if mount.unified { CgroupVersion::V2 } else { CgroupVersion::V1 }
}

/// Mounts in which memory is accounted: v1's with the controller, v2's where it has it.
fn accounts_memory(mount: &CgroupMount) -> bool {
    if !mount.unified {
        return mount.has_controller("memory");
    }
    // A part of the hierarchy that is mounted alone has the file of its own.
    let controllers = read_bounded(&mount.mountpoint.join("cgroup.controllers"), 4096);
    controllers.is_ok_and(|names| names.split_ascii_whitespace().any(|name| name == "memory"))
}

/// The cgroup of a process. With the id of a container: that container's, even where the process
/// is in one below it.
pub fn place_of_process(
    proc: &Path,
    pid: u32,
    container: Option<&str>,
) -> Result<Place, LocateError> {
    let text = read_cgroup_file(proc, pid).map_err(|source| LocateError::Read {
        path: proc.join(pid.to_string()).join("cgroup"),
        source,
    })?;
    let mounts = mounts(proc)?;
    let memberships = parse_memberships(&text);
    let lines: Vec<&Membership<'_>> =
        memberships.iter().filter(|line| line.is_memory() || line.is_unified()).collect();
    let mut seen = None;
    for line in lines {
        let path = container
            .and_then(|id| containers_in(line.path).into_iter().find(|named| named.id == id))
            .map_or_else(|| line.path.to_owned(), |named| named.path);
        for mount in mounts.iter().filter(|mount| mount.holds(line) && accounts_memory(mount)) {
            if path == "/" {
                return Err(LocateError::Root { pid, path });
            }
            match directory_in(mount, &path) {
                Some(place) => return Ok(place),
                None => seen = Some(path.clone()),
            }
        }
    }
    Err(match seen {
        Some(path) => LocateError::NotVisible { path },
        None if mounts.iter().any(accounts_memory) => {
            let path = memberships.first().map_or("/", |line| line.path).to_owned();
            LocateError::NotVisible { path }
        }
        None => LocateError::NoMemoryController,
    })
}

fn directory_in(mount: &CgroupMount, path: &str) -> Option<Place> {
    let directory = mount.directory_of(path)?;
    is_cgroup(&directory, version_of(mount)).then(|| Place {
        version: version_of(mount),
        path: path.to_owned(),
        directory,
        mountpoint: mount.mountpoint.clone(),
        ancestors_hidden: hides_ancestors(mount),
    })
}

/// A mount made in an outer cgroup namespace (`/..`) shows more than ours, not less.
fn hides_ancestors(mount: &CgroupMount) -> bool {
    mount.root != "/" && !mount.root.starts_with("/..")
}

fn is_cgroup(directory: &Path, version: CgroupVersion) -> bool {
    let file = match version {
        CgroupVersion::V1 => "memory.usage_in_bytes",
        CgroupVersion::V2 => "memory.current",
    };
    directory.join(file).exists()
}

/// What `--cgroup` names: a path in the hierarchy (`/docker/ID`), or the directory itself.
pub fn place_at(proc: &Path, asked: &str) -> Result<Place, LocateError> {
    let mounts: Vec<CgroupMount> = mounts(proc)?.into_iter().filter(accounts_memory).collect();
    if mounts.is_empty() {
        return Err(LocateError::NoMemoryController);
    }
    let plain = |path: &Path| path.components().all(|part| !matches!(part, Component::ParentDir));
    let asked_path = Path::new(asked);
    if !plain(asked_path) {
        return Err(no_such(asked, &mounts));
    }
    for mount in &mounts {
        let below = asked_path.strip_prefix(&mount.mountpoint).ok();
        let relative = below.unwrap_or_else(|| asked_path.strip_prefix("/").unwrap_or(asked_path));
        if relative.as_os_str().is_empty() {
            return Err(LocateError::WholeMachine { asked: asked.to_owned() });
        }
        let directory = mount.mountpoint.join(relative);
        if is_cgroup(&directory, version_of(mount)) {
            return Ok(place_below(mount, &directory, relative));
        }
    }
    // A v1 path of another controller's, or the unified one's, means the same cgroup.
    for mount in &mounts {
        let Some(rest) = other_hierarchy(proc, asked_path) else { break };
        let directory = mount.mountpoint.join(&rest);
        if is_cgroup(&directory, version_of(mount)) {
            return Ok(place_below(mount, &directory, &rest));
        }
    }
    Err(no_such(asked, &mounts))
}

/// A path in the hierarchy, as a process's cgroup file has it.
pub fn place_of_path(proc: &Path, path: &str) -> Result<Place, LocateError> {
    place_at(proc, path)
}

fn place_below(mount: &CgroupMount, directory: &Path, relative: &Path) -> Place {
    let root = mount.root.trim_end_matches('/');
    Place {
        version: version_of(mount),
        path: format!("{root}/{}", relative.display()),
        directory: directory.to_path_buf(),
        mountpoint: mount.mountpoint.clone(),
        ancestors_hidden: hides_ancestors(mount),
    }
}

/// The path below whichever cgroup mount the asked directory is in.
fn other_hierarchy(proc: &Path, asked: &Path) -> Option<PathBuf> {
    let all = mounts(proc).ok()?;
    let mut below: Vec<&Path> =
        all.iter().filter_map(|mount| asked.strip_prefix(&mount.mountpoint).ok()).collect();
    below.sort_by_key(|rest| rest.components().count());
    below.first().filter(|rest| !rest.as_os_str().is_empty()).map(|rest| rest.to_path_buf())
}

fn no_such(asked: &str, mounts: &[CgroupMount]) -> LocateError {
    let places: Vec<String> =
        mounts.iter().map(|mount| format!("`{}`", mount.mountpoint.display())).collect();
    LocateError::NoSuchCgroup { asked: asked.to_owned(), below: places.join(" or ") }
}

/// The directories of a cgroup's ancestors, itself first, the mount last.
pub(super) fn ancestors(place: &Place) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let mut directory = place.directory.clone();
    let mut path = place.path.clone();
    while directory.starts_with(&place.mountpoint) && found.len() < 64 {
        found
            .push((if path.is_empty() { "/".to_owned() } else { path.clone() }, directory.clone()));
        if directory == place.mountpoint || !directory.pop() {
            break;
        }
        path.truncate(path.rfind('/').unwrap_or(0));
    }
    found
}

/// Cgroups below one, sorted by path, and how many more there are than are listed.
pub(super) fn below(directory: &Path, most: usize) -> (Vec<PathBuf>, u64) {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut beyond = 0;
    let mut waiting = vec![(directory.to_path_buf(), 0)];
    while let Some((directory, depth)) = waiting.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if found.len() < most && depth < 64 {
                found.push(entry.path());
                waiting.push((entry.path(), depth + 1));
            } else {
                beyond += 1;
            }
        }
    }
    found.sort();
    (found, beyond)
}

#[cfg(test)]
#[path = "locate_tests.rs"]
mod tests;
