use super::*;

const A: &str = "7375090a4b1f3c1a7c0e4f0d4f6d8b9d3d1b7a6e5f4c3b2a1908f7e6d5c4b3a2";
const B: &str = "06cdedde911e3e27546992f6ba02104cabf3eaf1ce9809e8aa02c16c7b390f6b";

fn told(path: &str) -> Vec<(&'static str, String)> {
    containers_in(path).into_iter().map(|named| (named.runtime, named.id)).collect()
}

#[test]
fn paths_of_both_cgroup_drivers_are_known() {
    let table = [
        ("docker", format!("/docker/{A}")),
        ("docker", format!("/system.slice/docker-{A}.scope")),
        ("docker", format!("/system.slice/docker-{A}.scope/init.scope")),
        ("docker", format!("system.slice:docker:{A}")),
        ("docker", format!("/ecs/0123456789abcdef0123456789abcdef/{A}")),
        ("podman", format!("/libpod_parent/libpod-{A}")),
        ("podman", format!("/machine.slice/libpod-{A}.scope/container")),
        // In a pod of podman's own, whose id is of the same form.
        ("podman", format!("/libpod_parent/{B}/libpod-{A}")),
        ("podman", format!("/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope")),
        (
            "podman",
            format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope"),
        ),
        ("podman", format!("/user.slice/run-r1.scope/libpod-payload-{A}")),
        ("kubernetes", format!("/kubepods/burstable/poddb2eeb7a73034a710a6a7f3b931698d5/{A}")),
        ("kubernetes", format!("/kubepods/pod11111111-2222-3333-4444-555555555555/{A}")),
        (
            "containerd",
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poddb2eeb7a73034a710a6a7f3b931698d5.slice/cri-containerd-{A}.scope"
            ),
        ),
        ("containerd", format!("/system.slice/kubepods-burstable-pod1_2.slice:cri-containerd:{A}")),
        ("containerd", format!("/user.slice/nerdctl-{A}.scope")),
        ("cri-o", format!("/kubepods.slice/kubepods-pod1_2.slice/crio-{A}.scope/container")),
        ("cgroup", format!("/mine/{A}")),
        ("cgroup", format!("/../{A}")),
        ("cgroup", format!("/mine/other-{A}.scope")),
    ];
    for (runtime, path) in table {
        assert_eq!(told(&path), [(runtime, A.to_string())], "{path}");
    }
}

#[test]
fn paths_without_a_container_name_none() {
    let table = [
        "/".to_string(),
        String::new(),
        "/system.slice/docker.service".to_string(),
        // The monitors of podman and CRI-O stand beside the container, not in it.
        format!("/machine.slice/libpod-conmon-{A}.scope"),
        format!("/kubepods.slice/crio-conmon-{A}.scope"),
        format!("/docker/{}", &A[1..]),
        format!("/docker/0{A}"),
        format!("/docker/{}", A.to_uppercase()),
        format!("/docker/{A}x"),
        format!("/docker/{A} (deleted)"),
        format!("/docker/é{}", &A[1..]),
    ];
    for path in table {
        assert_eq!(told(&path), [], "{path}");
    }
}

#[test]
fn nested_containers_are_told_outermost_first_each_with_its_own_path() {
    let path = format!("/kubepods/besteffort/pod1/{A}/docker/{B}/x.slice");
    let found = containers_in(&path);
    assert_eq!(found.iter().map(|it| it.runtime).collect::<Vec<_>>(), ["kubernetes", "docker"]);
    assert_eq!(found[0].path, format!("/kubepods/besteffort/pod1/{A}"));
    assert_eq!(found[1].path, format!("/kubepods/besteffort/pod1/{A}/docker/{B}"));
    // What the inner runtime is, the outer one does not say.
    assert_eq!(told(&format!("/docker/{A}/{B}"))[1].0, "cgroup");
}

