use std::fs;

use super::*;

const ID: &str = "06cdedde911e3e27546992f6ba02104cabf3eaf1ce9809e8aa02c16c7b390f6b";

/// A `/proc` with one process, and cgroup mounts below `root`.
struct Machine {
    root: tempfile::TempDir,
}

impl Machine {
    fn new(mounts: &[(&str, &str, &str)], cgroup_file: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let proc = root.path().join("proc");
        fs::create_dir_all(proc.join("self")).unwrap();
        fs::create_dir_all(proc.join("7")).unwrap();
        let mountinfo: String = mounts
            .iter()
            .map(|(place, kind, options)| {
                let at = root.path().join(place);
                fs::create_dir_all(&at).unwrap();
                if *kind == "cgroup2" {
                    fs::write(at.join("cgroup.controllers"), options).unwrap();
                }
                format!("35 31 0:32 / {} rw - {kind} {kind} rw,{options}\n", at.display())
            })
            .collect();
        fs::write(proc.join("self/mountinfo"), mountinfo).unwrap();
        fs::write(proc.join("7/cgroup"), cgroup_file).unwrap();
        Self { root }
    }

    fn proc(&self) -> PathBuf {
        self.root.path().join("proc")
    }

    fn cgroup(&self, path: &str, file: &str) {
        let directory = self.root.path().join(path);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(file), "1\n").unwrap();
    }
}

#[test]
fn a_hybrid_host_accounts_in_the_v1_hierarchy() {
    let machine = Machine::new(
        &[("memory", "cgroup", "memory"), ("unified", "cgroup2", "hugetlb")],
        &format!("0::/docker/{ID}\n4:memory:/docker/{ID}/inner\n"),
    );
    machine.cgroup(&format!("memory/docker/{ID}/inner"), "memory.usage_in_bytes");
    machine.cgroup(&format!("memory/docker/{ID}"), "memory.usage_in_bytes");
    let own = place_of_process(&machine.proc(), 7, None).unwrap();
    assert_eq!((own.version, own.path), (CgroupVersion::V1, format!("/docker/{ID}/inner")));
    // The container's, though the process is further in.
    let container = place_of_process(&machine.proc(), 7, Some(ID)).unwrap();
    assert_eq!(container.path, format!("/docker/{ID}"));
    assert!(container.directory.ends_with(format!("memory/docker/{ID}")));
}

#[test]
fn a_pure_v2_host_accounts_in_the_unified_hierarchy() {
    let path = format!("/system.slice/docker-{ID}.scope");
    let machine = Machine::new(&[("cg", "cgroup2", "cpu memory")], &format!("0::{path}\n"));
    machine.cgroup(&format!("cg{path}"), "memory.current");
    let place = place_of_process(&machine.proc(), 7, Some(ID)).unwrap();
    assert_eq!((place.version, place.path.as_str()), (CgroupVersion::V2, path.as_str()));
    let ancestors: Vec<String> = ancestors(&place).into_iter().map(|(path, _)| path).collect();
    assert_eq!(ancestors, [path, "/system.slice".to_owned(), "/".to_owned()]);
}

#[test]
fn the_root_cgroup_is_never_a_container() {
    let machine = Machine::new(&[("memory", "cgroup", "memory")], "4:memory:/\n0::/\n");
    machine.cgroup("memory", "memory.usage_in_bytes");
    let refused = place_of_process(&machine.proc(), 7, None);
    assert!(matches!(refused, Err(LocateError::Root { pid: 7, .. })), "{refused:?}");
    for asked in ["/", ""] {
        let refused = place_at(&machine.proc(), asked);
        assert!(matches!(refused, Err(LocateError::WholeMachine { .. })), "{refused:?}");
    }
}

#[test]
fn a_cgroup_of_another_namespace_is_said_not_to_be_visible() {
    let machine = Machine::new(&[("memory", "cgroup", "memory")], "4:memory:/../7375\n");
    let refused = place_of_process(&machine.proc(), 7, None).unwrap_err();
    assert!(matches!(refused, LocateError::NotVisible { .. }), "{refused:?}");
    assert!(refused.to_string().contains("--cgroupns=host"), "{refused}");
    let nothing = Machine::new(&[], "4:memory:/a\n");
    let refused = place_of_process(&nothing.proc(), 7, None);
    assert!(matches!(refused, Err(LocateError::NoMemoryController)), "{refused:?}");
}

#[test]
fn a_cgroup_is_named_by_path_or_directory_and_never_leads_out() {
    let machine = Machine::new(
        &[("memory", "cgroup", "memory"), ("unified", "cgroup2", "")],
        "4:memory:/a/b\n",
    );
    machine.cgroup("memory/a/b", "memory.usage_in_bytes");
    machine.cgroup("unified/a/b", "cgroup.procs");
    let directory = machine.root.path().join("memory/a/b");
    let other = machine.root.path().join("unified/a/b");
    for asked in ["/a/b", "a/b", directory.to_str().unwrap(), other.to_str().unwrap()] {
        let place = place_at(&machine.proc(), asked).unwrap();
        assert_eq!((place.path.as_str(), &place.directory), ("/a/b", &directory), "{asked}");
    }
    for asked in ["/a/../../etc", "/nothing", "/a/b/../../.."] {
        let refused = place_at(&machine.proc(), asked);
        assert!(matches!(refused, Err(LocateError::NoSuchCgroup { .. })), "{asked}: {refused:?}");
    }
}
