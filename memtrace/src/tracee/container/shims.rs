//! containerd's state, found from its running shims wherever it was configured to be.
//!
//! A shim's working directory is its container's bundle, and its arguments name containerd's socket.
//! Only shims of root that are in no container are believed: a process of a container can take any
//! name. Limit: rootless containerd.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::cgroup::{containers_of, read_bounded, read_cgroup_file};

const FILE_BYTES: u64 = 64 << 10;
/// As `comm` has it, cut at 15 characters.
const COMM: &str = "containerd-shim";
/// containerd's namespace for what Kubernetes runs.
const KUBERNETES: &str = "k8s.io";

/// Where running shims say that containerd is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Task directories: NAMESPACE/ID below them.
    pub(super) tasks: Vec<PathBuf>,
    /// Sockets of those that run Kubernetes's containers.
    pub(super) sockets: Vec<PathBuf>,
}

pub(super) fn find(proc: &Path) -> Found {
    let mut found = Found::default();
    let mut seen = Vec::new();
    let Ok(entries) = std::fs::read_dir(proc) else { return found };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let directory = entry.path();
        let Ok(comm) = read_bounded(&directory.join("comm"), FILE_BYTES) else { continue };
        if comm.trim_end() != COMM || !is_of_the_host(proc, pid) {
            continue;
        }
        let Ok(command) = read_bounded(&directory.join("cmdline"), FILE_BYTES) else { continue };
        if argument(&command, "-namespace") == Some(KUBERNETES)
            && let Some(socket) = argument(&command, "-address").map(PathBuf::from)
            && socket.is_absolute()
            && !found.sockets.contains(&socket)
        {
            found.sockets.push(socket);
        }
        // TASKS/NAMESPACE/ID. Through the link itself, so that the mount namespace is the shim's.
        let tasks = directory.join("cwd/../..");
        let Ok(metadata) = std::fs::metadata(&tasks) else { continue };
        let place = (metadata.dev(), metadata.ino());
        if !seen.contains(&place) {
            seen.push(place);
            found.tasks.push(tasks);
        }
    }
    found
}

/// `/proc` itself is root's.
fn is_of_the_host(proc: &Path, pid: u32) -> bool {
    let owner = |path: &Path| std::fs::metadata(path).map(|it| it.uid()).ok();
    let of_root = owner(&proc.join(pid.to_string())).is_some_and(|it| owner(proc) == Some(it));
    of_root && read_cgroup_file(proc, pid).is_ok_and(|text| containers_of(&text).is_empty())
}

/// `-namespace k8s.io` → k8s.io
fn argument<'a>(command: &'a str, name: &str) -> Option<&'a str> {
    let mut words = command.split('\0');
    words.find(|word| *word == name)?;
    words.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "7375090a4b1f3c1a7c0e4f0d4f6d8b9d3d1b7a6e5f4c3b2a1908f7e6d5c4b3a2";

    fn shim(root: &Path, pid: u32, comm: &str, cgroup: &str, namespace: &str) {
        let bundle = root.join(format!("state/tasks/{namespace}/{A}"));
        std::fs::create_dir_all(&bundle).unwrap();
        let directory = root.join(format!("proc/{pid}"));
        std::fs::create_dir_all(&directory).unwrap();
        std::os::unix::fs::symlink(&bundle, directory.join("cwd")).unwrap();
        std::fs::write(directory.join("comm"), format!("{comm}\n")).unwrap();
        std::fs::write(directory.join("cgroup"), cgroup).unwrap();
        let command = format!(
            "/usr/bin/containerd-shim-runc-v2\0-namespace\0{namespace}\0-id\0{A}\0-address\0/srv/c.sock\0"
        );
        std::fs::write(directory.join("cmdline"), command).unwrap();
    }

    #[test]
    fn the_state_and_the_socket_of_a_containerd_elsewhere_are_found_once() {
        let root = tempfile::tempdir().unwrap();
        shim(root.path(), 10, COMM, "0::/system.slice/containerd.service\n", "moby");
        shim(root.path(), 11, COMM, "0::/kubepods/pod1\n", KUBERNETES);
        shim(root.path(), 12, "sleep", "0::/\n", KUBERNETES);
        let found = find(&root.path().join("proc"));
        assert_eq!(found.tasks.len(), 1, "{found:?}");
        assert!(found.tasks[0].join(KUBERNETES).join(A).is_dir(), "{found:?}");
        assert_eq!(found.sockets, [PathBuf::from("/srv/c.sock")]);
    }

    #[test]
    fn a_containers_process_by_that_name_is_not_believed() {
        let root = tempfile::tempdir().unwrap();
        shim(root.path(), 10, COMM, &format!("0::/docker/{A}\n"), KUBERNETES);
        assert_eq!(find(&root.path().join("proc")), Found::default());
        assert_eq!(find(&root.path().join("absent")), Found::default());
    }

    #[test]
    fn arguments_are_found_by_name() {
        assert_eq!(argument("x\0-id\0a\0-address\0/s\0", "-address"), Some("/s"));
        assert_eq!(argument("x\0-address", "-address"), None);
        assert_eq!(argument("", "-address"), None);
    }
}