#[test]
fn the_memory_controllers_line_is_trusted_first_then_the_unified_one() {
    let text = format!(
        "9:name=systemd:/system.slice/x:y.service\n4:cpu,memory:/docker/{A}\n1:cpu:/docker/{B}\nbroken\nx:y:z\n0::/\n"
    );
    let order: Vec<_> = parse_memberships(&text).iter().map(|it| it.controllers).collect();
    assert_eq!(order, ["cpu,memory", "", "name=systemd", "cpu"]);
    assert_eq!(parse_memberships(&text)[2].path, "/system.slice/x:y.service");
    assert_eq!(containers_of(&text)[0].id, A);
    assert!(names_id(&text, A) && names_id(&text, B) && !names_id(&text, &A[..63]));
    let hybrid = format!("4:memory:/\n0::/docker/{B}\n");
    assert_eq!(containers_of(&hybrid)[0].id, B);
}

/// A machine of files: `/proc` and its cgroup mounts below one directory.
struct Machine {
    directory: tempfile::TempDir,
}

impl Machine {
    fn new(mounts: &[(&str, &str, &str, &str)]) -> Self {
        let machine = Self { directory: tempfile::tempdir().unwrap() };
        let mut mountinfo = String::from("21 1 254:0 / / rw - ext4 /dev/vda rw\n");
        for (root, mountpoint, kind, options) in mounts {
            let mountpoint = machine.directory.path().join(mountpoint);
            let mountpoint = mountpoint.display().to_string().replace(' ', "\\040");
            mountinfo += &format!(
                "31 21 0:26 {root} {mountpoint} rw,nosuid shared:9 - {kind} {kind} rw,{options}\n"
            );
        }
        machine.write("proc/self/mountinfo", &mountinfo);
        machine
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.directory.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn process(&self, pid: u32, inner_pid: u32, started: u64, cgroup: &str) {
        self.write(&format!("proc/{pid}/cgroup"), cgroup);
        self.write(
            &format!("proc/{pid}/status"),
            &format!("Name:\tx\nNSpid:\t{pid}\t{inner_pid}\n"),
        );
        let zeros = "0 ".repeat(18);
        self.write(&format!("proc/{pid}/stat"), &format!("{pid} (a) b) S {zeros}{started} 0\n"));
    }

    fn proc(&self) -> PathBuf {
        self.directory.path().join("proc")
    }

    fn first(&self, id: &str) -> Option<u32> {
        first_process(&self.proc(), id, &scan(&self.proc()).unwrap())
    }
}

#[test]
fn the_first_process_is_pid_1_of_its_namespace_else_the_oldest() {
    let machine = Machine::new(&[]);
    let line = format!("0::/docker/{A}\n");
    machine.process(300, 1, 50, &line);
    machine.process(200, 9, 40, &line);
    machine.process(100, 1, 10, "0::/\n");
    assert_eq!(machine.first(A), Some(300));
    let line = format!("0::/docker/{B}\n");
    machine.process(500, 8, 70, &line);
    machine.process(600, 7, 60, &line);
    assert_eq!(machine.first(B), Some(600));
    assert_eq!(machine.first(&A.replace('7', "8")), None);
}

#[test]
fn a_container_inside_does_not_lend_its_first_process() {
    let machine = Machine::new(&[]);
    machine.process(100, 1, 5, &format!("0::/docker/{A}/docker/{B}\n"));
    machine.process(200, 7, 50, &format!("0::/docker/{A}/init\n"));
    assert_eq!(machine.first(A), Some(200));
    assert_eq!(machine.first(B), Some(100));
}

#[test]
fn a_cgroup_that_a_container_named_after_another_does_not_stand_for_it() {
    let machine = Machine::new(&[]);
    machine.process(100, 1, 5, &format!("0::/docker/{A}/docker-{B}.scope\n"));
    machine.process(200, 9, 50, &format!("0::/docker/{B}\n"));
    assert_eq!(machine.first(B), Some(200));
    assert_eq!(processes_of(&machine.proc(), B, 200), [200]);
}

#[test]
fn processes_come_from_the_memory_directory_on_v1_and_below_it() {
    let machine = Machine::new(&[
        ("/", "cg/cpu", "cgroup", "cpu"),
        ("/", "cg/the memory", "cgroup", "memory"),
        ("/", "cg/unified", "cgroup2", "nsdelegate"),
    ]);
    machine.process(10, 1, 5, &format!("4:memory:/docker/{A}/app\n1:cpu:/\n0::/docker/{A}\n"));
    machine.write(&format!("cg/the memory/docker/{A}/cgroup.procs"), "12\n0\n");
    machine.write(&format!("cg/the memory/docker/{A}/app/cgroup.procs"), "10\n11\n");
    machine.write(&format!("cg/unified/docker/{A}/cgroup.procs"), "10\n99\n");
    assert_eq!(processes_of(&machine.proc(), A, 10), [10, 11, 12]);
}

#[test]
fn processes_come_from_the_unified_directory_on_v2_and_hybrid_hosts() {
    let machine = Machine::new(&[
        ("/", "cg/memory", "cgroup", "memory"),
        ("/", "cg/unified", "cgroup2", "nsdelegate"),
    ]);
    let path = format!("/system.slice/docker-{A}.scope");
    machine.process(10, 1, 5, &format!("4:memory:/\n0::{path}/init.scope\n"));
    machine.write("cg/memory/cgroup.procs", "1\n10\n11\n");
    machine.write(&format!("cg/unified{path}/init.scope/cgroup.procs"), "10\n");
    machine.write(&format!("cg/unified{path}/system.slice/app/cgroup.procs"), "14\n13\n");
    assert_eq!(processes_of(&machine.proc(), A, 10), [10, 13, 14]);
}

#[test]
fn without_its_directory_processes_are_those_that_name_the_id() {
    // A private cgroup namespace shows other containers beyond the mount's root.
    let machine = Machine::new(&[("/", "cg", "cgroup2", "")]);
    machine.process(10, 1, 5, &format!("0::/../{A}\n"));
    machine.process(11, 2, 6, &format!("0::/../{A}/x\n"));
    machine.process(12, 1, 7, &format!("0::/../{B}\n"));
    machine.write("cg/cgroup.procs", "10\n77\n");
    assert_eq!(processes_of(&machine.proc(), A, 10), [10, 11]);
}

#[test]
fn a_mount_of_a_part_is_followed_and_its_root_is_never_a_container() {
    let mount = |root: &str| CgroupMount {
        unified: true,
        options: String::new(),
        root: root.to_string(),
        mountpoint: PathBuf::from("/sys/fs/cgroup"),
    };
    let in_whole = |path: &str| mount("/").directory_of(path);
    assert_eq!(in_whole("/docker/x"), Some(PathBuf::from("/sys/fs/cgroup/docker/x")));
    for path in ["/", "", "/..", "/../x", "/docker/../..", "//"] {
        assert_eq!(in_whole(path), None, "{path}");
    }
    let in_part = |path: &str| mount("/docker/x").directory_of(path);
    assert_eq!(in_part("/docker/x/y"), Some(PathBuf::from("/sys/fs/cgroup/y")));
    for path in ["/docker/x", "/docker/xy", "/docker", "/docker/x/../y"] {
        assert_eq!(in_part(path), None, "{path}");
    }
}

#[test]
fn an_unreadable_proc_is_an_error_and_broken_entries_are_not() {
    assert!(scan(Path::new("/nonexistent")).is_err());
    let machine = Machine::new(&[]);
    machine.write("proc/12x/cgroup", &format!("0::/docker/{A}\n"));
    machine.write("proc/99999999999/cgroup", &format!("0::/docker/{A}\n"));
    machine.write("proc/13/status", "");
    machine.write("proc/14/cgroup", &format!("0::/docker/{A}\n"));
    machine.write("proc/14/status", "no NSpid here");
    machine.write("proc/14/stat", "14 (no end");
    assert_eq!(scan(&machine.proc()).unwrap().len(), 1);
    assert_eq!(machine.first(A), None);
}
