//! Which cgroup hierarchies are mounted, and which has the memory controller. Reads
//! `/proc/self/mountinfo`; a hierarchy that is not mounted here is not seen.

use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupFacts {
    /// Where the version 1 hierarchy with the memory controller is mounted.
    pub v1_memory: Option<PathBuf>,
    /// Whether any version 1 hierarchy with a controller is mounted.
    pub has_v1: bool,
    pub v2: Option<PathBuf>,
    /// Whether the version 2 hierarchy has the memory controller.
    pub v2_has_memory: bool,
}

/// A mounted file system, as far as it is asked for here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) place: PathBuf,
    pub(super) kind: String,
    pub(super) options: String,
}

impl CgroupFacts {
    /// `controllers_of` gives the `cgroup.controllers` of a version 2 mount.
    pub(super) fn from_mounts(
        mounts: &[Mount],
        controllers_of: impl Fn(&Path) -> Option<String>,
    ) -> Self {
        const CONTROLLERS: [&str; 6] = ["memory", "cpu", "pids", "blkio", "devices", "freezer"];
        let has_option = |mount: &Mount, name: &str| mount.options.split(',').any(|o| o == name);
        let v1 = || mounts.iter().filter(|mount| mount.kind == "cgroup");
        let v2 = mounts.iter().find(|mount| mount.kind == "cgroup2").map(|m| m.place.clone());
        let v2_has_memory = v2
            .as_deref()
            .and_then(controllers_of)
            .is_some_and(|names| names.split_ascii_whitespace().any(|name| name == "memory"));
        Self {
            v1_memory: v1().find(|mount| has_option(mount, "memory")).map(|m| m.place.clone()),
            has_v1: v1().any(|mount| CONTROLLERS.iter().any(|name| has_option(mount, name))),
            v2,
            v2_has_memory,
        }
    }
}

/// The lines of `mountinfo`; one that makes no sense is passed over.
pub(super) fn mounts_of(mountinfo: &str) -> Vec<Mount> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (here, filesystem) = line.split_once(" - ")?;
            let mut filesystem = filesystem.split(' ');
            Some(Mount {
                place: PathBuf::from(unescape(here.split(' ').nth(4)?)),
                kind: filesystem.next()?.to_owned(),
                options: filesystem.nth(1)?.to_owned(),
            })
        })
        .collect()
}

/// The kernel writes blanks and backslashes of a path as `\040` and the like.
fn unescape(path: &str) -> String {
    let mut parts = path.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (code, part.get(3..)) {
            (Some(code), Some(rest)) if code.is_ascii() => {
                plain.push(char::from(code));
                plain.push_str(rest);
            }
            _ => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_host_has_memory_in_version_1() {
        let facts = CgroupFacts::from_mounts(&mounts_of(HYBRID), |_| Some("hugetlb\n".to_owned()));
        assert_eq!(facts.v1_memory.as_deref(), Some(Path::new("/sys/fs/cgroup/memory")));
        assert_eq!(facts.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert!(facts.has_v1 && !facts.v2_has_memory);
    }

    #[test]
    fn the_named_hierarchy_of_systemd_is_no_version_1_controller() {
        let mounts = mounts_of(
            "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n",
        );
        let facts = CgroupFacts::from_mounts(&mounts, |place| {
            assert_eq!(place, Path::new("/sys/fs/cgroup"));
            Some("cpuset cpu io memory pids\n".to_owned())
        });
        assert!(!facts.has_v1 && facts.v1_memory.is_none() && facts.v2_has_memory);
    }

    #[test]
    fn blanks_in_a_mount_point_are_read_back() {
        let mounts = mounts_of("1 2 0:3 / /a\\040b\\134c rw - tmpfs none rw\nnonsense\n\n");
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].place, Path::new("/a b\\c"));
        assert_eq!(unescape("/x\\9zz\\0"), "/x\\9zz\\0");
    }
}
